"""What training and inference cost, in operations that are counted and not measured."""

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfdistill.evaluation.inputs import Predictions

ABOUT = {
    "title": "What it costs",
    "needs": ["run"],
    "settings": {},
    "keys": {},
    "beside": True,
    "numbers": {
        "parameters": {
            "title": "Parameters in training",
            "unit": "",
            "better": "lower",
            "judged": False,
            "exact": True,
            "digits": 0,
        },
        "training_gflops": {
            "title": "Training",
            "unit": "GFLOPs",
            "better": "lower",
            "judged": False,
            "exact": True,
            "digits": 1,
            "summed": True,
        },
        "teacher_gflops": {
            "title": "Teacher's training",
            "unit": "GFLOPs",
            "better": "lower",
            "judged": False,
            "exact": True,
            "digits": 1,
        },
        "tuning_gflops": {
            "title": "Tuning",
            "unit": "GFLOPs",
            "better": "lower",
            "judged": False,
            "exact": True,
            "digits": 1,
            "summed": True,
        },
        "teacher_tuning_gflops": {
            "title": "Teacher's tuning",
            "unit": "GFLOPs",
            "better": "lower",
            "judged": False,
            "exact": True,
            "digits": 1,
        },
        "total_gflops": {
            "title": "All",
            "unit": "GFLOPs",
            "better": "lower",
            "judged": False,
            "exact": True,
            "digits": 1,
            "shown": "csv",
        },
        "relative_cost": {
            "title": "Relative to control",
            "unit": "",
            "better": "lower",
            "judged": False,
            "exact": True,
            "relative_to_control": "total_gflops",
        },
        "million_macs": {"title": "Inference", "unit": "M MACs", "better": "lower", "judged": False, "exact": True},
    },
}


def analyse(inputs: "Predictions") -> list[dict[str, Any]]:
    """One row: parameters in training, GFLOPs of training (a teacher's apart) and, of tuned values, of the search, and
    M MACs of classifying one image at the deepest exit."""
    return of(inputs.run)


def of(run: dict[str, Any]) -> list[dict[str, Any]]:
    cost = run["cost"]
    own, teacher = cost["training_flops"] / 1e9, cost["teacher_training_flops"] / 1e9
    search = run.get("tuning")
    tuning = (
        {"tuning_gflops": search["flops"] / 1e9, "teacher_tuning_gflops": search["teacher_flops"] / 1e9}
        if search
        else {}
    )
    return [
        {
            "parameters": cost["parameters"],
            "training_gflops": own,
            "teacher_gflops": teacher,
            **tuning,
            "total_gflops": own + teacher + sum(tuning.values()),
            "million_macs": cost["inference_macs"][-1] / 1e6,
        }
    ]


def size(style) -> tuple[float, float]:
    """Of the figure: of many methods a row each."""
    return style.row_each if style.many else style.panel


def draw(ax, table, style) -> None:
    """The headline number against the whole training cost, a teacher's included; of many methods a row each, the
    cheapest on top."""
    table = table.merge(style.headline[["variant", "half_width", "control"]], on="variant")
    if style.many:
        table = table.sort_values("relative_cost", kind="stable").reset_index(drop=True)
        costs = ["?" if math.isnan(cost) else f"{cost:.2f}" for cost in table.relative_cost]
        style.rows(ax, table, [f"{t}  x{c}" for t, c in zip(table.title, costs, strict=True)], style.key)
        ax.set_xlabel(f"test {style.words} (%); x: training FLOPs relative to the control, a teacher's included")
        ax.set_title(f"{style.words.capitalize()}, the cheapest training on top")
        return
    table = table.dropna(subset="relative_cost")
    if table.empty:  # a study in progress
        ax.text(0.5, 0.5, "the control has not run", ha="center", va="center", transform=ax.transAxes)
    for place, row in enumerate(table.itertuples()):
        look = style.looks[row.variant]
        ax.errorbar(
            row.relative_cost, getattr(row, style.key), yerr=style.spread(row.half_width), fmt=look.marker,
            color=look.colour, mfc=look.fill, elinewidth=style.thinner(place), label=row.title,
        )  # fmt: skip
    ax.margins(x=0.1)
    ax.set_xlabel("training FLOPs relative to the control, a teacher's included")
    ax.set_ylabel(f"test {style.words} (%)")
    ax.set_title(f"{style.words.capitalize()} against training cost")
    if len(table):
        style.legend(ax)
