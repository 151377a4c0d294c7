"""Every loss and its gradients, against the literal formulations of `literal_losses`."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import cache

import literal_losses as literal
import pytest
import torch
from torch import Tensor

from selfdistill import methods
from selfdistill.methods.attention_transfer import attention_terms
from selfdistill.methods.bake import bake_terms, propagated
from selfdistill.methods.born_again import born_again_terms
from selfdistill.methods.byot import (
    READINGS,
    byot_journal_terms,
    byot_luanyunteng_terms,
    byot_mmrazor_terms,
    byot_terms,
)
from selfdistill.methods.cskd import cskd_terms
from selfdistill.methods.ddgsd import ddgsd_terms
from selfdistill.methods.dlb import dlb_terms
from selfdistill.methods.dml import dml_terms
from selfdistill.methods.drkd import drkd_combined_terms, drkd_terms, rectify
from selfdistill.methods.fitnet import hint_distance
from selfdistill.methods.frskd import frskd_terms
from selfdistill.methods.kd import kd_terms
from selfdistill.methods.mean_teacher import consistency, ramp
from selfdistill.methods.pskd import progressive_cross_entropy
from selfdistill.methods.sd import cdf_l2, emd_l2
from selfdistill.methods.snapshot import snapshot_terms
from selfdistill.methods.srdl import referenced_terms
from selfdistill.methods.tfkd_reg import tfkd_reg_terms
from selfdistill.methods.tfkd_self import tfkd_self_terms
from selfdistill.models.sections import Outputs
from selfdistill.training.augment import cutmix, mixup
from selfdistill.training.losses import (
    attention_distance,
    mixed_cross_entropy,
    smoothed_cross_entropy,
    softened_kl,
    virtual_teacher,
)
from selfdistill.training.method import Step

EPOCHS, WIDTH = 10, 4
# Relative; and as a share of the whole, the loss or its largest gradient.  float32 needs the second for KL
# divergences near 0, differences of numbers near log K, and for gradients p - 1 of a p near 1.
TOLERANCE = {torch.float64: (1e-6, 1e-12), torch.float32: (1e-5, 2e-6)}

# ---- made steps ----

# C, H, W of each section: of a student; of a teacher whose maps are smaller, equal and larger; of a self-teacher
STUDENT = [(2, 4, 4), (3, 4, 4), (6, 2, 2)]
TEACHER = [(3, 2, 2), (5, 4, 4), (4, 4, 4)]
REFINED = [(4, 4, 4), (6, 4, 4), (12, 2, 2)]


@dataclass(frozen=True)
class Sort:
    """What kind of numbers a step is made of.  logits: from normally distributed ones to those wanted."""

    images: int
    classes: int
    logits: Callable[[Tensor], Tensor] = lambda drawn: 3 * drawn

    def step(self, dtype: torch.dtype) -> Step:
        """Everything that a step can hold, of the same numbers in any dtype, each ready for a gradient."""
        n, k, m = self.images, self.classes, self.images + 2
        chance = torch.Generator().manual_seed(1000 * n + k)

        def leaf(drawn: Tensor) -> Tensor:
            return drawn.to(dtype).requires_grad_()

        def tensor(*shape: int) -> Tensor:
            return leaf(torch.randn(*shape, generator=chance))

        def logits(rows: int = n) -> Tensor:
            return leaf(self.logits(torch.randn(rows, k, generator=chance)))

        def outputs(maps=(), exits: int = 2, rows: int = n) -> Outputs:
            return Outputs(
                [logits(rows) for _ in range(exits)],
                [tensor(rows, WIDTH) for _ in range(exits)],
                [tensor(rows, *shape) for shape in maps],
            )

        def labels(rows: int) -> Tensor:
            """With the first and the last class among them, if there is more than one image."""
            drawn = torch.randint(k, (rows,), generator=chance)
            drawn[0], drawn[-1] = 0, k - 1
            return drawn

        student = outputs(STUDENT, exits=4)
        return Step(
            images=torch.randn(n, 1, 4, 4, generator=chance).to(dtype),
            targets=labels(n),
            student=student,
            teacher=outputs(TEACHER),
            progress=torch.tensor(0.3, dtype=dtype),
            companion=outputs(REFINED, exits=4),
            views=[student, outputs()],
            positives=[outputs() for _ in range(3)],
            pair=outputs(),
            past=logits(),
            last=outputs(rows=m),
            last_targets=labels(m),
            last_logits=logits(m),
            partner_targets=labels(n).flip(0),
            share=torch.rand(n, generator=chance).to(dtype),
        )


SORTS = {
    "one_image_two_classes": Sort(1, 2),
    "six_images_five_classes": Sort(6, 5),
    "six_images_hundred_classes": Sort(6, 100),
    "logits_of_a_thousand": Sort(6, 5, lambda drawn: 1000 * drawn),
    "equal_logits": Sort(6, 5, lambda drawn: drawn.round().clamp(-1, 1)),
}


def leaves(step: Step) -> dict[str, Tensor]:
    """Every tensor of a step that a gradient could reach, by where it stands."""
    found: dict[str, Tensor] = {}

    def look(path: str, thing) -> None:
        if isinstance(thing, Tensor) and thing.requires_grad:
            found[path] = thing
        elif isinstance(thing, Sequence):
            for i, part in enumerate(thing):
                look(f"{path}[{i}]", part)
        elif isinstance(thing, Outputs):
            for part in fields(thing):
                look(f"{path}.{part.name}", getattr(thing, part.name))

    for part in fields(step):
        look(part.name, getattr(step, part.name))
    return found


# ---- cases ----


@dataclass
class Case:
    """A method with some hyper-parameters.  change: what a step of this case has in other ways."""

    method: str
    hyper: dict = field(default_factory=dict)
    label: str = ""
    change: Callable[[Step], dict] = lambda step: {}

    @property
    def name(self) -> str:
        values = [f"{k}={v}" for k, v in self.hyper.items()]
        return "-".join([self.method, *([self.label] if self.label else []), *values])

    def step(self, sort: str, dtype: torch.dtype) -> Step:
        step = SORTS[sort].step(dtype)
        for name, thing in self.change(step).items():
            setattr(step, name, thing)
        step.__post_init__()
        return step

    def made(self):
        method = methods.load(self.method)(**self.hyper)
        method.phases(EPOCHS)
        return method


def without(*names: str) -> Callable[[Step], dict]:
    return lambda step: dict.fromkeys(names)


def with_progress(progress: float) -> Callable[[Step], dict]:
    return lambda step: {"progress": torch.full_like(step.progress, progress)}


def regressed(section: int, phase: int = 1) -> Callable[[Step], dict]:
    """What FitNet's regressor yields has the shape of the teacher's map."""

    def change(step: Step) -> dict:
        like = step.teacher.maps[section - 1]
        chance = torch.Generator().manual_seed(section)
        made = torch.randn(like.shape, generator=chance).to(like.dtype).requires_grad_()
        return {"companion": Outputs([], [], [made]), "phase": phase}

    return change


def adapted(step: Step) -> dict:
    """The journal code's linear layers stand behind the shallow exits alone."""
    return {"companion": Outputs([], step.companion.features[:-1], [])}


