"""What a run says of the machine and the day, apart from everything that is hashed.

One small file a run in `results/hosts`.  A run that comes out bit-equal to the one a file already
describes leaves that file alone: the first measurement stands, the rerun has confirmed its result.
"""

import datetime
import json
import platform
import resource
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from selfdistill.files import write_atomically

PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "pillow", "dvc", "snakemake")


def note(results: Path, record: dict, *, device: str, seconds: float, processes: int = 1) -> None:
    """Write `results/hosts/<model>/<method>/<seed>.json` unless it already describes these weights."""
    path = host_file(results, record["model"], record["method"], record["seed"])
    try:
        if json.loads(path.read_text())["weights_sha256"] == record["weights_sha256"]:
            return
    except (OSError, ValueError, KeyError):
        pass  # none yet, or not readable as one: write it anew
    entry = {
        "weights_sha256": record["weights_sha256"],
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "seconds": round(seconds, 2),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "threads": record["recipe"]["threads"],
        "processes": processes,
        "hardware": hardware(device),
        "system": platform.platform(terse=True),
        "versions": {"python": platform.python_version(), **installed(PACKAGES)},
    }
    if device.startswith("cuda"):
        entry["peak_device_memory_mb"] = torch.cuda.max_memory_allocated() // 2**20
    write_atomically(path, (json.dumps(entry, indent=1) + "\n").encode())


def installed(packages: tuple[str, ...]) -> dict[str, str]:
    """Versions of those that are there; a GPU server may train without DVC and Snakemake."""
    versions = {}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def host_file(results: Path, model: str, method: str, seed: int) -> Path:
    return results / "hosts" / model / method / f"{seed}.json"


def hardware(device: str) -> str:
    """The processor that did the work, by its marketing name."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
