"""Persons found again, from an archive in Market-1501's layout to the page."""

import gzip
import json
import math
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import Project, copy_of_sources
from made_market import COPIES, DISTRACTORS, GALLERY, JUNK, QUERIES, SIZE, TEST, TRAIN, market, write_archive
from safetensors.numpy import load_file

from selfdistill.analyses import retrieval
from selfdistill.data.catalogue import DataEntry, read_catalogue
from selfdistill.data.fetch import MIRROR, fetch
from selfdistill.data.images import sized, upright
from selfdistill.data.prepare import prepare
from selfdistill.data.prepared import Dataset, read_split
from selfdistill.evaluation.inputs import Persons, Predictions
from selfdistill.evaluation.splits import ClassImages, PersonImages, extract_features, open_test
from selfdistill.models import build
from selfdistill.summary.grouping import headline_of

ROOT = Path(__file__).parents[1]
ENTRY = read_catalogue(ROOT / "data" / "params.yaml").datasets["market1501"].model_dump()
STUDY = "studies/srdl-market1501"


# ---- the data ----


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """A function that fetches and prepares these files: its report, and the prepared folder."""

    def of(files: dict[str, bytes], **changes) -> tuple[dict, Path]:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        entry = DataEntry.model_validate(write_archive(folder / "mirror", files, ENTRY) | changes)
        monkeypatch.setenv(MIRROR, str(folder / "mirror"))
        fetch("market1501", entry, folder / "raw")
        return prepare("market1501", entry, folder / "raw", folder / "prepared"), folder / "prepared/market1501"

    return of


def expected(files: dict[str, bytes], folder: str) -> list[tuple[str, int, int]]:
    """(name, identity, camera) of the images that count, in their order."""
    names = sorted(n for n in files if f"/{folder}/" in n and n.endswith(".jpg"))
    found = [(n, int(n.split("/")[2].split("_")[0]), int(n[n.index("_c") + 2])) for n in names]
    return [row for row in found if row[1] >= 0]


def test_training_images_have_classes_and_test_images_persons_and_cameras(prepared):
    files = market()
    report, folder = prepared(files)
    for part, name in (("query", "query"), ("gallery", "bounding_box_test")):
        tensors, rows = load_file(folder / f"test/{part}.safetensors"), expected(files, name)
        assert set(tensors) == {"images", "identities", "cameras", "indices"}
        assert tensors["identities"].tolist() == [identity for _, identity, _ in rows]
        assert tensors["cameras"].tolist() == [camera for _, _, camera in rows]
        for image, (path, _, _) in zip(tensors["images"], rows, strict=True):
            assert np.array_equal(image, sized(upright(files[path]), SIZE, 3))
    said = json.loads((folder / "training/dataset.json").read_text())
    assert said["classes"] == [str(person) for person in TRAIN]
    rows = expected(files, "bounding_box_train")
    for part in ("train", "validation"):
        tensors = load_file(folder / f"training/{part}.safetensors")
        assert tensors["labels"].tolist() == [TRAIN.index(rows[i][1]) for i in tensors["indices"]]
        assert set(tensors["labels"]) == set(range(len(TRAIN))), "every person in both"
    kinds = {key: report["published"]["gallery"][key] for key in ("images", "persons", "distractors", "junk_left_out")}
    assert kinds == {
        "images": GALLERY + JUNK,
        "persons": len(TEST),
        "distractors": DISTRACTORS,
        "junk_left_out": JUNK,
    }
    assert report["counts"] == said["counts"] == {"train": 80, "validation": 16, "query": QUERIES, "gallery": GALLERY}


def test_an_image_in_query_and_gallery_is_reported(prepared):
    files = market()
    query = next(n for n in files if "/query/0001_c1" in n)
    twin = next(n for n in files if "/bounding_box_test/0001_c1" in n)
    report, _ = prepared(files | {twin: files[query]})
    assert report["duplicates"]["query, gallery"] == 1
    assert report["duplicates_with_another_label"] == 0


def test_a_camera_that_changes_changes_the_hash(prepared):
    files = market()
    first, _ = prepared(files)
    name = next(n for n in files if "/query/0001_c3" in n)
    content = files.pop(name)
    second, _ = prepared(files | {name.replace("_c3", "_c4"): content})
    different = [p for p in first["published"] if first["published"][p] != second["published"][p]]
    assert different == ["query"]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("query/1_c1.jpg", "query/1_c1.jpg: not a published name; allowed: such as"),
        ("query/0001_c7s1_000000_00.jpg", "not a published name"),
        ("query/-1_c1s1_000000_00.jpg", "junk; allowed: in bounding_box_test alone"),
        ("query/0000_c1s1_000000_00.jpg", "a distractor; allowed"),
        ("bounding_box_train/0001_c1s1_000000_00.jpg", "person 0001 is in training and in test"),
        ("query/0001_c1s1_000000_09.jpg", "'query': 18, 'gallery': 50} in the catalogue's"),
        (None, "no images in a folder query; allowed: Market-1501-v15.09.15"),
    ],
)
def test_an_archive_that_is_not_as_published_is_refused(name, part, prepared, tmp_path):
    files = market()
    if name:
        files[f"Market-1501-v15.09.15/{name}"] = next(iter(files.values()))
    else:
        files = {n: content for n, content in files.items() if "/query/" not in n}
    with pytest.raises(ValueError, match=r"allowed|catalogue") as error:
        prepared(files)
    assert part in str(error.value)
    assert not list(tmp_path.glob("*/prepared"))


