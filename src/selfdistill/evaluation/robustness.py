"""Other test images: new ones, or the test images corrupted.

Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, ICLR
2019 (arXiv 1903.12261): a set of test images for each corruption, at severities 1 to 5.
"""

from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import load_file

from selfdistill.evaluation.classification import ClassTest


def tests_of(path: Path, device: str) -> Iterator[tuple[int | None, ClassTest]]:
    """A prepared test set at each of its severities, from 1; (None, all of it) where it has none."""
    tensors = load_file(path, device=device)
    images, labels, severities = tensors["images"], tensors["labels"], tensors.get("severity")
    if severities is None:
        yield None, ClassTest(images, labels)
        return
    for severity in severities.unique().tolist():
        rows = severities == severity
        yield severity, ClassTest(images[rows], labels[rows])
