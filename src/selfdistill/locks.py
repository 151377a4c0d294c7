"""A dvc.lock that a kill cut is put back.

DVC rewrites its lock in place after every stage; a kill at that moment leaves nothing or the beginning of it, which may
even parse.  So every stage keeps a copy of the locks before it begins, and whoever reads them next puts back what was
cut.  A stage whose entry is newer than the copy is not lost: DVC's run cache and finished seeds have what it made.
"""

import json
import subprocess
from contextlib import suppress
from pathlib import Path

import yaml

from selfdistill.files import write_atomically

COPIES = Path(".work/locks")


def keep(root: Path) -> None:
    """Copy each lock of the repository that is whole; called when a stage begins."""
    with suppress(OSError):  # a full disk stops the stage where it writes what matters
        for lock in locks(root):
            content, copy = lock.read_bytes(), copy_of(root, lock)
            if (copy.read_bytes() if copy.is_file() else None) != content and not is_cut(root, lock, content):
                write_atomically(copy, content)


def restore(root: Path) -> list[str]:
    """Put back each lock of the repository that was cut, from its copy or else from Git, and DVC's list of files in
    use; a line about each.

    Nothing is done while a DVC is alive that may be rewriting one.  What was there is kept beside the copy.
    """
    lines = mend_rwlock(root)
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


def mend_rwlock(root: Path) -> list[str]:
    """Empty DVC's list of the files in use if a kill cut it, which DVC rewrites in place as well and then refuses."""
    path = root / ".dvc" / "tmp" / "rwlock"
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
    before = copy.read_bytes() if copy.is_file() else b""
    beginning = len(content) < len(before) and before.startswith(content)
    return (beginning or not ends_well(content)) and content != in_git(root, lock)


def ends_well(content: bytes) -> bool:
    """Whether it can be read as a lock, and its last entry has outputs with a hash each."""
    try:
        entries = yaml.load(content, getattr(yaml, "CSafeLoader", yaml.SafeLoader))["stages"]
        outs = list(entries.values())[-1]["outs"]
        return bool(outs) and all(len(out["md5"].removesuffix(".dir")) == 32 for out in outs)
    except (yaml.YAMLError, UnicodeDecodeError, LookupError, TypeError, AttributeError):
        return False


def in_git(root: Path, lock: Path) -> bytes | None:
    """The lock as Git has it, staged or committed."""
    name = lock.relative_to(root).as_posix()
    try:
        done = subprocess.run(["git", "-C", str(root), "show", f":{name}"], capture_output=True, check=False)
    except FileNotFoundError:  # no Git here
        return None
    return done.stdout if done.returncode == 0 else None
