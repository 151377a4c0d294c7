"""A seed for every use of chance."""

import hashlib


def derived_seed(seed: int, purpose: str) -> int:
    """A seed of its own for each use of chance, so that a change to one leaves the others alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:6])
