"""The papers' claims: what tests each, and what the ledger makes of committed results."""

import copy
import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from markdown_it import MarkdownIt
from scipy import stats
from statsmodels.stats.multitest import multipletests
from test_reporting import record

from selfdistill import analyses
from selfdistill.claims import text
from selfdistill.claims.declared import CLAIMS, Claims, asked_of, published, read_claims
from selfdistill.claims.evidence import evidence_table
from selfdistill.claims.ledger import Found, entry_of, judged, ledger_of, read_found, together
from selfdistill.cli import main
from selfdistill.errors import UserError
from selfdistill.params import read_study
from selfdistill.schema import ConfigError
from selfdistill.studies import folders
from selfdistill.summary.statistics import page_trend

ROOT = Path(__file__).parents[1]


def claims_of(*tests: dict, **changes) -> Claims:
    claim = {"paper": "p", "place": "-", "seen": "-", "claim": "-", "measurement": "-", "control": "-"}
    papers = {"p": {"title": "-", "arxiv": "-", "settings": {"data": ["net"], "unsure": None}}}
    return Claims.model_validate({"papers": papers, "claims": {"c": {**claim, "tests": list(tests), **changes}}})


def test_what_a_claim_rests_on_is_declared_by_its_study(monkeypatch):
    claims, known = read_claims(), folders(ROOT)
    for name in {test.study for claim in claims.claims.values() for test in claim.tests}:
        monkeypatch.chdir(known[name])
        study = read_study(Path("params.yaml"))
        for claim, _, asked in asked_of(claims, name):
            assert set(asked.contrasts or ()) <= set(study.contrasts), claim
            form = asked.paired or asked.trend or asked.cost
            if form:
                assert {form.of, getattr(form, "against", form.of)} <= set(study.all_variants), claim
            if (asked.paired or asked.trend) and form.analysis in analyses.names():
                assert form.number in analyses.about(form.analysis)["numbers"], claim


def test_the_document_says_what_the_committed_results_say():
    claims = read_claims()
    written = text.document(ledger_of(folders(ROOT), claims), claims)
    assert (ROOT / "docs/claims.md").read_text() == written, "`selfdistill claims --write` writes it again"


def test_every_table_of_the_document_is_one():
    """As GitHub reads it, where a list that goes on swallows a table."""
    claims = read_claims()
    ledger = ledger_of(folders(ROOT), claims)
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(text.document(ledger, claims))
    assert sum(token.type == "table_open" for token in tokens) == 2 + sum(bool(entry.tests) for entry in ledger)


def test_figures_of_the_papers_are_only_those_that_were_verified():
    assert {row["paper"] for row in published()} <= set(read_claims().papers)
    assert all(row["source"] and float(row["value"]) for row in published())
    gains = {row["network"]: float(row["value"]) for row in published() if row["metric"] == "gain"}
    accuracy = {(row["network"], row["method"]): float(row["value"]) for row in published()}
    vgg = accuracy["VGG19(BN)", "BYOT, ensemble"] - accuracy["VGG19(BN)", "baseline"]
    assert vgg == pytest.approx(gains["VGG19(BN)"])  # the abstract's largest, by the table's own row


def test_the_ledger_is_a_command(capsys, monkeypatch):
    monkeypatch.chdir(ROOT / "studies/fashion-mnist")
    assert main(["claims"]) == 0
    assert f"{len(read_claims().claims)} claims: " in capsys.readouterr().out
    assert main(["claims", "drkd-cost"]) == 0
    assert "2.33 times the operations of Plain" in capsys.readouterr().out
    assert main(["claims", "drkd-cots"]) == 1
    assert "no claim 'drkd-cots'; did you mean 'drkd-cost'?" in capsys.readouterr().err


# ---- statistics ----


