"""Tables from records: CSV for machines, Markdown for readers, LaTeX (booktabs) for papers.

Accuracies are percentages of the test split.  `accuracy` is that of the deepest exit, the network
that plain training gives too, at the epoch that the study selects (last, or best on validation).  Where
persons were to be found again it is `rank1` in its place; see `selfdistill.reporting.measure`.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from selfdistill import methods
from selfdistill.config import Study
from selfdistill.errors import UserError
from selfdistill.reporting.contrasts import Right, contrast_table, effect_of, network_table, reader
from selfdistill.reporting.files import write_together
from selfdistill.reporting.measure import Measure, measure_of
from selfdistill.reporting.records import by_variant, machine, read_records
from selfdistill.reporting.statistics import Effect, mean_interval, paired_effect
from selfdistill.reporting.tuning import best_table, search_flops, winners_table
from selfdistill.search import TUNED, untuned

Bold = Callable[[str, bool], Any]  # a cell's text and whether it is the best: how the cell stands there
DECIMALS = 4  # of the CSV files; percentages, so 1e-4 is far below one image


def write_tables(study: Study) -> None:
    """Write results/tables and results/metrics.json."""
    every = read_records(study)
    records, tuned = [[r for r in every if bool(untuned(r["variant"])) == of_search] for of_search in (False, True)]
    folder = study.results / "tables"
    members, corrupted = member_table(records), set_table(records, study.selection)
    right = reader(study)
    contrasts = contrast_table(study, every, right)
    accuracy = accuracy_table(records, study.selection, study.control, right)
    exits = exit_table(records, study.selection)
    cost = cost_table(records, accuracy, study.control)
    after = accuracy_table(tuned, study.selection, study.control + TUNED, right) if tuned else pd.DataFrame()
    written = [
        ("contrasts", contrasts, readable_contrasts),
        ("networks", network_table(study, contrasts, every), readable_networks),
        ("accuracy", accuracy, readable_accuracy),
        ("accuracy_tuned", after, readable_accuracy),
        ("cost_tuned", cost_table(tuned, after, study.control + TUNED) if tuned else after, readable_cost),
        ("tuning", winners_table(tuned), readable_winners),
        ("exits", exits, readable_exits),
        ("cost", cost, readable_cost),
        ("members", members, readable_members),
        ("robustness", robustness_table(records, study.selection, study.control), readable_robustness),
    ]
    files: dict[Path, str] = {}
    for name, exact, readable in written:
        if exact.empty:
            continue
        table = exact.round(DECIMALS)  # before all: CSV, tables and the page then round the same number
        files[folder / f"{name}.csv"] = as_csv(name, table)
        files[folder / f"{name}.md"] = markdown(readable(table, bold_markdown, " ± "))
        files[folder / f"{name}.tex"] = latex(readable(table, bold_latex, r" \pm "), name)
    if tuned:
        files[folder / "expected_best.csv"] = as_csv("expected_best", best_table(tuned))
    files[folder / "runs.csv"] = as_csv("runs", run_table(every, study.selection))
    files[folder / "curves.csv"] = as_csv("curves", curve_table(records))
    if len(corrupted):
        files[folder / "robustness_sets.csv"] = as_csv("robustness_sets", corrupted)
    files[study.results / "metrics.json"] = (
        json.dumps(metrics(pd.concat([accuracy, after]), every), indent=1, allow_nan=False) + "\n"
    )
    write_together({path: text.encode() for path, text in files.items()})


def named(record: dict) -> dict[str, str]:
    """The columns that identify a row."""
    return {key: record[key] for key in ("variant", "method", "title")}


def deepest(record: dict, selection: str) -> dict[str, float]:
    return record["test"][selection]["exits"][-1]


def measured(records: list[dict]) -> Measure:
    return measure_of(deepest(records[0], "last"))


def means(measure: Measure, metrics: list[dict[str, float]], beside: Iterable[str] = ()) -> dict[str, float]:
    """Columns of a row: mean and half-width, in %, of the number that stands for a run and of those beside it."""
    mean, half_width = mean_interval([100 * m[measure.key] for m in metrics])
    columns = {measure.key: mean, "half_width": half_width}
    for key in (*measure.beside, *beside):
        if all(key in m for m in metrics):
            columns[key], columns[f"{key}_half_width"] = mean_interval([100 * m[key] for m in metrics])
    return columns


def accuracy_table(records: list[dict], selection: str, control: str, right: Right) -> pd.DataFrame:
    """One row a model and variant: mean and 95 % half-width over seeds, the difference to the control paired by seed
    and image, with the half-width of its 95 % interval; where there are imported runs, the hardware and precision of
    each.  right: what runs say of each image.  The difference is exploratory: no test looks at it."""
    rows, measure = [], measured(records)
    for model, same in groupby(by_variant(records), key=lambda g: g[0]):
        group = list(same)
        of_seeds = {variant: {r["seed"]: r for r in runs} for _, variant, runs in group}
        for _, variant, of_variant in group:
            effect = effect_of(of_seeds[variant], of_seeds.get(control, {}), right, selection)
            row = {
                "model": model,
                **named(of_variant[0]),
                "group": methods.about(of_variant[0]["method"])["group"],
                "n": len(of_variant),
                **means(measure, [deepest(r, selection) for r in of_variant], measure.headline),
                "sd": pd.Series([100 * deepest(r, selection)[measure.key] for r in of_variant]).std(ddof=1),
            }
            rows.append({**row, **compared(effect, variant == control)})
    table = pd.DataFrame(rows)
    if any(r.get("imported") for r in records):
        table["hardware"] = [in_words(map(imported_machine, group)) for _, _, group in by_variant(records)]
    return table


def compared(effect: Effect | None, is_control: bool) -> dict[str, Any]:
    """Columns of a variant: its difference to the control, and whether it is the control itself."""
    if effect is None or is_control:
        return {"difference": 0.0 if effect else math.nan, "difference_half_width": math.nan, "control": is_control}
    low, _ = effect.interval()
    return {"difference": effect.difference, "difference_half_width": effect.difference - low, "control": False}


def imported_machine(record: dict) -> str:
    """What computed an imported run.  No table names the machine of a run of this checkout: it is not an
    input of the stage and would change tables in which nothing else changes."""
    return machine(record) if record.get("imported") else "local"


def in_words(machines: Iterable[str]) -> str:
    """The machines of a row's runs, each with its number of seeds; `mixed` if there are several."""
    counts = sorted(Counter(machines).items())
    text = "; ".join(f"{name} ({n} seed{'s' if n > 1 else ''})" for name, n in counts)
    return text if len(counts) == 1 else f"mixed: {text}"


