"""Stochastic gradient descent with momentum, and AdamW, as torch's own kernels.

`torch.optim.SGD` and `AdamW` import torch._dynamo when they are made, 1.5 s at the start of every run of a study;
the functions under them do not, and one fused call replaces six small ones a parameter.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.sgd import sgd

ADAM_EPSILON = 1e-8  # torch's


class Optimiser:
    """What both have: parameters in groups by their weight decay, buffers, and the step.

    parameters: all that are trained.  buffers: whatever outlives a step, in an order that stays: a checkpoint saves
    and restores them in place, so that a CUDA graph always finds them.
    """

    buffers: list[Tensor]

    def __init__(self, network: nn.Module, *, weight_decay: float, decay_exempt: bool) -> None:
        self.parameters = list(network.parameters())
        self.groups: list[tuple[list[int], float]] = [(list(range(len(self.parameters))), weight_decay)]
        if decay_exempt:  # norms and biases: what has one dimension
            whole = [i for i, p in enumerate(self.parameters) if p.ndim > 1]
            flat = [i for i, p in enumerate(self.parameters) if p.ndim <= 1]
            self.groups = [(whole, weight_decay), (flat, 0.0)]

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, learning_rate: Tensor) -> None:
        """One step on the gradients as they are; a parameter without gradient stays.

        learning_rate: a float32 tensor of no dimension on the parameters' device, so that a CUDA graph
        reads it again at every replay.
        """
        for members, weight_decay in self.groups:
            active = [i for i in members if self.parameters[i].grad is not None]
            if active:
                self.update(active, learning_rate, weight_decay)

    def update(self, active: list[int], learning_rate: Tensor, weight_decay: float) -> None:
        """Change the parameters of these places, all of one group."""
        raise NotImplementedError


def gradients(parameters: list[nn.Parameter], places: list[int]) -> list[Tensor]:
    return [gradient for i in places if (gradient := parameters[i].grad) is not None]


class SGD(Optimiser):
    """Momentum buffers of a network's parameters, and the step.

    The buffers are there, and zero, from the beginning: 0 x momentum + gradient is what torch's own first step
    begins with.
    """

    def __init__(
        self, network: nn.Module, *, momentum: float, nesterov: bool, weight_decay: float, decay_exempt: bool = False
    ) -> None:
        super().__init__(network, weight_decay=weight_decay, decay_exempt=decay_exempt)
        self.momentum, self.nesterov = momentum, nesterov
        self.buffers = [torch.zeros_like(p) for p in self.parameters]

    def update(self, active: list[int], learning_rate: Tensor, weight_decay: float) -> None:
        sgd(
            [self.parameters[i] for i in active],
            gradients(self.parameters, active),
            [self.buffers[i] for i in active],
            fused=True,
            weight_decay=weight_decay,
            momentum=self.momentum,
            lr=learning_rate,  # type: ignore[arg-type]  # a tensor, as torch.optim.SGD itself may pass on
            dampening=0.0,
            nesterov=self.nesterov,
            maximize=False,
        )


class AdamW(Optimiser):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2)."""

    def __init__(
        self, network: nn.Module, *, beta1: float, beta2: float, weight_decay: float, decay_exempt: bool = False
    ) -> None:
        super().__init__(network, weight_decay=weight_decay, decay_exempt=decay_exempt)
        self.beta1, self.beta2 = beta1, beta2
        self.means, self.squares = ([torch.zeros_like(p) for p in self.parameters] for _ in range(2))
        self.steps = [torch.zeros((), device=p.device) for p in self.parameters]
        self.buffers = [*self.means, *self.squares, *self.steps]

    def update(self, active: list[int], learning_rate: Tensor, weight_decay: float) -> None:
        adam(
            [self.parameters[i] for i in active],
            gradients(self.parameters, active),
            [self.means[i] for i in active],
            [self.squares[i] for i in active],
            [],
            [self.steps[i] for i in active],
            fused=True,
            decoupled_weight_decay=True,
            amsgrad=False,
            beta1=self.beta1,
            beta2=self.beta2,
            lr=learning_rate,
            weight_decay=weight_decay,
            eps=ADAM_EPSILON,
            maximize=False,
        )


def make_optimiser(network: nn.Module, recipe: Any) -> Optimiser:
    """The optimiser that a recipe (`selfdistill.config.Recipe`) names."""
    decay = {"weight_decay": recipe.weight_decay, "decay_exempt": recipe.decay_exempt}
    if recipe.optimiser == "adamw":
        return AdamW(network, beta1=recipe.beta1, beta2=recipe.beta2, **decay)
    return SGD(network, momentum=recipe.momentum, nesterov=recipe.nesterov, **decay)
