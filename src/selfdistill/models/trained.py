"""A trained network on disk: the folder of a run, with `run.json` and safetensors weights."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from selfdistill import models
from selfdistill.data.prepared import Dataset
from selfdistill.models.sections import SectionedNetwork


def run_folder(results: Path, model: str, method: str, seed: int) -> Path:
    return results / "runs" / model / method / str(seed)


def build(form: dict, seed: int, channels_last: bool = True) -> SectionedNetwork:
    """A fresh network from its description, `network` in run.json.

    channels_last: the order of its weights in memory, in which convolutions are fastest; see
    docs/performance.md.
    """
    arguments = {k: v for k, v in form.items() if k != "name"}
    network = models.build(form["name"], **arguments, seed=seed)
    return network.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def load_network(folder: Path, device: str = "cpu", weights: str = "weights") -> tuple[SectionedNetwork, dict]:
    """The trained network of a run's folder, in evaluation mode, and what its run.json says.

    weights: "weights" (last epoch) or "validation_best".
    """
    record = json.loads((folder / "run.json").read_text())
    network = build(record["network"], seed=0)
    network.load_state_dict(load_file(folder / f"{weights}.safetensors"))
    return network.to(device).eval(), record


@torch.no_grad()
def predict(network: SectionedNetwork, dataset: Dataset, images: Tensor, batch_size: int = 1000) -> Tensor:
    """Logits of every exit for uint8 images N x C x H x W, as exits x N x K floats."""
    network.eval()
    normalise = dataset.normaliser(images.device)
    batches = (torch.stack(network(normalise(b)).logits).float() for b in images.split(batch_size))
    return torch.cat(list(batches), dim=1)
