"""Every loss against values that public implementations gave (`public_values.json`), without those codes."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import selfdistill.methods
from selfdistill import methods
from selfdistill.models.sections import Outputs
from selfdistill.training.method import Method, Step

DATA = json.loads((Path(__file__).parent / "public_values.json").read_text(encoding="utf-8"))
EPOCHS = 10  # of which a step's `progress` is a share
TOLERANCE = 1e-9  # relative; some values name a wider one, and say why
Summary = tuple[float, float] | None  # of a gradient: l2 norm and sum over cos(i) x_i


class Compared(NamedTuple):
    value: float
    gradients: dict[str, Summary]


def waves(shape: list[int] | torch.Size, scale: float, rate: float, phase: float) -> Tensor:
    numbers = [scale * math.sin(rate * i + phase) for i in range(math.prod(shape))]
    return torch.tensor(numbers, dtype=torch.float64).view(*shape)


def made(name: str) -> Tensor:
    given = DATA["inputs"][name]
    return torch.tensor(given) if isinstance(given, list) else waves(**given)


def summary(tensor: Tensor | None) -> Summary:
    if tensor is None or not tensor.any():
        return None
    along = torch.arange(tensor.numel(), dtype=torch.float64).cos()
    return tensor.norm().item(), (tensor.flatten() * along).sum().item()


def names(part) -> Iterator[str]:
    """Of the inputs that a part of a step is made of."""
    if isinstance(part, str):
        yield part
    elif isinstance(part, dict | list):
        for inner in part.values() if isinstance(part, dict) else part:
            yield from names(inner)


def put_together(part, tensors: dict[str, Tensor]):
    if isinstance(part, str):
        return tensors[part]
    if isinstance(part, list):
        return [put_together(inner, tensors) for inner in part]
    if isinstance(part, dict):
        return Outputs(*([tensors[name] for name in part.get(kind, [])] for kind in ("logits", "features", "maps")))
    return torch.tensor(part, dtype=torch.float64)


def method_of(record: dict) -> Method:
    method = methods.load(record["method"])(**record["hyper"])
    method.phases(EPOCHS)
    return method


def ours(record: dict) -> Compared:
    """What our method gives in the place of the public code."""
    method = method_of(record)
    tensors = {name: made(name) for name in names(record["step"])}
    learning = {name: t.requires_grad_() for name, t in tensors.items() if t.is_floating_point()}
    parts = {name: put_together(part, tensors) for name, part in record["step"].items()}
    if mixing := record.get("mixing"):
        parts["partner_targets"] = parts["targets"][mixing["order"]]
        parts["share"] = torch.full((len(mixing["order"]),), mixing["stayed"], dtype=torch.float64)
    step = Step(images=torch.zeros(len(parts["targets"]), 1, 1, 1), **parts)
    beside = None
    if "parameters" in record:
        beside = method.companion(step.student, step.teacher, lambda: pytest.fail("no second network is compared"))
        beside.double()
        with torch.no_grad():
            for j, (_, p) in enumerate(beside.named_parameters()):
                p.copy_(waves(p.shape, 0.3, 1, j) + 1 if p.ndim == 1 else waves(p.shape, 0.5, 1, j))
        step.companion = beside(step.images, step.student)
    terms = method(step)
    factors = record.get("factors", {})
    assert factors.keys() <= terms.keys()
    value = sum(factors.get(name, 1) * term for name, term in terms.items())
    value.backward()
    gradients = {name: summary(t.grad) for name, t in learning.items()}
    if beside is not None:
        gradients["parameters"] = summary(torch.cat([p.grad.flatten() for p in beside.parameters()]))
    return Compared(value.item(), gradients)


def public(record: dict) -> Compared:
    gradients = {name: None if g is None else tuple(g) for name, g in record["gradients"].items()}
    if "parameters" in record:
        gradients["parameters"] = tuple(record["parameters"])
    return Compared(record["value"], gradients)


def differences(mine: Compared, theirs: Compared) -> tuple[float, float]:
    """Relative: of the value, and the largest of the gradients, of both numbers as shares of the norm."""
    of_value = abs(mine.value - theirs.value) / abs(theirs.value)
    assert mine.gradients.keys() == theirs.gradients.keys()
    of_gradients = [0.0]
    for name, wanted in theirs.gradients.items():
        found = mine.gradients[name]
        assert (found is None) == (wanted is None), f"{name}: ours {found}, the public code's {wanted}"
        if found and wanted:
            of_gradients += [abs(a - b) / wanted[0] for a, b in zip(found, wanted, strict=True)]
    return of_value, max(of_gradients)


def identity(record: dict) -> str:
    hyper = [f"{k}={v}" for k, v in record["hyper"].items()]
    return "-".join([record["method"], *hyper, record["repository"].split("/")[1]])


def card(method: str) -> str:
    return (Path(selfdistill.methods.__file__).parent / f"{method}.md").read_text(encoding="utf-8")


every_value = pytest.mark.parametrize("record", DATA["values"], ids=identity)


@every_value
def test_method_gives_the_public_codes_value_and_gradients(record):
    tolerance = record.get("tolerance", TOLERANCE)
    assert tolerance == TOLERANCE or record["note"]
    of_value, of_gradients = differences(ours(record), public(record))
    assert of_value <= tolerance
    assert of_gradients <= tolerance


@pytest.mark.parametrize("record", [r for r in DATA["values"] if "mixing" in r], ids=identity)
def test_images_are_mixed_as_by_the_public_code(record):
    mixing, images = record["mixing"], made("x")
    count = len(images)
    share = torch.full((count,), mixing["share"], dtype=torch.float64)
    centres = torch.tensor([mixing.get("centre", [0, 0])] * count) / images.shape[-1]
    mixed, stayed = method_of(record).mix(images, images[mixing["order"]], share, centres)
    assert summary(mixed) == pytest.approx(tuple(mixing["mixed"]), rel=TOLERANCE)
    assert stayed.tolist() == pytest.approx([mixing["stayed"]] * count, rel=TOLERANCE)


def test_every_method_and_switch_has_a_public_value_or_says_why_not():
    shown = [(r["method"], r["hyper"]) for r in DATA["values"]]
    shown += [(r["method"], reading) for r in DATA["recalled"] for reading in r["readings"]]
    for method in methods.names():
        mine = [hyper for name, hyper in shown if name == method]
        assert mine, f"{method}: neither a public value nor a line under `recalled`"
        for name, spec in methods.about(method)["hyper"].items():
            values = spec.get("choices", [False, True] if isinstance(spec["default"], bool) else [])
            tried = {hyper.get(name, spec["default"]) for hyper in mine}
            assert tried >= set(values), f"{method}: {name}"


def test_cards_cite_the_codes_that_values_are_of():
    for record in DATA["values"]:
        assert f"@{record['commit'][:7]}" in card(record["method"]), identity(record)


def test_cards_say_what_is_recalled():
    for row in DATA["recalled"]:
        assert row["status"] != "recalled" or "recalled" in card(row["method"])
