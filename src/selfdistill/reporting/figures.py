"""Figures from tables, each as SVG and PNG, in one style, equal to the byte when drawn again."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from selfdistill import methods
from selfdistill.reporting.files import read_table, write_together
from selfdistill.reporting.measure import measure_of

STYLE = Path(__file__).with_name("style.mplstyle")
CONTROL = "#777777"
PALETTE = sns.color_palette("colorblind", 10)
COLOURS = dict(zip(methods.COLOURS, (*PALETTE[:6], PALETTE[9], mpl.colors.to_rgb(CONTROL)), strict=True))
MARKERS = dict(zip(methods.MARKERS, "osD^p", strict=True))
UNKNOWN = "grey triangle"  # of a method whose card names no look
MANY = 10  # methods; with more, lines and points in one panel look the same
CUT = 2.5  # what lies further out than so many times the median reach of an interval is cut off, with an arrow
# without dates and versions, so that the same picture is the same file
METADATA = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}


@dataclass(frozen=True)
class Look:
    """Of a variant, the same in every figure of every study: its method's, hollow where it is not the method itself."""

    colour: tuple[float, float, float]
    marker: str
    hollow: bool

    @property
    def fill(self) -> object:
        return "white" if self.hollow else self.colour


Looks = dict[str, Look]
NEEDED = "accuracy", "exits", "cost", "runs", "curves"  # tables
PERHAPS = "contrasts", "robustness", "accuracy_tuned", "cost_tuned", "expected_best"


def draw_figures(results: Path) -> None:
    """Draw every figure of results/tables into results/figures."""
    tables = {
        name: read_table(results / "tables" / f"{name}.csv")
        for name in (*NEEDED, *PERHAPS)
        if (results / "tables" / f"{name}.csv").is_file()
    }
    looks = looks_of(tables["runs"])
    variants = tables["accuracy"].variant.nunique()
    many = variants > MANY

    def row_each(rows: int) -> tuple[float, float]:
        return 6.4, 0.36 * rows + 1.5

    with plt.style.context(STYLE, after_reset=True):  # of a matplotlibrc of the user nothing is taken
        figures = [
            ("differences", draw_differences, row_each(variants), False),
            ("accuracy", draw_accuracy, row_each(variants), False),
            ("curves", draw_curves, (6.4, 4.2), many),
            ("exits", draw_exits, (6.4, 4.2), False),
            ("cost", draw_cost_rows if many else draw_cost, row_each(variants) if many else (6.4, 4.2), False),
        ]
        if "contrasts" in tables:
            figures.insert(0, ("contrasts", draw_contrasts, row_each(tables["contrasts"].contrast.nunique()), False))
        if "accuracy_tuned" in tables:
            rows = tables["accuracy_tuned"].variant.nunique()
            figures.append(("differences_tuned", partial(draw_differences, of="_tuned"), row_each(rows), False))
            figures.append(("tuning", draw_expected_best, (6.4, 4.2), False))
        for images in tables["robustness"].images.unique() if "robustness" in tables else ():
            figures.append((f"robustness-{images}", partial(draw_robustness, images), row_each(variants), False))
        drawn: dict[Path, bytes] = {}
        for name, draw, size, grouped in figures:
            figure = panels(tables, draw, looks, size, grouped)
            for kind, metadata in METADATA.items():
                buffer = BytesIO()
                figure.savefig(buffer, format=kind, metadata=metadata)
                drawn[results / "figures" / f"{name}.{kind}"] = buffer.getvalue()
            plt.close(figure)
    write_together(drawn)


def looks_of(runs: pd.DataFrame) -> Looks:
    """Each variant's colour and marker, by its method's card."""
    found = {}
    for variant, method in runs.drop_duplicates("variant")[["variant", "method"]].itertuples(index=False):
        colour, marker = (methods.about(method)["look"] or UNKNOWN).split()
        found[variant] = Look(COLOURS[colour], MARKERS[marker], hollow=variant != method)
    return found


def panels(tables: dict, draw: Callable, looks: Looks, size: tuple[float, float], grouped: bool) -> Figure:
    """A panel a model, side by side; grouped: a row of them a group of methods, each with its control."""
    accuracy = tables["accuracy"]
    models = list(dict.fromkeys(accuracy.model))
    rows = list(dict.fromkeys(accuracy.group)) if grouped else [None]
    shape = (len(rows), len(models))
    figure, axes = plt.subplots(*shape, figsize=(size[0] * shape[1], size[1] * shape[0]), squeeze=False)
    for i, group in enumerate(rows):
        kept = accuracy[(accuracy.group == group) | accuracy.control].variant if group else None
        for model, ax in zip(models, axes[i], strict=True):
            shown = {
                n: table[(table.model == model) & (table.variant.isin(kept) if group and "variant" in table else True)]
                for n, table in tables.items()
            }
            draw(ax, shown, looks)
            of = [*([model] if len(models) > 1 else []), *([group] if group else [])]
            if of:
                ax.set_title(f"{ax.get_title(loc='left')}: {', '.join(of)}")
    figure.tight_layout()
    return figure


