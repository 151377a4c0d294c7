"""RandAugment and AutoAugment: torchvision's operations, drawn by the plan."""

import itertools
import subprocess
import sys
from pathlib import Path

import made
import pytest
import torch

from selfdistill.data.vision import import_torchvision
from selfdistill.seeds import derived_seed
from selfdistill.training.checkpoint import Checkpoints
from selfdistill.training.distributed import World
from selfdistill.training.plan import draw_plan
from selfdistill.training.policy import (
    CIFAR,
    FILL,
    MAGNITUDES,
    NAMES,
    OPERATIONS,
    SIGNED,
    AutoAugment,
    Operation,
    RandAugment,
    apply_policy,
    operate,
)
from selfdistill.training.source import Resident, batches
from selfdistill.training.stopping import Interrupted

import_torchvision()
from torchvision.transforms import v2  # noqa: E402  (after the import that may have to be helped)

POLICIES = {"randaugment": RandAugment(2, 9), "autoaugment": AutoAugment()}


def theirs(name: str) -> str:
    """torchvision's name of an operation."""
    return "AutoContrast" if name == "auto_contrast" else "".join(part.title() for part in name.split("_"))


def images_of(count: int, channels: int = 3, side: int = 20) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randint(20, 230, (count, channels, side, side + 3), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_an_operation_is_torchvisions(name, channels):
    """To the bit, for every magnitude and sign of both policies."""
    images = images_of(3, channels)
    changed = 0
    for steps, transform in ((31, v2.RandAugment(fill=FILL)), (10, v2.AutoAugment(fill=FILL))):
        if theirs(name) not in transform._AUGMENTATION_SPACE:
            continue
        magnitudes, signed = transform._AUGMENTATION_SPACE[theirs(name)]
        of = magnitudes(steps, *images.shape[-2:])
        assert (of is not None, signed) == OPERATIONS[name]
        for step, negative in itertools.product(range(steps if of is not None else 1), (False, True)[: 1 + signed]):
            magnitude = 0.0 if of is None else float(of[step]) * (-1 if negative else 1)
            expected = transform._apply_image_or_video_transform(
                images, theirs(name), magnitude, interpolation=transform.interpolation, fill=transform._fill
            )
            found = operate(Operation(name, step, negative), images, steps)
            assert torch.equal(found, expected), (step, negative)
            changed += not torch.equal(found, images)
    assert changed or name in ("identity", *(["color"] if channels == 1 else []))


def test_the_pairs_of_autoaugment_are_torchvisions():
    expected = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)._policies
    assert [[(theirs(n), p, m) for n, p, m in pair] for pair in CIFAR] == [
        [(n, p, m or 0) for n, p, m in pair] for pair in expected
    ]


@pytest.mark.parametrize("name", POLICIES)
def test_a_batch_is_its_images_one_by_one(name):
    """Whatever else is in the batch, an image comes out the same: so it does for any number of processes."""
    policy, images = POLICIES[name], images_of(40)
    drawn = policy.draw(40, torch.Generator().manual_seed(0))
    before = images.clone()
    whole = apply_policy(policy, images, drawn)
    assert torch.equal(images, before)
    assert whole.dtype == torch.uint8
    for i in range(40):
        one = images[i : i + 1]
        for code in drawn[i].tolist():
            one = operate(Operation.of(code), one, policy.steps)
        assert torch.equal(whole[i], one[0])
    for world in (World(0, 2), World(1, 2), World(2, 3)):
        mine = world.share(0, 40)
        assert torch.equal(apply_policy(policy, images[mine], drawn[mine]), whole[mine])


def test_operations_of_randaugment_are_drawn_uniformly():
    drawn = RandAugment(3, 7).draw(14_000, torch.Generator().manual_seed(0))
    found = [[Operation.of(code) for code in column] for column in drawn.T.tolist()]
    for column in found:
        for name in NAMES[:-1]:
            mine = [operation for operation in column if operation.name == name]
            assert 880 < len(mine) < 1120, name  # 1000, standard deviation 30
            has_magnitude, has_sign = OPERATIONS[name]
            assert {operation.magnitude for operation in mine} == {7 if has_magnitude else 0}
            share = sum(operation.negative for operation in mine) / len(mine)
            assert abs(share - 0.5) < 0.07 if has_sign else share == 0, name
    assert all(operation.name != "invert" for column in found for operation in column)
    together = sum(a == b for a, b in zip(found[0], found[1], strict=True))
    assert together < 0.1 * 14_000  # places are drawn one by one


