"""Accuracy, likelihood, calibration error and Brier score of every exit, from stored logits."""

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
        "top5": {"title": "Top-5 accuracy", "unit": "%", "better": "higher", "judged": False, "shown": "runs"},
        "brier": {"title": "Brier score", "unit": "", "better": "lower", "judged": False, "shown": "runs"},
    },
}


def analyse(inputs: "Predictions") -> list[dict[str, Any]]:
    """One row an exit, shallow to deep, and one of all exits together."""
    from selfdistill.evaluation.classification import brier, ensemble, metrics, top_k

    found = dict(zip(inputs.exits, inputs.logits, strict=True))
    if len(found) > 1:
        found["ensemble"] = ensemble(inputs.logits)
    return [
        {
            "exit": name,
            **metrics(logits, inputs.labels),
            "top5": top_k(logits, inputs.labels),
            "brier": brier(logits, inputs.labels),
        }
        for name, logits in found.items()
    ]


def contradictions(run: dict[str, Any], rows: list[dict[str, Any]]) -> Iterator[str]:
    """In what rows do not fit the run that they are said to be of."""
    return unlike(run, [row["exit"] for row in rows])
