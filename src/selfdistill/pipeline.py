"""The stages that dvc.yaml declares, for a scheduler: what each needs, makes, and whether it is stale."""

import fcntl
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import IO, Any

import networkx
from dvc.dependency.param import ParamsDependency
from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo

from selfdistill.checkout import require
from selfdistill.config import Study, seeds_of
from selfdistill.files import write_atomically
from selfdistill.locks import BUSY, claim_of, wait_for_others
from selfdistill.params import read_study
from selfdistill.schema import ConfigError, nearest, shown
from selfdistill.showing import show
from selfdistill.studies import folders

MARKERS = Path(".work/stale")
HELD: list[IO[str]] = []  # locks that this process keeps until it ends


@dataclass(frozen=True)
class Stage:
    """A resolved stage, with paths from the repository's top; a folder among its dependencies is
    replaced by the outputs of other stages that lie in it.

    address: as DVC names it.  pending: dependencies that a stale stage will make again; settled: all
    others.  marker: a file newer than the outputs exactly if the stage is stale, that is, changed or
    downstream of a changed one.  own: a stage of the study itself, not of its data.  trains: a training.  threads,
    resources: as Snakemake counts them, by name (gpu, mem_mb in MB, runtime in minutes).
    """

    address: str
    pending: tuple[str, ...]
    settled: tuple[str, ...]
    outs: tuple[str, ...]
    marker: str
    own: bool
    trains: bool
    threads: int
    resources: dict[str, int]


def asked(config: dict[str, Any]) -> tuple[Path, dict[str, int]]:
    """What `snakemake --config` says: the study's folder, and what a training asks for in place of dvc.yaml's `meta`,
    runtime in minutes and mem_mb in MB of all its processes.

    ConfigError: a key or a study that there is not, or a number that is none; the message says what is allowed.
    """
    units = {"runtime": "minutes", "mem_mb": "MB"}
    known = ["study", *units]
    if unknown := [key for key in config if key not in known]:
        raise ConfigError(f"--config {unknown[0]}: unknown key; {nearest(unknown[0], known)}")
    folder = Path(".")
    if "study" in config:
        name, known_studies = str(config["study"]), folders(Path("."))
        if name not in known_studies:
            raise ConfigError(f"--config study: {shown(config['study'])}; {nearest(name, list(known_studies))}")
        folder = known_studies[name]
    numbers = {}
    for key, unit in units.items():
        if key in config:
            text = str(config[key])
            if not text.isdecimal() or int(text) < 1:
                raise ConfigError(f"--config {key}: {text!r} is not allowed; allowed: whole {unit}, from 1")
            numbers[key] = int(text)
    return folder, numbers


