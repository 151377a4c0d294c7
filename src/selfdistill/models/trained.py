"""A trained network on disk: the folder of a run, with `run.json` and safetensors weights."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from selfdistill import models
from selfdistill.data.prepared import Dataset
from selfdistill.errors import UserError
from selfdistill.models.sections import SectionedNetwork


class WeightsError(UserError, ValueError):
    """Weights or the description of a run that cannot be used; the message says which and why."""


def build(form: dict, seed: int, channels_last: bool = True, study: Path = Path()) -> SectionedNetwork:
    """A fresh network from its description, `network` in run.json.

    channels_last: the order of its weights in memory, in which convolutions are fastest; see
    docs/performance.md.  study: the folder in which the files of its own networks lie.
    """
    arguments = {k: v for k, v in form.items() if k not in ("name", "own")}
    own = [study / path for path in form.get("own", ())]
    network = models.build(form["name"], **arguments, seed=seed, own=own)
    return network.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def load_network(folder: Path, device: str = "cpu", weights: str = "weights") -> tuple[SectionedNetwork, dict]:
    """The trained network of a run's folder, in evaluation mode, and what its run.json says.

    weights: "weights" (last epoch), "validation_best", a member's name, or "kept_<epoch>".  The file is held against
    the hash in run.json.  Raises WeightsError.
    """
    record = read_run(folder)
    hashes = {"weights": record["weights_sha256"], "validation_best": record["validation_best_sha256"]}
    hashes |= record["members"] | {f"kept_{epoch}": sha256 for epoch, sha256 in record["kept"].items()}
    path = folder / f"{weights}.safetensors"
    if weights not in hashes:
        raise WeightsError(f"{path}: not of this run; there are {', '.join(hashes)}")
    network = build(record["network"], seed=0, study=study_of(folder, record["network"]))
    load_weights(network, verified(path, hashes[weights]), path)
    return network.to(device).eval(), record


def read_run(folder: Path) -> dict:
    """What a run's run.json says.  Raises WeightsError for a folder that is none of a run."""
    path = folder / "run.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        faults = [key for key in ("weights_sha256", "validation_best_sha256") if not isinstance(record[key], str)]
        faults += [key for key in ("members", "kept", "network", "dataset") if not isinstance(record[key], dict)]
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror}; name the folder of a trained run") from None
    except (ValueError, RecursionError):
        raise WeightsError(f"{path}: no JSON; name the folder of a trained run") from None
    except (KeyError, TypeError, IndexError) as error:
        raise WeightsError(f"{path}: not what training writes ({error}); name the folder of a trained run") from None
    if faults:
        raise WeightsError(f"{path}: {faults[0]} is not what training writes; name the folder of a trained run")
    return record


def study_of(folder: Path, form: dict) -> Path:
    """The study's folder, seen from here: the nearest one above a run in which its own network files lie."""
    for above in (Path(), *folder.absolute().parents):
        if all((above / path).is_file() for path in form.get("own", ())):
            return above
    raise WeightsError(f"{folder}: its network is of {', '.join(form['own'])}, which is not in any folder above it")


def verified(path: Path, sha256: str) -> bytes:
    """The content of a file.  Raises WeightsError where it is not there or has another hash."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror}") from None
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise WeightsError(f"{path}: its SHA-256 is {found}, not {sha256}: damaged or exchanged; restore or train it")
    return content


def load_weights(network: SectionedNetwork, content: bytes, path: Path, fresh: tuple[str, ...] = ()) -> None:
    """Give a network the weights of a safetensors file; tensors named in `fresh` may differ in shape, and keep theirs.

    Raises WeightsError for bytes that are no safetensors, other names or shapes, and numbers that are not finite.
    """
    try:
        found: dict[str, Tensor] = load(content)
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{path}: no safetensors file ({str(error).splitlines()[0]})") from None
    wanted: dict[str, Any] = network.state_dict()
    missing, further = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    other = [name for name in sorted(wanted.keys() & found.keys()) if wanted[name].shape != found[name].shape]
    other = [name for name in other if name not in fresh]
    for names, fault in ((missing, "lacks"), (further, "has further"), (other, "has of another shape")):
        if names:
            raise WeightsError(
                f"{path}: {fault} {len(names)} of the network's {len(wanted)} tensors, such as {names[0]}; "
                "allowed: weights of this very network"
            )
    for name, tensor in found.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            count = int((~torch.isfinite(tensor)).sum())
            raise WeightsError(f"{path}: {count} of {tensor.numel()} numbers of {name} are not finite")
    network.load_state_dict(wanted | {n: t for n, t in found.items() if t.shape == wanted[n].shape})


def initialise_from(network: SectionedNetwork, path: Path, sha256: str) -> list[str]:
    """Start a network from trained weights, a safetensors file of this hash; returns the names of tensors that stay
    freshly drawn: classifiers of another number of classes.  Raises WeightsError for whatever else differs."""
    classifiers = tuple(name for name in network.state_dict() if "classifier" in name or name.startswith("backbone.fc"))
    load_weights(network, content := verified(path, sha256), path, fresh=classifiers)
    found = load(content)
    return [name for name, tensor in network.state_dict().items() if found[name].shape != tensor.shape]


@torch.no_grad()
def predict(network: SectionedNetwork, dataset: Dataset, images: Tensor, batch_size: int = 1000) -> Tensor:
    """Logits of every exit for uint8 images N x C x H x W, as exits x N x K floats."""
    network.eval()
    normalise = dataset.normaliser(images.device)
    batches = (torch.stack(network(normalise(b)).logits).float() for b in images.split(batch_size))
    return torch.cat(list(batches), dim=1)