def test_pairs_of_autoaugment_are_drawn_with_their_probabilities():
    count = 50_000
    drawn = AutoAugment().draw(count, torch.Generator().manual_seed(0))
    for place in range(2):
        found, expected = torch.zeros(len(NAMES)), torch.zeros(len(NAMES))
        for code, times in zip(*drawn[:, place].unique(return_counts=True), strict=True):
            found[NAMES.index(Operation.of(int(code)).name)] += int(times) / count
        for pair in CIFAR:
            name, probability, _ = pair[place]
            expected[NAMES.index(name)] += probability / len(CIFAR)
            expected[0] += (1 - probability) / len(CIFAR)
        torch.testing.assert_close(found, expected, rtol=0, atol=0.007)  # 3 standard deviations


def test_a_policy_changes_no_other_draw():
    wanted = {"seed": 1, "epoch": 4, "batch_size": 8, "crop_padding": 2}
    labels = torch.arange(23) % 3
    without, drawn = draw_plan(labels, **wanted), draw_plan(labels, **wanted, policy=RandAugment(2, 9))
    for name, table in without.items():
        assert "policy" not in table
        assert drawn[name].keys() == {*table, "policy"}
        assert all(torch.equal(column, drawn[name][key]) for key, column in table.items())
    again, later = (draw_plan(labels, **{**wanted, "epoch": e}, policy=RandAugment(2, 9)) for e in (4, 5))
    assert torch.equal(again["main"]["policy"], drawn["main"]["policy"])
    assert not torch.equal(later["main"]["policy"], drawn["main"]["policy"])
    crops = torch.Generator().manual_seed(derived_seed(1, "augmentation/4"))  # what crops and flips are drawn from
    assert not torch.equal(drawn["main"]["policy"], RandAugment(2, 9).draw(23, crops))


def test_a_policy_follows_the_flip_and_precedes_the_cutout():
    recipe = made.RECIPE.model_copy(update={"policy": "randaugment", "policy_operations": 1, "cutout": 4})
    images, labels = made.made_images(8, 1)
    plan = draw_plan(labels, seed=0, epoch=0, batch_size=8, crop_padding=1, policy=RandAugment(1, 9))
    plan["main"]["policy"] = torch.full((8, 1), NAMES.index("invert") * MAGNITUDES * SIGNED)
    source, wanted = Resident(images, labels), [slice(0, 8)]
    (inverted,) = batches(source, plan, wanted, recipe)
    (plain,) = batches(source, plan, wanted, recipe.model_copy(update={"policy": "none", "cutout": 0}))
    (blanked,) = batches(source, plan, wanted, recipe.model_copy(update={"policy": "none"}))
    hole = (plain["main"] != blanked["main"]) | (inverted["main"] == 0)
    assert (inverted["main"][hole] == 0).all()
    assert torch.equal(inverted["main"][~hole], 255 - plain["main"][~hole])
    assert 0 < hole.float().mean() < 0.5


@pytest.mark.parametrize("name", POLICIES)
def test_a_training_with_a_policy_resumes_to_the_bit(name, tmp_path):
    """In the middle of an epoch, for a method with several streams."""
    whole = made.train("dlb", policy=name)
    assert made.bits(whole) != made.bits(made.train("dlb"))
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(Interrupted):
        made.train("dlb", policy=name, checkpoints=checkpoints, interruption=made.stop_after(6))
    resumed = made.train("dlb", policy=name, checkpoints=checkpoints)
    assert made.bits(resumed) == made.bits(whole)
    assert resumed.history == whole.history


def test_torchvision_is_not_loaded_without_a_policy():
    code = "import sys, made; made.train('plain', epochs=1, warmup_epochs=0); sys.exit('torchvision' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, check=True)
