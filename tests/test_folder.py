"""A folder of images: what can be used is used, upright and in 8 bits; the rest is listed with its reason."""

import csv
import errno
import hashlib
import importlib.util
import io
import json
import os
import shutil
import socket
import struct
import zlib

import numpy as np
import pytest
import yaml
from PIL import Image, features
from pydantic import ValidationError
from safetensors.numpy import load_file

from selfdistill.cli import main
from selfdistill.data.catalogue import Catalogue, DataEntry, ImageForm, read_catalogue
from selfdistill.data.describe import describe_folder
from selfdistill.data.fetch import FetchError, fetch
from selfdistill.data.folder import list_of
from selfdistill.data.images import UnusableImageError, packed_form, sized, upright
from selfdistill.data.prepare import prepare
from selfdistill.data.prepared import Dataset
from selfdistill.evaluation.images import PredictError, read_image

RNG = np.random.default_rng(0)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def colours(height: int = 40, width: int = 48) -> Image.Image:
    """A gradient, red to the right and green downwards, that survives JPEG."""
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([red, green, np.full_like(red, 90)], axis=2).astype(np.uint8))


def exif(orientation: int) -> bytes:
    entries = Image.Exif()
    entries[0x0112] = orientation
    return entries.tobytes()


def png(header: bytes, pixels: bytes) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def huge_png() -> bytes:
    """A PNG of a few bytes that says it has 60,000 x 60,000 pixels."""
    return png(struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0), b"")


def png16(values: np.ndarray) -> bytes:
    """H x W x 1 to 4 channels of 16 bits, which Pillow does not write."""
    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, (0, 4, 2, 6)[channels - 1], 0, 0, 0)
    return png(header, b"".join(b"\0" + row.astype(">u2").tobytes() for row in values))


