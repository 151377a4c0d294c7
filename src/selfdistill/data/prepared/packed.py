"""Splits too large to be resident: encoded images packed into one file, decoded and cropped as they are needed.

A packed split of a folder is two files.  `train.bytes` holds all encoded images (JPEG or PNG) back to
back; `train.safetensors` holds offsets, int64 N + 1, where each begins and the last ends; labels, int64
N; and indices, int64 N, in the published order.  Only training images are packed: validation and test
images are decoded once, by `centre_cropped`, and kept as pixels.

An image's crop depends on its file and its row's `crop_seed` alone, so batches are the same bits for
any number of workers and processes, and from wherever a run goes on.  Decoding is libjpeg's: another
version of Pillow may decode other bits.
"""

import atexit
import io
import math
import mmap
import os
import signal
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from safetensors.numpy import load_file, save
from torch import Tensor
from torch.utils.data import DataLoader

from selfdistill.data.prepared import CorruptImageError
from selfdistill.files import write_atomically

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels

SCALE = (0.08, 1.0)  # share of the image's area that a random crop takes (Szegedy et al. 2015)
RATIO = (3 / 4, 4 / 3)  # its width / height
TRIES = 10  # before the centre is taken, as in torchvision
CENTRE = 224 / 256  # of the shorter side, which evaluation keeps since Krizhevsky et al. 2012
# Pixels are averaged down to no less than this times the wanted size before they are interpolated.  1
# would save another 15 % of the time of 2000 x 1500 pixels, at a mean difference of 1 grey level from
# none; at 2 it is below half a level.
GAP = 2.0


# ---- the files ----


