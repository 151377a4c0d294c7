"""A larger teacher: declared, trained once, learnt from, shown, refused where it is wrong."""

import hashlib
import json

import pytest
import yaml

from selfdistill.params import read_study
from selfdistill.schema import ConfigError

SMALL, LARGE = "resnet10-slim", "resnet20"
TAUGHT = {
    "models": [SMALL],
    "methods": ["plain"],
    "students": ["drkd"],
    "teacher_models": [LARGE],
    "taught": ["kd"],
    "hyper": {"plain": {}, "drkd": {}, "kd": {}},
    "seeds": ["0-1"],
}


def test_a_larger_network_teaches_trained_or_given(project):
    """The students' twin stays their teacher, the larger one is trained once and is a row of its own."""
    before = yaml.safe_load((project / "dvc.lock").read_text())["stages"]["train@resnet10-slim-plain-0-1"]
    project.params(**TAUGHT)
    project.run("dvc", "repro", "--quiet", "check")
    listed = project.run("dvc", "stage", "list", "--name-only", "dvc.yaml").stdout.split()
    assert {f"train_teachers@{LARGE}-plain-0-1", f"distill_from@{SMALL}-kd-0-1-{LARGE}"} < set(listed)
    assert "train@resnet10-slim-plain-0-1" not in project.changed()
    project.run("workflow/run", "prune")
    project.run("dvc", "repro", "--quiet")
    assert project.changed() == set()
    assert yaml.safe_load((project / "dvc.lock").read_text())["stages"]["train@resnet10-slim-plain-0-1"] == before
    runs = {
        (m, k): json.loads((project / f"results/runs/{m}/{k}/0-1/0/run.json").read_text())
        for m, k in ((SMALL, "plain"), (SMALL, "drkd"), (SMALL, "kd"), (LARGE, "plain"))
    }
    assert {cell: (run["teacher"], run["teacher_model"]) for cell, run in runs.items()} == {
        (SMALL, "plain"): (None, None),
        (SMALL, "drkd"): ("plain", None),
        (SMALL, "kd"): ("plain", LARGE),
        (LARGE, "plain"): (None, None),
    }
    flops = runs[LARGE, "plain"]["cost"]["training_flops"]
    assert runs[SMALL, "kd"]["cost"]["teacher_training_flops"] == flops
    table = (project / "results/tables/accuracy.md").read_text()
    assert table.count(f"| {LARGE}") == 1
    assert table.count(f"| {SMALL}") == 3
    assert (project / "results/index.html").is_file()
    # its weights, given as a file, teach without being trained
    content = (project / f"results/runs/{LARGE}/plain/0-1/0/weights.safetensors").read_bytes()
    (project / "teacher.safetensors").write_bytes(content)
    given = {"file": "teacher.safetensors", "sha256": hashlib.sha256(content).hexdigest(), "use": "teacher"}
    project.params(weights={LARGE: given})
    project.run("dvc", "repro", "--quiet", "measure")
    for seed in (0, 1):
        run = json.loads((project / f"results/runs/{LARGE}/plain/0-1/{seed}/run.json").read_text())
        assert run["weights_sha256"] == given["sha256"]
        assert run["cost"]["training_flops"] == 0
        taught = json.loads((project / f"results/runs/{SMALL}/kd/0-1/{seed}/run.json").read_text())
        assert taught["teacher_sha256"] == given["sha256"]
    # carried away and back, the record of who taught is checked
    project.run("selfdistill", "records", "export", "runs.jsonl.gz")
    said = project.run("selfdistill", "records", "import", "runs.jsonl.gz").stdout
    assert said.count("imported: ") == 8
    assert "kept" not in said
    project.params(teacher_models=["resnet32"], weights={})
    done = project.run("selfdistill", "records", "import", "runs.jsonl.gz", ok=False)
    assert f'teacher_model: "{LARGE}" is not allowed; allowed: the study\'s "resnet32"' in done.stderr
    assert f'record.model: "{LARGE}" is not allowed' in done.stderr
    # without it the teacher and what it taught go
    project.params(teacher_models=[], taught=[])
    removed = project.run("workflow/run", "prune").stdout
    assert f"runs/{LARGE}/plain/0-1" in removed
    assert f"runs/{SMALL}/kd/0-1" in removed
    assert f"runs/{SMALL}/drkd/0-1" not in removed


def test_a_teacher_that_is_not_there_is_named(project):
    project.params(**TAUGHT)
    command = ["selfdistill", "train", "--model", SMALL, "--variant", "kd", "--seeds", "0-1"]
    done = project.run(*command, ok=False)
    assert done.returncode == 1
    assert f"{LARGE}/plain/0-1/0/run.json is missing" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_teachers_network_has_no_other_method(project):
    project.params(**TAUGHT)
    done = project.run("selfdistill", "train", "--model", LARGE, "--variant", "kd", "--seeds", "0-1", ok=False)
    assert "--variant kd is not in params.yaml; there are plain" in done.stderr


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"taught": []}, "taught: [] is not allowed with teacher_models"),
        ({"teacher_models": []}, "teacher_models: [] is not allowed with methods under taught"),
        ({"teacher_models": [LARGE, "resnet32"]}, "allowed: at most 1 entry"),
        ({"teacher_models": ["resnet21"]}, "teacher_models[0]: 'resnet21' is not a network; did you mean"),
        ({"teacher_models": [SMALL]}, f"teacher_models: '{SMALL}' is under models too"),
        ({"taught": ["drkd"]}, "taught: 'drkd' is under students too; allowed: one of the two"),
        ({"taught": ["plain"]}, "taught[0]: 'plain' needs no trained teacher; list it under methods"),
        ({"taught": ["kd", "fitnet"]}, "hyper.fitnet: missing"),
        ({"taught": ["kdd"]}, "taught[0]: 'kdd' is not a method; did you mean 'kd'"),
        ({"control": "fitnet"}, "control: 'fitnet' is not in this study; allowed: plain, drkd, kd"),
    ],
)
def test_wrong_combinations_are_told_in_a_line_each(changes, fault, tmp_path):
    from test_config import SOUND

    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump({**SOUND, **TAUGHT, **changes}))
    with pytest.raises(ConfigError) as error:
        read_study(path)
    assert [line for line in str(error.value).splitlines() if fault in line], error.value


def test_the_keys_are_asked_for_by_name(tmp_path):
    """The pipeline's file names them, and DVC's own words for a missing one say less."""
    from test_config import SOUND

    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in SOUND.items() if k not in ("teacher_models", "taught")}))
    with pytest.raises(ConfigError) as error:
        read_study(path)
    assert "teacher_models: missing" in str(error.value)
    assert "taught: missing" in str(error.value)