def test_pages_trend_is_counted_over_all_orders():
    values = np.array([[1, 2, 3], [2, 1, 3], [1, 3, 2], [1, 2, 3], [3, 1, 2]], float)
    orders = list(itertools.permutations([1, 2, 3]))
    scores = [sum((i + 1) * rank for i, rank in enumerate(order)) for order in orders]
    observed = sum((i + 1) * rank for row in values for i, rank in enumerate(row))
    found = [sum(chosen) >= observed for chosen in itertools.product(scores, repeat=5)]
    p, rising = page_trend(values)
    assert rising
    assert p == pytest.approx(2 * np.mean(found))
    assert page_trend(-values) == (pytest.approx(p), False)
    assert math.isnan(page_trend(values[:4])[0])
    with pytest.raises(UserError, match=r"shape \(5, 2\) are not allowed"):
        page_trend(values[:, :2])


def runs(seeds: int = 6) -> list[dict]:
    """Plain with one exit, BYOT with four, whose accuracies rise from the first to the third."""
    generator, records = np.random.default_rng(7), []
    for variant, exits in (("byot", 4), ("plain", 1)):
        for seed in range(seeds):
            one = copy.deepcopy(record(variant, seed, 0.9, exits=exits))
            for place, row in enumerate(one["measures"]["exits"]["rows"]["last"]):
                row["accuracy"] = 0.80 + 0.02 * min(place, 2) + 0.005 * generator.normal()
            records.append(one)
    return records


def accuracies(records: list[dict], variant: str, exit_name: str) -> list[float]:
    rows = [r["measures"]["exits"]["rows"]["last"] for r in records if r["variant"] == variant]
    return [100 * row["accuracy"] for of_run in rows for row in of_run if row["exit"] == exit_name]


def test_differences_of_any_number_are_paired_by_seed_and_share_a_family():
    records = runs()
    both = [dict(r, variant="other") for r in runs(8) if r["variant"] == "byot"][:5]
    paired = {"analysis": "exits", "number": "accuracy", "of": "byot", "against": "other", "each": "exit"}
    table = evidence_table(claims_of({"study": "s", "paired": paired}), "s", records + both, "last")
    assert table.what.tolist() == [f"exit {name}" for name in ("1/4", "2/4", "3/4", "4/4", "ensemble")]
    assert table.n.tolist() == [5] * 5
    p = []
    for row in table.itertuples():
        name = row.what.removeprefix("exit ")
        one, other = accuracies(records, "byot", name)[:5], accuracies(both, "other", name)
        assert row.difference == pytest.approx(np.mean(one) - np.mean(other))
        p.append(stats.ttest_rel(one, other).pvalue if one != other else 1.0)
    assert table.p_holm.tolist() == pytest.approx(multipletests(p, method="holm")[1])

    across = {
        **paired,
        "against": "plain",
        "each": None,
        "where": {"exit": "ensemble"},
        "where_against": {"exit": "4/4"},
    }
    (row,) = evidence_table(claims_of({"study": "s", "paired": across}), "s", records, "last").to_dict("records")
    one, other = accuracies(records, "byot", "ensemble"), accuracies(records, "plain", "4/4")
    assert row["p"] == pytest.approx(stats.ttest_rel(one, other).pvalue)
    interval = stats.ttest_rel(one, other).confidence_interval(0.95)
    assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high))
    assert (row["verdict"], row["unit"]) == ("higher", "points")
    assert evidence_table(claims_of({"study": "s", "paired": across}), "another", records, "last").empty


def test_rows_that_nothing_tells_apart_are_refused():
    paired = {"analysis": "exits", "number": "accuracy", "of": "byot", "against": "plain"}
    with pytest.raises(UserError, match=r"exits: accuracy: several rows of a run are not allowed; .+ apart by exit"):
        evidence_table(claims_of({"study": "s", "paired": paired}), "s", runs(), "last")


