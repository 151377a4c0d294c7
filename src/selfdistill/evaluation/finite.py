"""Outputs must be finite: argmax would put an image with outputs of NaN into class 0."""

from torch import Tensor

from selfdistill.errors import NonFiniteOutputsError
from selfdistill.models.trained import rows_not_finite


def finite(outputs: Tensor, whose: object, images: str) -> Tensor:
    """The outputs, exits x N x D, or NonFiniteOutputsError; whose: the network's file; images: which they are, such
    as "test"."""
    if rows := int(rows_not_finite(outputs)):
        raise NonFiniteOutputsError(
            f"{whose}: its outputs for {rows} of the {outputs.shape[1]} {images} images are no numbers (NaN or "
            "infinite); train it with a lower recipe.learning_rate or recipe.weight_decay"
        )
    return outputs
