"""What each exit of a network reaches, and what it costs to get there."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from selfdistill.evaluation.exits import exit_names, unlike

if TYPE_CHECKING:
    from selfdistill.evaluation.inputs import Predictions

ABOUT = {
    "title": "Exits",
    "needs": ["outputs"],
    "settings": {},
    "keys": {"exit": "Exit"},
    "numbers": {
        "million_macs": {"title": "M MACs", "unit": "", "better": "lower", "judged": False, "exact": True},
        "accuracy": {"title": "Test accuracy", "unit": "%", "better": "higher", "judged": False},
        "rank1": {"title": "Test rank-1", "unit": "%", "better": "higher", "judged": False},
        "mean_average_precision": {"title": "mAP", "unit": "%", "better": "higher", "judged": False},
        "mean_inverse_negative_penalty": {"title": "mINP", "unit": "%", "better": "higher", "judged": False},
    },
}


def analyse(inputs: "Predictions") -> list[dict[str, Any]]:
    """One row an exit, shallow to deep, and one of all exits together."""
    found = [inputs.truth.score(outputs) for outputs in inputs.outputs]
    if len(found) > 1:
        found.append(inputs.truth.ensemble(inputs.outputs))
    return rows(inputs.run, found)


def rows(run: dict[str, Any], found: list[dict[str, float]]) -> list[dict[str, Any]]:
    """With the operations up to each exit; found: metrics of every exit and, of several, of all together."""
    costs = [*run["cost"]["inference_macs"], run["cost"]["ensemble_macs"]]
    places = zip([*exit_names(run), "ensemble"], costs, found, strict=False)
    return [
        {"exit": name, "million_macs": macs / 1e6, **{key: m[key] for key in ABOUT["numbers"] if key in m}}
        for name, macs, m in places
    ]


def contradictions(run: dict[str, Any], rows: list[dict[str, Any]]) -> Iterator[str]:
    """In what rows do not fit the run that they are said to be of."""
    return unlike(run, [row["exit"] for row in rows])


def draw(ax, table, style) -> None:
    """Each exit's number against the cost of getting there; the control, without exits, as a point."""
    for place, variant in enumerate(style.with_exits(table)):
        rows, look = table[table.variant == variant], style.looks[variant]
        for part, form, words in (
            (rows[rows.exit != "ensemble"], f"{look.marker}-", ""),
            (rows[rows.exit == "ensemble"], "*", ", all exits together"),
        ):
            if len(part):
                ax.errorbar(
                    part.million_macs, part[style.key], yerr=part.half_width.fillna(0), fmt=form,
                    markersize=11 if form == "*" else 6, color=look.colour, mfc=look.fill,
                    elinewidth=style.thinner(place), label=rows.title.iloc[0] + words,
                )  # fmt: skip
    ax.set_xlabel("million multiply-adds of one image up to the exit")
    ax.set_ylabel(f"test {style.words} (%)")
    ax.set_title(f"{style.words.capitalize()} against depth")
    style.legend(ax)
