"""The model card of an exported network: what it was trained on and how, what it reaches, and how it is loaded."""

import json
import math
from pathlib import Path
from statistics import NormalDist
from typing import Any

import yaml

from selfdistill import __version__, methods
from selfdistill.errors import printable
from selfdistill.evaluation.exits import exit_names
from selfdistill.evaluation.stored import predictions_file, predictions_of
from selfdistill.exports.network import REMEDY, ExportError, Opened
from selfdistill.outside import OutsideError, regular_bytes, untrusted
from selfdistill.search import untuned
from selfdistill.summary import AT_LEVEL, LEVEL

CLASSES = 20  # that a card names; the others stand in config.json, or in the metadata
CATALOGUE = 2**24  # bytes, at most
CARD = """# {model}, {method}, {data}

Classifies images of {channels} x {height} x {width} pixels: {classes}. {exits}.

## Use

{use}

Images are floats: (pixels / 255 - mean) / std, with mean {mean} and std {std}, one a channel.

## What it reaches

{reached}

## Training

- Data: {data} (`{data_name}`){drawn}.
- Method: {paper}; seed {seed}. Weights {epoch}.
- {source}
- Teacher: {teacher}.
- Hyper-parameters: {hyper}
- Recipe: {recipe}
- Values: {values}.

## Where it comes from

- Weights: SHA-256 `{weights}`, of the run's safetensors file.
- Code of its training: SHA-256 `{code}`; key of the run: `{key}`.
- Pixels and labels of each prepared split, SHA-256: {pixels}
{signed}{version}.

## Licence and citation of the data

{licence}
"""
SIGNED = "- Written by selfdistill "  # a line of every card
CHOSEN = {"last": "of the last epoch", "validation": "of epoch {}, the best on validation images"}
PUBLISHED = "set by hand, as published or as the study says"
SEARCHED = "the best of a search on validation images, whose first trial has the published ones"
NO_LICENCE = "No catalogue that describes the data was found from the run; ask whoever trained it."
NONE_STORED = "No predictions of test images were stored beside the run when this was written."
USE_FOLDER = """```python
import selfdistill

network = selfdistill.load({name})              # images N x {channels} x {height} x {width} -> logits N x {classes}
logits = network(network.data.normalise(pixels))  # pixels: uint8, 0 to 255
```

`selfdistill.load({name}, exits="all")` gives the logits of all exits, `exit=1` those of the first, without what lies
behind it, and `pixels=True` a module that takes the pixels themselves."""
USE_ONNX = """```python
import json

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession({name})
told = session.get_modelmeta().custom_metadata_map
mean, std = (np.float32(json.loads(told[key])).reshape(1, -1, 1, 1) for key in ("mean", "std"))
images = (pixels.astype(np.float32) / 255 - mean) / std  # pixels: uint8, N x {channels} x {height} x {width}
(logits,) = session.run(None, {{"images": images}})  # N x {classes}
classes = json.loads(told["classes"])
```"""


def wilson(right: int, images: int, level: float = LEVEL) -> tuple[float, float]:
    """The interval of a share, over images (Wilson 1927): where |share - p| = z sqrt(p (1 - p) / images)."""
    z, share = NormalDist().inv_cdf((1 + level) / 2), right / images
    centre = (share + z * z / (2 * images)) / (1 + z * z / images)
    half = z / (1 + z * z / images) * math.sqrt(share * (1 - share) / images + (z / (2 * images)) ** 2)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def write_card(opened: Opened, source: Path, name: str, exit: int | None, use: str) -> str:
    """As Markdown.  source: the folder that the network is from; name: of the file or folder that it goes to; exit: the
    one that a file is cut at, from 1; use: USE_FOLDER or USE_ONNX.  ExportError: a record without what a card says."""
    with untrusted(ExportError, source, "a card cannot be written from its record", REMEDY):
        return filled(opened, source, name, exit, use)


def is_card(path: Path) -> bool:
    """Whether a file is a card that `write_card` made."""
    return SIGNED.encode() in path.read_bytes()


