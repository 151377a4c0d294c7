"""`predict` on whatever a user may point it at: an answer, or one line for each file that is none, and never a wait."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from test_own_networks import accept, run_folder

from selfdistill.cli import main

FACTS = {
    "name": "made",
    "classes": ["a", "b\tc", "d"],
    "channels": 1,
    "size": [8, 8],
    "mean": [0.5],
    "std": [0.2],
    "pixels_sha256": {},
    "counts": {},
    "quarantined": 0,
    "shorter_side": None,
    "white": None,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    folder.mkdir()
    run_folder(folder)
    change(folder, dataset=FACTS)
    return folder


def change(folder: Path, **keys) -> None:
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, **keys}))


def picture(path: Path, mode: str = "RGB", size: tuple[int, int] = (9, 7), **save) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 4), dtype=np.uint8)
    image = Image.fromarray(pixels)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 256)
    else:
        image = image.convert("RGB").convert(mode) if mode in ("P", "CMYK") else image.convert(mode)
    image.save(path, **save)


def animation(path: Path) -> None:
    frames = [Image.new("L", (8, 8), value) for value in (0, 100, 200)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(path, exif=exif)


def cut(path: Path) -> None:
    picture(path, size=(64, 64))
    path.write_bytes(path.read_bytes()[:1500])


def many_scans(path: Path) -> None:
    """A progressive JPEG whose last scan stands there a thousand times: each goes over all pixels."""
    picture(path, size=(64, 64), progressive=True)
    content = path.read_bytes()
    last = content.rindex(b"\xff\xda")
    path.write_bytes(content[:last] + content[last:-2] * 1000 + b"\xff\xd9")


def large(path: Path) -> None:
    """A file of holes, larger than any image."""
    with open(path, "wb") as file:
        file.truncate(2**40)


def huge(path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(buffer, "PNG")
    path.write_bytes(buffer.getvalue())


CLASSIFIED = {
    "one pixel": ("i.png", lambda path: picture(path, size=(1, 1))),
    "a thousand pixels to one": ("i.png", lambda path: picture(path, size=(1000, 1))),
    "grey": ("i.png", lambda path: picture(path, "L")),
    "grey and transparent": ("i.png", lambda path: picture(path, "LA")),
    "transparent": ("i.png", lambda path: picture(path, "RGBA")),
    "a palette": ("i.png", lambda path: picture(path, "P")),
    "a palette with alpha": ("i.png", lambda path: picture(path, "P", transparency=3)),
    "black and white": ("i.png", lambda path: picture(path, "1")),
    "16 bits": ("i.png", lambda path: picture(path, "I;16")),
    "CMYK": ("i.jpg", lambda path: picture(path, "CMYK")),
    "progressive": ("i.jpg", lambda path: picture(path, progressive=True)),
    "turned": ("i.jpg", turned),
    "an animation": ("i.gif", animation),
    "WebP": ("i.webp", picture),
    "TIFF": ("i.tiff", picture),
    "BMP": ("i.bmp", picture),
    "another ending": ("i.txt", lambda path: picture(path, format="PNG")),
    "no ending": ("image", lambda path: picture(path, format="JPEG")),
    "a line break and a tab in its name": ("a\nb\tc.png", picture),
    "a name that is no UTF-8": (os.fsdecode(b"\xff\xfe.png"), picture),
    "a name as an option": ("-x.png", picture),
    "a link": ("i.png", lambda path: [picture(path.with_name("real.png")), path.symlink_to("real.png")]),
}
REFUSED = {
    "nothing there": ("i.png", lambda path: None, "No such file"),
    "empty": ("i.png", lambda path: path.write_bytes(b""), "an empty file"),
    "a text": ("i.png", lambda path: path.write_text("no image"), "no image of a known format"),
    "a web page": ("i.jpg", lambda path: path.write_text("<html></html>"), "no image of a known format"),
    "zeros": ("i.png", lambda path: path.write_bytes(bytes(5000)), "no image of a known format"),
    "cut off": ("i.jpg", cut, "cannot be decoded"),
    "a head alone": ("i.png", lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"), "no image that can be read"),
    "a thousand scans": ("i.jpg", many_scans, "scans; allowed: at most 500"),
    "too many pixels": ("i.png", huge, "more than 89,478,485 pixels"),
    "a terabyte": ("i.png", large, "1,099,511,627,776 bytes; allowed: at most 1,073,741,824"),
    "a pipe": ("i.png", os.mkfifo, "no regular file"),
    "a device": ("i.png", lambda path: path.symlink_to("/dev/zero"), "no regular file"),
    "a terminal": ("i.png", lambda path: path.symlink_to("/dev/null"), "no regular file"),
    "a link to nothing": ("i.png", lambda path: path.symlink_to("nowhere"), "No such file"),
    "a link to itself": ("i.png", lambda path: path.symlink_to("i.png"), "symbolic links"),
    "a name too long": ("x" * 300, lambda path: None, "File name too long"),
    "an empty folder": ("i", os.mkdir, "a folder without files"),
    "a folder of hidden files": ("i", lambda path: [path.mkdir(), picture(path / ".a.png")], "a folder without files"),
    "PostScript": ("i.eps", lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "PostScript"),
    "floating point": ("i.tiff", lambda path: Image.new("F", (8, 8)).save(path), "floating-point pixels"),
}


def said(arguments: list[str | Path], capsys) -> tuple[int, list[str], list[str]]:
    """Exit code, and the lines of standard output and standard error."""
    code = main(["predict", *map(str, arguments)])
    told = capsys.readouterr()
    return code, told.out.splitlines(), told.err.splitlines()


@pytest.mark.parametrize("case", CLASSIFIED)
def test_an_image_of_any_kind_is_classified(trained, tmp_path, capsys, case):
    name, made = CLASSIFIED[case]
    made(tmp_path / name)
    code, lines, errors = said([trained, tmp_path / name], capsys)
    assert (code, len(lines), errors) == (0, 1, [])
    assert lines[0].count("\t") == 3
    assert lines[0].isprintable() or lines[0].replace("\t", "").isprintable()


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_image_is_refused_in_a_line_and_the_others_are_classified(trained, tmp_path, capsys, case):
    name, made, words = REFUSED[case]
    made(tmp_path / name)
    picture(tmp_path / "whole.png")
    code, lines, errors = said([trained, tmp_path / name, tmp_path / "whole.png"], capsys)
    assert (code, len(lines), len(errors)) == (1, 1, 1)
    assert errors[0].startswith("selfdistill predict: ")
    assert words in errors[0]
    assert name in errors[0]


def test_a_folder_is_classified_file_by_file_in_the_order_of_names(trained, tmp_path, capsys):
    for name in ("b/2.png", "b/1.png", "a.png", "b/c/d.png", ".hidden/e.png", "b/.f.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture(tmp_path / name)
    (tmp_path / "b/Thumbs.db").write_text("no image")
    (tmp_path / "b/notes.txt").write_text("no image")
    (tmp_path / "loop").symlink_to(".")
    code, lines, errors = said([trained, tmp_path, tmp_path / "a.png"], capsys)
    names = [Path(line.split("\t")[0]).relative_to(tmp_path).as_posix() for line in lines]
    assert (code, names) == (1, ["a.png", "b/1.png", "b/2.png", "b/c/d.png", "a.png"])
    assert [error.split(": ")[2] for error in errors] == [
        "no image that can be read (no image of a known format)",
        "no image that can be read (a link to a folder, which is not followed)",
    ]
    code, lines, _ = said([trained, tmp_path / "b/c", tmp_path / "nothing", "--json"], capsys)
    (answer,) = json.loads("\n".join(lines))
    assert (code, answer["file"]) == (1, str(tmp_path / "b/c/d.png"))
    assert said([trained, tmp_path / "nothing", "--json"], capsys)[1] == ["[]"]


def state(change):
    def made(folder: Path) -> None:
        tensors = load_file(folder / "weights.safetensors")
        change(tensors)
        save_file(tensors, folder / "weights.safetensors")
        accept(folder)

    return made


def text(content: str | bytes, name: str = "run.json"):
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def dataset(**keys):
    return lambda folder: change(folder, dataset=FACTS | keys)


def network(**keys):
    form = {"name": "resnet10-slim", "channels": 1, "classes": 3, "size": [8, 8], "exits": False}
    return lambda folder: change(folder, network=form | keys)


def replaced(name: str, made):
    return lambda folder: [(folder / name).unlink(), made(folder / name)]


RUNS = {
    "no run.json": (
        lambda folder: (folder / "run.json").unlink(),
        "no trained network (neither run.json nor config.json in it)",
    ),
    "null": (text("null"), "NoneType, no object"),
    "a list": (text("[]"), "list, no object"),
    "empty": (text(""), "no JSON"),
    "cut off": (lambda folder: text((folder / "run.json").read_bytes()[:-9])(folder), "no JSON"),
    "marks of a merge": (text("<<<<<<< HEAD\n{}\n"), "no JSON"),
    "no UTF-8": (text(b"\xff\xfe{}"), "no JSON"),
    "deeply nested": (text("[" * 100_000), "no JSON"),
    "a pipe": (replaced("run.json", os.mkfifo), "no regular file"),
    "a device": (replaced("run.json", lambda path: path.symlink_to("/dev/zero")), "no regular file"),
    "a folder": (replaced("run.json", os.mkdir), "cannot be read (a folder)"),
    "a terabyte": (replaced("run.json", large), "bytes; allowed: at most"),
    "another network": (network(name="resnet8"), "network"),
    "a network that is none": (network(name="nothing"), "is no network"),
    "a network of a million classes": (network(classes=10**6), "of different images or classes"),
    "a network of other channels": (network(channels=3), "of different images or classes"),
    "a network's unknown key": (network(depth=7), "network.depth"),
    "size 0": (dataset(size=[0, 8]), "dataset.size"),
    "a vast size": (dataset(size=[10**9, 10**9]), "dataset.size"),
    "no size": (dataset(size=None), "dataset.size"),
    "no classes": (dataset(classes=[]), "dataset.classes"),
    "classes of numbers": (dataset(classes=[1, 2, 3]), "dataset.classes"),
    "no deviation": (dataset(std=[0]), "dataset.std"),
    "two means": (dataset(mean=[0.1, 0.2]), "dataset.mean"),
    "a mean that is none": (dataset(mean=[float("nan")]), "dataset.mean"),
    "white is black": (dataset(white=-1), "dataset.white"),
    "an unknown key": (dataset(more=1), "dataset.more"),
    "a dataset that is a list": (lambda folder: change(folder, dataset=[]), "dataset"),
    "persons": (dataset(pixels_sha256={"query": "", "gallery": ""}), "to find persons again"),
    "no weights": (lambda folder: (folder / "weights.safetensors").unlink(), "No such file"),
    "weights cut off": (
        lambda folder: text((folder / "weights.safetensors").read_bytes()[:999], "weights.safetensors")(folder),
        "its SHA-256 is",
    ),
    "weights that are a pickle": (
        lambda folder: [text(b"\x80\x02}.", "weights.safetensors")(folder), accept(folder)],
        "no safetensors file",
    ),
    "weights that are a pipe": (replaced("weights.safetensors", os.mkfifo), "no regular file"),
    "weights that are a folder": (replaced("weights.safetensors", os.mkdir), "no regular file"),
    "weights of another shape": (
        state(lambda tensors: tensors.update({"backbone.classifier.bias": torch.zeros(5)})),
        "has of another shape 1",
    ),
    "a tensor more": (state(lambda tensors: tensors.update(more=torch.zeros(1))), "has further 1 tensors"),
    "a tensor less": (state(lambda tensors: tensors.pop("backbone.classifier.bias")), "lacks 1 of"),
    "NaN": (state(lambda tensors: tensors["backbone.classifier.bias"].fill_(torch.nan)), "are not finite"),
    "outputs beyond all numbers": (
        state(lambda tensors: tensors["backbone.classifier.weight"].fill_(3e38)),
        "outputs for 1 of the 1 given images are no numbers",
    ),
}


@pytest.mark.parametrize("case", RUNS)
def test_a_run_that_is_none_is_refused_in_a_line(trained, tmp_path, capsys, case):
    made, words = RUNS[case]
    shutil.copytree(trained, tmp_path / "run")
    made(tmp_path / "run")
    picture(tmp_path / "i.png")
    code, lines, errors = said([tmp_path / "run", tmp_path / "i.png"], capsys)
    assert (code, lines, len(errors)) == (1, [], 1)
    assert str(tmp_path / "run") in errors[0]
    assert words in errors[0]


@pytest.mark.parametrize("number", ["0", "-1", "2", "99", str(2**70)])
def test_an_exit_that_is_none_is_refused_in_a_line(trained, tmp_path, capsys, number):
    picture(tmp_path / "i.png")
    code, lines, (error,) = said([trained, tmp_path / "i.png", "--exit", number], capsys)
    assert (code, lines) == (1, [])
    assert f"--exit {number}: this network has 1 exit; allowed: 1 to 1" in error


@pytest.mark.parametrize("place", ["nowhere", "i.png", "i.png/x", "x" * 300, ".", "loop"])
def test_a_place_without_a_run_is_refused_in_a_line(tmp_path, monkeypatch, capsys, place):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "i.png")
    (tmp_path / "loop").symlink_to("loop")
    code, lines, (error,) = said([place, "i.png"], capsys)
    assert (code, lines) == (1, [])
    assert "no trained network" in error


@pytest.mark.parametrize(
    ("output", "lines"),
    [(">&-", 0), ("> /dev/full", 1), ("| true", 0)],
)
def test_an_output_that_takes_nothing_ends_without_a_traceback(trained, tmp_path, output, lines):
    picture(tmp_path / "i.png")
    command = f"'{sys.executable}' -m selfdistill predict '{trained}' '{tmp_path}/i.png' {output}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=300, check=False)
    assert len(done.stderr.splitlines()) == lines, done.stderr
