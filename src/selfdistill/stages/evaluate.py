"""Evaluate the trained runs of a variant: their predictions, their records, and what they do on other images."""

import csv
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from selfdistill.data.prepared import Dataset
from selfdistill.errors import NonFiniteOutputsError, UserError
from selfdistill.evaluation.classification import ClassTest
from selfdistill.evaluation.retrieval import PersonTest
from selfdistill.evaluation.robustness import tests_of
from selfdistill.files import write_atomically
from selfdistill.models.trained import load_network, rows_not_finite
from selfdistill.training import determinism

if TYPE_CHECKING:  # its library, pydantic, may be missing on a machine that only trains
    from selfdistill.config import Study

WEIGHTS = {"last": "weights", "validation": "validation_best"}  # a run's file, by what a study selects


def evaluate_variant(study: "Study", *, model: str, variant: str) -> None:
    """Predict the test split with every seed's run, and write predictions and records."""
    test = open_test(study.data_folder / "test", determinism.apply(study.recipe))
    for seed in tqdm(study.seeds, unit="run", disable=None, leave=False):
        predictions = study.results / "predictions" / model / variant / f"{seed}.safetensors"
        record_file = study.record_file(model, variant, seed)
        evaluate_run(study.run_folder(model, variant, seed), test, predictions, record_file)


def open_test(folder: Path, device: str) -> ClassTest | PersonTest:
    """The test split of a prepared data set, on a device: of persons to be found again where there is a
    gallery, otherwise of classes."""
    if (folder / "gallery.safetensors").is_file():
        return PersonTest.read(folder, device)
    return ClassTest.read(folder, device)


def evaluate_run(folder: Path, test: ClassTest | PersonTest, predictions: Path, record_file: Path) -> None:
    """Predict with both weights of one run; test: what `open_test` gives.

    predictions: `last`, `validation` and each of the run's members (earlier generations, a running average, a
    peer), exits x N x what the test makes of an image (K logits, or the D numbers of its feature), and the truth
    that they are held against.
    record_file: run.json, the history, and the test metrics of the last epoch and of the epoch chosen on
    validation; for `last`, those of each member's deepest exit and of all together, too.
    """
    device = str(test.images.device)
    tensors: dict[str, Tensor] = test.truth()
    found: dict[str, Any] = {}
    for selection, weights in WEIGHTS.items():
        network, record = load_network(folder, device, weights)
        dataset = Dataset(**record["dataset"])
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
    write_atomically(predictions, save({name: t.contiguous() for name, t in tensors.items()}))
    history = read_history(folder / "history.csv")
    text = json.dumps({**record, "test": found, "history": history}, allow_nan=False) + "\n"
    write_atomically(record_file, text.encode())


def finite(outputs: Tensor, weights: Path, split: str) -> Tensor:
    """The outputs, exits x N x D, after making sure that all are numbers."""
    if rows := int(rows_not_finite(outputs)):
        raise NonFiniteOutputsError(
            f"{weights}: the network's outputs for {rows} of {outputs.shape[1]} images of the {split} split are no "
            "numbers (NaN or infinite); train it again with a lower recipe.learning_rate"
        )
    return outputs


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


def evaluate_robustness(study: "Study", *, model: str, variant: str, name: str) -> None:
    """Test every seed's run on the data set `name`, with the weights that the study selects.

    results/records/robustness/<name>/<model>/<variant>/<seed>.json: whose weights, the SHA-256 of the pixels of each
    set, and for each set and severity (null where there are none) the metrics of every exit.
    """
    prepared, device = study.prepared(name), determinism.apply(study.recipe)
    facts = json.loads((prepared / "training" / "dataset.json").read_text())
    weights = WEIGHTS[study.selection]
    found: dict[int, tuple[Any, dict, list[dict]]] = {}
    for seed in study.seeds:
        network, record = load_network(study.run_folder(model, variant, seed), device, weights)
        if record["dataset"]["classes"] != facts["classes"]:
            raise UserError(f"{name}: its classes are not those of {record['dataset']['name']}, in their order")
        found[seed] = network, record, []
    bar = tqdm(total=len(facts["counts"]) * len(found), unit="set", disable=None, leave=False)
    with bar:
        for part in facts["counts"]:  # each is read once for all seeds: 150 MB of CIFAR-10-C's
            for severity, test in tests_of(prepared / "test" / f"{part}.safetensors", device):
                for seed, (network, record, rows) in found.items():
                    file = study.run_folder(model, variant, seed) / f"{weights}.safetensors"
                    outputs = finite(test.outputs(network, Dataset(**record["dataset"])), file, f"{name} {part}")
                    rows.append({"set": part, "severity": severity, **test.of_exits(outputs)})
            bar.update(len(found))
    for seed, (_, record, rows) in found.items():
        content = {
            "weights_sha256": record["weights_sha256"],
            "selection": study.selection,
            "pixels_sha256": facts["pixels_sha256"],
            "tests": rows,
        }
        path = study.results / "records" / "robustness" / name / model / variant / f"{seed}.json"
        write_atomically(path, (json.dumps(content, allow_nan=False) + "\n").encode())
