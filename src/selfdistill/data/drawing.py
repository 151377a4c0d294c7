"""Rows drawn by chance, stratified by class; the same on every machine, and by every version of the libraries."""

from collections.abc import Iterator, Sequence

import numpy as np

from selfdistill.seeds import derived_seed


def stratified(labels: np.ndarray, counts: Sequence[int], seed: int, purpose: str) -> list[np.ndarray]:
    """Disjoint rows, as many as each of `counts` says, each int64 and rising; of every class its share, to one image.

    labels: int64 N, from 0.  NumPy has frozen the stream of RandomState (NEP 19), unlike those of its successors.
    """
    order = np.random.RandomState(derived_seed(seed, purpose) % 2**32).permutation(len(labels))
    rows = [order[labels[order] == label] for label in range(int(labels.max()) + 1)]
    left, parts = np.array([len(of_class) for of_class in rows], np.int64), []
    begin = np.zeros_like(left)
    for count in counts:
        given = shares(count, left)
        taken = [of_class[a : a + n] for of_class, a, n in zip(rows, begin, given, strict=True)]
        parts.append(np.sort(np.concatenate(taken)))
        begin, left = begin + given, left - given
    return parts


def size_faults(
    split: str, training: int | None, validation: int | None, *, pool: int | None, classes: int | None, fixed: bool
) -> Iterator[str]:
    """What of a study's `split`, `training_images` and `validation_images` a data set does not allow.

    fixed: it has splits of its own, and no pool.  pool, classes: how many images and classes there are; None where
    they were not counted.
    """
    asked = {"training_images": training, "validation_images": validation}
    if fixed:
        if split != "fixed":
            yield f'split: "{split}" is not allowed: this data set has fixed splits; allowed: fixed'
        for key, value in asked.items():
            if value is not None:
                yield f"{key}: {value} is not allowed: this data set has fixed splits; allowed: null"
        return
    for (key, value), least in zip(asked.items(), (max(2, classes or 0), 1), strict=True):
        if value is None or value < least:
            most = f" to {pool:,}" if pool else ""
            of = "one of each class at least" if least > 2 else "how many images of the pool"
            yield f"{key}: {'null' if value is None else value} is not allowed; allowed: {least}{most}, {of}"
    if training and validation and pool is not None and training + validation > pool:
        yield f"training_images: {training:,} + {validation:,} are not allowed; allowed: at most {pool:,} together"


def shares(total: int, sizes: np.ndarray) -> np.ndarray:
    """`total` shared out in proportion to the sizes, int64, by largest remainders; of equal ones the first."""
    exact = [total * int(size) for size in sizes]
    whole = int(sizes.sum())
    given = np.array([part // whole for part in exact], np.int64)
    remainders = np.array([part % whole for part in exact])
    given[np.argsort(-remainders, kind="stable")[: total - int(given.sum())]] += 1
    return given