def test_a_trend_is_of_the_values_in_their_order():
    trend = {"analysis": "exits", "number": "accuracy", "of": "byot", "along": "exit", "values": ["1/4", "2/4", "3/4"]}
    (row,) = evidence_table(claims_of({"study": "s", "trend": trend}), "s", runs(), "last").to_dict("records")
    data = np.array([accuracies(runs(), "byot", name) for name in trend["values"]]).T
    assert row["p"] == pytest.approx(2 * stats.page_trend_test(data).pvalue)
    assert (row["verdict"], row["n"]) == ("higher", 6)
    assert row["difference"] == pytest.approx((data[:, 2] - data[:, 0]).mean())
    turned = {**trend, "values": trend["values"][::-1]}
    assert evidence_table(claims_of({"study": "s", "trend": turned}), "s", runs(), "last").verdict.tolist() == ["lower"]
    several = runs() + [dict(r, model="net_b") for r in runs()]
    both = evidence_table(claims_of({"study": "s", "trend": trend}), "s", several, "last")
    assert both.p_holm.tolist() == pytest.approx([2 * row["p"]] * 2)  # networks are one family
    few = evidence_table(claims_of({"study": "s", "trend": trend}), "s", runs(4), "last")
    assert few.verdict.tolist() == ["too few seeds"]


# ---- outcomes ----


def contrasts(**verdicts: str) -> pd.DataFrame:
    return pd.DataFrame(
        {"model": "net", "contrast": name, "of": "byot", "against": "plain", "title": "BYOT", "against_title": "Plain",
         "exit": "last", "n": 5, "difference": 0.2, "low": -0.1, "high": 0.5, "level": 0.95, "margin": 1.0,
         "verdict": verdict}
        for name, verdict in verdicts.items()
    )  # fmt: skip


@pytest.mark.parametrize(
    ("verdicts", "changes", "outcome"),
    [
        ({"a": "improves"}, {}, "confirmed"),
        ({"a": "worse"}, {}, "contradicted"),
        ({"a": "undecided"}, {}, "undecided"),
        ({"a": "too few seeds"}, {}, "undecided"),
        ({"a": "equivalent"}, {}, "undecided"),  # a gain within the margin may be there
        ({"a": "equivalent"}, {"size": 2.65}, "contradicted"),
        ({"a": "equivalent"}, {"size": 0.61}, "undecided"),
        ({"a": "improves", "b": "improves"}, {}, "confirmed"),
        ({"a": "improves", "b": "undecided"}, {}, "undecided"),
        ({"a": "improves", "b": "worse"}, {}, "contradicted"),
    ],
)
def test_verdicts_of_contrasts_decide(verdicts, changes, outcome):
    claims = claims_of({"study": "s", "contrasts": list(verdicts), **changes})
    (asked,) = claims.claims["c"].tests
    found = judged("c", 0, asked, claims.papers["p"], Found({"contrasts": contrasts(**verdicts)}))
    assert (found.outcome, found.seeds) == (outcome, "5")
    assert found.evidence[0] == f"BYOT against Plain: +0.20 points (-0.10 to +0.50, 95.00 %), {verdicts['a']}"
    nothing = judged("c", 0, asked, claims.papers["p"], Found({"contrasts": contrasts(other="improves")}))
    assert nothing.outcome == "not tested here"


def found_in(claims: Claims, **of_study) -> Found:
    return entry_of("c", claims.claims["c"], claims.papers["p"], {"s": Found(**of_study)})


@pytest.mark.parametrize(("expects", "outcome"), [("higher", "confirmed"), ("lower", "contradicted")])
def test_evidence_is_held_against_what_the_claim_expects(expects, outcome):
    trend = {"analysis": "exits", "number": "accuracy", "of": "byot", "along": "exit", "values": ["1/4", "2/4", "3/4"]}
    claims = claims_of({"study": "s", "trend": {**trend, "expects": expects}})
    table = evidence_table(claims, "s", runs(), "last")
    assert found_in(claims, tables={"claims": table}).outcome == f"{outcome} elsewhere"


