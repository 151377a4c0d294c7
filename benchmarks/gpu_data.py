"""CIFAR-100 for gpu_run.py, as the pipeline prepares it; for a small run on a CPU, a few made images."""

import hashlib
import itertools
import json
import lzma
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import yaml

CATALOGUE = Path(__file__).resolve().parents[1] / "data" / "params.yaml"


def prepare(study, options, log) -> None:
    """Prepare the study's data set once; what an earlier, broken attempt left is removed."""
    done = options.state / "data" / f"{study.dataset}.prepared"
    if done.is_file():
        return
    shutil.rmtree(study.data_folder, ignore_errors=True)
    if options.data is None:
        make_data(study)
    else:
        prepare_published(study, options)
    done.touch()
    log(f"{study.dataset} prepared")


def prepare_published(study, options) -> None:
    from selfdistill.data import fetch, prepare

    raw = options.state / "data" / "raw"
    entry = as_objects(yaml.safe_load(CATALOGUE.read_text())["datasets"][study.dataset])
    folder = options.data
    if (folder / "train.prefix.xz").is_file():
        folder = options.state / "data" / "mirror"
        if not (folder / "cifar-100-python" / "meta").is_file():
            unpack_mosaics(options.data, folder / "cifar-100-python")
    os.environ["SELFDISTILL_MIRROR"] = str(folder)
    fetch.fetch(study.dataset, entry, raw)  # verifies every file
    prepare.prepare(study.dataset, entry, raw, study.data_folder.parent)


# what `selfdistill.data.catalogue` takes for a key that an entry, its split or one of its files leaves out
DEFAULTS = {
    "entry": dict.fromkeys(("obtain", "image", "images", "classes", "split", "tests", "re_ranking")),
    "split": {"test": None, "train": None, "validation": None, "seed": 0},
    "image": {"shorter_side": None},
    "files": {"md5": None, "verified": True, "in_place": False, "unpacked": [], "sources": []},
    "unpacked": {"bytes": None, "sha256": None, "md5": None},
}


class Sizes(SimpleNamespace):
    """`selfdistill.data.catalogue.SplitSizes`."""

    @property
    def fixed(self) -> bool:
        return self.train is not None


class File(SimpleNamespace):
    """`SourceFile` and `Member` of the catalogue."""

    @property
    def target(self) -> str:
        return self.name if hasattr(self, "sources") else self.name.rpartition("/")[2]


def as_objects(entry: dict) -> SimpleNamespace:
    """An entry of the catalogue as the code reads it, without the schema, whose library may be missing here."""

    def file(values: dict) -> File:
        members = [File(**{**DEFAULTS["unpacked"], **member}) for member in values.get("unpacked", ())]
        return File(**{**DEFAULTS["files"], **values, "unpacked": members})

    found = {**DEFAULTS["entry"], **entry}
    if (split := found["split"]) is not None:
        found["split"] = Sizes(**{**DEFAULTS["split"], **split})
    if (image := found["image"]) is not None:
        found["image"] = SimpleNamespace(**{**DEFAULTS["image"], **image})
    if (re_ranking := found["re_ranking"]) is not None:
        found["re_ranking"] = SimpleNamespace(**re_ranking)
    return SimpleNamespace(**{**found, "files": [file(values) for values in found["files"]]})


def unpack_mosaics(folder: Path, target: Path) -> None:
    """The published pickles from lossless mosaics of 5,000 images, 50 a row, and the pickles' beginnings."""
    import numpy as np
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    target.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        with open(target / f"{split}.partial", "wb") as file:
            file.write(lzma.decompress((folder / f"{split}.prefix.xz").read_bytes()))
            for number in itertools.count():
                path = folder / f"{split}-{number}.webp"
                if not path.is_file():
                    break
                with Image.open(path) as image:
                    pixels = np.asarray(image)
                tall, wide = pixels.shape[0] // 32, pixels.shape[1] // 32
                file.write(pixels.reshape(tall, 32, wide, 32, 3).transpose(0, 2, 4, 1, 3).tobytes())
            file.write(b"tbu.")  # the end of the pickle
        os.replace(target / f"{split}.partial", target / split)
    shutil.copyfile(folder / "meta", target / "meta")  # last: with it the folder is whole


def make_data(study) -> None:
    """Images whose brightness tells the class, in the form of the prepared ones."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    facts = {"name": study.dataset, "classes": [f"class {i}" for i in range(10)], "channels": 3, "size": [16, 16]}
    facts |= {"mean": [0.5] * 3, "std": [0.25] * 3, "pixels_sha256": {}, "counts": {}}
    facts |= {"quarantined": 0, "shorter_side": None, "white": None}
    for split, folder, count in (("pool", "training", 400), ("test", "test", 200)):
        labels = torch.arange(count) % 10
        noise = torch.randint(60, (count, 3, 16, 16), generator=generator)
        images = (noise + 19 * labels.view(-1, 1, 1, 1)).to(torch.uint8)
        path = study.data_folder / folder / f"{split}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"images": images, "labels": labels}, path)
        facts["counts"][split] = count
        facts["pixels_sha256"][split] = hashlib.sha256(images.numpy().tobytes()).hexdigest()
    (study.data_folder / "training" / "dataset.json").write_text(json.dumps(facts))
