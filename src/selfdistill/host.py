"""What a run says of the machine and the day, apart from everything that is hashed.

One small file a run in `results/hosts` (`Study.host_file`).  A run that comes out bit-equal to the one a file already
describes leaves that file alone: the first measurement stands, the rerun has confirmed its result.
"""

import datetime
import json
import os
import platform
import resource
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from selfdistill.files import write_atomically
from selfdistill.outside import OutsideError, json_object

PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "pillow", "dvc", "snakemake")


def begin() -> None:
    """A run begins: peaks of memory are counted from here, not from an earlier run of the same process."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak of the resident set becomes today's
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory_mb() -> tuple[int, str]:
    """The peak of the resident set, and whose it is: this run's alone, or, where that is not known, its process's."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) // 1024
        if os.access("/proc/self/clear_refs", os.W_OK):
            return peak, "run"
    except (OSError, StopIteration):
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, "process"


def note(path: Path, record: dict, *, device: str, seconds: float, processes: int = 1) -> None:
    """Write a host file, unless it already describes these weights."""
    with suppress(OutsideError):  # none yet, or not readable as one
        if json_object(path, "").get("weights_sha256") == record["weights_sha256"]:
            return
    peak, of = peak_memory_mb()
    entry = {
        "weights_sha256": record["weights_sha256"],
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "seconds": round(seconds, 2),
        "peak_memory_mb": peak,
        "peak_memory_of": of,
        "threads": record["recipe"]["threads"],
        "processes": processes,
        "hardware": hardware(device),
        "system": platform.platform(terse=True),
        "versions": {"python": platform.python_version(), **installed(PACKAGES)},
    }
    if device.startswith("cuda"):
        entry["peak_device_memory_mb"] = torch.cuda.max_memory_allocated() // 2**20
    write_atomically(path, (json.dumps(entry, indent=1, allow_nan=False) + "\n").encode())


def installed(packages: tuple[str, ...]) -> dict[str, str]:
    """Versions of those that are there; a GPU server may train without DVC and Snakemake."""
    versions = {}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def hardware(device: str) -> str:
    """The processor that did the work, by its marketing name."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
