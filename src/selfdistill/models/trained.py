"""A trained network on disk: the folder of a run, with `run.json` and safetensors weights."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

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
    order = torch.channels_last if channels_last else torch.contiguous_format
    return network.to(memory_format=order)  # type: ignore[call-overload]  # torch's own signature leaves it out


def load_network(folder: Path, device: str = "cpu", weights: str = "weights") -> tuple[SectionedNetwork, dict]:
    """The trained network of a run's folder, in evaluation mode, and what its run.json says.

    weights: "weights" (last epoch), "validation_best", a member's name, or "kept_<epoch>".  The file is held against
    the hash in run.json.  Raises WeightsError.
    """
    record = read_run(folder)
    hashes = weight_hashes(record)
    path = folder / f"{weights}.safetensors"
    if weights not in hashes:
        raise WeightsError(f"{path}: not of this run; there are {', '.join(hashes)}")
    network = build(record["network"], seed=0, study=study_of(folder, record["network"]))
    load_weights(network, verified(path, hashes[weights]), path)
    return network.to(device).eval(), record


def read_run(folder: Path) -> dict:
    """What a run's run.json says.  Raises WeightsError for a folder that is not a run's."""
    path = folder / "run.json"
    try:
        record = json.loads(regular(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror}; name the folder of a trained run") from None
    except (ValueError, RecursionError):
        raise WeightsError(f"{path}: no JSON; name the folder of a trained run") from None
    if fault := record_fault(record):
        raise WeightsError(f"{path}: not what training writes ({fault}); name the folder of a trained run")
    return record


def weight_hashes(record: dict) -> dict[str, str]:
    """The SHA-256 of each of a run's safetensors files, by the file's name without its ending."""
    kept = {f"kept_{epoch}": sha256 for epoch, sha256 in record["kept"].items()}
    last, best = record["weights_sha256"], record["validation_best_sha256"]
    return {"weights": last, "validation_best": best, **record["members"], **kept}


def record_fault(record: object) -> str | None:
    """The first place of a run's description, of those that loading its weights needs, that is not as training
    writes it."""
    if not isinstance(record, dict):
        return f"{type(record).__name__}, no object"
    for keys, kind in ((("weights_sha256", "validation_best_sha256"), str), (("members", "kept", "network"), dict)):
        for key in keys:
            if not isinstance(record.get(key), kind):
                return key
    form = record["network"]
    size, own = form.get("size"), form.get("own", [])
    fits = {
        "name": isinstance(form.get("name"), str),
        "channels": positive(form.get("channels")),
        "classes": positive(form.get("classes")),
        "size": isinstance(size, list) and len(size) == 2 and all(map(positive, size)),
        "exits": isinstance(form.get("exits"), bool),
        "own": isinstance(own, list) and all(isinstance(path, str) for path in own),
    }
    faults = [f"network.{key}" for key, fit in fits.items() if not fit]
    faults += [f"network.{key}" for key in form if key not in fits]
    faults += [] if isinstance(record.get("dataset"), dict) else ["dataset"]
    return faults[0] if faults else None


def positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def regular(path: Path) -> Path:
    """The path, if it is not a pipe or device, which might be read without end."""
    if path.exists() and not path.is_file():
        raise WeightsError(f"{path}: no regular file")
    return path


def study_of(folder: Path, form: dict) -> Path:
    """The study's folder: the nearest one above a run in which its own network files lie, or else this one."""
    for above in (*folder.absolute().parents, Path()):
        if all((above / path).is_file() for path in form.get("own", ())):
            return above
    raise WeightsError(f"{folder}: its network is of {', '.join(form['own'])}, which is not in any folder above it")


def verified(path: Path, sha256: str) -> bytes:
    """The content of a file.  Raises WeightsError where it is not there or has another hash."""
    try:
        content = regular(path).read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror}") from None
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise WeightsError(f"{path}: its SHA-256 is {found}, not {sha256}: damaged or exchanged; restore or train it")
    return content


def load_weights(network: SectionedNetwork, content: bytes, path: Path, fresh: Sequence[str] = ()) -> list[str]:
    """Give a network the weights of a safetensors file.

    fresh: names of tensors that keep what they are where the file's differ from them in the number of rows, the
    classes; returns those that did.  Raises WeightsError for bytes that are not safetensors, other names, shapes or
    kinds of numbers, and numbers that are not finite.
    """
    try:
        found: dict[str, Tensor] = load(content)
    except (SafetensorError, ValueError, RuntimeError, KeyError) as error:
        raise WeightsError(f"{path}: no safetensors file ({(str(error).splitlines() or [''])[0]})") from None
    wanted: dict[str, Tensor] = network.state_dict()
    both = sorted(wanted.keys() & found.keys())
    other = [name for name in both if wanted[name].shape != found[name].shape]
    left = [name for name in other if name in fresh and wanted[name].shape[1:] == found[name].shape[1:]]
    kinds = [name for name in both if wanted[name].is_floating_point() != found[name].is_floating_point()]
    for names, fault in (
        (sorted(wanted.keys() - found.keys()), "lacks"),
        (sorted(found.keys() - wanted.keys()), "has further"),
        ([name for name in other if name not in left], "has of another shape"),
        (kinds, "has of another kind of number"),
    ):
        if names:
            of = "tensors beside" if fault == "has further" else "of"
            raise WeightsError(
                f"{path}: {fault} {len(names)} {of} the network's {len(wanted)} tensors, such as {names[0]}; "
                "allowed: weights of this very network"
            )
    for name, tensor in found.items():
        finite = torch.isfinite(tensor.to(wanted[name].dtype))
        if not finite.all():
            raise WeightsError(f"{path}: {int((~finite).sum())} of {tensor.numel()} numbers of {name} are not finite")
    network.load_state_dict(wanted | {name: tensor for name, tensor in found.items() if name not in left})
    return left


def initialise_from(network: SectionedNetwork, path: Path, sha256: str) -> list[str]:
    """Start a network from trained weights, a safetensors file of this hash; returns the names of tensors that stay
    freshly drawn: classifiers of another number of classes.  Raises WeightsError for whatever else differs."""
    heads = (f"backbone.{network.classifier_name}.", *(f"exits.{i}.classifier." for i in range(len(network.exits))))
    classifiers = [name for name in network.state_dict() if name.startswith(heads)]
    return load_weights(network, verified(path, sha256), path, fresh=classifiers)


def rows_not_finite(outputs: Tensor) -> Tensor:
    """For how many images an exit's outputs, exits x N x D, are NaN or infinite somewhere: int64, no dimension."""
    return (~torch.isfinite(outputs).all(dim=2)).any(dim=0).sum()


@torch.no_grad()
def predict(network: SectionedNetwork, dataset: Dataset, images: Tensor, batch_size: int = 1000) -> Tensor:
    """Logits of every exit for uint8 images N x C x H x W, as exits x N x K floats."""
    network.eval()
    normalise = dataset.normaliser(images.device)
    batches = (torch.stack(network(normalise(b)).logits).float() for b in images.split(batch_size))
    return torch.cat(list(batches), dim=1)
