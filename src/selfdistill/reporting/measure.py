"""What the test of a study measures: the main number of a run, the numbers beside it, and their names.

No study says it: where classes were told the metrics of a record hold an accuracy, where persons were to be
found again a rank-1, and the tables made of them have columns of these names.
"""

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """key: of the number that stands for a run; words: for it; beside: title of each further column, by key;
    headline: the same, of the deepest exit alone; runs: what else runs.csv holds, each with its factor;
    explanation: what readers need to know, or nothing; ensemble, together: what exits, or networks, together are."""

    key: str
    words: str
    beside: dict[str, str]
    headline: dict[str, str]
    runs: dict[str, float]
    explanation: str
    ensemble: str
    together: str

    @property
    def title(self) -> str:
        return f"Test {self.words} (%)"


ACCURACY = Measure(
    key="accuracy",
    words="accuracy",
    beside={},
    headline={},
    runs={"nll": 1, "ece": 100},
    explanation="",
    ensemble="The ensemble is the mean of all exits' logits and costs all of them.",
    together="the mean of their probabilities",
)
RANK_1 = Measure(
    key="rank1",
    words="rank-1",
    beside={"mean_average_precision": "mAP (%)", "mean_inverse_negative_penalty": "mINP (%)"},
    headline={
        "re_ranked_rank1": "Rank-1, re-ranked (%)",
        "re_ranked_mean_average_precision": "mAP, re-ranked (%)",
    },
    runs={
        "rank5": 100,
        "rank10": 100,
        "mean_average_precision": 100,
        "mean_inverse_negative_penalty": 100,
        "re_ranked_rank1": 100,
        "re_ranked_mean_average_precision": 100,
    },
    explanation="Networks learn to tell the persons of the training images apart, and are tested on others: every "
    "query ranks the gallery by the distance of features. Rank-1 is the share of queries whose first answer shows the "
    "same person; mAP and mINP are the means of average precision and inverse negative penalty. Images of the query's "
    "person by the query's camera are ignored, distractors are wrong answers. Verdicts rest on rank-1 without "
    "re-ranking. Validation accuracy is that of telling the training persons apart.",
    ensemble="The ensemble ranks by the features of all exits side by side and costs all of them.",
    together="a ranking by their features side by side",
)


def measure_of(keys: Collection[str]) -> Measure:
    """By the metrics that an exit of a record has, or the columns of a table.  ValueError for none known."""
    for measure in (ACCURACY, RANK_1):
        if measure.key in keys:
            return measure
    raise ValueError(f"no metric that could stand for a run among {', '.join(keys)}; allowed: accuracy or rank1")
