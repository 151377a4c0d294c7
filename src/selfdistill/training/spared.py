"""Cuts outputs that no loss depends on off from the backward pass of a compiled network."""

from collections.abc import Callable, Collection
from itertools import count

from torch import Tensor, nn

from selfdistill.models.sections import Outputs

Answer = Outputs | tuple[Outputs, dict[str, Outputs]]  # the network's, and those of what is trained beside it


class Spared(nn.Module):
    """A network whose outputs without gradient are cut off from its backward.

    A compiled backward is handed a tensor of zeros for each such output, and adds it to the gradient behind: five
    maps of a ResNet-18 in every step of plain training.

    reached: places of the outputs that get a gradient, found by `watched`; None for all.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.reached: Collection[int] | None = None

    def forward(self, images: Tensor) -> Answer:
        reached = self.reached
        if reached is None:
            return self.network(images)
        return changed(self.network(images), lambda place, t: t if place in reached else t.detach())


def watched(forward: Callable[[Tensor], Answer], reached: set[int]) -> Callable[[Tensor], Answer]:
    """A forward after whose backward `reached` holds the places of the outputs that got a gradient."""

    def hooked(place: int, tensor: Tensor) -> Tensor:
        if not tensor.requires_grad:
            return tensor
        said = tensor.view_as(tensor)  # the network goes on with `tensor`, which gets a gradient of what lies behind
        said.register_hook(lambda _: reached.add(place))
        return said

    return lambda images: changed(forward(images), hooked)


def changed(answer: Answer, change: Callable[[int, Tensor], Tensor]) -> Answer:
    """The answer with `change(place, tensor)` for each of its tensors; places are counted from 0."""
    places = count()

    def of(outputs: Outputs) -> Outputs:
        parts = (outputs.logits, outputs.features, outputs.maps)
        return Outputs(*([change(next(places), tensor) for tensor in part] for part in parts))

    if isinstance(answer, tuple):
        return of(answer[0]), {name: of(outputs) for name, outputs in answer[1].items()}
    return of(answer)
