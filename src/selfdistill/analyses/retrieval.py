"""Finding persons again: rank-k, mAP and mINP of every exit, from stored features."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from selfdistill.evaluation.exits import unlike

if TYPE_CHECKING:
    from selfdistill.evaluation.inputs import Predictions

ABOUT = {
    "title": "Test rank-1",
    "needs": ["features"],
    "settings": {},
    "keys": {"exit": "Exit"},
    "shown": {"exit": "deepest"},
    "headline": "rank1",
    "numbers": {
        "rank1": {"title": "Test rank-1", "unit": "%", "better": "higher", "judged": True},
        "mean_average_precision": {"title": "mAP", "unit": "%", "better": "higher", "judged": False},
        "mean_inverse_negative_penalty": {"title": "mINP", "unit": "%", "better": "higher", "judged": False},
        "re_ranked_rank1": {"title": "Rank-1, re-ranked", "unit": "%", "better": "higher", "judged": False},
        "re_ranked_mean_average_precision": {
            "title": "mAP, re-ranked",
            "unit": "%",
            "better": "higher",
            "judged": False,
        },
        "rank5": {"title": "Rank-5", "unit": "%", "better": "higher", "judged": False, "shown": "runs"},
        "rank10": {"title": "Rank-10", "unit": "%", "better": "higher", "judged": False, "shown": "runs"},
        "re_ranked_rank5": {
            "title": "Rank-5, re-ranked",
            "unit": "%",
            "better": "higher",
            "judged": False,
            "shown": "runs",
        },
        "re_ranked_rank10": {
            "title": "Rank-10, re-ranked",
            "unit": "%",
            "better": "higher",
            "judged": False,
            "shown": "runs",
        },
        "re_ranked_mean_inverse_negative_penalty": {
            "title": "mINP, re-ranked",
            "unit": "%",
            "better": "higher",
            "judged": False,
            "shown": "runs",
        },
        "queries": {"title": "Queries", "unit": "", "better": None, "judged": False, "shown": "runs"},
        "skipped": {"title": "Queries without an answer", "unit": "", "better": None, "judged": False, "shown": "runs"},
    },
}


def analyse(inputs: "Predictions") -> list[dict[str, Any]]:
    """One row an exit, shallow to deep, the deepest re-ranked, too, and one of all exits together."""
    last = len(inputs.exits) - 1
    rows = [
        {"exit": name, **inputs.truth.score(features, deepest=i == last)}
        for i, (name, features) in enumerate(zip(inputs.exits, inputs.outputs, strict=True))
    ]
    several = [{"exit": "ensemble", **inputs.truth.ensemble(inputs.outputs)}] if len(rows) > 1 else []
    return rows + several


def contradictions(run: dict[str, Any], rows: list[dict[str, Any]]) -> Iterator[str]:
    """In what rows do not fit the run that they are said to be of."""
    return unlike(run, [row["exit"] for row in rows])