def exit_table(records: list[dict], selection: str) -> pd.DataFrame:
    """One row a model, variant and exit, the ensemble of all exits last; M MACs up to that exit."""
    rows, measure = [], measured(records)
    for model, _, group in by_variant(records):
        cost, sections = group[0]["cost"], group[0]["sections"]
        macs = cost["inference_macs"]
        tested = [r["test"][selection] for r in group]
        exits = [
            (exit_name(i, len(macs), sections), mac, [t["exits"][i] for t in tested]) for i, mac in enumerate(macs)
        ]
        if len(macs) > 1:
            exits.append(("ensemble", cost["ensemble_macs"], [t["ensemble"] for t in tested]))
        for name, mac, metrics in exits:
            row = {"model": model, **named(group[0]), "exit": name}
            rows.append({**row, "million_macs": mac / 1e6, "n": len(group), **means(measure, metrics)})
    return pd.DataFrame(rows)


def exit_name(i: int, exits: int, sections: int) -> str:
    """The section after which exit i stands, of how many: a network without others has one after the last."""
    return f"{sections - exits + i + 1}/{sections}"


MEMBERS = {"average": "average of weights", "peer": "peer", "together": "all together"}


def member_table(records: list[dict]) -> pd.DataFrame:
    """One row a model, variant and network that its runs leave beside the last one (a generation, an average
    of weights, a peer), the last one itself and the mean of all their probabilities; at the last epoch."""
    rows, measure = [], measured(records)
    for model, _, group in by_variant(records):
        if not group[0].get("members"):
            continue
        tested = [r["test"]["last"]["members"] for r in group]
        found = {name: [t[name] for t in tested] for name in tested[0]}
        together = found.pop("together")
        own = [deepest(r, "last") for r in group]
        for name, metrics in (*found.items(), ("the network", own), ("together", together)):
            words = MEMBERS.get(name, name.replace("phase_", "after phase "))
            row: dict[str, Any] = {"model": model, **named(group[0]), "member": words, "n": len(group)}
            rows.append({**row, **means(measure, metrics)})
    return pd.DataFrame(rows)


