"""Equal tuning: the same number of trials for every variant, each a pure function of what the study says."""

import json
import math
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT, Project

from selfdistill import methods
from selfdistill.cli.cells import read_cell
from selfdistill.config import Recipe
from selfdistill.errors import UserError
from selfdistill.params import read_study
from selfdistill.reporting.tuning import best_table, expected_best, winners_table
from selfdistill.schema import ConfigError
from selfdistill.search import COMMON, DIGITS, sobol_point, spaces_of, trial_values, untuned, winner

SEARCHED = {"methods": ["plain", "byot"], "students": ["drkd"], "trials": 2, "replicates": 2, "epochs": 2}


def values(method: str, seed: int, trial: int, ratio: float = 1.0) -> tuple[dict, dict]:
    bounds = methods.executed(method)["hyper"]
    published = {key: spec["default"] for key, spec in bounds.items()}
    return trial_values(
        COMMON["sgd"], spaces_of(method), published, bounds, f"digits/{method}", seed, trial, lambda *_: ratio
    )


def test_the_first_trial_has_the_values_as_published():
    for method in methods.names():
        hyper, recipe = values(method, seed=3, trial=0)
        assert (hyper, recipe) == ({key: s["default"] for key, s in methods.about(method)["hyper"].items()}, {})


def test_a_trial_does_not_depend_on_how_many_there_are_nor_on_their_order():
    late = [values("drkd", 1, trial) for trial in (5, 2, 1)]
    assert late[::-1] == [values("drkd", 1, trial) for trial in (1, 2, 5)]
    assert len({json.dumps(v) for v in late}) == 3
    assert values("drkd", 2, 1) != values("drkd", 1, 1), "another replicate, another search"


def test_the_points_of_a_search_fill_the_space_evenly():
    """Of eight scrambled Sobol points each eighth of every axis holds one; eight random numbers do so once in 400."""
    points = np.array([sobol_point(5, 7, i) for i in range(8)])
    assert (np.sort((points * 8).astype(int), axis=0) == np.arange(8)[:, None]).all()


@pytest.mark.parametrize("method", methods.names())
def test_every_value_is_one_that_the_method_takes_and_lies_in_its_space(method):
    for trial in range(1, 6):
        hyper, recipe = values(method, seed=0, trial=trial, ratio=0.5)
        methods.create(method, **hyper)  # refuses what is out of bounds
        for key, space in COMMON["sgd"].items():
            assert space["low"] <= recipe[key] <= space["high"]
        for key, space in spaces_of(method).items():
            if "value" in space:
                assert hyper[key] == space["value"]
                continue
            product = hyper[key] * math.prod(hyper[k] ** power for k, power in space.get("times", {}).items())
            if "share" in space:
                product = product / (product + 0.5)  # of a term that is 2 at weight 1, beside others that are 1
            slack = 10 ** (1 - DIGITS)
            assert space["low"] * (1 - slack) <= product <= space["high"] * (1 + slack), (key, trial)


@pytest.mark.parametrize("optimiser", COMMON)
def test_a_recipe_takes_both_ends_of_what_is_searched_of_it(optimiser):
    recipe = {**read_study(ROOT / "params.yaml").recipe.model_dump(), "optimiser": optimiser, "nesterov": False}
    for end in ("low", "high"):
        Recipe.model_validate(recipe | {key: space[end] for key, space in COMMON[optimiser].items()})


def test_no_method_has_more_than_three_dimensions_of_its_own():
    own = {name: [k for k, s in spaces_of(name).items() if "value" not in s] for name in methods.names()}
    assert all(len(keys) <= 3 for keys in own.values())
    assert not own["plain"], "the control is tuned in learning rate and weight decay"


def test_spaces_hold_the_values_that_suit_ten_classes_and_small_maps():
    """DR-KD at alpha 0.9, T 4, m 1 over the batch mean, and AT at weight 10, of which the term is 28 % of the first
    loss on digits (0.925 of 3.350, resnet10-slim), do well where the published weights fail."""
    space = spaces_of("drkd")
    assert space["alpha"]["low"] <= 0.9 <= space["alpha"]["high"]
    assert space["temperature"]["low"] <= 4 <= space["temperature"]["high"]
    assert space["multiplier"]["low"] <= 0.9 * 4**2 * 1 <= space["multiplier"]["high"]
    assert space["reduction"] == {"value": "batchmean"}
    share = spaces_of("attention_transfer")["weight"]
    assert share["low"] <= 0.925 / 3.350 <= share["high"]


def test_spaces_name_no_data_set():
    catalogue = yaml.safe_load((ROOT / "data/params.yaml").read_text())["datasets"]
    for name in methods.names():
        text = json.dumps(spaces_of(name))
        assert not [data for data in catalogue if data in text]


