"""Scores of probabilities: against scikit-learn, SciPy and literal formulations, and at the ends of what can happen."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, log_loss, top_k_accuracy_score

from selfdistill import analyses
from selfdistill.evaluation.calibration import (
    calibration,
    classwise_error,
    confidences,
    equal_mass_error,
    fitted_temperature,
    log_odds,
    reliability,
)
from selfdistill.evaluation.classification import brier, calibration_error, top_k
from selfdistill.evaluation.inputs import Classes, Predictions
from selfdistill.evaluation.selective import risks, selective


def made(images: int = 301, classes: int = 7, seed: int = 0, sharp: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are somewhat right, and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images,), generator=generator)
    logits = torch.randn(images, classes, generator=generator)
    logits[range(images), labels] += 1.5
    return sharp * logits, labels


# what may come: (logits, labels)
ODD = {
    "one class only": (made()[0], torch.zeros(301, dtype=torch.long)),
    "all right": (20 * torch.eye(4)[torch.arange(40) % 4], torch.arange(40) % 4),
    "all wrong": (20 * torch.eye(4)[torch.arange(40) % 4], (torch.arange(40) + 1) % 4),
    "a single image": (torch.tensor([[1.0, 2.0, 0.5]]), torch.tensor([0])),
    "huge": (1e30 * made()[0], made()[1]),
    "constant": (torch.zeros(30, 3), torch.arange(30) % 3),
    "equal confidence": (3 * torch.eye(5)[torch.arange(50) % 5], torch.arange(50) // 2 % 5),
    "impossible classes": (made()[0].masked_fill(torch.arange(7) == 6, -math.inf), made()[1] % 6),
    "sure without end": (torch.tensor([[math.inf, 0.0], [0.0, math.inf]]), torch.tensor([0, 0])),
    "many scales": (made()[0] * 10.0 ** (torch.arange(301) % 25 - 12)[:, None], made()[1]),
}


def test_brier_score_and_top_5_are_scikit_learns():
    logits, labels = made()
    probabilities = logits.double().softmax(dim=1).numpy()
    theirs = brier_score_loss(labels, probabilities, labels=range(7), scale_by_half=False)
    assert brier(logits, labels) == pytest.approx(theirs, abs=1e-12)
    told = top_k_accuracy_score(labels, logits.double().numpy(), k=5, labels=range(7))
    assert top_k(logits, labels) == pytest.approx(told, abs=1e-12)
    assert top_k(logits, labels, k=1) == (logits.argmax(1) == labels).double().mean().item()
    assert brier(torch.tensor([[100.0, 0.0]]), torch.tensor([1])) == pytest.approx(2)


def test_top_5_needs_a_sixth_class_and_takes_the_first_of_equal_logits():
    assert top_k(torch.zeros(4, 5), torch.arange(4)) is None
    assert top_k(torch.zeros(6, 6), torch.arange(6)) == pytest.approx(5 / 6)


def test_the_equal_mass_error_is_the_literal_sum_over_its_bins():
    for images in (301, 300, 20, 7):
        confidence, correct = confidences(*made(images))
        order = np.argsort(confidence.numpy())
        literal = 0.0
        for part in np.array_split(order, 15):
            if len(part):
                literal += len(part) / images * abs(correct[part].mean() - confidence[part].mean()).item()
        assert equal_mass_error(confidence, correct) == pytest.approx(literal, abs=1e-12)


def test_the_classwise_error_is_the_literal_mean_over_classes():
    logits, labels = made()
    probabilities = logits.double().softmax(dim=1)
    probabilities[0] = torch.tensor([1 / 15, 14 / 15, 0, 0, 0, 0, 0])  # the edges, and the ends
    literal = 0.0
    for k, b in itertools.product(range(7), range(15)):
        inside = [
            i for i, p in enumerate(probabilities[:, k].tolist()) if b / 15 < p <= (b + 1) / 15 or (b == 0 and p == 0)
        ]
        if inside:
            share = np.mean([labels[i].item() == k for i in inside])
            literal += len(inside) / len(labels) * abs(share - probabilities[inside, k].mean().item()) / 7
    assert classwise_error(probabilities, labels) == pytest.approx(literal, abs=1e-12)


def test_bins_of_the_reliability_diagram_give_the_calibration_error():
    confidence, correct = confidences(*made())
    rows = reliability(confidence, correct, 10)
    assert sum(share for share, _, _ in rows) == pytest.approx(1)
    assert sum(right for _, right, _ in rows) == pytest.approx(correct.mean().item())
    error = sum(abs(right - total) for _, right, total in rows)
    assert error == pytest.approx(calibration_error(confidence, correct, 10), abs=1e-12)


def nll(logits: torch.Tensor, labels: torch.Tensor, temperature: float) -> float:
    return torch.nn.functional.cross_entropy(logits.double() / temperature, labels).item()


@pytest.mark.parametrize("sharp", [1e-6, 0.1, 1.0, 7.0, 1e6])
def test_the_fitted_temperature_is_the_best_one(sharp):
    logits, labels = made(sharp=sharp)
    ours = fitted_temperature(logits, labels)
    theirs = minimize_scalar(
        lambda u: nll(logits, labels, math.exp(u)), bounds=(math.log(sharp) - 5, math.log(sharp) + 5), method="bounded"
    )
    assert math.log(ours) == pytest.approx(theirs.x, abs=1e-5)
    assert nll(logits, labels, ours) <= theirs.fun + 1e-12
    assert fitted_temperature(1e3 * logits.double(), labels) == pytest.approx(1e3 * ours, rel=1e-9)
    assert fitted_temperature(logits.double() / ours, labels) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("case", ODD)
def test_a_temperature_is_positive_finite_and_never_worse_than_none(case):
    logits, labels = ODD[case]
    temperature = fitted_temperature(logits, labels)
    if case in ("all right", "all wrong", "a single image", "sure without end", "equal confidence"):
        assert temperature is None  # the likelihood rises towards 0, or without end
        return
    assert math.isfinite(temperature)
    assert temperature > 0
    before, after = nll(logits, labels, 1), nll(logits, labels, temperature)
    assert after <= before * (1 + 1e-12) or not math.isfinite(before)
    if case == "constant":
        assert temperature == 1
    assert math.isnan(fitted_temperature(torch.full((3, 4), math.nan), torch.arange(3)))


def test_logits_that_are_nearly_guesses_have_the_best_temperature_or_none():
    found = {}
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        logits, labels = torch.randn(999, 100, generator=generator), torch.randint(100, (999,), generator=generator)
        found[seed] = fitted_temperature(logits, labels)
        at_infinity = (logits.double().mean(dim=1) - logits.double().gather(1, labels[:, None])[:, 0]).mean().item()
        assert (found[seed] is None) == (at_infinity >= 0)  # the derivative of the likelihood in 1 / T, at 0
        if found[seed]:
            theirs = minimize_scalar(
                lambda u, z=logits, y=labels: nll(z, y, math.exp(u)), bounds=(0, 12), method="bounded"
            )
            assert nll(logits, labels, found[seed]) <= theirs.fun + 1e-12
    assert None in found.values()
    assert set(found.values()) > {None}


@pytest.mark.parametrize("classes", [2, 7, 101])
def test_confidences_tie_exactly_where_the_logits_are_the_same(classes):
    generator = torch.Generator().manual_seed(0)
    one = 3 * torch.randn(classes, generator=generator)
    logits = torch.stack([one[torch.randperm(classes, generator=generator)] for _ in range(211)])
    assert len(log_odds(logits).unique()) == len(confidences(logits, torch.zeros(211).long())[0].unique()) == 1
    p = one.double().softmax(0).max().item()
    assert log_odds(logits)[0].item() == pytest.approx(math.log(p / (1 - p)), abs=1e-12)


def test_sure_answers_are_told_apart_by_what_their_probabilities_round_away():
    logits = torch.tensor([[float(gap), 0.0, 0.0] for gap in (30, 31, 32, 33, 34, 40, 50, 60)])
    labels = torch.tensor([0] * 4 + [1] * 4)  # the surest half is wrong
    assert log_odds(logits).tolist() == pytest.approx([gap - math.log(2) for gap in (30, 31, 32, 33, 34, 40, 50, 60)])
    run = {"sections": 1, "cost": {"inference_macs": [10]}}
    (row,) = analyses.function("selective")(
        Predictions(run, logits[None], Classes(labels), (logits[None], labels), {}), risk=0.05, coverage=0.8
    )
    wrong = [1.0 - right for right in (labels == 0).tolist()]
    assert row["aurc"] == pytest.approx(literal_risks(list(range(8)), wrong).mean())
    near = torch.tensor([0.5 + 0.5e-14 * i for i in range(8)], dtype=torch.float64)  # each other's neighbours
    assert risks(near, torch.tensor(wrong)).tolist() == pytest.approx(literal_risks(near.tolist(), wrong))


@pytest.mark.parametrize("case", ODD)
def test_no_number_is_out_of_its_range_and_none_depends_on_the_order_of_images(case):
    logits, labels = ODD[case]
    found = calibration(logits, labels) | selective(*selected(logits, labels), risk=0.05, coverage=0.8)
    shares = [value for name, value in found.items() if name not in ("nll", "brier")]
    assert all(-1e-12 <= share <= 1 + 1e-12 for share in shares)
    assert 0 <= found["brier"] <= 2
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    again = calibration(logits[order], labels[order])
    again |= selective(*selected(logits[order], labels[order]), risk=0.05, coverage=0.8)
    assert again == pytest.approx(found, rel=1e-12, abs=1e-12, nan_ok=True)


def selected(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    confidence, correct = confidences(logits, labels)
    return confidence, 1 - correct


def test_what_is_known_of_odd_cases_comes_out():
    confidence = (20 * torch.eye(4)[0].double()).softmax(0)[0].item()
    right, wrong = calibration(*ODD["all right"]), calibration(*ODD["all wrong"])
    assert [right["ece"], right["adaptive_ece"]] == pytest.approx([1 - confidence] * 2, abs=1e-9)
    assert [wrong["ece"], wrong["adaptive_ece"]] == pytest.approx([confidence] * 2, abs=1e-9)
    assert wrong["brier"] == pytest.approx(2, abs=1e-6)
    guessed = calibration(*ODD["constant"])
    assert [guessed[name] for name in ("ece", "adaptive_ece", "classwise_ece")] == pytest.approx([0] * 3, abs=1e-12)
    assert guessed["nll"] == pytest.approx(log_loss(ODD["constant"][1], np.full((30, 3), 1 / 3)))
    for name in ("constant", "equal confidence"):  # any order is as good as another
        _, missed = selected(*ODD[name])
        found, share = selective(*selected(*ODD[name]), risk=0.05, coverage=0.8), missed.mean().item()
        assert [found["aurc"], found["risk_at_coverage"], found["coverage_at_risk"]] == pytest.approx([share, share, 0])
    assert set(selective(*selected(*ODD["all right"]), 0.05, 0.8).values()) == {0, 1}
    worst = selective(*selected(*ODD["all wrong"]), 0.05, 0.8)
    assert worst == {"aurc": 1, "e_aurc": 0, "coverage_at_risk": 0, "risk_at_coverage": 1}
    assert all(map(math.isnan, selective(torch.tensor([math.nan]), torch.ones(1), 0.05, 0.8).values()))


def literal_risks(confidence: list[float], wrong: list[float]) -> np.ndarray:
    """Of the most confident image, the two most confident ones, ..., in the order of the list where they are equal."""
    order = sorted(range(len(wrong)), key=lambda i: -confidence[i])
    return np.array([sum(wrong[j] for j in order[: i + 1]) / (i + 1) for i in range(len(order))])


def test_selective_numbers_are_the_literal_ones():
    confidence, wrong = selected(*made(203))
    literal = literal_risks(confidence.tolist(), wrong.tolist())
    assert risks(confidence, wrong).tolist() == pytest.approx(literal, abs=1e-12)
    for risk, coverage in ((0.05, 0.8), (0.0, 1.0), (1.0, 0.0), (0.2, 0.333)):
        found = selective(confidence, wrong, risk, coverage)
        best = literal_risks([1 - w for w in wrong.tolist()], wrong.tolist())
        assert found["aurc"] == pytest.approx(literal.mean(), abs=1e-12)
        assert found["e_aurc"] == pytest.approx(literal.mean() - best.mean(), abs=1e-12)
        allowed = [(i + 1) / 203 for i, r in enumerate(literal) if r <= risk]
        assert found["coverage_at_risk"] == (max(allowed) if allowed else 0)
        enough = next(r for i, r in enumerate(literal) if (i + 1) / 203 >= coverage)
        assert found["risk_at_coverage"] == pytest.approx(enough, abs=1e-12)
    assert selective(1 - wrong, wrong, 0.05, 0.8)["e_aurc"] == 0
    assert selective(torch.ones(20), torch.tensor([1.0] + 19 * [0.0]), 0.05, 0.8)["coverage_at_risk"] == 1


def test_images_of_equal_confidence_come_in_every_order_alike():
    confidence, wrong = [0.9, 0.7, 0.7, 0.7, 0.5, 0.5], [0.0, 1.0, 0.0, 0.0, 1.0, 0.0]
    every = [
        literal_risks([confidence[i] for i in order], [wrong[i] for i in order])
        for order in itertools.permutations(range(6))
    ]
    found = risks(torch.tensor(confidence), torch.tensor(wrong))
    assert found.tolist() == pytest.approx(np.mean(every, axis=0), abs=1e-12)


def inputs(classes: int = 7) -> Predictions:
    """Of a run with two exits of four; its validation images are others."""
    (one, labels), (other, _) = made(classes=classes), made(classes=classes, seed=1)
    logits = torch.stack([other, one])
    seen, seen_labels = made(200, classes, seed=2, sharp=5.0)
    run = {"sections": 4, "cost": {"inference_macs": [10, 20], "ensemble_macs": 30}}
    return Predictions(run, logits, Classes(labels), (torch.stack([seen, seen]), seen_labels), {})


def test_the_analysis_scales_by_what_validation_images_ask_for():
    given = inputs()
    rows = analyses.function("calibration")(given, bins=15)
    whole = {row["exit"]: row for row in rows if row["bin"] is None}
    assert list(whole) == ["3/4", "4/4", "ensemble"]
    temperature = fitted_temperature(given.validation[0][1], given.validation[1])
    assert (
        whole["4/4"]["temperature"] == temperature != pytest.approx(fitted_temperature(given.logits[1], given.labels))
    )
    for end, logits in (("", given.logits[1]), ("_scaled", given.logits[1].double() / temperature)):
        for name, value in calibration(logits, given.labels).items():
            assert whole["4/4"][f"{name}{end}"] == pytest.approx(value, abs=1e-12)
    assert whole["ensemble"]["nll"] == pytest.approx(nll(given.logits.double().mean(0), given.labels, 1))
    bins = [row for row in rows if row["bin"] is not None]
    assert [row["bin"] for row in bins] == list(range(1, 16))
    gaps = [abs(row["right"] - row["confidence"]) for row in bins]
    assert sum(gaps) == pytest.approx(whole["4/4"]["ece"], abs=1e-12)
    assert len(analyses.function("calibration")(given, bins=4)) == 3 + 4


def test_selective_and_accuracy_have_a_row_an_exit():
    given = inputs()
    told = {row["exit"]: row for row in analyses.function("selective")(given, risk=0.1, coverage=0.5)}
    assert list(told) == ["3/4", "4/4", "ensemble"]
    assert told["4/4"]["aurc"] == pytest.approx(risks(*selected(given.logits[1], given.labels)).mean().item())
    rows = {row["exit"]: row for row in analyses.function("accuracy")(given)}
    assert rows["4/4"]["top5"] == top_k(given.logits[1], given.labels)
    assert rows["ensemble"]["brier"] == pytest.approx(brier(given.logits.double().mean(0), given.labels))
    assert [row["top5"] for row in analyses.function("accuracy")(inputs(classes=5))] == [None] * 3


# ---- analyses of stored predictions at the ends of what can happen, against forms that are written out ----

STEPS = torch.tensor([[2.0, 1.0, 0.5, 0.0, -1.0, -2.0]])
TOLD = torch.arange(12) % 6
ENDS = {
    "one image, right": (STEPS, torch.tensor([0])),
    "one image, wrong": (STEPS, torch.tensor([3])),
    "one image, two classes": (STEPS[:, :2], torch.tensor([1])),
    "one class is shown": (made(12, 6)[0], torch.full((12,), 2)),
    "a class is not shown": (made(12, 6)[0], made(12, 6)[1] % 5),
    "all right": (8 * torch.eye(6)[TOLD], TOLD),
    "all wrong": (8 * torch.eye(6)[TOLD], (TOLD + 1) % 6),
    "equal confidence": (3 * torch.eye(6)[TOLD], TOLD.sort().values),
    "probabilities of 0 and 1": (1e3 * torch.eye(6)[TOLD], TOLD.sort().values),
    "constant": (torch.full((12, 6), -7.5), TOLD),
    # 1/3 = 5/15: too often right in one bin, and always wrong in the next
    "at the edge of a bin": (torch.cat([torch.zeros(6, 3), 0.1 * torch.eye(3)]), torch.tensor([0] * 5 + [1, 1, 2, 0])),
    "two classes": made(12, 2),
    "two equal classes": (torch.ones(9, 2), torch.arange(9) % 2),
    "five classes": made(12, 5),
    "huge": (1e4 * made(12, 6)[0].sign(), made(12, 6)[1]),
}


def mean(values) -> float:
    listed = list(values)
    return math.fsum(listed) / len(listed)


def first_of_largest(row: list[float]) -> int:
    return row.index(max(row))


def log_probabilities(row: list[float]) -> list[float]:
    return [z - max(row) - math.log(math.fsum(math.exp(other - max(row)) for other in row)) for z in row]


def scored(rows: list[list[float]], labels: list[int]) -> dict[str, float | None]:
    """The numbers of log-probabilities, images x classes, in Python's own floats."""
    shown = list(zip(rows, labels, strict=True))
    right = [float(first_of_largest(row) == y) for row, y in shown]
    sure = [math.exp(max(row)) for row in rows]
    which = [next(b for b in range(15) if c <= (b + 1) / 15 + 1e-15) for c in sure]
    gaps = [[r - c for r, c, w in zip(right, sure, which, strict=True) if w == b] for b in range(15)]
    ranks = [sorted(range(len(row)), key=lambda j: (-row[j], j)).index(y) for row, y in shown]
    return {
        "accuracy": mean(right),
        "nll": mean(-row[y] for row, y in shown),
        "ece": math.fsum(abs(math.fsum(gap)) for gap in gaps) / len(rows),
        "top5": mean(rank < 5 for rank in ranks) if len(rows[0]) > 5 else None,
        "brier": mean(math.fsum((math.exp(z) - (j == y)) ** 2 for j, z in enumerate(row)) for row, y in shown),
    }


