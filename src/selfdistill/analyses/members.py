"""The networks that a run leaves beside its last one: earlier generations, an average of weights, peers."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfdistill.evaluation.inputs import Predictions

ABOUT = {
    "title": "Other networks of a run",
    "needs": ["networks"],
    "settings": {},
    "keys": {"member": "Network of a run"},
    "best": "variant",
    "numbers": {
        "accuracy": {"title": "Test accuracy", "unit": "%", "better": "higher", "judged": False},
        "rank1": {"title": "Test rank-1", "unit": "%", "better": "higher", "judged": False},
        "mean_average_precision": {"title": "mAP", "unit": "%", "better": "higher", "judged": False},
        "mean_inverse_negative_penalty": {"title": "mINP", "unit": "%", "better": "higher", "judged": False},
    },
}
WORDS = {"average": "average of weights", "peer": "peer", "last": "the network", "together": "all together"}


def analyse(inputs: "Predictions") -> list[dict[str, Any]]:
    """One row a network, the deepest exit of each, the last one and all together at the end."""
    import torch

    deepest = {name: outputs[-1] for name, outputs in inputs.networks.items()}
    found = {name: inputs.truth.score(outputs) for name, outputs in deepest.items()}
    return rows({**found, "together": inputs.truth.together(torch.stack(list(deepest.values())))})


def rows(found: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """found: metrics by the network's name."""
    return [
        {"member": named(name), **{key: m[key] for key in ABOUT["numbers"] if key in m}} for name, m in found.items()
    ]


def named(member: str) -> str:
    return WORDS.get(member, member.replace("phase_", "after phase "))


def contradictions(run: dict[str, Any], rows: list[dict[str, Any]]) -> Iterator[str]:
    """In what rows do not fit the run that they are said to be of."""
    wanted = [named(name) for name in (*run.get("members", {}), "last", "together")]
    if (found := [row["member"] for row in rows]) != wanted:
        yield f"members {', '.join(map(str, found))} are not allowed; allowed: {', '.join(wanted)}"