def claim(folder: Path) -> None:
    """Have the study in `folder` to this process until it ends: no second Snakemake runs it meanwhile.

    A lock of the operating system, which ends with its process however that ends, in place of Snakemake's own: those
    stay behind a killed one, and each Snakemake that ends removes those of all others.  ConfigError: another runs it.
    """
    path = claim_of(Path("."), folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a+")  # noqa: SIM115  (open as long as this process)
    for _ in range(20):
        with suppress(OSError):  # also where another process only asks who holds it, for a moment
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        time.sleep(0.05)
    else:
        file.seek(0)
        raise ConfigError(f"another snakemake (process {file.read().strip()}) runs this study; wait for it, or stop it")
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    HELD.append(file)


def clear_locks() -> None:
    """Remove Snakemake's own locks; `claim` does their work."""
    for lock in Path(".snakemake/locks").glob("*.lock"):
        lock.unlink(missing_ok=True)
    wait_for_others(Path("."))  # the jobs of one that was killed


def forced(settings: Any) -> set[str]:
    """The rules and files that `snakemake --forceall`, `--forcerun` and `--force` name; `all` for every one."""
    if settings.forceall:
        return {"all"}
    return {str(name) for name in (*settings.forcerun, *(settings.targets if settings.forcetargets else ()))}


def read_stages(folder: Path, mark: bool) -> list[Stage]:
    """The stages that the study in `folder` needs; the working folder is the repository's top.

    The params.yaml is validated first (ConfigError).  With `mark` the stage `check` is run, which writes what
    every other stage depends on, and DVC is asked what is stale; without, nothing is stale.  Where another DVC has one
    of their files it is asked again, for BUSY seconds: the other one may be dead, and DVC takes it for alive until the
    system has cleared it away.  LockError: it still has.
    """
    study = read_study(folder / "params.yaml")
    require(folder, study)
    show(folder, study)
    ends = time.monotonic() + BUSY
    while True:
        try:
            return resolved(folder, study, mark)
        except DvcException as error:
            busy = error if isinstance(error, LockError) else error.__cause__
            if not isinstance(busy, LockError):
                raise
            if time.monotonic() > ends:
                raise busy from None
            print("waiting for another DVC that has a file of this study", file=sys.stderr)
            time.sleep(1)


def resolved(folder: Path, study: Study, mark: bool) -> list[Stage]:
    """The stages as DVC sees them now.  LockError: another DVC has one of their files."""
    with checked(folder, mark) as repo:
        graph = repo.index.graph  # an edge points from a stage to one that it needs
        own = [s for s in repo.index.stages if Path(s.path_in_repo) == folder / "dvc.yaml"]
        below = {dep for stage in own for dep in networkx.descendants(graph, stage)}
        needed = [*own, *sorted(below - set(own), key=lambda s: s.addressing)]
        stale = set()
        if mark:
            with repo.lock:  # what `dvc status` does, without collecting every stage a second time
                stale = {stage for stage in needed if stage.status()}
            stale |= {user for stage in stale for user in networkx.ancestors(graph, stage)}
            for stage in needed:
                set_marker(marker(stage), stage in stale)
        makers = {relative(out): stage for stage in needed for out in stage.outs}
        return [
            Stage(
                address=stage.addressing,
                pending=tuple(p for p in paths_of(stage, makers) if makers.get(p) in stale),
                settled=tuple(p for p in paths_of(stage, makers) if makers.get(p) not in stale),
                outs=tuple(relative(out) for out in stage.outs),
                marker=str(marker(stage)),
                own=stage in own,
                trains=not {"seed", "trial"}.isdisjoint((stage.meta or {}).get("each", ())),
                **needs(stage.meta or {}, study, seeds_in(stage)),
            )
            for stage in needed
        ]


@contextmanager
def checked(folder: Path, mark: bool) -> Iterator[Repo]:
    """DVC's view of the repository; with `mark` after the study's first stage, `check`, was run if it was stale:
    what the other stages depend on is then up to date.  Another DVC that holds its lock is waited for."""
    try:
        with Repo(".") as repo, repo.lock:
            pass
    except LockError:
        print("waiting for another DVC that is at work in this checkout", file=sys.stderr)
    with Repo(".", _wait_for_lock=True) as repo:
        (check,) = (s for s in repo.index.stages if Path(s.path_in_repo) == folder / "dvc.yaml" and s.name == "check")
        with repo.lock:
            stale = mark and check.status()
        if not stale:
            yield repo
            return
        with redirect_stdout(sys.stderr):
            repo.reproduce(check.addressing, single_item=True)
    with Repo(".", _wait_for_lock=True) as repo:  # the first one has read the old lock
        yield repo


def needs(meta: dict, study: Study, seeds: int = 1) -> dict:
    """Threads and resources that a stage's `meta` and the study's recipe ask for; seeds: of its block."""
    each, recipe = meta.get("each", ()), study.recipe
    trials = study.tuning.replicates * (1 + study.search_epochs)  # each winner once more
    processes = recipe.processes if "process" in each else 1
    return {
        "threads": meta.get("threads", 1) * recipe.threads * processes,
        "resources": {
            "mem_mb": meta.get("mem_mb", 1000) * processes,
            "runtime": meta.get("runtime", 10) * (seeds if "seed" in each else ceil(trials) if "trial" in each else 1),
            "gpu": meta.get("gpu", 0) * processes if recipe.device != "cpu" else 0,
        },
    }


def seeds_in(stage) -> int:
    """How many seeds a training stage trains: its output is named by their block."""
    if "seed" not in (stage.meta or {}).get("each", ()):
        return 1
    name = Path(stage.outs[0].def_path).name
    return len(seeds_of(name if "-" in name else int(name)))


def relative(file) -> str:
    """A DVC dependency's or output's path from the working folder."""
    return os.path.relpath(file.fs_path)


def paths_of(stage, makers: dict) -> list[str]:
    """A stage's dependencies as files to wait for; parameters are DVC's to watch."""
    paths = []
    for dep in stage.deps:
        if not isinstance(dep, ParamsDependency):
            path = relative(dep)
            paths += [out for out in makers if out == path or out.startswith(path + os.sep)] or [path]
    return paths


def marker(stage) -> Path:
    return MARKERS / stage.addressing.replace("/", "_").replace(":", "_")


def set_marker(path: Path, stale: bool) -> None:
    """Date a marker now if its stage is stale, and 1970 if not.

    A stale one also gets new content: Snakemake takes a newer file of the old content for unchanged.
    """
    if stale or not path.exists():
        write_atomically(path, f"{time.time_ns()}\n".encode())
    if not stale:
        os.utime(path, (0, 0))
