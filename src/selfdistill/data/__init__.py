"""Data: fetch (verified files) -> prepare (packed splits) -> prepared (tensors) -> augment."""
