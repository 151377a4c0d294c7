"""Intervals, verdicts, tables and figures."""

import copy
import json
import math
import shutil
import subprocess
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from selfdistill import methods
from selfdistill.errors import UserError
from selfdistill.outside import OutsideError
from selfdistill.reporting import tables
from selfdistill.reporting.figures import draw_curves, draw_figures, draw_own, panels, style_of
from selfdistill.reporting.files import write_together
from selfdistill.reporting.older import upgraded
from selfdistill.reporting.page import card_address, sort_value
from selfdistill.summary import STYLE
from selfdistill.summary.figure import looks_of
from selfdistill.summary.grouping import headline_row
from selfdistill.summary.statistics import mean_interval
from selfdistill.summary.text import as_csv, bold_latex, bold_markdown, latex, readable

ROOT = Path(__file__).parents[1]


def test_the_interval_is_students():
    values = [91.0, 93.5, 92.2, 90.8, 94.1]
    mean, half_width = mean_interval(values)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert (mean - half_width, mean + half_width) == pytest.approx((low, high))
    assert mean_interval([90.0])[0] == 90
    assert math.isnan(mean_interval([90.0])[1])
    with pytest.raises(UserError, match="0 values is not defined; allowed: at least 1"):
        mean_interval([])


def bare(_: dict) -> None:
    """Nothing is known of single images: differences are of whole runs."""


def tables_of(records: list[dict], selection: str = "last") -> dict[str, pd.DataFrame]:
    return tables.analysis_tables(records, selection, "plain", bare)


def accuracy_of(records: list[dict], selection: str = "last") -> pd.DataFrame:
    return tables_of(records, selection)["accuracy"]


def record(method: str, seed: int, accuracy: float, exits: int = 1, **members: dict) -> dict:
    result = {"accuracy": accuracy, "nll": 0.3, "ece": 0.05}
    test = {"exits": [result] * exits} | ({"ensemble": result} if exits > 1 else {})
    test |= {"members": members} if members else {}
    best = {"exits": [{**result, "accuracy": accuracy - 0.01}] * exits} | ({"ensemble": result} if exits > 1 else {})
    told = {
        "model": "net_a",
        "variant": method,
        "method": method,
        "title": {"plain": "Plain", "byot": "BYOT 100% & more"}[method],
        "seed": seed,
        "sections": 4,
        "test": {"last": test, "validation": best},
        "history": {"epoch": [1, 2], "validation_accuracy": [0.5, accuracy], "training_accuracy": [0.6, 1.0]},
        "weights_sha256": "0" * 64,
        "validation_best_epoch": 2,
        "cost": {
            "parameters": 1000,
            "training_flops": 2_000_000_000 * exits,
            "teacher_training_flops": 0,
            "inference_macs": [1_000_000 * (i + 1) for i in range(exits)],
            "ensemble_macs": 5_000_000,
        },
    }
    return upgraded(told)


RECORDS = [record("plain", s, a) for s, a in enumerate((0.90, 0.91, 0.92))] + [
    record("byot", s, a, exits=4) for s, a in enumerate((0.94, 0.951, 0.962))
]


def test_the_accuracy_table_pairs_by_seed():
    table = accuracy_of(RECORDS).set_index("variant")
    assert table.loc["byot", "accuracy"] == pytest.approx(95.1)
    assert table.loc["byot", "difference"] == pytest.approx(4.1)
    assert table.loc["byot", "difference_half_width"] == pytest.approx(stats.t.ppf(0.975, 2) * 0.1 / math.sqrt(3))
    assert table.control.to_dict() == {"plain": True, "byot": False}
    of_validation = accuracy_of(RECORDS, "validation").set_index("variant")
    assert of_validation.loc["plain", "accuracy"] == pytest.approx(90.0)


def test_a_missing_seed_is_left_out_of_the_pairs_and_counted():
    table = accuracy_of(RECORDS[:2] + RECORDS[3:]).set_index("variant")
    assert table.loc["plain", "n"] == 2
    assert table.loc["byot", "difference"] == pytest.approx(4.05)


