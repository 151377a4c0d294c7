"""A dvc.lock that a kill cut is put back.

DVC rewrites its lock in place after every stage; a kill at that moment leaves nothing or the beginning of it, which may
even parse.  So every stage keeps a copy of the locks before it begins, and whoever reads them next puts back what was
cut.  A stage whose entry is newer than the copy is not lost: DVC's run cache and finished seeds have what it made.

A killed engine leaves its jobs running.  They end by themselves, and whoever is started in the meantime waits for them.
"""

import fcntl
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml

from selfdistill.errors import UserError
from selfdistill.files import write_atomically

COPIES = Path(".work/locks")
SNAKEMAKE = Path(".work/snakemake")  # a file for each study, whose lock ends with the Snakemake that holds it
TERMINAL = "SELFDISTILL_TERMINAL"  # where a job of Snakemake may write for the user; no other process has it
BUSY = 30.0  # seconds that a dead process may take to be cleared away, or another DVC to be done with a file
RWLOCK = Path(".dvc/tmp/rwlock")  # DVC's list of the files in use
TURNS = Path(".work/turns")  # a file for each stage and run, whose lock ends with the process that holds it


@contextmanager
def guarded(root: Path, stage: str) -> Iterator[None]:
    """While a stage runs: no other process runs it, a copy of the locks is there, and in the end they are whole.

    The end matters where several DVCs run: one that is killed while it rewrites the lock leaves it to the next, which
    would take an empty one for a lock without entries.  UserError: a Snakemake runs this study, and this is none of its
    jobs.
    """
    if TERMINAL not in os.environ:
        refuse_beside_snakemake(root, Path.cwd())
    with turn(root, stage):
        keep(root)
        try:
            yield
        finally:
            for line in restore(root):
                print(line, file=sys.stderr)


def refuse_beside_snakemake(root: Path, folder: Path) -> None:
    """Raise UserError while a Snakemake runs the study in `folder`: it empties the folder of each output before the job
    that makes it, so that another process at the same output would lose the seeds that it has put there."""
    with suppress(OSError), open(root / claim_of(root, folder)) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"snakemake (process {file.read().strip()}) runs this study; wait for it, or stop it, and give the "
                "same command again"
            ) from None


def claim_of(root: Path, folder: Path) -> Path:
    """The file whose lock the Snakemake of the study in `folder` holds, from the repository's top."""
    name = os.path.relpath(folder.resolve(), root.resolve())
    return SNAKEMAKE / f"{'default' if name == '.' else name.replace(os.sep, '_')}.lock"


