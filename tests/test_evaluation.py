"""Metrics against scikit-learn and a literal formulation; image files classified from any exit."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from sklearn.metrics import accuracy_score, log_loss

from selfdistill.errors import NonFiniteOutputsError
from selfdistill.evaluation.classification import average_probabilities, calibration_error, metrics
from selfdistill.stages.evaluate import finite


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


def test_certain_networks_average_to_finite_numbers():
    """e^-2000 is 0 in double precision: the logarithm of a mean of probabilities would be -inf."""
    logits = torch.tensor([[[0.0, 2000.0, -2000.0]], [[0.0, 2000.0, -2000.0]]])
    together = average_probabilities(logits)
    assert torch.isfinite(together).all()
    assert metrics(together, torch.tensor([2]))["nll"] == pytest.approx(4000)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(average_probabilities(logits).exp(), logits.softmax(dim=2).mean(dim=0))


def test_outputs_that_are_no_numbers_are_refused_with_their_place(tmp_path):
    outputs = torch.zeros(2, 5, 3)
    outputs[1, 3, 0], outputs[0, 4, 2] = torch.nan, torch.inf
    with pytest.raises(NonFiniteOutputsError, match=r"weights.safetensors: .* for 2 of 5 images of the test split"):
        finite(outputs, tmp_path / "weights.safetensors", "test")
    assert finite(outputs[:, :3], tmp_path, "test").shape == (2, 3, 3)


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
        (["results/runs/nothing", "IMAGE"], "no trained run"),
        (["results/runs/resnet10-slim/byot/0-1/0", "params.yaml"], "no image that can be read"),
        (["results/runs/resnet10-slim/byot/0-1/0", "nowhere.png"], "no image that can be read"),
    ],
)
def test_predict_refuses_in_one_line(tiny_study, digit, arguments, part):
    done = tiny_study.run("selfdistill", "predict", *[str(digit) if a == "IMAGE" else a for a in arguments], ok=False)
    assert done.returncode == 1
    assert part in done.stderr
    assert len(done.stderr.splitlines()) == 1
