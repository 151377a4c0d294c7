"""FitNets, hints from a trained teacher's middle layer (Romero et al., ICLR 2015, arXiv 1412.6550)."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from selfdistill.models.sections import Outputs
from selfdistill.training.losses import softened_kl
from selfdistill.training.method import Method, Phase, Step, StepError

ABOUT = {
    "class": "FitNet",
    "needs": ["teacher", "companion"],
    "hyper": {
        "weight": {"default": 100.0, "allowed": [0.0, 100000.0]},
        "section": {"default": 2, "allowed": [1, 100]},
        "two_stages": {"default": False},
        "split": {"default": 0.5, "allowed": [0.01, 0.99]},
        "kd_weight": {"default": 1.0, "allowed": [0.0, 1000.0]},
        "temperature": {"default": 3.0, "allowed": [0.01, 1000.0]},
    },
}


def hint_distance(regressed: Tensor, hint: Tensor) -> Tensor:
    """Mean over images, channels and positions of (r(F_s) - F_t)^2; both N x C x H x W, the hint detached."""
    return (regressed - hint.detach()).square().mean()


def fitnet_terms(
    logits: Tensor, regressed: Tensor, hint: Tensor, targets: Tensor, *, weight: float
) -> dict[str, Tensor]:
    """CE(z, y) + weight mean (r(F_s) - F_t)^2, in one stage; logits: N x K; maps as in `hint_distance`."""
    return {"cross_entropy": F.cross_entropy(logits, targets), "hint": weight * hint_distance(regressed, hint)}


class Regressor(nn.Module):
    """From the student's map to the teacher's shape: a convolution, batch normalisation and ReLU, as
    RepDistiller's ConvReg; the map is resized first where the sizes are not 2:1, 1:1 or 1:2."""

    def __init__(self, student: Tensor, teacher: Tensor, section: int) -> None:
        super().__init__()
        inputs, outputs = student.shape[1], teacher.shape[1]
        self.section, self.size = section, teacher.shape[2:]
        if student.shape[2] == 2 * teacher.shape[2]:
            layer = nn.Conv2d(inputs, outputs, 3, 2, 1)
        elif 2 * student.shape[2] == teacher.shape[2]:
            layer = nn.ConvTranspose2d(inputs, outputs, 4, 2, 1)
        else:
            layer = nn.Conv2d(inputs, outputs, 1)
        self.layers = nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())

    def forward(self, images: Tensor, student: Outputs) -> Outputs:
        regressed = self.layers(student.maps[self.section - 1])
        if regressed.shape[2:] != self.size:
            regressed = F.interpolate(regressed, self.size)
        return Outputs([], [], [regressed])


class FitNet(Method):
    weight: float
    section: int
    two_stages: bool
    split: float
    kd_weight: float
    temperature: float

    def phases(self, epochs: int) -> list[Phase]:
        if not self.two_stages or epochs == 1:
            return [Phase(epochs)]
        first = min(max(round(self.split * epochs), 1), epochs - 1)
        return [Phase(first), Phase(epochs - first)]

    def companion(self, student: Outputs, teacher: Outputs | None, fresh: Callable[[], nn.Module]) -> nn.Module | None:
        common = min(len(student.maps), len(teacher.maps))
        if self.section > common:
            raise StepError(f"FitNet: section {self.section}; allowed: 1 to {common}, which student and teacher have")
        return Regressor(student.maps[self.section - 1], teacher.maps[self.section - 1], self.section)

    def terms(self, step: Step) -> dict[str, Tensor]:
        logits, teacher = step.student.logits[-1], step.teacher
        hint = teacher.maps[self.section - 1]
        terms = fitnet_terms(logits, step.companion.maps[0], hint, step.targets, weight=self.weight)
        if not self.two_stages:
            return terms
        kl = softened_kl(logits, teacher.logits[-1], self.temperature)
        terms["distillation"] = self.kd_weight * self.temperature**2 * kl
        # what a stage leaves out weighs 0: several processes must agree on which weights have gradients
        return {name: float((name == "hint") == (step.phase == 1)) * term for name, term in terms.items()}