@contextmanager
def turn(root: Path, work: str) -> Iterator[None]:
    """Wait until no other process of this checkout does the same work, and keep others waiting."""
    file = None
    with suppress(OSError):  # a folder that is not writable stops the work where it writes what matters
        path = root / TURNS / re.sub(r"[^\w-]", "_", work)
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            process = os.pread(file, 20, 0).decode()
            print(f"{work}: process {process} of an earlier command is still at it; waiting", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        os.truncate(file, 0)
        os.pwrite(file, str(os.getpid()).encode(), 0)
    try:
        yield
    finally:
        if file is not None:
            os.close(file)


def wait_for_others(root: Path, jobs: bool = True) -> None:
    """Wait until no other `dvc repro` or `dvc exp run` works here, such as the jobs of an engine that was killed, and
    none that has ended waits to be cleared away by the system: DVC takes it for alive, and refuses its files.

    jobs: for those of a Snakemake, too."""
    said = None
    while others := running(root, jobs):
        if said != others:
            numbers = ", ".join(map(str, others))
            print(f"DVC of an earlier command is still at work here, process {numbers}; waiting", file=sys.stderr)
            said = others
        time.sleep(0.5)
    ends = time.monotonic() + BUSY
    while dying(root) and time.monotonic() < ends:
        time.sleep(0.1)


def dying(root: Path) -> list[int]:
    """The processes in DVC's list of files in use that have ended and are still there; on Linux, elsewhere none."""
    try:
        listed = json.loads((root / RWLOCK).read_bytes())
        readers = [entry for entries in listed.get("read", {}).values() for entry in entries]
        numbers = {int(entry["pid"]) for entry in [*readers, *listed.get("write", {}).values()]}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # none, or cut
        return []
    found = []
    for number in sorted(numbers):
        with suppress(OSError):
            if not Path(f"/proc/{number}/cmdline").read_bytes():  # its memory is gone
                found.append(number)
    return found


def running(root: Path, jobs: bool = True) -> list[int]:
    """The processes that run stages of this checkout, but for those that we are part of; on Linux, elsewhere none.

    jobs: those of a Snakemake, too."""
    top, found = root.resolve(), []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = [os.fsdecode(word) for word in (path / "cmdline").read_bytes().split(b"\0")]
            programs = {Path(word).name for word in words[:3]}  # `dvc`, `python .../dvc` or `python -m dvc`
            if "dvc" in programs and {"repro", "run"} & set(words):
                folder = (path / "cwd").readlink()
                if not jobs and f"\0{TERMINAL}=".encode() in b"\0" + (path / "environ").read_bytes():
                    continue
                if folder == top or folder.is_relative_to(top / "studies"):
                    found.append(int(path.name))
        except OSError:  # it has ended, or is another user's
            continue
    return sorted(set(found) - set(ourselves())) if found else []


def ourselves() -> Iterator[int]:
    """This process and those that have started it."""
    process = os.getpid()
    while process > 0:
        yield process
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def keep(root: Path) -> None:
    """Copy each lock of the repository that is whole; called when a stage begins."""
    with suppress(OSError):  # a full disk stops the stage where it writes what matters
        (root / TURNS).mkdir(parents=True, exist_ok=True)
        with open(root / TURNS / "copies", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an OSError, too, where another process copies now
            for lock in locks(root):
                content, copy = lock.read_bytes(), copy_of(root, lock)
                if (copy.read_bytes() if copy.is_file() else None) != content and not is_cut(root, lock, content):
                    write_atomically(copy, content)


def restore(root: Path) -> list[str]:
    """Put back each lock of the repository that was cut, from its copy or else from Git, and DVC's list of files in
    use; a line about each.

    Nothing is done while a DVC is alive that may be rewriting one.  What was there is kept beside the copy.
    """
    lines = empty_rwlock(root)
    if not any(is_cut(root, lock, lock.read_bytes()) for lock in locks(root)):
        return lines
    from dvc.lock import LockError
    from dvc.repo import Repo

    with suppress(LockError), Repo(root) as repo, repo.lock:
        for lock in locks(root):
            content, copy = lock.read_bytes(), copy_of(root, lock)
            if not is_cut(root, lock, content):
                continue
            whole, source = (copy.read_bytes(), "its copy in .work") if copy.is_file() else (in_git(root, lock), "Git")
            if whole is not None:
                write_atomically(copy.with_suffix(".cut"), content)
                write_atomically(lock, whole)
                lines.append(f"{lock.relative_to(root)}: it was cut by a kill; put back from {source}")
    return lines


def empty_rwlock(root: Path) -> list[str]:
    """Empty DVC's list of the files in use if a kill cut it, which DVC rewrites in place as well and then refuses."""
    path = root / RWLOCK
    if not path.is_file() or is_json(path):
        return []
    from dvc.lock import LockError, make_lock

    with suppress(LockError), make_lock(f"{path}.lock", tmp_dir=str(path.parent)):
        if not is_json(path):
            path.write_text("{}")  # not another file: it may be a link
            return [f"{path.relative_to(root)}: it was cut by a kill; emptied"]
    return []


def is_json(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_bytes()), dict)
    except ValueError:
        return False


def locks(root: Path) -> list[Path]:
    patterns = ("dvc.lock", "studies/*/dvc.lock", "data/sets/*/dvc.lock")
    return sorted(path for pattern in patterns for path in root.glob(pattern) if path.is_file())


def copy_of(root: Path, lock: Path) -> Path:
    return root / COPIES / lock.relative_to(root)


def is_cut(root: Path, lock: Path, content: bytes) -> bool:
    """Whether a lock ends too early: it cannot be read, its last entry lacks a hash, or it is the start of its copy.

    A lock of other stages or outputs is not cut, nor is the one that Git has, nor one with the marks of a merge.
    """
    if b"<<<<<<<" in content:
        return False
    copy = copy_of(root, lock)
    before = copy.read_bytes() if copy.is_file() else None
    if content == before:
        return False
    beginning = before is not None and before.startswith(content)
    return (beginning or not ends_well(content)) and content != in_git(root, lock)


def ends_well(content: bytes) -> bool:
    """Whether it can be read as a lock, and its last entry has outputs with hash and size each."""
    try:
        entries = yaml.load(content, getattr(yaml, "CSafeLoader", yaml.SafeLoader))["stages"]
        outs = list(entries.values())[-1]["outs"]
        return content.endswith(b"\n") and bool(outs) and all(map(is_whole, outs))
    except (yaml.YAMLError, UnicodeDecodeError, LookupError, TypeError, AttributeError):
        return False


def is_whole(out: dict) -> bool:
    """Whether an output's lines are all there: DVC writes its size, and the number of files in a folder, last."""
    last = "nfiles" if out["md5"].endswith(".dir") else "size"
    return len(out["md5"].removesuffix(".dir")) == 32 and last in out


def in_git(root: Path, lock: Path) -> bytes | None:
    """The lock as Git has it, staged or committed."""
    name = lock.relative_to(root).as_posix()
    try:
        done = subprocess.run(["git", "-C", str(root), "show", f":{name}"], capture_output=True, check=False)
    except FileNotFoundError:  # no Git here
        return None
    return done.stdout if done.returncode == 0 else None
