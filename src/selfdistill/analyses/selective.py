"""Selective classification: what a network that may decline to answer reaches, from stored logits."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from selfdistill.evaluation.exits import unlike

if TYPE_CHECKING:
    from selfdistill.evaluation.inputs import Predictions

ABOUT = {
    "title": "Declining to answer",
    "needs": ["logits"],
    "settings": {
        "risk": {"default": 0.05, "allowed": [0.0, 1.0]},
        "coverage": {"default": 0.8, "allowed": [0.0, 1.0]},
    },
    "keys": {"exit": "Exit"},
    "shown": {"exit": "deepest"},
    "numbers": {
        "aurc": {"title": "Mean risk, AURC", "unit": "%", "better": "lower", "judged": True},
        "e_aurc": {"title": "Its excess, E-AURC", "unit": "%", "better": "lower", "judged": False},
        "coverage_at_risk": {"title": "Answered at fixed risk", "unit": "%", "better": "higher", "judged": False},
        "risk_at_coverage": {"title": "Risk at fixed coverage", "unit": "%", "better": "lower", "judged": False},
    },
}


def analyse(inputs: "Predictions", risk: float, coverage: float) -> list[dict[str, Any]]:
    """One row an exit, shallow to deep, and one of all exits together."""
    from selfdistill.evaluation.calibration import log_odds
    from selfdistill.evaluation.classification import ensemble
    from selfdistill.evaluation.selective import selective

    found = dict(zip(inputs.exits, inputs.logits, strict=True))
    if len(found) > 1:
        found["ensemble"] = ensemble(inputs.logits)
    rows = []
    for name, logits in found.items():
        wrong = (logits.argmax(dim=1) != inputs.labels).double()
        rows.append({"exit": name, **selective(log_odds(logits), wrong, risk, coverage)})
    return rows


def contradictions(run: dict[str, Any], rows: list[dict[str, Any]]) -> Iterator[str]:
    """In what rows do not fit the run that they are said to be of."""
    return unlike(run, [row["exit"] for row in rows])