def test_a_test_without_evidence_says_why():
    paired = {"analysis": "exits", "number": "accuracy", "of": "byot", "against": "plain"}
    claims = claims_of({"study": "s", "paired": paired})
    exits = pd.DataFrame(
        {"variant": ["byot", "byot", "plain"], "exit": ["1/4", "4/4", "4/4"], "accuracy": [0.8, 0.9, 0.9]}
    )
    for tables, why in (
        ({}, "the study s has no results yet"),
        ({"exits": exits}, "its tables were rendered before they had this"),
        ({"exits": exits[:2]}, "no result of plain has accuracy of the analysis exits"),
        ({"cost": exits}, "no result of byot and of plain has accuracy of the analysis exits"),
    ):
        entry = found_in(claims, tables=tables)
        assert entry.outcome == "not tested here"
        assert entry.tests[0].evidence[0].startswith(why)


@pytest.mark.parametrize(
    ("dataset", "models", "setting", "outcome"),
    [
        ("data", ("net",), "the paper's data set and network", "confirmed"),
        ("data", ("net", "another"), "the paper's data set, another network", "confirmed elsewhere"),
        ("unsure", ("net",), "the paper's data set; its networks are not known", "confirmed elsewhere"),
        ("other", ("net",), "data not known to be the paper's", "confirmed elsewhere"),
    ],
)
def test_an_outcome_says_whether_its_setting_is_the_papers(dataset, models, setting, outcome):
    claims = claims_of({"study": "s", "contrasts": ["a"]})
    tables = {"contrasts": pd.concat([contrasts(a="improves").assign(model=model) for model in models])}
    entry = found_in(claims, tables=tables, dataset=dataset)
    assert (entry.outcome, entry.tests[0].setting) == (outcome, setting)
    assert found_in(claims, tables={}, dataset=dataset, models=models).tests[0].setting == setting
    own = "1" if outcome == "confirmed" else "none"
    rest = f"Tests with results: 1; on a data set and network of their paper: {own}."
    assert text.counted([entry]) == f"1 claims: 1 {outcome}. {rest}"


@pytest.mark.parametrize(("at_most", "outcome"), [(1.2, "confirmed"), (1.1, "contradicted")])
def test_operations_decide_and_seconds_stand_beside(at_most, outcome):
    cost = pd.DataFrame({"model": "net", "variant": ["plain", "byot"], "title": ["Plain", "BYOT"]})
    cost = cost.assign(training_gflops=[10.0, 11.5], teacher_gflops=0.0, total_gflops=[10.0, 11.5])
    taken = {"plain": (1.0, 2.0, 4.0, 2.0, 1.0, 4.0), "byot": (2.0, 4.0, 8.0, 4.0, 2.0, 4.0)}
    hosts = {
        ("net", variant, seed): {"seconds": value, "hardware": "A" if seed < 5 else variant}
        for variant, values in taken.items()
        for seed, value in enumerate(values)
    }
    claims = claims_of({"study": "s", "cost": {"of": "byot", "against": "plain", "at_most": at_most}})
    (test,) = found_in(claims, tables={"cost": cost}, hosts=hosts, commit="abc1234").tests
    assert (test.outcome, test.seeds, test.hardware, test.commit) == (outcome, "5", "A, byot, plain", "abc1234")
    seconds = "2.00 (2.00 to 2.00, 95 %) times the seconds, as the runs happened to be made"
    would_do = f"where {at_most} would do"
    assert test.evidence == (f"BYOT: 1.15 times the operations of Plain, {would_do}; {seconds}",)

    taught = cost.assign(teacher_gflops=[0.0, 10.0], total_gflops=[10.0, 21.5])  # in no run's seconds: told without it
    (test,) = found_in(claims, tables={"cost": taught}, hosts=hosts).tests
    whole = f"BYOT: 2.15 times the operations of Plain, teachers' training included, {would_do}"
    assert test.evidence == (f"{whole}; without it 1.15 times the operations and {seconds}",)

    few = {cell: host for cell, host in hosts.items() if cell[2] < 4}
    (test,) = found_in(claims, tables={"cost": cost}, hosts=few).tests
    assert (test.seeds, test.evidence) == ("4", (f"BYOT: 1.15 times the operations of Plain, {would_do}",))


