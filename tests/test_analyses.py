"""Analyses: what their files must say, what they find, and what tables make of it."""

import ast
import hashlib
import json
import math
import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save
from sklearn.metrics import accuracy_score, balanced_accuracy_score, brier_score_loss, log_loss, recall_score
from test_reporting import RECORDS, bare

from selfdistill import analyses, closure
from selfdistill.analyses import AnalysisError
from selfdistill.errors import UserError
from selfdistill.evaluation.inputs import Classes, Predictions, Stored
from selfdistill.evaluation.probed import Probed
from selfdistill.params import read_study
from selfdistill.reporting.tables import analysis_tables
from selfdistill.stages import measure
from selfdistill.stages.plan import measure_plan
from selfdistill.summary.figure import figure_names
from selfdistill.summary.table import table_of
from selfdistill.summary.text import bold_markdown, readable

ROOT = Path(__file__).parents[1]
ORDER = ("data", "models", "training", "evaluation", "analyses", "summary", "reporting", "cli")
GOOD = {
    "title": "Made",
    "needs": ["logits"],
    "settings": {},
    "keys": {"exit": "Exit"},
    "numbers": {"error": {"title": "Error", "unit": "%", "better": "lower", "judged": True}},
}


def test_imports_point_one_way():
    """From the command line to the data: no part knows one that is made of it."""
    found = [
        f"{closure.name_of(path)} -> {closure.name_of(other)}"
        for part in ORDER
        for path in (closure.PACKAGE / part).rglob("*.py")
        for other in closure.imported(path)
        if (top := other.relative_to(closure.PACKAGE).parts[0]) in ORDER and ORDER.index(top) > ORDER.index(part)
    ]
    assert found == []


@pytest.mark.parametrize("name", [name for name in analyses.names()])
def test_every_analysis_has_a_card_and_does_what_it_declares(name):
    about, module = analyses.about(name), analyses.load(name)
    assert analyses.lead(name)
    assert module.analyse.__doc__
    assert analyses.caption(name) or not (
        hasattr(module, "draw") or any(n["judged"] for n in about["numbers"].values())
    )
    tree = ast.parse(analyses.file(name).read_text())
    writing = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id in ("open", "print")]
    assert not writing, "an analysis is a pure function"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"title": ...}, "title: missing"),
        ({"colour": "red"}, "colour: unknown key; allowed: title, needs"),
        ({"needs": ["weights"]}, "needs: 'weights' is not allowed; allowed: logits"),
        ({"numbers": {}}, "none is not allowed"),
        (
            {"numbers": {"error": {**GOOD["numbers"]["error"], "better": "up"}}},
            "numbers.error.better: 'up' is not allowed",
        ),
        ({"numbers": {"error": {"title": "Error"}}}, "numbers.error.unit: missing"),
        ({"headline": "accuracy"}, "headline: 'accuracy' is none of the numbers"),
        ({"shown": {"set": "all"}}, "shown.set: none of the keys"),
        ({"settings": {"bins": 15}}, "settings.bins: 15 is not allowed; allowed: default, and allowed or choices"),
    ],
)
def test_a_faulty_about_is_refused_with_its_key(change, words):
    assert list(analyses.faults(GOOD)) == []
    faulty = {key: value for key, value in {**GOOD, **change}.items() if value is not ...}
    assert any(words in fault for fault in analyses.faults(faulty)), list(analyses.faults(faulty))


def test_an_analysis_that_there_is_not_is_named():
    with pytest.raises(AnalysisError, match="no analysis 'sureness'; there are accuracy"):
        analyses.about("sureness")


def predictions(exits: int = 2, images: int = 60, classes: int = 5, seed: int = 0) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(exits, images, classes, generator=generator)
    labels = torch.randint(classes, (images,), generator=generator)
    run = {"sections": 4, "members": {}, "cost": {"inference_macs": [10, 20][:exits], "ensemble_macs": 30}}
    networks = {"peer": logits.flip(0), "last": logits}
    return Predictions(run, logits, Classes(labels), (logits, labels), networks)


def test_accuracy_of_exits_and_members_is_scikit_learns():
    inputs = predictions()
    told = [accuracy_score(inputs.labels, z.argmax(1)) for z in (*inputs.logits, inputs.logits.double().mean(0))]
    for name in ("accuracy", "exits"):
        rows = analyses.function(name)(inputs)
        assert [row["exit"] for row in rows] == ["3/4", "4/4", "ensemble"]
        assert [row["accuracy"] for row in rows] == pytest.approx(told, abs=1e-12)
    both = inputs.logits.double().softmax(2).mean(0).argmax(1)
    members = {row["member"]: row["accuracy"] for row in analyses.function("members")(inputs)}
    assert members == pytest.approx(
        {"peer": told[0], "the network": told[1], "all together": accuracy_score(inputs.labels, both)}, abs=1e-12
    )
    assert [row["million_macs"] for row in analyses.function("exits")(inputs)] == [1e-5, 2e-5, 3e-5]


