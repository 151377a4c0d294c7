"""Image files into pixels: what can be used is used, what cannot is listed with its reason."""

import csv
import io
import os
import struct
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from types import SimpleNamespace

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# What Pillow decodes by itself; others start programs (EPS: Ghostscript) or are no photographs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
QUALITY = 95  # of JPEG files that are written; Pillow's documentation advises against more
DISTRACTOR, JUNK = 0, -1  # identities of images that show none of the persons to be found, or none well
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")


class UnusableImageError(ValueError):
    """Bytes that are no image, or not a whole one; the message says why."""


@dataclass(frozen=True)
class ImageFiles:
    """One split as it is published: names in its order, labels int64 N, and the bytes of image 0 to N - 1.

    `read` may raise UnusableImageError, and is called from several threads.
    cameras: int64 N, of a split of persons to be found again; its labels are identities, DISTRACTOR and JUNK
    among them, and not classes.
    """

    names: list[str]
    labels: np.ndarray
    read: Callable[[int], bytes]
    cameras: np.ndarray | None = None


@dataclass(frozen=True)
class Quarantined:
    split: str
    name: str
    reason: str


def upright(content: bytes) -> Image.Image:
    """An image of 8 bits in mode L or RGB, turned as its EXIF data say.  Transparency is left out, as
    torchvision's ImageFolder does, and of an animation the first picture is taken."""
    if not content:
        raise UnusableImageError("an empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a palette's transparency, of odd EXIF entries
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                image.load()
                turned = ImageOps.exif_transpose(image)
                return eight_bits(turned).convert("L" if turned.mode in ("1", "L", "LA", *SIXTEEN_BITS) else "RGB")
    except (MemoryError, UnusableImageError):
        raise
    except UnidentifiedImageError:
        raise UnusableImageError("no image of a known format") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise UnusableImageError(f"more than {Image.MAX_IMAGE_PIXELS:,} pixels") from None
    except Exception as error:  # of many kinds: Pillow's decoders raise what comes up
        reason = "cut off" if isinstance(error, struct.error | EOFError | IndexError) else str(error)
        raise UnusableImageError(f"cannot be decoded: {reason or type(error).__name__}") from None


def eight_bits(image: Image.Image) -> Image.Image:
    """The upper 8 of 16 bits of grey; Pillow would cut off all that is above 255."""
    if image.mode == "F":
        raise UnusableImageError("floating-point pixels, of which nobody knows the range")
    if image.mode not in SIXTEEN_BITS:
        return image
    pixels = np.asarray(image)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise UnusableImageError("pixels of more than 16 bits")
    return Image.fromarray((pixels.astype(np.uint16) >> 8).astype(np.uint8))


def sized(image: Image.Image, size: tuple[int, int], channels: int) -> np.ndarray:
    """uint8 C x H x W, stretched to the size; what `selfdistill predict` sees, too."""
    image = image.convert({1: "L", 3: "RGB"}[channels])
    height, width = size
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    pixels = np.asarray(image)
    return pixels[np.newaxis] if channels == 1 else pixels.transpose(2, 0, 1)


def packed_form(content: bytes, shorter_side: int, channels: int) -> tuple[bytes, Image.Image]:
    """A JPEG file with at most so many pixels at its shorter side, and what is decoded of it, in mode L or RGB.

    What is small enough, upright and a plain JPEG already is kept to the byte.
    """
    image = upright(content)
    if channels == 1:
        image = image.convert("L")
    with Image.open(io.BytesIO(content), formats=FORMATS) as original:
        plain = original.format == "JPEG" and original.mode == image.mode and original.getexif().get(0x0112, 1) == 1
    shortest = min(image.size)
    if shortest > shorter_side:
        image = image.resize([round(side * shorter_side / shortest) for side in image.size], Image.Resampling.LANCZOS)
    elif plain:
        return content, image
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue(), upright(buffer.getvalue())


def each(files: ImageFiles, action: Callable[[bytes], object]) -> Iterator[object]:
    """`action` of every image's bytes, or the UnusableImageError, in order; on all cores, few at a time."""

    def one(number: int):
        try:
            return action(files.read(number))
        except UnusableImageError as error:
            return error

    numbers = iter(range(len(files.names)))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        while some := list(islice(numbers, 1024)):  # map() would ask for all at once
            yield from threads.map(one, some)


def quarantined(split: str, files: ImageFiles, results: list) -> tuple[np.ndarray, list[Quarantined]]:
    """The numbers of the usable images, int64, and the others."""
    bad = [i for i, result in enumerate(results) if isinstance(result, UnusableImageError)]
    kept = np.delete(np.arange(len(files.names)), bad)
    return kept, [Quarantined(split, files.names[i], str(results[i])) for i in bad]


def csv_of(rows: Iterable[Iterable]) -> bytes:
    """CSV of any fields, names of files with line breaks and bytes that are not UTF-8 among them; a row's end is a
    line feed.  The csv module quotes the signs of its own line end alone, so it is given both that readers know."""
    lines: list[str] = []
    csv.writer(SimpleNamespace(write=lines.append), lineterminator="\r\n").writerows(rows)
    return "".join(line.removesuffix("\r\n") + "\n" for line in lines).encode(errors="surrogateescape")


def decoded(
    split: str, files: ImageFiles, size: tuple[int, int], channels: int
) -> tuple[np.ndarray, np.ndarray, list[Quarantined]]:
    """Pixels of the usable images, uint8 N x C x H x W, their numbers, int64 N, and what cannot be used."""
    images = np.empty((len(files.names), channels, *size), np.uint8)
    results = []
    for number, result in enumerate(each(files, lambda content: sized(upright(content), size, channels))):
        failed = isinstance(result, UnusableImageError)
        if not failed:
            images[number] = result
        results.append(result if failed else None)
    kept, bad = quarantined(split, files, results)
    return (images[kept] if bad else images), kept, bad
