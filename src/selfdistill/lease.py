"""A GPU of its own, or a declared share of one, for each run on a machine.

Snakemake's `--resources gpu=N` counts GPUs and assigns none, and shells do not know of each other.
So each run takes a lease before torch is loaded: an operating system's lock on a file that stands for
one slot of one device.  The lock ends with the process that holds it, however that ends.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from filelock import FileLock, Timeout

SHARES = "SELFDISTILL_RUNS_PER_GPU"
FOLDER = "SELFDISTILL_LEASES"
POLL_SECONDS = 0.5

held: list[FileLock] = []  # a lock is released when nothing refers to it any more


class LeaseError(Exception):
    """There is no lease, and waiting would not help; the message says what would."""


def acquire(count: int = 1) -> list[str] | None:
    """Lease a slot on each of `count` devices until this process ends; waits while too few are free.

    Sets CUDA_VISIBLE_DEVICES to the leased devices, and returns them.  To be called before torch is
    loaded, which reads it once.  Without a device: None, and the environment does not change.
    The same in a process that torchrun started: the devices of its run were leased or chosen before
    torchrun started.
    """
    devices = {} if "LOCAL_RANK" in os.environ else visible_devices()
    if not devices:
        return None
    slots = slots_per_device()
    if count > len(devices):
        raise LeaseError(f"{count} GPUs are needed, and there are {len(devices)}: {', '.join(devices)}")
    folder = lease_folder()
    waiting = False
    try:
        while not (leased := take(folder, devices, slots, count)):
            if not waiting:
                each = f", {slots} runs on each" if slots > 1 else ""
                print(
                    f"waiting for {count} of {len(devices)} GPUs ({', '.join(devices)}{each}); leases in {folder}",
                    file=sys.stderr,
                )
                waiting = True
            time.sleep(POLL_SECONDS)
    except OSError as error:
        raise LeaseError(f"{folder}: {error.strerror or error}; name another folder in {FOLDER}") from None
    held.extend(leased.values())
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(leased)
    return list(leased)


def take(folder: Path, devices: dict[str, str], slots: int, count: int) -> dict[str, FileLock]:
    """One locked slot on each of the `count` devices with the fewest taken slots, or nothing at all.

    One process looks at a time, and no process keeps a part of what it needs: two that need several
    devices cannot block each other.
    """
    with FileLock(folder / "choice.lock", mode=0o666):
        free = {device: free_slots(folder, key, slots) for device, key in devices.items()}
        with_room = sorted((d for d in devices if free[d]), key=lambda d: -len(free[d]))  # stable: the first of equals
        chosen = with_room[:count] if len(with_room) >= count else []
        leased = {device: free[device].pop(0) for device in chosen}
        for lock in (lock for locks in free.values() for lock in locks):
            lock.release()
    return leased


def free_slots(folder: Path, key: str, slots: int) -> list[FileLock]:
    """The free slots of a device, locked."""
    locks = []
    for slot in range(slots):
        lock = FileLock(folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', key)}.{slot}.lock", mode=0o666)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            continue
        locks.append(lock)
    return locks


def visible_devices() -> dict[str, str]:
    """The devices to choose from, as CUDA_VISIBLE_DEVICES names them, each with the name of its locks.

    CUDA_VISIBLE_DEVICES decides where it is set, by a person or by Slurm; else the machine has them.
    Locks go by the UUID where the driver tells it: inside two Slurm jobs on one machine, 0 can be two
    devices, and a number and a UUID can be the same one.
    """
    installed = installed_devices()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return installed
    devices = {}
    for device in (part.strip() for part in visible.split(",")):
        if device in ("", "-1", "NoDevFiles"):  # CUDA ignores what follows the first invalid one
            break
        numbered = list(installed.values())[int(device) :] if device.isdecimal() else []
        devices[device] = numbered[0] if numbered else device
    return devices


def installed_devices() -> dict[str, str]:
    """What this machine has, without torch, whose import takes seconds and fixes the choice of device."""
    if shutil.which("nvidia-smi"):
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
        uuids = re.findall(r"UUID: ([^)\s]+)", listing)
        parts = [uuid for uuid in uuids if uuid.startswith("MIG-")]
        return {uuid: uuid for uuid in parts or uuids}  # a GPU divided by MIG is used by its parts alone
    nodes = sorted(int(p.name[6:]) for p in Path("/dev").glob("nvidia[0-9]*") if p.name[6:].isdecimal())
    return {str(number): str(node) for number, node in enumerate(nodes)}


def slots_per_device() -> int:
    """How many runs may share a device, from SELFDISTILL_RUNS_PER_GPU."""
    text = os.environ.get(SHARES, "1")
    if not re.fullmatch(r"[1-9]\d?", text):
        raise LeaseError(f"{SHARES}: {text!r} is not allowed; allowed: a whole number from 1 to 99")
    return int(text)


def lease_folder() -> Path:
    """The folder of the locks: the user's own, below the system's temporary folder, or SELFDISTILL_LEASES."""
    named = os.environ.get(FOLDER)
    folder = Path(named) if named else Path(tempfile.gettempdir(), f"selfdistill-leases-{os.getuid()}")
    try:
        folder.mkdir(mode=0o777 if named else 0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise LeaseError(f"{folder}: {error.strerror}; name another folder in {FOLDER}") from None
    return folder
