"""Accuracy, likelihood and calibration error of every exit, from stored logits."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from selfdistill.evaluation.exits import unlike

if TYPE_CHECKING:
    from selfdistill.evaluation.inputs import Predictions

ABOUT = {
    "title": "Test accuracy",
    "needs": ["logits"],
    "settings": {},
    "keys": {"exit": "Exit"},
    "shown": {"exit": "deepest"},
    "headline": "accuracy",
    "numbers": {
        "accuracy": {"title": "Test accuracy", "unit": "%", "better": "higher", "judged": True},
        "nll": {
            "title": "Negative log-likelihood",
            "unit": "nats",
            "better": "lower",
            "judged": False,
            "shown": "runs",
        },
        "ece": {"title": "Calibration error", "unit": "%", "better": "lower", "judged": False, "shown": "runs"},
    },
}


def analyse(inputs: "Predictions") -> list[dict[str, Any]]:
    """One row an exit, shallow to deep, and one of all exits together."""
    rows = [
        {"exit": name, **inputs.truth.score(logits)} for name, logits in zip(inputs.exits, inputs.outputs, strict=True)
    ]
    several = [{"exit": "ensemble", **inputs.truth.ensemble(inputs.outputs)}] if len(rows) > 1 else []
    return rows + several


def contradictions(run: dict[str, Any], rows: list[dict[str, Any]]) -> Iterator[str]:
    """In what rows do not fit the run that they are said to be of."""
    return unlike(run, [row["exit"] for row in rows])
