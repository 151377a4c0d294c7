"""Real parts throughout: a temporary Git and DVC repository with a tiny study, run once a session."""

import glob
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

# One thread a process: two on two busy cores wait for each other (a training of 0.3 s was seen to take 41 s).
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import yaml
from filelock import FileLock

# In memory, where there is room: a session makes 90,000 small files, and some disks take minutes to remove these.
SHM = "/dev/shm"
if os.access(SHM, os.W_OK) and shutil.disk_usage(SHM).free > 8e9 and not os.statvfs(SHM).f_flag & os.ST_NOEXEC:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", SHM)

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
TINY = {
    "methods": ["plain", "byot"],
    "students": ["drkd"],
    "seeds": ["0-1"],
    "training_images": 100,
    "validation_images": 100,
    "tuning.methods": [],
    "tuning.students": [],
    "recipe.epochs": 2,
    "recipe.warmup_epochs": 0,
}


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    """Under CI a skipped test is a test that did not run: a failure, unless its reason is on the list."""
    allowed = ("needs a GPU", "a CUDA build of PyTorch")
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter:
        for report in reporter.stats.get("skipped", []):
            if not any(reason in str(report.longrepr) for reason in allowed):
                reporter.write_line(f"skipped under CI: {report.nodeid}: {report.longrepr}", red=True)
                session.exitstatus = 1


def present(folder: Path, pattern: str) -> list[Path]:
    """The paths that match in a folder that another process changes: what goes meanwhile is not there.

    `Path.glob` raises FileNotFoundError for it on some versions of Python.
    """
    return [folder / name for name in glob.glob(pattern, root_dir=folder)]


def wait_until(condition: Callable[[], object], process: subprocess.Popen | None = None, seconds: float = 300) -> None:
    """Wait for what a running process does.  Long: a test fails here for a fault, never for a busy machine."""
    end = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"not within {seconds:.0f} s"
        time.sleep(0.02)


class Project:
    """A checkout: run commands in it, read and write its files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "GIT_"))},
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "VIRTUAL_ENV": str(BIN.parent),
            "DVC_NO_ANALYTICS": "1",
        }

    def run(self, *command: str, ok: bool = True, **variables: str) -> subprocess.CompletedProcess:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env={**self.environment, **variables},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert not ok or done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done

    def run_all(self, *commands: list[str], **variables: str) -> subprocess.CompletedProcess:
        """Commands of `selfdistill`, with this checkout's code, one after another in a process that loads it once."""
        root = next(place for place in (self.folder, *self.folder.parents) if (place / "src/selfdistill").is_dir())
        code = (
            "import json, sys\nfrom selfdistill.cli import main\n"
            "for command in json.loads(sys.argv[1]):\n    main(command) and sys.exit(' '.join(command))"
        )
        return self.run("python", "-c", code, json.dumps(commands), PYTHONPATH=str(root / "src"), **variables)

    def params(self, path: str = "params.yaml", **changes) -> None:
        """Change values of a params.yaml, keys with dots."""
        file = self.folder / path
        content = yaml.safe_load(file.read_text())
        for key, value in changes.items():
            *parents, last = key.split(".")
            block = content
            for parent in parents:
                block = block[parent]
            block[last] = value
        file.write_text(yaml.safe_dump(content, sort_keys=False))

    def params_from(self, file: Path, **changes) -> None:
        """Another params.yaml, changed."""
        (self.folder / "params.yaml").write_text(file.read_text())
        self.params(**changes)

    def commit(self, message: str) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", message)

    def fresh(self, *command: str) -> subprocess.CompletedProcess:
        """Run a command that takes nothing from what was computed before."""
        return self.run(*command, SELFDISTILL_FRESH="1")

    def changed(self) -> set[str]:
        """The stages of the tiny study that DVC calls changed."""
        return set(json.loads(self.run("dvc", "status", "--json", "dvc.yaml").stdout))

    def __truediv__(self, path: str) -> Path:
        return self.folder / path


def copy_of_sources(folder: Path) -> Project:
    """The files that Git knows or would take, without results, as a fresh repository."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    for name in filter(None, listed):
        made = name.startswith(("results/", "dvc.lock", ".github")) or fnmatch(name, "data/sets/*/dvc.lock")
        if made or not os.path.lexists(ROOT / name):
            continue
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target, follow_symlinks=False)
    project = Project(folder)
    project.run("git", "init", "--quiet", "--initial-branch=main")
    project.run("git", "config", "user.name", "Test")
    project.run("git", "config", "user.email", "test@example.invalid")
    return project


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """The folder of a name, which a function fills.

    The workers of a parallel session share it: the first to come makes it.  Not to be changed, then.
    """
    parallel = "PYTEST_XDIST_WORKER" in os.environ
    shared = tmp_path_factory.getbasetemp().parent if parallel else tmp_path_factory.mktemp("made")

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder, ready = shared / name, shared / f"{name}.ready"
        with FileLock(shared / f"{name}.lock"):
            if not ready.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of another worker, which failed
                folder.mkdir()
                make(folder)
                ready.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def tiny_study(made_once) -> Project:
    """A repository with a tiny study that `dvc repro` has run, committed.  Not to be changed."""

    def make(folder: Path) -> None:
        project = copy_of_sources(folder)
        project.params(**TINY)
        project.run("dvc", "repro", "--quiet")
        project.commit("the tiny study, run")

    return Project(made_once("tiny", make))


@pytest.fixture
def project(tiny_study, tmp_path) -> Project:
    """A copy of the tiny study's repository, to do with as one likes."""
    shutil.copytree(tiny_study.folder, tmp_path / "repo", symlinks=True)
    return Project(tmp_path / "repo")
