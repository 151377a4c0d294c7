"""The methods' losses, against formulations written out by hand in float64."""

import ast
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from selfdistill import methods
from selfdistill.methods.byot import byot_terms
from selfdistill.methods.cskd import cskd_terms
from selfdistill.methods.ddgsd import ddgsd_terms
from selfdistill.methods.drkd import drkd_terms, rectify
from selfdistill.methods.pskd import progressive_cross_entropy
from selfdistill.methods.sd import descriptors, emd_l2
from selfdistill.methods.srdl import referenced_terms
from selfdistill.models import build
from selfdistill.models.sections import Outputs
from selfdistill.training.losses import mixed_cross_entropy, smoothed_cross_entropy, softened_kl
from selfdistill.training.method import HyperParameterError, StateError, Step, StepError

N, K, D = 6, 5, 7
NEEDS = {"exits", "teacher", "average", "companion", "views", "positives", "pairs", "memory", "last_batch", "partners"}
NEEDS |= {"host"}


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def cross_entropy(z, y):
    return -np.log(softmax(z)[np.arange(len(y)), y]).mean()


def kl(teacher, student, t):
    p, q = softmax(teacher / t), softmax(student / t)
    return (p * np.log(p / q)).sum(axis=1).mean()


@pytest.fixture
def draw():
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def targets():
    return torch.tensor([0, 3, 1, 4, 2, 2])


def test_softened_kl_is_kl_of_softened_distributions(draw):
    student, teacher = draw(N, K), draw(N, K)
    expected = kl(teacher.numpy(), student.numpy(), 3.0)
    assert softened_kl(student, teacher, 3.0).item() == pytest.approx(expected, rel=1e-12)
    assert softened_kl(student, teacher, 3.0, "mean").item() == pytest.approx(expected / K, rel=1e-12)


def test_softened_kl_gradient_is_the_difference_of_distributions(draw):
    student, teacher = draw(N, K).requires_grad_(), draw(N, K).requires_grad_()
    softened_kl(student, teacher, 3.0).backward()
    expected = (softmax(student.detach().numpy() / 3) - softmax(teacher.detach().numpy() / 3)) / (3 * N)
    np.testing.assert_allclose(student.grad.numpy(), expected, rtol=1e-9, atol=1e-15)
    assert teacher.grad is None, "what teaches is detached"


@pytest.mark.parametrize("t_squared", [False, True])
def test_byot_is_the_papers_sum(draw, targets, t_squared):
    logits, features = [draw(N, K) for _ in range(4)], [draw(N, D) for _ in range(4)]
    terms = byot_terms(logits, features, targets, alpha=0.3, hint=0.03, temperature=3.0, t_squared=t_squared)
    z, f, y = [x.numpy() for x in logits], [x.numpy() for x in features], targets.numpy()
    factor = 9 if t_squared else 1
    expected = {
        "deepest_cross_entropy": cross_entropy(z[3], y),
        "shallow_cross_entropy": sum(0.7 * cross_entropy(z[i], y) for i in range(3)),
        "distillation": sum(0.3 * factor * kl(z[3], z[i], 3.0) for i in range(3)),
        "hint": sum(0.03 * ((f[i] - f[3]) ** 2).sum(axis=1).mean() for i in range(3)),
    }
    assert {k: v.item() for k, v in terms.items()} == pytest.approx(expected, rel=1e-9)


def test_byot_teaches_the_deepest_exit_by_labels_alone(draw, targets):
    logits = [draw(N, K).requires_grad_() for _ in range(4)]
    features = [draw(N, D).requires_grad_() for _ in range(4)]
    terms = byot_terms(logits, features, targets, alpha=0.3, hint=0.03, temperature=3.0, t_squared=False)
    sum(terms.values()).backward()
    label_gradient = (softmax(logits[3].detach().numpy()) - np.eye(K)[targets]) / N
    np.testing.assert_allclose(logits[3].grad.numpy(), label_gradient, rtol=1e-9)
    assert features[3].grad is None
    assert all(f.grad is not None for f in features[:3])


