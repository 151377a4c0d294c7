"""Leases of GPUs: real processes and real locks; the devices are names in CUDA_VISIBLE_DEVICES."""

import os
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RUN = """
import sys, time
from pathlib import Path
from selfdistill import lease
import os
try:
    leased = lease.acquire(int(sys.argv[1]))
except lease.LeaseError as error:
    sys.exit(f"refused: {error}")
assert "torch" not in sys.modules
start = time.time()
print(start, *(leased or ["none"]), "visible", os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
if sys.argv[2] == "until told":
    sys.stdin.read()
else:
    time.sleep(float(sys.argv[2]))
Path(sys.argv[3]).write_text(f"{start} {time.time()} {' '.join(leased or [])}")
"""


class Machine:
    """Starts runs that take a lease of some devices, hold it for some seconds, or until `finish`, and note when they
    had what."""

    def __init__(self, folder: Path, devices: str | None, **variables: str) -> None:
        self.folder, self.started = folder, []
        known = {k: v for k, v in os.environ.items() if not k.startswith(("CUDA_", "SELFDISTILL_", "LOCAL_RANK"))}
        visible = {} if devices is None else {"CUDA_VISIBLE_DEVICES": devices}
        paths = {"PYTHONPATH": str(ROOT / "src"), "SELFDISTILL_LEASES": str(folder / "leases")}
        self.environment = {**known, **visible, **paths, **variables}

    def start(self, count: int = 1, seconds: float | str = "until told", umask: int = -1) -> subprocess.Popen:
        note = self.folder / f"{len(self.started)}.interval"
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, str(count), str(seconds), str(note)],
            env=self.environment,
            umask=umask,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def finish(self) -> list[tuple[float, float, list[str]]]:
        """(start, end, devices) of every run, when all have ended well."""
        for process in self.started:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
        notes = [note.read_text().split() for note in sorted(self.folder.glob("*.interval"))]
        return [(float(start), float(end), devices) for start, end, *devices in notes]


@pytest.fixture
def machine(tmp_path):
    """A maker of machines with made-up devices; whatever still runs is killed in the end."""
    machines = []

    def make(devices: str | None, **variables: str) -> Machine:
        machines.append(Machine(tmp_path, devices, **variables))
        return machines[-1]

    yield make
    for process in (p for m in machines for p in m.started):
        process.kill()
        process.communicate()


def most_at_once(intervals: list, device: str) -> int:
    """The largest number of runs that held a device at one time."""
    own = [(start, end) for start, end, devices in intervals if device in devices]
    return max((sum(start <= moment < end for start, end in own) for moment, _ in own), default=0)


def test_two_runs_never_hold_one_device(machine):
    runs = machine("a,b")
    first = [runs.start().stdout.readline().split()[1] for _ in range(2)]
    assert sorted(first) == ["a", "b"]
    for _ in range(4):
        runs.start(seconds=0.1)
    intervals = runs.finish()
    assert len(intervals) == 6
    assert [most_at_once(intervals, device) for device in "ab"] == [1, 1]
    assert all(len(devices) == 1 for _, _, devices in intervals)


def test_a_declared_share_is_used_and_not_exceeded_and_fills_devices_evenly(machine):
    runs = machine("a,b", SELFDISTILL_RUNS_PER_GPU="2")
    for _ in range(4):
        runs.start()
    first = [run.stdout.readline().split()[1] for run in runs.started]  # all four hold a slot now
    assert sorted(first) == ["a", "a", "b", "b"]
    for _ in range(2):
        runs.start(seconds=0.1)
    intervals = runs.finish()
    assert [most_at_once(intervals, device) for device in "ab"] == [2, 2]


def test_the_next_run_takes_the_device_with_the_fewest(machine):
    runs = machine("a,b", SELFDISTILL_RUNS_PER_GPU="3")
    taken = []
    for _ in range(4):
        taken.append(runs.start().stdout.readline().split()[1:])
    assert taken == [[d, "visible", d] for d in "abab"]


def test_a_killed_run_frees_its_slot_and_the_next_said_what_it_waits_for(machine):
    runs = machine("GPU-0/x")  # a name that is no file name as it stands
    holder = runs.start()
    assert holder.stdout.readline()
    waiting = runs.start(seconds=0)
    said = waiting.stderr.readline()
    assert "waiting for 1 of 1 GPUs (GPU-0/x)" in said
    time.sleep(0.7)
    assert waiting.poll() is None
    holder.kill()
    output, errors = waiting.communicate(timeout=300)
    assert waiting.returncode == 0
    assert output.split()[1] == "GPU-0/x"
    assert errors == ""  # said once


