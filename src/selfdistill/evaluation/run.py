"""Evaluate the trained runs of a method: their predictions, and their records."""

import json
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from selfdistill.data.prepared import Dataset, read_split
from selfdistill.evaluation.classification import ensemble, exit_metrics, mean_opinion, metrics
from selfdistill.files import write_atomically
from selfdistill.models.trained import load_network, predict, run_folder
from selfdistill.training import determinism


def evaluate_method(study, *, model: str, method: str) -> None:
    """Predict the test split with every seed's run, and write predictions and records."""
    device = determinism.apply(study.recipe)
    images, labels = read_split(study.data_folder / "test", "test", device)
    for seed in tqdm(study.seeds, unit="run", disable=None, leave=False):
        evaluate_run(study.results, model, method, seed, images, labels)


def evaluate_run(results: Path, model: str, method: str, seed: int, images: Tensor, labels: Tensor) -> None:
    """Predict with both weights of one run; images uint8 N x C x H x W, labels int64 N, on one device.

    predictions/<model>/<method>/<seed>.safetensors: `last`, `validation` and each of the run's members
    (earlier generations, a running average, a peer), exits x N x K floats, and `labels`.
    records/<model>/<method>/<seed>.json: run.json, the history, and the test metrics of the last epoch
    and of the epoch chosen on validation; for `last`, those of each member's deepest exit and of all
    together, too.
    """
    folder = run_folder(results, model, method, seed)
    tensors, test = {"labels": labels.cpu()}, {}
    for selection, weights in (("last", "weights"), ("validation", "validation_best")):
        network, record = load_network(folder, str(images.device), weights)
        dataset = Dataset(**record["dataset"])
        tensors[selection] = logits = predict(network, dataset, images).cpu()
        test[selection] = {"exits": exit_metrics(logits, labels.cpu())}
        if len(logits) > 1:
            test[selection]["ensemble"] = metrics(ensemble(logits), labels.cpu())
    members = record["members"]
    for name in members:
        network, _ = load_network(folder, str(images.device), name)
        tensors[name] = predict(network, dataset, images).cpu()
    if members:
        deepest = [tensors[name][-1] for name in (*members, "last")]
        test["last"]["members"] = {
            **{name: metrics(z, labels.cpu()) for name, z in zip(members, deepest, strict=False)},
            "together": metrics(mean_opinion(torch.stack(deepest)), labels.cpu()),
        }
    cell = Path(model) / method / str(seed)
    content = save({name: t.contiguous() for name, t in tensors.items()})
    write_atomically(results / "predictions" / f"{cell}.safetensors", content)
    history = pd.read_csv(folder / "history.csv").to_dict(orient="list")
    text = json.dumps({**record, "test": test, "history": history}) + "\n"
    write_atomically(results / "records" / f"{cell}.json", text.encode())