CASES = [
    Case("plain"),
    Case("plain_equal_cost"),
    Case("label_smoothing"),
    Case("label_smoothing", {"spread": "others"}),
    Case("label_smoothing", {"spread": "others", "epsilon": 0.4}),
    Case("label_smoothing", {"spread": "all", "epsilon": 0.4}),
    Case("deep_supervision"),
    Case("deep_supervision", {"weight": 0.3}),
    Case("mixup"),
    Case("cutmix"),
    Case("kd"),
    Case("kd", {"alpha": 0.3, "temperature": 2.0}),
    Case("fitnet", change=regressed(2)),
    Case("fitnet", {"section": 1, "weight": 7.0}, change=regressed(1)),
    Case("fitnet", {"two_stages": True}, "first", regressed(2, phase=1)),
    Case("fitnet", {"two_stages": True}, "second", regressed(2, phase=2)),
    Case("fitnet", {"two_stages": True, "kd_weight": 0.4, "temperature": 5.0}, "second", regressed(2, phase=2)),
    Case("attention_transfer"),
    Case("attention_transfer", {"distance": "l2"}),
    Case("attention_transfer", {"distance": "l2", "weight": 3.0}),
    Case("dml"),
    Case("dml", {"temperature": 2.0, "weight": 0.3}),
    Case("byot"),
    *(
        Case("byot", {"reading": reading, **values}, change=adapted if reading == "journal" else lambda step: {})
        for reading in ("luanyunteng", "journal", "mmrazor", "conference")
        for values in ({}, {"t_squared": True}, {"alpha": 0.6, "hint": 2.0, "temperature": 5.0, "t_squared": False})
    ),
    Case("srdl"),
    Case("srdl", label="first_stage", change=without("teacher")),
    Case("srdl", {"temperature": 2.0, "weight": 0.3}),
    Case("srdl", {"restart": False}),
    Case("srdl", {"reference_mode": "train"}),
    *(
        Case("drkd", {"swap": swap, "combined": combined, "reduction": reduction})
        for swap in ("teacher", "student", "none")
        for combined in (False, True)
        for reduction in ("mean", "batchmean")
    ),
    Case("drkd"),
    Case("drkd", {"alpha": 0.4, "temperature": 9.0, "multiplier": 3.0}),
    Case("drkd", {"combined": True, "temperature": 3.0, "multiplier": 2.0, "reg_alpha": 0.6, "reg_temperature": 2.0}),
    Case("sd"),
    Case("sd", {"dynamics": "posterior"}),
    Case("sd", {"distance": "cdf"}),
    Case("sd", {"distance": "cdf", "dynamics": "posterior"}),
    Case("sd", {"feature_weight": 0.3, "smoothing": 0.6}),
    Case("sd", {"distance": "cdf", "feature_weight": 0.3}, "first_epoch", with_progress(0.0)),
    Case("tfkd_self"),
    Case("tfkd_self", {"reduction": "batchmean"}),
    Case("tfkd_self", {"alpha": 0.4, "temperature": 2.0, "multiplier": 3.0}),
    *(
        Case("tfkd_reg", {"soften_student": soften, "reduction": reduction})
        for soften in (False, True)
        for reduction in ("mean", "batchmean")
    ),
    Case("tfkd_reg"),
    Case("tfkd_reg", {"alpha": 0.4, "temperature": 2.0, "multiplier": 3.0, "correct": 0.8, "soften_student": True}),
    Case("born_again"),
    Case("born_again", label="first_generation", change=without("teacher")),
    Case("born_again", {"labels": False}),
    Case("born_again", {"temperature": 4.0}),
    Case("snapshot"),
    Case("snapshot", label="first_cycle", change=without("teacher")),
    Case("snapshot", {"temperature": 3.0, "label_weight": 0.7, "weight": 0.3}),
    Case("cskd"),
    Case("cskd", {"temperature": 2.0, "weight": 0.3}),
    Case("pskd"),
    Case("pskd", label="first_epoch", change=without("past")),
    Case("pskd", {"alpha": 0.5}, "last_epoch", with_progress(0.9)),
    Case("ddgsd"),
    Case("ddgsd", {"as_self_kd_lib": True}),
    Case("ddgsd", {"temperature": 2.0, "weight": 0.3, "feature_weight": 0.7}),
    Case("dlb"),
    Case("dlb", label="first_step", change=without("last", "last_targets", "last_logits")),
    Case("dlb", {"temperature": 2.0, "alpha": 0.3}),
    Case("bake"),
    Case("bake", {"temperature": 2.0, "weight": 0.3, "omega": 0.9}),
    Case("bake", {"positives": 1}, change=lambda step: {"positives": step.positives[:1]}),
    Case("mean_teacher"),
    Case("mean_teacher", {"consistency": "kl"}),
    Case("mean_teacher", {"weight": 3.0, "rampup_epochs": 0}),
    Case("mean_teacher", label="ramped_up", change=with_progress(0.8)),
    Case("mean_teacher", {"consistency": "kl"}, "first_step", with_progress(0.0)),
    Case("frskd"),
    Case("frskd", {"alpha": 0.3, "beta": 3.0, "temperature": 2.0}),
]