GREY16 = Image.fromarray((np.arange(48 * 40, dtype=np.uint32) * 34).astype(np.uint16).reshape(40, 48))
# of the same gradient, as near as each form can hold it
USABLE = {
    "rgb.jpg": saved(colours(), "JPEG", quality=95),
    "rgb.png": saved(colours(), "PNG"),
    "rgb.webp": saved(colours(), "WEBP", lossless=True),
    "rgb.bmp": saved(colours(), "BMP"),
    "rgb.tiff": saved(colours(), "TIFF"),
    "transparent.png": saved(colours().convert("RGBA"), "PNG"),
    "cmyk.jpg": saved(colours().convert("CMYK"), "JPEG", quality=95),
    "wrong-extension.png": saved(colours(), "JPEG", quality=95),
    "no-extension": saved(colours(), "PNG"),
    "turned.jpg": saved(colours().transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=exif(6)),
    "mirrored.jpg": saved(colours().transpose(Image.Transpose.FLIP_LEFT_RIGHT), "JPEG", quality=95, exif=exif(2)),
}
UNUSABLE = {
    "zero-bytes.jpg": (b"", "an empty file"),
    "text.jpg": (b"no image at all", "no image of a known format"),
    "page.png": (b"<!DOCTYPE html><html></html>", "no image of a known format"),
    "truncated.jpg": (USABLE["rgb.jpg"][:600], "cannot be decoded"),
    "truncated.png": (USABLE["rgb.png"][: len(USABLE["rgb.png"]) // 2], "cannot be decoded"),
    "header-only.jpg": (USABLE["rgb.jpg"][:20], "cannot be decoded|known format"),
    "vector.eps": (saved(colours(), "EPS"), "no image of a known format"),
    "huge.png": (huge_png(), "more than [0-9,]+ pixels"),
    "float.tiff": (saved(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF"), "floating-point pixels"),
    "int.tiff": (saved(Image.fromarray(np.arange(81, dtype=np.int32).reshape(9, 9)), "TIFF"), "pixels of 32 bits"),
    "grey16-and-transparent.png": (png16(np.zeros((9, 9, 2), np.uint16)), r"the form LA;16B, .+; save it with 8"),
    "photo.jxl": (b"\xff\x0a" + bytes(50), r"no image of a known format \(JPEG XL\)"),
}
if features.check("avif"):
    USABLE["rgb.avif"] = saved(colours(), "AVIF", quality=95)
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)  # its head alone


@pytest.mark.parametrize("name", USABLE)
def test_an_image_of_any_form_gives_the_same_upright_pixels(name):
    pixels = sized(upright(USABLE[name]), (40, 48), 3).astype(int)
    assert np.abs(pixels - np.asarray(colours(), int).transpose(2, 0, 1)).max() <= 12


def test_grey_in_16_bits_keeps_its_upper_8_and_palettes_and_single_bits_are_read():
    expected = np.asarray(GREY16) >> 8
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(sized(upright(saved(GREY16, kind)), (40, 48), 1)[0], expected)
    half = Image.fromarray(expected.astype(np.uint8))
    assert upright(saved(half.convert("LA"), "PNG")).mode == "L"
    assert set(np.unique(sized(upright(saved(half.convert("1"), "PNG")), (40, 48), 1))) == {0, 255}
    palette = colours().convert("P", palette=Image.Palette.ADAPTIVE)
    np.testing.assert_array_equal(upright(saved(palette, "GIF")), palette.convert("RGB"))
    assert sized(upright(saved(half, "PNG")), (8, 6), 3).shape == (3, 8, 6)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits_are_scaled_to_what_is_called_white(channels):
    values = RNG.integers(0, 4096, (6, 8, channels), dtype=np.uint16)
    values[0, 0] = 4095
    for white, expected in ((4095, values >> 4), (None, values >> 8), (1023, np.minimum(values, 1023) >> 2)):
        seen = np.asarray(upright(png16(values), white)).reshape(6, 8, -1)
        np.testing.assert_array_equal(seen, expected[..., :3])


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_turned_as_exif_says(kind):
    turned = Image.fromarray(np.asarray(GREY16).T[::-1].copy())  # to the left by a quarter; 6 says so
    options = {"exif": exif(6)} if kind == "PNG" else {"tiffinfo": {0x0112: 6}}
    np.testing.assert_array_equal(upright(saved(turned, kind, **options)), np.asarray(GREY16) >> 8)


def test_what_the_first_bytes_say_of_a_file_that_cannot_be_read():
    with pytest.raises(UnusableImageError) as error:
        upright(HEIC)
    installed = importlib.util.find_spec("pillow_heif") is not None
    assert ("pip install pillow-heif" in str(error.value)) != installed


@pytest.mark.parametrize(("content", "reason"), UNUSABLE.values(), ids=list(UNUSABLE))
def test_what_is_no_whole_image_is_refused_with_its_reason(content, reason):
    with pytest.raises(UnusableImageError, match=reason):
        upright(content)


# ---- a folder ----


def fill(folder, count: int, kinds=("cat", "dog")) -> None:
    """Images of two kinds, the dogs brighter, each another one."""
    for i in range(count):
        kind = kinds[i % len(kinds)]
        pixels = RNG.integers(0, 120, (20, 26, 3), dtype=np.uint8) + np.uint8(100 * (i % len(kinds)))
        (folder / kind).mkdir(parents=True, exist_ok=True)
        (folder / kind / f"{i:03d}.png").write_bytes(saved(Image.fromarray(pixels), "PNG"))


def mixed(folder) -> None:
    """Images of two kinds, some of other forms, and files that are none."""
    fill(folder, 180)
    for name, content in USABLE.items():
        (folder / "cat" / name).write_bytes(content)
    for name, (content, _) in UNUSABLE.items():
        (folder / "dog" / name).write_bytes(content)
    (folder / "cat" / ".hidden").write_bytes(b"left out")
    (folder / "readme.txt").write_bytes(b"left out")


def prepared(folder, place, **options) -> tuple[dict, DataEntry]:
    """Described, fetched and prepared: dataset.json and report.json as one."""
    entry = DataEntry.model_validate(describe_folder(folder, **options))
    fetch("made", entry, place / "raw")
    report = prepare("made", entry, place / "raw", place / "prepared")
    return json.loads((place / "prepared/made/training/dataset.json").read_text()) | report, entry


def contents(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_of_mixed_images_the_bad_are_listed_and_the_rest_is_used(tmp_path):
    mixed(tmp_path / "photos")
    said, _ = prepared(tmp_path / "photos", tmp_path, size=(24, 24))
    assert said["classes"] == ["cat", "dog"]
    usable = 180 + len(USABLE)
    assert said["counts"] == {"pool": usable - round(0.2 * usable), "test": round(0.2 * usable)}
    assert (said["channels"], said["size"], said["quarantined"]) == (3, [24, 24], len(UNUSABLE))
    rows = list(csv.DictReader((tmp_path / "prepared/made/report/quarantine.csv").open()))
    assert [(row["split"], row["name"]) for row in rows] == [("all", f"dog/{name}") for name in sorted(UNUSABLE)]
    assert all(row["reason"] for row in rows)
    paths = [row["path"] for row in csv.DictReader((tmp_path / "raw/made/files.csv").open())]
    assert len(paths) == usable + len(UNUSABLE)
    for part, place in (("pool", "training"), ("test", "test")):
        tensors = load_file(tmp_path / f"prepared/made/{place}/{part}.safetensors")
        for image, label, index in zip(tensors["images"], tensors["labels"], tensors["indices"], strict=True):
            path = tmp_path / "photos" / paths[index]
            assert ("cat", "dog")[label] == path.parent.name
            np.testing.assert_array_equal(image, sized(upright(path.read_bytes()), (24, 24), 3))


def test_neither_the_order_of_a_directory_nor_its_place_nor_its_times_count(tmp_path):
    one, two = (tmp_path / place / "photos" for place in ("here", "there"))
    mixed(one)
    for name in sorted(contents(one), reverse=True):
        (two / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(one / name, two / name)
        os.utime(two / name, (0, 0))
    _, first = prepared(one, tmp_path / "here")
    _, second = prepared(two, tmp_path / "there")
    assert first.files[0].sha256 == second.files[0].sha256
    assert contents(tmp_path / "here/prepared") == contents(tmp_path / "there/prepared")


@pytest.mark.parametrize(
    ("parts", "counts"),
    [
        ({"train": 60, "test": 20}, {"pool": 60, "test": 20}),
        ({"train": 60, "val": 20}, {"pool": 60, "test": 20}),
        ({"train": 60, "validation": 14, "test": 20}, {"train": 60, "validation": 14, "test": 20}),
    ],
)
def test_given_splits_are_kept(parts, counts, tmp_path):
    for part, count in parts.items():
        fill(tmp_path / "photos" / part, count)
    said, _ = prepared(tmp_path / "photos", tmp_path)
    assert said["counts"] == counts
    assert said["size"] == [32, 32]
    test = load_file(tmp_path / "prepared/made/test/test.safetensors")
    assert test["indices"].tolist() == list(range(20))


def test_names_of_splits_are_known_in_any_case(tmp_path):
    fill(tmp_path / "photos/Train", 40)
    fill(tmp_path / "photos/TEST", 20)
    said, entry = prepared(tmp_path / "photos", tmp_path)
    assert said["classes"] == ["cat", "dog"]
    assert said["counts"] == {"pool": 40, "test": 20}
    assert entry.files[0].bytes == len((tmp_path / "raw/made/files.csv").read_bytes())


@pytest.mark.parametrize("given", [True, False])
def test_files_outside_the_classes_are_left_out_without_a_word(given, tmp_path):
    photos = tmp_path / "photos"
    for part in ("train", "test") if given else ("",):
        fill(photos / part, 40)
    before = describe_folder(photos)
    for place in (photos, *([photos / "train", photos / "test"] if given else [])):
        (place / "stray.txt").write_bytes(b"notes")
        (place / "empty").mkdir()
    assert describe_folder(photos) == before
    said, _ = prepared(photos, tmp_path)
    assert said["quarantined"] == 0


def test_classes_that_are_called_as_splits_are_stay_classes(tmp_path):
    fill(tmp_path / "photos", 40, kinds=("bus", "train"))
    assert describe_folder(tmp_path / "photos")["classes"] == ["bus", "train"]
    fill(tmp_path / "animals", 60, kinds=("cat", "dog", "test"))
    assert describe_folder(tmp_path / "animals")["classes"] == ["cat", "dog", "test"]


def test_grey_images_have_one_channel(tmp_path):
    fill(tmp_path / "photos", 40)
    for path in (tmp_path / "photos").rglob("*.png"):
        Image.open(path).convert("L").save(path)
    said, _ = prepared(tmp_path / "photos", tmp_path)
    assert said["channels"] == 1


@pytest.mark.parametrize("channels", [1, 3])
def test_predict_sees_an_image_as_it_was_prepared(channels, tmp_path):
    files = USABLE | {
        "grey16.png": saved(GREY16, "PNG"),
        "grey16.tiff": saved(GREY16, "TIFF"),
        "grey-and-transparent.png": saved(colours().convert("LA"), "PNG"),
        "palette.gif": saved(colours().convert("P", palette=Image.Palette.ADAPTIVE), "GIF"),
        "one-bit.png": saved(colours().convert("1"), "PNG"),
    }
    fill(tmp_path / "photos/train", 40)
    (tmp_path / "photos/test/cat").mkdir(parents=True)
    for name, content in files.items():
        (tmp_path / "photos/test/cat" / name).write_bytes(content)
    prepared(tmp_path / "photos", tmp_path, size=(24, 30), channels=channels)
    dataset = Dataset.read(tmp_path / "prepared/made/training")
    images = load_file(tmp_path / "prepared/made/test/test.safetensors")["images"]
    for name, expected in zip(sorted(files), images, strict=True):
        seen = read_image(tmp_path / "photos/test/cat" / name, dataset, invert=False)
        np.testing.assert_array_equal(seen, expected, err_msg=name, strict=True)
        inverted = read_image(tmp_path / "photos/test/cat" / name, dataset, invert=True)
        np.testing.assert_array_equal(inverted, 255 - expected, err_msg=name, strict=True)


def fill_deep(folder, largest: int, count: int = 40) -> None:
    """Images of 16 bits, grey and coloured, whose largest value is this one."""
    for i in range(count):
        kind = ("cat", "dog")[i % 2]
        values = RNG.integers(0, largest // (1 + i % 2), (20, 20, 1 + 2 * (i % 3 == 0)), dtype=np.uint16)
        values[0, 0] = largest if i == 7 else 0
        (folder / kind).mkdir(parents=True, exist_ok=True)
        (folder / kind / f"{i:03d}.png").write_bytes(png16(values))


def test_16_bits_are_scaled_by_the_largest_value_of_the_set_and_predict_does_the_same(tmp_path):
    photos = tmp_path / "photos"
    fill_deep(photos / "train", 4095)
    fill_deep(photos / "test", 3000, 12)
    fill(photos / "test", 4)  # 8 bits among them are as they are
    said, _ = prepared(photos, tmp_path, size=(20, 20), channels=3)
    assert said["white"] == 4095
    dataset = Dataset.read(tmp_path / "prepared/made/training")
    pool = load_file(tmp_path / "prepared/made/training/pool.safetensors")["images"]
    assert pool.max() == 255
    assert 50 < pool.mean() < 110
    paths = sorted((photos / "test").rglob("*.png"))
    images = load_file(tmp_path / "prepared/made/test/test.safetensors")["images"]
    assert len(images) == len(paths)
    for path, expected in zip(paths, images, strict=True):
        np.testing.assert_array_equal(read_image(path, dataset, invert=False), expected, err_msg=str(path))
    np.testing.assert_array_equal(
        pool[7 // 2 + 20], sized(upright((photos / "train/dog/007.png").read_bytes(), 4095), (20, 20), 3)
    )


def test_a_set_of_8_bits_has_no_white(tmp_path):
    fill(tmp_path / "photos", 40)
    said, _ = prepared(tmp_path / "photos", tmp_path)
    assert said["white"] is None


@pytest.mark.parametrize(("content", "reason"), UNUSABLE.values(), ids=list(UNUSABLE))
def test_predict_refuses_what_preparing_leaves_out(content, reason, tmp_path):
    (tmp_path / "photo").write_bytes(content)
    dataset = Dataset("made", ["cat", "dog"], 3, (24, 30), [0.5] * 3, [0.2] * 3, {})
    with pytest.raises(PredictError, match=reason) as error:
        read_image(tmp_path / "photo", dataset, invert=False)
    assert str(error.value).startswith(f"{tmp_path / 'photo'}: no image that can be read (")
    assert len(str(error.value).splitlines()) == 1


def test_an_image_that_two_splits_share_is_counted_and_listed(tmp_path):
    fill(tmp_path / "photos/train", 40)
    fill(tmp_path / "photos/test", 20)
    shared = (tmp_path / "photos/train/cat/000.png").read_bytes()
    (tmp_path / "photos/test/cat/again.png").write_bytes(shared)
    (tmp_path / "photos/test/dog/other.png").write_bytes(shared)
    said, _ = prepared(tmp_path / "photos", tmp_path)
    assert sum(said["duplicates"].values()) == 2
    assert said["duplicates_with_another_label"] == 1
    rows = list(csv.DictReader((tmp_path / "prepared/made/report/duplicates.csv").open()))
    assert [row["labels"] for row in rows] == ["equal", "different"]
    part = rows[0]["splits"].split(", ")[0]
    first = load_file(tmp_path / f"prepared/made/training/{part}.safetensors")["images"][int(rows[0]["first"])]
    second = load_file(tmp_path / "prepared/made/test/test.safetensors")["images"][int(rows[0]["second"])]
    np.testing.assert_array_equal(first, second)


def test_duplicates_are_named_by_their_files(tmp_path):
    fill(tmp_path / "photos/train", 40)
    fill(tmp_path / "photos/test", 20)
    (tmp_path / "photos/train/cat/000-broken.png").write_bytes(b"")  # so that rows are not the numbers of files
    shared = (tmp_path / "photos/train/dog/031.png").read_bytes()
    (tmp_path / 'photos/test/dog/new\rline, "again".png').write_bytes(shared)
    prepared(tmp_path / "photos", tmp_path)
    with (tmp_path / "prepared/made/report/duplicates.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["first_name"], row["second_name"]) == ("train/dog/031.png", 'test/dog/new\rline, "again".png')


def test_names_of_any_signs_are_files_as_others_are(tmp_path):
    photos = tmp_path / "photos"
    fill(photos, 40)
    names = ["a\nb.png", "a\rb.png", "a\r\nb.png", 'a "b".png', "a, b.png", "a\udcff.png", " a ", "'", "#.png"]
    for i, name in enumerate(names):
        pixels = np.full((20, 20, 3), 20 * i, np.uint8)
        (photos / "cat" / name).write_bytes(saved(Image.fromarray(pixels), "PNG"))
    junk = ["notes.txt", "bad\udcfe\n.png"]
    for name in junk:
        (photos / "dog" / name).write_bytes(b"")
    said, _ = prepared(photos, tmp_path)
    assert sum(said["counts"].values()) == 40 + len(names)
    with open(tmp_path / "raw/made/files.csv", newline="", errors="surrogateescape") as file:
        listed = [row["path"] for row in csv.DictReader(file)]
    assert listed == sorted(p.relative_to(photos).as_posix() for p in photos.rglob("*") if p.is_file())
    with open(tmp_path / "prepared/made/report/quarantine.csv", newline="", errors="surrogateescape") as file:
        assert [row["name"] for row in csv.DictReader(file)] == sorted(f"dog/{name}" for name in junk)


def test_files_that_systems_make_are_left_out(tmp_path):
    photos = tmp_path / "photos"
    fill(photos, 40)
    before = describe_folder(photos)
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "ehthumbs.db", "Icon\r", "._000.png", "@eaDir/000.png"):
        (photos / "cat" / name).parent.mkdir(exist_ok=True)
        (photos / "cat" / name).write_bytes(b"made by a system")
    assert describe_folder(photos) == before


def test_a_folder_of_what_nobody_reads_here_is_refused_with_the_commonest_reason(tmp_path):
    fill(tmp_path / "photos", 40)
    for path in (tmp_path / "photos/dog").iterdir():
        path.write_bytes(b"%PDF-1.7")
    (tmp_path / "photos/dog/empty.png").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"'dog' has 0 usable images to split; mostly: no image .+ \(a PDF\) \(20 files\); allowed: 5"
    ):
        describe_folder(tmp_path / "photos")


def test_a_link_that_leaves_the_folder_is_listed_and_one_within_it_is_read(tmp_path):
    photos = tmp_path / "photos"
    fill(photos, 40)
    (tmp_path / "secret.png").write_bytes((photos / "cat/000.png").read_bytes())
    (photos / "cat/outside.png").symlink_to("../../secret.png")
    (photos / "cat/within.png").symlink_to("../dog/001.png")
    (photos / "cat/folder").symlink_to("../dog")
    said, _ = prepared(photos, tmp_path)
    assert sum(said["counts"].values()) == 41
    rows = {
        row["name"]: row["reason"] for row in csv.DictReader((tmp_path / "prepared/made/report/quarantine.csv").open())
    }
    assert rows == {"cat/folder": "a link to a folder", "cat/outside.png": "a link to a file outside the folder"}


def test_a_class_that_is_a_link_to_a_folder_is_refused_by_name(tmp_path):
    """Left out, it would be a class less without a word."""
    fill(tmp_path / "photos", 40)
    (tmp_path / "photos/cat").rename(tmp_path / "cats")
    (tmp_path / "photos/cat").symlink_to("../cats")
    fill(tmp_path / "photos", 40, kinds=("cow", "dog"))
    with pytest.raises(ValueError, match=r"photos/cat: a link to a folder, which is not followed; put the folder"):
        describe_folder(tmp_path / "photos")


def test_the_list_of_sound_files_has_the_bytes_that_it_always_had(tmp_path):
    for name in ("cat/1.jpg", 'cat/a "b", c.jpg', "dog/x y.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    text = io.StringIO()
    rows = [
        (n, len(n), hashlib.sha256(n.encode()).hexdigest()) for n in ("cat/1.jpg", 'cat/a "b", c.jpg', "dog/x y.jpg")
    ]
    csv.writer(text, lineterminator="\n").writerows([("path", "bytes", "sha256"), *rows])
    assert list_of(tmp_path) == text.getvalue().encode()


@pytest.mark.parametrize(("top", "kind"), [("photos", "d\udcffg"), ("ph\udcffotos", "dog")])
def test_a_folder_whose_name_nobody_could_write_is_refused(top, kind, tmp_path):
    fill(tmp_path / top, 40, kinds=("cat", kind))
    with pytest.raises(ValueError, match=r"udcff.+: the name of this folder is no UTF-8; rename it"):
        describe_folder(tmp_path / top)


def socket_in(path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


NO_FILES = {
    "a link to nothing": (lambda path: path.symlink_to("nowhere"), "a link to nothing"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "a link to nothing"),
    "a pipe": (os.mkfifo, "no regular file"),
    "a link to a pipe": (
        lambda path: [os.mkfifo(path.parents[2] / "p"), path.symlink_to("../../p")],
        "no regular file",
    ),
    "a socket": (socket_in, "no regular file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "no regular file"),
}


@pytest.mark.parametrize(("make", "reason"), NO_FILES.values(), ids=list(NO_FILES))
def test_what_is_no_file_is_listed_and_the_rest_is_used(make, reason, tmp_path):
    fill(tmp_path / "photos", 40)
    make(tmp_path / "photos/cat/odd.png")
    said, entry = prepared(tmp_path / "photos", tmp_path)
    assert sum(said["counts"].values()) == 40
    rows = list(csv.DictReader((tmp_path / "prepared/made/report/quarantine.csv").open()))
    assert rows == [{"split": "all", "name": "cat/odd.png", "reason": reason}]
    (tmp_path / "photos/cat/odd.png").unlink()
    (tmp_path / "photos/cat/odd.png").write_bytes(b"")  # as the list counts it, but a file
    with pytest.raises(ValueError, match=r"odd\.png: it has changed since the folder was described"):
        prepare("made", entry, tmp_path / "raw", tmp_path / "prepared")
    shutil.rmtree(tmp_path / "raw")
    with pytest.raises(FetchError, match="has changed since it was described"):
        fetch("made", entry, tmp_path / "raw")


def test_what_may_not_be_read_is_refused_by_name(tmp_path, monkeypatch):
    """A list that left it out would be another one for another user."""
    fill(tmp_path / "photos", 40)

    def forbidden(path, *_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    for function in ("open", "scandir"):
        with monkeypatch.context() as patch:
            patch.setattr(os, function, forbidden)
            with pytest.raises(ValueError, match=r"photos.*: Permission denied; make it readable, or take it away"):
                list_of(tmp_path / "photos")


@pytest.mark.parametrize("size", [(0, 0), (3, 32), (32, 4097), (-1, 8)])
def test_a_size_that_is_not_allowed_is_refused_by_its_name_before_any_work(size, tmp_path):
    with pytest.raises(ValueError, match=f"--size {size[0]} {size[1]} is not allowed; allowed: H and W from 4 to 4096"):
        describe_folder(tmp_path / "nowhere", size=size)
    with pytest.raises(ValidationError):
        ImageForm(size=list(size), channels=3)
    ImageForm(size=[4, 4096], channels=3)


def test_a_folder_that_changed_since_it_was_described_is_refused(tmp_path):
    fill(tmp_path / "photos", 40)
    _, entry = prepared(tmp_path / "photos", tmp_path)
    (tmp_path / "photos/cat/000.png").write_bytes((tmp_path / "photos/dog/001.png").read_bytes())
    with pytest.raises(ValueError, match=r"cat/000.png: it has changed since the folder was described"):
        prepare("made", entry, tmp_path / "raw", tmp_path / "prepared")
    shutil.rmtree(tmp_path / "raw")
    with pytest.raises(FetchError, match="has changed since it was described"):
        fetch("made", entry, tmp_path / "raw")
    assert not (tmp_path / "raw").exists()
    shutil.rmtree(tmp_path / "photos")
    with pytest.raises(FetchError, match="no such folder"):
        fetch("made", entry, tmp_path / "raw")


def into(*tops: str):
    """Copies of the classes below each of these folders, in place of the classes."""

    def change(folder) -> None:
        folder.rename(folder.with_name("classes"))
        for top in tops:
            shutil.copytree(folder.with_name("classes"), folder / top)

    return change


def flat(*tops: str):
    """Folders of images without classes, beside what is there."""

    def change(folder) -> None:
        for top in tops:
            shutil.copytree(folder / "cat", folder / top)

    return change


def both(*changes):
    return lambda folder: [change(folder) for change in changes]


def without_images(folder, name: str = "bad") -> None:
    (folder / name).mkdir()
    (folder / name / "bad.txt").write_bytes(b"no image at all")


def given_without_images(folder) -> None:
    into("train", "test")(folder)
    without_images(folder / "train")


FAULTY = {
    "no folder": (shutil.rmtree, "no such folder"),
    "one class": (lambda folder: shutil.rmtree(folder / "cat"), "1 folders of images; allowed: two or more"),
    "an empty folder": (lambda folder: [shutil.rmtree(folder / kind) for kind in ("cat", "dog")], "0 folders"),
    "few images": (lambda folder: [p.unlink() for p in sorted((folder / "dog").iterdir())[3:]], "'dog' has 3 usable"),
    "few usable": (lambda folder: [p.write_bytes(b"") for p in sorted((folder / "dog").iterdir())[2:]], "has 2 usable"),
    "a class without images": (without_images, "class 'bad' has 0 usable images .+ or take its folder away"),
    "no images in a given split": (given_without_images, "class 'bad' has 0 usable images .+ or take its folder away"),
    "splits and another folder": (
        into("train", "test", "extra"),
        r"the splits 'test', 'train' beside other folders, such as 'extra'; allowed: classes alone",
    ),
    "a split and a class": (into("Train", "dogs"), "the splits 'Train' beside other folders, such as 'dogs'"),
    "two names of splits and a class": (flat("train", "test"), "'test', 'train' beside other folders, such as 'cat'"),
    "splits without classes": (
        both(flat("train", "test"), lambda folder: [shutil.rmtree(folder / kind) for kind in ("cat", "dog")]),
        "no classes' folders in 'test'; allowed: classes alone",
    ),
    "a test split without classes": (
        both(into("train", "test"), lambda folder: shutil.rmtree(folder / "test"), lambda f: without_images(f, "test")),
        "no classes' folders in 'test'",
    ),
    "train alone": (into("train"), "no splits but 'train'; allowed"),
    "no train": (into("test", "val"), "no splits but 'test', 'val'; allowed"),
    "a split twice": (into("train", "val", "Validation"), "one split twice among 'Validation', 'train', 'val'"),
}


@pytest.mark.parametrize(("change", "words"), FAULTY.values(), ids=list(FAULTY))
def test_a_folder_that_cannot_be_used_is_refused_in_one_line(change, words, tmp_path):
    fill(tmp_path / "photos", 40)
    change(tmp_path / "photos")
    with pytest.raises(ValueError, match=words) as error:
        describe_folder(tmp_path / "photos")
    assert len(str(error.value).splitlines()) == 1


def test_the_command_prints_the_entry_or_one_line(tmp_path, capsys):
    fill(tmp_path / "photos", 40)
    assert main(["describe", "made", str(tmp_path / "photos"), "--size", "16", "20"]) == 0
    entry = yaml.safe_load("datasets:\n" + capsys.readouterr().out)["datasets"]["made"]
    assert entry == describe_folder(tmp_path / "photos", size=(16, 20))
    assert main(["describe", "made", str(tmp_path / "nowhere")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_an_image_that_would_be_longer_than_a_jpeg_is_refused():
    """One that fits once it is smaller is kept."""
    strip = io.BytesIO()
    Image.new("L", (8, 70_000)).save(strip, "PNG")
    assert packed_form(strip.getvalue(), 4, 1)[1].size == (4, 35_000)
    with pytest.raises(
        UnusableImageError, match=r"a longer side of 70,000 pixels, with 8 at the shorter one; .* 65,500"
    ):
        packed_form(strip.getvalue(), 8, 1)


@pytest.mark.parametrize("place", [".", "data", "studies/one"])
def test_the_lists_of_what_is_amiss_are_named_with_a_path_that_holds_from_anywhere(
    place, tmp_path, monkeypatch, capsys
):
    """DVC prints the message from data/, and the user stands elsewhere."""
    fill(tmp_path / "photos/train", 40)
    shutil.copytree(tmp_path / "photos/train", tmp_path / "photos/test")
    (tmp_path / "photos/train/cat/bad.png").write_bytes(b"")
    for folder in ("data", "studies/one"):
        (tmp_path / folder).mkdir(parents=True)
    text = yaml.safe_dump({"datasets": {"made": describe_folder(tmp_path / "photos")}}, sort_keys=False)
    (tmp_path / "data/params.yaml").write_text(text)
    (tmp_path / "studies/one/params.yaml").write_text("root: ../..\n")
    monkeypatch.chdir(tmp_path / place)
    assert main(["fetch", "made"]) == main(["prepare", "made"]) == 0
    report = tmp_path / "data/prepared/made/report"
    assert f"see {report / 'quarantine.csv'}; 40 images stand in two splits, see {report / 'duplicates.csv'}" in (
        capsys.readouterr().out
    )


def test_a_described_folder_is_an_entry_of_the_catalogue(tmp_path):
    fill(tmp_path / "photos", 40)
    text = yaml.safe_dump({"datasets": {"made": describe_folder(tmp_path / "photos", seed=3)}}, sort_keys=False)
    (tmp_path / "params.yaml").write_text(text)
    catalogue = read_catalogue(tmp_path / "params.yaml")
    assert isinstance(catalogue, Catalogue)
    assert catalogue.datasets["made"].split.model_dump(exclude_none=True) == {"test": 8, "seed": 3}
