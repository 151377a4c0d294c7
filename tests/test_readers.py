"""Readers of published data sets, on archives made in their layout."""

import csv
import gzip
import hashlib
import io
import json
import shutil
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.numpy import load_file
from scipy.io import savemat
from test_data import cifar_split, member, python2_pickle, tar

from selfdistill.data import cifar
from selfdistill.data.catalogue import DataEntry, read_catalogue
from selfdistill.data.fetch import MIRROR, FetchError, fetch
from selfdistill.data.images import sized, upright
from selfdistill.data.prepare import prepare
from selfdistill.data.prepared.packed import PackedSplit, centre_cropped
from selfdistill.data.reading import DataError
from selfdistill.errors import UserError
from selfdistill.params import read_study
from selfdistill.schema import ConfigError

ROOT = Path(__file__).parents[1]
RNG = np.random.default_rng(0)
CATALOGUE = read_catalogue(ROOT / "data" / "params.yaml").datasets


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    folder = tmp_path / "mirror"
    folder.mkdir()
    monkeypatch.setenv(MIRROR, str(folder))
    return folder


def entry_of(name: str, contents: dict[str, bytes], **changes) -> DataEntry:
    """The catalogue's entry, for made files in place of the published ones."""
    entry = CATALOGUE[name].model_dump()
    for file in entry["files"]:
        content = contents[file["name"]]
        file |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), "md5": None}
    return DataEntry.model_validate(entry | {"images": None} | changes)


def done(name: str, entry: DataEntry, contents: dict[str, bytes], mirror: Path) -> tuple[Path, dict, dict]:
    """Fetched and prepared: the prepared folder, dataset.json and report.json."""
    for file, content in contents.items():
        (mirror / file).write_bytes(content)
    data = mirror.parent / "data"
    fetch(name, entry, data / "raw")
    report = prepare(name, entry, data / "raw", data / "prepared")
    folder = data / "prepared" / name
    return folder, json.loads((folder / "training/dataset.json").read_text()), report


