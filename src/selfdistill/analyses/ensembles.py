"""Several predictions together: those of the exits of a run, and those of the seeds of a variant."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfdistill.evaluation.inputs import Predictions

ABOUT = {
    "title": "Ensembles",
    "needs": ["logits", "seeds"],
    "settings": {},
    "keys": {"of": "Together"},
    "numbers": {
        "members": {"title": "How many", "unit": "", "better": None, "judged": False, "exact": True, "digits": 0},
        "accuracy": {"title": "Test accuracy", "unit": "%", "better": "higher", "judged": False},
        "gain": {"title": "Above a single one", "unit": "points", "better": "higher", "judged": False},
        "nll": {"title": "Negative log-likelihood", "unit": "nats", "better": "lower", "judged": False},
        "brier": {
            "title": "Brier score",
            "unit": "",
            "better": "lower",
            "judged": False,
            "digits": 4,
            "shown": "csv",
        },
    },
}


def analyse(inputs: "Predictions") -> list[dict[str, Any]]:
    """One row a kind of ensemble: the exits' mean of logits and of probabilities; and the mean of probabilities of the
    deepest exits of all seeds, in the run of the first of them alone, for there is one such ensemble."""
    from selfdistill.evaluation.classification import average_probabilities, ensemble, metrics

    exits, labels, rows = inputs.logits, inputs.labels, []
    deepest = metrics(exits[-1], labels)["accuracy"]
    if len(exits) > 1:
        together = {"mean of logits": ensemble(exits), "mean of probabilities": average_probabilities(exits)}
        rows = [row(f"exits, {how}", len(exits), z, labels, deepest) for how, z in together.items()]
    if inputs.seeds and inputs.run["seed"] < min(inputs.seeds):
        total, single = exits[-1].double().log_softmax(dim=1), deepest
        for outputs in inputs.seeds.values():
            total = total.logaddexp(outputs[-1].double().log_softmax(dim=1))
            single += metrics(outputs[-1], labels)["accuracy"]
        seeds = len(inputs.seeds) + 1
        rows.append(row("seeds, mean of probabilities", seeds, total, labels, single / seeds))
    return rows


def row(of: str, members: int, logits, labels, single: float) -> dict[str, Any]:
    """logits: N x K; single: the accuracy of one member."""
    from selfdistill.evaluation.classification import brier, metrics

    found = metrics(logits, labels)
    gain = 100 * (found["accuracy"] - single)
    numbers = {"accuracy": found["accuracy"], "gain": gain, "nll": found["nll"], "brier": brier(logits, labels)}
    return {"of": of, "members": members, **numbers}
