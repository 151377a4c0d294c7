"""A trained network as an ONNX file, whole or cut at an exit, held against PyTorch before it is kept."""

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from selfdistill import __version__
from selfdistill.errors import first_line
from selfdistill.exports.card import USE_ONNX, is_card, write_card
from selfdistill.exports.network import ExportError, Network, Opened, refuse_place
from selfdistill.reporting.files import write_together

PRODUCER = "selfdistill"  # as the file names it
TOLERANCE = 1e-4  # of the largest logit, or of 1 where all are smaller
BATCHES = (1, 3)  # that the file is held against PyTorch with
MOST = 2**31 - 2**20  # bytes: an ONNX file of 2 GB has its weights beside it


def export_onnx(opened: Opened, source: Path, target: Path, exit: int | None = None, force: bool = False) -> float:
    """Write the network, images N x C x H x W of any N -> logits N x K, and its model card beside it, as .md; returns
    by how much ONNX Runtime differs from PyTorch.

    source: the folder that the network is from; exit: from 1, the one to cut at; None for the deepest.
    ExportError: one of the files is there and no `force`, or the network cannot be exported or comes out differently:
    nothing is written.
    """
    refuse_place(target)
    card = target.with_suffix(".md")
    for path, left_by_an_export in ((target, is_ours), (card, is_card)):
        refuse_taken(path, left_by_an_export, force)
    network = opened.cut(exit)
    content = onnx_bytes(network, metadata(opened, network), target)
    difference = compared(network, content, target)
    text = write_card(opened, source, target.name, exit and opened.number(exit), USE_ONNX)
    write_together({target: content, card: text.encode()})
    return difference


def refuse_taken(path: Path, left_by_an_export: Callable[[Path], bool], force: bool) -> None:
    """ExportError: something lies there that an export may not replace."""
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not path.is_file() or not left_by_an_export(path):
        raise ExportError(f"{path}: there, and not what an earlier export left; name another file")
    if not force:
        raise ExportError(f"{path}: there already; name another file, or give --force to replace it")


def is_ours(path: Path) -> bool:
    """Whether a file is an ONNX network that this package wrote."""
    import onnx

    try:
        return onnx.load(path, load_external_data=False).producer_name == PRODUCER
    except Exception:  # whatever the bytes are
        return False


def metadata(opened: Opened, network: Network) -> dict[str, str]:
    """What the file says of itself: how pixels become images, the classes, and where the weights are from."""
    data = network.data
    return {
        "input": "float32 N x C x H x W: (pixels / 255 - mean) / std, a mean and a std each channel",
        "mean": json.dumps(data.mean),
        "std": json.dumps(data.std),
        "channels": str(data.channels),
        "size": json.dumps(list(data.size)),
        "classes": json.dumps(data.classes),
        "data": data.name,
        "model": str(opened.record["model"]),
        "method": str(opened.record["method"]),
        "exit": network.exit,
        "weights_sha256": opened.weights_sha256,
        "code_sha256": str(opened.record.get("code_sha256")),
    }


def onnx_bytes(network: Network, told: dict[str, str], place: Path) -> bytes:
    """The file's content; place: its path, for messages."""
    import onnx
    import onnxscript  # noqa: F401  (torch.onnx needs it; here it is asked for before any work)

    example = torch.zeros(2, network.data.channels, *network.data.size)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of torch's own parts to each other
            # the program first: torch.onnx prints modules, and those that stand for what was cut off cannot be printed
            program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
            made = torch.onnx.export(
                program, (), dynamo=True, verbose=False, input_names=["images"], output_names=["logits"]
            )
        assert made is not None
        model = made.model_proto
    except Exception as error:
        raise ExportError(f"{place}: this network cannot be exported to ONNX ({first_line(error)})") from error
    model.producer_name, model.producer_version = PRODUCER, __version__
    del model.graph.value_info[:]  # shapes in between, under a name of torch's for the batch
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.helper.set_model_props(model, told)
    if model.ByteSize() > MOST:
        raise ExportError(
            f"{place}: {model.ByteSize():,} bytes; allowed: at most {MOST:,}, the most that one file holds"
        )
    return model.SerializeToString(deterministic=True)


def compared(network: Network, content: bytes, place: Path) -> float:
    """By how much the file's logits differ from PyTorch's, on random images.  ExportError: by too much."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    generator, worst = torch.Generator().manual_seed(0), 0.0
    for images in BATCHES:
        batch = torch.randn(images, network.data.channels, *network.data.size, generator=generator)
        with torch.no_grad():
            wanted = network(batch)
        found = torch.from_numpy(session.run(["logits"], {"images": batch.numpy()})[0])
        if found.shape != wanted.shape:
            raise ExportError(f"{place}: ONNX Runtime gives {list(found.shape)} and PyTorch {list(wanted.shape)}")
        difference = (found - wanted).abs().max().item()
        allowed = TOLERANCE * max(1.0, wanted.abs().max().item())
        if not difference <= allowed:
            raise ExportError(f"{place}: ONNX Runtime and PyTorch differ by {difference:.2g}; allowed: {allowed:.2g}")
        worst = max(worst, difference)
    return worst