# ---- the test ----


def test_what_a_test_measures_is_told_by_what_is_prepared(prepared, tiny_study):
    _, folder = prepared(market())
    assert isinstance(open_test(folder / "test", "cpu"), PersonImages)
    assert isinstance(open_test(tiny_study / "data/prepared/digits/test", "cpu"), ClassImages)


def literal_rank1(features: list[list[float]], identities: list[int], cameras: list[int], queries: int) -> float:
    """The share of queries whose most similar image, of those that count, shows their person."""

    def similarity(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))

    right = 0
    for q in range(queries):
        own = (identities[q], cameras[q])
        counting = [g for g in range(queries, len(features)) if (identities[g], cameras[g]) != own]
        best = max(counting, key=lambda g, q=q: similarity(features[q], features[g]))
        right += identities[best] == identities[q]
    return right / queries


def rows_of(test: PersonImages, features: torch.Tensor) -> list[dict]:
    """What the analysis finds of them: exits, shallow to deep, and of several the ensemble."""
    truth = Persons(test.identities, test.cameras, test.queries, test.re_ranking)
    run = {"cost": {"inference_macs": [1] * len(features)}, "sections": 4}
    return retrieval.analyse(Predictions(run, features, truth, (features, test.identities), {}))


def test_exits_and_their_ensemble_rank_by_cosines_of_features(prepared):
    _, folder = prepared(market())
    test = open_test(folder / "test", "cpu")
    network = build("resnet10-slim", channels=3, classes=len(TRAIN), size=SIZE, exits=True, seed=0)
    outputs = test.outputs(network, Dataset.read(folder / "training"))
    assert outputs.shape == (4, QUERIES + GALLERY, 64)
    *found, ensemble = rows_of(test, outputs)
    raw = extract_features(network, Dataset.read(folder / "training"), test.images)
    truth = test.identities.tolist(), test.cameras.tolist(), QUERIES
    for metrics, features in zip(found, raw, strict=True):
        assert metrics["rank1"] == literal_rank1(features.tolist(), *truth)
    side_by_side = F.normalize(raw, dim=2).transpose(0, 1).flatten(1)
    assert ensemble["rank1"] == literal_rank1(side_by_side.tolist(), *truth)
    assert [any(k.startswith("re_ranked") for k in m) for m in found] == [False, False, False, True]
    assert found[-1]["re_ranked_rank1"] != found[-1]["rank1"]


def test_without_re_ranking_in_the_catalogue_nothing_is_re_ranked(prepared):
    _, folder = prepared(market(), re_ranking=None)
    test = open_test(folder / "test", "cpu")
    features = torch.rand(1, QUERIES + GALLERY, 8, generator=torch.Generator().manual_seed(0)).half()
    assert not any(key.startswith("re_ranked") for key in rows_of(test, features)[0])


def test_features_of_an_identity_classifier_find_persons_it_has_not_seen(prepared):
    """By chance 4 of the 43 gallery images that count are right, and rank-1 is 0.09; the network as initialised
    has 0.33, because it sees colours."""
    _, folder = prepared(market())
    dataset, test = Dataset.read(folder / "training"), open_test(folder / "test", "cpu")
    network = build("resnet10-slim", channels=3, classes=len(TRAIN), size=SIZE, exits=False, seed=0)
    before = rows_of(test, test.outputs(network, dataset))[0]
    images, labels = read_split(folder / "training", "train")
    train(network, dataset.normalise(images), labels)
    after = rows_of(test, test.outputs(network, dataset))[0]
    assert (after["queries"], after["skipped"]) == (QUERIES, 0)
    assert after["rank1"] > 0.5
    assert after["mean_average_precision"] > before["mean_average_precision"] + 0.15
    assert after["re_ranked_mean_average_precision"] > before["mean_average_precision"] + 0.15


