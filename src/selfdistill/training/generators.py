"""The libraries' own generators of random numbers, for networks and methods that draw while they train.

What the engine itself draws does not come from them; see `plan`.
"""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor


def seed_global_generators(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def global_generators(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The states of torch's generators, as tensors, and of Python's and NumPy's, as what JSON can hold."""
    tensors = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    name, keys, *rest = np.random.get_state(legacy=True)
    return tensors, {"python": random.getstate(), "numpy": [name, np.asarray(keys).tolist(), *rest]}


def set_global_generators(tensors: dict[str, Tensor], other: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(tensors["cpu"])
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], device)
    version, keys, gauss = other["python"]
    random.setstate((version, tuple(keys), gauss))
    np.random.set_state(tuple(other["numpy"]))
