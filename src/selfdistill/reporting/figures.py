"""Figures from tables, each as SVG and PNG, in one style, equal to the byte when drawn again."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from selfdistill import analyses
from selfdistill.reporting.files import read_tables, write_whole
from selfdistill.reporting.inline import run_id
from selfdistill.search import TUNED
from selfdistill.summary import AT_LEVEL, METADATA, STYLE
from selfdistill.summary.figure import CONTROL, Look, Style, draw_default, figure_names, looks_of, row_each
from selfdistill.summary.grouping import headline_in
from selfdistill.summary.text import exit_words, headline_number

CUT = 2.5  # what lies further out than so many times the median reach of an interval is cut off, with an arrow
# without dates and versions, so that the same picture is the same file
Tables = dict[str, pd.DataFrame]
BESIDE = "contrasts", "expected_best", "runs", "curves"
Draw = Callable[[Axes, Tables, Style], None]


def draw_figures(results: Path) -> None:
    """Draw every figure of results/tables into results/figures."""
    names = (f"{name}{kind}" for name in analyses.names() for kind in ("", "_all"))
    again = (f"{name}_tuned" for name in analyses.headlines())
    tables = read_tables(results / "tables", (*names, *again, *BESIDE))
    headline = headline_in(tables)
    style = style_of(tables)
    with plt.style.context(STYLE, after_reset=True):  # of a matplotlibrc of the user nothing is taken
        figures: list[tuple[str, Draw, tuple[float, float], bool]] = [
            ("differences", draw_differences, style.row_each, False),
            ("curves", draw_curves, style.panel, style.many),
        ]
        if "contrasts" in tables:
            figures.append(("contrasts", draw_contrasts, row_each(tables["contrasts"].contrast.nunique()), False))
        if "expected_best" in tables:
            rows = tables[f"{headline}_tuned"].variant.nunique()
            figures.append(("differences_tuned", draw_tuned_differences, row_each(rows), False))
            figures.append(("tuning", draw_expected_best, style.panel, style.many))
        for analysis in (name for name in analyses.names() if name in tables):
            module = analyses.load(analysis)
            for name, kind in figure_names(analysis, tables[analysis]).items():
                if analysis == headline:
                    figures.append((name, draw_headline, style.row_each, False))
                elif hasattr(module, "draw"):
                    size = module.size(style) if hasattr(module, "size") else style.panel
                    grouped = style.many and getattr(module, "GROUPED", False)
                    figures.append((name, partial(draw_own, analysis), size, grouped))
                else:
                    figures.append((name, partial(draw_kind, analysis, kind), style.row_each, False))
        drawn: dict[Path, bytes] = {}
        for name, draw, size, grouped in figures:
            figure = panels(tables, draw, style, size, grouped)
            for form, metadata in METADATA.items():
                buffer = BytesIO()
                figure.savefig(buffer, format=form, metadata=metadata)
                drawn[results / "figures" / f"{name}.{form}"] = buffer.getvalue()
            plt.close(figure)
    write_whole(results / "figures", drawn)


def style_of(tables: Tables) -> Style:
    """Of all networks together."""
    table, (key, _, words) = tables[headline_in(tables)], headline_number(tables)
    return Style(looks_of(tables["runs"]), table, key, words[0].lower() + words[1:], table.variant.nunique())


def draw_own(analysis: str, ax: Axes, tables: Tables, style: Style) -> None:
    every = tables.get(f"{analysis}_all", tables[analysis])
    analyses.load(analysis).draw(ax, tables[analysis], replace(style, every=every))


def draw_kind(analysis: str, kind: dict, ax: Axes, tables: Tables, style: Style) -> None:
    draw_default(analysis, kind, ax, tables[analysis], style)


def panels(tables: Tables, draw: Draw, style: Style, size: tuple[float, float], grouped: bool) -> Figure:
    """A panel a model, side by side; grouped: a row of them a group of methods, each with its control."""
    headline = style.headline
    models = list(dict.fromkeys(headline.model))
    rows = list(dict.fromkeys(headline.group)) if grouped else [None]
    shape = (len(rows), len(models))
    figure, axes = plt.subplots(*shape, figsize=(size[0] * shape[1], size[1] * shape[0]), squeeze=False)
    for i, group in enumerate(rows):
        kept = [*headline[(headline.group == group) | headline.control].variant]
        kept += [f"{variant}{TUNED}" for variant in kept]
        for model, ax in zip(models, axes[i], strict=True):
            shown = {
                n: table[(table.model == model) & (table.variant.isin(kept) if group and "variant" in table else True)]
                for n, table in tables.items()
            }
            draw(ax, shown, replace(style, headline=shown[headline_in(tables)]))
            of = [*([model] if len(models) > 1 else []), *([group] if group else [])]
            if of:
                ax.set_title(f"{ax.get_title(loc='left')}: {', '.join(of)}")
    figure.tight_layout()
    return figure


def draw_contrasts(ax: Axes, tables: Tables, style: Style) -> None:
    """A row a declared contrast, sorted: the difference with the interval that its verdict used, and the margin."""
    table = tables["contrasts"].sort_values("difference", ascending=False, kind="stable").reset_index(drop=True)
    limits = axis_of(table.difference, table.low, table.high)
    for y, row in table.iterrows():
        margin = row.margin
        ax.fill_between([-margin, margin], y - 0.4, y + 0.4, color="#eef1f5", linewidth=0, zorder=0)
        if pd.notna(row.difference):
            draw_difference(ax, y, row.difference, row.low, row.high, style.looks[row.of], limits)
    ax.axvline(0, color=CONTROL, linewidth=1, zorder=1)
    labels = [f"{r.title} against {r.against_title}{exit_words(r.exit)}\n{r.verdict}" for r in table.itertuples()]
    ax.set_yticks(range(len(table)), labels)
    ax.set_ylim(len(table) - 0.5, -0.5)
    ax.set_xlim(*limits)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("difference in points; shaded: margin of equivalence")
    ax.set_title("Declared contrasts")


def draw_differences(ax: Axes, tables: Tables, style: Style) -> None:
    """A row a variant, sorted by its difference to the control: every seed's difference as a dot, the mean with its
    interval."""
    headline = style.headline
    table = headline[~headline.control].dropna(subset="difference")
    table = table.sort_values("difference", ascending=False, kind="stable").reset_index(drop=True)
    by_seed = tables["runs"].pivot_table(index="seed", columns="variant", values=f"test_{style.key}")
    control = headline[headline.control].variant
    seeds = by_seed.sub(by_seed[control.iloc[0]], axis=0) if len(control) else by_seed * np.nan
    half_width = table.difference_half_width
    limits = axis_of(table.difference, table.difference - half_width, table.difference + half_width)
    for y, row in table.iterrows():
        look, half = style.looks[row.variant], row.difference_half_width
        dots = seeds[row.variant].dropna()
        dots = dots[(dots > limits[0]) & (dots < limits[1])]
        draw_runs(ax, dots.to_numpy(), y, look, [run_id(row.model, row.variant, seed) for seed in dots.index])
        draw_difference(ax, y - 0.08, row.difference, row.difference - half, row.difference + half, look, limits)
    ax.axvline(0, color=CONTROL, linewidth=1, zorder=1)
    ax.set_yticks(range(len(table)), table.title)
    ax.set_ylim(max(len(table), 1) - 0.5, -0.5)
    ax.set_xlim(*limits)
    ax.grid(axis="y", visible=False)
    name = headline[headline.control].title.iloc[0] if len(control) else "the control, which has not run"
    ax.set_xlabel(f"difference in points: dots are seeds, bars exploratory {AT_LEVEL} intervals")
    ax.set_title(f"Test {style.words} against {name}")


def draw_tuned_differences(ax: Axes, tables: Tables, style: Style) -> None:
    """The same of the variants of tuned values, against the tuned control."""
    draw_differences(ax, tables, replace(style, headline=tables[f"{headline_in(tables)}_tuned"]))


def draw_expected_best(ax: Axes, tables: Tables, style: Style) -> None:
    """A line a tuned variant: the validation accuracy that the best of so many trials is expected to have."""
    for variant, rows in tables["expected_best"].groupby("variant", sort=False):
        look = style.looks[variant]
        ax.plot(
            rows.trials, rows.expected_best, color=look.colour, marker=look.marker, mfc=look.fill, markersize=6,
            label=rows.title.iloc[0],
        )  # fmt: skip
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("trials of a search")
    ax.set_ylabel("expected best validation accuracy (%)")
    ax.set_title("What a search finds")
    style.legend(ax)


def axis_of(centres: pd.Series, low: pd.Series, high: pd.Series) -> tuple[float, float]:
    """Limits that show all but what lies far out, so that a single method does not press the others together."""
    low, high = low.fillna(centres), high.fillna(centres)
    reach = np.maximum(low.abs(), high.abs())
    kept = centres.abs() <= CUT * max(reach.median() if len(reach) else 0.0, 0.5)
    least, most = min(low[kept].min(), 0.0) if kept.any() else -1.0, max(high[kept].max(), 0.0) if kept.any() else 1.0
    room = 0.08 * max(most - least, 1.0)
    cut = ~kept & centres.notna()  # an arrow needs room on its side
    left = room * (4 if (cut & (centres < 0)).any() else 1)
    right = room * (4 if (cut & (centres > 0)).any() else 1)
    return least - left, most + right


def draw_difference(
    ax: Axes, y: float, centre: float, low: float, high: float, look: Look, limits: tuple[float, float]
) -> None:
    """A difference with its interval, or, of one that is cut off, an arrow with its value."""
    if limits[0] <= centre <= limits[1]:
        if pd.notna(low):
            ax.plot(np.clip([low, high], *limits), [y, y], color=look.colour, linewidth=1.8, zorder=3)
        ax.plot(centre, y, look.marker, color=look.colour, markerfacecolor=look.fill, zorder=4)
        return
    right = centre > limits[1]
    edge, inner = (limits[1], 0.97 * limits[1]) if right else (limits[0], 0.97 * limits[0])
    ax.plot(inner, y, ">" if right else "<", color=look.colour, zorder=4)
    ax.annotate(
        f"{centre:+.1f}", (edge, y), (-12 if right else 12, 0), textcoords="offset points",
        ha="right" if right else "left", va="center", color=look.colour, fontsize=9,
    )  # fmt: skip


def draw_headline(ax: Axes, tables: Tables, style: Style) -> None:
    """A row a method: every seed as a dot, the mean with its interval, the control as a line."""
    table = style.headline.reset_index(drop=True)
    for y, row in table.iterrows():
        seeds = tables["runs"][tables["runs"].variant == row.variant]
        runs = [run_id(row.model, row.variant, seed) for seed in seeds.seed]
        draw_runs(ax, seeds[f"test_{style.key}"].to_numpy(), y, style.looks[row.variant], runs)
    style.rows(ax, table, list(table.title), style.key)
    ax.set_xlabel(f"test {style.words} (%): dots are seeds, bars {AT_LEVEL} intervals of the mean")
    ax.set_title(f"Test {style.words} by method")


def draw_runs(ax: Axes, values: np.ndarray, y: float, look: Look, runs: list[str]) -> None:
    """A dot a run, below the middle of its row, that leads to the run's place on the page."""
    dots = ax.scatter(
        values, np.full(len(values), y + 0.22), s=11, color=look.colour, alpha=0.55, linewidth=0, zorder=2
    )
    dots.set_urls([f"#{run}" for run in runs])


def draw_curves(ax: Axes, tables: Tables, style: Style) -> None:
    """Validation accuracy while training, mean over seeds with one standard deviation; each method by the share of its
    own training, so that one that trains for longer does not press the others together."""
    for variant, rows in tables["curves"].groupby("variant", sort=False):
        look = style.looks[variant]
        share = 100 * rows.epoch / max(rows.epoch.max(), 1)
        mean, sd = rows.validation_accuracy, rows.validation_sd
        ax.fill_between(share, mean - sd, mean + sd, color=look.colour, alpha=0.12, linewidth=0)
        ax.plot(
            share, mean, color=look.colour, marker=look.marker, markevery=max(len(rows) // 6, 1), markersize=5,
            mfc=look.fill, label=rows.title.iloc[0],
        )  # fmt: skip
    ax.set_xlabel("share of each method's own training (%)")
    ax.set_ylabel("validation accuracy (%); band: one sd")
    ax.set_title("Training curves")
    style.legend(ax)
