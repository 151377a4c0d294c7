"""Predict with one run: test and validation images, every exit, member and selection.

What predictions depend on lies below this file or stands in the plan; when it is carried out
(`stages.evaluate_seeds`) does not.
"""

import csv
import hashlib
import json
import math
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from selfdistill.data.prepared import Dataset
from selfdistill.evaluation.finite import finite
from selfdistill.evaluation.splits import ClassImages, PersonImages
from selfdistill.files import write_atomically
from selfdistill.models.trained import load_network

WEIGHTS = {"last": "weights", "validation": "validation_best"}  # a run's file, by what a study selects


def evaluate_run(
    folder: Path,
    test: ClassImages | PersonImages,
    validation: ClassImages,
    target: Path,
    key: str | None = None,
    search: dict | None = None,
) -> None:
    """Predict with all networks of one run, and write three files to `target`.  search: what the search that its values
    are from has found.

    predictions.safetensors: of the test images (`evaluation.splits.open_test`) what `last`, `validation` and each of
    the run's members (earlier generations, a running average, a peer) make of them, exits x N x K logits or exits x N x
    D features, and the truth that they are held against.  validation.safetensors: logits of the validation images, in
    the same form, and `labels`.
    record.json: run.json, the history, and the evaluation's key, a hash of its inputs, with the SHA-256 of both files.
    """
    device = str(test.images.device)
    splits: dict[str, ClassImages | PersonImages] = {"test": test, "validation": validation}
    found: dict[str, dict[str, Tensor]] = {name: images.truth() for name, images in splits.items()}
    _, record = load_network(folder, device)
    dataset = Dataset(**record["dataset"])
    for name, weights in (WEIGHTS | {member: member for member in record["members"]}).items():
        if name == "validation" and record["validation_best_sha256"] == record["weights_sha256"]:
            for tensors in found.values():
                tensors[name] = tensors["last"].clone()  # the last was best
            continue
        network, _ = load_network(folder, device, weights)
        for split, images in splits.items():
            outputs = images.outputs(network, dataset)
            found[split][name] = finite(outputs, folder / f"{weights}.safetensors", split)
    files = {}
    for file, split in (("predictions.safetensors", "test"), ("validation.safetensors", "validation")):
        content = save({name: t.contiguous() for name, t in found[split].items()})
        write_atomically(target / file, content)
        files[file] = hashlib.sha256(content).hexdigest()
    evaluation = {"key": key, "files": files}
    if isinstance(test, PersonImages):
        evaluation["re_ranking"] = test.re_ranking
    told = {"history": read_history(folder / "history.csv"), "evaluation": evaluation}
    told |= {"tuning": search} if search else {}
    write_atomically(target / "record.json", (json.dumps({**record, **told}, allow_nan=False) + "\n").encode())


def read_history(path: Path) -> dict[str, list[float | None]]:
    """The columns of a history; None where a phase lacks a term."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    whole = ("epoch", "phase")

    def number(name: str, text: str) -> float | None:
        if name in whole:
            return int(text)
        return float(text) if text and math.isfinite(float(text)) else None

    return {name: [number(name, row[name]) for row in rows] for name in rows[0]}