# ---- the pure functions on what the steps hold ----


def deepest(outputs: Outputs) -> Tensor:
    return outputs.logits[-1]


def calling(function: Callable, *which: Callable[[Step], object]) -> Callable[[Step, dict], dict]:
    """The function on these parts of a step and on those hyper-parameters that it takes."""

    def call(step: Step, hyper: dict) -> dict:
        taken = {name: hyper[name] for name in inspect.signature(function).parameters if name in hyper}
        return function(*(part(step) for part in which), **taken)

    return call


def student(step: Step) -> Tensor:
    return deepest(step.student)


def teacher(step: Step) -> Tensor:
    return deepest(step.teacher)


def targets(step: Step) -> Tensor:
    return step.targets


def drkd(step: Step, hyper: dict) -> dict:
    return calling(drkd_combined_terms if hyper["combined"] else drkd_terms, student, teacher, targets)(step, hyper)


def byot(step: Step, hyper: dict) -> dict:
    reading = hyper["reading"]
    given = {name: hyper[name] for name in READINGS[reading] if hyper[name] is not None}
    values = READINGS[reading] | given | {"batch_size": len(step.targets)}
    if reading == "journal":
        features = [lambda s: s.companion.features, lambda s: s.student.features[-1]]
        return calling(byot_journal_terms, lambda s: s.student.logits, *features, targets)(step, values)
    functions = {"conference": byot_terms, "luanyunteng": byot_luanyunteng_terms, "mmrazor": byot_mmrazor_terms}
    parts = (lambda s: s.student.logits, lambda s: s.student.features, targets)
    return calling(functions[reading], *parts)(step, values)


