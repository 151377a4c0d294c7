"""A trained network as a folder of its own: weights, config.json and model card.

config.json is training's record of the run, with what the card needs beside, so that the folder stands for itself.
"""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from selfdistill.errors import UserError
from selfdistill.exports.card import USE_FOLDER, described, reached, write_card
from selfdistill.exports.network import (
    CONFIG,
    EXPORTED,
    FORMAT,
    REMEDY,
    ExportError,
    Opened,
    exported,
    refuse_outside,
    refuse_place,
)
from selfdistill.files import write_atomically
from selfdistill.models.trained import verified
from selfdistill.outside import json_object, untrusted

CARD = "README.md"


def export_folder(opened: Opened, source: Path, target: Path, force: bool = False) -> None:
    """Write the network to a folder that `selfdistill.load` opens; source: the one that it is from.

    The folder is there when it is whole, and not before.  ExportError: there is one, and no `force`; or it is not one
    that was exported, which is never replaced.
    """
    refuse_place(target)
    refuse_taken(target, force)
    files = contents(opened, source, target.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        for name, content in files.items():
            write_atomically(place / "new" / name, content)
        exported(place / "new", None)  # as whoever loads it will read it
        replace(place / "new", target, place / "old")
    finally:
        shutil.rmtree(place, ignore_errors=True)


def replace(new: Path, target: Path, old: Path) -> None:
    """Put a folder in the place of another, which goes to `old`, or stays where it is if that fails."""
    if os.path.lexists(target):
        target.rename(old)
    try:
        new.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise


def refuse_taken(target: Path, force: bool) -> None:
    """ExportError: something lies there that an export may not replace."""
    if not os.path.lexists(target) or (not target.is_symlink() and target.is_dir() and not any(target.iterdir())):
        return
    if target.is_symlink() or not holds_an_export_alone(target):
        raise ExportError(
            f"{target}: there, and no folder that was exported and nothing else; name another, or a file that ends in "
            ".onnx"
        )
    if not force:
        raise ExportError(f"{target}: there already; name another folder, or give --force to replace it")


def holds_an_export_alone(folder: Path) -> bool:
    """Whether a folder has the files of an earlier export, and none besides."""
    try:
        record = json_object(folder / CONFIG, "")
    except UserError:
        return False
    own = record.get("own_sha256")
    known = {EXPORTED, CONFIG, CARD, *(own if isinstance(own, dict) else ())}
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    return record.get("format") == FORMAT and found <= known


def contents(opened: Opened, source: Path, name: str) -> dict[str, bytes]:
    """The files of the folder, by their names."""
    own = {path: hashlib.sha256(content).hexdigest() for path, content in opened.own.items()}
    refuse_outside(source, list(own))
    told = {
        **opened.record,
        "format": FORMAT,
        "selection": opened.selection,
        "weights_sha256": opened.weights_sha256,
        "validation_best_sha256": opened.weights_sha256,
        "members": {},
        "kept": {},
        "reached": reached(opened, source),
        "described": described(opened, source),
        "own_sha256": own,
    }
    with untrusted(ExportError, source, "its record has what JSON cannot hold", REMEDY):
        content = json.dumps(told, indent=1, allow_nan=False)
    return {
        EXPORTED: verified(opened.weights, opened.weights_sha256),
        CONFIG: (content + "\n").encode(),
        CARD: write_card(opened, source, name, None, USE_FOLDER).encode(),
        **opened.own,
    }