def test_agreement_and_ensembles_of_seeds_stand_in_the_first_seeds_run_alone():
    own = predictions()
    others = {seed: predictions(seed=seed).logits for seed in (1, 2)}
    first = replace(own, run={**own.run, "seed": 0}, seeds=others, teacher=others[2][-1:])
    answers = [z[-1].argmax(1) for z in (own.logits, others[1], others[2])]
    pairs = [accuracy_score(a, b) for a, b in combinations(answers, 2)]
    exits = accuracy_score(own.logits[0].argmax(1), answers[0])
    found = {row["with"]: row["agreement"] for row in analyses.function("agreement")(first)}
    assert found == pytest.approx({"3/4": exits, "teacher": pairs[1], "another seed": np.mean(pairs)}, abs=1e-12)

    labels = own.labels
    rows = {row["of"]: row for row in analyses.function("ensembles")(first)}
    assert [row["members"] for row in rows.values()] == [2, 2, 3]
    for of, members in (("exits", own.logits), ("seeds", [own.logits[-1], others[1][-1], others[2][-1]])):
        mean = np.mean([z.double().softmax(1).numpy() for z in members], axis=0)
        row = rows[f"{of}, mean of probabilities"]
        assert row["accuracy"] == pytest.approx(accuracy_score(labels, mean.argmax(1)), abs=1e-12)
        assert row["nll"] == pytest.approx(log_loss(labels, mean, labels=range(5)), abs=1e-9)
        brier = brier_score_loss(labels, mean, labels=range(5), scale_by_half=False)
        assert row["brier"] == pytest.approx(brier, abs=1e-9)
    singles = [accuracy_score(labels, answer) for answer in answers]
    together = rows["seeds, mean of probabilities"]
    assert together["gain"] == pytest.approx(100 * (together["accuracy"] - np.mean(singles)), abs=1e-9)
    logits = rows["exits, mean of logits"]
    assert logits["accuracy"] == accuracy_score(labels, own.logits.double().mean(0).argmax(1))
    assert logits["gain"] == pytest.approx(100 * (logits["accuracy"] - singles[0]), abs=1e-9)

    later = replace(first, run={**own.run, "seed": 3})
    assert [row["with"] for row in analyses.function("agreement")(later)] == ["3/4", "teacher"]
    assert [row["members"] for row in analyses.function("ensembles")(later)] == [2, 2]
    alone = predictions(exits=1)
    assert analyses.function("agreement")(alone) == analyses.function("ensembles")(alone) == []


def test_accuracy_by_class_is_scikit_learns():
    given = predictions(classes=5)
    names = ["a", "b", "c", "d", "e", "never shown"]
    given = replace(given, run={**given.run, "dataset": {"classes": names}})
    whole, *rows = analyses.function("per_class")(given)
    told = given.logits[-1].argmax(1)
    recalls = recall_score(given.labels, told, average=None)
    assert [row["class"] for row in rows] == names
    assert [row["accuracy"] for row in rows[:-1]] == pytest.approx(recalls, abs=1e-12)
    assert rows[-1]["accuracy"] is None
    assert sum(row["images"] for row in rows) == 60
    assert whole["mean"] == pytest.approx(balanced_accuracy_score(given.labels, told), abs=1e-12)
    assert [whole["worst"], whole["best"]] == pytest.approx([recalls.min(), recalls.max()], abs=1e-12)
    assert whole["spread"] == pytest.approx(100 * recalls.std(), abs=1e-9)
    one = replace(given, truth=Classes(torch.zeros(60, dtype=torch.long)))
    (single, *_) = analyses.function("per_class")(one)
    assert single["worst"] == single["mean"] == single["best"]
    assert single["spread"] == 0


def with_rows(values: dict[str, list[float | None]], **numbers) -> list[dict]:
    """Records of which each run has one number of a made analysis."""
    return [
        {**record, "measures": {**record["measures"], "made": {"rows": {"last": [{"exit": "4/4", "error": value}]}}}}
        for record in RECORDS
        if (value := values[record["variant"]][record["seed"]]) is not ...
    ]


@pytest.fixture
def made(monkeypatch, tmp_path):
    """The analyses and a made one, whose number is better when lower."""
    for name in ("accuracy", "cost", "exits"):
        for ending in ("py", "md"):
            file = analyses.file(name).with_suffix(f".{ending}")
            (tmp_path / file.name).write_text(file.read_text())
    (tmp_path / "made.py").write_text(f"ABOUT = {GOOD!r}\n")
    monkeypatch.setattr(analyses, "FOLDER", tmp_path)
    for cached in (analyses.names, analyses.about, analyses.card):
        cached.cache_clear()
    yield
    for cached in (analyses.names, analyses.about, analyses.card):
        cached.cache_clear()


