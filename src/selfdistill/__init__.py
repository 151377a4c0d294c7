"""Self-distillation papers, reproduced side by side.

Methods and networks by their names, for your own training loop: docs/own-training-loop.md.  Importing this
package loads neither torch nor YAML; its functions load what they need.
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from selfdistill.errors import asking_for_packages

if TYPE_CHECKING:
    from pathlib import Path

    from selfdistill.exports.network import Network
    from selfdistill.models.sections import SectionedNetwork
    from selfdistill.training.method import Method

__version__ = "0.1.0"
__all__ = ["__version__", "create_method", "create_network", "list_methods", "list_networks", "load"]


def list_methods() -> list[str]:
    """The methods' names, sorted.  `selfdistill methods NAME` prints the card of one."""
    from selfdistill import methods

    return list(methods.names())


def create_method(name: str, **hyper: Any) -> "Method":
    """A method's loss: called with a `selfdistill.training.method.Step` it gives named scalar terms to be summed.

    hyper: its hyper-parameters, within the bounds that a study has; the others keep their defaults.
    Raises MethodError for a name that is not there, HyperParameterError for a value that is not allowed, both also
    ValueErrors, and MissingPackageError, an ImportError, for `sd` where SciPy is not installed.

    >>> create_method("byot", alpha=0.3)
    """
    from selfdistill import methods

    with asking_for_packages():
        return methods.create(name, **hyper)


def list_networks(own: "Sequence[Path]" = ()) -> list[str]:
    """The networks' names, family by family; any of timm is one, too, as `timm:NAME`.

    own: files of networks of your own (docs/networks.md).  Raises NetworkError for a file without networks.
    """
    from selfdistill import models

    return models.names(own)


def create_network(
    name: str,
    *,
    classes: int,
    size: tuple[int, int] = (32, 32),
    channels: int = 3,
    exits: bool = True,
    seed: int = 0,
    own: "Sequence[Path]" = (),
) -> "SectionedNetwork":
    """A freshly initialised network, from float images N x C x H x W to `Outputs`: the logits, N x classes, and the
    map of each exit, shallow to deep.

    name: one of `list_networks()`, or `timm:NAME`; size, channels: of the images, (H, W) and C; exits: a classifier
    after every section, not the last alone; seed: of the weights, which depend on the seed alone and do not change
    torch's generators; own: files of networks of your own.
    Raises NetworkError, a ValueError, for a name that is not there or a network that cannot be built so.

    >>> network = create_network("resnet18", classes=100)
    >>> network(images).logits[-1]  # of the deepest exit
    """
    from selfdistill import models

    if isinstance(own, str) or not all(isinstance(file, str | os.PathLike) for file in own):
        raise models.NetworkError(f"own: {own!r} is not allowed; allowed: a list of paths of files")
    if not isinstance(size, Sequence) or len(size) != 2:
        raise models.NetworkError(f"size: {size!r} is not allowed; allowed: (height, width)")
    wanted = {"classes": (classes, 2), "channels": (channels, 1), "height": (size[0], 1), "width": (size[1], 1)}
    for key, (value, least) in wanted.items():
        if type(value) is not int or value < least:
            raise models.NetworkError(f"{key}: {value!r} is not allowed; allowed: a whole number from {least}")
    return models.build(name, channels=channels, classes=classes, size=size, exits=exits, seed=seed, own=own)


def load(
    run: "str | Path",
    *,
    exit: int | None = None,
    exits: str = "deepest",
    selection: str | None = None,
    pixels: bool = False,
) -> "Network":
    """A trained network in evaluation mode, on the CPU: float images N x C x H x W -> logits N x K, a tensor.

    run: the folder of a trained run, or one that `selfdistill export` wrote; exit: 1 for the shallowest, without what
    lies behind it; exits: `all` for the logits of all of them, exits x N x K; selection: `last` (a run's default) or
    `validation`, the epoch that was best there; pixels: take uint8 pixels and normalise them inside.
    `load(...).data` has `classes`, `size` (H, W), `mean`, `std` and `normalise`, which makes images of uint8 pixels.
    Raises ExportError and WeightsError, both ValueErrors, that name the folder or file and say what is allowed.
    A folder with a network file of a user's own runs that file.

    >>> network = load("results/runs/resnet10-slim/byot/0-9/0", exit=2)
    >>> network(network.data.normalise(pixels)).argmax(dim=1)
    """
    from selfdistill.exports.network import load

    with asking_for_packages():
        return load(run, exit=exit, exits=exits, selection=selection, pixels=pixels)
