"""How often two predictors give the same answer, right or wrong: exits, a student and its teacher, seeds."""

from itertools import combinations
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfdistill.evaluation.inputs import Predictions

ABOUT = {
    "title": "Agreement",
    "needs": ["logits", "seeds", "teacher"],
    "settings": {},
    "keys": {"with": "Deepest exit and"},
    "numbers": {
        "pairs": {"title": "Pairs of a run", "unit": "", "better": None, "judged": False, "exact": True, "digits": 0},
        "agreement": {"title": "Same answer", "unit": "%", "better": None, "judged": False},
    },
}


def analyse(inputs: "Predictions") -> list[dict[str, Any]]:
    """The share of test images that both put into the same class: one row for each shallower exit, one for the
    teacher's deepest exit and, in the run of the first seed alone, one for the mean over all pairs of seeds."""
    *shallower, deepest = [logits.argmax(dim=1) for logits in inputs.logits]
    found = {name: [(told, deepest)] for name, told in zip(inputs.exits, shallower, strict=False)}
    if inputs.teacher is not None:
        found["teacher"] = [(inputs.teacher[-1].argmax(dim=1), deepest)]
    if inputs.seeds and inputs.run["seed"] < min(inputs.seeds):
        others = [outputs[-1].argmax(dim=1) for outputs in inputs.seeds.values()]
        found["another seed"] = list(combinations([deepest, *others], 2))
    return [
        {"with": name, "pairs": len(pairs), "agreement": sum(share(*pair) for pair in pairs) / len(pairs)}
        for name, pairs in found.items()
    ]


def share(one, other) -> float:
    return (one == other).double().mean().item()
