"""The images of a seed: drawn from a pool by the seed, in every class its share, the same on every machine."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from selfdistill.data.catalogue import DataEntry, read_catalogue, split_faults
from selfdistill.data.drawing import shares
from selfdistill.data.prepared import Dataset, PreparedError, SplitError, drawn, open_splits
from selfdistill.data.splits import pixels_sha256
from selfdistill.schema import ConfigError

ROOT = Path(__file__).parents[1]
CATALOGUE = read_catalogue(ROOT / "data" / "params.yaml").datasets
LABELS = torch.arange(60) % 3
SIZES = {"training_images": 30, "validation_images": 12}


def write(folder: Path, labels: dict[str, torch.Tensor], classes: str = "abc") -> Path:
    """Prepared splits of these labels, of noise."""
    generator = torch.Generator().manual_seed(0)
    hashes = {}
    for part, of in labels.items():
        images = torch.randint(0, 256, (len(of), 1, 4, 4), dtype=torch.uint8, generator=generator)
        save_file({"images": images, "labels": of, "indices": torch.arange(len(of))}, folder / f"{part}.safetensors")
        hashes[part] = pixels_sha256(images.numpy(), of.numpy())
    counts = {part: len(of) for part, of in labels.items()}
    facts = Dataset("made", list(classes), 1, (4, 4), [0.5], [0.3], hashes, counts)
    (folder / "dataset.json").write_text(json.dumps(vars(facts)))
    return folder


@pytest.fixture
def pool(tmp_path):
    return write(tmp_path, {"pool": LABELS})


# ---- rows ----


def test_rows_are_disjoint_rising_and_of_each_class_its_share():
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)[
        torch.randperm(100, generator=torch.Generator().manual_seed(1))
    ]
    for seed in range(20):
        training, validation = drawn(labels, 40, 10, seed)
        assert training.dtype == validation.dtype == torch.int64
        assert labels[training].bincount().tolist() == [20, 12, 8]
        assert labels[validation].bincount().tolist() == [5, 3, 2]
        for rows in (training, validation):
            assert rows.tolist() == sorted(set(rows.tolist()))
        assert not set(training.tolist()) & set(validation.tolist())


def test_two_seeds_draw_different_rows_and_one_seed_always_the_same():
    seen = {tuple(drawn(LABELS, 30, 12, seed)[0].tolist()) for seed in range(30)}
    assert len(seen) == 30
    for seed in range(3):
        assert all(map(torch.equal, drawn(LABELS, 30, 12, seed), drawn(LABELS.clone(), 30, 12, seed)))


def test_the_rows_of_a_seed_are_these_on_every_machine():
    """Written down once: another version of a library that drew others would change every record."""
    training, validation = drawn(torch.arange(12) % 3, 6, 3, 0)
    assert (training.tolist(), validation.tolist()) == ([1, 2, 3, 5, 7, 9], [0, 10, 11])


def test_every_row_is_equally_likely():
    counts = torch.zeros(60)
    for seed in range(600):
        counts[drawn(LABELS, 30, 12, seed)[0]] += 1
    assert counts.min() > 240  # 300 expected, sd 12
    assert counts.max() < 360


@pytest.mark.parametrize(
    ("total", "sizes", "expected"),
    [(10, [5, 3, 2], [5, 3, 2]), (3, [1, 1, 1], [1, 1, 1]), (2, [1, 1, 1], [1, 1, 0]), (7, [50, 30, 20], [4, 2, 1])],
)
def test_shares_are_by_largest_remainders(total, sizes, expected):
    assert shares(total, np.array(sizes)).tolist() == expected


def test_shares_never_exceed_what_is_there():
    rng = np.random.default_rng(0)
    for _ in range(300):
        sizes = rng.integers(0, 9, rng.integers(1, 8)) + (rng.random() < 0.5)
        if sizes.sum():
            total = int(rng.integers(0, sizes.sum() + 1))
            given = shares(total, sizes)
            assert given.sum() == total
            assert (given <= sizes).all()
            assert (given >= np.floor(total * sizes / sizes.sum())).all()


# ---- the images of a run ----


def test_the_images_of_a_seed_are_those_of_its_rows_and_the_record_has_their_hash(pool):
    splits = open_splits(pool, split="per_seed", seed=3, **SIZES)
    rows = drawn(LABELS, 30, 12, 3)
    whole = open_splits(pool, split="per_seed", seed=3, training_images=48, validation_images=12)
    for part, (images, labels), which in zip(
        ("training", "validation"), (splits.training, splits.validation), rows, strict=True
    ):
        assert torch.equal(labels, LABELS[which])
        assert splits.facts[part] == len(which)
        assert splits.facts[f"{part}_rows_sha256"] == pixels_sha256(images.numpy(), labels.numpy())
    assert whole.facts["training_rows_sha256"] != splits.facts["training_rows_sha256"]
    assert set(splits.facts) == {"split", "training", "validation", "training_rows_sha256", "validation_rows_sha256"}


def test_two_seeds_have_different_images_and_a_fixed_split_the_same_for_all(pool):
    seeds = [open_splits(pool, split="per_seed", seed=seed, **SIZES).facts for seed in (0, 1)]
    assert seeds[0]["training_rows_sha256"] != seeds[1]["training_rows_sha256"]
    assert seeds[0]["validation_rows_sha256"] != seeds[1]["validation_rows_sha256"]
    fixed = [open_splits(pool, split="fixed", seed=seed, **SIZES).facts for seed in (0, 1)]
    assert fixed[0] == fixed[1] == seeds[0] | {"split": "fixed"}


def test_a_changed_pixel_of_a_row_that_is_used_changes_its_hash_alone(tmp_path):
    before = open_splits(write(tmp_path, {"pool": LABELS}), split="fixed", seed=0, **SIZES).facts
    content = bytearray((tmp_path / "pool.safetensors").read_bytes())
    row = int(drawn(LABELS, 30, 12, 0)[1][0])
    tensors = open_splits(tmp_path, split="fixed", seed=0, **SIZES).validation[0]
    content[content.index(tensors[0].numpy().tobytes())] ^= 1
    (tmp_path / "pool.safetensors").write_bytes(content)
    after = open_splits(tmp_path, split="fixed", seed=0, **SIZES).facts
    assert {key for key in before if before[key] != after[key]} == {"validation_rows_sha256"}, row


def test_given_splits_are_taken_whole(tmp_path):
    folder = write(tmp_path, {"train": LABELS, "validation": LABELS[:9]})
    sizes = {"training_images": None, "validation_images": None}
    splits = open_splits(folder, split="fixed", seed=5, **sizes)
    assert torch.equal(splits.training[1], LABELS)
    assert splits.facts["validation_rows_sha256"] == Dataset.read(folder).pixels_sha256["validation"]
    with pytest.raises(
        SplitError, match='split: "per_seed" is not allowed: this data set has fixed splits; allowed: fixed'
    ):
        open_splits(folder, split="per_seed", seed=5, **sizes)
    with pytest.raises(SplitError, match="training_images: 30 is not allowed: this data set has fixed splits"):
        open_splits(folder, split="fixed", seed=5, **SIZES)


@pytest.mark.parametrize(
    ("training", "validation", "words"),
    [
        (40, 21, "training_images: 40 \\+ 21 are not allowed; allowed: at most 60 together"),
        (2, 12, "training_images: 2 is not allowed; allowed: 3 to 60, one of each class at least"),
        (None, 12, "training_images: null is not allowed; allowed: 3 to 60"),
        (30, 0, "validation_images: 0 is not allowed; allowed: 1 to 60"),
    ],
)
def test_sizes_that_a_pool_does_not_have_are_refused_in_one_line(training, validation, words, pool):
    with pytest.raises(SplitError, match=words) as error:
        open_splits(pool, split="per_seed", seed=0, training_images=training, validation_images=validation)
    assert len(str(error.value).splitlines()) == 1


def test_a_class_with_too_few_images_is_named(tmp_path):
    folder = write(tmp_path, {"pool": torch.tensor([0] * 50 + [1] * 50 + [2])})
    with pytest.raises(SplitError, match="training_images: 10 leave class 'c' without one; allowed: more of them"):
        open_splits(folder, split="per_seed", seed=0, training_images=10, validation_images=10)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"name": "made"}', "<<<<<<< HEAD"])
def test_a_damaged_description_is_refused_by_its_name(damage, pool):
    (pool / "dataset.json").write_text(damage)
    with pytest.raises(
        PreparedError, match=r"dataset.json: cannot be read \(.+\); prepare the data set again"
    ) as error:
        open_splits(pool, split="per_seed", seed=0, **SIZES)
    assert len(str(error.value).splitlines()) == 1


def test_a_damaged_pool_is_refused_by_its_name(pool):
    (pool / "pool.safetensors").write_bytes((pool / "pool.safetensors").read_bytes()[:-100])
    with pytest.raises(PreparedError, match=r"pool.safetensors: cannot be read \(.+\); prepare the data set again"):
        open_splits(pool, split="per_seed", seed=0, **SIZES)


# ---- before anything is prepared ----


@pytest.mark.parametrize(
    ("name", "asked", "words"),
    [
        ("digits", ("per_seed", 100, 400), None),
        ("digits", ("fixed", 100, 500), None),
        ("digits", ("per_seed", 201, 400), "training_images: 201 + 400 are not allowed; allowed: at most 600 together"),
        ("digits", ("per_seed", 5, 400), "training_images: 5 is not allowed; allowed: 10 to 600, one of each class"),
        ("cifar100", ("per_seed", 45000, 5000), None),
        ("cifar100", ("per_seed", 45000, 5001), "at most 50,000 together"),
        ("tiny-imagenet", ("per_seed", None, 1), "training_images: null is not allowed"),
        ("imagenet", ("fixed", None, None), None),
        ("imagenet", ("per_seed", None, None), 'split: "per_seed" is not allowed: this data set has fixed splits'),
        ("market1501", ("fixed", 100, None), "training_images: 100 is not allowed: this data set has fixed splits"),
    ],
)
def test_a_study_is_told_what_its_data_set_does_not_allow(name, asked, words):
    faults = list(split_faults(CATALOGUE[name], *asked))
    assert (words is None) == (not faults)
    assert words is None or any(words in fault for fault in faults)


@pytest.mark.parametrize(
    ("name", "split", "words"),
    [
        ("digits", {}, "split.test: missing; allowed: how many of the 1,797 images are for the test"),
        ("digits", {"test": 1797}, "1,797 images asked for, 1,797 there"),
        ("digits", {"test": 5, "train": 100, "validation": 100}, "split.test: 5 is not allowed beside train"),
        ("cifar10", {"test": 100}, "split.test: 100 is not allowed beside published test images"),
        ("cifar10", {"train": 45000}, "one of train and validation is not allowed"),
        ("cifar10", {"train": 45000, "validation": 6000}, "51,000 images asked for, 50,000 there"),
        ("imagenet", {}, "a pool cannot be packed"),
        ("market1501", {}, "persons to be found again have no pool"),
    ],
)
def test_a_split_that_contradicts_itself_or_the_files_is_refused(name, split, words, tmp_path):
    content = CATALOGUE[name].model_dump() | {"split": split}
    DataEntry.model_validate(content)  # each number for itself is allowed
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"datasets": {name: content}}))
    with pytest.raises(ConfigError) as error:
        read_catalogue(tmp_path / "params.yaml")
    assert words in str(error.value)