def test_rectify_exchanges_the_top_with_the_label_and_nothing_else():
    logits = torch.tensor([[3.0, 1.0, 2.0], [5.0, 4.0, 0.0], [1.0, 1.0, 0.0]])
    before = logits.clone()
    assert rectify(logits, torch.tensor([1, 0, 1])).tolist() == [
        [1.0, 3.0, 2.0],
        [5.0, 4.0, 0.0],
        [1.0, 1.0, 0.0],
    ]
    assert torch.equal(logits, before), "the caller's logits stay as they are"


def test_rectified_teacher_is_always_right(draw):
    logits, targets = draw(200, K), torch.arange(200) % K
    fixed = rectify(logits, targets)
    assert (fixed.argmax(1) == targets).all()
    assert torch.equal(fixed.sort(1).values, logits.sort(1).values)


@pytest.mark.parametrize("reduction", ["mean", "batchmean"])
def test_drkd_is_the_public_codes_sum(draw, targets, reduction):
    student, teacher = draw(N, K), draw(N, K)
    terms = drkd_terms(student, teacher, targets, alpha=0.95, temperature=6.0, multiplier=50.0, reduction=reduction)
    z, v, y = student.numpy(), teacher.numpy().copy(), targets.numpy()
    for row, label in zip(v, y, strict=True):
        top = int(row.argmax())
        row[top], row[label] = float(row[label]), float(row[top])
    divergence = kl(v, z, 6.0) / (K if reduction == "mean" else 1)
    assert terms["cross_entropy"].item() == pytest.approx(0.05 * cross_entropy(z, y), rel=1e-9)
    assert terms["rectified_distillation"].item() == pytest.approx(0.95 * 36 * 50 * divergence, rel=1e-9)


def test_srdl_stage_two_is_cross_entropy_and_t_squared_kl(draw, targets):
    student, reference = draw(N, K), draw(N, K)
    terms = referenced_terms(student, reference, targets, temperature=3.0, weight=0.5)
    expected = 0.5 * 9 * kl(reference.numpy(), student.numpy(), 3.0)
    assert terms["self_reference"].item() == pytest.approx(expected, rel=1e-9)
    assert terms["cross_entropy"].item() == pytest.approx(cross_entropy(student.numpy(), targets.numpy()), rel=1e-9)


def test_srdl_splits_the_epochs_and_restarts():
    first, second = methods.load("srdl")(split=0.3).phases(10)
    assert (first.epochs, first.restart, first.learns_from_previous) == (3, False, False)
    assert (second.epochs, second.restart, second.learns_from_previous) == (7, True, True)
    assert [p.epochs for p in methods.load("srdl")().phases(1)] == [1]


def test_emd_is_the_cheapest_assignment_of_positions(draw):
    shallow, deep = draw(3, 4, 4, 4), draw(3, 8, 2, 2)
    mine = descriptors(shallow, 4, (2, 2)).numpy()
    theirs = descriptors(deep, 4, (2, 2)).numpy()
    cheapest = [
        min(
            np.mean([((a[i] - b[j]) ** 2).mean() for i, j in enumerate(order)])
            for order in itertools.permutations(range(4))
        )
        for a, b in zip(mine, theirs, strict=True)
    ]
    assert emd_l2(shallow, deep).item() == pytest.approx(np.mean(cheapest), rel=1e-9)


def test_emd_ignores_where_a_feature_lies(draw):
    deep = draw(2, 4, 2, 2)
    assert emd_l2(deep.flip(3), deep).item() == 0


def test_emd_moves_the_shallow_features_alone(draw):
    shallow, deep = draw(2, 4, 4, 4).requires_grad_(), draw(2, 8, 2, 2).requires_grad_()
    emd_l2(shallow, deep).backward()
    assert shallow.grad.abs().sum() > 0
    assert deep.grad is None


def test_cskd_by_hand(draw, targets):
    z, pair = draw(N, K), draw(N, K)
    terms = cskd_terms(z, pair, targets, temperature=4.0, weight=0.5)
    assert terms["cross_entropy"].item() == pytest.approx(cross_entropy(z.numpy(), targets.numpy()), rel=1e-12)
    assert terms["class_wise"].item() == pytest.approx(0.5 * 16 * kl(pair.numpy(), z.numpy(), 4.0), rel=1e-12)


