"""FitNets, hints from a trained teacher's middle layer (Romero et al., ICLR 2015, arXiv 1412.6550)."""

import torch.nn.functional as F
from torch import Tensor, nn

from selfdistill.models.sections import Outputs
from selfdistill.training.losses import softened_kl
from selfdistill.training.method import Method, Phase, StepError

ABOUT = {
    "class": "FitNet",
    "title": "FitNet",
    "name": "FitNets: hints for thin deep nets",
    "paper": "1412.6550",
    "group": "with a teacher",
    "needs": ["teacher", "companion"],
    "cost": 2.35,
    "hyper": {
        "weight": {
            "default": 100.0,
            "allowed": [0.0, 100000.0],
            "meaning": "weight of the hint",
            "source": "RepDistiller scripts/run_cifar_distill.sh @b84f547",
        },
        "section": {
            "default": 2,
            "allowed": [1, 100],
            "meaning": "the section, 1 the shallowest, whose map is compared, of student and teacher",
            "source": "RepDistiller train_student.py @b84f547, hint_layer",
        },
        "two_stages": {
            "default": False,
            "meaning": "first the hint alone, then knowledge distillation alone, as the paper; else labels and hint",
            "source": "RepDistiller trains in one stage, the paper in two",
        },
        "split": {
            "default": 0.5,
            "allowed": [0.01, 0.99],
            "meaning": "of two stages: share of the epochs that the first takes",
            "source": "our choice; the paper trains the first until it stops improving",
        },
        "kd_weight": {
            "default": 1.0,
            "allowed": [0.0, 1000.0],
            "meaning": "of two stages: weight of T^2 KL beside the cross-entropy in the second",
            "source": "our choice; the paper lowers its weight from 4 to 1, recalled, unverified",
        },
        "temperature": {
            "default": 3.0,
            "allowed": [0.01, 1000.0],
            "meaning": "of two stages: T of the second",
            "source": "our choice; the paper's is recalled as 3, unverified",
        },
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
    def phases(self, epochs):
        if not self.two_stages or epochs == 1:
            return [Phase(epochs)]
        first = min(max(round(self.split * epochs), 1), epochs - 1)
        return [Phase(first), Phase(epochs - first)]

    def companion(self, student, teacher, fresh):
        common = min(len(student.maps), len(teacher.maps))
        if self.section > common:
            raise StepError(f"FitNet: section {self.section}; allowed: 1 to {common}, which student and teacher have")
        return Regressor(student.maps[self.section - 1], teacher.maps[self.section - 1], self.section)

    def terms(self, step):
        logits, teacher = step.student.logits[-1], step.teacher
        hint = teacher.maps[self.section - 1]
        terms = fitnet_terms(logits, step.companion.maps[0], hint, step.targets, weight=self.weight)
        if not self.two_stages:
            return terms
        kl = softened_kl(logits, teacher.logits[-1], self.temperature)
        terms["distillation"] = self.kd_weight * self.temperature**2 * kl
        # what a stage leaves out weighs 0: several processes must agree on which weights have gradients
        return {name: float((name == "hint") == (step.phase == 1)) * term for name, term in terms.items()}