def draw_contrasts(ax: Axes, tables: dict, looks: Looks) -> None:
    """A row a declared contrast, sorted: the difference with the interval that its verdict used, and the margin."""
    table = tables["contrasts"].sort_values("difference", ascending=False, kind="stable").reset_index(drop=True)
    limits = axis_of(table.difference, table.low, table.high)
    for y, row in table.iterrows():
        margin = row.margin
        ax.fill_between([-margin, margin], y - 0.4, y + 0.4, color="#eef1f5", linewidth=0, zorder=0)
        if pd.notna(row.difference):
            draw_difference(ax, y, row.difference, row.low, row.high, looks[row.of], limits)
    ax.axvline(0, color=CONTROL, linewidth=1, zorder=1)
    labels = [
        f"{r.title} against {r.against_title}{'' if str(r.exit) == 'last' else f', exit {r.exit}'}\n{r.verdict}"
        for r in table.itertuples()
    ]
    ax.set_yticks(range(len(table)), labels)
    ax.set_ylim(len(table) - 0.5, -0.5)
    ax.set_xlim(*limits)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("difference in points; shaded: margin of equivalence")
    ax.set_title("Declared contrasts")


def draw_differences(ax: Axes, tables: dict, looks: Looks, of: str = "") -> None:
    """A row a variant, sorted by its difference to the control: every seed's difference as a dot, the mean with its
    95 % interval; of: `_tuned` for the variants of tuned values."""
    accuracy = tables[f"accuracy{of}"]
    table = accuracy[~accuracy.control].dropna(subset="difference")
    table = table.sort_values("difference", ascending=False, kind="stable").reset_index(drop=True)
    key = f"test_{measure_of(accuracy.columns).key}"
    by_seed = tables["runs"].pivot_table(index="seed", columns="variant", values=key)
    control = accuracy[accuracy.control].variant
    seeds = by_seed.sub(by_seed[control.iloc[0]], axis=0) if len(control) else by_seed * np.nan
    half_width = table.difference_half_width
    limits = axis_of(table.difference, table.difference - half_width, table.difference + half_width)
    for y, row in table.iterrows():
        look, half = looks[row.variant], row.difference_half_width
        dots = seeds[row.variant].dropna()
        dots = dots[(dots > limits[0]) & (dots < limits[1])]
        ax.scatter(dots, np.full(len(dots), y + 0.22), s=11, color=look.colour, alpha=0.55, linewidth=0, zorder=2)
        draw_difference(ax, y - 0.08, row.difference, row.difference - half, row.difference + half, look, limits)
    ax.axvline(0, color=CONTROL, linewidth=1, zorder=1)
    ax.set_yticks(range(len(table)), table.title)
    ax.set_ylim(max(len(table), 1) - 0.5, -0.5)
    ax.set_xlim(*limits)
    ax.grid(axis="y", visible=False)
    name = accuracy[accuracy.control].title.iloc[0] if len(control) else "the control, which has not run"
    ax.set_xlabel("difference in points: dots are seeds, bars exploratory 95 % intervals")
    ax.set_title(f"Test {measure_of(accuracy.columns).words} against {name}")


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


def draw_accuracy(ax: Axes, tables: dict, looks: Looks) -> None:
    """A row a method: every seed as a dot, the mean with its 95 % interval, the control as a line."""
    table = tables["accuracy"].reset_index(drop=True)
    measure = measure_of(table.columns)
    for y, row in table.iterrows():
        seeds = tables["runs"][tables["runs"].variant == row.variant][f"test_{measure.key}"]
        ax.scatter(
            seeds, [y + 0.22] * len(seeds), s=11, color=looks[row.variant].colour, alpha=0.55, linewidth=0, zorder=2
        )
    draw_rows(ax, table, list(table.title), looks)
    ax.set_xlabel(f"test {measure.words} (%): dots are seeds, bars 95 % intervals of the mean")
    ax.set_title(f"Test {measure.words} by method")


def draw_robustness(images: str, ax: Axes, tables: dict, looks: Looks) -> None:
    """A row a method: its accuracy on a data set of other images."""
    table = tables["robustness"]
    table = table[table.images == images].reset_index(drop=True)
    draw_rows(ax, table, list(table.title), looks)
    ax.set_xlabel("accuracy (%), mean over sets and severities; bars: 95 % intervals over seeds")
    ax.set_title(f"Accuracy on {images}")