def test_the_lowest_is_bold_where_lower_is_better_and_shares_are_shown_in_percent(made):
    records = with_rows({"plain": [0.3, 0.2, 0.1], "byot": [0.05, 0.15, 0.1]})
    table = table_of("made", records, "last", "plain")
    assert table.error.tolist() == pytest.approx([20, 10])
    assert table.difference.tolist() == pytest.approx([0, -10])
    shown = readable("made", table, bold_markdown, " ± ")
    assert [text.startswith("**") for text in shown["Error (%)"]] == [False, True]
    assert shown["Difference to control"].tolist()[0] == "control"
    assert shown["Difference to control"].tolist()[1].startswith("-10.00 ± ")


def test_a_number_that_is_not_defined_leaves_an_empty_cell(made):
    records = with_rows({"plain": [0.3, None, 0.1], "byot": [0.05, 0.15, 0.1]})
    table = table_of("made", records, "last", "plain").set_index("variant")
    assert math.isnan(table.loc["plain", "error"])
    assert table.loc["byot", "difference"] == pytest.approx(-12.5), "over the seeds that both have"
    assert readable("made", table.reset_index(), bold_markdown, " ± ")["Error (%)"].tolist()[0] == ""


def test_where_the_control_has_no_such_row_there_is_no_difference(made):
    records = with_rows({"plain": [..., ..., ...], "byot": [0.05, 0.15, 0.1]})
    shown = readable("made", table_of("made", records, "last", "plain"), bold_markdown, " ± ")
    assert shown["Difference to control"].tolist() == [""]


def test_runs_without_an_analysis_are_not_counted(made):
    records = with_rows({"plain": [0.3, 0.2, 0.1], "byot": [0.05, 0.15, 0.1]})
    del records[0]["measures"]["made"]
    assert table_of("made", records, "last", "plain").n.tolist() == [2, 3]
    assert "made" not in analysis_tables(RECORDS, "last", "plain", bare)


def test_every_judged_number_without_a_figure_of_its_own_has_one(made, monkeypatch):
    records = with_rows({"plain": [0.3, 0.2, 0.1], "byot": [0.05, 0.15, 0.1]})
    monkeypatch.setattr(analyses, "load", lambda name: object())
    assert figure_names("made", table_of("made", records, "last", "plain")) == {"made-4_4": {"exit": "4/4"}}


@pytest.fixture
def stored(tiny_study, monkeypatch) -> tuple[Stored, dict]:
    """Stored predictions of a trained run, and what its analyses depend on."""
    monkeypatch.chdir(tiny_study.folder)
    study = read_study()
    return Stored(study.prediction_file("resnet10-slim", "byot", 0)), measure_plan(study)


def test_what_was_found_before_is_taken_and_only_the_rest_computed(stored, tmp_path):
    predictions, plan = stored
    content, computed = measure.measured(predictions, plan)
    assert {"accuracy", "anytime", "cost", "exits"} <= set(computed)
    earlier = tmp_path / "record.json"
    earlier.write_bytes(content)
    assert measure.measured(predictions, plan, [earlier]) == (content, [])
    other = {**plan, "exits": {**plan["exits"], "code_sha256": "0" * 64}}
    assert measure.measured(predictions, other, [earlier])[1] == ["exits"]
    for damage in (b"", b"{", b'{"measures": {"accuracy": 3}}', content[:-40]):
        earlier.write_bytes(damage)
        assert measure.measured(predictions, plan, [earlier]) == (content, computed)


def test_another_run_makes_only_those_analyses_be_computed_that_are_given_it(stored, tmp_path):
    predictions, plan = stored
    _, computed = measure.measured(predictions, plan)

    def again(**others) -> list[str]:
        return measure.measured(replace(predictions, **others), plan, [earlier])[1]

    earlier = tmp_path / "record.json"
    earlier.write_bytes(measure.measured(predictions, plan)[0])
    other = Stored(predictions.file.with_name("1.json"))
    needing = {need: [n for n in computed if need in analyses.about(n)["needs"]] for need in ("seeds", "teacher")}
    assert needing == {"seeds": ["agreement", "ensembles"], "teacher": ["agreement"]}
    assert again() == []
    assert again(seeds={1: other}) == needing["seeds"]
    assert again(teacher=other) == needing["teacher"]
    earlier.write_bytes(measure.measured(replace(predictions, seeds={1: other}), plan)[0])
    assert again(seeds={1: other}) == []
    assert again(seeds={2: other}) == needing["seeds"]