@pytest.mark.parametrize(
    ("of_tests", "of_claim"),
    [
        (["confirmed", "undecided", "not tested here"], "confirmed"),
        (["contradicted", "not tested here"], "contradicted"),
        (["confirmed", "contradicted"], "undecided"),
        (["undecided", "not tested here"], "undecided"),
        (["not tested here"], "not tested here"),
    ],
)
def test_a_claim_is_what_its_tests_say_together(of_tests, of_claim):
    assert together(of_tests) == of_claim


def test_a_test_that_stands_beside_does_not_decide():
    tests = [{"study": "s", "contrasts": ["a"]}, {"study": "s", "contrasts": ["b"], "decides": False}]
    found = {"s": Found({"contrasts": contrasts(a="undecided", b="improves")})}
    claims = claims_of(*tests)
    entry = entry_of("c", claims.claims["c"], claims.papers["p"], found)
    assert entry.outcome == "undecided"
    assert entry.tests[1].statistic.endswith("does not decide")


def test_an_ill_posed_claim_and_an_untested_one_say_why():
    for key, outcome in (("ill_posed", "ill-posed"), ("untested", "not tested here")):
        claims = claims_of(**{key: "because"})
        entry = entry_of("c", claims.claims["c"], claims.papers["p"], {})
        assert (entry.outcome, entry.reason) == (outcome, "because")


def test_a_study_names_its_data_networks_and_perhaps_its_commit(tmp_path):
    (tmp_path / "params.yaml").write_text(
        "# A study.\n# Commit:   0123abc, of its runs\ndataset: digits\nmodels: [net]\n"
    )
    found = read_found(tmp_path)
    assert (found.commit, found.dataset, found.models) == ("0123abc", "digits", ("net",))


def test_imported_runs_name_their_machines_as_those_of_this_checkout_do():
    folder = ROOT / "studies/cifar100-claims"
    imported = list((folder / "results/records/imported").glob("*/*/*.json"))
    hosts = read_found(folder).hosts
    assert len(hosts) == len(imported) > 0
    assert all(host["hardware"] for host in hosts.values())
    assert ("resnet10-slim", "byot", 0) in hosts


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tests": [{"study": "s"}]}, r"tests\[0\]: .+ allowed: exactly one of contrasts, paired, trend, cost"),
        ({"tests": [{"study": "s", "contrasts": ["a"], "decides": False}]}, "allowed: at least one test that decides"),
        ({"tests": []}, "allowed: exactly one of tests, ill_posed, untested"),
        (
            {"tests": [{"study": "s", "cost": {"of": "a", "against": "b", "at_most": 1}, "size": 1.0}]},
            "allowed: a size of contrasts alone",
        ),
        ({"plcae": "-"}, "plcae: unknown key; did you mean 'place'?"),
    ],
)
def test_a_faulty_claim_is_refused_with_its_place(change, said, tmp_path):
    content = yaml.safe_load(CLAIMS.read_text())
    content["claims"] = {"byot-gain": {**content["claims"]["byot-gain"], **change}}
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=rf"claims.yaml: claims.byot-gain.*{said}"):
        read_claims(tmp_path / "claims.yaml")


def test_a_claim_of_a_study_that_is_not_here_is_refused():
    with pytest.raises(UserError, match="studies nowhere are not here; allowed: default"):
        ledger_of(folders(ROOT), claims_of({"study": "nowhere", "contrasts": ["a"]}))
