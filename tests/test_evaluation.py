"""Metrics against scikit-learn and a literal formulation; image files classified from any exit."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from safetensors.torch import save_file
from sklearn.metrics import accuracy_score, log_loss

from selfdistill.cli.cells import described
from selfdistill.errors import NonFiniteOutputsError, UserError
from selfdistill.evaluation.classification import average_probabilities, calibration_error, metrics
from selfdistill.evaluation.finite import finite
from selfdistill.evaluation.splits import open_test
from selfdistill.outside import OutsideError
from selfdistill.params import read_study
from selfdistill.stages.evaluate_seeds import move_whole, run_here
from selfdistill.stages.measure import predictions_here


def test_accuracy_and_nll_are_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    logits, labels = (
        3 * torch.randn(300, 7, generator=generator),
        torch.randint(7, (300,), generator=generator),
    )
    probabilities = logits.double().softmax(dim=1).numpy()
    ours = metrics(logits, labels)
    assert ours["accuracy"] == pytest.approx(accuracy_score(labels, probabilities.argmax(1)))
    assert ours["nll"] == pytest.approx(log_loss(labels, probabilities, labels=range(7)), rel=1e-9)


def test_calibration_error_is_the_literal_sum_over_bins_edges_included():
    confidence = torch.cat(
        [torch.linspace(0, 1, 16), torch.rand(500, generator=torch.Generator().manual_seed(0))]
    ).double()
    correct = (torch.rand(516, generator=torch.Generator().manual_seed(1)) < confidence).double()
    literal = 0.0
    for b in range(15):
        inside = [i for i, c in enumerate(confidence.tolist()) if b / 15 < c <= (b + 1) / 15 or (b == 0 and c == 0)]
        if inside:
            gap = np.mean([correct[i].item() for i in inside]) - np.mean([confidence[i].item() for i in inside])
            literal += len(inside) / 516 * abs(gap)
    assert calibration_error(confidence, correct) == pytest.approx(literal, abs=1e-12)
    assert calibration_error(torch.tensor([0.8, 0.8]), torch.tensor([1.0, 1.0])) == pytest.approx(0.2)


def test_a_class_is_told_by_logits_whose_probabilities_round_to_equals():
    logits = torch.zeros(5, 3).index_put_((torch.arange(5), torch.tensor([2])), torch.tensor(1e-20))
    assert metrics(logits, torch.full((5,), 2))["accuracy"] == 1
    assert metrics(logits, torch.full((5,), 0))["accuracy"] == 0


def test_certain_networks_average_to_finite_numbers():
    """e^-2000 is 0 in double precision: the logarithm of a mean of probabilities would be -inf."""
    logits = torch.tensor([[[0.0, 2000.0, -2000.0]], [[0.0, 2000.0, -2000.0]]])
    together = average_probabilities(logits)
    assert torch.isfinite(together).all()
    assert metrics(together, torch.tensor([2]))["nll"] == pytest.approx(4000)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(average_probabilities(logits).exp(), logits.softmax(dim=2).mean(dim=0))


@pytest.mark.parametrize(("images", "classes"), [(0, 3), (0, 1), (4, 1)])
def test_metrics_of_no_images_or_a_single_class_are_refused_in_a_line(images, classes):
    with pytest.raises(UserError, match=f"{images} images and {classes} classes .*; allowed: from 1, from 2$"):
        metrics(torch.zeros(images, classes), torch.zeros(images, dtype=torch.long))


def test_outputs_that_are_no_numbers_are_refused_with_their_place(tmp_path):
    outputs = torch.zeros(2, 5, 3)
    outputs[1, 3, 0], outputs[0, 4, 2] = torch.nan, torch.inf
    with pytest.raises(NonFiniteOutputsError, match=r"weights.safetensors: .* for 2 of the 5 test images"):
        finite(outputs, tmp_path / "weights.safetensors", "test")
    assert finite(outputs[:, :3], tmp_path, "test").shape == (2, 3, 3)


def test_an_empty_test_split_is_refused_with_its_folder(tmp_path):
    save_file(
        {"images": torch.zeros(0, 1, 8, 8).byte(), "labels": torch.zeros(0).long()}, tmp_path / "test.safetensors"
    )
    with pytest.raises(UserError, match=f"^{tmp_path}: 0 test images; allowed: at least 1"):
        open_test(tmp_path, "cpu")


EVALUATED = tuple(
    f"predictions/resnet10-slim/byot/{{}}{end}" for end in (".safetensors", ".validation.safetensors", ".json")
)


def test_no_seed_is_evaluated_twice_from_equal_inputs(project):
    """From DVC's cache, and, where it has nothing, from what a stage that did not come to its end left."""

    def evaluated(seed: int) -> list[bytes]:
        return [(project / "results" / path.format(seed)).read_bytes() for path in EVALUATED]

    def evaluate(*, fresh: bool = False, ok: bool = True) -> list[int]:
        """Evaluate both seeds from nothing; returns those that were not evaluated again."""
        for path in EVALUATED:
            shutil.rmtree((project / "results" / path).parent, ignore_errors=True)
        command = ("selfdistill", "evaluate", "--model", "resnet10-slim", "--variant", "byot")
        said = project.run(*command, ok=ok, **({"SELFDISTILL_FRESH": "1"} if fresh else {}))
        return [s for s in (0, 1) if f"byot-{s}: finished before, from equal inputs" in said.stdout + said.stderr]

    before = evaluated(0), evaluated(1)
    shutil.rmtree(project / ".work/finished", ignore_errors=True)
    assert evaluate() == [0, 1]
    assert (evaluated(0), evaluated(1)) == before
    assert evaluate(fresh=True) == []
    assert (evaluated(0), evaluated(1)) == before
    shutil.rmtree(project / ".work/finished")
    (project / "dvc.lock").unlink()
    weights = project / "results/runs/resnet10-slim/byot/0-1/1/weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-4])
    assert evaluate(ok=False) == []  # stops at the second seed
    weights.write_bytes(content)
    assert evaluate() == [0]
    (waiting,) = (project / ".work/finished").glob("evaluation-resnet10-slim-byot-0-*")
    (waiting / "predictions.safetensors").write_bytes(b"damaged")
    assert evaluate() == [1]
    assert (evaluated(0), evaluated(1)) == before
    with open(project / "data/prepared/digits/test/test.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x07")  # another image
    assert evaluate() == []
    assert not list((project / ".work/finished").glob("*.partial"))