@pytest.mark.parametrize("case", ENDS)
def test_every_analysis_of_predictions_is_its_literal_form_at_the_ends(case):
    logits, shown = ENDS[case]
    other = logits.roll(1, dims=1) if logits.shape[1] > 2 else -logits
    labels, classes, near = shown.tolist(), range(logits.shape[1]), {"abs": 1e-9}
    run = {"seed": 0, "sections": 2, "cost": {"inference_macs": [10, 20], "ensemble_macs": 30}}
    run["dataset"] = {"classes": list(classes)}
    exits = torch.stack([other, logits])
    # the network of the other seed, and the teacher, are this one with its exits exchanged
    given = Predictions(run, exits, Classes(shown), (exits, shown), {}, {1: exits.flip(0)}, exits.flip(0))
    deepest, shallow, both = (
        list(map(log_probabilities, part.double().tolist())) for part in (logits, other, (logits.double() + other) / 2)
    )
    together = [
        [max(a, b) + math.log((math.exp(-abs(a - b)) + 1) / 2) for a, b in zip(one, two, strict=True)]
        for one, two in zip(deepest, shallow, strict=True)
    ]
    accuracy = {row.pop("exit"): row for row in analyses.function("accuracy")(given)}
    for name, rows in (("1/2", shallow), ("2/2", deepest), ("ensemble", both)):
        assert accuracy[name] == pytest.approx(scored(rows, labels), **near)
        scaled = [row for row in analyses.function("calibration")(given, bins=15) if row["exit"] == name]
        assert {key: scaled[0][key] for key in ("nll", "ece", "brier")} == pytest.approx(
            {key: accuracy[name][key] for key in ("nll", "ece", "brier")}, **near
        )

    ensembles = {row["of"]: row for row in analyses.function("ensembles")(given)}
    wanted, single, before = scored(together, labels), scored(deepest, labels), scored(shallow, labels)
    for name, alone in (
        ("exits, mean of probabilities", single["accuracy"]),
        ("seeds, mean of probabilities", (single["accuracy"] + before["accuracy"]) / 2),
    ):
        found = {key: ensembles[name][key] for key in ("nll", "brier", "accuracy", "gain")}
        gain = 100 * (wanted["accuracy"] - alone)
        assert found == pytest.approx(
            {key: wanted[key] for key in ("nll", "brier", "accuracy")} | {"gain": gain}, **near
        )

    told, others = (list(map(first_of_largest, rows)) for rows in (deepest, shallow))
    same = mean(a == b for a, b in zip(told, others, strict=True))
    assert {row["with"]: row["agreement"] for row in analyses.function("agreement")(given)} == pytest.approx(
        dict.fromkeys(("1/2", "teacher", "another seed"), same)
    )

    whole, *each = analyses.function("per_class")(given)
    right = {c: [t == y for t, y in zip(told, labels, strict=True) if y == c] for c in classes}
    assert {row["class"]: row["images"] for row in each} == {c: len(found) for c, found in right.items()}
    shares = {c: mean(found) if found else None for c, found in right.items()}
    assert {row["class"]: row["accuracy"] for row in each} == pytest.approx(shares)
    there = [share for share in shares.values() if share is not None]
    assert [whole[key] for key in ("worst", "mean", "best", "spread")] == pytest.approx(
        [min(there), mean(there), max(there), 100 * np.std(there)]
    )
    if whole["mean"] and len(set(labels)) > 1:
        assert whole["mean"] == pytest.approx(balanced_accuracy_score(labels, told))
