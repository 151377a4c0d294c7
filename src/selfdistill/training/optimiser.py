"""Stochastic gradient descent with momentum, as torch's own kernel.

`torch.optim.SGD` imports torch._dynamo when it is made, 1.5 s at the start of every run of a study;
the function under it does not, and one fused call replaces six small ones a parameter.
"""

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd


class SGD:
    """Momentum buffers of a network's parameters, and the step.

    The buffers are there, and zero, from the beginning, so that a checkpoint and a CUDA graph always
    find them: 0 x momentum + gradient is what torch's own first step begins with.
    """

    def __init__(self, network: nn.Module, *, momentum: float, nesterov: bool, weight_decay: float) -> None:
        self.parameters = list(network.parameters())
        self.momentum, self.nesterov, self.weight_decay = momentum, nesterov, weight_decay
        self.buffers = [torch.zeros_like(p) for p in self.parameters]

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, learning_rate: Tensor) -> None:
        """One step on the gradients as they are; a parameter without gradient stays.

        learning_rate: a float32 tensor of no dimension on the parameters' device, so that a CUDA graph
        reads it anew at every replay.
        """
        active = [i for i, p in enumerate(self.parameters) if p.grad is not None]
        sgd(
            [self.parameters[i] for i in active],
            [self.parameters[i].grad for i in active],
            [self.buffers[i] for i in active],
            fused=True,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            lr=learning_rate,
            dampening=0.0,
            nesterov=self.nesterov,
            maximize=False,
        )