def train(network, images, labels):
    """A plain loop of 10 epochs."""
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    shuffle = torch.Generator().manual_seed(0)
    network.train()
    for _ in range(10):
        for batch in torch.randperm(len(labels), generator=shuffle).split(20):
            loss = F.cross_entropy(network(images[batch]).logits[-1], labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


# ---- the pipeline ----


@pytest.fixture(scope="module")
def found_again(made_once) -> Project:
    """A repository in which the shipped study, made small, has run on a made archive."""
    return Project(made_once("market", run_study))


def run_study(folder: Path) -> None:
    project = copy_of_sources(folder)
    catalogue = yaml.safe_load((project / "data/params.yaml").read_text())
    mirror = project / "mirror"
    catalogue["datasets"]["market1501"] = write_archive(mirror, market(), catalogue["datasets"]["market1501"])
    (project / "data/params.yaml").write_text(yaml.safe_dump(catalogue, sort_keys=False))
    small = {"models": ["resnet10-slim"], "methods": ["plain", "srdl"], "students": [], "seeds": [0, 1]}
    recipe = {"epochs": 24, "batch_size": 20, "learning_rate": 0.05, "crop_padding": 1, "flip": False}
    recipe |= {"device": "cpu", "determinism": "strict", "precision": "float32", "compile": False, "cuda_graphs": False}
    project.params(f"{STUDY}/params.yaml", **small, **{f"recipe.{key}": value for key, value in recipe.items()})
    project.run("workflow/run", "study", "use", Path(STUDY).name)
    # the stages in one process, for its start is most of each one's time
    data = [["fetch", "market1501"], ["prepare", "market1501"]]
    Project(project / "data").run_all(*data, SELFDISTILL_MIRROR=str(mirror))
    cells = [["--model", "resnet10-slim", "--variant", method] for method in ("plain", "srdl")]
    Project(project / STUDY).run_all(
        ["check", "--write"],
        *(["train", *cell, "--seeds", str(seed)] for cell in cells for seed in (0, 1)),
        *(["evaluate", *cell] for cell in cells),
        *([stage] for stage in ("measure", "tables", "figures", "page")),
    )


def test_a_study_runs_from_the_archive_to_the_page_and_finds_more_than_chance(found_again):
    results = found_again / STUDY / "results"
    for method in ("plain", "srdl"):
        for seed in (0, 1):
            record = json.loads((results / f"records/measured/resnet10-slim/{method}/{seed}.json").read_text())
            for selection in ("last", "validation"):
                (deepest,) = record["measures"]["retrieval"]["rows"][selection]
                assert not {"accuracy", "nll", "ece"} & set(deepest)
                assert deepest["rank1"] > 2 * 4 / (GALLERY - COPIES), "twice chance"
            predictions = load_file(results / f"predictions/resnet10-slim/{method}/{seed}.safetensors")
            assert predictions["last"].shape == (1, QUERIES + GALLERY, 64)
            assert predictions["queries"] == QUERIES
    means = json.loads((results / "metrics.json").read_text())
    assert set(means) == {"plain", "srdl", "training_gflops"}
    assert set(means["srdl"]) >= {"rank1", "mean_average_precision", "mean_inverse_negative_penalty"}
    table = (results / "tables/retrieval.md").read_text()
    columns = [cell.strip() for cell in table.splitlines()[0].strip("|").split("|")]
    assert columns[2:7] == ["Test rank-1 (%)", "mAP (%)", "mINP (%)", "Rank-1, re-ranked (%)", "mAP, re-ranked (%)"]
    assert f"{means['srdl']['rank1']:.2f} ±" in table
    page = (results / "index.html").read_text()
    assert "<h2>Test rank-1</h2>" in page
    assert "distractors are wrong answers" in page
    for kind in ("svg", "png"):
        assert {p.stem for p in (results / "figures").glob(f"*.{kind}")} == {
            "contrasts",
            "differences",
            "retrieval",
            "curves",
            "exits",
            "cost",
        }


def test_accuracy_is_claimed_nowhere_but_of_telling_the_training_persons_apart(found_again):
    results = found_again / STUDY / "results"
    for path in [*(results / "tables").glob("*.*"), *(results / "figures").glob("*.svg")]:
        text = path.read_text().lower().replace("% accuracy: written", "")
        for word in ("validation accuracy", "validation_accuracy", "training_accuracy"):
            text = text.replace(word, "")
        assert "accuracy" not in text, path


def test_runs_of_persons_are_packed_and_imported(found_again, tmp_path):
    project = type(found_again)(tmp_path / "repo")
    shutil.copytree(found_again.folder, project.folder, symlinks=True)
    study = type(found_again)(project / STUDY)
    before = (study / "results/tables/runs.csv").read_bytes()
    study.run("selfdistill", "records", "export", "runs.jsonl.gz")
    shutil.rmtree(study / "results/records")
    assert study.run("selfdistill", "records", "import", "runs.jsonl.gz").stdout.count("imported: ") == 4
    study.run("selfdistill", "tables")
    after = (study / "results/tables/runs.csv").read_bytes()
    for old, new in zip(before.splitlines(), after.splitlines(), strict=True):
        assert new.startswith(old + b","), "all that was, and the hardware"
    entries = gzip.decompress((study / "runs.jsonl.gz").read_bytes()).replace(b'"rank1":', b'"accuracy":')
    (study / "other.jsonl.gz").write_bytes(gzip.compress(entries))
    refused = study.run("selfdistill", "records", "import", "other.jsonl.gz", ok=False)
    assert "record.measures.retrieval.rows.last[0]" in refused.stderr


def test_a_record_without_a_known_metric_is_refused():
    with pytest.raises(ValueError, match="no number that could stand for a run; allowed: one of accuracy, retrieval"):
        headline_of({"measures": {"cost": {}}})
