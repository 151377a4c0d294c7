"""Tables from records: CSV for machines, Markdown for readers, LaTeX (booktabs) for papers.

One for each analysis that a record holds, made by `selfdistill.summary` from what the analysis says of its numbers;
the declared contrasts; every run; and training curves.  The study's headline number is that of the deepest exit, the
network that plain training gives too, at the epoch that the study selects (last, or best on validation).
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from selfdistill import analyses
from selfdistill.claims.declared import read_claims, study_here
from selfdistill.claims.evidence import evidence_table
from selfdistill.config import Study
from selfdistill.reporting.contrasts import Right, contrast_table, effect_of, network_table, reader
from selfdistill.reporting.files import SUMS, sums_of, write_whole
from selfdistill.reporting.records import machine, read_records
from selfdistill.reporting.tuning import best_table, winners_table
from selfdistill.search import TUNED, untuned
from selfdistill.summary.grouping import by_variant, headline_of, headline_row, named
from selfdistill.summary.table import table_of
from selfdistill.summary.text import (
    DECIMALS,
    Bold,
    as_csv,
    bold_latex,
    bold_markdown,
    exit_words,
    headline_number,
    latex,
    markdown,
    number,
    readable,
    small,
    with_model,
)


def write_tables(study: Study) -> None:
    """Write results/tables and results/metrics.json."""
    every = read_records(study)
    records, tuned = [[r for r in every if bool(untuned(r["variant"])) == of_search] for of_search in (False, True)]
    folder = study.results / "tables"
    right = reader(study)
    contrasts = contrast_table(study, every, right)
    found = analysis_tables(records, study.selection, study.control, right)
    again = analysis_tables(tuned, study.selection, study.control + TUNED, right) if tuned else {}
    shown_again = [name for name in (headline_of(every[0]), "cost") if name in again]
    written: list[tuple[str, pd.DataFrame, Callable[..., pd.DataFrame]]] = [
        ("contrasts", contrasts, readable_contrasts),
        ("networks", network_table(study, contrasts, every), readable_networks),
        *((name, table, partial(readable, name)) for name, table in found.items()),
        *((f"{name}_tuned", again[name], partial(readable, name)) for name in shown_again),
        ("tuning", winners_table(tuned), readable_winners),
    ]
    files: dict[Path, str] = {}
    for name, exact, to_read in written:
        if exact.empty:
            continue
        table = exact.round(DECIMALS)  # before all: CSV, tables and the page then round the same number
        files[folder / f"{name}.csv"] = as_csv(name, table)
        files[folder / f"{name}.md"] = markdown(to_read(table, bold_markdown, " ± "))
        files[folder / f"{name}.tex"] = latex(to_read(table, bold_latex, r" \pm "), name)
    for name in found:
        if "shown" in analyses.about(name):
            whole = table_of(name, records, study.selection, study.control, every=True)
            files[folder / f"{name}_all.csv"] = as_csv(name, whole)
    if tuned:
        files[folder / "expected_best.csv"] = as_csv("expected_best", best_table(tuned))
    if len(evidence := evidence_table(read_claims(), study_here(study.root), every, study.selection)):
        files[folder / "claims.csv"] = as_csv("claims", evidence)
    files[folder / "runs.csv"] = as_csv("runs", run_table(every, study.selection))
    files[folder / "curves.csv"] = as_csv("curves", curve_table(records))
    contents = {path: text.encode() for path, text in files.items()}
    contents[folder / SUMS] = sums_of(contents)
    contents[study.results / "metrics.json"] = as_json(metrics(joined(found, again), every)).encode()
    write_whole(folder, contents)


def joined(found: dict[str, pd.DataFrame], again: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The tables of both, one under the other."""
    return {name: pd.concat([table, again[name]]) if name in again else table for name, table in found.items()}


def as_json(numbers: dict) -> str:
    return json.dumps(numbers, indent=1, allow_nan=False) + "\n"


