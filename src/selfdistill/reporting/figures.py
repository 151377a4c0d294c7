"""Figures from tables, each as SVG and PNG, in one style, equal to the byte when drawn again."""

from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfdistill.reporting.files import read_table, write_together
from selfdistill.reporting.measure import measure_of

STYLE = Path(__file__).with_name("style.mplstyle")
CONTROL = "#777777"
COLOURS = [colour for colour in sns.color_palette("colorblind", 10) if len(set(colour)) > 1]  # no second grey
MANY = 10  # methods; with more, lines and points in one panel look the same
# without dates and versions, so that the same picture is the same file
METADATA = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}


def draw_figures(results: Path) -> None:
    """Draw every figure of results/tables into results/figures."""
    tables = {
        name: read_table(results / "tables" / f"{name}.csv")
        for name in ("accuracy", "exits", "cost", "runs", "curves", "robustness")
        if (results / "tables" / f"{name}.csv").is_file()
    }
    colours = colours_of(tables["accuracy"])
    methods = tables["accuracy"].variant.nunique()
    many = methods > MANY
    row_a_method = (6.4, 0.45 * methods + 1.3)
    with plt.style.context(STYLE, after_reset=True):  # of a matplotlibrc of the user nothing is taken
        figures = [
            ("accuracy", draw_accuracy, row_a_method, False),
            ("curves", draw_curves, (6.4, 4.2), many),
            ("exits", draw_exits, (6.4, 4.2), False),
            ("cost", draw_cost_rows if many else draw_cost, row_a_method if many else (6.4, 4.2), False),
        ]
        for images in tables["robustness"].images.unique() if "robustness" in tables else ():
            figures.append((f"robustness-{images}", partial(draw_robustness, images), row_a_method, False))
        drawn: dict[Path, bytes] = {}
        for name, draw, size, grouped in figures:
            figure = panels(tables, draw, colours, size, grouped)
            for kind, metadata in METADATA.items():
                buffer = BytesIO()
                figure.savefig(buffer, format=kind, metadata=metadata)
                drawn[results / "figures" / f"{name}.{kind}"] = buffer.getvalue()
            plt.close(figure)
    write_together(drawn)


def colours_of(accuracy: pd.DataFrame) -> dict[str, tuple]:
    """One colour a variant, the same in every figure; the control is grey.

    With more than ten methods those of one group have different colours; the eleventh of a group has the first colour.
    """
    controls = set(accuracy[accuracy.verdict == "control"].variant)
    others = accuracy[~accuracy.variant.isin(controls)].drop_duplicates("variant")
    few = len(others) <= len(COLOURS)
    place = pd.Series(range(len(others)), others.index) if few else others.groupby("group", sort=False).cumcount()
    chosen = {m: COLOURS[i % len(COLOURS)] for m, i in zip(others.variant, place, strict=True)}
    return {**dict.fromkeys(controls, CONTROL), **chosen}


def panels(tables: dict, draw: Callable, colours: dict, size: tuple[float, float], grouped: bool) -> Figure:
    """A panel a model, side by side; grouped: a row of them a group of methods, each with its control."""
    accuracy = tables["accuracy"]
    models = list(dict.fromkeys(accuracy.model))
    rows = list(dict.fromkeys(accuracy.group)) if grouped else [None]
    shape = (len(rows), len(models))
    figure, axes = plt.subplots(*shape, figsize=(size[0] * shape[1], size[1] * shape[0]), squeeze=False)
    for i, group in enumerate(rows):
        kept = (
            accuracy[(accuracy.group == group) | (accuracy.verdict == "control")].variant if group else accuracy.variant
        )
        for model, ax in zip(models, axes[i], strict=True):
            shown = {n: table[(table.model == model) & table.variant.isin(kept)] for n, table in tables.items()}
            draw(ax, shown, colours)
            of = [*([model] if len(models) > 1 else []), *([group] if group else [])]
            if of:
                ax.set_title(f"{ax.get_title(loc='left')}: {', '.join(of)}")
    figure.tight_layout()
    return figure


def draw_accuracy(ax: Axes, tables: dict, colours: dict) -> None:
    """A row a method: every seed as a dot, the mean with its 95 % interval, the control as a line."""
    table = tables["accuracy"].reset_index(drop=True)
    measure = measure_of(table.columns)
    for y, row in table.iterrows():
        seeds = tables["runs"][tables["runs"].variant == row.variant][f"test_{measure.key}"]
        ax.scatter(seeds, [y] * len(seeds), s=16, color=colours[row.variant], alpha=0.35, linewidth=0, zorder=2)
    draw_rows(ax, table, judged(table), colours)
    ax.set_xlabel(f"test {measure.words} (%): dots are seeds, bars 95 % intervals of the mean")
    ax.set_title(f"Test {measure.words} by method")


def judged(table: pd.DataFrame) -> list[str]:
    """Each row's method, with its verdict if that says something."""
    return [f"{r.title}  ({r.verdict})" if r.verdict != "no evidence" else r.title for r in table.itertuples()]