def test_exits_and_cost():
    exits = tables_of(RECORDS)["exits"]
    assert exits[exits.variant == "plain"].exit.tolist() == ["4/4"]
    assert exits[exits.variant == "byot"].exit.tolist() == ["1/4", "2/4", "3/4", "4/4", "ensemble"]
    assert exits[exits.variant == "byot"].million_macs.tolist() == [1, 2, 3, 4, 5]
    cost = tables_of(RECORDS)["cost"]
    assert cost.relative_cost.tolist() == [1, 4]
    given = copy.deepcopy(RECORDS)
    for run in given[:3]:
        run["measures"]["cost"]["rows"]["last"][0] |= {"training_gflops": 0, "total_gflops": 0}
    cost = tables_of(given)["cost"]
    assert cost.relative_cost.isna().all()  # a control of given weights cost nothing


def test_networks_beside_a_runs_last_one_have_a_table_of_their_own():
    tested = {"phase_1": {"accuracy": 0.8}, "average": {"accuracy": 0.95}, "together": {"accuracy": 0.93}}
    records = [record("plain", seed, 0.90 + 0.01 * seed, **tested) for seed in range(3)]
    assert "members" not in tables_of(RECORDS)
    table = tables_of(RECORDS[3:] + records)["members"]
    assert table.member.tolist() == ["after phase 1", "average of weights", "the network", "all together"]
    assert table.accuracy.tolist() == pytest.approx([80, 95, 91, 93])
    shown = readable("members", table, bold_markdown, " ± ")["Test accuracy (%)"].tolist()
    assert shown[1] == "**95.00 ± 0.00**"
    assert not any(text.startswith("**") for text in (shown[0], *shown[2:]))


def measured(analysis: str, rows: list[list[dict]]) -> list[dict]:
    """Runs of Plain with what an analysis found of each."""
    records = [record("plain", seed, 0.9 + 0.01 * seed) for seed in range(len(rows))]
    for one, found in zip(records, rows, strict=True):
        one["measures"][analysis] = {"key": "0" * 64, "rows": {"last": found}}
    return records


def test_what_is_made_of_all_seeds_together_says_so():
    teacher = [{"with": "teacher", "pairs": 1, "agreement": share} for share in (0.8, 0.9)]
    seeds = {"with": "another seed", "pairs": 1, "agreement": 0.85}
    table = tables_of(measured("agreement", [[teacher[0], seeds], [teacher[1]]]))["agreement"]
    shown = readable("agreement", table, bold_markdown, " ± ")
    assert shown["Seeds"].tolist() == ["2", "2 together"]
    assert shown["Same answer (%)"].tolist() == ["85.00 ± 63.53", "85.00"]


def test_a_counted_cost_has_no_interval_and_equal_cells_are_both_bold():
    spent = {"rule": "a fixed exit", "million_macs": 0.5}
    found = [[{**spent, "at": at, "accuracy": share} for at, share in (("1/2", 0.9), ("2/2", 0.90001))]] * 3
    shown = readable("anytime", tables_of(measured("anytime", found))["anytime"], bold_markdown, " ± ")
    assert shown["M MACs, mean"].tolist() == ["0.500"] * 2
    assert shown["Test accuracy (%)"].tolist() == ["**90.00 ± 0.00**"] * 2


def test_a_number_that_no_run_defines_is_empty_everywhere(tmp_path):
    """Its column and half-width are there, whether it leads or follows, and figures of it are drawn."""
    rows = [{"exit": "4/4", "scatter": None, "two": 0.5, "dimensions": None}]
    records = [
        {**one, "probes": {"far": {"analysis": "separability", "selection": "last", "rows": rows}}} for one in RECORDS
    ]
    found = tables_of(records)
    assert found["separability"][["scatter", "half_width", "difference", "dimensions"]].isna().all(axis=None)
    shown = readable("separability", found["separability"], bold_markdown, " ± ")
    assert shown["Scatter between / within classes"].tolist() == ["", ""]
    assert shown["Variance in two components (%)"].tolist() == ["50.00"] * 2
    for name, table in {
        **found,
        "runs": tables.run_table(records, "last"),
        "curves": tables.curve_table(records),
    }.items():
        write_together({tmp_path / "tables" / f"{name}.csv": as_csv(name, table).encode()})
    draw_figures(tmp_path)
    assert (tmp_path / "figures" / "separability.svg").is_file()