def test_runs_of_several_devices_do_not_wait_for_each_other(machine):
    runs = machine("a,b,c")
    for count in (2, 2, 1, 2):
        runs.start(count, seconds=0.2)
    intervals = runs.finish()
    assert max(most_at_once(intervals, device) for device in "abc") == 1
    assert sorted(len(set(devices)) for _, _, devices in intervals) == [1, 2, 2, 2]
    for one, other in combinations(intervals, 2):
        assert not set(one[2]) & set(other[2]) or one[1] <= other[0] or other[1] <= one[0]


def test_users_that_share_a_folder_share_its_locks(machine, tmp_path):
    """Whoever makes a lock, and under whatever umask: each may open it to write."""
    run = machine("a").start(umask=0o077)
    assert run.stdout.readline()
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "leases").iterdir()}
    assert modes == {"choice.lock": 0o666, "a.0.lock": 0o666}


@pytest.mark.parametrize(
    ("variables", "count", "said"),
    [
        ({"SELFDISTILL_RUNS_PER_GPU": "many"}, 1, "SELFDISTILL_RUNS_PER_GPU: 'many' is not allowed; allowed: a whole"),
        ({"SELFDISTILL_RUNS_PER_GPU": "0"}, 1, "SELFDISTILL_RUNS_PER_GPU: '0' is not allowed"),
        ({}, 3, "3 GPUs are needed, and there are 2: a, b"),
        ({"SELFDISTILL_LEASES": "/dev/null/leases"}, 1, "/dev/null/leases: Not a directory; name another folder in"),
    ],
)
def test_what_waiting_would_not_mend_is_refused_in_one_line(machine, variables, count, said):
    run = machine("a,b", **variables).start(count)
    _, errors = run.communicate(timeout=300)
    assert run.returncode == 1
    assert said in errors
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize(
    ("devices", "variables"),
    [("", {}), ("-1", {}), ("NoDevFiles", {}), ("a,b", {"LOCAL_RANK": "1"})],
    ids=["empty", "minus one", "Slurm without a GPU", "started by torchrun"],
)
def test_without_a_device_to_choose_the_environment_stays(machine, tmp_path, devices, variables):
    run = machine(devices, **variables).start(seconds=0)
    output, errors = run.communicate(timeout=300)
    assert output.split()[1:] == ["none", "visible", *([devices] if devices else [])], errors
    assert not (tmp_path / "leases").exists()


def test_a_device_behind_one_that_is_none_is_ignored_as_cuda_does(machine):
    output, _ = machine("a,-1,b", SELFDISTILL_RUNS_PER_GPU="1").start(seconds=0).communicate(timeout=300)
    assert output.split()[1:] == ["a", "visible", "a"]


LISTING = """GPU 0: NVIDIA H200 (UUID: GPU-aaaa)
GPU 1: NVIDIA H200 (UUID: GPU-bbbb)
"""
DIVIDED = """GPU 0: NVIDIA H200 (UUID: GPU-aaaa)
  MIG 1g.18gb     Device  0: (UUID: MIG-1111)
  MIG 1g.18gb     Device  1: (UUID: MIG-2222)
"""


def path_with_listing(folder: Path, listing: str) -> dict[str, str]:
    """A PATH on which nvidia-smi lists these devices, so that the rest can be tested without them."""
    (folder / "bin").mkdir(exist_ok=True)
    program = folder / "bin/nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{listing}END\n")
    program.chmod(0o755)
    return {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}


def test_a_number_and_a_uuid_of_one_device_are_one_device(machine, tmp_path):
    path = path_with_listing(tmp_path, LISTING)
    by_number = machine("1", **path).start()
    assert by_number.stdout.readline().split()[1:] == ["1", "visible", "1"]
    of_all = machine(None, **path).start()
    assert of_all.stdout.readline().split()[1] == "GPU-aaaa"
    by_number.kill()
    assert machine("GPU-bbbb", **path).start().stdout.readline().split()[1] == "GPU-bbbb"


def test_a_divided_gpu_is_leased_by_its_parts(machine, tmp_path):
    path = path_with_listing(tmp_path, DIVIDED)
    taken = [machine(None, **path).start().stdout.readline().split()[1] for _ in range(2)]
    assert taken == ["MIG-1111", "MIG-2222"]