def filled(opened: Opened, source: Path, name: str, exit: int | None, use: str) -> str:
    record, data = opened.record, opened.data
    if record["method"] not in methods.names():
        known = ", ".join(methods.names())
        raise ExportError(f"{source}: its method {record['method']!r} is not here; allowed: {known}")
    about, entry = methods.about(record["method"]), described(opened, source)
    form = {"channels": data.channels, "height": data.size[0], "width": data.size[1]}
    split, more = record.get("split") or {}, len(data.classes) - CLASSES
    verbs = {"training": "train", "validation": "validate"}
    return CARD.format(
        **form,
        model=record["model"],
        method=about["title"],
        data=entry.get("title", data.name),
        classes=printable(", ".join(data.classes[:CLASSES])) + (f" and {more} more" if more > 0 else ""),
        exits=plural(opened.exits, "exit") if exit is None else f"Cut at exit {opened.exit_name(exit)}",
        use=use.format(**form, name=literal(name), classes=len(data.classes)),
        mean=data.mean,
        std=data.std,
        reached=table(rows, exit) if (rows := reached(opened, source)) else NONE_STORED,
        data_name=data.name,
        drawn="".join(f"; {split[part]} to {verb}" for part, verb in verbs.items() if part in split),
        paper=about["name"] + (f", arXiv {about['paper']}" if about["paper"] else ""),
        seed=record["seed"],
        source=source_of(record["method"]),
        teacher=teacher_of(record),
        values=PUBLISHED if untuned(str(record.get("variant"))) is None else SEARCHED,
        epoch=CHOSEN[opened.selection].format(record.get("validation_best_epoch")),
        hyper=inline(record.get("hyper")),
        recipe=inline(record.get("recipe")),
        weights=opened.weights_sha256,
        code=record.get("code_sha256"),
        key=record.get("key"),
        pixels=inline(data.pixels_sha256),
        signed=SIGNED,
        version=__version__,
        licence="Licence: {licence}. Cite: {citation}.".format(**entry) if entry else NO_LICENCE,
    )


def source_of(method: str) -> str:
    """What its card says of the paper, such as that it was withdrawn, and of what was read of it; one line."""
    paragraphs = methods.card(method).split("\n\n")
    return " ".join(next((part for part in paragraphs if part.startswith("Paper: ")), "Paper: not told.").split())


def teacher_of(record: dict[str, Any]) -> str:
    if record.get("teacher") is None:
        return "none that was trained before"
    run = f"{record.get('teacher_model') or record['model']}/{record['teacher']}"
    return f"{inline(run)}, the same seed; SHA-256 of its weights {inline(record.get('teacher_sha256'))}"


def literal(name: str) -> str:
    """A file's name as Python writes it between double quotes, without what would end the code in Markdown."""
    text = json.dumps(name, ensure_ascii=False).replace("`", "\\u0060")
    return text.encode("utf-8", "backslashreplace").decode()  # of bytes that are no UTF-8


def plural(count: int, word: str) -> str:
    return f"{count} {word}{'s' if count > 1 else ''}"


def inline(value: Any) -> str:
    """JSON as code, which nothing in it can leave."""
    return f"`{json.dumps(value).replace('`', '')}`"


def reached(opened: Opened, source: Path) -> list[dict[str, Any]]:
    """Of each exit: name, right, images, nll, ece, and multiply-adds of one image, as the test images were predicted;
    nothing where no predictions are stored beside the run."""
    if "reached" in opened.record:  # of an exported folder
        return opened.record["reached"]
    file = predictions_file(source)
    if file is None or not file.is_file():
        return []
    stored = predictions_of(source).of(opened.selection)
    costs, images = stored.run["cost"]["inference_macs"], len(stored.labels)
    rows = []
    for name, logits, macs in zip(exit_names(stored.run), stored.logits, costs, strict=True):
        score = stored.truth.score(logits)
        right = round(score["accuracy"] * images)
        rows.append(
            {"exit": name, "right": right, "images": images, "nll": score["nll"], "ece": score["ece"], "macs": macs}
        )
    return rows


def table(rows: list[dict[str, Any]], exit: int | None) -> str:
    lines = [
        f"| exit | test accuracy (%) | {AT_LEVEL} interval | negative log-likelihood | calibration error (%) "
        "| M MACs |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows[:exit]:
        low, high = wilson(row["right"], row["images"])
        share = 100 * row["right"] / row["images"]
        lines.append(
            f"| {row['exit']} | {share:.2f} | {100 * low:.2f} to {100 * high:.2f} | {row['nll']:.4f} "
            f"| {100 * row['ece']:.2f} | {row['macs'] / 1e6:.4g} |"
        )
    return "\n".join(lines) + (
        f"\n\nOf this one training, on {rows[0]['images']:,} test images. Intervals (Wilson) are over test images "
        "alone; they do not say how much another seed, or another draw of training images, would change."
    )


def described(opened: Opened, source: Path) -> dict[str, str]:
    """Title, licence and citation of the data set, from the nearest catalogue above a folder, data/params.yaml; empty
    where there is none."""
    if "described" in opened.record:  # of an exported folder
        return opened.record["described"]
    for above in source.absolute().parents:
        file = above / "data/params.yaml"
        if file.is_file():
            with untrusted(OutsideError, file, "cannot be read", "restore it from Git"):
                entry = yaml.safe_load(regular_bytes(file, CATALOGUE))["datasets"].get(opened.data.name, {})
                return {key: str(entry[key]) for key in ("title", "licence", "citation")} if entry else {}
    return {}