def test_a_legend_shows_markers_and_no_error_bars():
    with plt.style.context(STYLE):
        ax = plt.figure().add_subplot()
        ax.errorbar([1], [1], yerr=[1], fmt="o", label="BYOT")
        style_of({"accuracy": accuracy_of(RECORDS), "runs": tables.run_table(RECORDS, "last")}).legend(ax)
        (handle,) = ax.get_legend().legend_handles
    assert isinstance(handle, plt.Line2D)


def test_cards_are_linked_from_where_the_page_lies():
    for root, study in ((".", Path()), ("../..", Path("studies/digits-all"))):
        for name in ("byot", "plain"):
            assert (ROOT / study / "results" / card_address(root, name)).resolve().is_file()


def test_figures_of_many_methods_have_a_titled_panel_a_group(tmp_path):
    """Every method in a panel of its group with the control, and in a row of its own with its cost."""
    names = methods.names()
    records = [
        {
            **record("plain", seed, 0.9 + 0.01 * seed),
            "variant": name,
            "method": name,
            "title": methods.about(name)["title"],
        }
        for name in ["plain", *(n for n in names if n != "plain")]
        for seed in range(2)
    ]
    found = tables_of(records)
    frames = {**found, "runs": tables.run_table(records, "last"), "curves": tables.curve_table(records)}
    for name, table in frames.items():
        write_together({tmp_path / "tables" / f"{name}.csv": as_csv(name, table).encode()})
    draw_figures(tmp_path)
    looks, style = looks_of(frames["accuracy"]), style_of(frames)
    assert len({(look.colour, look.marker) for look in looks.values()}) == len(names)
    with plt.style.context(STYLE):
        curves = panels(frames, draw_curves, style, (6, 4), grouped=True)
        cost = panels(frames, partial(draw_own, "cost"), style, (6, 9), grouped=False).axes[0]
    assert [ax.get_title(loc="left") for ax in curves.axes] == [
        f"Training curves: {group}" for group in dict.fromkeys(frames["accuracy"].group)
    ]
    assert sum(len(ax.lines) for ax in curves.axes) == len(names) + 3  # the control in each of four
    for ax in curves.axes:
        drawn = [(line.get_color(), line.get_marker()) for line in ax.lines]
        assert len(set(drawn)) == len(drawn)
    assert cost.get_title(loc="left") == "Accuracy, the cheapest training on top"
    assert len(cost.get_yticklabels()) == len(names)


def test_latex_is_a_booktabs_tabular_with_the_best_in_bold_and_names_escaped():
    table = accuracy_of(RECORDS)
    text = latex(readable("accuracy", table, bold_latex, r" \pm "), "accuracy")
    for part in (
        r"\toprule",
        r"\midrule",
        r"\bottomrule",
        r"BYOT 100\% \& more",
        r"$\mathbf{95.10 \pm ",
    ):
        assert part in text
    assert text.count(r"\mathbf") == 1
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len({line.replace(r"\&", "").count("&") for line in rows}) == 1


def test_metrics_hold_one_number_a_method_and_the_cost():
    assert tables.metrics(tables_of(RECORDS), RECORDS) == {"plain": 91.0, "byot": 95.1, "training_gflops": 30.0}


def test_plots_of_dvc_keep_networks_and_variants_apart(tmp_path):
    """What a template leaves out of its encodings is drawn over one another."""
    shutil.copytree(ROOT / ".dvc/plots", tmp_path / ".dvc/plots")
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    plots = yaml.safe_load((ROOT / "dvc.yaml").read_text())["plots"]
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"plots": plots}))
    both = [*RECORDS, *({**r, "model": "resnet20"} for r in RECORDS)]
    drawn = {"runs": tables.run_table(both, "last"), "curves": tables.curve_table(both)}
    for name, table in drawn.items():
        write_together({tmp_path / f"results/tables/{name}.csv": as_csv(name, table).encode()})
    done = subprocess.run(["dvc", "plots", "show", "--json"], cwd=tmp_path, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)["data"]
    assert len(found) == len(drawn)
    for name, table in drawn.items():
        (plot,) = found[f"results/tables/{name}.csv"]
        spec = json.loads(plot["content"]) if isinstance(plot["content"], str) else plot["content"]
        assert "<DVC" not in json.dumps(spec)
        assert len(spec["data"]["values"]) == len(table)
        assert spec["facet"]["row"]["field"] == "model"
        fields = set(fields_in(spec["spec"]))
        assert {"model", "variant"} <= fields <= {*table.columns, "rev"}
        assert '"title": "' + {"runs": "test", "curves": "validation"}[name] + ' accuracy (%)"' in json.dumps(spec)
        assert '"tooltip"' in json.dumps(spec)


