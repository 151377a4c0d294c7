"""Networks tested on other images than those of their data set: from made archives to the page."""

import gzip
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import Project, copy_of_sources
from safetensors.numpy import load_file
from test_data import member, python2_pickle, tar
from test_readers import npy

from selfdistill import analyses
from selfdistill.analyses.robustness import HELD_BACK
from selfdistill.data.catalogue import read_catalogue
from selfdistill.data.prepared import Dataset
from selfdistill.models.trained import load_network, predict
from selfdistill.params import probe_faults, read_study
from selfdistill.schema import ConfigError
from selfdistill.summary.statistics import mean_interval

ROOT = Path(__file__).parents[1]
STUDY = "studies/drkd-cifar10"
CORRUPTIONS = ("fog", "saturate", "snow")  # the second is one of those that their authors keep apart
TESTED = 20  # images of the test split, and of each severity
METHODS = ("plain", "byot", "drkd")
ONE = {"cifar10-1": {"analysis": "robustness", "data": "cifar10-1"}}
SETS = "cifar10-c", "cifar10-1"
PROBES = {
    **{name: {"analysis": "robustness", "data": name} for name in SETS},
    "flat": {
        "analysis": "flatness",
        "data": "cifar10",
        "settings": {"images": 50, "draws": 1, "sigmas": 2, "vectors": 1},
    },
    "slopes": {"analysis": "gradients", "data": "cifar10", "settings": {"batches": 1}},
    "apart": {"analysis": "separability", "data": "cifar10"},
    "strangers": {"analysis": "ood", "data": "digits"},
    "made": {"analysis": "corruptions", "data": "cifar10", "settings": {"images": 4}},
}


