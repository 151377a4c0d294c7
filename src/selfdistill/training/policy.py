"""RandAugment and AutoAugment: operations on whole uint8 batches, computed by torchvision.

What is random comes from the epoch's plan, as a code for each image and operation (see `Operation`), so that an image
is augmented in the same way in every process, batch or run.  The images of a batch that share a code
are computed together.  docs/performance.md says how fast that is.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from selfdistill.data.vision import import_torchvision

# What shears, shifts and rotations bring in from outside. torchvision's default is 0; the papers' own code fills with
# the data set's mean (AutoAugment) or 128 (RandAugment), and that of BYOT's journal version with 128.
FILL = 128.0

# Operations by number, those of RandAugment first and in torchvision's order: whether each has a magnitude, and a sign.
OPERATIONS = {
    "identity": (False, False),
    "shear_x": (True, True),
    "shear_y": (True, True),
    "translate_x": (True, True),
    "translate_y": (True, True),
    "rotate": (True, True),
    "brightness": (True, True),
    "color": (True, True),
    "contrast": (True, True),
    "sharpness": (True, True),
    "posterize": (True, False),
    "solarize": (True, False),
    "auto_contrast": (False, False),
    "equalize": (False, False),
    "invert": (False, False),
}
NAMES = list(OPERATIONS)
RANDAUGMENT = len(NAMES) - 1  # all but invert
SIGNED, MAGNITUDES = 2, 64  # a code is (operation x MAGNITUDES + magnitude) x SIGNED + negative

# The 25 pairs of AutoAugment for CIFAR-10 (Cubuk et al. 2019, arXiv 1805.09501): operation, probability, magnitude
CIFAR = [
    (("invert", 0.1, 0), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("auto_contrast", 0.5, 0), ("equalize", 0.9, 0)),
    (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("color", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 0), ("equalize", 0.5, 0)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("color", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalize", 0.3, 0), ("auto_contrast", 0.4, 0)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("color", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 0)),
    (("equalize", 0.2, 0), ("auto_contrast", 0.6, 0)),
    (("equalize", 0.2, 0), ("equalize", 0.6, 0)),
    (("color", 0.9, 9), ("equalize", 0.6, 0)),
    (("auto_contrast", 0.8, 0), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("color", 0.7, 0)),
    (("solarize", 0.4, 5), ("auto_contrast", 0.9, 0)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("auto_contrast", 0.9, 0), ("solarize", 0.8, 3)),
    (("equalize", 0.8, 0), ("invert", 0.1, 0)),
    (("translate_y", 0.7, 9), ("auto_contrast", 0.9, 0)),
]


@dataclass(frozen=True)
class Operation:
    """name: in OPERATIONS; magnitude: its step, from 0; negative: whether its sign is."""

    name: str
    magnitude: int = 0
    negative: bool = False

    @classmethod
    def of(cls, code: int) -> "Operation":
        rest, negative = divmod(code, SIGNED)
        number, magnitude = divmod(rest, MAGNITUDES)
        return cls(NAMES[number], magnitude, bool(negative))


def codes(operations: Tensor, magnitudes: Tensor, negative: Tensor) -> Tensor:
    """int64 codes of operations, magnitudes and signs (0 or 1), int64 tensors that broadcast.  A magnitude or sign that
    an operation does not have is 0, so that one operation has one code."""
    has_magnitude, has_sign = torch.tensor(list(OPERATIONS.values())).long().unbind(dim=1)
    magnitudes = magnitudes * has_magnitude[operations]
    return (operations * MAGNITUDES + magnitudes) * SIGNED + negative * has_sign[operations]


@dataclass(frozen=True)
class RandAugment:
    """`operations` of 14, each equally likely, one after another, all of one `magnitude`, a step from 0 to 30, with a
    random sign (Cubuk et al. 2020, arXiv 1909.13719, section 3)."""

    operations: int
    magnitude: int
    steps: ClassVar[int] = 31

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """int64 `count` x `operations` codes."""
        shape = count, self.operations
        operations = torch.randint(RANDAUGMENT, shape, generator=generator)
        negative = torch.randint(2, shape, generator=generator)
        return codes(operations, torch.tensor(self.magnitude), negative)


@dataclass(frozen=True)
class AutoAugment:
    """One of 25 pairs of operations, each operation with a probability, a magnitude, a step from 0 to 9, and a random
    sign: the policy found for CIFAR-10 (Cubuk et al. 2019, arXiv 1805.09501)."""

    steps: ClassVar[int] = 10

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """int64 `count` x 2 codes; an operation that does not happen is the identity."""
        operations = torch.tensor([[NAMES.index(name) for name, _, _ in pair] for pair in CIFAR])
        probabilities = torch.tensor([[probability for _, probability, _ in pair] for pair in CIFAR])
        magnitudes = torch.tensor([[magnitude for _, _, magnitude in pair] for pair in CIFAR])
        pair = torch.randint(len(CIFAR), (count,), generator=generator)
        happens = torch.rand(count, 2, generator=generator) < probabilities[pair]
        negative = torch.randint(2, (count, 2), generator=generator)
        return codes(operations[pair] * happens, magnitudes[pair], negative)


Policy = RandAugment | AutoAugment


def make_policy(recipe: Any) -> Policy | None:
    """The policy that a recipe (`selfdistill.config.Recipe`) names, None where it names none."""
    if recipe.policy == "randaugment":
        return RandAugment(recipe.policy_operations, recipe.policy_magnitude)
    return AutoAugment() if recipe.policy == "autoaugment" else None


def apply_policy(policy: Policy, images: Tensor, drawn: Tensor) -> Tensor:
    """What a policy has drawn, done to uint8 N x C x H x W images of 1 or 3 channels.

    drawn: int64 N x K codes.  They are on the CPU, wherever the images are: which images go together is decided there,
    so that a GPU is not waited for.
    """
    for column in drawn.unbind(dim=1):
        order = column.argsort(stable=True)
        found, sizes = column[order].unique_consecutive(return_counts=True)
        groups = images[order.to(images.device, non_blocking=True)].split(sizes.tolist())
        done = [
            operate(Operation.of(code), group, policy.steps) for code, group in zip(found.tolist(), groups, strict=True)
        ]
        images = torch.cat(done)[order.argsort().to(images.device, non_blocking=True)]
    return images


def operate(operation: Operation, images: Tensor, steps: int) -> Tensor:
    """One operation on uint8 N x C x H x W images, with torchvision's magnitudes for so many `steps`."""
    import_torchvision()
    from torchvision.transforms.v2 import functional as F

    height, width = images.shape[-2:]

    def upto(largest: float) -> float:
        """The magnitude where `largest` is the last step's, rounded to float32 as torchvision's is."""
        value = torch.linspace(0.0, largest, steps)[operation.magnitude].item()
        return -value if operation.negative else value

    def sheared(x: float, y: float) -> Tensor:
        degrees = [math.degrees(math.atan(slope)) for slope in (x, y)]
        return F.affine(images, 0.0, [0, 0], 1.0, degrees, fill=FILL, center=[0, 0])

    def shifted(x: float, y: float) -> Tensor:
        return F.affine(images, 0.0, [int(x), int(y)], 1.0, [0.0, 0.0], fill=FILL)

    share = 150 / 331  # of the image's side: AutoAugment shifts ImageNet's 331 pixels by up to 150
    operations = {
        "identity": lambda: images,
        "shear_x": lambda: sheared(upto(0.3), 0.0),
        "shear_y": lambda: sheared(0.0, upto(0.3)),
        "translate_x": lambda: shifted(upto(share * width), 0.0),
        "translate_y": lambda: shifted(0.0, upto(share * height)),
        "rotate": lambda: F.rotate(images, upto(30.0), fill=FILL),
        "brightness": lambda: F.adjust_brightness(images, 1 + upto(0.9)),
        "color": lambda: F.adjust_saturation(images, 1 + upto(0.9)),
        "contrast": lambda: F.adjust_contrast(images, 1 + upto(0.9)),
        "sharpness": lambda: F.adjust_sharpness(images, 1 + upto(0.9)),
        "posterize": lambda: F.posterize(images, round(8 - 4 * operation.magnitude / (steps - 1))),
        "solarize": lambda: F.solarize(images, 255 * torch.linspace(1.0, 0.0, steps)[operation.magnitude].item()),
        "auto_contrast": lambda: F.autocontrast(images),
        "equalize": lambda: F.equalize(images),
        "invert": lambda: F.invert(images),
    }
    return operations[operation.name]()
