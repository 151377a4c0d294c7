"""`selfdistill bench`: measure, and write a table and a figure."""

import datetime
import json
import platform
import resource
from io import BytesIO
from pathlib import Path
from statistics import median

import torch

from selfdistill.benchmark import loops
from selfdistill.files import write_atomically
from selfdistill.host import hardware
from selfdistill.training import determinism

# Each switch of a recipe that is there for speed, against the recipe without it.
SWITCHES = {
    "channels_last": {"channels_last": True},
    "bfloat16": {"precision": "bfloat16"},
    "compile": {"compile": True},
    "cuda_graphs": {"cuda_graphs": True},
    "compile + cuda_graphs": {"compile": True, "cuda_graphs": True},
    "all": {"precision": "bfloat16", "compile": True, "cuda_graphs": True},
}


def changed(recipe, **values):
    """The recipe with some values replaced, whatever class it is of."""
    return type(recipe)(**{**vars(recipe), **values})


def bench(
    recipe, *, model: str, method: str, size: int, channels: int, classes: int, steps: int, rounds: int, workers: int
):
    """One paired comparison of ours, floor and ordinary.  Returns a dictionary of results, JSON-able.

    In every round each loop takes `steps` steps, in turn; a ratio is that of one round, so that a
    machine whose speed drifts does not decide it.
    """
    device = torch.device(determinism.apply(recipe))
    task = loops.Task(model, method, recipe, device, size, channels, classes, steps)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    loop, run = loops.ours(task)
    loop()  # warm-up: kernels chosen, compiled, captured
    loop()
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    contenders = {"ours": loop, "floor": loops.floor(task)}
    if workers >= 0:
        contenders["ordinary"] = loops.ordinary(task, workers)
    for name, contender in contenders.items():
        if name != "ours":
            contender()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds):
        order = list(contenders)[turn % len(contenders) :] + list(contenders)[: turn % len(contenders)]
        for name in order:  # no loop is always first
            seconds[name].append(contenders[name]())
    images = steps * recipe.batch_size
    flops = max(run.step_flops.values()) * steps  # a whole batch is the dearest kind of step
    ceiling = loops.matrix_ceiling(device, recipe.precision)
    return {
        "model": model,
        "method": method,
        "size": size,
        "batch_size": recipe.batch_size,
        "recipe": {k: v for k, v in vars(recipe).items() if k in SPEED},
        "hardware": hardware(device.type),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "rounds": rounds,
        "steps": steps,
        "workers": workers,
        "images_per_second": {name: spread([images / s for s in values]) for name, values in seconds.items()},
        "ours_to": {
            name: spread([b / a for a, b in zip(seconds["ours"], values, strict=True)])
            for name, values in seconds.items()
            if name != "ours"
        },
        "share_beside": spread([1 - b / a for a, b in zip(seconds["ours"], seconds["floor"], strict=True)]),
        "flops_per_second": spread([flops / s for s in seconds["ours"]]),
        "ceiling_flops_per_second": ceiling,
        "peak_memory_mb": (peak // 2**20) if peak else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "system": platform.platform(terse=True),
    }


SPEED = ("device", "threads", "determinism", "precision", "channels_last", "compile", "cuda_graphs", "processes")


def spread(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def switches(recipe, **task) -> list[dict]:
    """What each switch gains over the same recipe without any: median ratio of seconds, in paired rounds."""
    bare = changed(recipe, precision="float32", channels_last=False, compile=False, cuda_graphs=False)
    rounds, found = task.pop("rounds"), []
    device = torch.device(determinism.apply(bare))
    for name, change in SWITCHES.items():
        if device.type != "cuda" and "cuda_graphs" in change:
            continue
        # gains are told on top of channels_last, which every other switch wants
        base = bare if name == "channels_last" else changed(bare, channels_last=True)
        pair = [
            loops.ours(loops.Task(recipe=r, device=device, **task))[0]
            for r in (base, changed(base, **{**change, "channels_last": True}))
        ]
        for loop in pair:
            loop()
            loop()
        ratios = []
        for turn in range(rounds):
            first, second = (pair[0](), pair[1]()) if turn % 2 == 0 else reversed((pair[1](), pair[0]()))
            ratios.append(first / second)
        found.append({"switch": name, "gain": spread(ratios), "rounds": rounds})
    return found


# ---- for readers ----


def sentence(result: dict) -> str:
    """Hardware, n and date, which every number needs beside it."""
    return (
        f"{result['hardware']}, {result['recipe']['threads']} thread(s), PyTorch {result['torch']}, "
        f"n = {result['rounds']} rounds of {result['steps']} steps, {result['date']}"
    )


def table(results: list[dict]) -> str:
    head = (
        "| network | method | images | batch | precision | ours, images/s | to the bare loop | to DataLoader + PIL | "
        "beside forward, backward, update | TFLOP/s | of the matrix ceiling | peak memory |\n" + "| --- " * 12 + "|\n"
    )

    def number(values: dict | None, digits: int = 2) -> str:
        if values is None:
            return "-"
        return f"{values['median']:.{digits}f} ({values['min']:.{digits}f} to {values['max']:.{digits}f})"

    rows = []
    for r in results:
        achieved = r["flops_per_second"]["median"]
        cells = [
            r["model"],
            r["method"],
            f"{r['size']} px",
            str(r["batch_size"]),
            r["recipe"]["precision"],
            f"{r['images_per_second']['ours']['median']:,.0f}",
            number(r["ours_to"]["floor"]),
            number(r["ours_to"].get("ordinary")),
            f"{r['share_beside']['median']:.1%}",
            f"{achieved / 1e12:.3f}",
            f"{achieved / r['ceiling_flops_per_second']:.0%}",
            f"{r['peak_memory_mb']:,} MB",
        ]
        rows.append("| " + " | ".join(cells) + " |\n")
    return head + "".join(rows)


def switch_table(found: list[dict]) -> str:
    rows = "".join(
        f"| {f['switch']} | {f['gain']['median']:.2f} ({f['gain']['min']:.2f} to {f['gain']['max']:.2f}) |\n"
        for f in found
    )
    return "| switch | images/s against without, median (min to max) |\n| --- | --- |\n" + rows


def draw(results: list[dict]) -> dict[str, bytes]:
    """Images a second of the three loops, relative to the bare one, a group a network; SVG and PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    from selfdistill.summary import METADATA, STYLE

    names = {"floor": "bare loop, resident tensors", "ours": "this project", "ordinary": "DataLoader + PIL"}
    colours = {"floor": "#bbbbbb", "ours": "#0173b2", "ordinary": "#de8f05"}
    with plt.style.context(STYLE, after_reset=True):
        figure, ax = plt.subplots(figsize=(6.4, 0.9 * len(results) + 1.4))
        for group, r in enumerate(results):
            base = r["images_per_second"]["floor"]["median"]
            for place, (name, label) in enumerate(names.items()):
                if name in r["images_per_second"]:
                    rate = r["images_per_second"][name]["median"]
                    y = group + 0.26 * (place - 1)
                    ax.barh(y, rate / base, 0.24, color=colours[name], label=label if group == 0 else None)
                    ax.text(rate / base + 0.01, y, f"{rate:,.0f}/s", va="center", fontsize=8)
        ax.set_yticks(
            range(len(results)),
            [f"{r['model']}, {r['size']} px\n{r['method']}, {r['recipe']['precision']}" for r in results],
        )
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
        ax.set_xlim(0, 1.25)
        ax.set_xlabel("images a second, relative to the bare loop")
        ax.set_title(f"Training speed on {results[0]['hardware']}", loc="left")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22 if len(results) > 1 else -0.4), ncols=3)
        figure.tight_layout()
        pictures = {}
        for kind, metadata in METADATA.items():
            buffer = BytesIO()
            figure.savefig(buffer, format=kind, metadata=metadata, bbox_inches="tight")
            pictures[kind] = buffer.getvalue()
        plt.close(figure)
    return pictures


def write(folder: Path, name: str, results: list[dict], found: list[dict]) -> None:
    """NAME.json, .md, .svg and .png in the folder."""
    text = json.dumps({"results": results, "switches": found}, indent=1, allow_nan=False) + "\n"
    write_atomically(folder / f"{name}.json", text.encode())
    readable = f"{sentence(results[0])}\n\n{table(results)}" + (f"\n{switch_table(found)}" if found else "")
    write_atomically(folder / f"{name}.md", readable.encode())
    for kind, picture in draw(results).items():
        write_atomically(folder / f"{name}.{kind}", picture)
