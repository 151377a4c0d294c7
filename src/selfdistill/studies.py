"""The studies of a checkout: what there is, what one would cost and what of it has run, and a new one.

Costs are estimates from counted multiply-adds, made before any run; what runs cost is on their page.
"""

import json
import re
import shutil
import textwrap
from dataclasses import dataclass
from pathlib import Path

from selfdistill import methods, models
from selfdistill.config import Study
from selfdistill.data.catalogue import DataEntry, read_catalogue
from selfdistill.errors import UserError, lacking, printable
from selfdistill.files import write_atomically
from selfdistill.outside import json_object, untrusted
from selfdistill.params import purpose, read_study
from selfdistill.schema import ConfigError, as_yaml
from selfdistill.search import untuned
from selfdistill.stages.finished import cache_of, locked_outputs

# C, H, W of what readers of arrays give; readers of image files are told by the catalogue
SHAPES = {"digits": (1, 8, 8), "idx": (1, 28, 28), "cifar": (3, 32, 32), "cifar10": (3, 32, 32)}
CLASSES = 1000  # assumed for a data set whose classes are in files that were not fetched: ImageNet's

# FLOP/s that training sustains.  The CPU's is measured: the lowest of docs/performance.md, 8 px and batches of
# 25 on one thread.  The GPU's is assumed, a tenth of what an H100 or H200 is sold for in bfloat16: no GPU was measured.
CPU_TFLOPS, GPU_TFLOPS = 0.031, 100.0

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")  # no dot: DVC takes one in a key for a step downwards


class StudyError(UserError):
    """A study that does not exist or cannot be made; the message says why and what is allowed."""


def folders(root: Path) -> dict[str, Path]:
    """The folder of every study by its name; the one at the repository's top is `default`."""
    found = sorted(path.parent for path in (root / "studies").glob("*/params.yaml"))
    return {"default": root, **{path.name: path for path in found if not path.name.startswith(".")}}


def listing(root: Path) -> list[dict]:
    """One row a study; `fault` in place of its parts where params.yaml is faulty."""
    rows = []
    for name, folder in folders(root).items():
        params = folder / "params.yaml"
        try:
            study = read_study(params)
        except ConfigError as error:
            rows.append({"name": name, "fault": str(error).splitlines()[0]})
            continue
        row = {"name": name, "dataset": study.dataset, "models": [*study.models, *study.teacher_models]}
        row |= {"methods": study.all_variants, "seeds": len(study.seeds), "cells": len(study.cells())}
        rows.append({**row, "purpose": purpose(params)})
    return rows


# ---- what a study costs ----


@dataclass(frozen=True)
class Size:
    """Of a network for a study's images: parameters and multiply-adds of one image, without and with exits."""

    parameters: int
    macs: int
    parameters_with_exits: int
    macs_with_exits: int


def image_shape(root: Path, name: str, entry: DataEntry) -> tuple[tuple[int, int, int], int | None]:
    """(C, H, W) of a data set's images and its number of classes, None if only its files know.

    Raises StudyError for a reader of arrays whose shape is not known."""
    prepared = root / "data" / "prepared" / name / "training" / "dataset.json"
    if prepared.is_file():
        remedy = f"prepare {name} again"
        facts = json_object(prepared, remedy)
        with untrusted(StudyError, prepared, "not what preparing writes", remedy):
            channels, (height, width), classes = facts["channels"], facts["size"], len(facts["classes"])
        return (channels, height, width), classes
    if entry.image is None and entry.reader not in SHAPES:
        raise StudyError(f"{name}: only its files know the shape of its images; prepare it first")
    shape = (entry.image.channels, *entry.image.size) if entry.image else SHAPES[entry.reader]
    return shape, len(entry.classes) if entry.classes else None


def size_of(model: str, shape: tuple[int, int, int], classes: int, own: list[Path]) -> Size:
    """Counted on torch's meta device, which computes shapes and no numbers."""
    import torch

    from selfdistill.training.cost import inference_macs

    found = []
    for exits in (False, True):
        form = {"channels": shape[0], "classes": classes, "size": shape[1:], "exits": exits, "seed": 0}
        with torch.device("meta"):
            network = models.build(model, **form, own=own)
            _, macs = inference_macs(network, shape)
        found += [sum(p.numel() for p in network.parameters()), macs]
    return Size(*found)


