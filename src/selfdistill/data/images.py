"""Image files into pixels: what can be used is used, what cannot is listed with its reason.

Of 16 bits a channel many images use fewer, such as a camera's or a scanner's 12, and no file says how many.  So the
largest value that the images of a data set have becomes 255 (`White`): of its first split, the one that trains, and
of another only where that one has none of 16 bits.
"""

import csv
import io
import os
import struct
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError, features

from selfdistill.errors import UserError

# What Pillow decodes by itself; others start programs (EPS: Ghostscript) or are not photographs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", *(["AVIF"] if features.check("avif") else []))
try:  # Apple's HEIC, whose codec has a licence of its own
    import pillow_heif
except ImportError:
    pass
else:
    pillow_heif.register_heif_opener()
    FORMATS += ("HEIF",)
# Formats that are told by their first bytes, in words, for files that cannot be read: (place, bytes, what it is).
HEIC = "HEIC" if "HEIF" in FORMATS else "HEIC, which is read where pillow-heif is installed: pip install pillow-heif"
KINDS = (
    *((4, b"ftyp" + brand, HEIC) for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")),
    *((4, b"ftyp" + brand, "AVIF") for brand in (b"avif", b"avis")),
    (4, b"ftyp", "a film"),
    (4, b"jP  ", "JPEG 2000"),
    (4, b"JXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"%PDF", "a PDF"),
    (0, b"%!PS", "PostScript"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"PK\x03\x04", "a zip archive"),
)
QUALITY = 95  # of JPEG files that are written; Pillow's documentation advises against more
DISTRACTOR, JUNK = 0, -1  # identities of images that show none of the persons to be found, or none well
LONGEST = 65_500  # pixels of a side of a JPEG file, at most: libjpeg's own limit
LARGEST = 2**30  # bytes of an image's file, at most: all pixels that Pillow opens, in 4 channels of 16 bits, have less
# Scans of a JPEG file, at most.  Each goes over all pixels: a megabyte of empty ones takes hours; encoders write ten.
SCANS = 500
CONTAINER = 2**16 - 1  # the largest value that 16 bits can hold


class UnusableImageError(UserError, ValueError):
    """Bytes that are not an image, or not a whole one; the message says why."""


@dataclass(frozen=True)
class ImageFiles:
    """One split as published: names in its order, labels int64 N, and the bytes of image 0 to N - 1.

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
    """A file of a split that cannot be used, and why."""

    split: str
    name: str
    reason: str


@dataclass
class White:
    """value: that of 16 bits which becomes 255; None as long as no image of so many was seen."""

    value: int | None = None


def upright(content: bytes, white: int | None = None) -> Image.Image:
    """An image of 8 bits in mode L or RGB, turned as its EXIF data say.  Transparency is left out, as
    torchvision's ImageFolder does, and of an animation the first picture is taken.

    white: the value of 16 bits that becomes 255, as all above it do; the largest that 16 bits can hold if None.
    """
    with decoding(content):
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if not is_deep(image):
                turned = ImageOps.exif_transpose(image)
                return turned.convert("L" if turned.mode in ("1", "L", "LA") else "RGB")
        most = CONTAINER if white is None else white
        values = np.minimum(deep_values(content), most).astype(np.uint32)
        return Image.fromarray((values * 256 // (most + 1)).astype(np.uint8))


@contextmanager
def decoding(content: bytes) -> Iterator[None]:
    """Turn anything that a decoder raises for damaged bytes into UnusableImageError."""
    if not content:
        raise UnusableImageError("an empty file")
    if content.startswith(b"\xff\xd8") and (scans := content.count(b"\xff\xda")) > SCANS:
        raise UnusableImageError(f"a JPEG file of {scans:,} scans; allowed: at most {SCANS}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a palette's transparency, of odd EXIF entries
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (MemoryError, UnusableImageError):
        raise
    except UnidentifiedImageError:
        raise UnusableImageError(f"no image of a known format{kind_of(content)}") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise UnusableImageError(f"more than {Image.MAX_IMAGE_PIXELS:,} pixels") from None
    except Exception as error:  # of many kinds: Pillow's decoders raise what comes up
        reason = "cut off" if isinstance(error, struct.error | EOFError | IndexError) else str(error)
        raise UnusableImageError(f"cannot be decoded: {reason or type(error).__name__}") from None


def kind_of(content: bytes) -> str:
    """What the first bytes say that a file is, in brackets; nothing for what they do not tell."""
    for place, sign, kind in KINDS:
        if content[place:].startswith(sign):
            return f" ({kind})"
    return ""


# ---- 16 bits a channel ----


def is_deep(image: ImageFile.ImageFile) -> bool:
    """Whether an image that was opened has 16 bits a channel.  UnusableImageError: numbers of whose range its file
    says nothing."""
    if image.mode == "F":
        raise UnusableImageError("floating-point pixels, of which nobody knows the range")
    if image.mode == "I" and image.format == "TIFF":
        raise UnusableImageError("pixels of 32 bits or with a sign, of which nobody knows the range")
    return image.mode == "I" or ";16" in image.mode or ";16" in raw_form(image)


def deep_values(content: bytes) -> np.ndarray:
    """The pixels of an image of 16 bits a channel as they lie in the file, but upright: uint16 H x W or H x W x 3.

    Of a colour Pillow keeps the upper 8 bits.  Told that they lie in the other order, it keeps the lower ones.
    """
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        form = raw_form(image)
        if image.mode == "I" or ";16" in image.mode:
            return turned_values(image).astype(np.uint16)
        upper = turned_values(image)
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        swapped = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
        other = form[:-1] + swapped.get(form[-1], "")
        image.tile = [tile._replace(args=with_form(tile.args, other)) for tile in image.tile]
        try:
            lower = turned_values(image)
        except (ValueError, OSError):
            raise UnusableImageError(
                f"16 bits a channel in the form {form}, which is not read; save it with 8"
            ) from None
    return upper.astype(np.uint16) << 8 | lower


def turned_values(image: Image.Image) -> np.ndarray:
    """The pixels of an image, upright and without transparency."""
    values = np.asarray(ImageOps.exif_transpose(image))
    return values if values.ndim == 2 else values[..., :3]


def raw_form(image: ImageFile.ImageFile) -> str:
    """How pixels lie in the file, as Pillow calls it: "RGB;16B"."""
    args = image.tile[0].args if getattr(image, "tile", None) else None
    form = args if isinstance(args, str) else args[0] if isinstance(args, tuple) and args else ""
    return form if isinstance(form, str) else ""


def with_form(args: Any, form: str) -> Any:
    return form if isinstance(args, str) else (form, *args[1:])


def sized(image: Image.Image, size: tuple[int, int], channels: int) -> np.ndarray:
    """uint8 C x H x W, stretched to the size; what `selfdistill predict` sees, too."""
    image = image.convert({1: "L", 3: "RGB"}[channels])
    height, width = size
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    pixels = np.asarray(image)
    return pixels[np.newaxis] if channels == 1 else pixels.transpose(2, 0, 1)


def packed_form(
    content: bytes, shorter_side: int, channels: int, white: int | None = None
) -> tuple[bytes, Image.Image]:
    """A JPEG file with at most so many pixels at its shorter side, and what is decoded of it, in mode L or RGB.

    What is small enough, upright and a plain JPEG already is kept to the byte.  white: as for `upright`.
    """
    image = upright(content, white)
    if channels == 1:
        image = image.convert("L")
    with decoding(content), Image.open(io.BytesIO(content), formats=FORMATS) as original:
        plain = original.format == "JPEG" and original.mode == image.mode and original.getexif().get(0x0112, 1) == 1
    shortest = min(image.size)
    if shortest > shorter_side:
        image = image.resize([round(side * shorter_side / shortest) for side in image.size], Image.Resampling.LANCZOS)
    elif plain:
        return content, image
    if max(image.size) > LONGEST:
        raise UnusableImageError(
            f"a longer side of {max(image.size):,} pixels, with {min(image.size):,} at the shorter one; "
            f"allowed: at most {LONGEST:,}"
        )
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue(), upright(buffer.getvalue())


def each(files: ImageFiles, action: Callable[[bytes, int | None], Any], white: White) -> Iterator[tuple[int, Any]]:
    """(number, `action` of the image's bytes and white's value, or the UnusableImageError) of every image; on all
    cores, few at a time.

    In order, except images of 16 bits: as long as white has no value they wait for their largest value, and
    come last.
    """

    def one(number: int) -> Any:
        try:
            content = files.read(number)
            largest = None if white.value is not None else largest_value(content)
            return action(content, white.value) if largest is None else Deep(largest)
        except UnusableImageError as error:
            return error

    def all_of(numbers: Iterable[int]) -> Iterator[tuple[int, Any]]:
        left = iter(numbers)
        while some := list(islice(left, 1024)):  # map() would ask for all at once
            yield from zip(some, threads.map(one, some), strict=True)

    deep: dict[int, int] = {}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        for number, result in all_of(range(len(files.names))):
            if isinstance(result, Deep):
                deep[number] = result.largest
            else:
                yield number, result
        if deep:
            white.value = max(deep.values())
            yield from all_of(deep)


@dataclass(frozen=True)
class Deep:
    """An image of 16 bits, before white is known."""

    largest: int


def largest_value(content: bytes) -> int | None:
    """Of an image of 16 bits a channel; None for any other."""
    with decoding(content):
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if not is_deep(image):
                return None
        return int(deep_values(content).max())


def quarantined(split: str, files: ImageFiles, bad: dict[int, str]) -> tuple[np.ndarray, list[Quarantined]]:
    """The numbers of the usable images, int64, and the others, whose reasons `bad` gives by number."""
    kept = np.delete(np.arange(len(files.names)), sorted(bad))
    return kept, [Quarantined(split, files.names[i], bad[i]) for i in sorted(bad)]


def commonest(reasons: Iterable[str]) -> str:
    """The reason that most files share, and how many those are."""
    ((reason, count),) = Counter(reasons).most_common(1)
    return f"{reason} ({count:,} file{'s' if count > 1 else ''})"


def csv_of(rows: Iterable[Iterable]) -> bytes:
    """CSV of any fields, names of files with line breaks and bytes that are not UTF-8 among them; a row's end is a
    line feed.  The csv module quotes the signs of its own line end alone, so it is given both that readers know."""
    lines: list[str] = []
    csv.writer(SimpleNamespace(write=lines.append), lineterminator="\r\n").writerows(rows)
    return "".join(line.removesuffix("\r\n") + "\n" for line in lines).encode(errors="surrogateescape")


def decoded(
    split: str, files: ImageFiles, size: tuple[int, int], channels: int, white: White
) -> tuple[np.ndarray, np.ndarray, list[Quarantined]]:
    """Pixels of the usable images, uint8 N x C x H x W, their numbers, int64 N, and what cannot be used."""

    def pixels(content: bytes, most: int | None) -> np.ndarray:
        return sized(upright(content, most), size, channels)

    images, bad = np.empty((len(files.names), channels, *size), np.uint8), {}
    for number, result in each(files, pixels, white):
        if isinstance(result, UnusableImageError):
            bad[number] = str(result)
        else:
            images[number] = result
    kept, unusable = quarantined(split, files, bad)
    for place, number in enumerate(kept.tolist() if bad else ()):  # in place: a copy could be gigabytes
        images[place] = images[number]
    return images[: len(kept)], kept, unusable
