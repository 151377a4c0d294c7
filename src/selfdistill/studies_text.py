"""What `selfdistill study` prints of the studies."""

from pathlib import Path

from selfdistill import studies
from selfdistill.params import read_study


def listed(rows: list[dict]) -> str:
    """The rows of `studies.listing`: two lines a study, one for a study that is not in order."""
    width = max(len(row["name"]) for row in rows)
    lines = []
    for row in rows:
        if "fault" in row:
            lines.append(f"{row['name']:{width}}  not in order: {row['fault']}")
            continue
        numbers = f"{len(row['models'])} networks x {len(row['methods'])} methods x {row['seeds']} seeds"
        lines += [
            f"{row['name']:{width}}  {row['dataset']:14} {row['cells']:4} cells  {numbers}",
            f"  {row['purpose']}",
        ]
    return "\n".join(lines)


def shown(root: Path, name: str, tflops: float | None) -> str:
    """What a study consists of, an estimate of its cost and where the estimate comes from, and what has run."""
    folder = studies.folders(root)[name]
    study = read_study(folder / "params.yaml")
    found, ran = studies.estimate(root, study, tflops), studies.has_run(folder, study)
    pixels = " x ".join(map(str, found["shape"]))
    classes = found["classes"] or f"{studies.CLASSES} assumed"
    lines = [
        f"{name}: {studies.purpose(folder / 'params.yaml')}\n",
        f"data set   {study.dataset}: {found['train_images']:,} training images of {pixels}, classes: {classes}",
        f"methods    {', '.join(study.methods)}",
    ]
    for key in ("students", "taught"):
        if names := getattr(study, key):
            network = study.teacher_of(names[0])[1] or "the same network"
            lines.append(f"{key:10} {', '.join(names)}; their teacher: {study.teacher} of {network}")
    if study.probes:
        lines.append(f"probes     {', '.join(study.probes)}, of every network")
    tuning = study.tuning
    if tuned := tuning.variants:
        each = f"{tuning.replicates} searches each of {tuning.trials} trials of {study.trial_epochs} epochs"
        lines.append(f"tuning     {', '.join(tuned)}; {each}, and a training of each winner")
    unit = "CPU-hours" if study.recipe.device == "cpu" else "GPU-hours"
    lines += [
        f"cells      {len(study.cells())}, seeds {', '.join(map(str, study.seeds))}, {study.recipe.epochs} epochs\n",
        f"{'network':20} {'parameters':>12} {'million MACs':>13} {'10^15 FLOPs':>13} {unit:>10}",
    ]
    for model, size in found["sizes"].items():
        numbers = f"{size.parameters:12,} {size.macs / 1e6:13,.1f} {found['flops'][model] / 1e15:13,.3f}"
        lines.append(f"{model:20} {numbers} {found['hours'][model]:10,.2f}")
    measured = "measured, docs/performance.md" if unit[0] == "C" else "assumed, none was measured"
    rate = f"{found['tflops']:g} TFLOP/s ({'given' if tflops else measured}; --tflops changes it)"
    lines += [
        f"{'all cells':20} {'':40} {sum(found['hours'].values()):10,.2f}",
        f"\nAn estimate: cells x epochs x images x 6 FLOPs a multiply-add x the method's passes, at {rate}.",
        "Not in it: evaluation, decoding of large images, start-up.",
        f"disk       {found['bytes'] / 1e9:.2f} GB of weights and predictions, up to twice that with DVC's cache; "
        "prepared data comes on top",
        f"has run    {ran['local']} records of this checkout, {ran['imported']} imported; weights of {ran['weights']} "
        f"cells in place, of {ran['cached']} in DVC's cache",
    ]
    return "\n".join(lines)


def made(name: str, params: Path) -> str:
    """What to do with a study that was just made."""
    return f"{params}: yours to edit; run it with   make study STUDY={name}"