def images(count: int, noise: float, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Made images, uint8 N x 32 x 32 x 3, of which a class is a colour, under noise; and labels."""
    labels = np.arange(count) % 10
    colours = np.random.default_rng(0).integers(60, 196, (10, 1, 1, 3))
    noisy = colours[labels] + generator.normal(0, noise, (count, 32, 32, 3))
    return noisy.clip(0, 255).astype(np.uint8), labels


def archives() -> dict[str, dict[str, bytes]]:
    """The published files of each data set, made."""
    generator = np.random.default_rng(1)
    batches = {}
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        pixels, labels = images(TESTED, 20, generator)
        batches[name] = {"data": pixels.transpose(0, 3, 1, 2).reshape(TESTED, -1), "labels": labels.tolist()}
    batches["batches.meta"] = {"label_names": read_catalogue(ROOT / "data/params.yaml").datasets["cifar10"].classes}
    packed = [member(f"cifar-10-batches-py/{name}", python2_pickle(content)) for name, content in batches.items()]
    corrupted = {}
    for i, name in enumerate(CORRUPTIONS):
        by_severity = [images(TESTED, 20 + 40 * severity * (i + 1), generator)[0] for severity in range(1, 6)]
        corrupted[name] = np.concatenate(by_severity)
    corrupted["labels"] = np.tile(np.arange(TESTED) % 10, 5)
    other, labels = images(30, 60, generator)
    return {
        "cifar10": {"cifar-10-python.tar.gz": gzip.compress(tar(*packed), mtime=0)},
        "cifar10-c": {"CIFAR-10-C.tar": tar(*[member(f"CIFAR-10-C/{n}.npy", npy(c)) for n, c in corrupted.items()])},
        "cifar10-1": {"cifar10.1_v6_data.npy": npy(other), "cifar10.1_v6_labels.npy": npy(labels.astype(np.int32))},
    }


def describe(catalogue: dict, mirror: Path) -> None:
    """Write the made files into a mirror folder, and into the catalogue in place of the published ones."""
    mirror.mkdir()
    for name, files in archives().items():
        entry = catalogue["datasets"][name]
        for file in entry["files"]:
            content = files[file["name"]]
            (mirror / file["name"]).write_bytes(content)
            file |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            file.pop("md5", None)
            for packed in file.get("unpacked", []):
                packed |= {"bytes": None, "md5": None}
        del entry["images"]
    catalogue["datasets"]["cifar10"]["split"] = {}


@pytest.fixture(scope="module")
def tested(made_once) -> Project:
    """A repository in which a shipped study, made small, has run, with both kinds of test sets."""
    return Project(made_once("robustness", run_study))


def run_study(folder: Path) -> None:
    project = copy_of_sources(folder)
    catalogue = yaml.safe_load((project / "data/params.yaml").read_text())
    describe(catalogue, project / "mirror")
    (project / "data/params.yaml").write_text(yaml.safe_dump(catalogue, sort_keys=False))
    recipe = {"epochs": 4, "batch_size": 20, "warmup_epochs": 0, "learning_rate": 0.05, "crop_padding": 0}
    recipe |= {"device": "cpu", "determinism": "strict", "precision": "float32", "compile": False, "cuda_graphs": False}
    project.params(
        f"{STUDY}/params.yaml",
        **{"models": ["resnet10-slim"], "methods": ["plain", "byot"], "students": ["drkd"], "taught": []},
        **{
            "teacher_models": [],
            "seeds": [0, 1],
            "training_images": 80,
            "validation_images": 20,
            "probes": PROBES,
            "hyper.byot": {},
        },
        **{f"recipe.{key}": value for key, value in recipe.items()},
    )
    project.run("workflow/run", "study", "use", Path(STUDY).name)
    # the stages in one process, for its start is most of each one's time; then DVC is told
    names = [*archives(), "digits"]
    Project(project / "data").run_all(
        *(["fetch", name] for name in names),
        *(["prepare", name] for name in names),
        SELFDISTILL_MIRROR=str(project / "mirror"),
    )
    study = Project(project / STUDY)
    cells = [["--model", "resnet10-slim", "--variant", method] for method in METHODS]
    study.run_all(
        ["check", "--write"],
        *(["train", *cell, "--seeds", str(seed)] for cell in cells for seed in (0, 1)),
        *(["evaluate", *cell] for cell in cells),
        ["measure"],
        *(["probe", name] for name in PROBES),
        *([stage] for stage in ("tables", "figures", "page")),
    )
    project.run(
        "dvc", "commit", "--force", "--quiet", *(f"data/sets/{name}/dvc.yaml" for name in names), f"{STUDY}/dvc.yaml"
    )


def own_accuracy(project, method: str, seed: int, name: str, severity: int | None) -> list[float]:
    """Accuracy of every exit on a prepared set, counted here."""
    network, record = load_network(project / STUDY / f"results/runs/resnet10-slim/{method}/{seed}")
    folder, _, part = name.partition("/")
    tensors = load_file(project / f"data/prepared/{folder}/test/{part}.safetensors")
    chosen = [i for i in range(len(tensors["labels"])) if severity in (None, tensors.get("severity", [None] * 99)[i])]
    pixels = torch.from_numpy(tensors["images"][chosen])
    answers = predict(network, Dataset(**record["dataset"]), pixels).argmax(dim=2)
    right = answers == torch.from_numpy(tensors["labels"][chosen])
    return right.double().mean(dim=1).tolist()


@pytest.mark.parametrize("method", METHODS)
def test_every_seed_set_severity_and_exit_is_measured(method, tested):
    sets = [(f"cifar10-c/{name}", s) for name in CORRUPTIONS for s in range(1, 6)] + [("cifar10-1/test", None)]
    for seed in (0, 1):
        for name, severity in sets:
            folder, _, part = name.partition("/")
            path = tested / STUDY / f"results/records/probes/{folder}/resnet10-slim/{method}/{seed}.json"
            found = json.loads(path.read_text())["rows"]
            exits = [row for row in found if (row["set"], row["severity"]) == (part, severity)]
            expected = own_accuracy(tested, method, seed, name, severity)
            assert [row["accuracy"] for row in exits[: len(expected)]] == pytest.approx(expected, abs=1e-12)
            assert [row["exit"] for row in exits[len(expected) :]] == (["ensemble"] if method == "byot" else [])


def test_the_table_is_the_mean_over_sets_and_severities_that_count(tested):
    table = pd.read_csv(tested / STUDY / "results/tables/robustness.csv").set_index(["probe", "method"])
    assert list(table.index) == [(name, method) for method in METHODS for name in ("cifar10-c", "cifar10-1")]
    assert HELD_BACK & set(CORRUPTIONS) == {"saturate"}
    for method in METHODS:
        seeds = [
            np.mean(
                [
                    100 * own_accuracy(tested, method, seed, f"cifar10-c/{name}", severity)[-1]
                    for name in ("fog", "snow")
                    for severity in range(1, 6)
                ]
            )
            for seed in (0, 1)
        ]
        row = table.loc["cifar10-c", method]
        assert (row.accuracy, row.half_width) == pytest.approx(mean_interval(seeds), abs=1e-4)
        alone = [100 * own_accuracy(tested, method, seed, "cifar10-1/test", None)[-1] for seed in (0, 1)]
        assert table.loc["cifar10-1", method].accuracy == pytest.approx(np.mean(alone), abs=1e-4)
    assert (table.n == 2).all()
    assert (table.loc[("cifar10-c", "plain"), "control"], table.loc[("cifar10-c", "byot"), "n"]) == (True, 2)
    every = pd.read_csv(tested / STUDY / "results/tables/robustness_all.csv")
    assert set(every.set) == {*CORRUPTIONS, "test", "all"}, "what is kept apart is reported here"
    assert list(every[every.method == "plain"].exit.unique()) == ["4/4"]
    assert list(every[every.method == "byot"].exit.unique()) == ["1/4", "2/4", "3/4", "4/4", "ensemble"]


def test_the_page_shows_a_section_and_a_figure_of_each_data_set(tested):
    page = (tested / STUDY / "results/index.html").read_text()
    assert "Robustness: other images" in page
    for analysis in ("flatness", "gradients", "separability", "ood", "corruptions"):
        assert analyses.about(analysis)["title"] in page
    drawings = [f"robustness-{name}" for name in SETS] + ["flatness-flat", "gradients", "separability"]
    for name in [*drawings, "ood-strangers-softmax", "ood-strangers-energy", "corruptions-made"]:
        assert (tested / STUDY / f"results/figures/{name}.svg").is_file()
        assert f'<figcaption id="figure-{name}">' in page, name


def test_nothing_is_stale_and_another_list_makes_only_its_own_stages_stale(tested, tmp_path):
    """Nor does a stage come out otherwise under DVC, which gives it its own files alone."""
    project = type(tested)(tmp_path / "repo")
    shutil.copytree(tested.folder, project.folder, symlinks=True)

    def stale() -> set[str]:
        found = project.run("dvc", "status", "--json", f"{STUDY}/dvc.yaml").stdout
        return {name.rpartition(":")[2] for name in json.loads(found)}

    assert stale() == set()
    project.params(f"{STUDY}/params.yaml", probes=ONE)
    assert stale() == {"check", "tables", "page"}, "which read the list of probes"
    study = type(tested)(project / STUDY)
    removed = study.run("selfdistill", "prune").stdout
    assert len(removed.splitlines()) == (len(PROBES) - 1) * len(METHODS) * 2
    assert not (study / "results/records/probes/cifar10-c").exists()
    assert (study / "results/records/probes/cifar10-1/resnet10-slim/byot/1.json").is_file()
    study.run("selfdistill", "tables")
    assert set(pd.read_csv(study / "results/tables/robustness.csv").probe) == {"cifar10-1"}
    refused = study.run("selfdistill", "probe", "cifar10-c", ok=False)
    assert "cifar10-c is not in params.yaml; allowed: one of probes (cifar10-1)" in refused.stderr


def test_no_seed_is_tested_twice_from_equal_inputs(tested, tmp_path):
    project = type(tested)(tmp_path / "repo")
    shutil.copytree(tested.folder, project.folder, symlinks=True)
    study = type(tested)(project / STUDY)
    command = ("selfdistill", "probe", "cifar10-1")
    records = study / "results/records/probes/cifar10-1/resnet10-slim/byot"
    before = {path.name: path.read_bytes() for path in records.iterdir()}  # of one method
    assert study.run(*command).stdout.count("finished before, from equal inputs; not evaluated again") == 2 * len(
        METHODS
    )
    assert "finished before" not in study.fresh(*command).stdout
    assert {path.name: path.read_bytes() for path in records.iterdir()} == before
    study.params(selection="validation")
    assert "finished before" not in study.run(*command).stdout


def test_what_was_found_travels_with_the_records(tested, tmp_path):
    """To a clone that has neither runs nor images; and what is older than a probe is replaced by what has it."""
    project = type(tested)(tmp_path / "repo")
    shutil.copytree(tested.folder, project.folder, symlinks=True)
    study = type(tested)(project / STUDY)
    found = [*(study / "results/tables").glob("*")]
    of_probes = [path for path in found if path.stem.removesuffix("_all") in {p["analysis"] for p in PROBES.values()}]
    assert len(of_probes) == 4 * 6 - 1, "three forms of each, and all rows but of separability, which shows them"
    before = {path: path.read_bytes() for path in of_probes}
    study.run("selfdistill", "records", "export", "runs.jsonl.gz")
    entries = [json.loads(line) for line in gzip.decompress((study / "runs.jsonl.gz").read_bytes()).splitlines()]
    for entry in entries:  # as packed before there were probes, and before they told their settings
        del entry["record"]["probes"]["flat"]
        del entry["record"]["probes"]["apart"]["settings"]
    (study / "older.jsonl.gz").write_bytes(gzip.compress(b"".join(json.dumps(e).encode() + b"\n" for e in entries)))
    for made in (study / "results", project / "data/prepared", project / "data/raw"):
        shutil.rmtree(made)
    imports = [["records", "import", name] for name in ("older.jsonl.gz", "runs.jsonl.gz", "older.jsonl.gz")]
    said = study.run_all(*imports, ["tables"]).stdout
    assert [said.count(f"{word}: ") for word in ("imported", "replaced", "kept")] == [6, 6, 6]
    assert "with what the probe flat found, which this file lacks" in said
    assert {path: path.read_bytes() for path in of_probes} == before

    lines = gzip.decompress((study / "runs.jsonl.gz").read_bytes()).splitlines()
    entry = json.loads(lines[0])
    entry["record"]["probes"]["cifar10-1"]["pixels_sha256"]["test"] = "0" * 64
    entry["record"]["probes"]["cifar10-c"]["rows"] *= 2
    entry["record"]["probes"]["flat"]["settings"]["draws"] = 9
    (study / "other.jsonl.gz").write_bytes(gzip.compress(json.dumps(entry).encode()))
    shutil.copytree(tested / "data/prepared", project / "data/prepared")
    refused = study.run("selfdistill", "records", "import", "other.jsonl.gz", ok=False).stderr
    assert "record.probes.cifar10-1.pixels_sha256" in refused
    assert "record.probes.flat.settings: {" in refused
    assert "record.probes.cifar10-c.rows: fog, severity 1: exits 4/4, 4/4 are not allowed; allowed: 4/4" in refused


@pytest.mark.parametrize(
    ("probes", "words"),
    [
        (
            {"c": {"analysis": "robustness", "data": "cifar100-c"}},
            "probes.c.data: 'cifar100-c' does not test networks of",
        ),
        (
            {"c": {"analysis": "robustness", "data": "digits"}},
            "'digits' does not test networks of cifar10; known: cifar10-1, cifar10-c",
        ),
        (
            {"c": {"analysis": "robustness", "data": "cifar10"}},
            "probes.c.data: 'cifar10' is the study's own, which its tables have; known: cifar10-1, cifar10-c",
        ),
        (
            {"c": {"analysis": "robust", "data": "cifar10-c"}},
            "probes.c.analysis: 'robust' is no probe; did you mean 'robus",
        ),
        (
            {"c": {"analysis": "accuracy", "data": "cifar10-c"}},
            "'accuracy' is no probe; known: corruptions, early_latency, flatness",
        ),
        (
            {"c": {"analysis": "flatness", "data": "cifar10-c"}},
            "probes.c.data: 'cifar10-c' is not allowed with flatness; allowed: cifar10, the study's own",
        ),
        (
            {"c": {"analysis": "ood", "data": "cifar10"}},
            "probes.c.data: 'cifar10' is the study's own, of no other classes; did you mean 'cifar100'? known: digits,",
        ),
        (
            {"c": {"analysis": "ood", "data": "cifar10-c"}},
            "probes.c.data: 'cifar10-c' is a test set for networks of cifar10, which stands for its classes; did you",
        ),
        ({"c": {"analysis": "ood", "data": "market1501"}}, "probes.c.data: 'market1501' has persons, not classes;"),
        ({"c": {"analysis": "ood", "data": "cifar"}}, "probes.c.data: 'cifar' is not in the catalogue; did you mean"),
        (
            {"c": {"analysis": "flatness", "data": "cifar10", "settings": {"images": 2}}},
            "probes.c.settings.images: 2 is not allowed; allowed: a whole number from 50 to 1000000",
        ),
        ({"c": "flatness"}, 'probes.c: "flatness" is not allowed; allowed: a mapping with analysis, data, settings'),
        (
            {"c": {"analysis": "flatness", "data": "cifar10", "settings": {"draws": 0}}},
            "probes.c.settings.draws: 0 is not allowed; allowed: a whole number from 1 to 1000",
        ),
        ({"c": {**ONE["cifar10-1"], "settings": {"sets": 3}}}, "probes.c.settings.sets: unknown key; known: none"),
        (["cifar10-c"], 'probes: ["cifar10-c"] is not allowed; allowed: a mapping of keys to values'),
    ],
)
def test_a_probe_that_cannot_be_is_refused(probes, words, tmp_path):
    content = yaml.safe_load((ROOT / STUDY / "params.yaml").read_text()) | {"probes": probes, "root": str(ROOT)}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError) as error:
        read_study(tmp_path / "params.yaml")
    assert words in str(error.value)


def test_a_data_set_that_shares_a_class_is_not_one_of_other_classes():
    entries = read_catalogue(ROOT / "data/params.yaml").datasets
    entries["strokes"] = entries["digits"].model_copy(update={"classes": ["ten", "9"]})
    probes = {"c": {"analysis": "ood", "data": "strokes"}}
    (fault,) = probe_faults(probes, "digits", entries)
    assert fault.startswith("probes.c.data: 'strokes' has classes of digits, such as '9'; ")
    assert list(probe_faults(probes, "cifar10", entries)) == []


def test_persons_have_no_classes_to_probe(tmp_path):
    content = yaml.safe_load((ROOT / "studies/srdl-market1501/params.yaml").read_text()) | {"root": str(ROOT)}
    probes = {name: {"analysis": name, "data": content["dataset"]} for name in ("separability", "flatness")}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content | {"probes": probes}))
    with pytest.raises(ConfigError) as error:
        read_study(tmp_path / "params.yaml")
    assert "probes.separability.analysis: 'separability' is not allowed; market1501 has persons" in str(error.value)
    assert "probes.flatness" not in str(error.value)


def test_a_test_set_of_other_classes_is_refused(tmp_path):
    content = yaml.safe_load((ROOT / "data/params.yaml").read_text())
    content["datasets"]["cifar10-c"]["classes"] = list(reversed(content["datasets"]["cifar10-c"]["classes"]))
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=r"cifar10-c.classes: not those of cifar10; allowed: the same"):
        read_catalogue(tmp_path / "params.yaml")
