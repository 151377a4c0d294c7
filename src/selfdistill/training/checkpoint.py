"""Checkpoints: where a killed run continues.

They lie outside the stage's declared outputs, which DVC and Snakemake delete before a run, in a folder
named by the hash of everything that the run depends on: changed inputs never resume an old run.
A file is safetensors with the rest of the state as JSON in its header, and its name ends with the
SHA-256 of its content.  It is written atomically; the newest two are kept.
"""

import hashlib
import json
import struct
import sys
import time
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from selfdistill.files import write_atomically

KEPT = 2
# A save is due when the one before it has come to cost a fiftieth of the time since; the first after
# the first step, so that a run knows early what a save costs and that it can be written.
SHARE = 0.02


class Checkpoints:
    """The checkpoints of one run, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.last_save, self.last_cost = time.monotonic(), 0.0

    def due(self) -> bool:
        return time.monotonic() - self.last_save > self.last_cost / SHARE

    def save(self, tensors: dict[str, Tensor], state: dict[str, Any], steps: int) -> Path:
        """Write one, atomically, and remove those older than the newest two.

        state: what JSON can hold; steps: done so far, which orders the files.  OSError passes on, and
        leaves the older ones as they were.
        """
        started = time.monotonic()
        content = save(
            {name: t.detach().cpu().contiguous() for name, t in tensors.items()},
            {"state": json.dumps(state, allow_nan=False)},
        )
        path = self.folder / f"{steps:09d}-{hashlib.sha256(content).hexdigest()}.safetensors"
        write_atomically(path, content)
        for old in self.files()[KEPT:]:
            old.unlink(missing_ok=True)
        self.last_save = time.monotonic()
        self.last_cost = self.last_save - started
        return path

    def files(self) -> list[Path]:
        """Newest first."""
        return sorted(self.folder.glob("*.safetensors"), reverse=True)

    def newest(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and state of the newest whole checkpoint; a damaged one is named on stderr and passed over."""
        for path in self.files():
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() == path.stem.split("-")[-1]:
                return load(content), json.loads(header(content)["state"])
            print(f"{path}: damaged (its SHA-256 is another); going back to the one before", file=sys.stderr)
        return None

    def clear(self) -> None:
        """Remove all: the run is over and its outputs are written."""
        for path in [*self.files(), *self.folder.glob("*.partial")]:
            path.unlink(missing_ok=True)
        if self.folder.is_dir():
            self.folder.rmdir()


def header(content: bytes) -> dict[str, str]:
    """The metadata of safetensors bytes, whose JSON header follows its length, 8 bytes little-endian."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length])["__metadata__"]
