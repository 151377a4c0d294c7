"""A trained network as a plain `nn.Module`: from a run's folder, or from a folder that `selfdistill export` wrote."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selfdistill.data.prepared import Dataset
from selfdistill.errors import UserError
from selfdistill.evaluation.described import dataset_of
from selfdistill.evaluation.weights import refuse_imported
from selfdistill.models.sections import SectionedNetwork
from selfdistill.models.trained import (
    build,
    load_weights,
    read_run,
    record_fault,
    study_of,
    verified,
    weight_hashes,
)
from selfdistill.outside import JSON, json_object, regular_bytes, untrusted

CONFIG = "config.json"  # of an exported folder; a run's folder has run.json
EXPORTED = "model.safetensors"  # the weights beside it
FORMAT = "selfdistill 1"
WEIGHTS = {"last": "weights", "validation": "validation_best"}  # a run's file, by what selects it, as in an evaluation
REMEDY = "name the folder of a trained run, or one that `selfdistill export` wrote"


class ExportError(UserError, ValueError):
    """A network that cannot be loaded or written as asked for; the message says which, why, and what is allowed."""


class Network(nn.Module):
    """Images N x C x H x W -> logits N x K of one exit, or exits x N x K of all of them, shallow to deep.

    Images are floats that `data.normalise` makes of uint8 pixels; with `pixels`, the pixels themselves, whole numbers.
    data: names of the classes, channels, size (H, W), and mean and standard deviation of each channel, of pixels in
    [0, 1]; exit: which one is read, such as 2/4, or `all`.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, inner: nn.Module, data: Dataset, exit: str, pixels: bool) -> None:
        super().__init__()
        self.inner, self.data, self.exit, self.pixels = inner, data, exit, pixels
        if pixels:
            std = torch.tensor(data.std).view(1, -1, 1, 1)
            self.register_buffer("scale", 1 / (255 * std), persistent=False)
            self.register_buffer("shift", -torch.tensor(data.mean).view(1, -1, 1, 1) / std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        self.refuse(images)
        if self.pixels:
            images = torch.addcmul(self.shift, images.to(self.scale.dtype), self.scale)
        return self.inner(images)

    def refuse(self, images: Tensor) -> None:
        """ExportError: images of another form, or pixels where normalised floats are asked for, or the other way."""
        if images.dim() != 4 or images.shape[1] != self.data.channels:
            wanted = f"N x {self.data.channels} x H x W"
            raise ExportError(f"images of {list(images.shape)} are not allowed; allowed: {wanted}")
        if images.is_floating_point() == self.pixels:
            wanted = "whole numbers, 0 to 255, such as uint8" if self.pixels else "floats, of data.normalise"
            raise ExportError(f"images of {images.dtype} with pixels={self.pixels} are not allowed; allowed: {wanted}")


class AllExits(nn.Module):
    """Images -> logits of every exit, exits x N x K."""

    def __init__(self, network: SectionedNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack(list(self.network(images).logits))


@dataclass(frozen=True)
class Opened:
    """What lies in a folder: the network, its data, and the record that training, or an export, left.

    selection: by which rule its weights were chosen; weights: their file; own: files of a user's own network, by the
    path that the record names.
    """

    network: SectionedNetwork
    data: Dataset
    record: dict[str, Any]
    selection: str
    weights: Path
    weights_sha256: str
    own: dict[str, bytes]

    @property
    def exits(self) -> int:
        return self.network.exit_count

    def exit_name(self, exit: int) -> str:
        """Of the exit of a number, from 1: the section that it stands after, of how many."""
        sections = self.network.section_count
        return f"{sections - self.exits + exit}/{sections}"

    def number(self, exit: int | None) -> int:
        """The exit that is meant, from 1; None for the deepest.  ExportError: there is no such exit."""
        if exit is None:
            return self.exits
        if isinstance(exit, bool) or not isinstance(exit, Integral) or not 1 <= exit <= self.exits:
            plural = "s" if self.exits > 1 else ""
            raise ExportError(
                f"exit {exit!r}: this network has {self.exits} exit{plural}; allowed: a whole number, 1 to {self.exits}"
            )
        return int(exit)

    def cut(self, exit: int | None = None, pixels: bool = False) -> Network:
        """The part of the network that leads to one exit."""
        number = self.number(exit)
        inner = self.network.exit_module(number - 1)
        return Network(inner, self.data, self.exit_name(number), pixels).eval()


def load(
    run: str | os.PathLike,
    *,
    exit: int | None = None,
    exits: str = "deepest",
    selection: str | None = None,
    pixels: bool = False,
) -> Network:
    """See `selfdistill.load`."""
    if exits not in ("deepest", "all"):
        raise ExportError(f"exits: {exits!r} is not allowed; allowed: 'deepest' or 'all'")
    if exits == "all" and exit is not None:
        raise ExportError(f"exit {exit!r} beside exits='all' is not allowed; allowed: one of them")
    opened = open_network(Path(run), selection)
    if exits == "all":
        return Network(AllExits(opened.network), opened.data, "all", pixels).eval()
    return opened.cut(exit, pixels)


def open_network(folder: Path, selection: str | None = None) -> Opened:
    """The network in a folder, in evaluation mode on the CPU.

    selection: of a run's weights, `last` (where it is None) or `validation`; an exported folder has one of them.
    Raises UserErrors that name the folder or the file.
    """
    if selection is not None and selection not in WEIGHTS:
        raise ExportError(f"selection: {selection!r} is not allowed; allowed: {' or '.join(WEIGHTS)}")
    with untrusted(ExportError, folder, "no trained network", REMEDY):
        if is_exported(folder):
            return exported(folder, selection)
        refuse_imported(folder)
        if not os.path.lexists(folder / "run.json"):
            raise ExportError(f"{folder}: no trained network (neither run.json nor {CONFIG} in it); {REMEDY}")
        with untrusted(ExportError, folder / "run.json", "cannot be read", REMEDY):
            regular_bytes(folder / "run.json", JSON)
        record, chosen = read_run(folder), selection or "last"
        study = study_of(folder, record["network"])
        own = {path: regular_bytes(study / path, JSON) for path in record["network"].get("own", ())}
        name = WEIGHTS[chosen]
        weights = folder / f"{name}.safetensors", weight_hashes(record)[name]
        return of_record(folder / "run.json", record, chosen, *weights, study, own)


def is_exported(folder: Path) -> bool:
    return (folder / CONFIG).exists()


def exported(folder: Path, selection: str | None) -> Opened:
    """The network of a folder that `exports.folder` wrote."""
    file = folder / CONFIG
    record = json_object(file, REMEDY)
    told, fault = record.get("selection"), record_fault(record)
    if record.get("format") != FORMAT:
        fault = f"format {record.get('format')!r}; allowed: {FORMAT!r}"
    elif not isinstance(told, str) or told not in WEIGHTS:
        fault = f"selection {told!r}; allowed: {' or '.join(WEIGHTS)}"
    if fault:
        raise ExportError(f"{file}: not what `selfdistill export` writes ({fault}); {REMEDY}")
    if selection not in (None, record["selection"]):
        raise ExportError(
            f"{folder}: has the weights of selection {record['selection']}; allowed: this one, or none given"
        )
    refuse_outside(file, record["network"].get("own", ()))
    hashes = record.get("own_sha256", {})
    own = {path: regular_bytes(folder / path, JSON) for path in record["network"].get("own", ())}
    for path, content in own.items():
        if not isinstance(hashes, dict) or hashes.get(path) != hashlib.sha256(content).hexdigest():
            raise ExportError(f"{folder / path}: not the file that was exported; export the network again")
    weights = folder / EXPORTED, record["weights_sha256"]
    return of_record(file, record, record["selection"], *weights, folder, own)


def refuse_outside(record: Path, own: Sequence[str]) -> None:
    """ExportError: a record names a network file that does not lie below its own folder, or the study's."""
    for path in own:
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise ExportError(f"{record}: network.own: {path!r} is not allowed; allowed: a file inside the folder")


def refuse_place(target: Path) -> None:
    """ExportError: there is no folder in which the target could lie."""
    above = next(place for place in target.absolute().parents if os.path.lexists(place))
    if not above.is_dir():
        raise ExportError(f"{target}: {above} is no folder; name another place")


def of_record(
    file: Path, record: dict[str, Any], selection: str, weights: Path, sha256: str, study: Path, own: dict[str, bytes]
) -> Opened:
    """file: the record's; study: where the network's own files lie."""
    data = dataset_of(record, file)
    if "gallery" in data.pixels_sha256:
        raise ExportError(
            f"{file.parent}: it was trained to find persons again and has no class for another image; "
            "allowed: networks that classify"
        )
    network = build(record["network"], seed=0, study=study)
    load_weights(network, verified(weights, sha256), weights)
    return Opened(network.eval(), data, record, selection, weights, sha256, own)
