"""Evaluate one run: its predictions, its record, and what it does on other images.

What an evaluation's numbers depend on lies below this file or stands in the plan; when it is carried out
(`stages.evaluate_seeds`) does not.
"""

import csv
import hashlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save
from torch import Tensor

from selfdistill.data.prepared import Dataset
from selfdistill.errors import UserError
from selfdistill.evaluation.classification import ClassTest
from selfdistill.evaluation.finite import finite
from selfdistill.evaluation.robustness import tests_of
from selfdistill.files import write_atomically
from selfdistill.models.trained import load_network

if TYPE_CHECKING:  # its library, SciPy, may be missing on a machine that only trains
    from selfdistill.evaluation.retrieval import PersonTest

WEIGHTS = {"last": "weights", "validation": "validation_best"}  # a run's file, by what a study selects


def open_test(folder: Path, device: str) -> "ClassTest | PersonTest":
    """The test split of a prepared data set, on a device: of persons to be found again where there is a
    gallery, otherwise of classes.  Raises UserError where it has no image."""
    if (folder / "gallery.safetensors").is_file():
        from selfdistill.evaluation.retrieval import PersonTest

        test: ClassTest | PersonTest = PersonTest.read(folder, device)
    else:
        test = ClassTest.read(folder, device)
    if not len(test.images):
        raise UserError(f"{folder}: 0 test images; allowed: at least 1; prepare the data set again")
    return test


def evaluate_run(
    folder: Path,
    test: "ClassTest | PersonTest",
    predictions: Path,
    record_file: Path,
    key: str | None = None,
    search: dict | None = None,
) -> None:
    """Predict with both weights of one run; test: what `open_test` gives; search: what the search that its values are
    from has found.

    predictions: `last`, `validation` and each of the run's members (earlier generations, a running average, a
    peer), exits x N x what the test makes of an image (K logits, or the D numbers of its feature), and the truth
    that they are held against.
    record_file: run.json, the history, and the test metrics of the last epoch and of the epoch chosen on
    validation; for `last`, those of each member's deepest exit and of all together, too; and the
    evaluation's key, a hash of its inputs, with the SHA-256 of the predictions.
    """
    device = str(test.images.device)
    tensors: dict[str, Tensor] = test.truth()
    found: dict[str, Any] = {}
    for selection, weights in WEIGHTS.items():
        network, record = load_network(folder, device, weights)
        dataset = Dataset(**record["dataset"])
        if selection == "validation" and record["validation_best_sha256"] == record["weights_sha256"]:
            tensors[selection], found[selection] = tensors["last"].clone(), dict(found["last"])  # the last was best
            continue
        tensors[selection] = finite(test.outputs(network, dataset), folder / f"{weights}.safetensors", "test")
        found[selection] = test.of_exits(tensors[selection])
    members = record["members"]
    for name in members:
        network, _ = load_network(folder, device, name)
        tensors[name] = finite(test.outputs(network, dataset), folder / f"{name}.safetensors", "test")
    if members:
        deepest = [tensors[name][-1] for name in (*members, "last")]
        found["last"]["members"] = {
            **{name: test.metrics(z) for name, z in zip(members, deepest, strict=False)},
            "together": test.together(torch.stack(deepest)),
        }
    content = save({name: t.contiguous() for name, t in tensors.items()})
    write_atomically(predictions, content)
    evaluation = {"key": key, "files": {"predictions.safetensors": hashlib.sha256(content).hexdigest()}}
    told: dict[str, Any] = {"tuning": search} if search else {}
    told |= {"test": found, "history": read_history(folder / "history.csv"), "evaluation": evaluation}
    write_atomically(record_file, (json.dumps({**record, **told}, allow_nan=False) + "\n").encode())


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


def evaluate_robustness(
    folder: Path, prepared: Path, device: str, selection: str, record_file: Path, key: str | None = None
) -> None:
    """Test one run on the images of a prepared data set that has test images alone, with the weights of a selection.

    record_file: the protocol, whose weights, the SHA-256 of the pixels of each set, for each set and severity (null
    where there are none) the metrics of every exit, and the evaluation's key.
    Raises UserError where the classes are not those of the run's data set.
    """
    facts = json.loads((prepared / "training" / "dataset.json").read_text())
    network, record = load_network(folder, device, WEIGHTS[selection])
    dataset = Dataset(**record["dataset"])
    if list(dataset.classes) != facts["classes"]:
        raise UserError(f"{facts['name']}: its classes are not those of {dataset.name}, in their order")
    file, rows = folder / f"{WEIGHTS[selection]}.safetensors", []
    for part in facts["counts"]:
        for severity, test in tests_of(prepared / "test" / f"{part}.safetensors", device):
            outputs = finite(test.outputs(network, dataset), file, f"{facts['name']} {part}")
            rows.append({"set": part, "severity": severity, **test.of_exits(outputs)})
    content = {
        "protocol": record["protocol"],
        "weights_sha256": record["weights_sha256"],
        "selection": selection,
        "pixels_sha256": facts["pixels_sha256"],
        "tests": rows,
        "evaluation": {"key": key, "files": {}},
    }
    write_atomically(record_file, (json.dumps(content, allow_nan=False) + "\n").encode())