def test_the_lowest_loss_wins_and_one_that_diverged_never():
    assert winner([0.5, 0.3, 0.3]) == 1
    assert winner([None, 0.9]) == 1
    assert winner([None, None]) is None


def test_the_expected_best_is_the_mean_over_all_draws():
    """Against the literal definition: every way to draw k of n values with replacement."""
    drawn = [0.2, 0.9, 0.4]
    pairs = [max(a, b) for a in drawn for b in drawn]
    assert expected_best(drawn, 1) == pytest.approx(sum(drawn) / 3)
    assert expected_best(drawn, 2) == pytest.approx(sum(pairs) / 9)


def test_a_curve_rises_and_a_trial_that_diverged_counts():
    found = best_table([record_of([0.5, None, 0.8]), record_of([0.6, 0.7, 0.1])])
    assert found.trials.tolist() == [1, 2, 3]
    assert found.expected_best.is_monotonic_increasing
    assert found.expected_best[0] == pytest.approx(100 * ((0.5 + 0 + 0.8) / 3 + (0.6 + 0.7 + 0.1) / 3) / 2)


def test_the_winners_table_says_how_far_they_lie_from_the_published_values():
    table = winners_table([record_of([0.5, 0.8, 0.1]), record_of([0.9, 0.2, 0.1])])
    row = table[table.value == "learning_rate"].iloc[0]
    assert (row.published, row["median"], row.range, row.won_by_published, row.n) == ("0.1", "0.15", "0.1 to 0.2", 1, 2)
    assert row.times_published == pytest.approx(1.5)


def record_of(accuracies: list[float | None]) -> dict:
    """Of a run whose search reached these; the i-th trial has the learning rate (i + 1) / 10."""
    results = [
        {"hyper": {}, "recipe": {"learning_rate": (i + 1) / 10} if i else {}, "validation_accuracy": a}
        for i, a in enumerate(accuracies)
    ]
    best = max(range(len(results)), key=lambda i: accuracies[i] or 0)
    published = {"hyper": {}, "recipe": {"learning_rate": 0.1}}
    search = {"results": results, "winner": best, "published": published, "flops": 1, "teacher_flops": 0}
    return {"model": "m", "variant": "plain-tuned", "method": "plain", "title": "Plain, tuned", "tuning": search}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods": ["plain", "bytt"]}, "tuning.methods[1]: 'bytt' is no method and no variant; did you mean 'byot'"),
        ({"methods": ["plain", "kd"]}, "tuning.methods[1]: 'kd' is not allowed; allowed: under students"),
        ({"students": ["sd"]}, "tuning.students[0]: 'sd' is not allowed"),
        ({"methods": ["plain", "plain"]}, "tuning.methods: 'plain' stands there twice"),
        ({"methods": ["byot"], "students": []}, "tuning: without 'plain' nothing can be compared"),
        ({"methods": ["byot"]}, "tuning.methods: 'plain' is missing; allowed: with it, the teacher"),
        ({"epochs": 1}, "tuning.epochs: 1 is not allowed; allowed: more than recipe.warmup_epochs (1)"),
        ({"trials": 0}, "tuning.trials: 0"),
    ],
)
def test_a_search_that_cannot_be_is_refused_by_the_check(tmp_path, changes, said):
    content = yaml.safe_load((ROOT / "params.yaml").read_text()) | {"root": str(ROOT)}
    content["tuning"] |= changes
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError) as error:
        read_study(tmp_path / "params.yaml")
    assert said in str(error.value)


def test_the_name_of_tuned_values_is_taken(tmp_path):
    content = yaml.safe_load((ROOT / "params.yaml").read_text()) | {"root": str(ROOT)}
    content["variants"] = {"x-tuned": {"method": "plain"}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=r"variants\.x-tuned: the name of tuned values"):
        read_study(tmp_path / "params.yaml")


