"""A dvc.lock that a kill cut is put back.

DVC rewrites its lock in place after every stage; a kill at that moment leaves nothing or the beginning of it, which may
even parse.  So every stage keeps a copy of the locks before it begins, and whoever reads them next puts back what was
cut.  A stage whose entry is newer than the copy is not lost: DVC's run cache and finished seeds have what it made.
"""

import subprocess
from pathlib import Path

import yaml

from selfdistill.files import write_atomically

COPIES = Path(".work/locks")


def keep(root: Path) -> None:
    """Copy each lock of the repository that is whole; called when a stage begins."""
    for lock in locks(root):
        content, copy = lock.read_bytes(), copy_of(root, lock)
        if (copy.read_bytes() if copy.is_file() else None) != content and is_whole(root, lock, content):
            write_atomically(copy, content)


def restore(root: Path) -> list[str]:
    """Put back each lock of the repository that was cut, from its copy or else from Git; a line about each."""
    lines = []
    for lock in locks(root):
        content, copy = lock.read_bytes(), copy_of(root, lock)
        if b"<<<<<<<" in content or is_whole(root, lock, content):
            continue
        whole, source = (copy.read_bytes(), "its copy in .work") if copy.is_file() else (in_git(root, lock), "Git")
        if whole is not None:
            write_atomically(lock, whole)
            lines.append(f"{lock.relative_to(root)}: it was cut by a kill; put back from {source}")
    return lines


def locks(root: Path) -> list[Path]:
    patterns = ("dvc.lock", "*/dvc.lock", "studies/*/dvc.lock")
    return sorted(path for pattern in patterns for path in root.glob(pattern) if path.is_file())


def copy_of(root: Path, lock: Path) -> Path:
    return root / COPIES / lock.relative_to(root)


def is_whole(root: Path, lock: Path, content: bytes) -> bool:
    """Whether a lock can be read and, unless it is the one in Git, has all that its copy has.

    A cut takes the last entries and, of the one before, the last lines, which are of its outputs.
    """
    found, copy = stages(content), copy_of(root, lock)
    before = (stages(copy.read_bytes()) if copy.is_file() else None) or {}
    if found and before.keys() <= found.keys():
        last = list(found)[-1]
        if found[last] and before.get(last, set()) <= found[last]:
            return True
    return content == in_git(root, lock)


def stages(content: bytes) -> dict[str, set[str]] | None:
    """The outputs of a lock's entries that have a hash, by the stage's name in the file's order; None for no lock."""
    try:
        found = yaml.load(content, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        return {
            name: {out["path"] for out in entry.get("outs", ()) if len(out.get("md5", "").removesuffix(".dir")) == 32}
            for name, entry in found["stages"].items()
        }
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        return None


def in_git(root: Path, lock: Path) -> bytes | None:
    """The lock as Git has it, staged or committed."""
    name = lock.relative_to(root).as_posix()
    done = subprocess.run(["git", "-C", str(root), "show", f":{name}"], capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else None