# of CIFAR-10-C and -C's relatives; their authors keep these apart, to choose hyper-parameters on them
HELD_BACK = frozenset({"gaussian_blur", "saturate", "spatter", "speckle_noise"})


def tests_on(record: dict, images: str, selection: str) -> list[dict]:
    """What a run's test on a data set of other images found, by set and severity; nothing if it was not tested
    there with the weights of this selection."""
    tested = record.get("robustness", {}).get(images)
    return tested["tests"] if tested and tested["selection"] == selection else []


def robustness_table(records: list[dict], selection: str, control: str) -> pd.DataFrame:
    """One row a model, data set of other images and variant: accuracy on its own test split, and on the other
    images the mean over their sets and severities except HELD_BACK, compared with the control as in
    `accuracy_table`; and the calibration error there."""
    rows = []
    for model, same in groupby(by_variant(records), key=lambda g: g[0]):
        group = list(same)
        names = dict.fromkeys(name for _, _, runs in group for r in runs for name in r.get("robustness", {}))
        for images in names:
            found = {variant: [r for r in runs if tests_on(r, images, selection)] for _, variant, runs in group}
            found = {variant: runs for variant, runs in found.items() if runs}
            means = {
                variant: {r["seed"]: mean_of_sets(tests_on(r, images, selection)) for r in runs}
                for variant, runs in found.items()
            }
            accuracies = {m: {s: 100 * v["accuracy"] for s, v in of_seeds.items()} for m, of_seeds in means.items()}
            reference = accuracies.get(control, {})
            for variant, runs in found.items():
                pairs = [[value - reference[seed]] for seed, value in accuracies[variant].items() if seed in reference]
                mean, half_width = mean_interval(list(accuracies[variant].values()))
                row = {"model": model, "images": images, **named(runs[0]), "n": len(runs)}
                row["group"] = methods.about(runs[0]["method"])["group"]
                row["own_test_accuracy"] = pd.Series([100 * deepest(r, selection)["accuracy"] for r in runs]).mean()
                row |= {"accuracy": mean, "half_width": half_width}
                row["ece"] = pd.Series([100 * v["ece"] for v in means[variant].values()]).mean()
                effect = paired_effect(np.array(pairs)) if pairs else None
                rows.append({**row, **compared(effect, variant == control)})
    return pd.DataFrame(rows)


def mean_of_sets(tests: list[dict]) -> dict[str, float]:
    """Accuracy and calibration error of the deepest exit, over the sets that count; all severities weigh the same."""
    counted = [test["exits"][-1] for test in tests if test["set"] not in HELD_BACK]
    return {key: sum(m[key] for m in counted) / len(counted) for key in ("accuracy", "ece")}


def set_table(records: list[dict], selection: str) -> pd.DataFrame:
    """One row a model, data set of other images, variant, set, severity and exit, the ensemble of all exits last:
    mean accuracy over seeds and its half-width, likelihood and calibration error."""
    rows = []
    for model, _, group in by_variant(records):
        for images in dict.fromkeys(name for r in group for name in r.get("robustness", {})):
            tested = [tests for r in group if (tests := tests_on(r, images, selection))]
            for of_seeds in zip(*tested, strict=True):
                first, exits = of_seeds[0], len(of_seeds[0]["exits"])
                sections = group[0]["sections"]
                places = [(exit_name(i, exits, sections), [t["exits"][i] for t in of_seeds]) for i in range(exits)]
                if "ensemble" in first:
                    places.append(("ensemble", [t["ensemble"] for t in of_seeds]))
                for place, metrics in places:
                    mean, half_width = mean_interval([100 * m["accuracy"] for m in metrics])
                    row = {"model": model, "images": images, **named(group[0])}
                    row |= {"set": first["set"], "severity": first["severity"], "exit": place, "n": len(metrics)}
                    row |= {"accuracy": mean, "half_width": half_width}
                    row["nll"] = pd.Series([m["nll"] for m in metrics]).mean()
                    row["ece"] = pd.Series([100 * m["ece"] for m in metrics]).mean()
                    rows.append(row)
    return pd.DataFrame(rows).astype({"severity": "Int64"}) if rows else pd.DataFrame()