def draw_rows(ax: Axes, table: pd.DataFrame, labels: list[str], looks: Looks) -> None:
    """A labelled row a method, from the top: the mean with its 95 % interval, and the control as a line."""
    key = measure_of(table.columns).key
    for y, row in table.iterrows():
        look = looks[row.variant]
        ax.errorbar(
            row[key], y, xerr=spread(row.half_width), fmt=look.marker, color=look.colour, mfc=look.fill, zorder=3
        )
    for accuracy in table[table.control][key]:
        ax.axvline(accuracy, color=CONTROL, linestyle=(0, (4, 3)), linewidth=1, zorder=1)
    ax.set_yticks(range(len(table)), labels)
    ax.set_ylim(len(table) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)


def draw_curves(ax: Axes, tables: dict, looks: Looks) -> None:
    """Validation accuracy while training, mean over seeds with one standard deviation; each method by the share of its
    own training, so that one that trains for longer does not press the others together."""
    for variant, rows in tables["curves"].groupby("variant", sort=False):
        look = looks[variant]
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
    legend_beside(ax)


def draw_expected_best(ax: Axes, tables: dict, looks: Looks) -> None:
    """A line a tuned variant: the validation accuracy that the best of so many trials is expected to have."""
    for variant, rows in tables["expected_best"].groupby("variant", sort=False):
        look = looks[variant]
        ax.plot(
            rows.trials, rows.expected_best, color=look.colour, marker=look.marker, mfc=look.fill, markersize=6,
            label=rows.title.iloc[0],
        )  # fmt: skip
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("trials of a search")
    ax.set_ylabel("expected best validation accuracy (%)")
    ax.set_title("What a search finds")
    legend_beside(ax)


def draw_exits(ax: Axes, tables: dict, looks: Looks) -> None:
    """Accuracy of each exit against the cost of getting there; the control, without exits, as a point."""
    exits = tables["exits"]
    measure = measure_of(exits.columns)
    controls = set(tables["accuracy"][tables["accuracy"].control].variant)
    shown = [m for m, rows in exits.groupby("variant", sort=False) if len(rows) > 1 or m in controls]
    for place, variant in enumerate(shown):
        rows, look = exits[exits.variant == variant], looks[variant]
        for part, form, words in (
            (rows[rows.exit != "ensemble"], f"{look.marker}-", ""),
            (rows[rows.exit == "ensemble"], "*", ", all exits together"),
        ):
            if len(part):
                ax.errorbar(
                    part.million_macs, part[measure.key], yerr=part.half_width.fillna(0), fmt=form,
                    markersize=11 if form == "*" else 6, color=look.colour, mfc=look.fill,
                    elinewidth=thinner(place), label=rows.title.iloc[0] + words,
                )  # fmt: skip
    ax.set_xlabel("million multiply-adds of one image up to the exit")
    ax.set_ylabel(f"test {measure.words} (%)")
    ax.set_title(f"{measure.words.capitalize()} against depth")
    legend_beside(ax)


def draw_cost(ax: Axes, tables: dict, looks: Looks) -> None:
    """Accuracy against the whole training cost, a teacher's included."""
    table = tables["cost"].merge(tables["accuracy"][["variant", "half_width"]], on="variant")
    measure = measure_of(table.columns)
    table = table.dropna(subset="relative_cost")
    if table.empty:  # a study in progress
        ax.text(0.5, 0.5, "the control has not run", ha="center", va="center", transform=ax.transAxes)
    for place, row in enumerate(table.itertuples()):
        look = looks[row.variant]
        ax.errorbar(
            row.relative_cost, getattr(row, measure.key), yerr=spread(row.half_width), fmt=look.marker,
            color=look.colour, mfc=look.fill, elinewidth=thinner(place), label=row.title,
        )  # fmt: skip
    ax.margins(x=0.1)
    ax.set_xlabel("training FLOPs relative to the control, a teacher's included")
    ax.set_ylabel(f"test {measure.words} (%)")
    ax.set_title(f"{measure.words.capitalize()} against training cost")
    if len(table):
        legend_beside(ax)


def draw_cost_rows(ax: Axes, tables: dict, looks: Looks) -> None:
    """Accuracy of many methods, the cheapest on top, each with its whole training cost."""
    table = tables["cost"].merge(tables["accuracy"][["variant", "half_width", "control"]], on="variant")
    table = table.sort_values("relative_cost", kind="stable").reset_index(drop=True)
    measure = measure_of(table.columns)
    costs = ["?" if pd.isna(c) else f"{c:.2f}" for c in table.relative_cost]
    draw_rows(ax, table, [f"{t}  x{c}" for t, c in zip(table.title, costs, strict=True)], looks)
    ax.set_xlabel(f"test {measure.words} (%); x: training FLOPs relative to the control, a teacher's included")
    ax.set_title(f"{measure.words.capitalize()}, the cheapest training on top")


def legend_beside(ax: Axes) -> None:
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def thinner(place: int) -> float:
    """Width of an error bar, so that a later one at the same place leaves the earlier ones visible."""
    return max(3.8 - 0.9 * place, 1.0)


def spread(half_width: float) -> float | None:
    """An error bar, or none for a single seed."""
    return None if pd.isna(half_width) else half_width
