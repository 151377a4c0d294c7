"""Tables for readers and machines: CSV, Markdown, LaTeX, and cells for the page."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from selfdistill import analyses
from selfdistill.errors import UserError
from selfdistill.summary.grouping import headline_in
from selfdistill.summary.table import judged, key_columns, leading, prefixed

Bold = Callable[[str, bool], Any]  # a cell's text and whether it is the best: how the cell stands there
DECIMALS = 4  # of the CSV files; percentages, so 1e-4 is far below one image


def readable(analysis: str, table: pd.DataFrame, bold: Bold, plus_minus: str) -> pd.DataFrame:
    """What readers see of a table of an analysis: keys, counted numbers, seeds, estimates, and comparisons."""
    about = analyses.about(analysis)
    numbers = {key: n for key, n in about["numbers"].items() if key in table and n["shown"] == "table"}
    titles = {"probe": "Probe", **about["keys"]}
    keys = [key for key in key_columns(analysis) if key in table]
    group = ["model", "variant"] if about.get("best") else ["model", *keys]
    columns: dict[str, Any] = {"Method": table.title, **{titles[key]: table[key] for key in keys}}
    for key, n in numbers.items():
        if n["exact"]:
            columns[title(n)] = ["" if math.isnan(v) else f"{v:,.{n['digits']}f}" for v in table[key]]
    if "n" in table:
        columns["Seeds"] = seeds_in_words(table, numbers)
    for key, n in numbers.items():
        if not n["exact"]:
            half_width = table[prefixed(key, numbers, "half_width")]
            best = table.groupby(group, dropna=False)[key].transform(f"{'min' if n['better'] == 'lower' else 'max'}")
            if not n["better"]:  # a cost that is the same in every seed was counted
                half_width = half_width.replace(0, math.nan)
            columns[title(n)] = [
                ""
                if math.isnan(mean)
                else bold(
                    number(mean, half, plus_minus, digits=n["digits"]),
                    bool(n["better"]) and f"{mean:.{n['digits']}f}" == f"{top:.{n['digits']}f}",
                )
                for mean, half, top in zip(table[key], half_width, best, strict=True)
            ]
    for key in judged(numbers):
        words = "Difference to control" if len(judged(numbers)) == 1 else f"{numbers[key]['title']}: to control"
        columns[words] = [
            "control"
            if is_control
            else ("" if math.isnan(difference) else bold(number(difference, half, plus_minus, signed=True), False))
            for is_control, difference, half in zip(
                table.control,
                table[prefixed(key, numbers, "difference")],
                table[prefixed(key, numbers, "difference_half_width")],
                strict=True,
            )
        ]
    if about.get("beside"):
        key = next(key for name in analyses.headlines() for key in own_columns(name) if key in table)
        name = next(name for name in analyses.headlines() if key in own_columns(name))
        spec = analyses.about(name)["numbers"][analyses.about(name)["headline"]]
        words = title(spec) if not key.startswith("own_") else f"Own {title(spec)[0].lower()}{title(spec)[1:]}"
        columns[words] = [f"{value:.2f}" for value in table[key]]
    if "hardware" in table:
        columns["Hardware"] = table.hardware
    return with_model(table, columns)


def seeds_in_words(table: pd.DataFrame, numbers: dict[str, dict]) -> list[str]:
    """`10 together` where one number is made of several seeds, which leaves it without an interval."""
    key = leading(numbers)
    whole = (table.n > 1) & table[key].notna() & table.half_width.isna() if key else pd.Series(False, table.index)
    return [f"{n} together" if of_all else str(n) for n, of_all in zip(table.n, whole, strict=True)]


def own_columns(headline: str) -> tuple[str, str]:
    """Names of the column of the headline number in a table of another analysis, the rarer first."""
    key = analyses.about(headline)["headline"]
    return f"own_test_{key}", key


def title(number: dict[str, Any]) -> str:
    return f"{number['title']} ({number['unit']})" if number["unit"] else number["title"]


def headline_number(tables: Any) -> tuple[str, dict[str, Any], str]:
    """Key, description and words of the number that stands for a run; tables: by the name of the analysis."""
    name = headline_in(tables)
    key = analyses.about(name)["headline"]
    spec = analyses.about(name)["numbers"][key]
    return key, spec, spec["title"].removeprefix("Test ")


def small(p: float) -> str:
    """A p-value."""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def exit_words(exit_name: object) -> str:
    """Which exit a contrast compares, behind its two variants; nothing where it is the deepest."""
    return {"last": "", "ensemble": ", all exits together"}.get(str(exit_name), f", exit {exit_name}")


def number(value: float, half_width: float | None, plus_minus: str, signed: bool = False, digits: int = 2) -> str:
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    return text if half_width is None or math.isnan(half_width) else f"{text}{plus_minus}{half_width:.{digits}f}"


def bold_markdown(text: str, bold: bool) -> str:
    return f"**{text}**" if bold else text


def bold_latex(text: str, bold: bool) -> str:
    return rf"$\mathbf{{{text}}}$" if bold else f"${text}$"


def with_model(table: pd.DataFrame, columns: dict[str, Any]) -> pd.DataFrame:
    """A column of models in front, where there is more than one."""
    return pd.DataFrame({**({"Network": table.model} if table.model.nunique() > 1 else {}), **columns})


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
