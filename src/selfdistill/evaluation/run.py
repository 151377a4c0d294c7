"""Evaluate the trained runs of a method: their predictions, and their records."""

import json
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save
from tqdm import tqdm

from selfdistill.data.prepared import Dataset
from selfdistill.evaluation.classification import ClassTest
from selfdistill.files import write_atomically
from selfdistill.models.trained import load_network, run_folder
from selfdistill.training import determinism

WEIGHTS = {"last": "weights", "validation": "validation_best"}  # a run's file, by what a study selects


def evaluate_method(study, *, model: str, method: str) -> None:
    """Predict the test split with every seed's run, and write predictions and records."""
    test = open_test(study.data_folder / "test", determinism.apply(study.recipe))
    for seed in tqdm(study.seeds, unit="run", disable=None, leave=False):
        evaluate_run(study.results, model, method, seed, test)


def open_test(folder: Path, device: str):
    """The test split of a prepared data set, on a device: of persons to be found again where there is a
    gallery, otherwise of classes."""
    if (folder / "gallery.safetensors").is_file():
        from selfdistill.evaluation.retrieval import PersonTest

        return PersonTest.read(folder, device)
    return ClassTest.read(folder, device)


def evaluate_run(results: Path, model: str, method: str, seed: int, test) -> None:
    """Predict with both weights of one run; test: what `open_test` gives.

    predictions/<model>/<method>/<seed>.safetensors: `last`, `validation` and each of the run's members
    (earlier generations, a running average, a peer), exits x N x what the test makes of an image (K logits,
    or the D numbers of its feature), and the truth that they are held against.
    records/<model>/<method>/<seed>.json: run.json, the history, and the test metrics of the last epoch
    and of the epoch chosen on validation; for `last`, those of each member's deepest exit and of all
    together, too.
    """
    folder, device = run_folder(results, model, method, seed), str(test.images.device)
    tensors, found = test.truth(), {}
    for selection, weights in WEIGHTS.items():
        network, record = load_network(folder, device, weights)
        dataset = Dataset(**record["dataset"])
        tensors[selection] = test.outputs(network, dataset)
        found[selection] = test.of_exits(tensors[selection])
    members = record["members"]
    for name in members:
        network, _ = load_network(folder, device, name)
        tensors[name] = test.outputs(network, dataset)
    if members:
        deepest = [tensors[name][-1] for name in (*members, "last")]
        found["last"]["members"] = {
            **{name: test.metrics(z) for name, z in zip(members, deepest, strict=False)},
            "together": test.together(torch.stack(deepest)),
        }
    cell = Path(model) / method / str(seed)
    content = save({name: t.contiguous() for name, t in tensors.items()})
    write_atomically(results / "predictions" / f"{cell}.safetensors", content)
    history = pd.read_csv(folder / "history.csv").to_dict(orient="list")
    text = json.dumps({**record, "test": found, "history": history}) + "\n"
    write_atomically(results / "records" / f"{cell}.json", text.encode())
