"""Wrong labels on purpose: a share of the training labels exchanged for others."""

import hashlib

import numpy as np
import torch
from torch import Tensor

from selfdistill.seeds import derived_seed


def noisy_labels(labels: Tensor, classes: int, share: float, seed: int) -> Tensor:
    """Symmetric label noise: round(share x N) of the labels, int64 N, each replaced by another class, each of the
    others equally likely.  The same for all methods, and by every version of the libraries (NEP 19)."""
    count = round(share * len(labels))
    if not count:
        return labels
    generator = np.random.RandomState(derived_seed(seed, "label noise") % 2**32)
    rows = torch.from_numpy(generator.permutation(len(labels))[:count])
    further = torch.from_numpy(generator.randint(1, classes, count))
    noisy = labels.clone()
    noisy[rows.to(labels.device)] = (labels[rows.to(labels.device)] + further.to(labels.device)) % classes
    return noisy


def noise_facts(clean: Tensor, noisy: Tensor) -> dict[str, int | str]:
    """What a record says of exchanged labels, int64 N: how many there are, and a SHA-256 of all labels."""
    content = noisy.cpu().numpy().astype("<i8").tobytes()
    return {"changed": int((clean != noisy).sum()), "labels_sha256": hashlib.sha256(content).hexdigest()}