def test_other_runs_are_given_to_what_needs_them_and_only_of_the_same_images(stored, tmp_path):
    predictions, _ = stored
    teacher = Stored(Path("results/predictions/resnet10-slim/plain/0.json"))
    both = replace(predictions, seeds={1: Stored(predictions.file.with_name("1.json"))}, teacher=teacher)
    assert both.of("last").seeds == {}
    assert both.of("last").teacher is None
    given = both.of("last", ["seeds", "teacher"])
    theirs = {
        name: load_file(f"results/predictions/resnet10-slim/{name}.safetensors") for name in ("byot/1", "plain/0")
    }
    assert torch.equal(given.seeds[1], theirs["byot/1"]["last"])
    assert torch.equal(given.teacher, theirs["plain/0"]["last"])
    tensors = theirs["plain/0"] | {"labels": theirs["plain/0"]["labels"].flip(0)}
    content = save(tensors)
    (tmp_path / "0.safetensors").write_bytes(content)
    told = {"evaluation": {"files": {"predictions.safetensors": hashlib.sha256(content).hexdigest()}}}
    (tmp_path / "0.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match=r"0.json: of other test images than results/.*; evaluate both again"):
        replace(both, teacher=Stored(tmp_path / "0.json")).of("last", ["teacher"])


def test_a_study_measures_agreement_with_its_teachers_and_between_its_seeds(tiny_study):
    told = {
        (variant, seed): load_file(tiny_study / f"results/predictions/resnet10-slim/{variant}/{seed}.safetensors")[
            "last"
        ]
        for variant in ("plain", "drkd")
        for seed in (0, 1)
    }
    answers = {cell: logits[-1].argmax(1) for cell, logits in told.items()}

    def rows(variant: str, seed: int, name: str = "agreement") -> dict[str, float]:
        path = tiny_study / f"results/records/measured/resnet10-slim/{variant}/{seed}.json"
        found = json.loads(path.read_text())["measures"][name]["rows"]["last"]
        return {row["with"]: row["agreement"] for row in found}

    for seed in (0, 1):
        assert rows("drkd", seed)["teacher"] == accuracy_score(answers["drkd", seed], answers["plain", seed])
    between = accuracy_score(answers["drkd", 0], answers["drkd", 1])
    assert rows("drkd", 0)["another seed"] == pytest.approx(between, abs=1e-12)
    assert list(rows("drkd", 1)) == ["teacher"]
    assert list(rows("byot", 0)) == ["1/4", "2/4", "3/4", "another seed"]
    assert rows("plain", 1) == {}
    table = (tiny_study / "results/tables/agreement.md").read_text()
    assert "| DR-KD    | another seed       | 1                | 2 together |" in table


def test_validation_images_are_predicted_as_training_saw_them(stored):
    predictions, _ = stored
    inputs = predictions.of("last")
    logits, labels = inputs.validation
    told = predictions.run["history"]["validation_accuracy"][-1]
    assert (logits[-1].argmax(1) == labels).double().mean().item() == pytest.approx(told, abs=1e-6)
    assert len(labels) == predictions.run["split"]["validation"]


def test_rows_that_are_not_as_declared_are_refused_with_the_file(monkeypatch):
    for row, words in (
        ({"accuracy": 1.0}, "a row without key 'exit'"),
        ({"exit": "4/4", "f1": 1.0}, "a row with 'f1'"),
    ):
        monkeypatch.setattr(analyses, "function", lambda name, row=row: lambda inputs: [row])
        with pytest.raises(
            measure.MeasureError, match=rf"analyses/accuracy.py: {words}; ABOUT declares exit, accuracy"
        ):
            measure.carried_out("accuracy", predictions(), {})


def test_what_is_no_finite_number_is_none_in_a_record(monkeypatch):
    monkeypatch.setattr(analyses, "function", lambda name: lambda inputs: [{"exit": "4/4", "nll": np.inf}])
    (row,) = measure.carried_out("accuracy", predictions(), {})
    assert json.dumps(row, allow_nan=False) == '{"exit": "4/4", "nll": null}'


def test_a_probe_of_other_classes_is_refused(tmp_path):
    from types import SimpleNamespace

    (tmp_path / "training").mkdir()
    (tmp_path / "training/dataset.json").write_text(json.dumps({"name": "other", "classes": ["a"], "counts": {}}))
    dataset = SimpleNamespace(name="own", classes=["b"])
    probed = Probed({}, None, dataset, tmp_path, tmp_path, "cpu", tmp_path)
    with pytest.raises(UserError, match="other: its classes are not those of own, in their order"):
        analyses.function("robustness")(probed)


@pytest.mark.parametrize("name", analyses.names())
def test_what_stands_of_a_card_on_the_page_is_plain_text(name):
    """The page shows its marks as they are."""
    assert not re.search(r"[`*\[]|__", analyses.lead(name) + analyses.caption(name))