def test_what_is_searched_need_not_be_listed_as_published(tmp_path, monkeypatch):
    """Lists are cut for a quick run; the stages of `tuning` are there all the same."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text()) | {"root": str(ROOT)}
    content |= {"methods": ["plain"], "students": []}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    asked = Namespace(model="resnet10-slim", variant="sd")
    assert read_cell(asked, tuned=True).teacher_of("drkd-tuned") == ("plain-tuned", None)
    with pytest.raises(UserError, match=r"--variant sd is not in params\.yaml"):
        read_cell(asked)


def test_a_tuned_variant_has_a_seed_a_replicate_and_a_tuned_teacher():
    study = read_study(ROOT / "params.yaml")
    assert [variant for variant in study.all_variants if untuned(variant)] == [
        f"{name}-tuned" for name in (*study.tuning.methods, *study.tuning.students)
    ]
    assert study.seeds_of("byot-tuned") == study.seeds[: study.tuning.replicates]
    assert study.teacher_of("drkd-tuned") == ("plain-tuned", None)
    assert study.teacher_of("byot-tuned") == (None, None)


@pytest.fixture(scope="session")
def searched(tiny_study, made_once) -> Project:
    """The tiny study with a search, run.  Not to be changed."""

    def make(folder: Path) -> None:
        shutil.copytree(tiny_study.folder, folder, symlinks=True, dirs_exist_ok=True)
        project = Project(folder)
        project.params(**{f"tuning.{key}": value for key, value in SEARCHED.items()})
        project.run("dvc", "repro", "--quiet")

    return Project(made_once("searched", make))


@pytest.fixture
def mine(searched, tmp_path) -> Project:
    """A copy of it, to do with as one likes."""
    shutil.copytree(searched.folder, tmp_path / "repo", symlinks=True)
    return Project(tmp_path / "repo")


def files(project, kind: str) -> dict[str, bytes]:
    folder = project / "results" / kind
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*.*")) if p.name[0] != "."}


def test_more_trials_leave_the_first_as_they_are_and_train_only_the_new(mine):
    before = files(mine, "tuning")
    runs = {name: content for name, content in files(mine, "runs").items() if "tuned" in name}
    mine.params(**{"tuning.trials": 3})
    said = mine.run("dvc", "repro", "tune@resnet10-slim-plain").stdout
    after = files(mine, "tuning")
    trials = {
        name: content
        for name, content in before.items()
        if name.startswith("resnet10-slim/plain/") and "-" in name[20:]
    }
    assert len(trials) == 4
    assert {name: after[name] for name in trials} == trials
    assert set(after) - set(before) == {f"resnet10-slim/plain/{seed}-2.json" for seed in (0, 1)}
    for seed in (0, 1):
        won = json.loads(after[f"resnet10-slim/plain/{seed}.json"])["winner"]
        if won < 2:
            assert f"resnet10-slim/plain-tuned/{seed}: finished before" in said
            name = f"resnet10-slim/plain-tuned/{seed}/weights.safetensors"
            assert files(mine, "runs")[name] == runs[name]


def test_a_search_comes_out_equal_to_the_byte_when_all_is_trained_again(mine):
    kinds = ("tuning", "tables")
    before = {kind: files(mine, kind) for kind in kinds}
    mine.fresh("dvc", "repro", "--quiet", "--force", "tune@resnet10-slim-byot")
    mine.run("dvc", "repro", "--quiet")
    assert {kind: files(mine, kind) for kind in kinds} == before


def test_a_winner_is_trained_from_other_weights_than_its_trial_on_the_same_images(searched):
    run = json.loads((searched / "results/runs/resnet10-slim/byot-tuned/1/run.json").read_text())
    published = json.loads((searched / "results/runs/resnet10-slim/byot/0-1/1/run.json").read_text())
    assert run["split"] == published["split"], "the images of that seed"
    search = json.loads((searched / "results/tuning/resnet10-slim/byot/1.json").read_text())
    best = search["results"][search["winner"]]
    assert {key: run["hyper"][key] for key in best["hyper"]} == best["hyper"]
    assert {key: run["recipe"][key] for key in best["recipe"]} == best["recipe"]
    assert run["recipe"]["epochs"] == 2


def test_both_tables_stand_on_one_page_with_what_tuning_costs(searched):
    tables = searched / "results/tables"
    assert {path.stem for path in tables.glob("*.md")} >= {"accuracy", "accuracy_tuned", "tuning", "cost_tuned"}
    published, tuned = ((tables / f"accuracy{end}.csv").read_text().splitlines()[0] for end in ("", "_tuned"))
    assert published == tuned, "the same columns"
    page = (searched / "results/index.html").read_text()
    assert "with values as published" in page
    assert "equally tuned" in page
    search = json.loads((searched / "results/tuning/resnet10-slim/drkd/0.json").read_text())
    teacher = json.loads((searched / "results/tuning/resnet10-slim/plain/0.json").read_text())
    assert search["teacher_flops"] == teacher["flops"], "the teacher's search is paid for, too"
    assert search["flops"] == sum(result["flops"] for result in search["results"])


def test_tuned_runs_are_packed_and_come_home_with_their_search(mine, tmp_path):
    packed = tmp_path / "records.jsonl.gz"
    mine.run("selfdistill", "records", "export", str(packed))
    before = (mine / "results/tables/tuning.csv").read_bytes()
    for kind in ("records/measured/resnet10-slim/byot-tuned", "runs/resnet10-slim/byot-tuned"):
        shutil.rmtree(mine / "results" / kind)
    said = mine.run("selfdistill", "records", "import", str(packed)).stdout
    assert "byot-tuned" in said
    mine.run("workflow/run", "tables")
    assert (mine / "results/tables/tuning.csv").read_bytes() == before