def analysis_tables(records: list[dict], selection: str, control: str, right: Right) -> dict[str, pd.DataFrame]:
    """The table of each analysis that any run has, by name.  right: what runs say of each image, by which the headline
    number is compared."""
    headline, found = headline_of(records[0]), {}
    for name in analyses.names():
        effects = partial(effect_of, right=right, selection=selection) if name == headline else None
        table = table_of(name, records, selection, control, effects=effects)
        if table.empty:
            continue
        if name == headline and any(r.get("imported") for r in records):
            table["hardware"] = [in_words(map(imported_machine, group)) for _, _, group in by_variant(records)]
        found[name] = table
    return found


def imported_machine(record: dict) -> str:
    """What computed an imported run.  No table names the machine of a run of this checkout: it is not an
    input of the stage and would change tables in which nothing else changes."""
    return machine(record) if record.get("imported") else "local"


def in_words(machines: Iterable[str]) -> str:
    """The machines of a row's runs, each with its number of seeds; `mixed` if there are several."""
    counts = sorted(Counter(machines).items())
    text = "; ".join(f"{name} ({n} seed{'s' if n > 1 else ''})" for name, n in counts)
    return text if len(counts) == 1 else f"mixed: {text}"


def run_table(records: list[dict], selection: str) -> pd.DataFrame:
    """One row a run: the headline analysis' numbers at the deepest exit, its headline at both selections, the weights'
    hash, and, where there are imported runs, what computed them."""
    about = analyses.about(headline_of(records[0]))
    main, numbers = about["headline"], about["numbers"]

    def value(record: dict, key: str, of: str) -> float:
        found = headline_row(record, of)[key]
        return math.nan if found is None else (100 if numbers[key]["unit"] == "%" else 1) * found

    rows = []
    for r in records:
        row = {"model": r["model"], **named(r), "seed": r["seed"], f"test_{main}": value(r, main, selection)}
        row |= {f"test_{main}_last": value(r, main, "last")}
        row |= {f"test_{main}_validation_best": value(r, main, "validation")}
        row["validation_best_epoch"] = r["validation_best_epoch"]
        there = headline_row(r, selection)
        row |= {f"test_{key}": value(r, key, selection) for key in numbers if key != main and key in there}
        rows.append({**row, "weights_sha256": r["weights_sha256"]})
    table = pd.DataFrame(rows)
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


def metrics(tables: dict[str, pd.DataFrame], records: list[dict]) -> dict:
    """The headline analysis' numbers of every variant, a block of them where readers see several, and what is summed
    over all runs of the study.

    A study of one network has the variants at the top, one of several a block for each network.
    """
    name = headline_of(records[0])
    table, shown = tables[name], [k for k, n in analyses.about(name)["numbers"].items() if n["shown"] == "table"]
    main, _, _ = headline_number(tables)
    keys = [key for key in shown if key in table]

    def numbers(row: pd.Series) -> Any:
        values = row[keys].dropna().astype(float).round(2).to_dict()  # what only other networks have is left out
        return values if len(shown) > 1 else values[main]

    blocks = {
        model: {row.variant: numbers(row) for _, row in rows.iterrows()} for model, rows in table.groupby("model")
    }
    runs = {(model, variant): len(group) for model, variant, group in by_variant(records)}
    totals = {
        key: round(
            sum(float(row[key]) * runs[row.model, row.variant] for _, row in other.dropna(subset=[key]).iterrows()),
            number["digits"],
        )
        for name, other in tables.items()
        for key, number in analyses.about(name)["numbers"].items()
        if number["summed"] and key in other
    }
    return {**(blocks if len(blocks) > 1 else next(iter(blocks.values()))), **totals}


# ---- for readers -------------------------------------------------------------------------------


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
    return f"{row.title} against {row.against_title}" + exit_words(row.exit)


def readable_winners(table: pd.DataFrame, bold: Bold, plus_minus: str) -> pd.DataFrame:
    return with_model(
        table,
        {
            "Method": table.title,
            "Searched": table.value,
            "As published": table.published,
            "Winners, median": ["" if pd.isna(t) else f"{float(t):g}" for t in table["median"]],
            "Winners, range": table.range,
            "Median / published": ["" if math.isnan(t) else f"{t:.2g}" for t in table.times_published],
            "Won by the published values": [f"{r.won_by_published} of {r.n}" for r in table.itertuples()],
        },
    )


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