def cost_table(records: list[dict], accuracy: pd.DataFrame, control: str) -> pd.DataFrame:
    """One row a model and variant: parameters in training, GFLOPs of training (a teacher's counted in), of tuned
    values those of the search, too, their ratio to the control's, and M MACs of classifying one image at the deepest
    exit."""
    rows, key = [], measured(records).key
    reached = accuracy.set_index(["model", "variant"])[key]
    for model, variant, group in by_variant(records):
        cost = group[0]["cost"]
        own, teacher = cost["training_flops"] / 1e9, cost["teacher_training_flops"] / 1e9
        search = search_flops(group) / 1e9 if "tuning" in group[0] else 0.0
        rows.append(
            {
                "model": model,
                **named(group[0]),
                "parameters": cost["parameters"],
                "training_gflops": own,
                "teacher_gflops": teacher,
                **({"tuning_gflops": search} if search else {}),
                "total_gflops": own + teacher + search,
                "million_macs": cost["inference_macs"][-1] / 1e6,
                key: reached[model, variant],
            }
        )
    table = pd.DataFrame(rows)
    of_control = table[table.variant == control].set_index("model").total_gflops.replace(0, math.nan)  # given weights
    table.insert(
        list(table).index("total_gflops") + 1, "relative_cost", table.total_gflops / table.model.map(of_control)
    )
    return table


def run_table(records: list[dict], selection: str) -> pd.DataFrame:
    """One row a run: test metrics of the deepest exit at both selections, the weights' hash, and, where
    there are imported runs, what computed them."""
    measure = measured(records)
    name = f"test_{measure.key}"
    table = pd.DataFrame(
        [
            {
                "model": r["model"],
                **named(r),
                "seed": r["seed"],
                name: 100 * deepest(r, selection)[measure.key],
                f"{name}_last": 100 * deepest(r, "last")[measure.key],
                f"{name}_validation_best": 100 * deepest(r, "validation")[measure.key],
                "validation_best_epoch": r["validation_best_epoch"],
                **{
                    f"test_{key}": factor * deepest(r, selection)[key]
                    for key, factor in measure.runs.items()
                    if key in deepest(r, selection)
                },
                "weights_sha256": r["weights_sha256"],
            }
            for r in records
        ]
    )
    if any(r.get("imported") for r in records):
        table["hardware"] = [imported_machine(r) for r in records]
    return table


def curve_table(records: list[dict]) -> pd.DataFrame:
    """One row a model, variant and epoch: means over seeds, and the validation accuracy's spread."""
    rows = []
    for model, _, group in by_variant(records):
        for i, epoch in enumerate(group[0]["history"]["epoch"]):
            validation = pd.Series([100 * r["history"]["validation_accuracy"][i] for r in group])
            training = pd.Series([100 * r["history"]["training_accuracy"][i] for r in group])
            rows.append(
                {
                    "model": model,
                    **named(group[0]),
                    "epoch": epoch,
                    "validation_accuracy": validation.mean(),
                    "validation_sd": validation.std(ddof=1) if len(group) > 1 else 0.0,
                    "training_accuracy": training.mean(),
                }
            )
    return pd.DataFrame(rows)


def metrics(accuracy: pd.DataFrame, records: list[dict]) -> dict:
    """One number a variant, its mean test accuracy, and the study's whole training cost, searches included.  Where
    other numbers stand beside it, a block of them a variant.

    A study of one network has the variants at the top, one of several a block for each network.
    """
    measure = measure_of(accuracy.columns)
    keys = [key for key in (measure.key, *measure.beside, *measure.headline) if key in accuracy]

    def numbers(row: pd.Series) -> Any:
        values = row[keys].dropna().astype(float).round(2).to_dict()  # what only other networks have is left out
        return values if measure.beside else values[measure.key]

    blocks = {
        model: {row.variant: numbers(row) for _, row in rows.iterrows()} for model, rows in accuracy.groupby("model")
    }
    total = round(sum(r["cost"]["training_flops"] + r.get("tuning", {}).get("flops", 0) for r in records) / 1e9, 1)
    return {**(blocks if len(blocks) > 1 else next(iter(blocks.values()))), "training_gflops": total}


