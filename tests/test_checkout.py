"""What stands in the way of a study is said before any work, and DVC sees the data sets that are used."""

import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, copy_of_sources
from dvc.repo import Repo

from selfdistill.cli import main
from selfdistill.params import read_study
from selfdistill.showing import show
from selfdistill.stages.finished import cache_of

CELL = ["train", "--model", "resnet10-slim", "--variant", "plain", "--seeds", "0-9"]
CONFLICT = '{\n<<<<<<< HEAD\n "a": 1\n=======\n "a": 2\n>>>>>>> other\n}\n'


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A tree with the default study, as the working folder; the code is this checkout's."""
    top = tmp_path / "top"
    for name in ("params.yaml", "data/params.yaml", "data/sets/digits/params.yaml", "data/sets/digits/dvc.yaml"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, top / name)
    (top / "src").symlink_to(ROOT / "src")
    (top / ".git").mkdir()
    monkeypatch.chdir(top)
    return top


def test_a_tree_without_git_is_told_what_makes_it_one(here, capsys):
    (here / ".git").rmdir()
    assert main(["check"]) == 2
    assert capsys.readouterr().err == (
        f"{here}: not a Git repository, and DVC needs one; make it one: git init && git add --all\n"
    )
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, here)
    environment = {"PATH": "/usr/bin:/bin", "GIT_CEILING_DIRECTORIES": str(here.parent)}
    done = subprocess.run(["make", "repro"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == "not a Git repository, and DVC needs one; make it one: git init && git add --all\n"
    assert not (here / ".venv").exists()


@pytest.mark.parametrize(
    "place", ["results", "results/runs", "results/records/measured", "data/prepared", "data/raw/digits"]
)
def test_outputs_behind_a_link_are_refused_before_the_work(place, here, capsys):
    large = here.parent / "large"
    large.mkdir()
    (here / place).parent.mkdir(parents=True, exist_ok=True)
    (here / place).symlink_to(large)
    trains = [(CELL, 1)] if place.startswith("results") else []  # of data a training reads alone
    for command, code in ((["check"], 2), (["check", "--write"], 2), *trains):
        assert main(command) == code
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{place}: a link to {large}, " in line
        assert "dvc cache dir --local FOLDER && dvc config --local cache.type symlink" in line
    assert not any(large.iterdir())
    (here / place).unlink()
    (here / "inside").mkdir()
    (here / place).symlink_to(here / "inside")
    assert main(["check"]) == 0


@pytest.mark.parametrize(
    "place",
    [
        "dvc.lock",
        "data/sets/digits/dvc.lock",
        "results/hosts/resnet10-slim/plain/0.json",
        "results/records/imported/resnet10-slim/plain/0.json",
        "params.yaml",
        "data/params.yaml",
    ],
)
def test_a_merge_in_progress_is_told_with_file_and_line(place, here, capsys):
    (here / place).parent.mkdir(parents=True, exist_ok=True)
    (here / place).write_text(CONFLICT)
    assert main(["check"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{place}: line 2: the mark of a merge; " in line
    assert (here / place).read_text() == CONFLICT


def test_a_data_set_that_dvc_has_not_seen_is_shown_and_said(here, capsys):
    text = (here / "params.yaml").read_text().replace("dataset: digits", "dataset: fashion-mnist")
    (here / "params.yaml").write_text(text.replace("validation_images: 400", "validation_images: 5000"))
    assert main(["check", "--write"]) == 2
    assert capsys.readouterr().err == "params.yaml: fashion-mnist: shown to DVC now; give the same command again\n"
    assert not (here / "results").exists()
    assert main(["check", "--write"]) == 0
    (here / "data/sets/fashion-mnist/params.yaml").write_text("name: fashion-mnist\nreader: digits\n")
    assert main(["check", "--write"]) == 2  # the catalogue's reader is another one
    assert main(["check", "--write"]) == 0


def test_dvc_sees_the_data_sets_that_are_used(tmp_path):
    project = copy_of_sources(tmp_path / "top")

    def seen() -> set[str]:
        with Repo(str(project.folder)) as repo:
            return {Path(out.fs_path).relative_to(project.folder).as_posix() for out in repo.index.outs}

    def of(name: str) -> set[str]:
        return {f"data/raw/{name}", *(f"data/prepared/{name}/{part}" for part in ("training", "test", "report"))}

    def data() -> set[str]:
        return {path for path in seen() if path.startswith("data/")}

    assert data() == of("digits")
    folder = project / "studies/drkd-cifar10"
    study = read_study(folder / "params.yaml")
    show(folder, study)
    assert data() == of("digits") | of("cifar10") | set().union(*(of(name) for name in study.data_sets))
    assert any(path.startswith("studies/drkd-cifar10/results/runs/") for path in seen())


def test_a_cache_elsewhere_is_found(tmp_path):
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    with Repo.init(str(tmp_path)) as repo:
        assert cache_of(tmp_path) == Path(repo.cache.local.path)
        with repo.config.edit("local") as config:
            config["cache"]["dir"] = str(tmp_path / "large disk" / "100%")
            config["cache"]["type"] = ["symlink"]
    with Repo(str(tmp_path)) as repo:
        assert cache_of(tmp_path) == Path(repo.cache.local.path) == tmp_path / "large disk/100%/files/md5"