def full_disk() -> None:
    """No file of this process may grow beyond 5 kB."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))


def test_a_full_disk_or_a_folder_that_cannot_be_written_leaves_the_evaluation_that_was_there(project):
    files = [project / "results" / path.format(seed) for path in EVALUATED for seed in (0, 1)]
    before = [path.read_bytes() for path in files]
    command = [sys.executable, "src/selfdistill", "evaluate", "--model", "resnet10-slim", "--variant", "byot"]
    environment = {**project.environment, "SELFDISTILL_FRESH": "1"}
    for broken in ("disk", "folder"):
        if broken == "folder":
            (project / "results/predictions").rename(project / "predictions")
            (project / "results/predictions").symlink_to("/sys")  # read-only for everyone, root included
        done = subprocess.run(
            command,
            cwd=project.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            preexec_fn=full_disk if broken == "disk" else None,
        )
        if broken == "folder":
            (project / "results/predictions").unlink()
            (project / "predictions").rename(project / "results/predictions")
        (line,) = done.stderr.splitlines()
        assert done.returncode == 1
        assert line.startswith("selfdistill evaluate: ")
        assert line.endswith("; make room or make it writable")
        assert [path.read_bytes() for path in files] == before
        assert not list(project.folder.rglob("*.partial"))


def test_an_evaluation_that_is_in_its_place_already_leaves_nothing_beside_it(tmp_path):
    """A stage that outlived its engine has put it there, a link to the same file."""
    staged, place = tmp_path / "staged", tmp_path / "results/0.json"
    for folder in (staged, place.parent):
        folder.mkdir()
    (staged / "record.json").write_text("{}")
    os.link(staged / "record.json", place)
    move_whole(staged, {"record.json": place})
    assert place.read_text() == "{}"
    assert list(place.parent.iterdir()) == [place]


def test_a_run_or_predictions_of_another_cell_or_damaged_are_refused_by_name(tiny_study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, cell = Path("results/runs/resnet10-slim/byot/0-1/0"), ("resnet10-slim", "byot", 0)
    for place in (run, Path("results/predictions")):
        shutil.copytree(tiny_study / place, place)
    study = read_study(tiny_study / "params.yaml")
    readers = (
        (run / "run.json", lambda: run_here(run, cell)),
        (study.prediction_file(*cell), lambda: predictions_here(study, cell, "cpu")),
    )
    for file, read in readers:
        read()
        whole = file.read_text()
        told = json.loads(whole)
        for damaged, words in (
            (json.dumps({**told, "seed": 1}), "'byot', 1], not of"),
            (json.dumps({**told, "seed": "x"}), "'byot', 'x'], not of"),
            (json.dumps({**told, "more": float("inf")}), "Infinity in place of a number"),
        ):
            file.write_text(damaged)
            with pytest.raises(OutsideError, match=f"^{file}: .*{words}.*; `dvc checkout` or `dvc repro`"):
                read()
        file.write_text(whole)
    file.write_text(json.dumps({**told, "evaluation": {"key": "", "files": []}}))
    with pytest.raises(OutsideError, match="not what evaluating writes"):
        read()


def test_a_data_set_without_a_usable_mean_and_deviation_is_refused_by_name(tiny_study, tmp_path):
    file = tmp_path / "dataset.json"
    told = json.loads((tiny_study / "data/prepared/digits/training/dataset.json").read_text())
    for damage, words in (
        ({}, None),
        ({"std": [float("nan")]}, "NaN in place of a number"),
        *(({"std": [std]}, "allowed: a number above 0 for each channel") for std in (0, -1, "x", None)),
        ({"std": [1, 1]}, "std: .1, 1. is not allowed"),
        ({"mean": "0.5"}, "mean: '0.5' is not allowed"),
    ):
        file.write_text(json.dumps({**told, **damage}))
        with pytest.raises(OutsideError, match=f"^{file}: .*{words}.*; prepare") if words else nullcontext():
            described(file)


def test_a_seed_added_to_a_block_is_the_only_one_evaluated(project):
    project.params(seeds=["0-2"])
    said = project.run("dvc", "repro", "evaluate@resnet10-slim-plain")
    evaluated = re.findall(r"evaluation-resnet10-slim-plain-(\d): finished before", said.stdout + said.stderr)
    assert evaluated == ["0", "1"]
    assert len(list((project / "results/predictions/resnet10-slim/plain").glob("?.json"))) == 3


@pytest.fixture(scope="module")
def digit(tiny_study, tmp_path_factory):
    """A test image as a PNG file, and its row in the predictions."""
    test = load_file(tiny_study / "data/prepared/digits/test/test.safetensors")
    path = tmp_path_factory.mktemp("images") / "digit.png"
    Image.fromarray(test["images"][3, 0]).save(path)
    return path


@pytest.mark.parametrize("exit_number", [1, 2, 3, 4])
def test_predict_gives_what_evaluation_recorded_from_every_exit(tiny_study, digit, exit_number):
    run = "results/runs/resnet10-slim/byot/0-1/1"
    done = tiny_study.run("selfdistill", "predict", run, str(digit), "--exit", str(exit_number), "--json")
    answer = json.loads(done.stdout)[0]
    recorded = load_file(tiny_study / "results/predictions/resnet10-slim/byot/1.safetensors")["last"][
        exit_number - 1, 3
    ]
    expected = np.exp(recorded) / np.exp(recorded).sum()
    np.testing.assert_allclose(list(answer["probabilities"].values()), expected, atol=1e-4)
    assert answer["class"] == str(expected.argmax())


def test_predict_takes_images_of_any_kind(tiny_study, tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (50, 40, 3), dtype=np.uint8)).save(tmp_path / "colour.jpg")
    Image.fromarray(rng.integers(0, 255, (9, 30, 4), dtype=np.uint8)).save(tmp_path / "transparent.png")
    done = tiny_study.run(
        "selfdistill",
        "predict",
        "results/runs/resnet10-slim/plain/0-1/0",
        str(tmp_path / "colour.jpg"),
        str(tmp_path / "transparent.png"),
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all(line.endswith("exit 1/1") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["results/runs/resnet10-slim/byot/0-1/0", "IMAGE", "--exit", "5"], "allowed: 1 to 4"),
        (["results/runs/resnet10-slim/byot/0-1/0", "IMAGE", "--exit", "0"], "allowed: 1 to 4"),
        (["results/runs/nothing", "IMAGE"], "no trained network"),
        (["results/runs/resnet10-slim/byot/0-1/0", "params.yaml"], "no image that can be read"),
        (["results/runs/resnet10-slim/byot/0-1/0", "nowhere.png"], "no image that can be read"),
    ],
)
def test_predict_refuses_in_one_line(tiny_study, digit, arguments, part):
    done = tiny_study.run("selfdistill", "predict", *[str(digit) if a == "IMAGE" else a for a in arguments], ok=False)
    assert done.returncode == 1
    assert part in done.stderr
    assert len(done.stderr.splitlines()) == 1
