"""The page: tables, figures, parameters, hashes and hardware of a study in one file."""

import base64
import re
from itertools import groupby
from pathlib import Path
from statistics import median

import jinja2
import pandas as pd

from selfdistill import methods
from selfdistill.files import write_atomically
from selfdistill.reporting import tables
from selfdistill.reporting.records import cells, read_hosts, read_records

TEMPLATE = Path(__file__).with_name("page.html")
FIGURES = {
    "accuracy": "Every method on the same data, network, seeds and number of epochs. Dots are seeds, bars 95 % "
    "intervals of the mean, the dashed line is the control.",
    "exits": "What each exit of a network reaches, against what it costs to get there. Methods without exits show "
    "their control as one point.",
    "cost": "Accuracy against the whole price of training, a teacher's training included. "
    "Equal costs are drawn side by side.",
    "curves": "Validation accuracy while training. A method in two stages restarts in the middle.",
}


def write_page(study, params: Path) -> None:
    """Write results/index.html from the study's records, tables and figures."""
    records = read_records(study)
    frames = {n: pd.read_csv(study.results / "tables" / f"{n}.csv") for n in ("accuracy", "exits", "cost")}
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        study=study,
        dataset=records[0]["dataset"],
        headline=headline(frames["accuracy"]),
        missing=len(cells(study)) - len(records),
        tables={
            "accuracy": sortable(tables.readable_accuracy(frames["accuracy"], bold, " ± ")),
            "exits": sortable(tables.readable_exits(frames["exits"], bold, " ± ")),
            "cost": sortable(tables.readable_cost(frames["cost"], bold, " ± ")),
        },
        figures={name: (embedded(study.results / "figures" / f"{name}.svg"), text) for name, text in FIGURES.items()},
        methods=[{"file": n, **methods.about(n)} for n in study.all_methods],
        parameters=params.read_text(encoding="utf-8"),
        runs=records,
        hosts=machines(read_hosts(study), records),
    )
    write_atomically(study.results / "index.html", page.encode())


def headline(accuracy: pd.DataFrame) -> str:
    """The result in a sentence."""
    judged = accuracy[accuracy.verdict != "control"]
    control = accuracy[accuracy.verdict == "control"].title.iloc[0]
    words = {
        "improves": "better than",
        "worse": "worse than",
        "no evidence": "no evidence of a difference from",
    }
    parts = [
        f"{text} {control}: {', '.join(judged[judged.verdict == word].title)}"
        for word, text in words.items()
        if (judged.verdict == word).any()
    ]
    seeds = accuracy.n.min()
    sentence = "; ".join(parts) or "too few seeds for a verdict"
    return f"{sentence[0].upper()}{sentence[1:]}. {seeds} seeds a method, 5 % error over all comparisons (Holm)."


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
    leading = re.match(r"[+-]?[\d,]*\.?\d+(?=$| ±|/)", text)
    return float(leading.group().replace(",", "")) if leading else text


def embedded(path: Path) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()


def machines(hosts: list[dict], records: list[dict]) -> list[dict]:
    """The machines that the runs name, each with its runs' number, dates and median seconds a method.

    A file that describes other weights than the record's is of another run and is left out.
    """
    weights = {(r["model"], r["method"], r["seed"]): r["weights_sha256"] for r in records}
    current = [h for h in hosts if h["weights_sha256"] == weights.get((h["model"], h["method"], h["seed"]))]

    def machine(host: dict) -> tuple:
        return host["hardware"], host["system"], host["threads"], tuple(host["versions"].items())

    result = []
    for (hardware, system, threads, versions), same in groupby(sorted(current, key=machine), key=machine):
        group = list(same)
        seconds: dict[str, list[float]] = {}
        for host in group:
            seconds.setdefault(host["method"], []).append(host["seconds"])
        result.append(
            {
                "hardware": hardware,
                "system": system,
                "threads": threads,
                "versions": dict(versions),
                "runs": len(group),
                "dates": sorted({h["date"] for h in group}),
                "seconds": {method: median(values) for method, values in sorted(seconds.items())},
                "peak_memory_mb": max(h["peak_memory_mb"] for h in group),
            }
        )
    return result