def test_pskd_is_cross_entropy_with_the_softened_target(draw, targets):
    z, past = draw(N, K), draw(N, K)
    target = 0.7 * np.eye(K)[targets] + 0.3 * softmax(past.numpy())
    expected = -(target * np.log(softmax(z.numpy()))).sum(axis=1).mean()
    assert progressive_cross_entropy(z, past, targets, 0.3).item() == pytest.approx(expected, rel=1e-12)


def test_pskd_trusts_the_past_more_and_more():
    method = methods.load("pskd")(alpha=0.8)
    method.phases(4)
    z, past = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 9.0]])
    output = Outputs([z], [z], [z])
    shares = []
    for epoch in range(4):
        step = Step(z, torch.tensor([0]), output, None, torch.tensor(epoch / 4), past=past)
        loss = method.terms(step)["cross_entropy"].item()
        hard, soft = (progressive_cross_entropy(z, past, step.targets, s).item() for s in (0.0, 1.0))
        shares.append((loss - hard) / (soft - hard))
    assert shares == pytest.approx([0.2, 0.4, 0.6, 0.8], rel=1e-5)


def test_ddgsd_by_hand(draw, targets):
    a, b, f, g = draw(N, K), draw(N, K), draw(N, D), draw(N, D)
    terms = ddgsd_terms([a, b], f.mean(0) - g.mean(0), targets, temperature=3.0, weight=2.0, feature_weight=0.1)
    a, b, f, g, y = a.numpy(), b.numpy(), f.numpy(), g.numpy(), targets.numpy()
    assert terms["cross_entropy"].item() == pytest.approx((cross_entropy(a, y) + cross_entropy(b, y)) / 2, rel=1e-12)
    assert terms["mutual"].item() == pytest.approx(18 * (kl(a, b, 3.0) + kl(b, a, 3.0)), rel=1e-12)
    assert terms["features"].item() == pytest.approx(0.1 * ((f.mean(0) - g.mean(0)) ** 2).sum(), rel=1e-12)


def test_mixed_and_smoothed_cross_entropy_by_hand(draw, targets):
    z, other, share = draw(N, K), targets.flip(0), torch.linspace(0.1, 1, N, dtype=torch.float64)
    log_p = np.log(softmax(z.numpy()))
    rows = np.arange(N)
    expected = -(share.numpy() * log_p[rows, targets] + (1 - share.numpy()) * log_p[rows, other]).mean()
    assert mixed_cross_entropy(z, targets, other, share).item() == pytest.approx(expected, rel=1e-12)
    theirs = torch.nn.functional.cross_entropy(z, targets, label_smoothing=0.3).item()
    assert smoothed_cross_entropy(z, targets, 0.3).item() == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("name", methods.names())
def test_every_method_trains_a_network_by_hand(name):
    """Some steps in a bare loop lower the method's own loss, and every term is a named finite scalar."""
    method = methods.load(name)()
    network, other, peer = (
        build("resnet10-slim", channels=1, classes=K, size=(8, 8), exits="exits" in method.needs, seed=seed)
        for seed in (1, 2, 3)
    )
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(20, 1, 8, 8, generator=generator), torch.arange(20) % K
    with torch.no_grad():
        teacher = other(images) if {"teacher", "average"} & method.needs else None
        pair, past = network(images.flip(0)), torch.randn(20, K, generator=generator)
    companion = method.companion(network(images), teacher, lambda: peer)
    method.phases(10)
    parameters = [*network.parameters(), *(companion.parameters() if companion else ())]
    optimiser = torch.optim.SGD(parameters, lr=1e-4)

    def step():
        views = network(torch.cat([images, images.flip(3)])).split([20, 20])
        seen = Step(images, labels, views[0], teacher, torch.tensor(0.5), views, pair=pair, past=past)
        seen.partner_targets, seen.share = labels.flip(0), torch.full((20,), 0.7)
        seen.companion = companion and companion(images, views[0])
        seen.positives = [views[1]] * getattr(method, "positives", 0)
        seen.last, seen.last_targets, seen.last_logits, seen.last_batch_size = views[1], labels, past, 20
        terms = method(seen)
        assert all(re.fullmatch("[a-z_]+", n) and t.ndim == 0 and t.isfinite() for n, t in terms.items())
        return sum(terms.values())

    first = step()
    for _ in range(3):
        optimiser.zero_grad()
        loss = step()
        loss.backward()
        optimiser.step()
    assert step() < first


