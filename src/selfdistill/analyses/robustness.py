"""A network on other images, new or corrupted ones, as it was trained."""

from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from selfdistill.evaluation.exits import unlike

if TYPE_CHECKING:
    from selfdistill.evaluation.probed import Probed
    from selfdistill.evaluation.splits import ClassImages

ABOUT = {
    "title": "Robustness: other images",
    "needs": ["network", "images"],
    "settings": {},
    "keys": {"set": "Set", "severity": "Severity", "exit": "Exit"},
    "shown": {"set": "all", "severity": None, "exit": "deepest"},
    "beside": True,
    "numbers": {
        "accuracy": {"title": "Accuracy on other images", "unit": "%", "better": "higher", "judged": True},
        "ece": {"title": "Calibration error", "unit": "%", "better": "lower", "judged": False},
        "nll": {"title": "Negative log-likelihood", "unit": "nats", "better": "lower", "judged": False, "shown": "csv"},
    },
}
# of CIFAR-10-C and -C's relatives; their authors keep these apart, to choose hyper-parameters on them
HELD_BACK = frozenset({"gaussian_blur", "saturate", "spatter", "speckle_noise"})


def analyse(inputs: "Probed") -> list[dict[str, Any]]:
    """One row a set, severity (None where there is none) and exit, the ensemble of all exits last, and one of the
    deepest exit over `all` sets and severities but those of HELD_BACK, each with the same weight."""
    return rows_of(inputs, inputs.test_sets(), HELD_BACK)


def rows_of(
    inputs: "Probed", sets: "Iterable[tuple[str, int | None, ClassImages]]", held_back: Collection[str]
) -> list[dict[str, Any]]:
    """The rows of these sets, as `Probed.test_sets` gives them, and the mean over those that are not held back."""
    rows = []
    for part, severity, images in sets:
        logits, truth = inputs.logits(images, f"{inputs.facts['name']} {part}"), inputs.truth(images)
        found = [truth.score(z) for z in logits]
        if len(found) > 1:
            found.append(truth.ensemble(logits))
        places = zip([*inputs.exits, "ensemble"], found, strict=False)
        rows += [{"set": part, "severity": severity, "exit": name, **m} for name, m in places]
    return [*rows, *over_all(rows, inputs.exits[-1], held_back)]


def over_all(rows: list[dict[str, Any]], deepest: str, held_back: Collection[str] = HELD_BACK) -> list[dict[str, Any]]:
    """The mean over the sets that count; none where there is no such set."""
    counted = [row for row in rows if row["exit"] == deepest and row["set"] not in held_back]
    means = {key: sum(row[key] for row in counted) / len(counted) for key in ABOUT["numbers"] if counted}
    return [{"set": "all", "severity": None, "exit": deepest, **means}] if counted else []


def contradictions(run: dict[str, Any], rows: list[dict[str, Any]]) -> Iterator[str]:
    """In what rows do not fit the run that they are said to be of."""
    found: dict[tuple, list] = {}
    for row in rows:
        if row["set"] != "all":
            found.setdefault((row["set"], row["severity"]), []).append(row["exit"])
    for (part, severity), exits in found.items():
        place = part if severity is None else f"{part}, severity {severity}"
        yield from (f"{place}: {fault}" for fault in unlike(run, exits))
