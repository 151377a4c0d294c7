"""How large the gradient of each layer is while training, of the label loss alone and of the method's whole loss."""

import math
from typing import TYPE_CHECKING, Any

import torch

from selfdistill.evaluation.replay import LAST, kept_weights, losses

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from selfdistill.evaluation.probed import Probed
    from selfdistill.models.sections import SectionedNetwork

ABOUT = {
    "title": "Gradients by layer",
    "needs": ["network", "own"],
    "settings": {"batches": {"default": 8, "allowed": [1, 100_000]}},
    "keys": {"epoch": "Epoch", "loss": "Loss", "layer": "Layer"},
    "shown": {"layer": "all"},
    "numbers": {
        "ratio": {"title": "Log ratio of first to last third", "unit": "", "better": None, "judged": True},
        "size": {"title": "Log mean absolute gradient", "unit": "", "better": None, "judged": False, "shown": "csv"},
    },
}
LOSSES = {"deepest": "plain", "whole": None}  # the method whose loss is taken; None for the run's own


def analyse(inputs: "Probed", batches: int) -> list[dict[str, Any]]:
    """At the weights of every kept epoch and of the `last`, with the loss of the `deepest` exit's labels alone and with
    the method's `whole` loss: a row a layer, and one of `all`.

    size: the natural logarithm of a layer's mean absolute gradient over its weights and the first `batches` batches of
    the epoch; of all layers the mean.  ratio: the mean over the first third of the layers less that over the last.
    None where the run did not keep what the loss needs, such as another network as it was in the middle of training.
    """
    rows = []
    for epoch, weights in kept_weights(inputs.run):
        for loss, method in LOSSES.items():
            sizes = log_sizes(losses(inputs, epoch, weights, batches, method))
            key = {"epoch": "last" if weights == LAST else str(epoch), "loss": loss}
            rows += [{**key, "layer": layer, "size": size} for layer, size in sizes.items()]
            rows.append({**key, "layer": "all", **over_layers(list(sizes.values()))})
    return rows


def layers_of(network: "SectionedNetwork") -> "dict[str, Tensor]":
    """The weights of the backbone's convolutions and linear layers, from the images on, by their names."""
    return {
        name.removesuffix(".weight"): weight for name, weight in network.backbone.named_parameters() if weight.ndim > 1
    }


def log_sizes(found: "Iterable[tuple[SectionedNetwork, Tensor]]") -> dict[str, float | None]:
    """Of networks and losses, batch by batch: ln of the mean absolute gradient of each layer; nothing for no batch, and
    None for a layer that no loss depends on."""
    totals: dict[str, float] = {}
    count = 0
    for network, loss in found:
        layers = layers_of(network)
        slopes = torch.autograd.grad(loss, list(layers.values()), allow_unused=True)
        for name, slope in zip(layers, slopes, strict=True):
            mean = slope.double().abs().mean().item() if slope is not None else 0.0
            totals[name] = totals.get(name, 0.0) + mean
        count += 1
    return {name: math.log(total / count) if total > 0 else None for name, total in totals.items()}


def over_layers(sizes: list[float | None]) -> dict[str, float | None]:
    """The mean, and that of the first third of the layers less that of the last; None where a layer has none."""
    known = [size for size in sizes if size is not None]
    if not sizes or len(known) < len(sizes):
        return {"ratio": None, "size": None}
    third = max(1, len(known) // 3)
    mean = sum(known) / len(known)
    return {"ratio": (sum(known[:third]) - sum(known[-third:])) / third, "size": mean}


def draw(ax, table, style) -> None:
    """The ratio of the label loss alone at each kept epoch, a line a method."""
    shown = table[(table.loss == "deepest") & table.ratio.notna()]
    epochs = list(dict.fromkeys(shown.epoch.astype(str)))
    for place, (variant, rows) in enumerate(shown.groupby("variant", sort=False)):
        look = style.looks[variant]
        ax.errorbar(
            [epochs.index(epoch) + 0.03 * (place - style.variants / 2) for epoch in rows.epoch.astype(str)], rows.ratio,
            yerr=rows.half_width.fillna(0), fmt=f"{look.marker}-", color=look.colour, mfc=look.fill,
            elinewidth=style.thinner(place), label=rows.title.iloc[0],
        )  # fmt: skip
    ax.set_xticks(range(len(epochs)), epochs)
    ax.set_xlim(-0.5, max(len(epochs), 1) - 0.5)
    ax.set_xlabel("weights after epoch")
    ax.set_ylabel("log ratio of first to last third of layers")
    ax.set_title("Gradients of the deepest exit's label loss")
    style.legend(ax)
