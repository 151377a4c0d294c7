"""Kill a small study with signal 9 again and again, give the same command, compare the end with an undisturbed run.

    python benchmarks/chaos.py [--engine make|snakemake|dvc] [--rounds 50] [--seed 0]

A round starts from a clone in which nothing has run, or one method of the two (every second one with the dvc.lock of
the whole study in Git), kills one to three times and then lets the command end.  What is killed is drawn: the engine
alone, so that its jobs go on as orphans; its whole process group; one process below it; or whoever writes dvc.lock, at
the moment when the file has just been emptied.

A round is right if the command ends with 0 the first time that it is left alone (a bare `dvc repro` whose dvc.lock, or
list of the files in use, was cut: after `selfdistill check`), everything under results/ and every entry of dvc.lock
come out to the byte (their order is that in which stages end, which DVC does not fix), no run is trained twice to its
end, and neither a process nor a half-made file is left.  Prints a line a round, and how many of the kills aimed at the
lock have cut it; exit code 1 if a round is wrong, whose folder is then kept.
"""

import argparse
import ctypes
import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import yaml

from selfdistill.locks import is_json

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
COMMANDS = {
    "make": ["make", "repro", "-o", "install"],
    "snakemake": ["snakemake", "--cores", "2"],
    "dvc": ["dvc", "repro"],
}
TAG = "SELFDISTILL_CHAOS"  # in the environment of every process of a round
TRAINED = re.compile(r"^train \d+ of \d+", re.MULTILINE)  # a line for each run that a stage trained to its end
REPORTS = ("tables", "figures", "page")
MODIFIED = 0x2  # inotify's IN_MODIFY


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=COMMANDS, nargs="*", default=list(COMMANDS))
    parser.add_argument("--rounds", type=int, default=50, help="of each engine (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, nargs="*", default=list(KINDS), help="what is killed")
    parser.add_argument("--folder", type=Path, help="to work in; an undisturbed run that lies there is used again")
    options = parser.parse_args()
    base = options.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    undisturbed = base / "undisturbed"
    if not undisturbed.is_dir():
        made(base / "making")
        (base / "making").rename(undisturbed)
    seconds = float((undisturbed / ".work/seconds").read_text())
    wrong = aimed = cut = 0
    for engine in options.engine:
        for number in range(options.rounds):
            chaos = Chaos(undisturbed, base / f"{engine}-{options.seed}-{number}", engine)
            draw = random.Random(f"{options.seed} {engine} {number}")
            variants = draw.choice((("plain", "drkd"), ("drkd",)))
            chaos.start(variants, lock_in_git=number % 2 == 1)
            lasts = seconds * (1 if "plain" in variants else 0.6)
            faults = chaos.round(draw, options.kind, lasts, kills=draw.choice((1, 1, 2, 3)))
            print(f"{engine} {number}: {'; '.join(chaos.told)}: {'; '.join(faults) or 'right'}", flush=True)
            wrong, aimed, cut = wrong + bool(faults), aimed + chaos.aimed, cut + chaos.cuts
            if faults:
                (chaos.folder / "chaos.log").write_text(chaos.output)
            else:
                shutil.rmtree(chaos.folder)
    print(f"{wrong} rounds wrong; {cut} of {aimed} kills aimed at the lock have cut it")
    if not wrong and options.folder is None:
        shutil.rmtree(base)
    return int(wrong > 0)


def made(folder: Path) -> None:
    """A clone with a study of two methods and two seeds, run undisturbed and committed."""
    sys.path.insert(0, str(ROOT / "tests"))
    from conftest import TINY, copy_of_sources

    project = copy_of_sources(folder)
    project.params(**{**TINY, "methods": ["plain"], "recipe.epochs": 6})
    began = time.monotonic()
    project.run("dvc", "repro", "--quiet")
    (project / ".work/seconds").write_text(str(time.monotonic() - began))
    project.commit("the study, run")


class Chaos:
    """Rounds of one engine in a folder; undisturbed: a clone in which `dvc repro` has run the same study.

    told: what was killed, and how long it took; output: what the commands said; aimed, cuts: kills that were aimed at
    the lock, and those that have cut it.
    """

    def __init__(self, undisturbed: Path, folder: Path, engine: str) -> None:
        self.undisturbed, self.folder, self.engine = undisturbed, folder, engine
        self.told: list[str] = []
        self.output, self.aimed, self.cuts = "", 0, 0
        hidden = ("PYTEST", "GIT_", "DVC_", "SELFDISTILL_", "MAKE", "MFLAGS")
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(hidden)},
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "VIRTUAL_ENV": str(BIN.parent),
            "DVC_NO_ANALYTICS": "1",
            "OMP_NUM_THREADS": "1",
            TAG: str(folder),
        }

    def start(self, variants: tuple[str, ...], lock_in_git: bool) -> None:
        """A clone in which these variants have not run; lock_in_git: dvc.lock and the rendered files are those of the
        whole study all the same, as a clone has them."""
        shutil.copytree(self.undisturbed, self.folder, symlinks=True)
        self.runs = len(variants) * 2
        lock = self.folder / "dvc.lock"
        content = yaml.safe_load(lock.read_text())
        gone = [name for name in content["stages"] if name in REPORTS or any(f"-{v}" in name for v in variants)]
        for name in gone:
            for out in content["stages"].pop(name)["outs"]:
                self.drop(out, keep=lock_in_git and name in REPORTS)
        shutil.rmtree(self.folder / ".dvc/cache/runs", ignore_errors=True)
        shutil.rmtree(self.folder / ".work", ignore_errors=True)
        if not lock_in_git:
            lock.write_text(yaml.safe_dump(content, sort_keys=False))
            self.git("commit", "--quiet", "--all", "--message", "what has not run")

    def drop(self, out: dict, keep: bool) -> None:
        """Forget an output, in the workspace and in DVC's cache."""
        if keep:
            return
        path = self.folder / out["path"]
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        cache = self.folder / ".dvc/cache/files/md5"
        listing = cache / out["md5"][:2] / out["md5"][2:]
        if listing.is_file():
            for entry in yaml.safe_load(listing.read_text()) if out["md5"].endswith(".dir") else []:
                (cache / entry["md5"][:2] / entry["md5"][2:]).unlink(missing_ok=True)
            listing.unlink()

    def git(self, *arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(self.folder), *arguments], capture_output=True, text=True, check=True
        ).stdout

    def round(self, draw: random.Random, kinds: list[str], lasts: float, kills: int) -> list[str]:
        """Kill so often, let the command end, and say what is wrong; lasts: seconds of an undisturbed run."""
        for _ in range(kills):
            kind = draw.choice(kinds)
            process = self.started()
            done = KINDS[kind](self, process, draw, lasts)
            process.wait(timeout=1200)  # killed, left to notice that a job was, or not killed in time
            self.told.append(kind if done else f"{kind} (too late)")
            self.output += self.log.read_text()
            if kind == "lock" and done:
                self.aimed, self.cuts = self.aimed + 1, self.cuts + self.is_cut()
            if self.engine == "dvc" and (self.is_cut() or self.is_list_cut()):
                self.told.append("check")
                subprocess.run(["selfdistill", "check"], cwd=self.folder, env=self.environment, check=False)
        began = time.monotonic()
        process = self.started()
        code = process.wait(timeout=1200)
        self.output += self.log.read_text()
        self.told.append(f"{time.monotonic() - began:.0f} s")
        return [*([f"exit code {code}"] if code else []), *self.faults()]

    def started(self) -> subprocess.Popen:
        """The command, in a process group of its own."""
        self.log = self.folder.with_suffix(".log")
        with open(self.log, "w") as log:
            return subprocess.Popen(
                COMMANDS[self.engine],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def is_cut(self) -> bool:
        """Whether DVC would refuse dvc.lock."""
        lock = self.folder / "dvc.lock"
        if not lock.is_file():
            return False
        try:
            return "stages" not in (yaml.safe_load(lock.read_text()) or {})
        except yaml.YAMLError:
            return True

    def is_list_cut(self) -> bool:
        """Whether DVC would refuse its list of the files in use, which it rewrites in place as well."""
        file = self.folder / ".dvc/tmp/rwlock"
        return file.is_file() and not is_json(file)

    def faults(self) -> list[str]:
        """What differs from the undisturbed run, and what was left behind."""
        faults = []
        time_left = time.monotonic() + 20
        while (left := list(self.processes())) and time.monotonic() < time_left:
            time.sleep(0.2)
        faults += [f"process left: {Path(f'/proc/{pid}/cmdline').read_bytes()!r}" for pid in left]
        expected, found = contents(self.undisturbed), contents(self.folder)
        faults += [f"differs: {name}" for name in sorted(expected | found) if expected.get(name) != found.get(name)]
        expected_lock, lock = (folder / "dvc.lock" for folder in (self.undisturbed, self.folder))
        if yaml.safe_load(lock.read_text()) != yaml.safe_load(expected_lock.read_text()):
            faults.append("dvc.lock differs")
        faults += [f"left: {path.relative_to(self.folder)}" for path in self.folder.rglob("*.partial")]
        if (trained := len(TRAINED.findall(self.output))) > self.runs:
            faults.append(f"{trained} trainings of {self.runs} runs")
        if status := self.git("status", "--porcelain", "--", ":!dvc.lock", ":!results"):
            faults.append(f"Git: {status!r}")
        return faults

    def processes(self) -> Iterator[int]:
        """Whatever a round has started and is alive, orphans too."""
        mark = f"{TAG}={self.folder}\0".encode()
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark in path.read_bytes() + b"\0":
                    yield int(path.parent.name)
            except OSError:
                continue


def contents(folder: Path) -> dict[str, bytes]:
    """All files under results/, but for the marks that Snakemake leaves in folders, and the page above all studies,
    which `make` alone writes."""
    others = {".snakemake_timestamp", "studies.html"}
    files = (path for path in (folder / "results").rglob("*") if path.is_file() and path.name not in others)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def wait_until(process: subprocess.Popen, seconds: float) -> bool:
    """Whether the process is alive after so long."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def kill_engine(chaos: Chaos, process: subprocess.Popen, draw: random.Random, lasts: float) -> bool:
    """The engine alone: what it has started goes on."""
    alive = wait_until(process, draw.uniform(0, lasts))
    process.kill()
    return alive


def kill_group(chaos: Chaos, process: subprocess.Popen, draw: random.Random, lasts: float) -> bool:
    alive = wait_until(process, draw.uniform(0, lasts))
    if alive:
        os.killpg(process.pid, signal.SIGKILL)
    return alive


def kill_job(chaos: Chaos, process: subprocess.Popen, draw: random.Random, lasts: float) -> bool:
    """One of the processes below the engine; it is left to notice."""
    if not wait_until(process, draw.uniform(0, lasts)):
        return False
    below = [pid for pid in chaos.processes() if pid != process.pid]
    return bool(below) and killed(draw.choice(below))


def kill_writer(chaos: Chaos, process: subprocess.Popen, draw: random.Random, lasts: float) -> bool:
    """Whoever writes dvc.lock, when it has just been emptied: it alone, or the whole process group."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init()
    libc.inotify_add_watch(watch, os.fsencode(chaos.folder), MODIFIED)
    lock, skip, group = chaos.folder / "dvc.lock", draw.randrange(5), draw.random() < 0.5
    before = lock.stat().st_size if lock.is_file() else 0
    with suppress(PermissionError):  # to be there in time
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    try:
        while process.poll() is None:
            if not select.select([watch], [], [], 0.2)[0] or b"dvc.lock\0" not in os.read(watch, 65536):
                continue
            size = lock.stat().st_size
            if size >= before:  # written, or new
                before = size
            elif skip:
                skip -= 1
                before = 0
            elif group:
                os.killpg(process.pid, signal.SIGKILL)
                return True
            elif any([killed(pid) for pid in chaos.processes() if writes(pid, lock)]):
                return True
    finally:
        os.close(watch)
        with suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, 0)
    return False


def writes(pid: int, file: Path) -> bool:
    """Whether a process has this file open."""
    try:
        return any(os.readlink(link) == str(file) for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def killed(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


KINDS = {"engine": kill_engine, "group": kill_group, "job": kill_job, "lock": kill_writer}

if __name__ == "__main__":
    sys.exit(main())
