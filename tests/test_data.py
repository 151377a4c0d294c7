"""Data: nothing unverified is kept, every way of fetching gives the same bytes, splits are what they say."""

import copy
import gzip
import hashlib
import http.server
import io
import json
import os
import pickle
import struct
import tarfile
import threading
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.numpy import load_file
from sklearn.datasets import load_digits

from selfdistill.closure import PACKAGE, closure
from selfdistill.data import cifar, cifar10
from selfdistill.data import fetch as fetch_module
from selfdistill.data import idx as idx_reader
from selfdistill.data.catalogue import DataEntry, read_catalogue
from selfdistill.data.fetch import MIRROR, FetchError, fetch
from selfdistill.data.folder import list_of, read_list
from selfdistill.data.images import UnusableImageError, upright
from selfdistill.data.prepare import prepare
from selfdistill.data.prepared import open_splits
from selfdistill.data.splits import moments, pixels_sha256
from selfdistill.errors import UserError
from selfdistill.schema import ConfigError

ROOT = Path(__file__).parents[1]
RNG = np.random.default_rng(0)
IMAGES = {
    "train": RNG.integers(0, 256, (60, 5, 5), dtype=np.uint8),
    "t10k": RNG.integers(0, 256, (20, 5, 5), dtype=np.uint8),
}
LABELS = {part: (np.arange(len(images)) % 4).astype(np.uint8) for part, images in IMAGES.items()}


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


FILES = {
    f"{part}-{kind}": idx(arrays[part])
    for kind, arrays in (("images-idx3-ubyte", IMAGES), ("labels-idx1-ubyte", LABELS))
    for part in ("train", "t10k")
}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def entry(*sources: str) -> DataEntry:
    """A small made data set of the MNIST family."""
    return DataEntry.model_validate(
        {
            "title": "made",
            "reader": "idx",
            "licence": "none",
            "citation": "none",
            "classes": ["a", "b", "c", "d"],
            "split": {"train": 24, "validation": 12, "seed": 0},
            "files": [
                {
                    "name": f"{name}.gz",
                    "bytes": len(gzip.compress(content, mtime=0)),
                    "sha256": sha256(gzip.compress(content, mtime=0)),
                    "unpacked": [{"name": f"Made/raw/{name}", "bytes": len(content), "sha256": sha256(content)}],
                    "sources": list(sources) or ["http://127.0.0.1:9/"],
                }
                for name, content in FILES.items()
            ],
        }
    )


@pytest.fixture
def server(tmp_path):
    """A web server on this machine: /good/ has the files, /html/ answers every name with a page."""
    good = {f"/good/{name}.gz": gzip.compress(content, mtime=0) for name, content in FILES.items()}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content = good.get(self.path) or (b"<html>moved</html>" if self.path.startswith("/html/") else None)
            if self.path.startswith("/short/"):
                content = good[self.path.replace("short", "good")][:-7]
            self.send_response(200 if content else 404)
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture(autouse=True)
def no_mirror(monkeypatch):
    monkeypatch.delenv(MIRROR, raising=False)
    monkeypatch.setattr(fetch_module, "PAUSE", 0)


def fetched(folder) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_archive_mirror_and_network_give_the_same_bytes(server, tmp_path, monkeypatch):
    fetch("made", entry(f"{server}/good/"), tmp_path / "network")
    published = tmp_path / "published"
    published.mkdir()
    for name, content in FILES.items():
        (published / f"{name}.gz").write_bytes(gzip.compress(content, mtime=0))
    unpacked = tmp_path / "unpacked" / "Made" / "raw"
    unpacked.mkdir(parents=True)
    for name, content in FILES.items():
        (unpacked / name).write_bytes(content)
    for mirror in ("published", "unpacked"):
        monkeypatch.setenv(MIRROR, str(tmp_path / mirror))
        fetch("made", entry(), tmp_path / f"from {mirror}")
    assert fetched(tmp_path / "network") == fetched(tmp_path / "from published") == FILES
    assert fetched(tmp_path / "from unpacked") == FILES