# ---- for readers -------------------------------------------------------------------------------


def number(value: float, half_width: float | None, plus_minus: str, signed: bool = False) -> str:
    text = f"{value:{'+' if signed else ''}.2f}"
    return text if half_width is None or math.isnan(half_width) else f"{text}{plus_minus}{half_width:.2f}"


def bold_markdown(text: str, bold: bool) -> str:
    return f"**{text}**" if bold else text


def bold_latex(text: str, bold: bool) -> str:
    return rf"$\mathbf{{{text}}}$" if bold else f"${text}$"


def with_model(table: pd.DataFrame, columns: dict[str, list]) -> pd.DataFrame:
    """A column of models in front, where there is more than one."""
    return pd.DataFrame({**({"Network": table.model} if table.model.nunique() > 1 else {}), **columns})


def mean_columns(table: pd.DataFrame, group: list[str], bold: Bold, plus_minus: str) -> dict[str, list]:
    """Columns of means and half-widths; the best of each group of rows is bold."""
    measure = measure_of(table.columns)
    columns = {}
    for key, title in {measure.key: measure.title, **measure.beside, **measure.headline}.items():
        if key in table:
            half_width = table["half_width" if key == measure.key else f"{key}_half_width"]
            best = table.groupby(group)[key].transform("max")
            columns[title] = [
                "" if math.isnan(mean) else bold(number(mean, half, plus_minus), mean == highest)
                for mean, half, highest in zip(table[key], half_width, best, strict=True)
            ]
    return columns


def readable_accuracy(table: pd.DataFrame, bold: Bold, plus_minus: str) -> pd.DataFrame:
    return with_model(
        table,
        {
            "Method": table.title,
            "Seeds": table.n,
            **mean_columns(table, ["model"], bold, plus_minus),
            **comparison_columns(table, bold, plus_minus),
            **({"Hardware": table.hardware} if "hardware" in table else {}),
        },
    )


def comparison_columns(table: pd.DataFrame, bold: Bold, plus_minus: str) -> dict[str, list]:
    """Difference to the control, in points."""
    return {
        "Difference to control": [
            "control" if r.control else bold(number(r.difference, r.difference_half_width, plus_minus, True), False)
            for r in table.itertuples()
        ],
    }


def readable_contrasts(table: pd.DataFrame, bold: Bold, plus_minus: str) -> pd.DataFrame:
    rows = list(table.itertuples())

    def points(value: float, signed: bool = False) -> Any:
        return "" if math.isnan(value) else bold(number(value, None, plus_minus, signed), False)

    return with_model(
        table,
        {
            "Contrast": [contrast_name(r) for r in rows],
            "Verdict": table.verdict,
            "Difference (points)": [points(r.difference, True) for r in rows],
            "Interval (its level)": [
                "" if math.isnan(r.low) else f"{r.low:+.2f} to {r.high:+.2f} ({100 * r.level:.2f} %)" for r in rows
            ],
            "p (Holm)": ["" if math.isnan(r.p_holm) else small(r.p_holm) for r in rows],
            "Margin": [f"{r.margin:g}" for r in rows],
            "Found with 80 % power": [points(r.smallest_found) for r in rows],
            "Seeds": table.n,
        },
    )


def contrast_name(row: Any) -> str:
    """Of a row of `contrasts`: both titles, and the exit where it is not the deepest."""
    return f"{row.title} against {row.against_title}" + ("" if str(row.exit) == "last" else f", exit {row.exit}")


def small(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def readable_networks(table: pd.DataFrame, bold: Bold, plus_minus: str) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "Contrast": [f"{r.title} against {r.against_title}" for r in table.itertuples()],
            "Networks": table.networks,
            "Mean difference (points)": [bold(number(d, None, plus_minus, True), False) for d in table.difference],
            "p (Wilcoxon, over networks)": ["" if math.isnan(p) else small(p) for p in table.p_wilcoxon],
            "Probability of improvement": [f"{p:.2f}" for p in table.probability_of_improvement],
        }
    )