def training_passes(study: Study, variant: str, share: float) -> float:
    """Training operations of a variant, relative to plain training of the same network, its teacher's left out.

    The factors are those of `selfdistill methods`, counted on the default network, which hold a twin's training
    (1) and its forward pass (1/3).  share: the teacher's multiply-adds relative to the student's.
    """
    about = methods.about(study.variant(variant).method)
    if "teacher" not in about["needs"]:
        return about["cost"]
    return about["cost"] - 1 - 1 / 3 + (share if variant in study.taught else 1) / 3


def estimate(root: Path, study: Study, tflops: float | None) -> dict:
    """Hours and bytes of all cells, and the numbers they come from.

    hours: cells x epochs x training images x 6 FLOPs a multiply-add (forward, and twice that backward) x passes of the
    method, over the FLOP/s assumed; a tuned cell has the epochs of its trials as well.  bytes: two float32 states a
    run, and two sets of test logits of every exit.  Evaluation, decoding, and what some methods leave beside their
    network are left out.
    """
    entry = read_catalogue(root / "data" / "params.yaml").datasets[study.dataset]
    shape, classes = image_shape(root, study.dataset, entry)
    known = classes or CLASSES
    sizes = {
        model: size_of(model, shape, known, study.own_networks) for model in (*study.models, *study.teacher_models)
    }
    teacher = sizes[study.teacher_models[0]].macs if study.teacher_models else 0
    trained = study.training_images or entry.split.train
    test = entry.split.test or (entry.images or {}).get("test", 0)
    flops = {model: 0.0 for model in sizes}
    stored = 0
    for model, variant, _ in study.cells():
        resolved = study.variant(variant)
        size, exits = sizes[model], "exits" in methods.about(resolved.method)["needs"]
        passes = training_passes(study, variant, teacher / size.macs)
        # a winner's training comes after the trials of its search
        trials = study.search_epochs if untuned(variant) else 0
        flops[model] += 6 * size.macs * trained * resolved.recipe.epochs * passes * (1 + trials)
        # sections are four at most; logits of one exit where there is but one
        stored += 8 * (size.parameters_with_exits if exits else size.parameters)
        stored += 8 * test * known * (4 if exits else 1)
    rate = tflops or (CPU_TFLOPS * study.recipe.threads if study.recipe.device == "cpu" else GPU_TFLOPS)
    return {
        "shape": shape,
        "classes": classes,
        "train_images": trained,
        "sizes": sizes,
        "flops": flops,
        "tflops": rate,
        "hours": {model: value / (rate * 1e12) / 3600 for model, value in flops.items()},
        "bytes": stored,
    }


def has_run(folder: Path, study: Study) -> dict[str, int]:
    """How many cells have a record of this checkout, an imported one, weights in place, weights in DVC's cache."""
    counts = dict.fromkeys(("local", "imported", "weights", "cached"), 0)
    outs = locked_outputs(folder / "dvc.lock")
    cache = cache_of(folder / study.root)
    for cell in study.cells():
        run = study.run_folder(*cell)
        counts["local"] += (folder / study.record_file(*cell)).is_file()
        counts["imported"] += (folder / study.imported_file(*cell)).is_file()
        counts["weights"] += (folder / run / "run.json").is_file()
        md5 = outs.get(run.as_posix()) or outs.get(run.parent.as_posix())
        counts["cached"] += bool(md5) and (cache / md5[:2] / md5[2:]).is_file()
    return counts


# ---- a new study ----

