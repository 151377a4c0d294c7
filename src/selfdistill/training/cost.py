"""Cost in operations, which is the same on every machine.

Convolutions and linear layers are counted, 2 FLOPs a multiply-add, as torch.utils.flop_counter does
(a test holds the two equal); that counter imports torch._dynamo, 2 s in every run of a study.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from selfdistill.models.sections import SectionedNetwork


class Flops:
    """A running total."""

    total = 0


@contextmanager
def counted_flops(*networks: nn.Module | None) -> Iterator[Flops]:
    """Count the FLOPs of what these networks compute inside, and of the gradients that will follow.

    Backward, a layer multiplies once more for its weights' gradient and once more for its input's,
    if the input needs one; a frozen layer or one run without gradients does neither.
    """
    flops = Flops()

    def count(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        weight = module.get_parameter("weight")
        per_output = weight[0].numel()
        passes = 1
        if output.requires_grad:
            passes += weight.requires_grad + inputs[0].requires_grad
        flops.total += 2 * output.numel() * per_output * passes

    layers = {m for n in networks if n is not None for m in n.modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        yield flops
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def inference_macs(network: SectionedNetwork, input_shape: tuple[int, int, int]) -> tuple[list[int], int]:
    """Multiply-adds of one image (FLOPs are twice that): up to each exit, running nothing behind it,
    and for all exits together."""
    image = torch.zeros(1, *input_shape, device=next(network.parameters()).device)
    network.eval()
    macs = []
    for exit_index in range(network.exit_count):
        with counted_flops(network) as flops:
            network.until(image, exit_index)
        macs.append(flops.total // 2)
    with counted_flops(network) as flops:
        network(image)
    return macs, flops.total // 2