def jpeg(height: int, width: int, grey: bool = False, kind: str = "JPEG") -> bytes:
    pixels = RNG.integers(0, 256, (height, width) if grey else (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


# ---- CIFAR-10 and its test sets ----


def test_cifar10_is_read_batch_after_batch_and_its_members_are_pinned(mirror, capsys):
    batches = {f"data_batch_{i}": cifar_split(20) for i in range(1, 6)} | {"test_batch": cifar_split(30)}
    for batch in batches.values():
        batch["labels"] = batch.pop("fine_labels")
    names = CATALOGUE["cifar10"].classes
    files = {name: python2_pickle(content) for name, content in batches.items()}
    files["batches.meta"] = python2_pickle({"label_names": names})
    archive = gzip.compress(tar(*[member(f"cifar-10-batches-py/{n}", c) for n, c in files.items()]), mtime=0)
    contents = {"cifar-10-python.tar.gz": archive}
    entry = entry_of("cifar10", contents, split={"train": 80, "validation": 20, "seed": 0}).model_dump()
    for wanted in entry["files"][0]["unpacked"]:
        wanted["md5"] = hashlib.md5(files[wanted["name"].rpartition("/")[2]]).hexdigest()
    folder, said, _ = done("cifar10", DataEntry.model_validate(entry), contents, mirror)
    assert set(json.loads((mirror.parent / "data/pins/cifar10.json").read_text())) == {
        f"cifar-10-batches-py/{name}" for name in files
    }
    assert said["counts"] == {"train": 80, "validation": 20, "test": 30}
    pixels = np.concatenate([batches[f"data_batch_{i}"]["data"] for i in range(1, 6)])
    train = load_file(folder / "training/train.safetensors")
    np.testing.assert_array_equal(train["images"].reshape(80, -1), pixels[train["indices"]])
    test = load_file(folder / "test/test.safetensors")
    np.testing.assert_array_equal(test["images"].reshape(30, -1), batches["test_batch"]["data"])
    np.testing.assert_array_equal(test["labels"], batches["test_batch"]["labels"])


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def test_cifar101_is_a_test_split_alone(mirror):
    images, labels = RNG.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8), np.arange(40, dtype=np.int32) % 10
    contents = {"cifar10.1_v6_data.npy": npy(images), "cifar10.1_v6_labels.npy": npy(labels)}
    folder, said, report = done("cifar10-1", entry_of("cifar10-1", contents), contents, mirror)
    assert (said["tests"], said["counts"], "mean" in said) == ("cifar10", {"test": 40}, False)
    assert report["counts"] == {"test": 40}
    assert [p.name for p in (folder / "training").iterdir()] == ["dataset.json"]
    test = load_file(folder / "test/test.safetensors")
    np.testing.assert_array_equal(test["images"], images.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(test["labels"], labels)


CORRUPTED = {name: RNG.integers(0, 256, (50, 32, 32, 3), dtype=np.uint8) for name in ("fog", "frost", "snow")}


def corrupted_tar(**changes: bytes | None) -> bytes:
    files = {f"{name}.npy": npy(images) for name, images in CORRUPTED.items()}
    files |= {"labels.npy": npy(np.tile(np.arange(10), 5))} | {f"{name}.npy": c for name, c in changes.items()}
    return tar(*[member(f"CIFAR-10-C/{name}", content) for name, content in files.items() if content is not None])


def test_corrupted_test_images_are_a_file_a_corruption_with_their_severities(mirror):
    contents = {"CIFAR-10-C.tar": corrupted_tar()}
    entry = entry_of("cifar10-c", contents, images=dict.fromkeys(CORRUPTED, 50))
    folder, said, _ = done("cifar10-c", entry, contents, mirror)
    assert list(said["counts"]) == ["fog", "frost", "snow"]
    assert sorted(p.name for p in (folder / "test").iterdir()) == [f"{name}.safetensors" for name in sorted(CORRUPTED)]
    for name, images in CORRUPTED.items():
        test = load_file(folder / f"test/{name}.safetensors")
        np.testing.assert_array_equal(test["images"], images.transpose(0, 3, 1, 2))
        assert test["severity"].tolist() == [1] * 10 + [2] * 10 + [3] * 10 + [4] * 10 + [5] * 10
        assert test["labels"].tolist() == list(range(10)) * 5


class Harmful:
    def __reduce__(self):
        return print, ("harm",)


WRONG_ARRAYS = {
    "objects": (npy(np.array([Harmful()], object)), "not the published array"),
    "no array": (b"no array", "not the published array"),
    "other sizes": (npy(np.zeros((50, 16, 16, 3), np.uint8)), "allowed: uint8 N x 32 x 32 x 3"),
    "other numbers": (npy(np.zeros((50, 32, 32, 3), np.float32)), "allowed: uint8"),
    "fewer images": (npy(np.zeros((49, 32, 32, 3), np.uint8)), "frost.npy: 49 images and 50 labels; allowed: one"),
    "a longer array than there is": (
        npy(np.zeros((50, 32, 32, 3), np.uint8))[:-30_000],
        "more or fewer in the file|not the published array",
    ),
}


@pytest.mark.parametrize(("content", "words"), WRONG_ARRAYS.values(), ids=list(WRONG_ARRAYS))
def test_an_array_that_is_not_as_published_is_refused(content, words, mirror, capsys):
    contents = {"CIFAR-10-C.tar": corrupted_tar(frost=content)}
    with pytest.raises(ValueError, match=words):
        done("cifar10-c", entry_of("cifar10-c", contents), contents, mirror)
    assert capsys.readouterr().out == ""


def test_a_test_set_of_other_counts_than_the_catalogues_is_refused(mirror):
    contents = {"CIFAR-10-C.tar": corrupted_tar(snow=None)}
    with pytest.raises(ValueError, match="in the catalogue's `images`"):
        done("cifar10-c", entry_of("cifar10-c", contents, images=dict.fromkeys(CORRUPTED, 50)), contents, mirror)


# ---- Tiny ImageNet ----

WORDS = {"n02": "crane, a bird", "n01": "goldfish, Carassius auratus", "n03": "crane"}


def tiny_files() -> dict[str, bytes]:
    top = "tiny-imagenet-200"
    files = {f"{top}/wnids.txt": "\n".join(WORDS).encode(), f"{top}/test/images/test_0.JPEG": jpeg(64, 64)}
    files[f"{top}/words.txt"] = "\n".join(f"{w}\t{m}" for w, m in (WORDS | {"n09": "entity"}).items()).encode()
    for wnid in WORDS:
        files[f"{top}/train/{wnid}/{wnid}_boxes.txt"] = b"0 0 1 1"
        for i in range(8):
            files[f"{top}/train/{wnid}/images/{wnid}_{i}.JPEG"] = jpeg(64, 64, grey=i == 3)
    lines = []
    for i, wnid in enumerate(["n03", "n01", "n02", "n01"]):
        files[f"{top}/val/images/val_{i}.JPEG"] = jpeg(64, 64)
        lines.append(f"val_{i}.JPEG\t{wnid}\t0\t0\t1\t1\n")
    files[f"{top}/val/val_annotations.txt"] = "".join(lines).encode()
    return files


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_tiny_imagenet_is_read_from_its_zip_with_its_validation_split_as_the_test_split(mirror):
    files = tiny_files()
    contents = {"tiny-imagenet-200.zip": zipped(files)}
    sizes = {"split": {"train": 15, "validation": 9, "seed": 0}, "images": {"train": 24, "test": 4}}
    folder, said, _ = done("tiny-imagenet", entry_of("tiny-imagenet", contents, **sizes), contents, mirror)
    assert said["classes"] == ["goldfish", "crane (n02)", "crane (n03)"]
    assert (said["channels"], said["size"]) == (3, [64, 64])
    test = load_file(folder / "test/test.safetensors")
    assert test["labels"].tolist() == [2, 0, 1, 0]
    names = sorted(name for name in files if "/train/" in name and name.endswith(".JPEG"))
    train = load_file(folder / "training/train.safetensors")
    for image, label, index in zip(train["images"], train["labels"], train["indices"], strict=True):
        assert f"/n0{label + 1}/" in names[index]
        np.testing.assert_array_equal(image, sized(upright(files[names[index]]), (64, 64), 3))


def test_a_truncated_image_in_an_archive_is_quarantined(mirror):
    files = tiny_files()
    bad = "tiny-imagenet-200/train/n02/images/n02_5.JPEG"
    files[bad] = files[bad][:900]
    contents = {"tiny-imagenet-200.zip": zipped(files)}
    entry = entry_of("tiny-imagenet", contents, split={"train": 14, "validation": 9, "seed": 0})
    folder, _, report = done("tiny-imagenet", entry, contents, mirror)
    assert report["quarantined"] == 1
    assert f"train,{bad}," in (folder / "report/quarantine.csv").read_text()
    used = [load_file(folder / f"training/{part}.safetensors")["indices"] for part in ("train", "validation")]
    names = sorted(name for name in files if "/train/" in name and name.endswith(".JPEG"))
    assert sorted(np.concatenate(used)) == [i for i, name in enumerate(names) if name != bad]


@pytest.mark.parametrize("lacking", ["tiny-imagenet-200/wnids.txt", "tiny-imagenet-200/val/images/val_2.JPEG"])
def test_a_zip_that_lacks_what_it_should_hold_is_refused(lacking, mirror):
    files = tiny_files()
    del files[lacking]
    contents = {"tiny-imagenet-200.zip": zipped(files)}
    with pytest.raises(ValueError, match=r"tiny-imagenet-200.zip: .+; fetch it again"):
        done("tiny-imagenet", entry_of("tiny-imagenet", contents), contents, mirror)


# ---- ImageNet ----

SYNSETS = {"n01": (2, "tench, Tinca"), "n02": (1, "shark"), "n03": (4, "hen")}  # numbers are not in their order


def imagenet_files(spoil: dict[str, bytes] | None = None) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The three archives, and the images in them by name."""
    images = {f"{w}/{w}_{i}.JPEG": jpeg(60 + i, 48) for w in SYNSETS for i in range(8)}
    images["n01/n01_2.JPEG"] = jpeg(20, 24)  # smaller than what is kept
    images["n02/n02_3.JPEG"] = jpeg(60, 48, kind="PNG")
    images["n03/n03_4.JPEG"] = jpeg(60, 48, grey=True)
    images |= {f"ILSVRC2012_val_0000000{i}.JPEG": jpeg(50, 70) for i in range(1, 7)} | (spoil or {})
    inner = {
        f"{w}.tar": tar(*[member(name[4:], c) for name, c in images.items() if name.startswith(w)]) for w in SYNSETS
    }
    leaves = sorted((number, wnid, words, 0) for wnid, (number, words) in SYNSETS.items())
    rows = [*leaves, (5, "n99", "animal", 3)]
    fields = [("ILSVRC2012_ID", "i4"), ("WNID", "O"), ("words", "O"), ("num_children", "i4")]
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(rows, fields)})
    kit = "ILSVRC2012_devkit_t12"
    truth = member(f"{kit}/data/ILSVRC2012_validation_ground_truth.txt", b"1\n2\n4\n4\n2\n1\n")
    return {
        "ILSVRC2012_img_train.tar": tar(*[member(name, inner[name]) for name in reversed(inner)]),
        "ILSVRC2012_img_val.tar": tar(*[member(n, c) for n, c in reversed(images.items()) if "val" in n]),
        "ILSVRC2012_devkit_t12.tar.gz": gzip.compress(tar(member(f"{kit}/data/meta.mat", meta.getvalue()), truth)),
    }, images


SMALL = {
    "image": {"size": [28, 28], "channels": 3, "shorter_side": 32},
    "split": {"train": 15, "validation": 9, "seed": 0},
}


def test_imagenet_is_packed_from_archives_that_stay_where_they_are(mirror):
    contents, images = imagenet_files()
    folder, said, _ = done("imagenet", entry_of("imagenet", contents, **SMALL), contents, mirror)
    raw = mirror.parent / "data/raw/imagenet"
    assert sorted(p.name for p in raw.iterdir()) == sorted(f"{name}.json" for name in contents)
    assert said["classes"] == ["tench", "shark", "hen"]
    assert said["counts"] == {"train": 15, "validation": 9, "test": 6}
    names = sorted(name for name in images if "val" not in name)
    train = PackedSplit.read(folder / "training", "train")
    assert len(train) == 15
    for i, (label, index) in enumerate(zip(train.labels, train.indices, strict=True)):
        assert names[index].startswith(f"n0{label + 1}/")
        stored, original = upright(train.encoded(i)), upright(images[names[index]])
        shortest = min(original.size)
        assert stored.size == tuple(round(s * min(1, 32 / shortest)) for s in original.size)
        if shortest <= 32:
            assert train.encoded(i) == images[names[index]]
        else:
            # noise in colour is not for JPEG; its brightness is near enough
            expected = np.asarray(original.resize(stored.size, Image.Resampling.LANCZOS).convert("L"), int)
            assert np.abs(np.asarray(stored.convert("L"), int) - expected).mean() < 6
    test = load_file(folder / "test/test.safetensors")
    assert test["labels"].tolist() == [1, 0, 2, 2, 0, 1]
    assert test["images"].shape == (6, 3, 28, 28)
    assert sorted(p.name for p in (folder / "test").iterdir()) == ["test.safetensors"]
    assert not list(folder.parent.glob("*.spool"))


def test_the_mean_of_packed_images_is_that_of_their_pixels_and_their_crops_are_evaluations(mirror):
    contents, images = imagenet_files()
    small = SMALL | {"image": SMALL["image"] | {"shorter_side": 64}}  # nothing is resized
    folder, said, _ = done("imagenet", entry_of("imagenet", contents, **small), contents, mirror)
    train = PackedSplit.read(folder / "training", "train")
    stored = [upright(train.encoded(i)).convert("RGB") for i in range(len(train))]
    pixels = np.concatenate([np.asarray(image).reshape(-1, 3) / 255 for image in stored])
    np.testing.assert_allclose(said["mean"], pixels.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(said["std"], pixels.std(axis=0), atol=1e-6)
    test = load_file(folder / "test/test.safetensors")
    expected = centre_cropped(images["ILSVRC2012_val_00000001.JPEG"], (28, 28), 3)
    np.testing.assert_array_equal(test["images"][0], expected.transpose(2, 0, 1))


def test_corrupt_and_repeated_images_of_imagenet_are_listed(mirror):
    _, images = imagenet_files()
    twice = images["n01/n01_0.JPEG"]
    spoil = {"n02/n02_1.JPEG": b"\xff\xd8cut", "ILSVRC2012_val_00000003.JPEG": twice, "n01/n01_0.JPEG": twice}
    contents, _ = imagenet_files(spoil)
    sizes = SMALL | {"split": {"train": 14, "validation": 9, "seed": 0}}
    folder, _, report = done("imagenet", entry_of("imagenet", contents, **sizes), contents, mirror)
    assert report["quarantined"] == 1
    assert "train,n02/n02_1.JPEG," in (folder / "report/quarantine.csv").read_text()
    assert sum(report["duplicates"].values()) == report["duplicates_with_another_label"] == 1
    (row,) = csv.DictReader((folder / "report/duplicates.csv").open())
    assert (row["first_name"], row["second_name"]) == ("n01/n01_0.JPEG", "ILSVRC2012_val_00000003.JPEG")


def test_an_archive_that_changed_after_it_was_fetched_is_not_read(mirror):
    contents, _ = imagenet_files()
    entry = entry_of("imagenet", contents, **SMALL)
    done("imagenet", entry, contents, mirror)
    changed = bytearray(contents["ILSVRC2012_img_val.tar"])
    changed[600] ^= 1
    (mirror / "ILSVRC2012_img_val.tar").write_bytes(changed)
    data = mirror.parent / "data"
    with pytest.raises(ValueError, match=r"img_val.tar: SHA-256 \w+, expected \w+ as when it was fetched"):
        prepare("imagenet", entry, data / "raw", data / "prepared")
    (mirror / "ILSVRC2012_img_val.tar").unlink()
    with pytest.raises(ValueError, match=f"stays where you put it, and is not there; name its folder in {MIRROR}"):
        prepare("imagenet", entry, data / "raw", data / "prepared")


@pytest.mark.parametrize("name", ["imagenet", "market1501"])
def test_what_must_be_obtained_by_the_user_says_where_and_how(name, monkeypatch, tmp_path):
    monkeypatch.delenv(MIRROR, raising=False)
    with pytest.raises(FetchError, match=rf"^{name}: .+ must be obtained by you: .+https://.+{MIRROR}.+MD5 \w{{32}}$"):
        fetch(name, CATALOGUE[name], tmp_path / "raw")
    assert list(tmp_path.iterdir()) == []


# ---- the catalogue ----


def test_every_file_of_the_catalogue_has_a_source_and_says_what_is_known_of_it():
    for name, entry in CATALOGUE.items():
        assert entry.licence, name
        assert entry.citation, name
        for file in entry.files:
            assert file.sources or entry.obtain, name
            assert file.sha256 or file.md5, name
            assert file.verified == (name in ("digits", "fashion-mnist", "cifar100")), name
    assert CATALOGUE["cifar10"].classes == CATALOGUE["cifar10-c"].classes


def test_the_guide_to_the_data_sets_names_them_all_and_what_of_them_is_unverified():
    rows = [line for line in (ROOT / "docs/data-sets.md").read_text().splitlines() if line.startswith("| `")]
    for name, entry in CATALOGUE.items():
        (row,) = [row for row in rows if f"`{name}`" in row.split("|")[1]]
        assert ("unverified" in row) == (not all(file.verified for file in entry.files)), name
        assert ("to be obtained by you" in row) == (entry.obtain is not None), name


def test_a_study_of_a_data_set_without_training_images_of_classes_is_refused(tmp_path):
    content = yaml.safe_load((ROOT / "params.yaml").read_text()) | {"dataset": "cifar10-c", "root": str(ROOT)}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match="dataset: 'cifar10-c' has no training images of classes; allowed: digits"):
        read_study(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sha256": None}, "files[0].verified: true is not allowed without bytes and sha256"),
        ({"bytes": None}, "files[0].verified: true is not allowed without bytes and sha256"),
        ({"sources": []}, "files[0].sources: none; allowed: at least one, or `obtain`"),
        ({"sources": ["ftp://example.org/"]}, "files[0].sources[0]"),
    ],
)
def test_a_file_that_nobody_could_fetch_or_check_is_refused(change, words, tmp_path):
    entry = CATALOGUE["digits"].model_dump()
    entry["files"][0] |= change
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"datasets": {"made": entry}}))
    with pytest.raises(ConfigError) as error:
        read_catalogue(tmp_path / "params.yaml")
    assert words in str(error.value)


# ---- whatever bytes come ----


def damaged(content: bytes) -> list[bytes]:
    """Cut off, without its head, another byte at places spread over all of it and close in its head, empty, text."""
    places = sorted({*range(0, min(len(content), 200), 13), *range(0, len(content), max(1, len(content) // 8))})
    changed = [content[:i] + bytes([content[i] ^ 0x83]) + content[i + 1 :] for i in places]
    return [*changed, *(content[: len(content) * i // 4] for i in range(4)), content[5:], b"<html></html>", content * 2]


def small_sets() -> dict[str, dict[str, bytes]]:
    """The raw files of every reader, as fetched."""
    cifar = {"data": RNG.integers(0, 256, (20, 3072), dtype=np.uint8)}
    batch = python2_pickle(cifar | {"labels": [i % 10 for i in range(20)]})
    numbers = b"\n".join(b",".join(b"%d" % v for v in [*RNG.integers(0, 17, 64), i % 10]) for i in range(30))
    idx = {}
    for part in ("train", "t10k"):
        idx[f"{part}-images-idx3-ubyte"] = struct.pack(">4B3I", 0, 0, 8, 3, 20, 4, 4) + RNG.bytes(320)
        idx[f"{part}-labels-idx1-ubyte"] = struct.pack(">4BI", 0, 0, 8, 1, 20) + bytes(i % 10 for i in range(20))
    fine = python2_pickle(cifar | {"fine_labels": [i % 100 for i in range(20)]})
    return {
        "digits": {"digits.csv.gz": gzip.compress(numbers)},
        "fashion-mnist": idx,
        "cifar100": {
            "train": fine,
            "test": fine,
            "meta": python2_pickle({"fine_label_names": CATALOGUE["cifar100"].classes}),
        },
        "cifar10": {f"data_batch_{i}": batch for i in range(1, 6)}
        | {"test_batch": batch, "batches.meta": python2_pickle({"label_names": CATALOGUE["cifar10"].classes})},
        "cifar10-1": {
            "cifar10.1_v6_data.npy": npy(RNG.integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)),
            "cifar10.1_v6_labels.npy": npy(np.arange(5)),
        },
        "cifar10-c": {"CIFAR-10-C.tar": corrupted_tar()},
        "tiny-imagenet": {"tiny-imagenet-200.zip": zipped(tiny_files())},
    }


SPLITS = {"digits": {"test": 10}, "cifar10-1": None, "cifar10-c": None}


@pytest.mark.filterwarnings("ignore")  # of NumPy, of empty files
@pytest.mark.parametrize("name", small_sets())
def test_damaged_files_are_refused_in_one_line_by_name_and_leave_nothing(name, tmp_path):
    """Or read, where the damage is in the pixels."""
    files = small_sets()[name]
    content = CATALOGUE[name].model_dump() | {"images": None, "split": SPLITS.get(name, {})}
    if name in SPLITS and SPLITS[name] is None:
        content["split"] = None
    entry = DataEntry.model_validate(content)
    raw, prepared = tmp_path / "raw", tmp_path / "prepared"
    (raw / name).mkdir(parents=True)
    for file, whole in files.items():
        (raw / name / file).write_bytes(whole)
    prepare(name, entry, raw, prepared)
    said = []
    for file, whole in list(files.items())[-3:]:
        for changed in damaged(whole):
            (raw / name / file).write_bytes(changed)
            shutil.rmtree(prepared, ignore_errors=True)
            fault = refusal(name, entry, raw, prepared)
            said += [fault] if fault else []
            assert not fault or not any(prepared.rglob("*"))
        (raw / name / file).write_bytes(whole)
    assert len(said) > 10
    assert all(name in fault and len(fault.splitlines()) == 1 for fault in said)


def grown(levels: int) -> bytes:
    """Of a pickle: a list of ten lists, which are one, of ten lists, and so on; a few bytes stand for 10^levels."""
    level = b"".join(b"0(" + b"h%c" % i * 10 + b"lq%c" % (i + 1) for i in range(100, 100 + levels))
    return b"K\1q%c" % 100 + level


LONG = b"\x8b" + (10**6).to_bytes(4, "little") + b"\7" * 10**6 + b"q\1"
COLLIDING = b"".join(b"\x8a\x0a" + (k * (2**61 - 1)).to_bytes(10, "little") + b"N" for k in range(1, 150_001))
STORED = b"\x80\2}U\4datacnumpy\nndarray\n)\x81(K\1%scnumpy\ndtype\nU\2u1\x85RK\0U\3abctbsU\x0bfine_labels]K\1as."


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda whole: whole[:-1] + b"U\x0bfine_labels" + grown(9) + b"s.", "labels that are no numbers"),
        (lambda whole: b"\x80\2}(" + COLLIDING + b"u.", "a key of type int"),
        (lambda whole: b"\x80\2(" + COLLIDING + b"d.", "not the published pickle"),
        (lambda whole: b"\x80\4\x8f(" + COLLIDING.replace(b"N", b"") + b"\x90.", "not the published pickle"),
        (lambda whole: STORED % (b"(" + LONG + b"h\1" * 20_000 + b"t"), "data of other numbers than it says"),
    ],
    ids=["labels in lists", "colliding keys", "colliding keys of a whole", "a set", "a shape of long numbers"],
)
def test_a_pickle_of_a_few_bytes_takes_no_time_without_end(change, words, tmp_path):
    files = small_sets()["cifar100"]
    for file, whole in files.items():
        (tmp_path / file).write_bytes(whole)
    (tmp_path / "train").write_bytes(change(files["train"]))
    begun = time.process_time()
    with pytest.raises(DataError, match=rf"train: .*{words}") as error:
        cifar.read(tmp_path)
    assert time.process_time() - begun < 5
    assert len(str(error.value).splitlines()) == 1


def idx_images(*shape: int) -> bytes:
    return struct.pack(">4B3I", 0, 0, 8, 3, *shape) + bytes(np.prod(shape))


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("fashion-mnist", {"train-images-idx3-ubyte": idx_images(20, 0, 0)}, "at least one image of one pixel"),
        ("fashion-mnist", {"t10k-images-idx3-ubyte": idx_images(20, 2, 8)}, "allowed: one form in all splits"),
        (
            "cifar10-c",
            {"CIFAR-10-C.tar": tar(*[member(f"{place}/labels.npy", npy(np.zeros(50, int))) for place in "ab"])},
            "two files labels.npy",
        ),
    ],
)
def test_images_and_labels_that_no_network_could_be_tested_with_are_refused(name, changes, words, tmp_path):
    content = CATALOGUE[name].model_dump() | {"images": None, "split": SPLITS.get(name, {})}
    raw, prepared = tmp_path / "raw", tmp_path / "prepared"
    (raw / name).mkdir(parents=True)
    for file, whole in (small_sets()[name] | changes).items():
        (raw / name / file).write_bytes(whole)
    fault = refusal(name, DataEntry.model_validate(content), raw, prepared)
    assert words in fault
    assert len(fault.splitlines()) == 1
    assert not any(prepared.rglob("*"))


def refusal(name: str, entry: DataEntry, raw: Path, prepared: Path) -> str | None:
    try:
        prepare(name, entry, raw, prepared)
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda zip_: zip_.replace(b"val_2.JPEG\tn02", b"val_2.JPEG\tn07"), "val_2.JPEG is of class 'n07'"),
        (lambda zip_: zip_.replace(b"val_2.JPEG\tn02", b"../x.JPEG\tn02"), "val/images/../x.JPEG is not in it"),
        (lambda zip_: zip_.replace(b"val_2.JPEG\tn02", b"val_1.JPEG\tn02"), "two lines for val_1.JPEG"),
        (
            lambda zip_: zip_.replace(b"\nval_2.JPEG\tn02", b" val_2.JPEG\tn02"),
            "4 images in val/images, 3 lines in val",
        ),
    ],
)
def test_annotations_that_do_not_belong_to_the_images_are_refused(change, words, mirror):
    files = tiny_files()
    name = "tiny-imagenet-200/val/val_annotations.txt"
    files[name] = change(files[name])
    contents = {"tiny-imagenet-200.zip": zipped(files)}
    with pytest.raises(UserError, match=f"tiny-imagenet-200.zip: .*{words}.*; fetch it again"):
        done("tiny-imagenet", entry_of("tiny-imagenet", contents), contents, mirror)


def test_a_member_whose_crc_is_wrong_is_refused_by_name(mirror):
    files = tiny_files()
    content = bytearray(zipped(files))
    name = "tiny-imagenet-200/train/n02/images/n02_5.JPEG"
    content[content.index(files[name]) + 300] ^= 1
    contents = {"tiny-imagenet-200.zip": bytes(content)}
    with pytest.raises(UserError, match=f"zip: {name}: not as it is published .Bad CRC-32"):
        done("tiny-imagenet", entry_of("tiny-imagenet", contents), contents, mirror)
    assert not any((mirror.parent / "data/prepared").rglob("*"))