@pytest.mark.parametrize("name", methods.names())
def test_every_method_says_what_it_is(name):
    about, card = methods.about(name), methods.card(name)
    assert {"class", "title", "name", "paper", "group", "needs", "cost", "look", "control", "hyper"} == set(about)
    assert about["group"] in {"the four papers", "teacher-free rivals", "with a teacher", "controls"}
    assert "Cost: " in card
    assert set(about["needs"]) <= NEEDS
    for key, spec in about["hyper"].items():
        assert {"default", "meaning", "source"} <= set(spec), key
        assert "allowed" in spec or "choices" in spec or spec["default"] in (True, False, None)
    if about["paper"]:
        assert about["paper"] in card


def test_methods_are_importable_by_class_and_refuse_unknown_hyper_parameters():
    from selfdistill.methods import BYOT

    assert BYOT(alpha=0.5).alpha == 0.5
    with pytest.raises(TypeError, match="alpa"):
        BYOT(alpa=0.5)
    with pytest.raises(ImportError):
        from selfdistill.methods import Nothing  # noqa: F401


def test_no_code_asks_for_a_methods_name():
    """No dispatch: outside its own file, a method's name is compared with nothing."""
    package = Path(methods.__file__).parents[1]
    names = set(methods.names())
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                constants = {c.value for c in ast.walk(node) if isinstance(c, ast.Constant)}
                assert not constants & names, f"{path}:{node.lineno}"


# ---- one door: what YAML refuses, Python refuses ----


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        (
            {"alpha": 3, "temperature": 0, "reading": "nonsense"},
            ["alpha: 3 is not allowed; allowed: a number from 0 to 1", "temperature: 0 is", "reading: 'nonsense' is"],
        ),
        ({"alpha": float("nan")}, ["alpha: nan is not allowed"]),
        ({"t_squared": 1}, ["t_squared: 1 is not allowed; allowed: true or false"]),
        ({"alpha": True}, ["alpha: True is not allowed"]),
        ({"alpa": 0.5}, ["no hyper-parameter 'alpa'; there are reading, alpha"]),
    ],
)
def test_hyper_parameters_in_python_obey_the_bounds_of_the_yaml_in_one_line(values, parts):
    with pytest.raises(HyperParameterError) as caught:
        methods.create("byot", **values)
    assert all(part in str(caught.value) for part in parts), caught.value
    assert "\n" not in str(caught.value)


def test_a_methods_values_are_those_of_its_reading_unless_given():
    journal, default = methods.create("byot", reading="journal"), methods.create("byot", alpha=0.7)
    assert (journal.alpha, journal.hint, journal.t_squared) == (0.3, 0.03, False)
    assert (default.reading, default.alpha, default.hint, default.t_squared) == ("luanyunteng", 0.7, 1e-6, True)
    with pytest.raises(ValueError, match="no method 'byott'"):
        methods.create("byott")


def test_a_step_of_bare_tensors_is_answered_in_one_line():
    logits, targets = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(StepError, match=r"student is a tensor; allowed: Outputs.* Outputs\(\[z\], \[\], \[\]\)"):
        methods.create("plain")(Step(torch.zeros(4, 1, 8, 8), targets, logits))
    with pytest.raises(StepError, match="views is a tensor"):
        Step(torch.zeros(4, 1, 8, 8), targets, Outputs([logits], [], []), views=[logits, logits])
    with pytest.raises(StepError, match="student is a NoneType"):
        Step(torch.zeros(4, 1, 8, 8), targets, None)
    answered = methods.create("plain")(Step(torch.zeros(4, 1, 8, 8), targets, Outputs([logits], [], [])))
    assert answered["cross_entropy"].item() == pytest.approx(1.0986, abs=1e-4)


@pytest.mark.parametrize(("images", "classes", "said"), [(4, 1, "1 class; allowed: 2 or more"), (0, 3, "is empty")])
@pytest.mark.parametrize("name", ["plain", "tfkd_reg", "label_smoothing"])
def test_one_class_and_an_empty_batch_are_refused(name, images, classes, said):
    student = Outputs([torch.zeros(images, classes)], [torch.zeros(images, 2)], [])
    step = Step(torch.zeros(images, 1, 8, 8), torch.zeros(images, dtype=torch.int64), student)
    with pytest.raises(StepError, match=said):
        methods.create(name)(step)


