"""Runs carried between machines: packed, checked, imported, and rendered with their hardware named."""

import base64
import copy
import gzip
import hashlib
import json
import math
import re
import shutil
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import save

from selfdistill import analyses, methods
from selfdistill.cli import main
from selfdistill.config import Probe
from selfdistill.evaluation.classification import calibration_error
from selfdistill.evaluation.inputs import Classes, Persons, Predictions
from selfdistill.models.trained import WeightsError
from selfdistill.outside import OutsideError
from selfdistill.params import read_study
from selfdistill.pruning import prune
from selfdistill.reporting import per_image
from selfdistill.reporting.figures import draw_figures
from selfdistill.reporting.older import upgraded
from selfdistill.reporting.page import hardware_table, write_page
from selfdistill.reporting.records import NoRecordsError, read_records
from selfdistill.reporting.tables import write_tables
from selfdistill.reporting.transfer import TransferError, export_records, import_records
from selfdistill.stages.evaluate_seeds import evaluate_variant
from selfdistill.summary.figure import looks_of
from selfdistill.summary.grouping import at_exits, headline_of, rows_of
from selfdistill.summary.statistics import mean_interval

ROOT = Path(__file__).parents[1]
MODEL = "resnet10-slim"
IMPORTED = Path("results/records/imported")


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study of three methods and two seeds in a folder of its own, which is the working folder."""
    repository = tmp_path / "repository"
    (repository / "src").mkdir(parents=True)
    (repository / "src/selfdistill").symlink_to(ROOT / "src/selfdistill")
    (repository / "data").mkdir()
    shutil.copy(ROOT / "data/params.yaml", repository / "data")
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content |= {"root": str(repository), "methods": ["plain", "byot"], "students": ["drkd"], "seeds": [0, 1]}
    content["hyper"]["byot"] = {"alpha": 0.1}
    content["recipe"] |= {"epochs": 3, "determinism": "seeded"}
    content["tuning"] |= {"methods": [], "students": []}
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("params.yaml").write_text(yaml.safe_dump(content))
    return read_study()


def entry(*arguments, **recipe) -> dict:
    """A run as a machine would pack it; equal arguments give equal runs."""
    older = older_entry(*arguments, **recipe)
    return {**older, "record": upgraded(older["record"])}


def older_entry(study, method: str, seed: int, accuracy: float = 0.9, hardware: str = "NVIDIA H200", **recipe) -> dict:
    """The same as it was packed before there were analyses."""
    weights = hashlib.sha256(f"{method} {seed} {accuracy} {hardware}".encode()).hexdigest()
    exits = 4 if method == "byot" else 1
    made = methods.load(method)(**study.variant(method).hyper)
    result = {"accuracy": accuracy, "nll": 0.3, "ece": 0.05}
    test = {"exits": [result] * exits} | ({"ensemble": result} if exits > 1 else {})
    record = {
        "model": MODEL,
        "protocol": 2,
        "variant": method,
        "method": method,
        "seed": seed,
        "teacher": study.teacher if method in study.students else None,
        "teacher_model": None,
        "split": {
            "split": "per_seed",
            "training": 100,
            "validation": 400,
            "training_rows_sha256": "6" * 64,
            "validation_rows_sha256": "7" * 64,
        },
        "training_images": 100,
        "validation_images": 400,
        "network": {"name": MODEL, "channels": 1, "classes": 10, "size": [8, 8], "exits": exits > 1},
        "sections": 4,
        "dataset": {
            "name": study.dataset,
            "classes": [str(i) for i in range(10)],
            "channels": 1,
            "size": [8, 8],
            "mean": [0.3],
            "std": [0.2],
            "pixels_sha256": {part: "0" * 64 for part in ("pool", "test")},
        },
        "recipe": {**study.recipe.model_dump(), **recipe},
        "hyper": {name: getattr(made, name) for name in made.about["hyper"]},
        "code_sha256": "1" * 64,
        "weights_sha256": weights,
        "validation_best_sha256": "2" * 64,
        "validation_best_epoch": 2,
        "cost": {
            "parameters": 1000,
            "training_flops": 2_000_000_000 * exits,
            "teacher_training_flops": 0,
            "inference_macs": [1_000_000 * (i + 1) for i in range(exits)],
            "ensemble_macs": 5_000_000,
        },
        "test": {"last": test, "validation": test},
        "history": {
            "epoch": [1, 2, 3],
            "loss": [1.5, 1.0, 0.1 + 0.2],
            "feature": [None, 0.5, 0.25],
            "training_accuracy": [0.5, 0.8, 1.0],
            "validation_accuracy": [0.5, 0.7, accuracy],
        },
    }
    host = {
        "weights_sha256": weights,
        "date": "2026-01-31",
        "seconds": 12.5,
        "peak_memory_mb": 900,
        "peak_memory_of": "run",
        "peak_device_memory_mb": 1234,
        "threads": 1,
        "processes": 1,
        "hardware": hardware,
        "system": "Linux",
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
    }
    return {"record": record, "host": host}


def put(study, content: dict) -> None:
    """Leave a run as `train` and `evaluate` would in this checkout."""
    cell = [content["record"][key] for key in ("model", "variant", "seed")]
    for path, part in ((study.record_file(*cell), "record"), (study.host_file(*cell), "host")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content[part]))


def pack(path: str, *entries: dict | str) -> Path:
    lines = [e if isinstance(e, str) else json.dumps(e) for e in entries]
    Path(path).write_bytes(gzip.compress("\n".join(lines).encode()))
    return Path(path)


def states(outcomes) -> list[str]:
    return [outcome.state for outcome in outcomes]


def render(study) -> str:
    """Tables, figures and page; returns the page."""
    write_tables(study)
    draw_figures(study.results)
    write_page(study, Path("params.yaml"))
    return (study.results / "index.html").read_text()


def test_what_was_exported_there_is_read_here_to_the_last_digit(study, tmp_path):
    for method in study.all_variants:
        for seed in study.seeds:
            put(study, entry(study, method, seed, precision="bfloat16", device="cuda"))
    assert export_records(study, tmp_path / "runs.jsonl.gz") == 6
    export_records(study, tmp_path / "again.jsonl.gz")
    assert (tmp_path / "runs.jsonl.gz").read_bytes() == (tmp_path / "again.jsonl.gz").read_bytes()
    there = read_records(study)
    for kind in ("records", "hosts"):
        shutil.rmtree(study.results / kind)
    assert states(import_records(study, [tmp_path / "runs.jsonl.gz"])) == ["imported"] * 6
    here = read_records(study)
    assert all(record.pop("imported") for record in here)
    assert not any(record.pop("imported") for record in there)
    assert here == there
    before = {path: path.read_bytes() for path in IMPORTED.rglob("*.json")}
    assert states(import_records(study, [tmp_path / "runs.jsonl.gz"])) == ["kept"] * 6
    assert states(import_records(study, [tmp_path / "runs.jsonl.gz"], replace=True)) == ["replaced"] * 6
    assert {path: path.read_bytes() for path in IMPORTED.rglob("*.json")} == before


def test_a_part_of_a_study_is_rendered_without_any_training(study):
    one_seed = [entry(study, m, 0, a, precision="bfloat16") for m, a in (("plain", 0.9), ("byot", 0.95), ("drkd", 0.8))]
    import_records(study, [pack("runs.jsonl.gz", *one_seed)])
    left = [Path("results/tables/removed.csv"), Path("results/tables/removed.tex"), Path("results/figures/removed.svg")]
    kept = [Path("results/tables/notes.txt"), Path("results/figures/mine/one.svg")]
    for path in left + kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    page = render(study)
    assert [path.exists() for path in left + kept] == [False] * 3 + [True] * 2  # of an analysis that is no more
    assert "3 of the study's cells have not run yet" in page
    assert "1 seed a contrast" in page
    assert page.count(">NVIDIA H200, bfloat16 (1 seed)<") == 6  # each row of the accuracy table and of Hardware
    assert "different hardware" not in page
    assert "12.5" in page
    assert "1,234" in page
    accuracy = pd.read_csv("results/tables/accuracy.csv").set_index("variant")
    assert accuracy.loc["byot", "accuracy"] == 95
    assert accuracy.hardware.tolist() == ["NVIDIA H200, bfloat16 (1 seed)"] * 3
    for kind in ("md", "tex"):
        assert Path(f"results/tables/accuracy.{kind}").read_text().count("NVIDIA H200, bfloat16") == 3


def test_a_part_without_the_control_is_rendered_too(study):
    import_records(study, [pack("runs.jsonl.gz", entry(study, "byot", 1))])
    assert "The control has not run yet" in render(study)
    assert "nan" not in Path("results/tables/cost.md").read_text()


def test_a_run_of_this_checkout_is_shown_before_an_imported_one_and_a_mixed_row_says_so(study, capsys):
    put(study, entry(study, "plain", 0, 0.8, "AMD EPYC"))
    packed = pack("runs.jsonl.gz", *(entry(study, m, s, 0.9) for m in ("plain", "byot") for s in (0, 1)))
    outcomes = import_records(study, [packed])
    assert "the run of this checkout is shown" in outcomes[0].text
    assert "shown" not in outcomes[1].text
    assert [(r["variant"], r["seed"], r["imported"]) for r in read_records(study)] == [
        ("plain", 0, False),
        ("plain", 1, True),
        ("byot", 0, True),
        ("byot", 1, True),
    ]
    page = render(study)
    assert "mixed: AMD EPYC, float32 (1 seed); NVIDIA H200, float32 (1 seed)" in page
    assert "different hardware or in different precision" in page
    table = Path("results/tables/accuracy.md").read_text()
    assert "mixed: NVIDIA H200, float32 (1 seed); local (1 seed)" in table
    assert "AMD" not in table  # the machine of a local run is no input of the tables
    assert "| NVIDIA H200, float32 (2 seeds)" in table
    assert main(["records", "list"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[1] for line in lines] == ["local", "imported", "imported", "imported", "missing", "missing"]
    assert lines[0][2:4] == ["AMD EPYC, float32", "12.5 s"]


def test_tables_of_local_runs_alone_do_not_speak_of_hardware(study):
    for method in ("plain", "byot"):
        put(study, entry(study, method, 0))
    render(study)
    for path in study.results.glob("tables/*"):
        assert "H200" not in path.read_text()
        assert "ardware" not in path.read_text()


def changed(content: dict, key: str, value) -> dict:
    """An entry with one value changed, or taken out if the value is Ellipsis; keys with dots."""
    content = copy.deepcopy(content)
    *parents, last = key.split(".")
    block = content
    for part in parents:
        block = block[int(part) if isinstance(block, list) else part]
    if value is ...:
        del block[int(last) if isinstance(block, list) else last]
    else:
        block[last] = value
    return content


ROWS = "record.measures.accuracy.rows"
FAULTS = {
    "record.model": ("resnet18", 'record.model: "resnet18" is not allowed; allowed: resnet10-slim'),
    "record.variant": ("srdl", 'record.variant: "srdl" is not allowed; allowed: plain, byot, drkd'),
    "record.method": ("plain", 'record.method: "plain" is not allowed; allowed: the study\'s "byot"'),
    "record.protocol": (1, "record.protocol: 1 is not allowed; allowed: 2; train it again"),
    "record.foreign": (float("nan"), "NaN or Infinity in a key that is not known here is not allowed"),
    "record.training_images": (50, "record.training_images: 50 is not allowed; allowed: the study's 100"),
    "record.split.split": ("fixed", 'record.split.split: "fixed" is not allowed; allowed: the study\'s "per_seed"'),
    "record.seed": (7, "record.seed: 7 is not allowed; allowed: 0, 1"),
    "record.teacher": ("plain", 'record.teacher: "plain" is not allowed; allowed: the study\'s null'),
    "record.network.name": ("other", 'record.network.name: "other" is not allowed; allowed: "resnet10-slim"'),
    "record.dataset.name": ("cifar10", 'record.dataset.name: "cifar10" is not allowed; allowed: the study\'s "digits"'),
    "record.recipe.epochs": (4, "record.recipe.epochs: 4 is not allowed; allowed: the study's 3"),
    "record.recipe.momentum": (..., "record.recipe.momentum: missing; the study has 0.9"),
    "record.recipe.colour": (1, "record.recipe.colour: 1 is not allowed; allowed: not in this study"),
    "record.hyper.alpha": (0.5, "record.hyper.alpha: 0.5 is not allowed; allowed: the study's 0.1"),
    "record.weights_sha256": ("F" * 64, "is not allowed; allowed: text of the form ^[0-9a-f]{64}$"),
    f"{ROWS}.last.0.accuracy": (1.5, "record.measures.accuracy.rows.last[0].accuracy: 1.5 is not allowed"),
    f"{ROWS}.last.1.nll": (float("nan"), "record.measures.accuracy.rows.last[1].nll: NaN is not allowed"),
    f"{ROWS}.last.1.ece": (float("inf"), "record.measures.accuracy.rows.last[1].ece: Infinity is not allowed"),
    f"{ROWS}.last.2.nll": ("high", 'record.measures.accuracy.rows.last[2].nll: "high" is not allowed'),
    f"{ROWS}.last.2.exit": (..., "record.measures.accuracy.rows.last[2].exit: missing"),
    f"{ROWS}.validation.4": (..., "rows.validation: exits 1/4, 2/4, 3/4, 4/4 are not allowed; allowed: 1/4, 2/4, 3/4"),
    f"{ROWS}.validation": (..., "record.measures.accuracy.rows.validation: missing"),
    "record.measures.accuracy": (..., "record.measures: 0 of accuracy, retrieval; allowed: one of them"),
    "record.measures.members": (
        {"key": "0" * 64, "rows": {"last": [{"member": "peer", "accuracy": 0.5}]}},
        "record.measures.members.rows.last: members peer are not allowed; allowed: the network, all together",
    ),
    "record.probes": ({"other": {"analysis": "robustness"}}, "record.probes.other.rows: missing"),
    "record.cost.inference_macs": ([1], "rows.last: exits 1/4, 2/4, 3/4, 4/4, ensemble are not allowed; allowed: 4/4"),
    "record.history.epoch": ([1, 2, 4], "record.history.epoch: [1, 2, 4] is not allowed; allowed: 1 to 3"),
    "record.history.loss": ([1.0], "record.history.loss: 1 entries are not allowed; allowed: 3, one an epoch"),
    "record.history.feature": ([1.0, float("-inf"), 1.0], "record.history.feature[1]: -Infinity is not allowed"),
    "record.validation_best_epoch": (9, "record.validation_best_epoch: 9 is not allowed; allowed: 1 to 3"),
    "host.weights_sha256": ("3" * 64, "is not allowed; allowed: the record's"),
    "host.hardware": (..., "host.hardware: missing"),
    "host.seconds": (-1.0, "host.seconds: -1.0 is not allowed; allowed: greater than or equal to 0"),
    "host.peak_memory_of": ("block", 'host.peak_memory_of: "block" is not allowed; allowed: '),
    "host": (..., "host: missing"),
    "record": ([], "record: [] is not allowed"),
}


@pytest.mark.parametrize("key", FAULTS)
def test_a_faulty_entry_is_refused_in_a_line_and_nothing_of_its_file_is_imported(study, key):
    value, said = FAULTS[key]
    good, bad = entry(study, "plain", 0), changed(entry(study, "byot", 1), key, value)
    outcomes = import_records(study, [pack("runs.jsonl.gz", good, bad, good)])
    assert states(outcomes) == ["refused"] * len(outcomes)
    assert all(outcome.text.startswith("runs.jsonl.gz, line 2") for outcome in outcomes)
    assert any(said in outcome.text for outcome in outcomes), outcomes
    if key not in ("record", "record.model", "record.variant", "record.seed"):
        assert all(f"line 2, {MODEL}/byot/1: " in outcome.text for outcome in outcomes)
    assert not IMPORTED.exists()


def test_a_pack_of_before_there_were_analyses_is_read_as_one_of_today(study):
    older = [older_entry(study, method, seed) for method in ("plain", "byot") for seed in study.seeds]
    result = {"accuracy": 0.8, "nll": 0.6, "ece": 0.02}
    members = {"peer": {**result, "accuracy": 0.7}, "together": result}
    older[0]["record"]["test"]["last"]["members"] = members
    older[0]["record"]["members"] = {"peer": "0" * 64}
    tested = {"set": "snow", "severity": 1, "exits": [result]}, {"set": "saturate", "severity": 1, "exits": [result]}
    older[0]["record"]["robustness"] = {"other": {"selection": "last", "pixels_sha256": {}, "tests": list(tested)}}
    assert states(import_records(study, [pack("older.jsonl.gz", *older)])) == ["imported"] * 4
    first, second, *_ = read_records(study)
    assert "test" not in first
    assert rows_of(first, "members", "last") == [
        {"member": "peer", "accuracy": 0.7},
        {"member": "the network", "accuracy": 0.9},
        {"member": "all together", "accuracy": 0.8},
    ]
    every = {"probe": "other", "set": "all", "severity": None, "exit": "4/4", **result}
    assert rows_of(first, "robustness", "last")[-1] == every
    assert second["measures"] == entry(study, "plain", 1)["record"]["measures"]
    render(study)
    for name in ("accuracy", "cost", "exits", "members", "robustness"):
        assert Path(f"results/tables/{name}.csv").is_file()
    worse = changed(older[0], "record.test.last.exits.0.accuracy", 1.5)
    said = [outcome.text for outcome in import_records(study, [pack("worse.jsonl.gz", worse)])]
    assert any("record.test.last.exits[0].accuracy: 1.5 is not allowed; allowed: less" in text for text in said), said
    for key, value in (("exits", [result] * 3), ("exits", []), ("members", {**members, "average": result})):
        other = changed(older[0], f"record.test.last.{key}", value)
        outcomes = import_records(study, [pack("worse.jsonl.gz", other)])
        assert set(states(outcomes)) == {"refused"}, key


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("measures.accuracy", None),
        ("measures.accuracy", ...),
        ("measures.accuracy.rows", {}),
        ("measures.accuracy.rows.last", []),
        ("measures.accuracy.rows.last.0.accuracy", None),
        ("measures.accuracy.rows.last.0.accuracy", ...),
        ("measures.exits.rows.last.0.exit", "5/4"),
        ("measures", ...),
        ("history.\n", None),
    ],
)
def test_a_record_that_lacks_what_tables_need_is_refused_in_a_line(study, key, value):
    put(study, changed(entry(study, "byot", 0), f"record.{key}", value))
    with pytest.raises(
        OutsideError, match=rf"byot/0.json: not what was written there \({key.split('.')[0]}"
    ) as refused:
        read_records(study)
    assert len(str(refused.value).splitlines()) == 1


def test_a_number_that_an_analysis_could_not_give_leaves_an_empty_cell(study):
    for number in ("million_macs", "training_gflops", "total_gflops", "parameters"):
        put(study, changed(entry(study, "plain", 0), f"record.measures.cost.rows.last.0.{number}", None))
        render(study)


def test_an_analysis_that_is_not_known_here_is_kept(study):
    newer = entry(study, "plain", 0)
    newer["record"]["measures"]["tomorrow"] = {"any": "thing"}
    assert states(import_records(study, [pack("newer.jsonl.gz", newer)])) == ["imported"]
    assert read_records(study)[0]["measures"]["tomorrow"] == {"any": "thing"}
    assert "tomorrow" not in render(study)


def test_a_method_that_trains_for_longer_than_the_recipe_says_is_held_to_its_own_epochs(study):
    longer = study.model_copy(
        update={"methods": [*study.methods, "plain_equal_cost"], "hyper": {**study.hyper, "plain_equal_cost": {}}}
    )
    right = changed(entry(longer, "plain_equal_cost", 0), "record.hyper", {"factor": 2.333})
    for key in right["record"]["history"]:
        right["record"]["history"][key] = list(range(1, 8)) if key == "epoch" else [0.5] * 7
    short = changed(right, "record.history.epoch", [1, 2, 3])
    assert "allowed: 1 to 7" in import_records(longer, [pack("short.jsonl.gz", short)])[0].text
    assert states(import_records(longer, [pack("right.jsonl.gz", right)])) == ["imported"]


def test_what_says_where_and_how_it_was_computed_may_differ_and_is_kept(study):
    free = {
        "device": "cuda",
        "threads": 8,
        "determinism": "off",
        "precision": "bfloat16",
        "channels_last": False,
        "compile": True,
        "cuda_graphs": True,
        "processes": 4,
        "workers": 2,
    }
    assert states(import_records(study, [pack("runs.jsonl.gz", entry(study, "plain", 0, **free))])) == ["imported"]
    assert read_records(study)[0]["recipe"] == {**study.recipe.model_dump(), **free}


def test_other_pixels_than_those_prepared_here_are_refused(study):
    folder = study.data_folder / "training"
    folder.mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps({"pixels_sha256": {"pool": "4" * 64}}))
    (outcome,) = import_records(study, [pack("runs.jsonl.gz", entry(study, "plain", 0))])
    assert "record.dataset.pixels_sha256.pool:" in outcome.text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"plain text", "cannot be read (Not a gzipped file"),
        (gzip.compress(b"x" * 1000)[:20], "cut off or damaged"),
        (gzip.compress(b""), "holds no entry"),
        (gzip.compress(b'{"record": '), 'line 1: "{\\"record\\": " is not allowed; allowed: a JSON object'),
        (gzip.compress(b"[1]"), 'line 1: "[1]" is not allowed; allowed: a JSON object'),
        (None, "cannot be read (No such file or directory)"),
    ],
    ids=["not gzip", "cut off", "empty", "not JSON", "no object", "not there"],
)
def test_a_file_that_is_none_is_refused_and_the_next_imported(study, content, said, capsys):
    if content is not None:
        Path("bad.jsonl.gz").write_bytes(content)
    pack("good.jsonl.gz", entry(study, "plain", 0))
    assert main(["records", "import", "bad.jsonl.gz", "good.jsonl.gz"]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("refused: bad.jsonl.gz")
    assert said in printed.err
    assert len(printed.err.splitlines()) == 1
    assert printed.out == f"imported: {MODEL}/plain/0 from good.jsonl.gz; it carries nothing per image\n"


def test_another_run_of_a_cell_is_not_overwritten_unless_asked(study):
    first, second = entry(study, "plain", 0, 0.9), entry(study, "plain", 0, 0.7)
    (twice,) = import_records(study, [pack("twice.jsonl.gz", first, second)])
    assert "line 2" in twice.text
    assert "second run of this cell in this file" in twice.text
    import_records(study, [pack("first.jsonl.gz", first)])
    other = pack("second.jsonl.gz", entry(study, "plain", 1), second)
    (refused,) = import_records(study, [other])
    assert "another run than the imported one" in refused.text
    assert "--replace" in refused.text
    assert len(read_records(study)) == 1
    assert states(import_records(study, [other], replace=True)) == ["imported", "replaced"]
    assert read_records(study)[0]["weights_sha256"] == second["record"]["weights_sha256"]


def test_an_imported_run_that_no_longer_fits_is_left_out_and_told(study, capsys):
    import_records(study, [pack("runs.jsonl.gz", entry(study, "plain", 0), entry(study, "byot", 0))])
    content = yaml.safe_load(Path("params.yaml").read_text())
    content["hyper"]["byot"] = {"alpha": 0.4}
    Path("params.yaml").write_text(yaml.safe_dump(content))
    assert [r["variant"] for r in read_records(read_study())] == ["plain"]
    said = "hyper.alpha: 0.1 is not allowed; allowed: the study's 0.4"
    assert said in capsys.readouterr().err
    assert main(["records", "list", "--json"]) == 0
    rows = {(r["variant"], r["seed"]): r for r in json.loads(capsys.readouterr().out)}
    assert rows["byot", 0]["state"] == "left out"
    assert rows["byot", 0]["misfit"] == said
    assert rows["drkd", 0]["state"] == "missing"


def test_a_key_newer_than_a_run_has_its_default(study):
    old = entry(study, "plain", 0)
    for key in ("cutout", "precision", "compile"):
        old["record"]["recipe"].pop(key, None)
    assert states(import_records(study, [pack("runs.jsonl.gz", old)])) == ["imported"]


def test_other_images_tested_by_another_protocol_are_not_shown(study):
    declared = {"analysis": "robustness", "data": "cifar10-1"}
    study = study.model_copy(update={"probes": {"other": Probe(**declared)}})
    put(study, entry(study, "plain", 0))
    weights = entry(study, "plain", 0)["record"]["weights_sha256"]
    path = study.probe_file("other", MODEL, "plain", 0)
    path.parent.mkdir(parents=True)
    probed = {"weights_sha256": weights, "selection": "last", "pixels_sha256": {}, "rows": [], **declared}
    for change, shown in (({"protocol": 2}, True), ({"protocol": 1}, False), ({"data": "cifar10-c"}, False)):
        path.write_text(json.dumps({"protocol": 2, **probed, **change}))
        assert ("probes" in read_records(study)[0]) == shown


def test_two_variants_of_a_method_have_their_own_rows_colours_metrics_and_words(study):
    content = yaml.safe_load(Path("params.yaml").read_text())
    content["methods"].append("byot_short")
    content["variants"] = {
        "byot_short": {"method": "byot", "title": "BYOT, short", "hyper": {"alpha": 0.4}, "recipe": {"epochs": 2}}
    }
    Path("params.yaml").write_text(yaml.safe_dump(content))
    both = read_study()
    for seed in both.seeds:
        for variant, accuracy in (("plain", 0.9), ("byot", 0.92), ("byot_short", 0.8)):
            run = entry(study, variant.removesuffix("_short"), seed, accuracy + 0.01 * seed)
            put(both, changed(run, "record.variant", variant))
    page = render(both)
    table = pd.read_csv("results/tables/accuracy.csv")
    assert table.variant.tolist() == ["plain", "byot", "byot_short"]
    assert table.method.tolist() == ["plain", "byot", "byot"]
    assert table.title.tolist() == ["Plain", "BYOT", "BYOT, short"]
    metrics = json.loads(Path("results/metrics.json").read_text())
    assert metrics == {"plain": 90.5, "byot": 92.5, "byot_short": 80.5, "training_gflops": 36.0}
    looks = looks_of(table)
    assert len(set(looks.values())) == 3
    assert looks["byot_short"].colour == looks["byot"].colour  # a variant looks like its method, but hollow
    assert "byot, with hyper.alpha: 0.4, recipe.epochs: 2" in page
    assert page.count("src/selfdistill/methods/byot.md") == 1
    assert "one recipe but where a variant says otherwise" in page


def test_the_page_says_what_peak_memory_is_of(study):
    put(study, entry(study, "plain", 0))
    put(study, changed(entry(study, "plain", 1), "host.peak_memory_of", ...))  # an older file
    put(study, changed(entry(study, "byot", 0), "host.peak_memory_of", "run"))
    rows = {
        row["Method"]: row["Peak memory of"] for _, row in hardware_table(read_records(study), study.control).iterrows()
    }
    assert rows == {"Plain": "process or run", "BYOT": "run"}
    assert "Peak memory of" in render(study)


def test_the_page_says_what_operations_and_seconds_are_of_the_controls(study):
    """Over seeds that both ran on equal hardware; the geometric mean of 3.2 and 5 is 4."""
    for seed, seconds in ((0, 3.2), (1, 5.0), (2, 100.0)):
        put(study, changed(changed(entry(study, "plain", 0), "record.seed", seed), "host.seconds", 1.0))
        run = changed(changed(entry(study, "byot", 0), "record.seed", seed), "host.seconds", seconds)
        put(study, changed(run, "host.hardware", "another") if seed == 2 else run)
    plain, byot = (row for _, row in hardware_table(read_records(study), study.control).iterrows())
    assert plain["Seconds, times the control's"] == plain["Operations, times the control's"] == "1.00"
    assert byot["Operations, times the control's"] == "4.00"
    half = 12.706205 * math.log(5 / 3.2) / 2  # t of one degree of freedom, and the standard error of two logarithms
    assert byot["Seconds, times the control's"] == f"4.00 ({4 / math.exp(half):.2f} to {4 * math.exp(half):.2f})"


def test_pruning_removes_blocks_and_seeds_that_the_study_lists_no_more(study):
    def left(kind: str) -> list[str]:
        return sorted(p.name for p in (study.results / kind / MODEL / "plain").glob("*"))

    def records() -> list[str]:
        return sorted(p.name for p in study.record_file(MODEL, "plain", 0).parent.glob("*"))

    for seed in (0, 1, 2):
        put(study, {**changed(entry(study, "plain", 0), "record.seed", seed)})
    for block in ("0-1/0", "0-1/1", "0", "2", "3-4/3"):
        (study.results / "runs" / MODEL / "plain" / block).mkdir(parents=True)
    plan = study.results / "plan/training" / MODEL / "srdl.json"
    plan.parent.mkdir(parents=True)
    plan.write_text("{}")
    written = study.results / "runs" / MODEL / "plain" / ".4711.partial"  # by a job whose engine was killed
    written.touch()
    blocks = study.model_copy(update={"blocks": ["0-1"]})
    assert {p.name for p in prune(blocks, study.results)} == {"0", "2", "3-4", "2.json"}
    assert left("runs") == [written.name, "0-1"]
    assert records() == ["0.json", "1.json"]
    assert left("hosts") == ["0.json", "1.json", "2.json"]  # a seed that comes back from DVC's cache has its own again
    assert plan.is_file()


def test_pruning_leaves_imported_runs_alone(study):
    import_records(study, [pack("runs.jsonl.gz", entry(study, "plain", 0), entry(study, "byot", 0))])
    put(study, entry(study, "byot", 0))
    content = yaml.safe_load(Path("params.yaml").read_text())
    content["methods"].remove("byot")
    Path("params.yaml").write_text(yaml.safe_dump(content))
    assert study.record_file(MODEL, "byot", 0) in prune(read_study(), study.results)
    assert (IMPORTED / MODEL / "byot" / "0.json").is_file()
    assert [r["variant"] for r in read_records(read_study())] == ["plain"]


def test_a_run_whose_machine_is_not_known_is_not_packed(study):
    with pytest.raises(TransferError, match="no record of any cell"):
        export_records(study, Path("runs.jsonl.gz"))
    put(study, entry(study, "plain", 0))
    study.host_file(MODEL, "plain", 0).write_text(json.dumps({"weights_sha256": "5" * 64}))
    with pytest.raises(TransferError, match="says what machine made this run"):
        export_records(study, Path("runs.jsonl.gz"))
    assert not Path("runs.jsonl.gz").exists()


def test_without_any_record_the_tables_say_so(study):
    with pytest.raises(NoRecordsError):
        write_tables(study)


# ---- what a run says of each image ----

TRUTH = ("labels", "identities", "cameras", "queries")


def scored(content: dict, truth: Classes | Persons, outputs: torch.Tensor) -> tuple[dict, bytes]:
    """A run that these outputs are of, exits x N x K or D, for the last epoch, and the reverse exits for validation's;
    and its predictions, as `evaluate` writes them."""
    both = {"last": outputs, "validation": outputs.flip(0).contiguous()}
    told = {name: torch.as_tensor(value) for name, value in vars(truth).items() if name in TRUTH}
    predictions, run, headline = save({**both, **told}), content["record"], "accuracy"
    if isinstance(truth, Persons):
        headline = "retrieval"
    inputs = {name: Predictions(run, values, truth, (values, values), {}) for name, values in both.items()}
    rows = {name: analyses.function(headline)(given) for name, given in inputs.items()}
    content = changed(content, "record.measures", {headline: {"key": "0" * 64, "rows": rows}})
    sha256 = hashlib.sha256(predictions).hexdigest()
    return changed(content, "record.evaluation", {"files": {"predictions.safetensors": sha256}}), predictions


def put_tested(study, method: str, seed: int, images: int = 90) -> dict:
    """Leave a run of classes with its predictions, right of about a half of the images."""
    chance = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (images,), generator=chance)
    logits = 3 * torch.randn(4 if method == "byot" else 1, images, 10, generator=chance)
    logits[:, range(images), labels] += 3
    content, predictions = scored(entry(study, method, seed), Classes(labels), logits)
    put(study, content)
    path = per_image.file_of(study, (MODEL, method, seed))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(predictions)
    return content


def carried(study, folder: Path) -> dict:
    """The one run of this checkout, as it is packed."""
    export_records(study, folder / "one.jsonl.gz")
    return json.loads(gzip.decompress((folder / "one.jsonl.gz").read_bytes()))


def moved(study, pack: Path) -> None:
    """Make this checkout one that has the runs of a packed file and nothing else of them."""
    for kind in ("records", "hosts", "predictions"):
        shutil.rmtree(study.results / kind)
    assert set(states(import_records(study, [pack]))) == {"imported"}


def exits_of(record: dict, selection: str) -> list[dict]:
    """What a record says of each exit."""
    return [row for row in rows_of(record, headline_of(record), selection) if row["exit"] != "ensemble"]


def intervals_and_calibration(study) -> dict[tuple, tuple]:
    """Of each run, selection and exit: accuracy and NLL with their intervals over test images, and ECE."""
    found = {}
    for record in read_records(study):
        for selection, columns in per_image.read(study, record).items():
            exits = exits_of(record, selection)
            assert len(exits) == len(columns["correct"])
            for number, metrics in enumerate(exits):
                correct, nll, confidence = (
                    columns[name][number].astype(np.float64) for name in ("correct", "nll", "confidence")
                )
                ece = calibration_error(torch.from_numpy(confidence), torch.from_numpy(correct))
                numbers = (*mean_interval(correct), *mean_interval(nll), ece)
                assert numbers[0] == pytest.approx(metrics["accuracy"], abs=1e-12)
                assert numbers[2] == pytest.approx(metrics["nll"], rel=1e-3)
                assert numbers[4] == pytest.approx(metrics["ece"], abs=0.02)  # an image may cross the edge of a bin
                found[record["variant"], record["seed"], selection, number] = numbers
    return found


def test_intervals_and_calibration_are_the_same_where_a_run_was_made_and_where_it_was_imported(study, tmp_path):
    for method in ("plain", "byot"):
        for seed in study.seeds:
            put_tested(study, method, seed)
    there = intervals_and_calibration(study)
    assert len(there) == 2 * 2 * (1 + 4)
    assert len(set(there.values())) == 2 * (1 + 4)  # validation's are those of the last epoch, in another order
    export_records(study, tmp_path / "runs.jsonl.gz")
    export_records(study, tmp_path / "again.jsonl.gz")
    assert (tmp_path / "runs.jsonl.gz").read_bytes() == (tmp_path / "again.jsonl.gz").read_bytes()
    moved(study, tmp_path / "runs.jsonl.gz")
    assert intervals_and_calibration(study) == there


def test_they_are_the_same_of_networks_that_were_trained(tiny_study, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_study.folder)
    there = intervals_and_calibration(read_study())
    assert main(["records", "export", str(tmp_path / "runs.jsonl.gz")]) == 0
    content = yaml.safe_load(Path("params.yaml").read_text())
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("params.yaml").write_text(yaml.safe_dump(content | {"root": str(tiny_study.folder)}))
    assert main(["records", "import", str(tmp_path / "runs.jsonl.gz")]) == 0
    assert intervals_and_calibration(read_study()) == there
    assert len(there) == 2 * 2 * (1 + 4 + len(exits_of(read_records(read_study())[-1], "last")))


def test_of_all_exits_together_the_same_is_known_where_a_run_was_imported(study, tmp_path):
    for method in ("plain", "byot"):
        put_tested(study, method, 0)

    def right() -> dict[str, np.ndarray]:
        return {record["variant"]: per_image.right(study, record, "last") for record in read_records(study)}

    there = right()
    assert {name: values.shape for name, values in there.items()} == {"plain": (1, 90), "byot": (5, 90)}
    byot = next(record for record in read_records(study) if record["variant"] == "byot")
    assert there["byot"].mean(axis=1) == pytest.approx(at_exits(byot, "last"), abs=1e-12)
    export_records(study, tmp_path / "runs.jsonl.gz")
    moved(study, tmp_path / "runs.jsonl.gz")
    for name, values in right().items():
        np.testing.assert_array_equal(values, there[name])


def test_a_pack_of_before_there_were_ensembles_of_exits_in_it_is_imported(study, tmp_path):
    put_tested(study, "byot", 0)
    content = carried(study, tmp_path)
    for columns in content["images"].values():
        del columns["ensemble_correct"]
    shutil.rmtree(study.results / "records")
    assert states(import_records(study, [pack("old.jsonl.gz", content)])) == ["imported"]
    (record,) = read_records(study)
    assert per_image.right(study, record, "last").shape == (4, 90)


def test_of_persons_ranks_and_average_precision_are_carried(study, tmp_path):
    chance = torch.Generator().manual_seed(0)
    identities = torch.tensor([1, 2, 3, 9, 1, 1, 2, 2, 3, 3, 0, 0])  # nobody in the gallery is 9
    cameras = torch.tensor([1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3])
    truth = Persons(identities, cameras, 4)
    features = torch.randn(4, 12, 16, generator=chance).half()
    persons = changed(entry(study, "byot", 0), "record.dataset.pixels_sha256", {"pool": "0" * 64, "gallery": "1" * 64})
    content, predictions = scored(persons, truth, features)
    put(study, content)
    path = per_image.file_of(study, (MODEL, "byot", 0))
    path.parent.mkdir(parents=True)
    path.write_bytes(predictions)
    (record,) = read_records(study)
    there = per_image.read(study, record)
    assert per_image.right(study, record, "last").mean(axis=1) == pytest.approx(at_exits(record, "last"))
    for selection, columns in there.items():
        ranks, precision = columns["first_rank"], columns["average_precision"].astype(np.float64)
        assert (ranks[:, 3] == 0).all()
        for number, metrics in enumerate(exits_of(record, selection)):
            assert (ranks[number, :3] == 1).mean() == pytest.approx(metrics["rank1"])
            assert precision[number, :3].mean() == pytest.approx(metrics["mean_average_precision"], abs=1e-3)
    export_records(study, tmp_path / "runs.jsonl.gz")
    moved(study, tmp_path / "runs.jsonl.gz")
    here = per_image.read(study, read_records(study)[0])
    for selection in ("last", "validation"):
        for name, values in there[selection].items():
            np.testing.assert_array_equal(here[selection][name], values)
            assert here[selection][name].dtype == values.dtype


def test_what_float16_cannot_hold_is_the_largest_that_it_can():
    logits = torch.tensor([[1e6, 0.0], [0.0, 1e6]])
    found = per_image.scores_of_classes(logits, {"labels": torch.tensor([1, 1])})
    assert found["nll"].tolist() == [65504, 0]
    assert found["confidence"].tolist() == [1, 1]
    assert found["correct"].tolist() == [False, True]


def column(values: np.ndarray) -> dict:
    return per_image.encoded_array(values)


def as_data(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content, 9)).decode()


NLL, ONES = np.ones((4, 90), np.float16), np.ones((4, 90), bool)
WRONG = {
    "no selection": ("images.validation", ..., "images.validation: missing"),
    "no column": ("images.last.nll", ..., "images.last.nll: missing; there are to be correct, nll, confidence"),
    "no text": ("images.last.nll.data", 7, "images.last.nll.data: 7 is not allowed"),
    "no base64": ("images.last.nll.data", "ä" * 8, "images.last.nll.data: not allowed; allowed: base64 of zlib of 720"),
    "no zlib": ("images.last.nll.data", "AAAA", "images.last.nll.data: not allowed; allowed: base64 of zlib of 720"),
    "short": ("images.last.nll.data", as_data(bytes(719)), "images.last.nll.data: not allowed"),
    "long": ("images.last.nll.data", as_data(bytes(721)), "images.last.nll.data: not allowed"),
    "cut off": ("images.last.nll.data", column(NLL)["data"][:-8], "images.last.nll.data: not allowed"),
    "a bomb": ("images.last.nll.data", as_data(bytes(100_000_000)), "images.last.nll.data: not allowed"),
    "other numbers": ("images.last.nll", column(NLL.astype(np.float64)), "images.last.nll.dtype: float64 is not"),
    "other images": ("images.last.nll", column(NLL[:, 1:]), "images.last.nll.shape: [4, 89] is not allowed"),
    "no exits": ("images.last.correct.shape", [90], "images.last.correct.shape: [90] is not allowed"),
    "no images": ("images.last.correct.shape", [4, 0], "images.last.correct.shape[1]: 0 is not allowed"),
    "huge": ("images.last.correct.shape", [4, 10**30], "images.last.correct.shape[1]: 1000000"),
    "NaN": ("images.last.nll", column(NLL * np.nan), "images.last.nll: 360 values are not allowed"),
    "negative": ("images.last.nll", column(-NLL), "allowed: numbers from 0 to 65504"),
    "above 1": ("images.last.confidence", column(2 * NLL), "images.last.confidence: 360 values are not allowed"),
    "several ensembles": (
        "images.last.ensemble_correct",
        column(ONES),
        "images.last.ensemble_correct.shape: [4, 90] is not allowed; allowed: [1, 90]",
    ),
    "another run's ensemble": (
        "images.last.ensemble_correct",
        column(ONES[:1]),
        "images.last.ensemble_correct[0]: a share of 1 is not allowed; allowed: the record's accuracy",
    ),
    "another run's": (
        "images.last.correct",
        column(ONES),
        "a share of 1 is not allowed; allowed: the record's accuracy",
    ),
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_no_run_can_say_of_its_images_is_refused_in_a_line(study, tmp_path, fault):
    key, value, said = WRONG[fault]
    put_tested(study, "byot", 0)
    good = carried(study, tmp_path)
    outcomes = import_records(study, [pack("runs.jsonl.gz", changed(good, key, value))])
    assert outcomes[0].state == "refused"
    assert all(o.text.startswith(f"runs.jsonl.gz, line 1, {MODEL}/byot/0: images.") for o in outcomes), outcomes
    assert any(said in outcome.text for outcome in outcomes), outcomes
    assert all(len(outcome.text) < 300 and "\n" not in outcome.text for outcome in outcomes)
    assert not IMPORTED.exists()
    assert states(import_records(study, [pack("runs.jsonl.gz", good)])) == ["imported"]


def test_more_values_than_any_test_has_are_refused_before_they_are_unpacked(study, tmp_path):
    put_tested(study, "byot", 0)
    content = carried(study, tmp_path)
    for columns in content["images"].values():
        for one in columns.values():
            one["shape"] = [4, 5_000_000]
    (outcome,) = import_records(study, [pack("runs.jsonl.gz", content)])
    assert "images.last.correct.shape: 20000000 values are not allowed; allowed: at most 10000000" in outcome.text


def test_images_of_another_test_than_the_one_prepared_here_are_refused(study, tmp_path):
    put_tested(study, "plain", 0)
    folder = study.data_folder / "training"
    folder.mkdir(parents=True)
    facts = {"pixels_sha256": {"pool": "0" * 64, "test": "0" * 64}, "counts": {"pool": 600, "test": 91}}
    (folder / "dataset.json").write_text(json.dumps(facts))
    outcomes = import_records(study, [pack("runs.jsonl.gz", carried(study, tmp_path))])
    assert states(outcomes) == ["refused"] * 2  # last and validation
    assert "images.last.correct.shape: [1, 90] is not allowed; allowed: [1, 91]" in outcomes[0].text


def test_an_older_pack_is_imported_and_says_that_it_carries_nothing_per_image(study, tmp_path):
    put_tested(study, "plain", 0)
    new = carried(study, tmp_path)
    shutil.rmtree(study.results / "records")
    old = pack("old.jsonl.gz", changed(new, "images", ...))
    (outcome,) = import_records(study, [old])
    assert outcome.state == "imported"
    assert outcome.text.endswith("it carries nothing per image")
    (record,) = read_records(study)
    said = f"^{IMPORTED}/{MODEL}/plain/0.json: this imported run carries nothing per image; export it again where"
    with pytest.raises(per_image.PerImageError, match=said):
        per_image.read(study, record)
    assert states(import_records(study, [pack("new.jsonl.gz", new)])) == ["replaced"]
    assert per_image.read(study, record)["last"]["correct"].shape == (1, 90)
    assert states(import_records(study, [old, Path("new.jsonl.gz")])) == ["kept", "kept"]
    (outcome,) = import_records(study, [old], replace=True)
    assert "which this file lacks" in outcome.text
    assert per_image.read(study, record)["last"]["correct"].shape == (1, 90)


def test_a_run_whose_predictions_are_missing_or_others_is_packed_without_them_and_told(study, tmp_path, capsys):
    for seed in study.seeds:
        put_tested(study, "plain", seed)
    first, second = (per_image.file_of(study, (MODEL, "plain", seed)) for seed in study.seeds)
    second.write_bytes(first.read_bytes())
    first.unlink()
    assert export_records(study, tmp_path / "runs.jsonl.gz") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert f"plain/0.json: packed with nothing per image: {first}: No such file" in lines[0]
    assert f"{second}: not the predictions that its record was made with" in lines[1]
    assert all("nothing per image" in outcome.text for outcome in import_records(study, [tmp_path / "runs.jsonl.gz"]))


def test_what_needs_the_weights_of_an_imported_run_says_so_in_a_line(study, capsys):
    import_records(study, [pack("runs.jsonl.gz", *(entry(study, "plain", seed) for seed in study.seeds))])
    run = study.run_folder(MODEL, "plain", 0)
    said = f"{run}: this run was imported, without its weights; do this where it was trained, or train it here"
    assert main(["predict", str(run), "photo.png"]) == 1
    assert capsys.readouterr().err == f"selfdistill predict: {said}\n"
    assert main(["evaluate", "--model", MODEL, "--variant", "plain"]) == 1
    assert capsys.readouterr().err == f"selfdistill evaluate: {said}\n"
    with pytest.raises(WeightsError, match="No such file"):  # neither imported nor trained
        evaluate_variant(study, model=MODEL, variant="byot")


def of_protocol_1(content: dict) -> dict:
    """A run as version 1 of the protocol wrote it: no variant, no split, no version, and a title of its own."""
    record = {k: v for k, v in content["record"].items() if k not in ("protocol", "variant", "split", "kept")}
    return {**content, "record": {**record, "title": "Plain"}}


def test_a_real_run_of_protocol_1_is_left_out_and_refused_in_a_line(study, capsys):
    old, new = of_protocol_1(entry(study, "plain", 0)), entry(study, "byot", 0)
    said = "protocol: 1 is not allowed; allowed: 2; train it again"
    (outcome,) = import_records(study, [pack("old.jsonl.gz", old)])
    assert outcome.text == f"old.jsonl.gz, line 1: record.{said}"
    for path, part in ((study.record_file(MODEL, "plain", 0), "record"), (study.host_file(MODEL, "plain", 0), "host")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(old[part]))
    put(study, new)
    assert [r["variant"] for r in read_records(study)] == ["byot"]
    assert f"plain/0.json: left out, not of this study: {said}" in capsys.readouterr().err
    write_tables(study)
    assert main(["records", "list"]) == 0
    assert "plain/0\tleft out" in capsys.readouterr().out
    with pytest.raises(TransferError, match=re.escape(said)):
        export_records(study, Path("runs.jsonl.gz"))
    imported = study.imported_file(MODEL, "plain", 1)
    imported.parent.mkdir(parents=True)
    imported.write_text(json.dumps(of_protocol_1(entry(study, "plain", 1))))
    assert [r["variant"] for r in read_records(study)] == ["byot"]


@pytest.mark.parametrize("action", [[], ["export"], ["import"], ["list"]])
def test_every_action_explains_itself(action, capsys):
    with pytest.raises(SystemExit):
        main(["records", *action, "--help"])
    assert len(capsys.readouterr().out.split()) > 25