def bake(step: Step, hyper: dict) -> dict:
    groups = [step.student, *step.positives]
    logits = torch.cat([deepest(g) for g in groups])
    features = torch.cat([g.features[-1] for g in groups])
    ensemble = propagated(features, logits, temperature=hyper["temperature"], omega=hyper["omega"])
    labels = step.targets.repeat(len(groups))
    return bake_terms(logits, labels, ensemble, temperature=hyper["temperature"], weight=hyper["weight"])


FUNCTIONS = {
    "kd": calling(kd_terms, student, teacher, targets),
    "attention_transfer": calling(
        attention_terms, student, lambda s: s.student.maps, lambda s: s.teacher.maps, targets
    ),
    "dml": calling(dml_terms, student, lambda s: deepest(s.companion), targets),
    "byot": byot,
    "srdl": calling(referenced_terms, student, teacher, targets),
    "drkd": drkd,
    "tfkd_self": calling(tfkd_self_terms, student, teacher, targets),
    "tfkd_reg": calling(tfkd_reg_terms, student, targets),
    "born_again": calling(born_again_terms, student, teacher, targets),
    "snapshot": calling(snapshot_terms, student, teacher, targets),
    "cskd": calling(cskd_terms, student, lambda s: deepest(s.pair), targets),
    "ddgsd": calling(
        ddgsd_terms,
        lambda s: [deepest(view) for view in s.views],
        lambda s: (s.views[0].features[-1] - s.views[1].features[-1]).mean(dim=0),
        targets,
    ),
    "dlb": calling(
        dlb_terms, student, targets, lambda s: deepest(s.last), lambda s: s.last_targets, lambda s: s.last_logits
    ),
    "bake": bake,
    "frskd": calling(
        frskd_terms,
        student,
        lambda s: s.student.maps,
        lambda s: deepest(s.companion),
        lambda s: s.companion.maps,
        targets,
    ),
}


def through_the_function(case: Case, step: Step) -> dict[str, Tensor]:
    return FUNCTIONS[case.method](step, vars(case.made()))


def through_the_class(case: Case, step: Step) -> dict[str, Tensor]:
    return case.made()(step)


def has_function(case: Case) -> bool:
    return case.method in FUNCTIONS and not case.label.startswith("first_")


# ---- the comparison ----

Found = tuple[dict[str, float], dict[str, Tensor | None]]


def terms_and_gradients(terms: dict[str, Tensor | float], step: Step) -> Found:
    sum(terms.values()).backward()
    return {n: literal.value(t) for n, t in terms.items()}, {n: t.grad for n, t in leaves(step).items()}


@cache
def reference(number: int, sort: str) -> Found:
    case = CASES[number]
    step = case.step(sort, torch.float64)
    return terms_and_gradients(getattr(literal, case.method)(step, **case.hyper), step)


def assert_agree(found: Found, expected: Found, tolerance: tuple[float, float]) -> None:
    """Terms, and gradients by the largest entry of each tensor, within `tolerance` (see TOLERANCE)."""
    (terms, gradients), (wanted_terms, wanted_gradients) = found, expected
    relative, share = tolerance
    assert terms == pytest.approx(wanted_terms, rel=relative, abs=share * sum(map(abs, wanted_terms.values())))
    assert gradients.keys() == wanted_gradients.keys()
    steepest = max(g.abs().max().item() for g in wanted_gradients.values() if g is not None)
    for name, wanted in wanted_gradients.items():
        mine = gradients[name]
        if wanted is None:
            assert mine is None or not mine.any(), f"{name} teaches; no gradient may reach it"
        elif mine is None:
            assert not wanted.any(), f"{name} learns; no gradient reached it"
        else:
            apart, allowed = (mine.double() - wanted).abs().max(), relative * wanted.abs().max() + share * steepest
            assert apart <= allowed, f"gradient of {name}: {apart:.3g} apart, of {wanted.abs().max():.3g}"


