"""The page: tables, figures, parameters, hashes and hardware of a study in one file."""

import base64
import posixpath
import re
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

import jinja2
import pandas as pd

from selfdistill import analyses, methods
from selfdistill.analyses import caption
from selfdistill.config import Study, purpose
from selfdistill.files import write_atomically
from selfdistill.reporting import tables
from selfdistill.reporting.files import read_table
from selfdistill.reporting.records import machine, read_records
from selfdistill.summary.figure import figure_names
from selfdistill.summary.grouping import by_variant, headline_in
from selfdistill.summary.statistics import FEWEST
from selfdistill.summary.text import exit_words, headline_number, readable

TEMPLATE = Path(__file__).with_name("page.html")
BESIDE = "contrasts", "networks", "tuning"  # tables that are of no analysis
FIGURES = {
    "contrasts": "The declared contrasts: difference in points with the interval that the verdict used; shaded is the "
    "margin within which two variants count as equivalent.",
    "differences": "Every method against the control, paired by seed and test image: exploratory, without a verdict. "
    "Dots are seeds, bars 95 % intervals; what lies far out is cut off, with an arrow and its value.",
    "differences_tuned": "The same after an equal search for each method, the control included: every dot is a winner "
    "of its own search, with the training and validation images of its seed.",
    "tuning": "The validation accuracy that the best of so many trials is expected to have, mean over searches: a line "
    "that still rises belongs to a method that would gain from more.",
    "curves": "Validation accuracy while training, by the share of each method's own training. A method in several "
    "phases may start again in the middle.",
}


def write_page(study: Study, params: Path) -> None:
    """Write results/index.html from the study's records, tables and figures."""
    records = read_records(study)
    frames = {
        name: read_table(path)
        for name in (*analyses.names(), *(f"{name}_tuned" for name in analyses.names()), *BESIDE)
        if (path := study.results / "tables" / f"{name}.csv").is_file()
    }
    main = headline_in(frames)
    _, _, words = headline_number(frames)
    used = list(dict.fromkeys(study.variant(name).method for name in study.all_variants))
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        study=study,
        purpose=purpose(params) or records[0]["dataset"]["name"],
        dataset=records[0]["dataset"],
        split=records[0].get("split"),
        headline=headline(frames.get("contrasts"), frames[main]),
        missing=len(study.cells()) - len(records),
        tables={
            name: sortable(to_read(frames[name], bold, " ± ")) if name in frames else None
            for name, to_read in (
                ("contrasts", tables.readable_contrasts),
                ("networks", tables.readable_networks),
                ("tuning", tables.readable_winners),
            )
        },
        tuned=[
            sortable(readable(name, frames[f"{name}_tuned"], bold, " ± "))
            for name in analyses.names()
            if f"{name}_tuned" in frames
        ],
        sections=[section(study, name, frames[name], name == main) for name in analyses.names() if name in frames],
        words=words,
        fewest=FEWEST,
        figures={
            name: (embedded(study.results / "figures" / f"{name}.svg"), text)
            for name, text in FIGURES.items()
            if (study.results / "figures" / f"{name}.svg").is_file()
        },
        methods=[{"file": n, "card": card_address(study.root, n), **methods.about(n)} for n in used],
        one_recipe=not any(variant.recipe for variant in study.variants.values()),
        variants=[differing(study, name) for name in study.variants],
        parameters=params.read_text(encoding="utf-8"),
        runs=records,
        hardware=sortable(hardware_table(records)),
        mixed=len({machine(r) for r in records if r["host"]}) > 1,
        hosts=machines(records),
    )
    write_atomically(study.results / "index.html", page.encode())


def section(study: Study, name: str, table: pd.DataFrame, is_headline: bool) -> dict[str, Any]:
    """What the page shows of an analysis: its title, the first paragraph of its card, table and figures."""
    pictures = [
        (embedded(study.results / "figures" / f"{figure}.svg"), ": ".join([*map(str, kind.values()), caption(name)]))
        for figure, kind in figure_names(name, table).items()
    ]
    return {
        "title": analyses.about(name)["title"],
        "lead": analyses.lead(name),
        "table": sortable(readable(name, table, bold, " ± ")),
        "figures": pictures,
        "headline": is_headline,
    }


def differing(study: Study, name: str) -> dict[str, str]:
    """A variant's name, title and method, and what it has other than the study, in words."""
    variant, declared = study.variant(name), study.variants[name]
    values = [
        f"{block}.{key}: {value}" for block in ("hyper", "recipe") for key, value in getattr(declared, block).items()
    ]
    return {"name": name, "title": variant.title, "method": variant.method, "differs": ", ".join(values)}


def card_address(root: str, method: str) -> str:
    """Where a method's card lies, seen from results/index.html; root: the repository's top, seen from the study."""
    return posixpath.normpath(f"../{root}/src/selfdistill/methods/{method}.md")


WORDS = {  # of verdicts; what stands between the two of a contrast
    "improves": "improves on",
    "worse": "is worse than",
    "equivalent": "is equivalent to",
}


