"""A trained network as a folder of its own: weights, config.json and model card.

config.json is training's record of the run, with what the card needs beside, so that the folder stands for itself.
"""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from selfdistill.exports.card import USE_FOLDER, described, reached, write_card
from selfdistill.exports.network import CONFIG, FORMAT, ExportError, Opened, exported, refuse_outside, refuse_place
from selfdistill.files import write_atomically
from selfdistill.models.trained import verified


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
        if os.path.lexists(target):
            target.rename(place / "old")
        (place / "new").rename(target)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def refuse_taken(target: Path, force: bool) -> None:
    if not os.path.lexists(target):
        return
    if not target.is_dir() or target.is_symlink() or not (target / CONFIG).is_file():
        if not target.is_symlink() and target.is_dir() and not any(target.iterdir()):
            return
        raise ExportError(
            f"{target}: there, and no folder that was exported; name another, or a file that ends in .onnx"
        )
    if not force:
        raise ExportError(f"{target}: there already; name another folder, or give --force to replace it")


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
    return {
        "model.safetensors": verified(opened.weights, opened.weights_sha256),
        CONFIG: (json.dumps(told, indent=1, allow_nan=False) + "\n").encode(),
        "README.md": write_card(opened, source, name, None, USE_FOLDER).encode(),
        **opened.own,
    }
