"""Training images a second from disk: a packed split against torchvision's ordinary way, paired.

    python benchmarks/packed.py [FOLDER] [--size 224] [--workers 0 1 2] [--rounds 5] [--images 2000]

FOLDER has one folder of JPEG files a class; without it, JPEGs of 500 x 400 are made.  Both sides decode,
take a random-resized crop and collate uint8 batches, and do nothing else; torchvision's ImageFolder reads
one file an image.  In every round both run over the same images, each first in every other round.
Prints a Markdown table of medians over rounds.
"""

import argparse
import datetime
import io
import random
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from selfdistill.data.prepared.packed import PackedSource, PackedSplit, write_packed
from selfdistill.data.vision import import_torchvision
from selfdistill.host import hardware
from selfdistill.training.plan import draw_plan

import_torchvision()
from torchvision.datasets import ImageFolder  # noqa: E402
from torchvision.transforms import Compose, PILToTensor, RandomResizedCrop  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=64)
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = wanted.folder or made_images(Path(temporary) / "images", wanted.images)
        transform = Compose([RandomResizedCrop(wanted.size), PILToTensor()])
        images = ImageFolder(folder, transform)
        chosen = sorted(random.Random(0).sample(images.samples, min(wanted.images, len(images.samples))))
        images.samples = chosen
        files = [Path(path).read_bytes() for path, _ in chosen]
        labels = np.array([label for _, label in chosen])
        write_packed(Path(temporary), "train", files, labels, np.arange(len(labels)))
        shape = np.median([Image.open(io.BytesIO(file)).size for file in files], axis=0)
        print(
            f"{hardware('cpu')}, {len(files)} {'real' if wanted.folder else 'made'} JPEGs of "
            f"{shape[0]:.0f} x {shape[1]:.0f} (median) and {np.mean([*map(len, files)]) / 1000:.1f} kB (mean), "
            f"to {wanted.size} x {wanted.size}, batches of {wanted.batch_size}, n = {wanted.rounds}, "
            f"{datetime.date.today()}\n"
        )
        print("| workers | packed, images/s | ImageFolder, images/s | ratio, median (min to max) |")
        print("| ---: | ---: | ---: | ---: |", flush=True)
        for workers in wanted.workers:
            ours = packed(Path(temporary), wanted.size, wanted.batch_size, workers)
            theirs = torch.utils.data.DataLoader(
                images, wanted.batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0
            )
            speeds = paired(ours, lambda epoch, loader=theirs: loader, len(files), wanted.rounds)
            ratios = [a / b for a, b in speeds]
            columns = [f"{median(column):.0f}" for column in zip(*speeds, strict=True)]
            ratio = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            print(f"| {workers} | {columns[0]} | {columns[1]} | {ratio} |", flush=True)


def packed(folder: Path, size: int, batch_size: int, workers: int) -> Callable[[int], Iterable]:
    source = PackedSource(PackedSplit.read(folder, "train"), (size, size), 3, "cpu")
    count = len(source.labels)
    cuts = [slice(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]

    def batches(epoch: int) -> Iterable:
        plan = draw_plan(source.labels, seed=0, epoch=epoch, batch_size=batch_size, crop_padding=0)
        return source.batches(plan["main"], cuts, SimpleNamespace(workers=workers))

    return batches


def paired(ours: Callable, theirs: Callable, count: int, rounds: int) -> list[tuple[float, float]]:
    """Images a second of both, round by round, after a round that starts the workers and warms up."""
    speeds = []
    for epoch in range(rounds + 1):
        seconds = {}
        for side in (ours, theirs) if epoch % 2 else (theirs, ours):
            started = time.perf_counter()
            for _ in side(epoch):
                pass
            seconds[side] = time.perf_counter() - started
        speeds.append((count / seconds[ours], count / seconds[theirs]))
    return speeds[1:]


def made_images(folder: Path, count: int) -> Path:
    """Smooth colours with some noise, 500 x 400, about 90 kB each, in ten classes."""
    chance = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(chance.integers(0, 256, (25, 31, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((500, 400), Image.Resampling.BICUBIC))
        pixels = smooth + chance.integers(-20, 21, smooth.shape)
        path = folder / str(i % 10) / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return folder


if __name__ == "__main__":
    main()
