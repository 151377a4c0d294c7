"""Declared contrasts: the statistics of paired differences, the family of tests, and what a study may declare."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT
from scipy import stats
from statsmodels.stats.multitest import multipletests
from test_reporting import record

from selfdistill import methods
from selfdistill.errors import UserError
from selfdistill.params import read_study
from selfdistill.reporting import tables
from selfdistill.reporting.contrasts import contrast_table, network_table
from selfdistill.reporting.page import headline
from selfdistill.schema import ConfigError
from selfdistill.summary.statistics import (
    Effect,
    family,
    holm,
    holm_levels,
    over_networks,
    paired_effect,
    probability_of_improvement,
)


def made(generator: np.random.Generator, seeds: int, images: int, seed_sd: float, image_sd: float = 1.0) -> np.ndarray:
    """Differences with these components, and 1 of what is left, around 0."""
    of_seeds, of_images = generator.normal(size=(seeds, 1)), generator.normal(size=(1, images))
    return seed_sd * of_seeds + image_sd * of_images + generator.normal(size=(seeds, images))


def test_each_component_counts_once_as_products_of_pairs_say():
    """Another formulation: a component is what products of differences that share a seed, or an image, have more than
    those that share nothing (Searle, Casella and McCulloch 1992); no mean square is formed."""
    d = made(np.random.default_rng(0), seeds=6, images=40, seed_sd=0.5) + 3
    seeds, images = d.shape
    of_one_seed = np.mean(
        [d[s, i] * d[s, j] for s in range(seeds) for i in range(images) for j in range(images) if i != j]
    )
    of_one_image = np.mean(
        [d[s, i] * d[t, i] for i in range(images) for s in range(seeds) for t in range(seeds) if s != t]
    )
    total, squares = d.sum(), (d**2).sum()
    of_both = squares / d.size
    of_none = total**2 - seeds * images * ((images - 1) * of_one_seed + (seeds - 1) * of_one_image + of_both)
    of_none /= seeds * images * (seeds - 1) * (images - 1)
    seed, image = of_one_seed - of_none, of_one_image - of_none
    rest = of_both - of_none - seed - image
    effect = paired_effect(d)
    assert (effect.seed_sd**2, effect.image_sd**2, effect.rest_sd**2) == pytest.approx((seed, image, rest))
    assert effect.error**2 == pytest.approx(seed / seeds + image / images + rest / d.size)
    assert effect.difference == pytest.approx(d.mean())


def test_seeds_that_hardly_differ_count_as_in_a_t_test_over_them():
    """Their component is not cut at 0, that of the images is; no spread over seeds and over images leaves the rest."""
    generator, below = np.random.default_rng(4), 0
    for _ in range(20):
        d = made(generator, seeds=5, images=60, seed_sd=0.0)
        effect, of_seeds = paired_effect(d), d.mean(axis=1).var(ddof=1) / 5
        assert effect.error**2 == pytest.approx(of_seeds + effect.image_sd**2 / 60)
        below += effect.seed_sd == 0
    assert below > 5
    d = np.array([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0]])
    assert paired_effect(d).error == pytest.approx(paired_effect(d).rest_sd / math.sqrt(6))


def test_of_whole_runs_it_is_the_paired_t_test():
    a, b = np.array([91.0, 93.5, 92.2]), np.array([90.0, 93.0, 91.0])
    effect = paired_effect((a - b)[:, None])
    assert effect.p == pytest.approx(stats.ttest_rel(a, b).pvalue)
    low, high = stats.t.interval(0.9, 2, loc=(a - b).mean(), scale=stats.sem(a - b))
    assert effect.interval(0.9) == pytest.approx((low, high))
    one = paired_effect(np.array([[1.0]]))
    assert math.isnan(one.p)
    assert math.isnan(one.interval()[0])
    assert paired_effect(np.zeros((3, 1))).p == 1
    for wrong in (np.zeros((0, 5)), np.zeros(5)):
        with pytest.raises(UserError, match=r"differences of shape .* are not allowed"):
            paired_effect(wrong)


def test_p_and_interval_are_one_procedure():
    generator = np.random.default_rng(1)
    for seeds, seed_sd, shift in itertools.product((5, 10), (0.0, 0.05, 1.0), (0.0, 0.1, 1.0, 30.0)):
        effect = paired_effect(made(generator, seeds, 200, seed_sd) + shift)
        if effect.p > 1e-9:
            assert min(map(abs, effect.interval(1 - effect.p))) == pytest.approx(0, abs=1e-7)
    equal = paired_effect(np.zeros((5, 100)))
    assert (equal.p, equal.interval()) == (1, (0, 0))
    assert paired_effect(np.ones((5, 100))).p == 0


def test_the_interval_covers_and_the_smallest_difference_is_found_as_often_as_it_says():
    generator = np.random.default_rng(2)
    for seeds, seed_sd in ((5, 0.3), (10, 0.3), (10, 0.1)):
        effects = [paired_effect(made(generator, seeds, 100, seed_sd)) for _ in range(600)]
        covered = np.mean([low <= 0 <= high for low, high in (e.interval() for e in effects)])
        assert 0.93 <= covered <= 0.98  # 600 studies: a standard error of 0.009
        true = float(np.sqrt(seed_sd**2 / seeds + 1 / 100 + 1 / (100 * seeds)))
        small = np.median([e.smallest_found(0.95) / e.error for e in effects]) * true
        found = np.mean([e.difference + small > e.interval()[1] - e.difference for e in effects])
        assert 0.72 <= found <= 0.9


def test_holm_adjusts_for_the_number_of_comparisons():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    adjusted = holm([math.nan, 0.02, 0.5])
    assert math.isnan(adjusted[0])
    assert adjusted[1:] == pytest.approx([0.04, 0.5])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm_levels([0.01, 0.04, 0.03]) == pytest.approx([1 - 0.05 / 3, 0.975, 0.975])
    found = np.random.default_rng(0).uniform(size=(20, 6)) ** 3
    for p_values in found:  # statsmodels takes two seconds to load, too long for six lines in every study
        assert holm(p_values.tolist()) == pytest.approx(multipletests(p_values, method="holm")[1])


def test_interval_and_verdict_never_contradict_each_other():
    generator, seen = np.random.default_rng(3), set()
    for _ in range(60):
        effects = [paired_effect(made(generator, 5, 80, 0.2) + shift) for shift in generator.normal(0, 0.7, 5)]
        effects.append(paired_effect(made(generator, 3, 80, 0.2)))
        margins = [1.2] * len(effects)
        for effect, finding in zip(effects, family(effects, margins), strict=True):
            seen.add(finding.verdict)
            if effect.seeds < 5:
                assert finding.verdict == "too few seeds"
                continue
            assert (finding.low, finding.high) == pytest.approx(effect.interval(finding.level))
            assert (finding.verdict in ("improves", "worse")) == (finding.low > 0 or finding.high < 0)
            assert (finding.p_holm <= 0.05) == (finding.low > 0 or finding.high < 0)
            inside = finding.low <= 0 <= finding.high and finding.low > -1.2 and finding.high < 1.2
            assert (finding.verdict == "equivalent") == inside
    assert seen == {"improves", "worse", "equivalent", "undecided", "too few seeds"}


def test_an_effect_that_gets_no_verdict_does_not_count_in_the_family():
    effect = paired_effect(made(np.random.default_rng(4), 5, 80, 0.2) + 0.6)
    few = Effect(math.nan, math.nan, 0, 0, *[math.nan] * 4)
    assert family([effect, few, few], [1.0] * 3)[0] == family([effect], [1.0])[0]


def test_over_networks():
    assert math.isnan(over_networks([1.0, 2.0, 3.0, 4.0]))
    assert over_networks([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == pytest.approx(2 / 2**6)
    assert probability_of_improvement([1.0, 3.0], [2.0, 3.0]) == pytest.approx((0 + 0 + 1 + 0.5) / 4)


# ---- of a study ----


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Plain and BYOT, five seeds, with one declared contrast."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content |= {"root": str(ROOT), "models": ["resnet10-slim"], "seeds": ["0-4"]}
    content["contrasts"] = {"byot_plain": {"of": "byot", "against": "plain"}}
    monkeypatch.chdir(tmp_path)

    def declared(**changes):
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(content | changes, sort_keys=False))
        return read_study(tmp_path / "params.yaml")

    return declared


def runs(shift: float = 0.0, seeds: int = 5) -> tuple[list[dict], dict]:
    """Records of both, and what each run says of 200 images; BYOT has two exits of four, the first of them wrong."""
    generator = np.random.default_rng(5)
    hard = generator.normal(size=200)
    records, answers = [], {}
    for variant, exits in (("plain", 1), ("byot", 2)):
        for seed in range(seeds):
            right = (hard + generator.normal(size=(exits, 200)) + (shift if variant == "byot" else 0) > -1).astype(
                np.uint8
            )
            if exits > 1:
                right[0] = 0
            found = record(variant, seed, float(right[-1].mean()), exits=exits) | {"model": "resnet10-slim"}
            rows = found["measures"]["accuracy"]["rows"]["last"]
            for row, r in zip(rows, right, strict=False):
                row["accuracy"] = float(r.mean())
            records.append(found)
            answers[variant, seed] = right
    return records, answers


def asked(study, records: list[dict], answers: dict) -> pd.DataFrame:
    return contrast_table(study, records, lambda r: answers.get((r["variant"], r["seed"])))


def test_a_contrast_is_of_what_runs_say_of_each_image(study):
    records, answers = runs(shift=1.5)
    (row,) = asked(study(), records, answers).to_dict("records")
    d = 100 * np.stack([answers["byot", s][-1].astype(float) - answers["plain", s][0] for s in range(5)])
    effect = paired_effect(d)
    assert (row["n"], row["images"], row["verdict"]) == (5, 200, "improves")
    assert row["difference"] == pytest.approx(effect.difference)
    assert (row["low"], row["high"]) == pytest.approx(effect.interval(0.95))
    text = headline(pd.DataFrame([row]), pd.DataFrame({"n": [5, 5], "control": [True, False]}))
    assert text.startswith("BYOT improves on Plain. 5 seeds a contrast, 5 % error over all contrasts")
    several = pd.DataFrame([{**row, "n": 10}, row])  # tuned variants may have fewer seeds than the first table
    assert "5 to 10 seeds a contrast" in headline(several, pd.DataFrame({"n": [10, 10], "control": [True, False]}))
    readable = tables.readable_contrasts(pd.DataFrame([row]), tables.bold_markdown, " ± ")
    assert readable.Contrast.tolist() == ["BYOT against Plain"]


def test_an_exit_is_compared_with_the_deepest_of_a_network_without_it(study):
    records, answers = runs()
    (row,) = asked(study(contrasts={"c": {"of": "byot", "against": "plain", "exit": 3}}), records, answers).to_dict(
        "records"
    )
    plain = np.mean([answers["plain", s][0].mean() for s in range(5)])
    assert row["difference"] == pytest.approx(-100 * plain)  # BYOT's exit after section 3 of 4 is always wrong
    with pytest.raises(UserError, match=r"contrasts.c.exit: 2 is not allowed; byot of resnet10-slim has exits 3 to 4"):
        asked(study(contrasts={"c": {"of": "byot", "against": "plain", "exit": 2}}), records, answers)


def test_all_exits_together_are_compared_with_those_of_the_other_or_its_deepest(study):
    records, answers = runs()
    together = {"c": {"of": "byot", "against": "plain", "exit": "ensemble"}}
    (row,) = asked(study(contrasts=together), records, answers).to_dict("records")
    assert row["verdict"] == "nothing known per image"  # of runs that were packed before they carried it
    generator = np.random.default_rng(6)
    for record_ in records:
        cell = record_["variant"], record_["seed"]
        if cell[0] == "byot":
            answers[cell] = np.vstack([answers[cell], generator.random(200) > 0.1]).astype(np.uint8)
            record_["measures"]["accuracy"]["rows"]["last"][-1]["accuracy"] = float(answers[cell][-1].mean())
    (row,) = asked(study(contrasts=together), records, answers).to_dict("records")
    d = 100 * np.stack([answers["byot", s][2].astype(float) - answers["plain", s][0] for s in range(5)])
    assert (row["difference"], row["images"]) == (pytest.approx(paired_effect(d).difference), 200)
    assert (row["low"], row["high"]) == pytest.approx(paired_effect(d).interval(0.95))
    (bare,) = asked(study(contrasts=together), records, {}).to_dict("records")
    assert bare["difference"] == pytest.approx(row["difference"])
    readable = tables.readable_contrasts(pd.DataFrame([row]), tables.bold_markdown, " ± ")
    assert readable.Contrast.tolist() == ["BYOT against Plain, all exits together"]
    others = [{**r, "variant": "deep_supervision"} for r in records if r["variant"] == "byot"]
    known = answers | {("deep_supervision", s): np.roll(answers["byot", s], 1, axis=1) for s in range(5)}
    both = {"c": {"of": "byot", "against": "deep_supervision", "exit": "ensemble"}}
    (row,) = asked(study(contrasts=both), records + others, known).to_dict("records")
    d = np.stack([answers["byot", s][2].astype(float) - known["deep_supervision", s][2] for s in range(5)])
    assert row["difference"] == pytest.approx(100 * d.mean())
    single = {"c": {"of": "plain", "against": "byot", "exit": "ensemble"}}
    with pytest.raises(UserError, match=r"contrasts.c.exit: ensemble is not allowed; plain of resnet10-slim has one"):
        asked(study(contrasts=single), records, answers)


def test_no_verdict_where_it_would_rest_on_too_little(study):
    records, answers = runs(shift=1.5)
    few = [r for r in records if r["seed"] < 3]
    assert asked(study(), few, answers).verdict.tolist() == ["too few seeds"]
    (row,) = asked(study(), records, {}).to_dict("records")  # imported from before runs carried their images
    assert row["verdict"] == "nothing known per image"
    assert row["half_width"] > 0
    assert asked(study(), records[:5], answers).verdict.tolist() == ["too few seeds"]  # BYOT has not run
    alone = study(methods=["plain"], students=[], hyper={"plain": {}})
    assert asked(alone, records[:5], answers).verdict.tolist() == ["not in this study"]
    assert "1 of 1 contrasts get no verdict" in headline(
        asked(alone, records[:5], answers), pd.DataFrame({"n": [5], "control": [True]})
    )


def test_the_same_runs_and_contrasts_give_the_same_verdict_whatever_else_a_study_lists(study):
    records, answers = runs(shift=0.4)
    alone = study(methods=["plain", "byot"], students=[], hyper={"plain": {}, "byot": {}})
    assert asked(study(), records, answers).to_dict() == asked(alone, records, answers).to_dict()


def test_several_networks_share_one_family_and_have_a_row_over_all(study):
    records, answers = runs(shift=1.5)
    models = ["resnet10-slim", "resnet18"]
    both = [{**r, "model": model} for model in models for r in records]
    several = study(models=models)
    table = asked(several, both, answers)
    assert table.p_holm.tolist() == pytest.approx((2 * table.p).tolist())
    over = network_table(several, table, both)
    assert over.networks.tolist() == [2]
    assert over.probability_of_improvement.iloc[0] > 0.9
    assert network_table(study(), asked(study(), records, answers), records).empty


@pytest.mark.parametrize(
    ("contrast", "said"),
    [
        (
            {"of": "byott", "against": "plain"},
            "contrasts.c.of: 'byott' is no method and no variant; did you mean 'byot'?",
        ),
        ({"of": "byot", "against": "byot"}, "contrasts.c.against: 'byot' is what it is compared with"),
        ({"of": "byot", "against": "plain", "exit": 0}, "contrasts.c.exit"),
        ({"of": "byot", "against": "plain", "exit": "all"}, "contrasts.c.exit"),
        ({"of": "byot", "against": "plain", "margin": 0}, "contrasts.c.margin"),
        ({"of": "byot"}, "contrasts.c.against"),
    ],
)
def test_a_faulty_contrast_is_refused_with_its_place(study, contrast, said):
    with pytest.raises(ConfigError) as raised:
        study(contrasts={"c": contrast})
    assert said in str(raised.value)
    with pytest.raises(ConfigError, match=r"contrasts.d: the same two variants, exit and table as contrasts.c"):
        study(contrasts={"c": {"of": "byot", "against": "plain"}, "d": {"of": "plain", "against": "byot"}})
    tuned = {"of": "byot", "against": "plain", "table": "tuned"}
    assert study(contrasts={"c": {"of": "byot", "against": "plain"}, "d": tuned}).contrasts["d"].pair == (
        "byot-tuned",
        "plain-tuned",
    )


def test_every_card_names_a_look_of_its_own_and_a_matched_control():
    looks = [methods.about(name)["look"] for name in methods.names()]
    assert len(set(looks)) == len(looks)
    for name in methods.names():
        control = methods.about(name)["control"]
        assert (control is None) == (name == "plain")
        assert control is None or (control["method"] in methods.names() and control["method"] != name)


def test_what_lies_far_out_is_cut_off_with_an_arrow():
    from selfdistill.reporting.figures import axis_of

    centres = pd.Series([1.0, 0.5, -0.3, -43.0])
    low, high = axis_of(centres, centres - 1, centres + 1)
    assert -10 < low < -1.3
    assert 2 < high < 4
    near = pd.Series([1.0, 0.5, -0.3, -3.0])
    assert axis_of(near, near - 1, near + 1)[0] < -4  # shown whole
