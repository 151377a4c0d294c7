"""Data: nothing unverified is kept, every way of fetching gives the same bytes, splits are what they say."""

import gzip
import hashlib
import http.server
import json
import struct
import threading

import numpy as np
import pytest
from safetensors.numpy import load_file
from sklearn.datasets import load_digits

from selfdistill.config import DataEntry
from selfdistill.data.fetch import MIRROR, FetchError, fetch
from selfdistill.data.prepare import prepare

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
                    "unpacked": {"name": f"Made/raw/{name}", "sha256": sha256(content)},
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
    parts = {
        p: load_file(folder / f"{f}/{p}.safetensors")
        for p, f in (("train", "training"), ("validation", "training"), ("test", "test"))
    }
    published = load_digits()
    indices = np.concatenate([part["indices"] for part in parts.values()])
    assert sorted(indices) == list(range(1797))
    for part in parts.values():
        np.testing.assert_array_equal(part["labels"], published.target[part["indices"]])
        np.testing.assert_array_equal(part["images"][:, 0], np.round(published.images[part["indices"]] * 255 / 16))
    assert np.bincount(parts["train"]["labels"]).tolist() == [10] * 10
    description = json.loads((folder / "training/dataset.json").read_text())
    assert description["counts"] == {"train": 100, "validation": 100, "test": 1597}
    assert description["split"] == {"train": 100, "validation": 100, "seed": 0}
    assert description["mean"] == pytest.approx([parts["train"]["images"].mean() / 255], abs=1e-6)
