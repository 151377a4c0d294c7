"""Calibration of every exit, as it is and at the temperature that validation images ask for."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from selfdistill.evaluation.exits import unlike

if TYPE_CHECKING:
    from selfdistill.evaluation.inputs import Predictions

ABOUT = {
    "title": "Calibration",
    "needs": ["logits"],
    "settings": {"bins": {"default": 15, "allowed": [1, 1000]}},
    "keys": {"exit": "Exit", "bin": "Bin"},
    "shown": {"exit": "deepest", "bin": None},
    "numbers": {
        "ece": {"title": "Calibration error", "unit": "%", "better": "lower", "judged": True},
        "ece_scaled": {"title": "Calibration error, scaled", "unit": "%", "better": "lower", "judged": False},
        "nll": {"title": "Negative log-likelihood", "unit": "nats", "better": "lower", "judged": False},
        "nll_scaled": {"title": "Negative log-likelihood, scaled", "unit": "nats", "better": "lower", "judged": False},
        "temperature": {"title": "Temperature", "unit": "", "better": None, "judged": False},
        "adaptive_ece": {
            "title": "Adaptive calibration error",
            "unit": "%",
            "better": "lower",
            "judged": False,
            "shown": "csv",
        },
        "adaptive_ece_scaled": {
            "title": "Adaptive calibration error, scaled",
            "unit": "%",
            "better": "lower",
            "judged": False,
            "shown": "csv",
        },
        "classwise_ece": {
            "title": "Classwise calibration error",
            "unit": "%",
            "better": "lower",
            "judged": False,
            "shown": "csv",
        },
        "classwise_ece_scaled": {
            "title": "Classwise calibration error, scaled",
            "unit": "%",
            "better": "lower",
            "judged": False,
            "shown": "csv",
        },
        "brier": {"title": "Brier score", "unit": "", "better": "lower", "judged": False, "digits": 4, "shown": "csv"},
        "brier_scaled": {
            "title": "Brier score, scaled",
            "unit": "",
            "better": "lower",
            "judged": False,
            "digits": 4,
            "shown": "csv",
        },
        "share": {"title": "Images in the bin", "unit": "%", "better": None, "judged": False, "shown": "runs"},
        "right": {"title": "Right ones among them", "unit": "%", "better": None, "judged": False, "shown": "runs"},
        "confidence": {"title": "Their confidence", "unit": "%", "better": None, "judged": False, "shown": "runs"},
    },
}
FEWEST = 0.5  # percent of the images that a bin needs to be drawn
GROUPED = True  # of many methods a panel a group


def analyse(inputs: "Predictions", bins: int) -> list[dict[str, Any]]:
    """One row an exit, shallow to deep, and one of all exits together; then one a bin of the deepest exit's confidence,
    as it is: the share of all test images in it, right in it, and the sum of their confidences, over all images."""
    from selfdistill.evaluation.calibration import calibration, confidences, fitted_temperature, reliability
    from selfdistill.evaluation.classification import ensemble

    (validation, validation_labels), labels = inputs.validation, inputs.labels
    pairs = list(zip(inputs.exits, inputs.logits, validation, strict=True))
    if len(pairs) > 1:
        pairs.append(("ensemble", ensemble(inputs.logits), ensemble(validation)))
    rows: list[dict[str, Any]] = []
    for name, logits, seen in pairs:
        temperature = fitted_temperature(seen, validation_labels)
        found = calibration(logits, labels, bins)
        scaled = calibration(logits.double() / temperature, labels, bins) if temperature else dict.fromkeys(found)
        row = {"exit": name, "bin": None, **found, "temperature": temperature}
        rows.append({**row, **{f"{key}_scaled": value for key, value in scaled.items()}})
    shares = reliability(*confidences(inputs.logits[-1], labels), bins)
    return rows + [
        {"exit": inputs.exits[-1], "bin": i, "share": share, "right": right, "confidence": confidence}
        for i, (share, right, confidence) in enumerate(shares, 1)
    ]


def contradictions(run: dict[str, Any], rows: list[dict[str, Any]]) -> Iterator[str]:
    """In what rows do not fit the run that they are said to be of."""
    return unlike(run, [row["exit"] for row in rows if row["bin"] is None])


def draw(ax, table, style) -> None:
    """The reliability diagram: of each bin of confidence the share that is right, over the images of all seeds."""
    for variant in table.variant:
        rows = style.every[(style.every.variant == variant) & (style.every.share >= FEWEST)]
        rows, look = rows[rows.bin.notna()], style.looks[variant]
        ax.plot(
            100 * rows.confidence / rows.share, 100 * rows.right / rows.share, color=look.colour, marker=look.marker,
            mfc=look.fill, markersize=5, linewidth=1.2, label=table[table.variant == variant].title.iloc[0],
        )  # fmt: skip
    ax.plot([0, 100], [0, 100], **style.reference)
    ax.set_xlabel("mean confidence in a bin (%)")
    ax.set_ylabel("right in the bin (%)")
    ax.set_title("Reliability")
    style.legend(ax)