def check(case: Case, sort: str, dtype: torch.dtype, ours: Callable[[Case, Step], dict]) -> None:
    step = case.step(sort, dtype)
    before = {name: tensor.detach().clone() for name, tensor in leaves(step).items()}
    labels = [t.clone() for t in (step.targets, step.partner_targets)]
    terms = ours(case, step)
    assert {t.dtype for t in terms.values()} == {dtype}
    assert_agree(terms_and_gradients(terms, step), reference(CASES.index(case), sort), TOLERANCE[dtype])
    for name, tensor in leaves(step).items():
        assert torch.equal(tensor, before[name]), f"{name} was written to"
    assert torch.equal(step.targets, labels[0])
    assert torch.equal(step.partner_targets, labels[1])


every_sort = pytest.mark.parametrize("sort", SORTS)
every_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=["float64", "float32"])


@every_dtype
@every_sort
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_method_computes_its_formula(case, sort, dtype):
    check(case, sort, dtype, through_the_class)


@every_dtype
@every_sort
@pytest.mark.parametrize("case", [case for case in CASES if has_function(case)], ids=lambda case: case.name)
def test_function_computes_its_formula(case, sort, dtype):
    check(case, sort, dtype, through_the_function)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_float32_outputs_give_float32_losses_under_autocast(case):
    """The engine computes losses outside of autocast; a loop of one's own may not."""
    outside, inside = (case.step("six_images_five_classes", torch.float32) for _ in range(2))
    expected = terms_and_gradients(case.made()(outside), outside)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = case.made()(inside)
        assert {t.dtype for t in terms.values()} == {torch.float32}
    assert_agree(terms_and_gradients(terms, inside), expected, (1e-6, 1e-12))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_outputs_reach_losses_as_float32(half):
    whole = Outputs([torch.ones(2, 3, dtype=half)], [torch.ones(2, 4, dtype=half)], [torch.ones(2, 1, 2, 2)]).float()
    assert {t.dtype for part in (whole.logits, whole.features, whole.maps) for t in part} == {torch.float32}
    assert Outputs([torch.ones(1, 1).double()], [], []).float().logits[0].dtype == torch.float64


def test_every_method_and_every_switch_has_a_case():
    for method in methods.names():
        hyper = methods.about(method)["hyper"]
        mine = [case.hyper for case in CASES if case.method == method]
        assert {} in mine, f"{method}: no case of the default hyper-parameters"
        for name, spec in hyper.items():
            values = spec.get("choices", [False, True] if isinstance(spec["default"], bool) else [])
            tried = {case.get(name, spec["default"]) for case in mine}
            assert tried >= set(values), f"{method}: {name}"


# ---- by hand ----