@pytest.mark.parametrize("place", ["", "raw", "made", "made/raw"])
def test_the_mirror_may_be_the_folder_that_holds_the_unpacked_files(place, tmp_path, monkeypatch):
    folder = tmp_path / "mirror" / place
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    monkeypatch.setenv(MIRROR, str(tmp_path / "mirror"))
    fetch("made", entry(), tmp_path / "fetched")
    assert fetched(tmp_path / "fetched") == FILES


def folder_in_place(path):
    path.unlink()
    path.mkdir()


def pipe_in_place(path):
    path.unlink()
    os.mkfifo(path)


def link_in_place(path):
    path.unlink()
    path.symlink_to("nowhere")


@pytest.mark.parametrize(
    "change", [folder_in_place, pipe_in_place, link_in_place, lambda path: path.write_bytes(b"another's")]
)
def test_what_has_the_last_part_of_a_name_and_is_no_file_of_its_size_is_passed_over(
    change, server, tmp_path, monkeypatch
):
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    for name, content in FILES.items():
        (mirror / name).write_bytes(content)
    change(mirror / "train-labels-idx1-ubyte")
    monkeypatch.setenv(MIRROR, str(mirror))
    fetch("made", entry(f"{server}/good/"), tmp_path / "raw")
    assert fetched(tmp_path / "raw") == FILES
    with pytest.raises(FetchError, match="Put the file into a folder") as error:
        fetch("made", entry(f"{server}/none/"), tmp_path / "again")
    names = "Made/raw/train-labels-idx1-ubyte or raw/train-labels-idx1-ubyte or train-labels-idx1-ubyte of 68 bytes"
    assert (
        f"{server}/none/: HTTP 404 Not Found; not found in {MIRROR}={mirror} nor in made/ there: "
        f"train-labels-idx1-ubyte.gz; unpacked: {names}. Put"
    ) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_an_unpacked_file_of_its_size_that_is_another_is_refused_by_name(tmp_path, monkeypatch):
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content[:-1] + b"\xff")
    monkeypatch.setenv(MIRROR, str(tmp_path))
    with pytest.raises(FetchError, match=rf"{tmp_path}/train-images-idx3-ubyte: SHA-256 \w+, expected"):
        fetch("made", entry(), tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_a_source_that_serves_something_else_is_passed_over(server, tmp_path):
    fetch("made", entry(f"{server}/none/", f"{server}/html/", f"{server}/short/", f"{server}/good/"), tmp_path)
    assert fetched(tmp_path) == FILES


def test_when_no_source_serves_the_file_all_are_named_and_nothing_is_left(server, tmp_path):
    with pytest.raises(FetchError, match=MIRROR) as error:
        fetch("made", entry(f"{server}/html/", f"{server}/none/"), tmp_path)
    assert f"{server}/html/" in str(error.value)
    assert f"{server}/none/" in str(error.value)
    assert fetched(tmp_path) == {}


def test_a_wrong_file_in_the_mirror_is_refused_by_name(tmp_path, monkeypatch):
    (tmp_path / "mirror").mkdir()
    for name, content in FILES.items():
        (tmp_path / "mirror" / f"{name}.gz").write_bytes(gzip.compress(content, mtime=0)[:-1] + b"\1")
    monkeypatch.setenv(MIRROR, str(tmp_path / "mirror"))
    with pytest.raises(FetchError, match=r"train-images-idx3-ubyte.gz: SHA-256 \w+, expected"):
        fetch("made", entry(), tmp_path / "raw")
    assert fetched(tmp_path / "raw") == {}


def test_a_mirror_that_is_no_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv(MIRROR, str(tmp_path / "nowhere"))
    with pytest.raises(FetchError, match="no such folder"):
        fetch("made", entry(), tmp_path)


def test_a_published_test_split_is_kept_whole(server, tmp_path):
    fetch("made", entry(f"{server}/good/"), tmp_path / "raw")
    prepare("made", entry(), tmp_path / "raw", tmp_path / "prepared")
    test = load_file(tmp_path / "prepared/made/test/test.safetensors")
    np.testing.assert_array_equal(test["images"][:, 0], IMAGES["t10k"])
    np.testing.assert_array_equal(test["labels"], LABELS["t10k"])
    train = load_file(tmp_path / "prepared/made/training/train.safetensors")
    np.testing.assert_array_equal(train["images"][:, 0], IMAGES["train"][train["indices"]])
    assert np.bincount(train["labels"]).tolist() == [6, 6, 6, 6]


class Python2Pickler(pickle._Pickler):
    """Writes what Python 2 wrote, as CIFAR's files are: bytes as its strings, NumPy under its old name."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, content):
        content = content if isinstance(content, bytes) else content.encode()
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(content)

    dispatch[bytes] = dispatch[str] = save_string


def python2_pickle(content) -> bytes:
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(content)
    return buffer.getvalue().replace(b"numpy._core", b"numpy.core")


def cifar_split(count: int) -> dict:
    return {
        "filenames": [f"{i}.png" for i in range(count)],
        "fine_labels": [i % 4 for i in range(count)],
        "coarse_labels": [i % 2 for i in range(count)],
        "data": RNG.integers(0, 256, (count, 3 * 32 * 32), dtype=np.uint8),
    }


CIFAR = {"train": cifar_split(60), "test": cifar_split(20), "meta": {"fine_label_names": ["a", "b", "c", "d"]}}
CIFAR_FILES = {name: python2_pickle(content) for name, content in CIFAR.items()}


def member(name: str, content: bytes = b"", size: int | None = None, **header) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content) if size is None else size
    for key, value in header.items():
        setattr(info, key, value)
    return info, content


def tar(*members: tuple[tarfile.TarInfo, bytes], end: bool = True) -> bytes:
    blocks = [info.tobuf(tarfile.PAX_FORMAT) + content + bytes(-len(content) % 512) for info, content in members]
    return b"".join(blocks) + bytes(1024 * end)


def cifar_members(**changed) -> list[tuple[tarfile.TarInfo, bytes]]:
    files = {**CIFAR_FILES, **changed}
    return [member(f"cifar-100-python/{name}", content) for name, content in files.items() if content is not None]


def cifar_entry(archive: bytes, **changes) -> DataEntry:
    """A small made CIFAR-100, of which this is the published archive."""
    content = entry().model_dump() | {"reader": "cifar", "split": {"train": 40, "validation": 20, "seed": 0}} | changes
    content["files"] = [
        {
            "name": "made.tar.gz",
            "bytes": len(archive),
            "sha256": sha256(archive),
            "unpacked": [
                {"name": f"cifar-100-python/{name}", "bytes": len(content), "sha256": sha256(content)}
                for name, content in CIFAR_FILES.items()
            ],
            "sources": ["http://127.0.0.1:9/"],
        }
    ]
    return DataEntry.model_validate(content)


CIFAR_ARCHIVE = gzip.compress(tar(*cifar_members()), mtime=0)


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    folder = tmp_path / "mirror"
    (folder / "cifar-100-python").mkdir(parents=True)
    monkeypatch.setenv(MIRROR, str(folder))
    return folder


def test_a_tar_and_its_unpacked_members_give_the_same_bytes(mirror, tmp_path):
    (mirror / "made.tar.gz").write_bytes(CIFAR_ARCHIVE)
    fetch("made", cifar_entry(CIFAR_ARCHIVE), tmp_path / "from archive")
    (mirror / "made.tar.gz").unlink()
    for name, content in CIFAR_FILES.items():
        (mirror / "cifar-100-python" / name).write_bytes(content)
    fetch("made", cifar_entry(CIFAR_ARCHIVE), tmp_path / "from members")
    assert fetched(tmp_path / "from archive/made") == fetched(tmp_path / "from members/made") == CIFAR_FILES


def test_what_is_fetched_is_not_asked_for_again_and_what_is_damaged_is_mended(mirror, tmp_path):
    (mirror / "made.tar.gz").write_bytes(CIFAR_ARCHIVE)
    fetch("made", cifar_entry(CIFAR_ARCHIVE), tmp_path / "raw")
    (tmp_path / "raw/made/test").write_bytes(b"damaged")
    fetch("made", cifar_entry(CIFAR_ARCHIVE), tmp_path / "raw")
    assert fetched(tmp_path / "raw/made") == CIFAR_FILES
    (mirror / "made.tar.gz").unlink()
    fetch("made", cifar_entry(CIFAR_ARCHIVE), tmp_path / "raw")


def test_cifar_is_read_with_fine_labels_and_planes_in_order(mirror, tmp_path):
    (mirror / "made.tar.gz").write_bytes(CIFAR_ARCHIVE)
    fetch("made", cifar_entry(CIFAR_ARCHIVE), tmp_path / "raw")
    prepare("made", cifar_entry(CIFAR_ARCHIVE), tmp_path / "raw", tmp_path / "prepared")
    description = json.loads((tmp_path / "prepared/made/training/dataset.json").read_text())
    assert (description["channels"], description["size"]) == (3, [32, 32])
    for split, part, folder in (
        ("train", "train", "training"),
        ("train", "validation", "training"),
        ("test", "test", "test"),
    ):
        packed = load_file(tmp_path / f"prepared/made/{folder}/{part}.safetensors")
        assert packed["images"].shape[1:] == (3, 32, 32)
        pixels = packed["images"].reshape(len(packed["images"]), -1)
        np.testing.assert_array_equal(pixels, CIFAR[split]["data"][packed["indices"]])
        np.testing.assert_array_equal(packed["labels"], np.array(CIFAR[split]["fine_labels"])[packed["indices"]])
        assert np.bincount(packed["labels"]).tolist() == [len(packed["labels"]) // 4] * 4
    with pytest.raises(ValueError, match="not those of the files"):
        prepare("made", cifar_entry(CIFAR_ARCHIVE, classes=["a", "c", "b", "d"]), tmp_path / "raw", tmp_path / "no")
    assert not (tmp_path / "no").exists()


LINK = {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}
UNUSABLE = {
    "a member is missing": tar(*cifar_members(test=None)),
    "under another path": tar(*cifar_members(test=None), member("../cifar-100-python/test", CIFAR_FILES["test"])),
    "under an absolute path": tar(*cifar_members(test=None), member("/cifar-100-python/test", CIFAR_FILES["test"])),
    "a symbolic link": tar(*cifar_members(test=None), member("cifar-100-python/test", **LINK)),
    "a hard link": tar(*cifar_members(test=None), member("cifar-100-python/test", **LINK | {"type": tarfile.LNKTYPE})),
    "a device": tar(*cifar_members(test=None), member("cifar-100-python/test", type=tarfile.CHRTYPE)),
    "a folder": tar(*cifar_members(test=None), member("cifar-100-python/test", type=tarfile.DIRTYPE)),
    "other bytes": tar(*cifar_members(test=CIFAR_FILES["test"][::-1])),
    "one byte more": tar(*cifar_members(test=CIFAR_FILES["test"] + b".")),
    "one byte less": tar(*cifar_members(test=CIFAR_FILES["test"][:-1])),
    "a replacement that comes first": tar(*cifar_members(train=CIFAR_FILES["train"][::-1]), *cifar_members()),
    "a bomb": tar(member("bomb", bytes(2**23)), *cifar_members()),
    "a bomb of headers": tar(member("long", bytes(2**23), type=tarfile.GNUTYPE_LONGNAME), *cifar_members()),
    "a claim of 2^62 bytes": tar(member("huge", size=2**62), *cifar_members()),
    "a long chain of names": tar(*[member("long", b"x", type=tarfile.GNUTYPE_LONGNAME)] * 1500, *cifar_members()),
    "cut in a member": tar(*cifar_members())[:-5000],
    "cut before a member": tar(*cifar_members(test=None, meta=None), end=False),
    "no tar": b"<html>moved</html>" * 1000,
    "nothing": b"",
}


@pytest.mark.parametrize("content", UNUSABLE.values(), ids=list(UNUSABLE))
def test_a_tar_that_does_not_hold_what_the_catalogue_says_leaves_nothing_behind(content, mirror, tmp_path):
    """Even where the archive has the hash that the catalogue gives."""
    archive = gzip.compress(content, mtime=0)
    (mirror / "made.tar.gz").write_bytes(archive)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FetchError, match=r"made: made.tar.gz cannot be unpacked \(.+\); correct its entry") as error:
        fetch("made", cifar_entry(archive), tmp_path / "raw")
    assert len(str(error.value).splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("archive", [CIFAR_ARCHIVE[:-2000], CIFAR_ARCHIVE[:-6] + b"\0" * 6, tar(*cifar_members())])
def test_a_gzip_file_that_is_cut_or_false_leaves_nothing_behind(archive, mirror, tmp_path):
    (mirror / "made.tar.gz").write_bytes(archive)
    with pytest.raises(FetchError, match=r"made.tar.gz: SHA-256 \w+, expected"):
        fetch("made", cifar_entry(CIFAR_ARCHIVE), tmp_path / "raw")
    cut = gzip.compress(tar(*cifar_members()), mtime=0)[:-20000]
    (mirror / "made.tar.gz").write_bytes(cut)
    with pytest.raises(FetchError, match="cannot be unpacked"):
        fetch("made", cifar_entry(cut), tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_a_wrong_member_in_the_mirror_is_refused_by_name(mirror, tmp_path):
    for name, content in (CIFAR_FILES | {"meta": b"\x80\x02N."}).items():
        (mirror / "cifar-100-python" / name).write_bytes(content)
    with pytest.raises(FetchError, match=r"cifar-100-python/meta: SHA-256 \w+, expected"):
        fetch("made", cifar_entry(CIFAR_ARCHIVE), tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_what_else_lies_in_a_tar_has_no_effect(mirror, tmp_path):
    others = [member("cifar-100-python", type=tarfile.DIRTYPE), member("cifar-100-python/file.txt~", b"x")]
    archive = gzip.compress(tar(*others, *cifar_members()), mtime=0)
    (mirror / "made.tar.gz").write_bytes(archive)
    fetch("made", cifar_entry(archive), tmp_path / "raw")
    assert fetched(tmp_path / "raw") == CIFAR_FILES
    assert {p.name for p in tmp_path.iterdir()} == {"mirror", "raw"}
    assert [p.name for p in mirror.iterdir() if p.is_file()] == ["made.tar.gz"]


def test_a_gzip_file_of_more_than_the_declared_bytes_is_refused(tmp_path, monkeypatch):
    bomb = gzip.compress(bytes(2**24), mtime=0)
    content = entry().model_dump()
    content["files"] = [content["files"][0] | {"bytes": len(bomb), "sha256": sha256(bomb)}]
    (tmp_path / content["files"][0]["name"]).write_bytes(bomb)
    monkeypatch.setenv(MIRROR, str(tmp_path))
    with pytest.raises(FetchError, match="cannot be unpacked"):
        fetch("made", DataEntry.model_validate(content), tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


class Harmful:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder) -> None:
        self.folder = folder

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.folder),)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    (tmp_path / "train").write_bytes(pickle.dumps({"data": Harmful(tmp_path / "made")}, protocol=2))
    with pytest.raises(ValueError, match=r"posix.mkdir, which an array does not need"):
        cifar.read(tmp_path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"c__builtin__\neval\n(S'1'\ntR.",
        b"cnumpy\nfromfile\n(S'/etc/passwd'\ntR.",
        b"cnumpy\nndarray.tofile\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x07ndarray\x8c\x00\x93.",
        CIFAR_FILES["train"][:-100],
        b"",
    ],
)
def test_a_pickle_of_anything_but_arrays_is_refused(content, tmp_path):
    (tmp_path / "meta").write_bytes(content)
    with pytest.raises(ValueError, match="not the published pickle"):
        cifar.classes(tmp_path)


def test_the_moments_are_those_of_the_pixels():
    images = RNG.integers(0, 256, (50, 3, 7, 5), dtype=np.uint8)
    images[:, 2] = 255
    mean, std = moments(images)
    np.testing.assert_allclose(mean, (images / 255).mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, (images / 255).std(axis=(0, 2, 3)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"name": "../outside"}, "files[0].unpacked[0].name"),
        ({"name": "/etc/passwd"}, "files[0].unpacked[0].name"),
        ({"name": "a/../../b"}, "files[0].unpacked[0].name"),
        ({"bytes": 0}, "files[0].unpacked[0].bytes"),
        ({"name": "elsewhere/test"}, "kept as 'test'"),
        ("made.rar", ".tar, .zip or .gz"),
        ("made.gz", "3 files; allowed: one"),
    ],
)
def test_a_catalogue_whose_archives_cannot_be_unpacked_is_refused(change, part, tmp_path):
    content = copy.deepcopy(cifar_entry(CIFAR_ARCHIVE).model_dump())
    (file,) = content["files"]
    if isinstance(change, dict):
        file["unpacked"][0] |= change
    else:
        file["name"] = change
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"datasets": {"made": content}}))
    with pytest.raises(ConfigError) as error:
        read_catalogue(tmp_path / "params.yaml")
    assert f"{tmp_path / 'params.yaml'}: datasets.made.files" in str(error.value)
    assert part in str(error.value)


@pytest.mark.parametrize("place", [".", "data", "studies/fashion-mnist"])
def test_data_sets_are_fetched_and_prepared_from_wherever_one_stands(project, place):
    project.run("rm", "-r", "data/raw", "data/prepared")
    project.run("sh", "-c", f"cd {place} && selfdistill fetch digits && selfdistill prepare digits")
    assert project.changed() == set()
    done = project.run("selfdistill", "fetch", "digit", ok=False)
    assert done.returncode == 1
    assert "there are digits, fashion-mnist" in done.stderr


def test_the_digits_are_split_stratified_without_overlap_and_recorded(tiny_study):
    folder = tiny_study / "data/prepared/digits"
    parts = {p: load_file(folder / f"{f}/{p}.safetensors") for p, f in (("pool", "training"), ("test", "test"))}
    published = load_digits()
    indices = np.concatenate([part["indices"] for part in parts.values()])
    assert sorted(indices) == list(range(1797))
    for part in parts.values():
        np.testing.assert_array_equal(part["labels"], published.target[part["indices"]])
        np.testing.assert_array_equal(part["images"][:, 0], np.round(published.images[part["indices"]] * 255 / 16))
    shares = np.bincount(parts["test"]["labels"]) / np.bincount(published.target)
    assert np.abs(shares - 1197 / 1797).max() < 1 / 170
    description = json.loads((folder / "training/dataset.json").read_text())
    assert description["counts"] == {"pool": 600, "test": 1197}
    assert description["split"] == {"test": 1197, "seed": 0}
    assert description["mean"] == pytest.approx([parts["pool"]["images"].mean() / 255], abs=1e-6)


def test_a_seeds_images_are_those_that_its_record_names(tiny_study):
    folder = tiny_study / "data/prepared/digits/training"
    asked = {"training_images": 100, "validation_images": 400}
    first, again = (open_splits(folder, split="per_seed", **asked, seed=3) for _ in range(2))
    other = open_splits(folder, split="per_seed", **asked, seed=4)
    fixed = [open_splits(folder, split="fixed", **asked, seed=seed) for seed in (0, 4)]
    assert first.facts == again.facts
    assert first.facts["training_rows_sha256"] != other.facts["training_rows_sha256"]
    assert fixed[0].facts == fixed[1].facts
    images, labels = first.training
    assert first.facts["training_rows_sha256"] == pixels_sha256(images.numpy(), labels.numpy())
    assert (first.facts["training"], first.facts["validation"]) == (100, 400)
    assert torch.bincount(labels).tolist() == [10] * 10
    images, labels = first.validation
    assert first.facts["validation_rows_sha256"] == pixels_sha256(images.numpy(), labels.numpy())


@pytest.mark.parametrize("stage", ["fetch", "prepare"])
def test_a_data_set_depends_on_all_code_that_makes_it(stage):
    """What DVC does not know of cannot make a data set stale.  Reading and writing files is no form of data."""
    declared = yaml.safe_load((ROOT / "data/sets/digits/dvc.yaml").read_text())["stages"][stage]["deps"]
    readers = {entry.reader for entry in read_catalogue(ROOT / "data/params.yaml").datasets.values()} | {"folder"}
    # a list of a folder's files is verified by the hash of the catalogue, whatever code makes it
    stop = [
        PACKAGE / "data" / f"{part}.py" for part in (["folder", "catalogue"] if stage == "fetch" else ["catalogue"])
    ]
    for reader in sorted(readers) if stage == "prepare" else ["none"]:
        parts = [stage, *([reader] if stage == "prepare" else [])]
        kept_out = [PACKAGE / "__init__.py", *(path for path in stop if path.stem != reader)]
        used = closure([PACKAGE / "data" / f"{part}.py" for part in parts], kept_out)
        paths = {path.removeprefix("../src/selfdistill/").replace("${reader}", reader) for path in declared}
        loaded = {path.relative_to(PACKAGE).as_posix() for path in used}
        assert loaded - paths <= {
            "__init__.py",
            "data/__init__.py",
            "data/prepared/__init__.py",
            "files.py",
            "errors.py",
            "outside.py",
        }
        assert paths - loaded <= {"raw/${name}", "data/mirror.py", "data/pickles.py"}, reader


# ---- what belongs together, and what pixels mean ----


def pickled(path: Path, **content) -> None:
    path.write_bytes(python2_pickle({name.encode(): value for name, value in content.items()}))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([3] * 19, "20 images and 19 labels; allowed: one label for each image"),
        ([3] * 21, "20 images and 21 labels"),
        ([3.5] * 20, "labels of type float64; allowed: whole numbers from 0"),
        ([3.0] * 20, "labels of type float64"),
        ([True] * 20, "labels of type bool"),
        ([0] * 19 + [-1], "label -1 of image 19; allowed: whole numbers from 0"),
        ([[3]] * 20, "labels that are no numbers"),
        (None, r"20 images and labels \(\)"),
    ],
)
def test_a_batch_whose_labels_do_not_belong_to_its_images_is_refused(tmp_path, labels, said):
    images = np.zeros((20, 3072), np.uint8)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        pickled(tmp_path / name, data=images, labels=[i % 10 for i in range(20)])
    assert len(cifar10.read(tmp_path)["train"][1]) == 100
    pickled(tmp_path / "data_batch_3", data=images, labels=labels)
    with pytest.raises(UserError, match=f"data_batch_3: {said}"):
        cifar10.read(tmp_path)
    pickled(tmp_path / "train", data=images, fine_labels=labels)
    with pytest.raises(UserError, match=f"train: {said}"):
        cifar.read(tmp_path)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (np.zeros((20, 3071), np.uint8), r"data \(20, 3071\); allowed: N x 3,072"),
        (np.zeros((20, 3072), np.float32), "data of other numbers than it says, or not of single bytes"),
        ([1] * 20, "data is no array"),
        (np.zeros((0, 3072), np.uint8), "0 images and 20 labels"),
    ],
)
def test_a_batch_of_other_images_is_refused(tmp_path, data, said):
    pickled(tmp_path / "train", data=data, fine_labels=[0] * 20)
    with pytest.raises(UserError, match=f"train: {said}"):
        cifar.read(tmp_path)


def test_a_label_beyond_the_classes_is_refused_and_nothing_is_left(server, tmp_path):
    fetch("made", entry(f"{server}/good/"), tmp_path / "raw")
    labels = LABELS["t10k"].copy()
    labels[7] = 4
    (tmp_path / "raw/made/t10k-labels-idx1-ubyte").write_bytes(idx(labels))
    with pytest.raises(UserError, match="made: label 4 in test; allowed: 0 to 3, the classes"):
        prepare("made", entry(), tmp_path / "raw", tmp_path / "prepared")
    assert not list((tmp_path / "prepared").rglob("*"))


def test_what_was_prepared_stays_as_it_was_when_preparing_fails(server, tmp_path):
    fetch("made", entry(f"{server}/good/"), tmp_path / "raw")
    prepare("made", entry(), tmp_path / "raw", tmp_path / "prepared")
    before = fetched(tmp_path / "prepared")
    (tmp_path / "raw/made/train-images-idx3-ubyte").write_bytes(FILES["train-images-idx3-ubyte"][:-1])
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte: 1,499 numbers, 1,500 in its header"):
        prepare("made", entry(), tmp_path / "raw", tmp_path / "prepared")
    assert fetched(tmp_path / "prepared") == before
    assert [path.name for path in (tmp_path / "prepared").iterdir()] == ["made"]


def test_an_idx_pair_of_two_lengths_is_refused(tmp_path):
    def write(count: int, labels: int) -> None:
        for prefix in ("train", "t10k"):
            head = b"\0\0\x08\x03" + b"".join(n.to_bytes(4) for n in (count, 2, 2))
            (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(head + bytes(4 * count))
            head = b"\0\0\x08\x01" + labels.to_bytes(4)
            (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(head + bytes(labels))

    write(40, 40)
    assert len(idx_reader.read(tmp_path)["test"][1]) == 40
    write(40, 39)
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte: 40 images and 39 labels"):
        idx_reader.read(tmp_path)


def encoded(pixels: np.ndarray, form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def test_heic_is_named_and_avif_is_read():
    pixels = np.full((16, 16, 3), 200, np.uint8)
    assert abs(np.asarray(upright(encoded(pixels, "AVIF"))).astype(int) - 200).max() < 8
    head = (24).to_bytes(4) + b"ftypheic" + bytes(12)
    with pytest.raises(UnusableImageError, match=r"HEIC, which is read where|cannot be decoded"):
        upright(head)


def test_what_file_managers_leave_is_ignored_and_links_outwards_are_no_images(tmp_path):
    folder = tmp_path / "photos"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        (folder / name / "1.png").write_bytes(encoded(np.zeros((8, 8), np.uint8), "PNG"))
        (folder / name / "Thumbs.db").write_bytes(b"x")
        (folder / name / "desktop.ini").write_bytes(b"x")
    (tmp_path / "elsewhere.png").write_bytes(encoded(np.zeros((8, 8), np.uint8), "PNG"))
    (folder / "a/link.png").symlink_to(tmp_path / "elsewhere.png")
    (folder / "a/inside.png").symlink_to(folder / "b/1.png")
    rows = {row.path: row.reason for row in read_list(list_of(folder))}
    assert rows == {
        "a/1.png": "",
        "a/inside.png": "",
        "a/link.png": "a link to a file outside the folder",
        "b/1.png": "",
    }
