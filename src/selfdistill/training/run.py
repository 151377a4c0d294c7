"""One cell of a study, from its parameters to the files in its folder.

`run.json` and `history.csv` hold what must come out the same again, bit for bit.  What depends on
the machine and the day (hardware, versions, seconds) goes to `results/hosts`, which is no output of
the stage and is never hashed.
"""

import csv
import hashlib
import io
import json
import sys
import time
from pathlib import Path

from safetensors.torch import save

from selfdistill import methods
from selfdistill.data.prepared import Dataset, read_split
from selfdistill.files import write_atomically
from selfdistill.models.trained import build, load_network, run_folder
from selfdistill.training import cost, determinism, engine, host


def train_cell(study, *, model: str, method: str, seed: int, teacher: str | None = None) -> Path:
    """Train one network of a `selfdistill.config.Study` and write its folder; returns the folder."""
    recipe = study.recipe
    device = determinism.apply(recipe)
    data = study.data_folder / "training"
    dataset = Dataset.read(data)
    splits = {s: engine.Split(*read_split(data, s, device)) for s in ("train", "validation")}
    hyper = study.hyper[method]
    rule = methods.load(method)(**hyper)
    shape = {"channels": dataset.channels, "classes": len(dataset.classes), "size": list(dataset.size)}
    network_form = {"name": model, **shape, "exits": "exits" in rule.needs}
    taught_by, teacher_flops = None, 0
    if teacher is not None:
        network, taught_record = load_network(run_folder(study.results, model, teacher, seed), device)
        taught_by, teacher_flops = engine.frozen(network), taught_record["cost"]["training_flops"]

    started = time.time()
    trained = engine.train(
        rule,
        lambda weights_seed: build(network_form, weights_seed),
        dataset,
        splits["train"],
        splits["validation"],
        recipe,
        seed=seed,
        teacher=taught_by,
    )
    seconds = time.time() - started

    exit_macs, all_macs = cost.inference_macs(trained.last, (dataset.channels, *dataset.size))
    folder = run_folder(study.results, model, method, seed)
    folder.mkdir(parents=True, exist_ok=True)
    sha256 = {
        name: save_weights(folder / f"{name}.safetensors", state)
        for name, state in (
            ("weights", trained.last.state_dict()),
            ("validation_best", trained.validation_best),
        )
    }
    write_atomically(folder / "history.csv", as_csv(trained.history))
    record = {
        "model": model,
        "method": method,
        "title": rule.about["title"],
        "seed": seed,
        "teacher": teacher,
        "network": network_form,
        "sections": len(trained.last.backbone.sections),
        "dataset": {name: getattr(dataset, name) for name in Dataset.__dataclass_fields__},
        "recipe": recipe.model_dump(),
        "hyper": {name: getattr(rule, name) for name in rule.about["hyper"]},
        "code_sha256": code_sha256(),
        "weights_sha256": sha256["weights"],
        "validation_best_sha256": sha256["validation_best"],
        "validation_best_epoch": trained.best_epoch,
        "cost": {
            "parameters": sum(p.numel() for p in trained.last.parameters()),
            "training_flops": round(trained.flops),
            "teacher_training_flops": teacher_flops,
            "inference_macs": exit_macs,
            "ensemble_macs": all_macs,
        },
    }
    write_atomically(folder / "run.json", (json.dumps(record, indent=1) + "\n").encode())
    host.note(study.results, record, device=device, seconds=seconds, threads=recipe.threads)
    return folder


def as_csv(rows: list[dict]) -> bytes:
    """Rows as CSV; a term that only some phases have is empty in the others."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(k for row in rows for k in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def save_weights(path: Path, state: dict) -> str:
    """Write safetensors atomically; returns the file's SHA-256."""
    content = save({name: tensor.contiguous().cpu() for name, tensor in state.items()})
    write_atomically(path, content)
    return hashlib.sha256(content).hexdigest()


def code_sha256() -> str:
    """One hash over the source files that this run has used of the parts that shape its result."""
    package = Path(__file__).parents[1]
    used = {Path(m.__file__) for n, m in sys.modules.items() if n.startswith("selfdistill.") and m.__file__}
    parts = ("data", "methods", "models", "training")
    digest = hashlib.sha256()
    for path in sorted(used):
        relative = path.relative_to(package)
        if relative.parts[0] in parts:
            digest.update(f"{relative.as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()