def test_the_literal_formulations_give_what_the_hand_gives():
    """Of softmax(ln 3, 0) = (3/4, 1/4) and softmax(0, 0) = (1/2, 1/2)."""
    three, even = [[math.log(3), 0.0]], [[0.0, 0.0]]
    assert literal.softmax(three[0]) == pytest.approx([0.75, 0.25], rel=1e-12)
    assert literal.cross_entropy(three, [1]) == pytest.approx(math.log(4), rel=1e-12)
    assert literal.kl(three, even, 1.0) == pytest.approx(0.75 * math.log(1.5) - 0.25 * math.log(2), rel=1e-12)
    assert literal.kl(even, three, 1.0) == pytest.approx(math.log(2) - 0.5 * math.log(3), rel=1e-12)
    nine = [[2 * math.log(3), 0.0]]
    assert literal.kl(nine, even, 2.0) == pytest.approx(literal.kl(three, even, 1.0), rel=1e-12)
    assert literal.swapped([[3, 1, 2], [1, 1, 0]], [1, 1]) == [[1, 3, 2], [1, 1, 0]]
    assert literal.inverse([[2.0, 1.0], [1.0, 1.0]]) == [[1.0, -1.0], [-1.0, 2.0]]
    assert literal.blocks([[1, 2, 3, 4], [3, 4, 5, 6]], 1, 2) == [[2.5, 4.5]]
    assert literal.attention([[[1.0, 2.0]], [[1.0, 0.0]]]) == pytest.approx([1 / math.sqrt(5), 2 / math.sqrt(5)])
    assert literal.earth_movers([[[1.0, 2.0]]], [[[2.0, 1.5]]]) == pytest.approx(0.125)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_gradient_of_distillation_is_t_times_the_difference_of_probabilities(temperature):
    """d/dz T^2 KL_T = T (softmax(z/T) - softmax(v/T)) / N: about as large at any T, which T^2 is for."""
    step = SORTS["six_images_five_classes"].step(torch.float64)
    z, v = student(step), teacher(step)
    kd_terms(z, v, step.targets, alpha=1.0, temperature=temperature)["distillation"].backward()
    pairs = zip(*(literal.of_each(t.tolist(), temperature) for t in (z, v)), strict=True)
    expected = [[temperature * (p - q) / 6 for p, q in zip(*pair, strict=True)] for pair in pairs]
    torch.testing.assert_close(z.grad, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("classes", [2, 5, 100])
def test_mean_is_the_batch_mean_over_the_classes(classes):
    z, v = torch.randn(2, 3, classes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = literal.kl(v.tolist(), z.tolist(), 3.0)
    assert softened_kl(z, v, 3.0, "batchmean").item() == pytest.approx(expected, rel=1e-9)
    assert softened_kl(z, v, 3.0, "mean").item() == pytest.approx(expected / classes, rel=1e-9)


def test_the_virtual_teacher_is_a_softmax_of_probabilities():
    """At T = 20 and K = 10 nearly uniform: 0.1044 for the label, where a softened 0.99 would keep more."""
    found = virtual_teacher(torch.zeros(1, 10, dtype=torch.float64), torch.tensor([9]), 0.99, 20.0)[0]
    on, off = math.exp(0.99 / 20), math.exp(0.01 / 9 / 20)
    assert found.tolist() == pytest.approx([off / (on + 9 * off)] * 9 + [on / (on + 9 * off)], rel=1e-12)


# ---- ties and aliases ----


@pytest.mark.parametrize("classes", [2, 5, 100])
def test_of_equal_largest_logits_the_first_is_exchanged(classes):
    chance = torch.Generator().manual_seed(classes)
    logits = torch.randint(3, (200, classes), generator=chance).double()
    logits += 1e-3 * (torch.arange(200) % 2).double().unsqueeze(1) * torch.arange(classes)  # odd rows without ties
    labels = torch.arange(200) % classes
    assert rectify(logits, labels).tolist() == literal.swapped(logits.tolist(), labels.tolist())


def test_rectified_logits_share_no_memory_with_the_callers():
    base = torch.tensor([[3.0, 9.0, 1.0], [0.0, 9.0, 1.0], [2.0, 9.0, 2.5]])
    rows, labels = base[:, ::2], torch.tensor([1, 0, 1])  # a view, two columns of three
    found = rectify(rows, labels)
    assert found.tolist() == [[1.0, 3.0], [1.0, 0.0], [2.0, 2.5]]
    found.zero_()
    assert base.tolist() == [[3.0, 9.0, 1.0], [0.0, 9.0, 1.0], [2.0, 9.0, 2.5]]


# ---- nothing apart ----


@pytest.mark.parametrize("distance", ["mean_square", "l2"])
def test_equal_attention_maps_pull_nowhere(distance):
    maps = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    loss = attention_distance(maps, maps, distance)
    loss.backward()
    assert loss.item() == 0
    assert maps.grad.isfinite().all()
    assert maps.grad.abs().max() == 0


@pytest.mark.parametrize("distance", ["mean_square", "l2"])
def test_attention_of_a_map_of_zeros_is_finite(distance):
    zeros = torch.zeros(2, 3, 2, 2, requires_grad=True)
    loss = attention_distance(zeros, torch.ones(2, 3, 2, 2), distance)
    loss.backward()
    assert loss.item() == pytest.approx({"mean_square": 0.25, "l2": 1.0}[distance])
    assert zeros.grad.isfinite().all()


def test_equal_features_pull_nowhere_in_byots_journal_reading():
    step = SORTS["six_images_five_classes"].step(torch.float64)
    same = [step.student.features[-1].detach().clone().requires_grad_() for _ in range(3)]
    step.companion = Outputs([], same, [])
    terms = methods.load("byot")(reading="journal")(step)
    sum(terms.values()).backward()
    assert terms["hint"].item() == pytest.approx(0, abs=1e-12)
    assert all(f.grad is None or not f.grad.any() for f in same)


# ---- the parts that the classes put together ----


def test_byots_adaptation_is_a_linear_layer_an_exit():
    step = SORTS["six_images_five_classes"].step(torch.float64)
    layers = methods.load("byot")(reading="journal").companion(step.student, None, None).double()
    found = layers(step.images, step.student).features
    assert len(found) == 2  # of four exits the two shallowest
    for layer, feature, adapted in zip(layers.layers, step.student.features, found, strict=False):
        rows, weight, bias = feature.tolist(), layer.weight.tolist(), layer.bias.tolist()
        expected = [
            [sum(w * x for w, x in zip(line, row, strict=True)) + b for line, b in zip(weight, bias, strict=True)]
            for row in rows
        ]
        torch.testing.assert_close(adapted, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("section", [0, 1, 2])
def test_feature_distances_are_literal(section):
    """Unequal sizes and channels, each function by itself."""
    step = SORTS["six_images_five_classes"].step(torch.float64)
    mine, theirs = step.student.maps[section], step.teacher.maps[section]
    for distance in ("mean_square", "l2"):
        expected = literal.attention_distance(mine.tolist(), theirs.tolist(), distance)
        assert attention_distance(mine, theirs, distance).item() == pytest.approx(expected, rel=1e-9)
    rows = [x for image in theirs.tolist() for plane in image for line in plane for x in line]
    expected = literal.mean((x - 1) ** 2 for x in rows)
    assert hint_distance(torch.ones_like(theirs), theirs).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("channels", [1, 3, 6, 12], ids="{}_to_6".format)
@pytest.mark.parametrize("side", [2, 4])
@pytest.mark.parametrize(
    ("fast", "slow"), [(emd_l2, literal.earth_movers), (cdf_l2, literal.cumulated_squares)], ids=["emd", "cdf"]
)
def test_local_features_are_matched_many_to_one(fast, slow, side, channels):
    """The wider of the two has its channels averaged, the larger its positions; the deep one only teaches."""
    chance = torch.Generator().manual_seed(side + channels)
    shallow = torch.randn(3, channels, side, side, generator=chance, dtype=torch.float64).requires_grad_()
    deep = torch.randn(3, 6, 2, 2, generator=chance, dtype=torch.float64).requires_grad_()
    again = shallow.detach().clone().requires_grad_()
    found = fast(shallow, deep)
    found.backward()
    expected = literal.mean(slow(a, b) for a, b in zip(literal.learns(again), deep.tolist(), strict=True))
    expected.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)
    torch.testing.assert_close(shallow.grad, again.grad, rtol=1e-9, atol=1e-14)
    assert deep.grad is None


@pytest.mark.parametrize("omega", [0.0, 0.5, 0.9])
def test_bake_propagates_as_the_inverse_and_as_endless_turns_do(omega):
    chance = torch.Generator().manual_seed(0)
    features = torch.randn(7, 4, generator=chance, dtype=torch.float64)
    logits = 3 * torch.randn(7, 5, generator=chance, dtype=torch.float64)
    predictions = literal.of_each(logits.tolist(), 4.0)
    found = propagated(features, logits, temperature=4.0, omega=omega)
    for expected in (
        literal.propagated_by_inverse(features.tolist(), predictions, omega),
        literal.propagated_by_turns(features.tolist(), predictions, omega, turns=250),
    ):
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-14)
    assert found.sum(dim=1).tolist() == pytest.approx([1] * 7, rel=1e-12)


@pytest.mark.parametrize("omega", [0.0, 1e-12, 0.1, 0.5, 0.9, 0.999])
def test_bake_agrees_with_a_solver(omega):
    """In float32, with images that are alike and some of no features, whatever products are allowed to round to."""
    chance = torch.Generator().manual_seed(1)
    features, logits = torch.randn(64, 16, generator=chance).relu(), 5 * torch.randn(64, 10, generator=chance)
    features[:3], features[3:6] = 0, features[6]
    normalised = torch.nn.functional.normalize(features.double(), dim=1)
    affinity = (normalised @ normalised.T).fill_diagonal_(-torch.inf).softmax(dim=1)
    predictions = (1 - omega) * (logits.double() / 4).softmax(dim=1)
    expected = torch.linalg.solve(torch.eye(64, dtype=torch.float64) - omega * affinity, predictions)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = propagated(features, logits, temperature=4.0, omega=omega)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("over", "length", "expected"),
    [
        (0.0, 5, math.exp(-5)),
        (2.0, 5, math.exp(-1.8)),
        (5.0, 5, 1.0),
        (9.0, 5, 1.0),
        (0.0, 0, 1.0),
    ],
)
def test_the_consistency_ramps_up(over, length, expected):
    assert ramp(torch.tensor(over, dtype=torch.float64), length).item() == pytest.approx(expected, rel=1e-12)