TEMPLATE = """\
# {title}: your own images, from {folder}.
# Run it:   make study STUDY={name}
# Its networks classify other images:   selfdistill predict studies/{name}/results/runs/{model}/byot/0 photo.jpg
# A larger network, more epochs and a GPU (device: auto, determinism: seeded) are likely to do better; this
# begins small, so that the whole of it can be seen soon. Nothing here was tuned.
root: ../..             # the repository, seen from this file
own: params.yaml        # or a folder with network files and weights of your own
dataset: {dataset}
split: {split}         # every seed draws its own training and validation images; or fixed, one draw for all
training_images: {train}
validation_images: {validation}
models:                 # also timm:NAME, any network of timm
  - {model}
methods:                # `selfdistill methods` lists what there is
  - plain
  - label_smoothing
  - byot
students: []            # methods that learn from a trained network: the teacher's, same model and seed
teacher_models: []      # a larger network that teaches `taught`
taught: []
probes: {{}}              # analyses of the networks themselves, such as on corrupted test images
variants: {{}}            # a method a second time, under other values
teacher: plain
control: plain          # what every method is compared with, seed by seed
contrasts:              # declared before the study runs; each is tested once, all together (docs/contrasts.md)
  byot_plain: {{of: byot, against: plain}}
margin: 1.0             # points of accuracy that would not matter: what lies within is called equivalent
tuning:                 # an equal search for each of these, the winners trained as NAME-tuned (docs/tuning.md)
  methods: []
  students: []
  trials: 3             # of a search; the first has the values as published
  replicates: 3         # searches of each, one a seed, from the first on
  epochs: null          # of a trial; null for the recipe's
seeds:                  # a block of seeds is trained by one stage; write a number for a stage of its own
  - 0-2
selection: last
recipe:
  epochs: 30
  batch_size: {batch}
  learning_rate: 0.05
  momentum: 0.9
  nesterov: true
  weight_decay: 0.0005
  schedule: cosine
  milestones: []
  decay: 0.1
  warmup_epochs: 1
  crop_padding: {padding}
  flip: true            # false where left and right differ, as in text
  cutout: 0
  device: cpu
  threads: 1
  determinism: portable
  precision: float32
  channels_last: true
  compile: false
  cuda_graphs: false
  processes: 1
  workers: 0
hyper:
  plain: {{}}
  label_smoothing: {{}}
  byot: {{}}
"""


def new_study(root: Path, name: str, data: Path, size: tuple[int, int] | None = None, seed: int = 0) -> Path:
    """A data set of the folder `data` of images and a study of it, both called `name`; returns the study's folder.

    Appends to data/params.yaml, unless this very entry stands there, and makes studies/NAME.  Raises StudyError,
    and changes nothing, for a name that is taken or has other signs, and for a folder that
    `describe_folder` refuses.
    """
    from selfdistill.data.describe import described

    if not NAME.fullmatch(name):
        raise StudyError(f"{name!r} is not a name for a study; allowed: letters, digits, - and _")
    catalogue, target = root / "data" / "params.yaml", root / "studies" / name
    taken = read_catalogue(catalogue).datasets
    if name in folders(root) or target.exists():
        raise StudyError(f"{target}: there already; choose another name or remove it")
    other = StudyError(f"{catalogue}: has another data set {name!r}; choose another name or take its entry out")
    if name in taken and taken[name].reader != "folder":
        raise other
    try:
        entry, images = described(data, size=size, seed=seed)
    except (OSError, ValueError) as error:
        raise StudyError(lacking(error, data) or error) from None
    if name in taken and taken[name] != DataEntry.model_validate(entry):
        raise other
    side, fixed = min(entry["image"]["size"]), "train" in entry["split"]
    train = entry["split"]["train"] if fixed else round(0.75 * images)
    text = TEMPLATE.format(
        title=printable(entry["title"]),
        folder=printable(str(data.resolve())),
        name=name,
        split="fixed   " if fixed else "per_seed",
        train="null" if fixed else train,
        validation="null" if fixed else images - train,
        dataset=json.dumps(name),
        model="resnet10-slim",
        batch=batch_size(train),
        padding=side // 8,
    )
    before = catalogue.read_bytes()
    after = before.rstrip(b"\n") + b"\n" + as_entry(name, entry).encode() if name not in taken else before
    partial = target.with_name(f".{name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of one that was killed
        partial.mkdir(parents=True)
        (partial / "params.yaml").write_text(text, encoding="utf-8")
        (partial / "dvc.yaml").symlink_to(Path("..", "..", "dvc.yaml"))
        if after != before:
            write_atomically(catalogue, after)
        read_study(partial / "params.yaml")
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        if catalogue.read_bytes() != before:  # on a full disk nothing was written that could be taken back
            write_atomically(catalogue, before)
        raise
    return target


def as_entry(name: str, entry: dict) -> str:
    """An entry as it stands in data/params.yaml."""
    return textwrap.indent(as_yaml({name: entry}), "  ")


def batch_size(train: int) -> int:
    """Some 20 steps an epoch, 64 images at most; never one that leaves a single image for the last step."""
    batch = max(2, min(64, train // 20))
    while train % batch == 1:
        batch += 1
    return batch