def test_a_tensor_in_the_state_is_written_in_place_or_refused():
    method = methods.create("plain")
    method.state["seen"] = torch.zeros(())
    method.state["seen"].add_(1)
    with pytest.raises(StateError, match=r"self\.state\['seen'\]\.copy_"):
        method.state["seen"] = method.state["seen"] + 1
    method.state["seen"] += 1  # in place
    assert method.state["seen"].item() == 2
    with pytest.raises(StateError, match="is there already"):
        method.state.update(seen=torch.ones(()))
    with pytest.raises(StateError, match="is a float; allowed: a tensor"):
        method.state["rate"] = 0.5
    method.state = {"seen": torch.ones(())}  # what a checkpoint does
    assert method.state["seen"].item() == 1


@pytest.mark.parametrize("name", methods.names())
def test_no_phase_is_empty_whatever_the_hyper_parameters(name):
    spec = methods.about(name)["hyper"]
    extremes = [{}] + [{key: bound} for key, s in spec.items() for bound in s.get("allowed", s.get("choices", []))]
    for values in extremes:
        for epochs in range(1, 13):
            lengths = [phase.epochs for phase in methods.create(name, **values).phases(epochs)]
            assert min(lengths) >= 1, (values, epochs, lengths)
    if name == "srdl":
        for split in (0.001, 0.01, 0.5, 0.99, 0.999):
            low, high = spec["split"]["allowed"]
            if low <= split <= high:
                assert sum(p.epochs for p in methods.create(name, split=split).phases(10)) == 10


def test_a_card_is_told_apart_from_its_text():
    assert methods.card("byot").startswith("# BYOT")
    assert methods.about("byot")["hyper"]["hint"]["meaning"] not in methods.card("byot")


HEAD = """---
title: Mine
name: Mine
paper: null
group: controls
cost: 1.0
hyper:
  beta:
    meaning: weight
    source: our choice
---
# Mine
"""


@pytest.mark.parametrize(
    ("card", "said"),
    [
        (HEAD.replace("beta", "gamma"), "mine.md: no hyper-parameter 'beta'"),
        (
            HEAD.replace("source: our choice", "source: our choice\n  more: {meaning: a, source: b}"),
            "mine.py: no hyper",
        ),
        (HEAD.replace("    source: our choice\n", ""), "hyper.beta is {'meaning': 'weight'}"),
        (HEAD.replace("title: Mine\n", ""), "mine.md: no proper head"),
        (HEAD.replace("title: Mine", "title: a: b"), "mine.md: its head is not valid YAML"),
        ("# Mine\n", "mine.md: no proper head"),
        (None, "mine.md: missing"),
    ],
    ids=["not in the card", "not in the file", "no source", "no title", "no YAML", "no head", "no card"],
)
def test_a_file_and_a_card_that_do_not_fit_are_refused_in_one_line(card, said, tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "FOLDER", tmp_path)
    (tmp_path / "mine.py").write_text('ABOUT = {"class": "Mine", "needs": [], "hyper": {"beta": {"default": 0.1}}}\n')
    if card is not None:
        (tmp_path / "mine.md").write_text(card)
    try:
        with pytest.raises(methods.MethodError) as caught:
            methods.about("mine")
    finally:
        for kept in (methods.executed, methods.prose, methods.about):
            kept.cache_clear()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "values"),
    [("srdl", {"split": split}) for split in (0.01, 0.3, 0.99)]
    + [("fitnet", {"two_stages": True, "split": split}) for split in (0.01, 0.99)]
    + [("snapshot", {"cycles": cycles}) for cycles in (2, 7, 100)],
)
def test_phases_share_out_the_epochs_of_the_recipe(name, values):
    for epochs in range(2, 13):
        lengths = [phase.epochs for phase in methods.create(name, **values).phases(epochs)]
        assert len(lengths) >= 2
        assert min(lengths) >= 1
        assert sum(lengths) == epochs
