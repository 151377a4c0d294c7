"""A network on its own test images, corrupted here."""

import io
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from selfdistill.analyses.robustness import contradictions, rows_of
from selfdistill.evaluation.splits import ClassImages
from selfdistill.seeds import derived_seed

if TYPE_CHECKING:
    from selfdistill.evaluation.probed import Probed

__all__ = ["analyse", "contradictions"]

ABOUT = {
    "title": "Robustness: corrupted images",
    "needs": ["network", "images", "own"],
    "settings": {
        "images": {"default": 2000, "allowed": [1, 1_000_000]},
        "seed": {"default": 0, "allowed": [0, 2147483647]},
    },
    "keys": {"set": "Set", "severity": "Severity", "exit": "Exit"},
    "shown": {"set": "all", "severity": None, "exit": "deepest"},
    "beside": True,
    "numbers": {
        "accuracy": {"title": "Accuracy on corrupted images", "unit": "%", "better": "higher", "judged": True},
        "ece": {"title": "Calibration error", "unit": "%", "better": "lower", "judged": False},
        "nll": {"title": "Negative log-likelihood", "unit": "nats", "better": "lower", "judged": False, "shown": "csv"},
    },
}
SEVERITIES = 5
Pixels = np.ndarray  # float64 N x H x W x C in [0, 1]
Corrupt = Callable[[Pixels, float, np.random.RandomState], Pixels]


def analyse(inputs: "Probed", images: int, seed: int) -> list[dict[str, Any]]:
    """The rows of `robustness`: one a corruption, severity from 1 to 5 and exit, the ensemble of all exits last, and
    the mean over all of them at the deepest.  Of `images` test images at most, corrupted alike for every run."""
    clean = inputs.test(images)

    def sets() -> Iterator[tuple[str, int, ClassImages]]:
        for name in CORRUPTIONS:
            for severity in range(1, SEVERITIES + 1):
                made = corrupted(clean.images.cpu(), name, severity, seed)
                yield name, severity, ClassImages(made.to(clean.images.device), clean.labels)

    return rows_of(inputs, sets(), ())


def corrupted(images: torch.Tensor, name: str, severity: int, seed: int) -> torch.Tensor:
    """uint8 N x C x H x W images on the CPU, corrupted: the same bits for the same arguments.

    Of chance, NumPy's `RandomState`, whose numbers do not change with its version.  Values are cut off at 0 and 255 and
    rounded down, as those of the published sets.
    """
    change, values = CORRUPTIONS[name]
    generator = np.random.RandomState(derived_seed(seed, f"{name}/{severity}") % 2**32)
    pixels = images.permute(0, 2, 3, 1).numpy() / 255.0
    changed = change(pixels, values[severity - 1], generator)
    whole = np.floor(changed.clip(0, 1) * 255 + 1e-6)  # what was a whole number stays it
    return torch.from_numpy(whole.astype(np.uint8)).permute(0, 3, 1, 2)


def gaussian_noise(pixels: Pixels, deviation: float, generator: np.random.RandomState) -> Pixels:
    return pixels + generator.normal(scale=deviation, size=pixels.shape)


def shot_noise(pixels: Pixels, photons: float, generator: np.random.RandomState) -> Pixels:
    return generator.poisson(pixels * photons) / photons


def impulse_noise(pixels: Pixels, share: float, generator: np.random.RandomState) -> Pixels:
    """This share of the values becomes 0 or 1, each equally likely."""
    drawn = generator.uniform(size=pixels.shape)
    return np.where(drawn < share / 2, 0.0, np.where(drawn < share, 1.0, pixels))


def gaussian_blur(pixels: Pixels, deviation: float, _: np.random.RandomState) -> Pixels:
    return gaussian_filter(pixels, sigma=(0, deviation, deviation, 0), mode="nearest")


def brightness(pixels: Pixels, more: float, _: np.random.RandomState) -> Pixels:
    """The value of HSV grows by `more`, up to 1; hue and saturation stay, and black becomes grey."""
    value = pixels.max(axis=3, keepdims=True)
    wanted = np.minimum(value + more, 1)
    return np.where(value > 0, pixels * wanted / np.where(value > 0, value, 1), wanted)


def contrast(pixels: Pixels, share: float, _: np.random.RandomState) -> Pixels:
    """Towards the mean of each image's channel."""
    mean = pixels.mean(axis=(1, 2), keepdims=True)
    return mean + share * (pixels - mean)


def pixelate(pixels: Pixels, share: float, _: np.random.RandomState) -> Pixels:
    """Made smaller and large again, each pixel the mean of those that it covers."""

    def change(image: Image.Image) -> Image.Image:
        width, height = image.size
        smaller = max(1, int(width * share)), max(1, int(height * share))
        return image.resize(smaller, Image.Resampling.BOX).resize((width, height), Image.Resampling.BOX)

    return each(pixels, change)


def jpeg(pixels: Pixels, quality: float, _: np.random.RandomState) -> Pixels:
    def change(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(quality))
        return Image.open(file)

    return each(pixels, change)


def each(pixels: Pixels, change: Callable[[Image.Image], Image.Image]) -> Pixels:
    """What Pillow does to each image; of 1 channel or 3."""
    bytes_of = np.rint(pixels * 255).astype(np.uint8)
    pictures = (Image.fromarray(one[..., 0] if one.shape[-1] == 1 else one) for one in bytes_of)
    return np.stack([np.asarray(change(one)).reshape(pixels.shape[1:]) for one in pictures]) / 255.0


# What is done, and its strength at severity 1 to 5: the values of the code that made CIFAR-10-C and CIFAR-100-C.
CORRUPTIONS: dict[str, tuple[Corrupt, tuple[float, ...]]] = {
    "gaussian_noise": (gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": (impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "gaussian_blur": (gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "brightness": (brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "pixelate": (pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": (jpeg, (80, 65, 58, 50, 40)),
}
