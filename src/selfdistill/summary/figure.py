"""Figures of tables: how variants look, the panels of networks, and a row a variant for every analysis without a figure
of its own."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer

from selfdistill import analyses, methods
from selfdistill.summary import AT_LEVEL
from selfdistill.summary.table import key_columns, prefixed
from selfdistill.summary.text import title

CONTROL = "#777777"
PALETTE = sns.color_palette("colorblind", 10)
COLOURS = dict(zip(methods.COLOURS, (*PALETTE[:6], PALETTE[9], mpl.colors.to_rgb(CONTROL)), strict=True))
MARKERS = dict(zip(methods.MARKERS, "osD^p", strict=True))
UNKNOWN = "grey triangle"  # of a method whose card names no look
MANY = 10  # methods; with more, lines and points in one panel look the same


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


@dataclass(frozen=True)
class Style:
    """What a figure of an analysis is given, beside its table.

    looks: of each variant; headline: the table of the number that stands for a run, of the same network; key, words: of
    that number; every: all rows of the analysis, also those that its table leaves out, with `bin` and the like; size of
    a panel, and with a row a variant; many: whether there are too many variants for one panel; reference: how a line
    looks that others are held against.
    """

    looks: Looks
    headline: pd.DataFrame
    key: str
    words: str
    variants: int
    every: pd.DataFrame | None = None

    panel = (6.4, 4.2)
    reference = MappingProxyType({"color": CONTROL, "linestyle": (0, (4, 3)), "linewidth": 1, "zorder": 1})

    @property
    def many(self) -> bool:
        return self.variants > MANY

    @property
    def row_each(self) -> tuple[float, float]:
        return row_each(self.variants)

    def rows(self, ax: Axes, table: pd.DataFrame, labels: list[str], key: str, half_width: str = "half_width") -> None:
        """A labelled row a variant, from the top: the mean with its interval, and the control as a line."""
        for y, row in table.iterrows():
            look, spread = self.looks[row.variant], self.spread(row[half_width])
            ax.errorbar(row[key], y, xerr=spread, fmt=look.marker, color=look.colour, mfc=look.fill, zorder=3)
        for value in table[table.control][key]:
            ax.axvline(value, **self.reference)
        ax.set_yticks(range(len(table)), labels)
        ax.set_ylim(len(table) - 0.5, -0.5)
        ax.grid(axis="y", visible=False)

    def with_exits(self, table: pd.DataFrame) -> list[str]:
        """The variants with several exits, of each of which the table has a row, and the control."""
        controls = set(self.headline[self.headline.control].variant)
        return [name for name, rows in table.groupby("variant", sort=False) if len(rows) > 1 or name in controls]

    def legend(self, ax: Axes) -> None:
        """Beside the panel; markers without the error bars that would hide what they look like."""
        handles, labels = ax.get_legend_handles_labels()
        bare = [handle[0] if isinstance(handle, ErrorbarContainer) else handle for handle in handles]
        ax.legend(bare, labels, loc="center left", bbox_to_anchor=(1.0, 0.5))

    def thinner(self, place: int) -> float:
        """Width of an error bar, so that a later one at the same place leaves the earlier ones visible."""
        return max(3.8 - 0.9 * place, 1.0)

    def spread(self, half_width: float) -> float | None:
        """An error bar, or none for a single seed."""
        return None if pd.isna(half_width) else half_width


def row_each(rows: int) -> tuple[float, float]:
    """Size of a figure with so many rows."""
    return 6.4, 0.36 * rows + 1.5


def looks_of(runs: pd.DataFrame) -> Looks:
    """Each variant's colour and marker, by its method's card."""
    found = {}
    for variant, method in runs.drop_duplicates("variant")[["variant", "method"]].itertuples(index=False):
        colour, marker = (methods.about(method)["look"] or UNKNOWN).split()
        found[variant] = Look(COLOURS[colour], MARKERS[marker], hollow=variant != method)
    return found


def figure_names(analysis: str, table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The figures of an analysis by their names, each with the keys of its rows: its own, or one of its first judged
    number for each kind of row; none where no number is judged."""
    if hasattr(analyses.load(analysis), "draw"):
        return {analysis: {}}
    if not any(number["judged"] and key in table for key, number in analyses.about(analysis)["numbers"].items()):
        return {}
    keys = [key for key in key_columns(analysis) if key in table]
    kinds = table[keys].drop_duplicates().to_dict("records") if keys else [{}]
    return {"-".join([analysis, *map(str, kind.values())]).replace("/", "_"): kind for kind in kinds}


def draw_default(analysis: str, kind: dict[str, Any], ax: Axes, table: pd.DataFrame, style: Style) -> None:
    """A row a variant, of the first judged number; kind: the keys of its rows."""
    numbers = {k: n for k, n in analyses.about(analysis)["numbers"].items() if k in table}
    key = next(key for key, number in numbers.items() if number["judged"])
    for name, value in kind.items():
        table = table[table[name] == value]
    table = table.reset_index(drop=True)
    style.rows(ax, table, list(table.title), key, prefixed(key, numbers, "half_width"))
    words = title(numbers[key])
    ax.set_xlabel(f"{words[0].lower()}{words[1:]}; bars: {AT_LEVEL} intervals over seeds")
    ax.set_title(": ".join([f"{numbers[key]['title']} by method", *map(str, kind.values())]))
