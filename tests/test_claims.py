"""The papers' claims: what tests each, and what the ledger makes of committed results."""

import copy
import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats
from statsmodels.stats.multitest import multipletests
from test_reporting import record

from selfdistill import analyses
from selfdistill.claims import text
from selfdistill.claims.declared import CLAIMS, Claims, asked_of, published, read_claims
from selfdistill.claims.evidence import evidence_table
from selfdistill.claims.ledger import Found, entry_of, judged, ledger_of, read_found, together
from selfdistill.cli import main
from selfdistill.config import read_study
from selfdistill.errors import UserError
from selfdistill.schema import ConfigError
from selfdistill.studies import folders
from selfdistill.summary.statistics import page_trend

ROOT = Path(__file__).parents[1]


def claims_of(*tests: dict, **changes) -> Claims:
    claim = {"paper": "p", "place": "-", "seen": "-", "claim": "-", "measurement": "-", "control": "-"}
    papers = {"p": {"title": "-", "arxiv": "-"}}
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
    claims = claims_of({"study": "s", "contrasts": list(verdicts)}, **changes)
    (asked,) = claims.claims["c"].tests
    found = judged("c", 0, asked, claims.claims["c"], Found({"contrasts": contrasts(**verdicts)}))
    assert (found.outcome, found.seeds) == (outcome, "5")
    assert found.evidence[0] == f"BYOT against Plain: +0.20 points (-0.10 to +0.50, 95.00 %), {verdicts['a']}"
    nothing = judged("c", 0, asked, claims.claims["c"], Found({"contrasts": contrasts(other="improves")}))
    assert nothing.outcome == "not tested here"


@pytest.mark.parametrize(("expects", "outcome"), [("higher", "confirmed"), ("lower", "contradicted")])
def test_evidence_is_held_against_what_the_claim_expects(expects, outcome):
    trend = {"analysis": "exits", "number": "accuracy", "of": "byot", "along": "exit", "values": ["1/4", "2/4", "3/4"]}
    claims = claims_of({"study": "s", "trend": {**trend, "expects": expects}})
    table = evidence_table(claims, "s", runs(), "last")
    assert entry_of("c", claims.claims["c"], {"s": Found({"claims": table})}).outcome == outcome
    assert entry_of("c", claims.claims["c"], {"s": Found({"cost": table})}).outcome == "not tested here"
    assert entry_of("c", claims.claims["c"], {"s": Found({})}).outcome == "not tested here"


@pytest.mark.parametrize(("at_most", "outcome"), [(1.2, "confirmed"), (1.1, "contradicted")])
def test_operations_decide_and_seconds_stand_beside(at_most, outcome):
    cost = pd.DataFrame(
        {"model": "net", "variant": ["plain", "byot"], "title": ["Plain", "BYOT"], "total_gflops": [10.0, 11.5]}
    )
    taken = {"plain": (1.0, 2.0, 4.0), "byot": (2.0, 4.0, 8.0)}
    hosts = {
        ("net", variant, seed): {"seconds": value, "hardware": "A" if seed < 2 else variant}
        for variant, values in taken.items()
        for seed, value in enumerate(values)
    }
    claims = claims_of({"study": "s", "cost": {"of": "byot", "against": "plain", "at_most": at_most}})
    (test,) = entry_of("c", claims.claims["c"], {"s": Found({"cost": cost}, hosts, "abc1234")}).tests
    assert (test.outcome, test.seeds, test.hardware, test.commit) == (outcome, "2", "A, byot, plain", "abc1234")
    assert "BYOT: 1.15 times the operations of Plain" in test.evidence[0]
    assert "; 2.00 (2.00 to 2.00, 95 %) times its seconds" in test.evidence[0]


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
    entry = entry_of("c", claims_of(*tests).claims["c"], found)
    assert entry.outcome == "undecided"
    assert entry.tests[1].statistic.endswith("does not decide")


def test_an_ill_posed_claim_and_an_untested_one_say_why():
    for key, outcome in (("ill_posed", "ill-posed"), ("untested", "not tested here")):
        entry = entry_of("c", claims_of(**{key: "because"}).claims["c"], {})
        assert (entry.outcome, entry.reason) == (outcome, "because")


def test_a_study_may_name_the_commit_of_its_runs(tmp_path):
    (tmp_path / "params.yaml").write_text("# A study.\n# Commit:   0123abc, of its runs\n")
    assert read_found(tmp_path).commit == "0123abc"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tests": [{"study": "s"}]}, r"tests\[0\]: .+ allowed: exactly one of contrasts, paired, trend, cost"),
        ({"tests": [{"study": "s", "contrasts": ["a"], "decides": False}]}, "allowed: at least one test that decides"),
        ({"tests": []}, "allowed: exactly one of tests, ill_posed, untested"),
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