def test_consistency_is_over_images_and_classes_or_over_images_alone():
    even, three = torch.zeros(2, 2, dtype=torch.float64), torch.tensor([[3.0, 1.0]]).double().log().repeat(2, 1)
    assert consistency(even, three, "mse").item() == pytest.approx(0.0625, rel=1e-12)
    expected = 0.75 * math.log(1.5) - 0.25 * math.log(2)
    assert consistency(even, three, "kl").item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_progressive_targets_are_blended(share):
    step = SORTS["six_images_five_classes"].step(torch.float64)
    z, past, y = student(step), step.past, step.targets
    blended = [
        [(1 - share) * q + share * p for q, p in zip(literal.one_hot(label, 5), literal.softmax(row), strict=True)]
        for label, row in zip(y.tolist(), past.tolist(), strict=True)
    ]
    expected = literal.cross_entropy_to(blended, z.tolist())
    assert progressive_cross_entropy(z, past, y, share).item() == pytest.approx(expected, rel=1e-9)


def test_smoothing_may_differ_from_image_to_image():
    step = SORTS["six_images_five_classes"].step(torch.float64)
    z, epsilon = student(step), torch.linspace(0, 1, 6, dtype=torch.float64)
    rows = [
        [(1 - e) * q + e / 5 for q in literal.one_hot(label, 5)]
        for label, e in zip(step.targets.tolist(), epsilon.tolist(), strict=True)
    ]
    expected = literal.cross_entropy_to(rows, z.tolist())
    assert smoothed_cross_entropy(z, step.targets, epsilon).item() == pytest.approx(expected, rel=1e-9)


