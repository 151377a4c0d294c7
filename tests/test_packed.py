"""Packed splits: whole files, torchvision's crops, and the same batches whoever decodes them."""

import io
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import types

import numpy as np
import pytest
import torch
from conftest import wait_until
from made import RECIPE, bits, stop_after
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from selfdistill import methods
from selfdistill.data.prepared import CorruptImageError, Dataset, packed
from selfdistill.data.prepared.packed import PackedSource, PackedSplit, centre_cropped, random_box
from selfdistill.models.trained import build
from selfdistill.training import engine
from selfdistill.training.checkpoint import Checkpoints
from selfdistill.training.plan import draw_plan
from selfdistill.training.stopping import Interrupted

COLOURS = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200], [200, 200, 60]])
FORM = {"name": "resnet10-slim", "channels": 3, "classes": 4, "size": [8, 8], "exits": False}
DATASET = Dataset("made", ["a", "b", "c", "d"], 3, (8, 8), [0.5] * 3, [0.3] * 3, {})


def encode(image: Image.Image, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def made_files(count: int, seed: int) -> tuple[list[bytes], np.ndarray]:
    """Noisy images of several sizes whose colour is the class, every third a PNG."""
    chance = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    files = []
    for i, label in enumerate(labels):
        shape = chance.integers(20, 50, 2)
        pixels = COLOURS[label] + chance.integers(-50, 50, (*shape, 3))
        files.append(encode(Image.fromarray(pixels.astype(np.uint8)), "JPEG" if i % 3 else "PNG"))
    return files, labels


@pytest.fixture(autouse=True)
def one_thread():
    """As the recipe says; threads that wait for a core which a worker has would make a step take seconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(RECIPE.threads)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folder(tmp_path):
    files, labels = made_files(28, 1)
    packed.write_packed(tmp_path, "train", iter(files), labels, np.arange(28) + 100)
    return tmp_path


def source(folder, channels: int = 3) -> PackedSource:
    return PackedSource(PackedSplit.read(folder, "train"), (8, 8), channels, "cpu")


def plan(count: int = 28, epoch: int = 0):
    return draw_plan(torch.arange(count) % 4, seed=3, epoch=epoch, batch_size=8, crop_padding=1)["main"]


def cuts(count: int = 28, size: int = 8) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def workers(number: int) -> types.SimpleNamespace:
    return types.SimpleNamespace(workers=number)


# ---- the files ----


def test_what_is_packed_comes_out_byte_for_byte(folder):
    files, labels = made_files(28, 1)
    split = pickle.loads(pickle.dumps(PackedSplit.read(folder, "train")))  # as a worker that is no fork gets it
    assert [split.encoded(i) for i in range(len(split))] == files
    assert split.labels.tolist() == labels.tolist()
    assert split.indices.tolist() == list(range(100, 128))
    assert {p.name for p in folder.iterdir()} == {"train.bytes", "train.safetensors"}


def interrupted_images():
    yield b"first"
    raise KeyboardInterrupt


@pytest.mark.parametrize("older", [False, True])
def test_a_write_that_is_interrupted_leaves_nothing_new(tmp_path, older):
    if older:
        packed.write_packed(tmp_path, "train", [b"older"], np.array([0]), np.array([0]))
    with pytest.raises(KeyboardInterrupt):
        packed.write_packed(tmp_path, "train", interrupted_images(), np.arange(2), np.arange(2))
    with pytest.raises(ValueError, match="2 images, 3 labels, 3 indices"):
        packed.write_packed(tmp_path, "train", [b"first", b"second"], np.arange(3), np.arange(3))
    if older:
        assert PackedSplit.read(tmp_path, "train").encoded(0) == b"older"
    else:
        assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_no_half_of_a_pair(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packed, "write_atomically", full)
    with pytest.raises(OSError, match="No space left"):
        packed.write_packed(tmp_path, "train", [b"first"], np.arange(1), np.arange(1))
    assert not list(tmp_path.iterdir())


def test_a_file_that_was_cut_off_is_refused(folder):
    with open(folder / "train.bytes", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(ValueError, match=r"1000 bytes, \d+ expected"):
        PackedSplit.read(folder, "train")


# ---- one image ----


def test_random_boxes_lie_within_and_spread_as_they_should():
    boxes = np.array([random_box(400, 400, seed) for seed in range(4000)])
    assert boxes.min() >= 0
    assert boxes.max() <= 400
    left, top, right, bottom = boxes.T
    wide, tall = right - left, bottom - top
    area, ratio = wide * tall / 400**2, wide / tall
    assert (area.min(), area.max()) == pytest.approx((0.08, 1), abs=0.02)
    assert (ratio.min(), ratio.max()) == pytest.approx((3 / 4, 4 / 3), abs=0.02)  # whole pixels move the ends
    assert abs(np.log(ratio).mean()) < 0.02
    for side, start in ((wide, left), (tall, top)):  # where there is room, the place is uniform
        room = side < 400
        assert (start[room] / (400 - side[room])).mean() == pytest.approx(0.5, abs=0.02)
    assert random_box(500, 400, 7) == random_box(500, 400, 7)


def test_random_boxes_are_distributed_as_torchvisions():
    from selfdistill.data.vision import import_torchvision

    import_torchvision()
    from torchvision.transforms import RandomResizedCrop

    with torch.random.fork_rng():
        torch.manual_seed(0)
        blank = torch.empty(1, 300, 500)
        theirs = [RandomResizedCrop.get_params(blank, packed.SCALE, packed.RATIO) for _ in range(3000)]
    theirs = np.array([(x, y, x + w, y + h) for y, x, h, w in theirs])
    ours = np.array([random_box(500, 300, seed) for seed in range(3000)])
    for quantile in (0.1, 0.5, 0.9):  # standard error about 5 pixels
        assert np.quantile(ours, quantile, axis=0) == pytest.approx(np.quantile(theirs, quantile, axis=0), abs=25)


def test_crops_of_any_width_and_height_lie_anywhere_in_the_image():
    """Each place equally likely, for narrow crops as for wide ones: shares of the way to the far edge."""
    boxes = np.array([random_box(500, 300, seed) for seed in range(4000)], float)
    for side, whole in ((0, 500), (1, 300)):
        length = boxes[:, side + 2] - boxes[:, side]
        share = (boxes[:, side] + 0.5) / (whole - length + 1)
        for some in (length <= np.quantile(length, 0.25), length >= np.quantile(length, 0.75)):
            found = np.quantile(share[some], [0.1, 0.3, 0.5, 0.7, 0.9])  # standard error of the middle one 0.016
            assert found == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9], abs=0.07)
            assert share[some].min() < 0.02
            assert share[some].max() > 0.98


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("place", [0, 368, 736])
def test_a_narrow_crop_is_as_sharp_far_from_the_edge_as_at_it(turned, place):
    """A JPEG is decoded at a reduced scale by what is wanted of the crop, wherever it lies."""
    stripes = np.where(np.arange(800) // 2 % 2, 220, 40).astype(np.uint8)
    image = Image.fromarray(np.tile(stripes, (600, 1)))
    box = (place, 100, place + 64, 500)
    if turned:
        image, box = image.transpose(Image.Transpose.TRANSPOSE), (box[1], box[0], box[3], box[2])
    ours = packed.decoded(encode(image), lambda w, h: box, (64, 64), 1)[..., 0]
    exact = np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR, box))
    assert abs(ours.astype(int) - exact).mean() < 4


@pytest.mark.parametrize(("width", "height"), [(2000, 10), (10, 2000), (1, 1)])
def test_very_long_images_give_their_centre_in_an_allowed_shape(width, height):
    for seed in range(20):
        left, top, right, bottom = random_box(width, height, seed)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        assert 0.7 <= (right - left) / (bottom - top) <= 1.4


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("JPEG", "L"), ("JPEG", "RGB"), ("JPEG", "CMYK")] + [("PNG", mode) for mode in ("L", "LA", "P", "RGB", "RGBA")],
)
def test_every_mode_of_an_image_becomes_the_data_sets(kind, mode):
    file = encode(Image.new("RGB", (40, 30), (204, 102, 51)).convert(mode), kind)  # a colour of the usual palette
    for channels, wanted in ((3, [127] * 3 if mode in ("L", "LA") else [204, 102, 51]), (1, [127])):
        pixels = packed.decoded(file, lambda w, h: (0, 0, w, h), (8, 6), channels)
        assert pixels.shape == (8, 6, channels)
        assert abs(pixels.astype(int) - wanted).max() <= 3


def test_large_images_are_decoded_at_a_reduced_scale_and_look_the_same(monkeypatch):
    scales, draft = set(), JpegImageFile.draft

    def noted(image, mode, size):
        drafted = draft(image, mode, size)
        scales.add(round(803 / drafted[1][2]))
        return drafted

    monkeypatch.setattr(JpegImageFile, "draft", noted)
    y, x = np.mgrid[:601, :803, :1][:2] / 100
    smooth = 127 + 60 * np.sin(3 * x) + 60 * np.cos(2 * y) * [1, 0.5, 0]
    file = encode(Image.fromarray(smooth.astype(np.uint8)))
    for seed in range(20):
        ours = packed.decoded(file, lambda w, h, s=seed: random_box(w, h, s), (16, 16), 3)
        exact = Image.open(io.BytesIO(file)).resize((16, 16), Image.Resampling.BILINEAR, random_box(803, 601, seed))
        assert abs(ours.astype(int) - np.asarray(exact)).max() <= 3
    assert scales == {4, 8}


def test_the_centre_is_that_of_the_usual_evaluation():
    shade = np.tile(np.linspace(0, 255, 400).astype(np.uint8), (200, 1))
    file = encode(Image.fromarray(shade), "PNG")
    ours = centre_cropped(file, (224, 224), 1)[..., 0]
    usual = Image.fromarray(shade).resize((512, 256), 2).crop((144, 16, 368, 240))
    assert abs(ours.astype(int) - np.asarray(usual)).max() <= 1


# ---- batches ----


def served(source, stream, wanted, number: int) -> list[torch.Tensor]:
    return list(source.batches(stream, wanted, workers(number)))


def test_batches_do_not_depend_on_workers_resuming_or_processes(folder):
    stream, one = plan(), source(folder)
    whole = served(one, stream, cuts(), 0)
    assert [tuple(b.shape) for b in whole] == [(8, 3, 8, 8)] * 3 + [(4, 3, 8, 8)]
    assert whole[0].dtype == torch.uint8
    assert whole[0].is_contiguous(memory_format=torch.channels_last)
    for number in (1, 2):
        assert all(map(torch.equal, served(one, stream, cuts(), number), whole)), number
    # the rest of an epoch, by a source that has served nothing and by one that has
    for other in (one, source(folder)):
        for number in (0, 2):
            rest = served(other, stream, cuts()[2:], number)
            assert len(rest) == 2
            assert all(map(torch.equal, rest, whole[2:]))
    # two processes' shares
    shares = [[engine.World(rank, 2).share(c.start, c.stop) for c in cuts()] for rank in range(2)]
    halves = [served(source(folder), stream, share, 2) for share in shares]
    assert all(torch.equal(torch.cat(parts), batch) for *parts, batch in zip(*halves, whole, strict=True))


def test_rows_differ_by_image_and_by_crop_seed(folder):
    stream = {"image": torch.tensor([5, 5, 5, 6]), "crop_seed": torch.tensor([1, 1, 2, 1])}
    (batch,) = served(source(folder), stream, [slice(0, 4)], 0)
    assert torch.equal(batch[0], batch[1])
    assert not torch.equal(batch[0], batch[2])
    assert not torch.equal(batch[0], batch[3])


def children() -> list:
    return multiprocessing.active_children()


def test_workers_live_over_epochs_and_several_streams_have_their_own(folder):
    one = source(folder)
    before = torch.get_rng_state()
    expected = served(source(folder), plan(epoch=1), cuts(), 0)
    served(one, plan(), cuts(), 2)
    first = {c.pid for c in children()}
    assert len(first) == 2
    assert all(map(torch.equal, served(one, plan(epoch=1), cuts(), 2), expected))
    assert {c.pid for c in children()} == first
    together = zip(*(one.batches(plan(epoch=e), cuts(), workers(2)) for e in (1, 2)), strict=True)
    assert all(torch.equal(ours, batch) for (ours, _), batch in zip(together, expected, strict=True))
    assert len(children()) == 4
    assert torch.equal(torch.get_rng_state(), before)
    del one
    assert not children()


def test_a_stream_given_up_in_the_middle_leaves_no_workers(folder):
    one = source(folder)
    stream = one.batches(plan(), cuts(), workers(2))
    next(stream)
    assert len(children()) == 2
    stream.close()
    assert not children()
    # and the source still serves
    assert all(map(torch.equal, served(one, plan(), cuts(), 2), served(one, plan(), cuts(), 0)))


@pytest.mark.parametrize("number", [0, 2])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [(lambda file: file[:-200], "truncated"), (lambda file: b"text" + file[4:], "neither a JPEG nor a PNG file")],
)
def test_a_corrupt_image_is_named(tmp_path, number, damage, reason):
    files, labels = made_files(28, 1)
    files[10] = damage(files[10])
    packed.write_packed(tmp_path, "train", files, labels, np.arange(28) + 100)
    named = rf"split train, image 10 \(index 110 in the published order\): its \d+ bytes cannot be decoded: .*{reason}"
    one = source(tmp_path)
    with pytest.raises(CorruptImageError, match=named) as caught:
        served(one, plan(), cuts(), number)
    assert "\n" not in str(caught.value)
    assert not children()


def test_a_signal_to_all_processes_leaves_the_workers_to_their_parent(folder):
    one = source(folder)
    stream, batches = plan(), []
    for batch in one.batches(stream, cuts(), workers(2)):
        for child in children():
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(child.pid, number)
        batches.append(batch)
    assert all(map(torch.equal, batches, served(one, stream, cuts(), 0)))


ENDING = """
import multiprocessing, sys, torch
from pathlib import Path
from types import SimpleNamespace
from selfdistill.data.prepared.packed import PackedSource, PackedSplit
source = PackedSource(PackedSplit.read(Path(sys.argv[1]), "train"), (8, 8), 3, "cpu")
stream = {"image": torch.arange(28), "crop_seed": torch.arange(28)}
finished, under_way = (source.batches(stream, [slice(0, 28)] * 3, SimpleNamespace(workers=2)) for _ in range(2))
kept = next(under_way), list(finished)
print(*(c.pid for c in multiprocessing.active_children()), flush=True)
if sys.argv[2] == "raise":
    raise RuntimeError("on purpose")
if sys.argv[2] == "wait":
    sys.stdin.read()
"""


@pytest.mark.parametrize("end", ["return", "raise", "wait"])
def test_a_process_that_ends_takes_its_workers_along(folder, end):
    """Idle ones and such as are at work, also of a process that is killed."""
    command = [sys.executable, "-c", ENDING, str(folder), end]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, **pipes) as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 4
        if end == "wait":
            process.kill()
        process.communicate(timeout=300)
        assert process.returncode == {"return": 0, "raise": 1, "wait": -signal.SIGKILL}[end]
    wait_until(lambda: not any(map(alive, pids)))  # they look for their parent every 5 seconds


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# ---- training ----


def train(folder, *, name="plain", checkpoints=None, interruption=None, **changes) -> engine.Trained:
    files, labels = made_files(40, 2)
    pixels = np.stack([centre_cropped(file, (8, 8), 3) for file in files]).transpose(0, 3, 1, 2)
    validation = engine.Split(torch.from_numpy(pixels.copy()), torch.from_numpy(labels))
    rule = methods.load(name)()
    form = {**FORM, "exits": "exits" in rule.needs}
    return engine.train(
        rule,
        lambda seed: build(form, seed),
        DATASET,
        source(folder),
        validation,
        RECIPE.model_copy(update=changes),
        seed=0,
        checkpoints=checkpoints,
        interruption=interruption,
    )


def test_training_learns(folder):
    history = train(folder, epochs=8, workers=2).history
    assert history[-1]["validation_accuracy"] > 0.9
    assert history[-1]["loss"] < history[0]["loss"] / 2


@pytest.mark.parametrize("name", ["plain", "ddgsd", "mixup"])
def test_training_that_is_stopped_ends_with_the_same_bits(folder, tmp_path, name):
    whole = train(folder, name=name)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for steps, number in ((2, 2), (4, 0), (1, 1)):  # in the middle of an epoch, twice; other numbers of workers
        with pytest.raises(Interrupted):
            train(folder, name=name, checkpoints=checkpoints, interruption=stop_after(steps), workers=number)
        assert not children()
    resumed = train(folder, name=name, checkpoints=checkpoints, workers=2)
    assert bits(resumed) == bits(whole)
    assert resumed.history == whole.history


def test_an_exception_in_training_leaves_no_workers(folder):
    class Broken(methods.load("plain"), about=methods.about("plain")):
        calls = 0

        def terms(self, step):
            Broken.calls += 1
            if Broken.calls == 2:
                assert len(children()) == 2
                raise RuntimeError("on purpose")
            return super().terms(step)

    before = {thread.name for thread in threading.enumerate()} | {"tqdm_monitor"}
    with pytest.raises(RuntimeError, match="on purpose"):
        engine.train(
            Broken(),
            lambda seed: build(FORM, seed),
            DATASET,
            source(folder),
            engine.Split(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4)),
            RECIPE.model_copy(update={"workers": 2}),
            seed=0,
        )
    assert not children()
    for thread in threading.enumerate():  # one that hands over indices ends when its queue is closed
        if thread.name not in before:
            thread.join(5)
    assert {thread.name for thread in threading.enumerate()} <= before