def headline(contrasts: pd.DataFrame | None, accuracy: pd.DataFrame) -> str:
    """The result in a few sentences: what the declared contrasts say."""
    fewest, most = accuracy.n.min(), accuracy.n.max()
    seeds = f"{most} seed{'s' if most > 1 else ''}" if fewest == most else f"{fewest} to {most} seeds"
    missing = "" if accuracy.control.any() else "The control has not run yet. "
    if contrasts is None:
        return f"{missing}No contrast is declared: every number below is exploratory. {seeds.capitalize()} a method."
    several = contrasts.model.nunique() > 1

    def pairs(rows: pd.DataFrame, words: str) -> str:
        """`BYOT improves on Plain`, for each row."""
        return "; ".join(
            f"{r.title} {words} {r.against_title}" + exit_words(r.exit) + (f" ({r.model})" if several else "")
            for r in rows.itertuples()
        )

    groups = [(words, contrasts[contrasts.verdict == verdict]) for verdict, words in WORDS.items()]
    found = [pairs(rows, words) for words, rows in groups if len(rows)]
    if len(open_ones := contrasts[contrasts.verdict == "undecided"]):
        found.append(f"Undecided, shown neither to differ nor to be equal: {pairs(open_ones, 'and')}")
    judged = contrasts.verdict.isin([*WORDS, "undecided"]).sum()
    if rest := len(contrasts) - judged:
        found.append(f"{rest} of {len(contrasts)} contrasts get no verdict (a verdict needs {FEWEST} seeds)")
    error = ", 5 % error over all contrasts together (Holm)" if judged else ""
    return f"{missing}{'. '.join(found)}. {seeds.capitalize()} a method{error}."


def bold(text: str, is_best: bool) -> tuple[str, bool]:
    return text, is_best


def sortable(table: pd.DataFrame) -> dict:
    """Columns and rows for the template; a cell is its text, whether it is best, and what to sort by."""
    rows = []
    for row in table.itertuples(index=False):
        pairs = [cell if isinstance(cell, tuple) else (str(cell), False) for cell in row]
        rows.append([{"text": text, "best": best, "value": sort_value(text)} for text, best in pairs])
    numeric = [
        all(isinstance(r[i]["value"], float) or not r[i]["text"] for r in rows) for i in range(len(table.columns))
    ]
    return {"columns": list(zip(table.columns, numeric, strict=True)), "rows": rows}


def sort_value(text: str) -> float | str:
    """A cell's leading number, or its text."""
    leading = re.match(r"(?:< )?([+-]?[\d,]*\.?\d+)(?=$| ±|/)", text)
    return float(leading[1].replace(",", "")) if leading else text


def embedded(path: Path) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()


def hardware_table(records: list[dict]) -> pd.DataFrame:
    """One row a model and variant: the hardware and precision of its runs, and what they took there."""
    rows = []
    for model, _, group in by_variant(records):
        by_machine: dict[str, list[dict]] = {}
        for record in sorted(group, key=machine):
            # a host file that does not say what its peak is of was written when it was the process's
            host = {"peak_memory_of": "process", **record["host"]} if record["host"] else {}
            by_machine.setdefault(machine(record), []).append(host)
        hosts = list(by_machine.values())
        row = {
            "model": model,
            "Method": group[0]["title"],
            "Hardware": tables.in_words(map(machine, group)),
            "Median seconds of a run": per_machine(hosts, "seconds", median, "{:.1f}"),
            "Peak memory (MB)": per_machine(hosts, "peak_memory_mb", max, "{:,}"),
            "Peak memory of": per_machine(hosts, "peak_memory_of", alternatives, "{}"),
            "Peak GPU memory (MB)": per_machine(hosts, "peak_device_memory_mb", max, "{:,}"),
        }
        rows.append(row)
    table = pd.DataFrame(rows)
    unknown = [name for name in ("Peak memory of", "Peak GPU memory (MB)") if not any(table[name])]
    table = table.drop(columns=unknown)
    return table.rename(columns={"model": "Network"}) if table.model.nunique() > 1 else table.drop(columns="model")


def alternatives(words: list[str]) -> str:
    """Each word once."""
    return " or ".join(sorted(set(words)))


def per_machine(hosts: list[list[dict]], key: str, summary: Callable[[list], Any], form: str) -> str:
    """A number, or a word, for each machine of a row, in the order in which the row names them."""
    values = [[h[key] for h in group if key in h] for group in hosts]
    return "; ".join(form.format(summary(v)) if v else "-" for v in values) if any(values) else ""


def machines(records: list[dict]) -> list[dict]:
    """The machines that the runs name, each with its runs' number and dates."""
    hosts = [r["host"] for r in records if r["host"]]

    def identity(host: dict) -> tuple:
        return host["hardware"], host["system"], host["threads"], tuple(host["versions"].items())

    result = []
    for (hardware, system, threads, versions), same in groupby(sorted(hosts, key=identity), key=identity):
        group = list(same)
        result.append(
            {
                "hardware": hardware,
                "system": system,
                "threads": threads,
                "versions": dict(versions),
                "runs": len(group),
                "dates": sorted({h["date"] for h in group}),
            }
        )
    return result
