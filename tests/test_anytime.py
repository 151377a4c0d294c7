"""Images leave at the first exit that is sure of them: thresholds, what it costs, and what really runs."""

import json
import math
import re
from itertools import pairwise

import pytest
import torch
from made_run import made_run, seen
from PIL import Image
from sklearn.metrics import accuracy_score

from selfdistill import analyses
from selfdistill.cli import main
from selfdistill.evaluation import anytime, images
from selfdistill.evaluation.inputs import Stored
from selfdistill.models.trained import build, load_network
from selfdistill.training.cost import counted_flops, inference_macs

MACS = [10, 25, 32, 60]
TIMM = {"name": "timm:test_resnet", "channels": 3, "classes": 4, "size": [32, 32], "exits": True}
VIT = {**TIMM, "name": "timm:test_vit"}
SLIM = {"name": "resnet10-slim", "channels": 1, "classes": 4, "size": [8, 8], "exits": True}


def certainties(images: int, seed: int, digits: int = 9) -> torch.Tensor:
    """Of four exits, the deeper the surer; with few digits many are equal."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(4, images, generator=generator, dtype=torch.float64) ** torch.tensor(
        [[2.0], [1.0], [0.7], [0.5]]
    )
    return values.round(decimals=digits)


def literal(sure: torch.Tensor, thresholds: list[float]) -> list[int]:
    """Written out: image by image, exit by exit."""
    found = []
    for image in range(sure.shape[1]):
        for k in range(len(sure)):
            if k == len(sure) - 1 or sure[k, image] >= thresholds[k]:
                found.append(k)
                break
    return found


def test_an_image_leaves_at_the_first_exit_that_reaches_its_threshold():
    sure = certainties(50, seed=0)
    for thresholds in ([0.5, 0.9, 0.2], [0.0, 0.0, 0.0], [math.inf] * 3, [sure[0, 7].item(), math.inf, 0.4]):
        taken = anytime.exits_taken(sure, thresholds)
        assert taken.tolist() == literal(sure, thresholds)
        assert anytime.mean_macs(taken, MACS) == pytest.approx(sum(MACS[k] for k in literal(sure, thresholds)) / 50)


def test_how_sure_an_exit_is_is_its_largest_probability():
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    told = [[max(math.exp(v) for v in row) / sum(math.exp(v) for v in row) for row in z] for z in logits.tolist()]
    torch.testing.assert_close(anytime.confidence(logits), torch.tensor(told, dtype=torch.float64))


@pytest.mark.parametrize("budget", [10, 10.5, 17, 31.75, 45, 59, 60, 99])
def test_shares_fall_or_grow_by_one_factor_and_cost_the_budget(budget):
    shares = anytime.shares_of_budget(MACS, budget)
    assert sum(shares) == pytest.approx(1)
    factors = [later / earlier for earlier, later in pairwise(shares)]
    assert factors == pytest.approx([factors[0]] * 3, rel=1e-6)
    cost = sum(share * macs for share, macs in zip(shares, MACS, strict=True))
    assert cost == pytest.approx(min(budget, MACS[-1]), abs=1e-6)
    assert budget != 31.75 or factors[0] == pytest.approx(1)  # the mean cost of equal shares


@pytest.mark.parametrize(("digits", "images"), [(9, 101), (1, 101), (1, 7), (0, 40), (9, 1)])
def test_a_budget_holds_on_the_images_that_its_thresholds_are_chosen_on(digits, images):
    for seed in range(3):
        sure = certainties(images, seed, digits)
        for budget in (10, 12, 20, 31.75, 45, 59.9, 60, 1000):
            each = anytime.exits_taken(sure, anytime.budget_thresholds(sure, MACS, budget))
            common = anytime.exits_taken(sure, [anytime.budget_threshold(sure, MACS, budget)] * 3)
            for taken in (each, common):
                assert anytime.mean_macs(taken, MACS) <= budget + 1e-9
    if digits == 9 and images > 100:  # and is used, where no images are equally sure
        each = anytime.exits_taken(sure, anytime.budget_thresholds(sure, MACS, 31.75))
        assert anytime.mean_macs(each, MACS) > 31


def test_the_common_threshold_is_the_largest_that_keeps_the_budget():
    for seed, budget in ((0, 12), (1, 30), (2, 55)):
        sure = certainties(40, seed)
        kept = [
            threshold
            for threshold in [*sure[:-1].flatten().tolist(), math.inf]
            if anytime.mean_macs(anytime.exits_taken(sure, [threshold] * 3), MACS) <= budget
        ]
        assert anytime.budget_threshold(sure, MACS, budget) == max(kept)


def test_a_budget_below_the_first_exit_is_refused():
    for choose in (anytime.budget_threshold, anytime.budget_thresholds):
        with pytest.raises(ValueError, match="a budget of 9 multiply-adds is not allowed; allowed: from 10"):
            choose(certainties(5, 0), MACS, 9)


def test_without_loss_no_fewer_images_are_right_than_at_the_deepest_exit():
    sure = certainties(200, seed=3)
    right = torch.rand(4, 200, generator=torch.Generator().manual_seed(4)) < torch.tensor([[0.6], [0.7], [0.8], [0.9]])
    right |= sure > 0.8  # who is sure is right
    threshold = anytime.lossless_threshold(sure, right)

    def correct(value: float) -> int:
        return sum(bool(right[k, i]) for i, k in enumerate(literal(sure, [value] * 3)))

    assert 0 < threshold < math.inf
    assert correct(threshold) >= int(right[-1].sum())
    smaller = [value for value in anytime.spread(sure[:-1].flatten(), anytime.CANDIDATES) if value < threshold]
    assert all(correct(value) < int(right[-1].sum()) for value in smaller)
    assert anytime.lossless_threshold(sure, right & torch.tensor([[False]] * 3 + [[True]])) == math.inf


@pytest.mark.parametrize("form", [SLIM, TIMM, VIT], ids=lambda form: form["name"])
@torch.no_grad()
def test_an_image_that_leaves_early_runs_what_it_needs_and_no_more(form):
    """Its logits are those of the whole network, and the operations that ran are those that are told."""
    network = build(form, seed=0).eval()
    image = torch.randn(1, *network.input_shape, generator=torch.Generator().manual_seed(0))
    wanted, macs = network(image).logits, anytime.leaving_macs(network)
    upto, together = inference_macs(network, network.input_shape)
    assert (macs[0], macs[-1]) == (upto[0], together)
    assert macs == sorted(macs)
    for k in range(network.exit_count):
        thresholds = [math.inf] * k + [0.0] * (network.exit_count - 1 - k)
        with counted_flops(network) as flops:
            places, logits = anytime.leave_early(network, image, thresholds)
        assert places.tolist() == [k]
        torch.testing.assert_close(logits, wanted[k])
        assert flops.total == 2 * macs[k]
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("form", [SLIM, TIMM, VIT], ids=lambda form: form["name"])
@torch.no_grad()
def test_images_of_a_batch_leave_one_by_one(form):
    """Each where it would leave alone, with its own logits, and with the operations of those that are left."""
    network = build(form, seed=0).eval()
    images = torch.randn(12, *network.input_shape, generator=torch.Generator().manual_seed(0))
    logits, macs = torch.stack(network(images).logits), anytime.leaving_macs(network)
    sure = anytime.confidence(logits)
    thresholds = [sure[k].quantile(0.7).item() for k in range(network.exit_count - 1)]
    wanted = anytime.exits_taken(sure, thresholds)
    with counted_flops(network) as flops:
        taken, found = anytime.leave_early(network, images, thresholds)
    assert taken.tolist() == wanted.tolist()
    assert len(set(taken.tolist())) > 2
    torch.testing.assert_close(found, logits[wanted, torch.arange(12)])
    assert flops.total == 2 * sum(macs[k] for k in taken)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return made_run(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def inputs(run):
    return Stored(run.parents[5] / "results/predictions/resnet10-slim/byot/0.json").of("last")


def test_the_analysis_chooses_on_validation_and_tells_of_the_test_images(inputs):
    rows = {(row["rule"], row["at"]): row for row in analyses.function("anytime")(inputs)}
    assert list(analyses.load("anytime").contradictions(inputs.run, list(rows.values()))) == []
    macs = anytime.leaving_macs(build(inputs.run["network"], seed=0))
    known, sure = (anytime.confidence(logits) for logits in (inputs.validation[0], inputs.logits))
    for at, share in (("10 %", 0.1), ("75 %", 0.75)):
        budget = macs[0] + share * (macs[-1] - macs[0])
        thresholds = anytime.budget_thresholds(known, macs, budget)
        taken = literal(sure, thresholds)
        told = [inputs.logits[k, i].argmax() for i, k in enumerate(taken)]
        row = rows["a threshold an exit", at]
        assert row["accuracy"] == pytest.approx(accuracy_score(inputs.labels, told), abs=1e-12)
        assert row["million_macs"] == pytest.approx(sum(macs[k] for k in taken) / len(taken) / 1e6)
        assert row["budget"] == pytest.approx(budget / 1e6)
    assert rows["one threshold", "no loss"]["million_macs"] < rows["a fixed exit", "4/4"]["million_macs"]
    assert rows["a fixed exit", "2/4"]["million_macs"] == inputs.run["cost"]["inference_macs"][1] / 1e6
    assert list(analyses.load("anytime").contradictions(inputs.run, list(rows.values())[1:]))


def pictures(folder, count: int = 24) -> None:
    for i, image in enumerate(seen(SLIM, count, seed=5)[0]):
        Image.fromarray(image[0].numpy()).save(folder / f"{i:02}.png")


def predicted(capsys, *arguments) -> tuple[int, str, str]:
    code = main(["predict", *map(str, arguments)])
    return code, *capsys.readouterr()


def test_predict_stops_each_image_at_the_first_exit_that_is_sure(run, tmp_path, capsys):
    pictures(tmp_path)
    code, out, err = predicted(capsys, run, tmp_path, "--confidence", "0.8", "--json")
    answers = json.loads(out)
    network, _ = load_network(run)
    macs = anytime.leaving_macs(network)
    each = {}
    for k in range(1, 5):
        each[k] = json.loads(predicted(capsys, run, tmp_path, "--exit", k, "--json")[1])
    assert len({answer["exit"] for answer in answers}) > 1
    for i, answer in enumerate(answers):
        first = next(k for k in range(1, 5) if k == 4 or each[k][i]["probability"] >= 0.8)
        assert answer["exit"] == first
        assert answer["class"] == each[first][i]["class"]
        assert answer["probability"] == pytest.approx(each[first][i]["probability"], abs=1e-6)
        assert answer["million_macs"] == macs[first - 1] / 1e6
    mean = sum(answer["million_macs"] for answer in answers) / 24
    assert (code, err) == (0, f"selfdistill predict: {mean:.4g} million multiply-adds an image on average, 24 images\n")
    assert "exit 1/4" in predicted(capsys, run, tmp_path / "00.png", "--confidence", "1e-9")[1]


def test_an_exported_folder_predicts_as_its_run_does(run, tmp_path, capsys):
    pictures(tmp_path, 6)
    assert main(["export", str(run), str(tmp_path / "away")]) == 0
    capsys.readouterr()
    for options in (["--exit", "2"], ["--confidence", "0.9"], ["--json"]):
        one, other = (predicted(capsys, place, tmp_path / "00.png", *options) for place in (run, tmp_path / "away"))
        assert one == other
        assert one[0] == 0
    code, _, err = predicted(capsys, tmp_path / "away", tmp_path / "00.png", "--budget", "1")
    assert (code, err.count("\n")) == (1, 1)
    assert "away: was exported, without predictions of validation images" in err


def test_the_smallest_budget_that_a_message_names_is_allowed(run, tmp_path, monkeypatch, capsys):
    pictures(tmp_path, 1)
    for first in (179_030_016, 131_072_001, 4_100_900_300):  # some are no millions that a float holds
        monkeypatch.setattr(images, "leaving_macs", lambda network, m=first: [m, 2 * m, 3 * m, 4 * m])
        err = predicted(capsys, run, tmp_path / "00.png", "--budget", f"{(first - 1) / 1e6!r}")[2]
        given, least = re.fullmatch(
            r".*--budget (\S+) is not .*: from (\S+), what the first exit costs\n", err
        ).groups()
        assert (float(given), float(least)) == ((first - 1) / 1e6, first / 1e6)
        code, out, _ = predicted(capsys, run, tmp_path / "00.png", "--budget", least)
        assert (code, out.count("exit 1/4")) == (0, 1)


def test_predict_keeps_a_budget_by_the_stored_validation_images(run, inputs, tmp_path, capsys):
    pictures(tmp_path)
    macs = anytime.leaving_macs(load_network(run)[0])
    thresholds = anytime.budget_thresholds(anytime.confidence(inputs.validation[0]), macs, 0.6e6)
    answers = json.loads(predicted(capsys, run, tmp_path, "--budget", "0.6", "--json")[1])
    assert len({answer["exit"] for answer in answers}) > 1
    for answer in answers:
        assert answer["exit"] == 4 or answer["probability"] >= thresholds[answer["exit"] - 1] - 1e-6


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--confidence", "0"], "--confidence 0 is not allowed; allowed: a probability, above 0, at most 1"),
        (["--confidence", "1.5"], "--confidence 1.5 is not allowed"),
        (["--confidence", "nan"], "--confidence nan is not allowed"),
        (["--budget", "0.4"], "--budget 0.4 is not allowed; allowed: from 0.41088, what the first exit costs"),
        (["--budget", "nan"], "--budget nan is not allowed"),
        (["--budget", "inf"], "--budget inf is not allowed"),
        (["--budget", "1", "--confidence", "0.9"], "--exit, --confidence and --budget: allowed: one of them"),
        (["--exit", "1", "--confidence", "0.9"], "--exit, --confidence and --budget: allowed: one of them"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_in_a_line(run, tmp_path, capsys, options, said):
    pictures(tmp_path, 1)
    code, out, err = predicted(capsys, run, tmp_path / "00.png", *options)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert f"selfdistill predict: {said}" in err


def test_a_budget_without_predictions_of_these_weights_is_refused_in_a_line(tmp_path, capsys):
    run = made_run(tmp_path, steps=0)
    pictures(tmp_path, 1)
    record = tmp_path / "results/predictions/resnet10-slim/byot/0.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "weights_sha256": "0" * 64}))
    code, _, err = predicted(capsys, run, tmp_path / "00.png", "--budget", "1")
    assert (code, err.count("\n")) == (1, 1)
    assert "0.json: predictions of other weights than those in" in err
    record.unlink()
    code, _, err = predicted(capsys, run, tmp_path / "00.png", "--budget", "1")
    assert (code, err.count("\n")) == (1, 1)
    assert f"{run}: no stored predictions of this run; `dvc checkout` or `dvc repro` brings them" in err
