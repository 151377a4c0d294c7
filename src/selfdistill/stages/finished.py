"""What was computed before from equal inputs, so that no stage computes it again.

A stage trains a block of seeds, and DVC deletes its outputs when it begins.  So each run that is over waits,
whole, in `.work/finished/<cell>-<hash of its inputs>` until the stage's outputs lie in DVC's cache.  From then
on it is found there, through the entries that dvc.lock has of this and of earlier blocks: a seed added to a
block is the only one that is trained.  Evaluations are kept in the same way.

SELFDISTILL_FRESH=1 ignores both: everything is computed again.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from pathlib import Path

import yaml

FRESH = "SELFDISTILL_FRESH"
Files = dict[str, Path]  # of a run: where each of its files lies, by name


def key_of(inputs: dict) -> str:
    """The SHA-256 of all that a result depends on."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=list, allow_nan=False).encode()).hexdigest()


def fresh() -> bool:
    """Whether everything is to be computed again."""
    return bool(os.environ.get(FRESH))


def restore(waiting: Path, cached: Iterator[Files], target: Path, sound: Callable[[Files], bool]) -> bool:
    """Put a finished run into the folder `target`; returns whether there was one.

    waiting: where it would wait; cached: runs of its cell in DVC's cache, of whatever inputs; sound: whether
    these files are the run that is wanted, and undamaged.
    """
    if fresh():
        return False
    found = [{path.name: path for path in waiting.iterdir()}] if waiting.is_dir() else []
    for files in (*found, *cached):
        if sound(files):
            fill(target, files, waiting)
            return True
    return False


def keep(waiting: Path, write: Callable[[Path], None], target: Path) -> None:
    """Have a run written to where it waits, whole or not at all, and put it into the folder `target`."""
    partial = waiting.with_name(f"{waiting.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a stage that was killed
    partial.mkdir(parents=True)
    try:
        write(partial)
        shutil.rmtree(waiting, ignore_errors=True)  # an earlier one, when everything is computed again
        partial.rename(waiting)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    fill(target, {path.name: path for path in waiting.iterdir()}, waiting)


def fill(target: Path, files: Files, waiting: Path) -> None:
    """Put files into a folder that is made again, all of them or none; those of `waiting` may be linked."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    try:
        for name, path in files.items():
            linked(path, target / name, may_link=path.parent == waiting)
    except OSError as error:
        shutil.rmtree(target, ignore_errors=True)
        raise OSError(error.errno, error.strerror, str(target)) from error


def sweep(folder: Path, cell: str, cached: Iterator[Files]) -> None:
    """Remove the runs of a cell that wait in `folder` and lie in DVC's cache, too."""
    waiting = [path for path in folder.glob(f"{cell}-*") if path.is_dir() and not path.name.endswith(".partial")]
    if not waiting:
        return
    known = [{name: path.parent.name + path.name for name, path in files.items()} for files in cached]
    for path in waiting:
        if {file.name: md5_of(file) for file in path.iterdir()} in known:
            shutil.rmtree(path, ignore_errors=True)


def in_cache(root: Path, outputs: dict[str, str], run: Path, seed: int) -> Iterator[Files]:
    """The files of the runs of a seed, wherever in a folder `run` of outputs that dvc.lock names a block may have put
    them, where DVC's cache has them all.

    root: the repository's top; outputs: `locked_outputs`; run: results/runs/MODEL/VARIANT.
    """
    base = run.as_posix()
    inside = [f"{base}/{seed}", *(f"{out}/{seed}" for out in outputs if out.startswith(f"{base}/"))]
    for out, md5 in outputs.items():
        for path in (path for path in inside if path == out or path.startswith(f"{out}/")):
            prefix = f"{path}/".removeprefix(f"{out}/")
            entries = folder_in_cache(root, md5)
            files = {name.removeprefix(prefix): file for name, file in entries.items() if name.startswith(prefix)}
            if files and all(file.is_file() for file in files.values()):
                yield files


def files_in_cache(root: Path, outputs: dict[str, str], targets: Files, folder: Path) -> Iterator[Files]:
    """The same of single files in a folder that is an output; targets: where each of them is put, by name."""
    entries = folder_in_cache(root, outputs.get(folder.as_posix(), ""))
    files = {name: entries.get(path.relative_to(folder).as_posix()) for name, path in targets.items()}
    there = {name: file for name, file in files.items() if file and file.is_file()}
    if len(there) == len(targets):
        yield there


def folder_in_cache(root: Path, md5: str) -> Files:
    """Where DVC's cache has the files of a folder of this hash, by their paths in it; nothing where it has no such
    folder."""
    cache = cache_of(root)
    listing = cache / md5[:2] / md5[2:]
    if not md5.endswith(".dir") or not listing.is_file():
        return {}
    try:
        return {e["relpath"]: cache / e["md5"][:2] / e["md5"][2:] for e in json.loads(listing.read_bytes())}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):  # damaged: it is computed again
        return {}


def cache_of(root: Path) -> Path:
    """Where DVC keeps contents by their MD5: where `dvc cache dir` says, in .dvc/config.local or .dvc/config."""
    config = ConfigParser(interpolation=None, strict=False)
    config.read([root / ".dvc" / "config", root / ".dvc" / "config.local"], encoding="utf-8")
    return root / ".dvc" / config.get("cache", "dir", fallback="cache").strip("\"'") / "files" / "md5"


def locked_outputs(lock: Path) -> dict[str, str]:
    """The hash of every output that a dvc.lock names; empty without that file."""
    if not lock.is_file():
        return {}
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # 9,000 lines: 0.3 s, 4 s in Python
    try:
        stages = (yaml.load(lock.read_bytes(), loader) or {}).get("stages", {})
        return {out["path"]: out.get("md5", "") for stage in stages.values() for out in stage.get("outs", [])}
    except (yaml.YAMLError, AttributeError, LookupError, TypeError):  # damaged: DVC says so, here it only lacks hints
        return {}


def linked(source: Path, target: Path, may_link: bool = True) -> None:
    """A second name for a file, or a copy where the disk has no such names or the file is DVC's."""
    try:
        if may_link:
            os.link(source, target)
            return
    except OSError:
        pass
    shutil.copyfile(source, target)


def md5_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