# ---- mixing ----


@pytest.fixture
def pictures():
    """Images, partners and their labels' logits; no two pixels are alike."""
    numbers = torch.arange(2 * 4 * 2 * 8 * 8, dtype=torch.float64).view(2, 4, 2, 8, 8)
    return numbers[0].clone(), numbers[1].clone()


def pixels(images: Tensor):
    return torch.cartesian_prod(*(torch.arange(s) for s in images.shape)).tolist()


def test_mixup_blends_pixel_by_pixel(pictures):
    images, partners = pictures
    kept = [t.clone() for t in pictures]
    share = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    for found in (
        mixup(images, partners, share),
        methods.load("mixup")().mix(images, partners, share, torch.zeros(4, 2))[0],
    ):
        for n, c, i, j in pixels(images):
            s = share[n].item()
            assert found[n, c, i, j].item() == s * images[n, c, i, j].item() + (1 - s) * partners[n, c, i, j].item()
    assert methods.load("mixup")().mix(images, partners, share, torch.zeros(4, 2))[1] is share
    assert torch.equal(images, kept[0])
    assert torch.equal(partners, kept[1])


def test_cutmix_pastes_a_box_and_counts_its_pixels(pictures):
    """Boxes of 4, 6, 8 and no rows and columns; one sticks out at a corner, one at an edge."""
    images, partners = pictures
    kept = [t.clone() for t in pictures]
    share = torch.tensor([1 - 0.5**2, 1 - 0.75**2, 0.0, 1.0], dtype=torch.float64)
    centres = torch.tensor([[0.5, 0.5], [0.0, 0.0], [0.5, 0.875], [0.5, 0.5]], dtype=torch.float64)
    rows = [range(2, 6), range(0, 3), range(8), range(0)]
    columns = [range(2, 6), range(0, 3), range(3, 8), range(0)]
    for found, stayed in (
        cutmix(images, partners, share, centres),
        methods.load("cutmix")().mix(images, partners, share, centres),
    ):
        for n, c, i, j in pixels(images):
            source = partners if i in rows[n] and j in columns[n] else images
            assert found[n, c, i, j] == source[n, c, i, j]
        expected = [1 - len(r) * len(s) / 64 for r, s in zip(rows, columns, strict=True)]
        assert stayed.tolist() == pytest.approx(expected, rel=1e-6)
    assert torch.equal(images, kept[0])
    assert torch.equal(partners, kept[1])


def test_mixed_labels_weigh_by_share():
    """CE(z, y) = ln 4 and CE(z, y') = ln(4/3) of softmax(z) = (3/4, 1/4)."""
    z = torch.tensor([[math.log(3), 0.0]] * 2, dtype=torch.float64)
    share = torch.tensor([0.25, 1.0], dtype=torch.float64)
    found = mixed_cross_entropy(z, torch.tensor([1, 1]), torch.tensor([0, 0]), share)
    expected = ((0.25 * math.log(4) + 0.75 * math.log(4 / 3)) + math.log(4)) / 2
    assert found.item() == pytest.approx(expected, rel=1e-12)