def write_packed(folder: Path, split: str, encoded: Iterable[bytes], labels: np.ndarray, indices: np.ndarray) -> None:
    """Pack encoded images, in the order of labels and indices, int64 N; one image at a time is in memory.

    safetensors comes last and an older one goes first: where it is, both files are whole and belong together.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final, table = folder / f"{split}.bytes", folder / f"{split}.safetensors"
    partial = final.with_name(final.name + ".partial")
    try:
        lengths = []
        with open(partial, "wb") as file:
            for content in encoded:
                file.write(content)
                lengths.append(len(content))
            file.flush()
            os.fsync(file.fileno())
        if not len(lengths) == len(labels) == len(indices):
            raise ValueError(f"{split}: {len(lengths)} images, {len(labels)} labels, {len(indices)} indices")
        tensors = {
            "offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            "labels": np.array(labels, np.int64),
            "indices": np.array(indices, np.int64),
        }
        table.unlink(missing_ok=True)
        os.replace(partial, final)
        write_atomically(table, save(tensors))
    except BaseException:  # an interruption, too, or an error of what the images come from
        partial.unlink(missing_ok=True)
        if not table.exists():
            final.unlink(missing_ok=True)
        raise


@dataclass(frozen=True)
class PackedSplit:
    """labels and indices, int64 N, offsets, int64 N + 1, and the encoded images, memory-mapped, so that all
    processes of a machine share one copy."""

    folder: Path
    split: str
    offsets: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    content: mmap.mmap

    @classmethod
    def read(cls, folder: Path, split: str) -> "PackedSplit":
        tensors = load_file(folder / f"{split}.safetensors")
        path, whole = folder / f"{split}.bytes", tensors["offsets"][-1]
        if (found := path.stat().st_size) != whole:  # a look beyond the end would be a bus error
            raise ValueError(f"{path}: {found} bytes, {whole} expected; prepare the data anew")
        with open(path, "rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return cls(folder, split, tensors["offsets"], tensors["labels"], tensors["indices"], content)

    def __reduce__(self) -> tuple:
        """A worker that is not a fork opens the files itself."""
        return PackedSplit.read, (self.folder, self.split)

    def __len__(self) -> int:
        return len(self.labels)

    def encoded(self, number: int) -> bytes:
        """The file of one image, 0 to N - 1."""
        return self.content[self.offsets[number] : self.offsets[number + 1]]


# ---- one image ----


def decoded(encoded: bytes, choose: Callable[[int, int], Box], size: tuple[int, int], channels: int) -> np.ndarray:
    """The part of an image that `choose(width, height)` names, resized: uint8 H x W x C.

    A JPEG is decoded at a half, a quarter or an eighth where the part still has GAP times the wanted size.
    """
    mode = {1: "L", 3: "RGB"}[channels]
    with Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG")) as image:
        width, height = image.size
        left, top, right, bottom = choose(width, height)
        enough = GAP * max(size[1] / (right - left), size[0] / (bottom - top))
        drafted = image.draft(mode, (math.ceil(width * enough), math.ceil(height * enough)))
        scale = drafted[1][2] / width if drafted else 1  # 1, 1/2, 1/4 or 1/8
        pixels = image if image.mode == mode else image.convert(mode)  # grey, CMYK, RGBA and palettes
        # a scaled image's sides are rounded up, its content is not
        box = (left * scale, top * scale, right * scale, bottom * scale)
        return np.asarray(pixels.resize(size[::-1], Image.Resampling.BILINEAR, box, GAP)).reshape(*size, channels)


def random_box(width: int, height: int, seed: int) -> Box:
    """A random-resized crop, by torchvision's algorithm, from `seed` alone."""
    generator = np.random.Generator(np.random.Philox(seed))
    for _ in range(TRIES):
        area = width * height * generator.uniform(*SCALE)
        ratio = math.exp(generator.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < tall <= height:
            left, top = int(generator.integers(width - wide + 1)), int(generator.integers(height - tall + 1))
            return left, top, left + wide, top + tall
    ratio = min(max(width / height, RATIO[0]), RATIO[1])
    return centre(width, height, min(width, max(1, round(height * ratio))), min(height, max(1, round(width / ratio))))


def centre(width: int, height: int, wide: float, tall: float) -> Box:
    left, top = (width - wide) / 2, (height - tall) / 2
    return left, top, left + wide, top + tall


def centre_cropped(encoded: bytes, size: tuple[int, int], channels: int) -> np.ndarray:
    """What evaluation sees of an image, uint8 H x W x C: a centred part of the wanted shape, 7/8 as large as
    fits; for 224 x 224 that is the centre of the image resized to 256 at its shorter side."""

    def choose(width: int, height: int) -> Box:
        unit = CENTRE * min(width / size[1], height / size[0])
        return centre(width, height, size[1] * unit, size[0] * unit)

    return decoded(encoded, choose, size, channels)


# ---- batches ----


@dataclass(frozen=True)
class Crops:
    """What a worker has: random crops of a packed split, by image number and crop seed."""

    split: PackedSplit
    size: tuple[int, int]
    channels: int

    def __getitems__(self, rows: np.ndarray) -> Tensor | CorruptImageError:
        """uint8 N x H x W x C for int64 N x 2 rows.  An error is returned, not raised, so that it comes
        out of a worker process unchanged and not wrapped into a traceback."""
        images = np.empty((len(rows), *self.size, self.channels), np.uint8)
        try:
            for place, (number, seed) in zip(images, rows.tolist(), strict=True):
                place[...] = self.crop(number, seed)
        except CorruptImageError as error:
            return error
        return torch.from_numpy(images)

    def crop(self, number: int, seed: int) -> np.ndarray:
        encoded = self.split.encoded(number)
        try:
            return decoded(encoded, lambda w, h: random_box(w, h, seed), self.size, self.channels)
        except MemoryError:
            raise
        except Exception as error:  # of many kinds: Pillow's decoders raise what comes up
            reason = "neither a JPEG nor a PNG file" if isinstance(error, UnidentifiedImageError) else error
            raise CorruptImageError(
                f"{self.split.folder}: split {self.split.split}, image {number} (index {self.split.indices[number]} "
                f"in the published order): its {len(encoded)} bytes cannot be decoded: {reason}"
            ) from error


class PackedSource:
    """A source of training images (`selfdistill.training.source.Source`) from a packed split.

    Worker processes decode, crop at random (area and shape, see SCALE and RATIO) and resize; flip and
    cutout follow on the device.  The random-resized crop stands in place of the crop with padding: the
    recipe's `crop_padding` has no effect.

    labels: int64 N on the device.  Workers live from epoch to epoch, `recipe.workers` for each stream of
    a plan (two for a method with views, pairs or partners) and process of a run; 0 decodes in this
    process.  Up to two batches for each worker wait in shared memory (/dev/shm).
    """

    def __init__(self, split: PackedSplit, size: tuple[int, int], channels: int, device: torch.device | str) -> None:
        self.crops = Crops(split, tuple(size), channels)  # type: ignore[arg-type]  # a list of two, from JSON
        self.labels = torch.from_numpy(split.labels).to(device)
        self.idle: dict[int, list[DataLoader]] = defaultdict(list)  # by number of workers

    def batches(self, stream: dict[str, Tensor], wanted: list[slice], recipe: Any) -> Iterator[Tensor]:
        """uint8 N x C x H x W, channels-last on the device, for each of the `wanted` rows of a plan's stream."""
        idle = self.idle[recipe.workers]
        loader = idle.pop() if idle else self.loader(recipe.workers)
        rows = torch.stack([stream["image"], stream["crop_seed"]], dim=1).cpu().numpy()  # one transfer an epoch
        loader.batch_sampler[:] = [rows[which] for which in wanted]  # type: ignore[index]  # a list, of loader()
        with blocked_signals():
            serving = iter(loader)
        if recipe.workers:
            with_workers.add(serving)
        try:
            for images in serving:
                if isinstance(images, CorruptImageError):
                    raise images
                yield images.to(self.labels.device, non_blocking=True).permute(0, 3, 1, 2)
        except BaseException:  # also when given up in the middle: nobody takes the batches under way
            if recipe.workers:
                serving._shutdown_workers()  # type: ignore[attr-defined]  # of the class for several processes
            raise
        idle.append(loader)

    def loader(self, workers: int) -> DataLoader:
        return DataLoader(
            self.crops,  # type: ignore[arg-type]  # `__getitems__` is all it takes
            batch_sampler=[],  # an epoch's rows are put into it
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self.labels.is_cuda,
            collate_fn=as_it_is,
            generator=torch.Generator(),  # else each epoch would draw from the global one
        )


def as_it_is(batch: list) -> list:
    return batch


@contextmanager
def blocked_signals() -> Iterator[None]:
    """Processes started meanwhile never see SIGINT and SIGTERM.  Sent to all processes of a job (Ctrl-C, a
    scheduler), they mean the parent, which finishes its step and saves, and needs its workers for that."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


with_workers: weakref.WeakSet = weakref.WeakSet()


@atexit.register
def end_workers() -> None:
    """Python ends children that are left by SIGTERM, which these do not see, and waits for them."""
    for serving in list(with_workers):
        serving._shutdown_workers()  # type: ignore[attr-defined]  # of the class for several processes
