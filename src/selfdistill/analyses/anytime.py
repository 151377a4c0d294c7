"""Accuracy against mean operations when an image leaves at the first exit that is sure of it."""

import json
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from selfdistill.evaluation.exits import exit_names

if TYPE_CHECKING:
    from torch import Tensor

    from selfdistill.evaluation.inputs import Predictions

ABOUT = {
    "title": "Early exit",
    "needs": ["logits"],
    "settings": {},
    "keys": {"rule": "Images leave by", "at": "At"},
    "numbers": {
        "accuracy": {"title": "Test accuracy", "unit": "%", "better": "higher", "judged": False},
        "million_macs": {"title": "M MACs, mean", "unit": "", "better": None, "judged": False, "digits": 3},
        "budget": {
            "title": "Budget, M MACs",
            "unit": "",
            "better": None,
            "judged": False,
            "exact": True,
            "shown": "csv",
        },
        "threshold": {"title": "Threshold", "unit": "", "better": None, "judged": False, "digits": 4, "shown": "csv"},
    },
}
EXIT, CONFIDENCE, BUDGET = "a fixed exit", "one threshold", "a threshold an exit"
LOSSLESS = "no loss"
LEVELS = (10, 25, 50, 75)  # budgets, in percent of the way from the first exit's cost to the last one's


def analyse(inputs: "Predictions") -> list[dict[str, Any]]:
    """One row a fixed exit; with several exits, for each of LEVELS one with the largest common threshold and one with
    a threshold of each exit that keep the budget on the validation images, and one with the smallest common threshold
    that loses none of the deepest exit's accuracy there."""
    from selfdistill.evaluation import anytime

    single = [
        {"rule": EXIT, "at": name, "million_macs": macs / 1e6, "accuracy": inputs.truth.score(logits)["accuracy"]}
        for name, macs, logits in zip(inputs.exits, inputs.run["cost"]["inference_macs"], inputs.logits, strict=True)
    ]
    if len(inputs.exits) == 1:
        return single
    macs = leaving_macs_of(json.dumps(inputs.run["network"], sort_keys=True))
    logits, labels = inputs.validation
    known, right = anytime.confidence(logits), logits.argmax(dim=2) == labels
    sure, correct = anytime.confidence(inputs.logits), inputs.logits.argmax(dim=2) == inputs.labels

    def row(rule: str, at: str, thresholds: list[float], **more: Any) -> dict[str, Any]:
        taken = anytime.exits_taken(sure, thresholds)
        cost = anytime.mean_macs(taken, macs) / 1e6
        return {"rule": rule, "at": at, "million_macs": cost, "accuracy": share(correct, taken), **more}

    def common(at: str, threshold: float, **more: Any) -> dict[str, Any]:
        return row(CONFIDENCE, at, [threshold] * (len(macs) - 1), threshold=threshold, **more)

    budgets = {f"{level} %": macs[0] + level / 100 * (macs[-1] - macs[0]) for level in LEVELS}
    return [
        *single,
        *(common(at, anytime.budget_threshold(known, macs, b), budget=b / 1e6) for at, b in budgets.items()),
        common(LOSSLESS, anytime.lossless_threshold(known, right)),
        *(row(BUDGET, at, anytime.budget_thresholds(known, macs, b), budget=b / 1e6) for at, b in budgets.items()),
    ]


def share(correct: "Tensor", taken: "Tensor") -> float:
    """Of images that are right at the exit that they leave at; correct: exits x N."""
    return correct.gather(0, taken.unsqueeze(0)).double().mean().item()


@cache
def leaving_macs_of(form: str) -> list[int]:
    """Multiply-adds of an image that leaves at each exit, counted on a fresh network of this form (JSON), for a run
    says only what each exit costs by itself."""
    from selfdistill.evaluation.anytime import leaving_macs
    from selfdistill.models.trained import build

    return leaving_macs(build(json.loads(form), seed=0))


def contradictions(run: dict[str, Any], rows: list[dict[str, Any]]) -> Iterator[str]:
    """In what rows do not fit the run that they are said to be of."""
    names = exit_names(run)
    wanted = [(EXIT, name) for name in names]
    if len(names) > 1:
        levels = [f"{level} %" for level in LEVELS]
        wanted += [(CONFIDENCE, at) for at in (*levels, LOSSLESS)] + [(BUDGET, at) for at in levels]
    if (found := [(row["rule"], row["at"]) for row in rows]) != wanted:
        yield f"rows {found} are not allowed; allowed: {wanted}"


def draw(ax, table, style) -> None:
    """A line a variant, of a threshold an exit; hollow points: fixed exits; a star: the threshold without loss on the
    validation images; the control, without exits, as a point."""
    for place, variant in enumerate(style.with_exits(table)):
        rows, look = table[table.variant == variant], style.looks[variant]
        fixed, free = rows[rows.rule == EXIT], rows[rows["at"] == LOSSLESS]
        line = fixed if len(rows) == 1 else rows[rows.rule == BUDGET]
        ax.errorbar(
            line.million_macs, line[style.key], yerr=line.half_width.fillna(0), fmt=f"{look.marker}-", markersize=5,
            color=look.colour, elinewidth=style.thinner(place), label=rows.title.iloc[0],
        )  # fmt: skip
        if len(rows) > 1:
            ax.plot(fixed.million_macs, fixed[style.key], look.marker, color=look.colour, mfc="white", markersize=6)
            ax.plot(free.million_macs, free[style.key], "*", color=look.colour, markersize=13, mec="white", zorder=4)
    ax.set_xlabel("million multiply-adds of one image, mean")
    ax.set_ylabel(f"test {style.words} (%)")
    ax.set_title(f"{style.words.capitalize()} against mean operations")
    style.legend(ax)
