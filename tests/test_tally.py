"""While a study runs, a line after each training says what is done, of how many, and how long the others take."""

import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import ClassVar

import pytest
from conftest import ROOT, Project
from made import train

from selfdistill import methods
from selfdistill.params import read_study
from selfdistill.stages import loggers, tally
from selfdistill.stages.finished import locked_outputs
from selfdistill.stages.tally import Training, in_words, seconds_left

LINE = re.compile(r"^train (\d+) of (\d+)(?:, (.+) left)?$", re.MULTILINE)


def test_each_training_tells_and_a_repetition_is_silent(project):
    """Under DVC; the plain and byot cells are finished, in place or in the cache alone."""
    shutil.rmtree(project / "results/runs/resnet10-slim/byot")
    project.params(**{"hyper.drkd.alpha": 0.5})
    said = project.run("dvc", "repro", "train@resnet10-slim-byot-0-1", "distill@resnet10-slim-drkd-0-1").stderr
    assert LINE.findall(said) == [("5", "6", "less than a minute"), ("6", "6", "")]
    again = project.run("dvc", "repro", "--force", "--single-item", "distill@resnet10-slim-drkd-0-1")
    assert "not trained again" in again.stdout
    assert not LINE.search(again.stderr)


def test_every_logger_is_told_of_every_epoch_and_that_it_is_over(monkeypatch):
    class Note(loggers.Logger):
        told: ClassVar[list] = []

        def epoch_over(self, row, epochs):
            self.told.append((self.run, row["epoch"], epochs))

        def close(self):
            self.told.append("over")

    monkeypatch.setattr(loggers, "LOGGERS", [*loggers.LOGGERS, Note])
    with loggers.loggers("net/plain/0", rank=0) as progress:
        history = train("plain", progress=progress).history
    assert Note.told == [*(("net/plain/0", row["epoch"], 3) for row in history), "over"]
    with loggers.loggers("net/plain/0", rank=1) as progress:
        train("plain", progress=progress)
    assert len(Note.told) == 4, "the first process alone is told"


def test_under_snakemake_the_line_leaves_the_log(project):
    project.params(**{"hyper.drkd.alpha": 0.5})
    done = project.run("snakemake", "--cores", "2", "distill_resnet10_slim_drkd_0_1")
    assert [numbers[:2] for numbers in LINE.findall(done.stderr)] == [("5", "6"), ("6", "6")]
    log = (project / ".work/logs/distill_resnet10_slim_drkd_0_1.log").read_text()
    assert len(LINE.findall(log)) == 2


def test_what_is_finished_is_found_in_its_place_waiting_and_in_the_cache(project, monkeypatch):
    monkeypatch.chdir(project.folder)
    study, outputs = read_study(), locked_outputs(Path("dvc.lock"))
    cells = study.cells()
    assert len(cells) == 6
    assert tally.open_cells(study, {}) == []
    waiting = {cell: next(Path(".work/finished").glob(f"{'-'.join(map(str, cell))}-*")) for cell in cells}
    shutil.rmtree("results/runs")
    assert tally.open_cells(study, {}) == []
    for path in waiting.values():
        shutil.rmtree(path)
    assert tally.open_cells(study, {}) == cells
    assert tally.open_cells(study, outputs) == []
    began = time.process_time()
    tally.open_cells(study, outputs)
    assert time.process_time() - began < 0.05


@pytest.mark.parametrize(
    ("key", "value"), [("hyper", {"alpha": 0.5}), ("code_sha256", "0" * 64), ("recipe", {"epochs": 3})]
)
def test_a_run_of_other_parameters_or_code_is_not_finished(project, monkeypatch, key, value):
    monkeypatch.chdir(project.folder)
    plan = Path("results/plan/training/resnet10-slim/drkd.json")
    content = json.loads(plan.read_text())
    plan.write_text(json.dumps({**content, key: {**content[key], **value} if isinstance(value, dict) else value}))
    study, outputs = read_study(), locked_outputs(Path("dvc.lock"))
    assert tally.open_cells(study, outputs) == [("resnet10-slim", "drkd", 0), ("resnet10-slim", "drkd", 1)]


def test_a_run_of_every_method_fits_its_plan(tmp_path):
    """A run says the values of the method's attributes, the plan those of params.yaml."""
    file = tmp_path / "run.json"
    for name in methods.names():
        values = {key: spec["default"] for key, spec in methods.about(name)["hyper"].items()}
        rule = methods.load(name)(**values)
        file.write_text(json.dumps({"seed": 0, "hyper": {key: getattr(rule, key) for key in values}}))
        plan = json.loads(json.dumps({"hyper": values}))
        assert tally.fits(file, plan, 0), name
        assert not tally.fits(file, plan, 1)
    for damaged in ("", "null", "[]", "{}", '{"seed": 0}'):
        file.write_text(damaged)
        assert not tally.fits(file, {"protocol": 2}, 0)


def test_the_estimate_counts_what_overlaps_and_what_lies_between(monkeypatch):
    monkeypatch.chdir(ROOT)
    study = read_study()
    model = study.models[0]
    ten = [(model, "plain", seed) for seed in range(10)]
    one = Training(model, "plain", 0, 20)
    assert seconds_left(study, ten, [one]) == pytest.approx(200)
    assert seconds_left(study, ten, [one, Training(model, "plain", 0, 20)]) == pytest.approx(100)  # side by side
    assert seconds_left(study, ten, [one, Training(model, "plain", 40, 60)]) == pytest.approx(300)  # a pause of 20
    # one that was not trained yet: by its cost
    cost = methods.about("byot")["cost"]
    assert seconds_left(study, [(model, "byot", 0)], [one]) == pytest.approx(20 * cost)
    assert seconds_left(study, [(model, "byot", 0)], [one, Training(model, "byot", 20, 90)]) == pytest.approx(70)


def test_a_long_pause_begins_a_new_session(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text().replace("root: . ", f"root: {ROOT} ", 1))
    study = read_study().model_copy(update={"root": str(tmp_path)})
    model = study.models[0]
    first, second, third = (Training(model, "plain", began, began + 10) for began in (0, 20, 30 + tally.BREAK + 1))
    assert tally.noted(study, first) == [first]
    (file,) = (tmp_path / ".work/progress").iterdir()
    with open(file, "a") as stream:
        stream.write('["another", "plain", 0, 1]\n["cut by a ki\n')
    assert tally.noted(study, second) == [first, second]
    assert tally.noted(study, third) == [third]
    monkeypatch.setattr(os, "getpgrp", lambda: 1)  # another command
    assert tally.noted(study, first) == [first]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "less than a minute"),
        (61, "about 1 minute"),
        (170, "about 3 minutes"),
        (7300, "about 2 hours"),
        (86400 * 1.9, "about 46 hours"),
        (86400 * 3, "about 3 days"),
    ],
)
def test_time_in_words(seconds, words):
    assert in_words(seconds) == words


def test_no_training_fails_for_the_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text().replace("root: . ", f"root: {ROOT} ", 1))
    monkeypatch.chdir(tmp_path)
    study = read_study().model_copy(update={"root": str(tmp_path)})
    (tmp_path / ".work").write_text("a file where a folder should be")
    tally.tell(study, study.models[0], "plain", time.time(), {})
    assert not LINE.search(capsys.readouterr().err)


def test_the_installation_says_how_large_it_is_first(tmp_path):
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    said = Project(tmp_path).run("make", "--dry-run", "install").stdout
    assert 0 <= said.find("2 GB on disk") < said.find("pip install")