def test_an_undefined_number_is_an_empty_cell_and_an_infinite_one_is_refused():
    table = pd.DataFrame({"variant": ["plain"], "accuracy": [90.0], "half_width": [math.nan]})
    assert as_csv("table", table) == "variant,accuracy,half_width\nplain,90.0,\n"
    with pytest.raises(UserError, match=r"table: infinite numbers in accuracy are not allowed"):
        as_csv("table", table.assign(accuracy=-math.inf))


def fields_in(spec: dict | list) -> list[str]:
    """Every column that an encoding names."""
    parts = spec.values() if isinstance(spec, dict) else spec
    inside = [field for part in parts if isinstance(part, dict | list) for field in fields_in(part)]
    return [spec["field"], *inside] if isinstance(spec, dict) and "field" in spec else inside


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("92.14 ± 1.66", 92.14),
        ("+0.81 ± 1.49", 0.81),
        ("< 0.001", 0.001),
        ("-4.70", -4.7),
        ("124,378", 124378.0),
        ("1/4", 1.0),
        ("-2.12 to +2.54 (99.17 %)", -2.12),
        ("1.33 (1.20 to 1.46)", 1.33),
        ("3 of 10", 3.0),
        ("1e-05", 1e-5),
        ("10 together", 10.0),
        ("2 networks", "2 networks"),
        ("Plain", "Plain"),
        ("", ""),
    ],
)
def test_a_cell_sorts_by_its_number(text, value):
    assert sort_value(text) == value


def test_figures_drawn_again_are_equal_to_the_byte(tiny_study, tmp_path):
    for source in (tiny_study / "results/tables").glob("*.csv"):
        (tmp_path / "tables").mkdir(exist_ok=True)
        (tmp_path / "tables" / source.name).write_bytes(source.read_bytes())
    draw_figures(tmp_path)
    drawn = ("contrasts", "differences", "accuracy", "curves", "exits", "anytime", "cost", "calibration", "selective")
    names = {p.name for p in (tmp_path / "figures").iterdir()}
    assert {f"{n}.{k}" for n in drawn for k in ("svg", "png")} <= names
    assert {p.name for p in (tiny_study / "results/figures").iterdir()} == names
    for name in names:
        assert (tmp_path / "figures" / name).read_bytes() == (tiny_study / "results/figures" / name).read_bytes(), name


@pytest.mark.parametrize("name", ["accuracy", "curves", "runs"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text(path.read_text().replace("model", "network", 1)),
        lambda path: path.write_bytes(path.read_bytes()[:-40]),
        lambda path: path.write_text(path.read_text().replace("plain", "byot", 1)),
        Path.unlink,
    ],
    ids=["column", "cut off", "cell", "gone"],
)
def test_a_table_that_is_not_as_it_was_written_is_named_and_nothing_is_drawn(name, damage, tiny_study, tmp_path):
    shutil.copytree(tiny_study / "results/tables", tmp_path / "tables")
    damage(tmp_path / f"tables/{name}.csv")
    with pytest.raises(OutsideError, match=rf"{name}\.csv: cannot be read \(.*`selfdistill tables` writes it again$"):
        draw_figures(tmp_path)
    assert not (tmp_path / "figures").exists()


def test_the_hashes_beside_tables_are_sha256sums(tiny_study):
    subprocess.run(
        ["sha256sum", "--check", "--quiet", "--strict", "SHA256SUMS"], cwd=tiny_study / "results/tables", check=True
    )


def test_rendered_tables_are_those_of_the_records(tiny_study):
    runs = pd.read_csv(tiny_study / "results/tables/runs.csv")
    assert len(runs) == 6
    for row in runs.itertuples():
        path = tiny_study / f"results/records/measured/{row.model}/{row.variant}/{row.seed}.json"
        recorded = json.loads(path.read_text())
        assert row.test_accuracy_last == pytest.approx(100 * headline_row(recorded, "last")["accuracy"], abs=1e-4)
    means = json.loads((tiny_study / "results/metrics.json").read_text())
    for variant, group in runs.groupby("variant"):
        assert means[variant] == pytest.approx(group.test_accuracy.mean(), abs=0.006)