def draw_robustness(images: str, ax: Axes, tables: dict, colours: dict) -> None:
    """A row a method: its accuracy on a data set of other images."""
    table = tables["robustness"]
    table = table[table.images == images].reset_index(drop=True)
    draw_rows(ax, table, judged(table), colours)
    ax.set_xlabel("accuracy (%), mean over sets and severities; bars: 95 % intervals over seeds")
    ax.set_title(f"Accuracy on {images}")


def draw_rows(ax: Axes, table: pd.DataFrame, labels: list[str], colours: dict) -> None:
    """A labelled row a method, from the top: the mean with its 95 % interval, and the control as a line."""
    key = measure_of(table.columns).key
    for y, row in table.iterrows():
        colour = colours[row.variant]
        ax.errorbar(row[key], y, xerr=spread(row.half_width), fmt="o", color=colour, capsize=3, zorder=3)
    for accuracy in table[table.verdict == "control"][key]:
        ax.axvline(accuracy, color=CONTROL, linestyle=(0, (4, 3)), linewidth=1, zorder=1)
    ax.set_yticks(range(len(table)), labels)
    ax.set_ylim(len(table) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)


def draw_curves(ax: Axes, tables: dict, colours: dict) -> None:
    """Validation accuracy while training, mean over seeds."""
    seen: set = set()
    for variant, rows in tables["curves"].groupby("variant", sort=False):
        colour = colours[variant]
        style = "--" if colour in seen else "-"
        seen.add(colour)
        ax.plot(rows.epoch, rows.validation_accuracy, style, color=colour, label=rows.title.iloc[0])
    ax.set_ylim(bottom=0)
    ax.set_xlabel("epoch")
    ax.set_ylabel("validation accuracy (%), mean over seeds")
    ax.set_title("Training curves")
    legend_beside(ax)


def draw_exits(ax: Axes, tables: dict, colours: dict) -> None:
    """Accuracy of each exit against the cost of getting there; the control, without exits, as a point."""
    exits = tables["exits"]
    measure = measure_of(exits.columns)
    shown = [m for m, rows in exits.groupby("variant", sort=False) if len(rows) > 1 or colours[m] == CONTROL]
    step = 0.008 * exits.million_macs.max()  # aside of each other, so that no interval hides another
    for place, variant in enumerate(shown):
        rows = exits[exits.variant == variant]
        for part, form in ((rows[rows.exit != "ensemble"], "o-"), (rows[rows.exit == "ensemble"], "*")):
            ax.errorbar(
                part.million_macs + step * (place - (len(shown) - 1) / 2),
                part[measure.key],
                yerr=part.half_width.fillna(0),
                fmt=form,
                markersize=11 if form == "*" else 6,
                color=colours[variant],
                capsize=3,
                label=rows.title.iloc[0] if form != "*" else None,
            )
    ax.set_xlabel("million multiply-adds of one image up to the exit; star: ensemble of all exits")
    ax.set_ylabel(f"test {measure.words} (%)")
    ax.set_title(f"{measure.words.capitalize()} against depth")
    legend_beside(ax)


def draw_cost(ax: Axes, tables: dict, colours: dict) -> None:
    """Accuracy against the whole training cost, a teacher's included."""
    table = tables["cost"].merge(tables["accuracy"][["variant", "half_width"]], on="variant")
    measure = measure_of(table.columns)
    table = table.dropna(subset="relative_cost")
    if table.empty:  # a study in progress
        ax.text(0.5, 0.5, "the control has not run", ha="center", va="center", transform=ax.transAxes)
    step = 0.02 * (table.relative_cost.max() - table.relative_cost.min() or 1)
    taken: dict[float, int] = {}
    for row in table.itertuples():
        near = round(row.relative_cost, 1)
        place = taken[near] = taken.get(near, -1) + 1  # equal costs aside of each other
        ax.errorbar(
            row.relative_cost + step * place,
            getattr(row, measure.key),
            yerr=spread(row.half_width),
            fmt="o",
            color=colours[row.variant],
            capsize=3,
            label=row.title,
        )
    ax.margins(x=0.1)
    ax.set_xlabel("training FLOPs relative to the control, a teacher's included")
    ax.set_ylabel(f"test {measure.words} (%)")
    ax.set_title(f"{measure.words.capitalize()} against training cost")
    if len(table):
        legend_beside(ax)


def draw_cost_rows(ax: Axes, tables: dict, colours: dict) -> None:
    """Accuracy of many methods, the cheapest on top, each with its whole training cost."""
    table = tables["cost"].merge(tables["accuracy"][["variant", "half_width", "verdict"]], on="variant")
    table = table.sort_values("relative_cost", kind="stable").reset_index(drop=True)
    measure = measure_of(table.columns)
    costs = ["?" if pd.isna(c) else f"{c:.2f}" for c in table.relative_cost]
    draw_rows(ax, table, [f"{t}  x{c}" for t, c in zip(table.title, costs, strict=True)], colours)
    ax.set_xlabel(f"test {measure.words} (%); x: training FLOPs relative to the control, a teacher's included")
    ax.set_title(f"{measure.words.capitalize()} against training cost")


def legend_beside(ax: Axes) -> None:
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def spread(half_width: float) -> float | None:
    """An error bar, or none for a single seed."""
    return None if pd.isna(half_width) else half_width