def readable_exits(table: pd.DataFrame, bold: Bold, plus_minus: str) -> pd.DataFrame:
    return with_model(
        table,
        {
            "Method": table.title,
            "Exit": table.exit,
            "M MACs": [f"{m:.2f}" for m in table.million_macs],
            "Seeds": table.n,
            **mean_columns(table, ["model", "exit"], bold, plus_minus),
        },
    )


def readable_members(table: pd.DataFrame, bold: Bold, plus_minus: str) -> pd.DataFrame:
    return with_model(
        table,
        {
            "Method": table.title,
            "Network of a run": table.member,
            "Seeds": table.n,
            **mean_columns(table, ["model", "variant"], bold, plus_minus),
        },
    )


def readable_robustness(table: pd.DataFrame, bold: Bold, plus_minus: str) -> pd.DataFrame:
    ((_, accuracy),) = mean_columns(table, ["model", "images"], bold, plus_minus).items()
    return with_model(
        table,
        {
            "Other images": table.images,
            "Method": table.title,
            "Seeds": table.n,
            "Accuracy on them (%)": accuracy,
            **comparison_columns(table, bold, plus_minus),
            "Calibration error (%)": [f"{e:.2f}" for e in table.ece],
            "Own test images (%)": [f"{a:.2f}" for a in table.own_test_accuracy],
        },
    )


def readable_winners(table: pd.DataFrame, bold: Bold, plus_minus: str) -> pd.DataFrame:
    return with_model(
        table,
        {
            "Method": table.title,
            "Searched": table.value,
            "As published": table.published,
            "Winners, median": table["median"],
            "Winners, range": table.range,
            "Median / published": ["" if math.isnan(t) else f"{t:.2g}" for t in table.times_published],
            "Won by the published values": [f"{r.won_by_published} of {r.n}" for r in table.itertuples()],
        },
    )


def readable_cost(table: pd.DataFrame, bold: Bold, plus_minus: str) -> pd.DataFrame:
    measure = measure_of(table.columns)
    return with_model(
        table,
        {
            "Method": table.title,
            "Parameters in training": [f"{p:,}" for p in table.parameters],
            "Training (GFLOPs)": [f"{g:.1f}" for g in table.training_gflops],
            "Teacher's training (GFLOPs)": [f"{g:.1f}" for g in table.teacher_gflops],
            **({"Tuning (GFLOPs)": [f"{g:.1f}" for g in table.tuning_gflops]} if "tuning_gflops" in table else {}),
            "Relative to control": ["" if math.isnan(c) else f"{c:.2f}" for c in table.relative_cost],
            "Inference (M MACs)": [f"{m:.2f}" for m in table.million_macs],
            measure.title: [f"{a:.2f}" for a in table[measure.key]],
        },
    )


def markdown(table: pd.DataFrame) -> str:
    return table.to_markdown(index=False, disable_numparse=True) + "\n"


def latex(table: pd.DataFrame, name: str) -> str:
    """A booktabs tabular: first column left, the rest centred; needs \\usepackage{booktabs}."""
    special = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#"}
    escaped = table.rename(columns=lambda c: "".join(special.get(ch, ch) for ch in c)).astype(str)
    words = [c for c in escaped.columns if not escaped[c].str.contains("$", regex=False).any()]
    for column in words:
        escaped[column] = ["".join(special.get(ch, ch) for ch in cell) for cell in escaped[column]]
    body = escaped.to_latex(index=False, escape=False, column_format="l" + "c" * (len(escaped.columns) - 1))
    return f"% {name}: written by selfdistill from the records of the study; do not edit\n{body}"


def as_csv(name: str, table: pd.DataFrame) -> str:
    """A number that is not defined, such as the half-width of one seed, is an empty cell.  Raises UserError for
    infinite numbers, with their columns."""
    numbers = table.select_dtypes("number")
    if infinite := [name for name in numbers if np.isinf(numbers[name]).any()]:
        raise UserError(f"{name}: infinite numbers in {', '.join(infinite)} are not allowed; allowed: finite or none")
    return table.round(DECIMALS).to_csv(index=False, lineterminator="\n")
