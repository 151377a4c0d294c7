"""What an analysis of stored predictions is given of one run.

A run's predictions lie in results/predictions/<model>/<variant>: <seed>.json (what training said of the run, its
history, and the SHA-256 of the other two), <seed>.safetensors (test images) and <seed>.validation.safetensors.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

from selfdistill.errors import UserError
from selfdistill.evaluation import classification
from selfdistill.evaluation.exits import exit_names

SELECTIONS = ("last", "validation")  # the weights that a study may select
FILES = {"predictions.safetensors": ".safetensors", "validation.safetensors": ".validation.safetensors"}


class PredictionsError(UserError):
    """Stored predictions are missing or damaged; the message says which and what to do."""


@dataclass(frozen=True)
class Classes:
    """What test images show: labels, int64 N."""

    labels: Tensor

    def score(self, logits: Tensor, deepest: bool = False) -> dict[str, float]:
        """The metrics of logits N x K."""
        return classification.metrics(logits, self.labels)

    def ensemble(self, logits: Tensor) -> dict[str, float]:
        """Of all exits, exits x N x K: the mean of their logits."""
        return self.score(classification.ensemble(logits))

    def together(self, logits: Tensor) -> dict[str, float]:
        """Of several networks, networks x N x K: the mean of their probabilities."""
        return self.score(classification.average_probabilities(logits))


@dataclass(frozen=True)
class Persons:
    """Whom test images show, and by which camera: int64 N each, the queries in front of the gallery.

    re_ranking: k1, k2 and weight of `retrieval.re_rank`, or None; device: on which distances are computed.
    Exits or networks together: their features side by side.
    """

    identities: Tensor
    cameras: Tensor
    queries: int
    re_ranking: dict[str, Any] | None = None
    device: str = "cpu"

    def score(self, features: Tensor, deepest: bool = False) -> dict[str, float]:
        """The metrics of features N x D; of the deepest exit also of re-ranked distances, named `re_ranked_...`."""
        from selfdistill.evaluation.retrieval import euclidean_distances, re_rank

        features = features.to(self.device)
        found = self.ranked(euclidean_distances(features[: self.queries], features[self.queries :]))
        if deepest and self.re_ranking:
            again = self.ranked(re_rank(euclidean_distances(features, features), self.queries, **self.re_ranking))
            found |= {f"re_ranked_{name}": again[name] for name in again if name not in ("queries", "skipped")}
        return found

    def ranked(self, distances: Tensor) -> dict[str, float]:
        from selfdistill.evaluation.retrieval import retrieval_metrics

        (identities, others), (cameras, other_cameras) = (
            values.tensor_split([self.queries]) for values in (self.identities, self.cameras)
        )
        return retrieval_metrics(distances, identities, cameras, others, other_cameras)

    def ensemble(self, features: Tensor) -> dict[str, float]:
        return self.together(features)

    def together(self, features: Tensor) -> dict[str, float]:
        """Of several exits or networks, their number x N x D."""
        return self.score(features.transpose(0, 1).flatten(1))


@dataclass(frozen=True)
class Predictions:
    """The stored predictions of one run, seen with the weights of one selection.

    run: what training said of it, with its `history`; outputs: of the test images, exits x N x K logits, or, where
    persons are found again, exits x N x D features; truth: what they show; validation: logits of the validation
    images, exits x M x K, and their labels, int64 M; networks: outputs of every network that the run left at its last
    epoch, by name, `last` the last of them.

    Of other runs, as `outputs`, for an analysis that needs them: seeds: of the variant's other seeds, read one after
    the other as they are asked for; teacher: of the network that the run learned from, None where there is none.
    """

    run: dict[str, Any]
    outputs: Tensor
    truth: Classes | Persons
    validation: tuple[Tensor, Tensor]
    networks: dict[str, Tensor]
    seeds: Mapping[int, Tensor] = field(default_factory=dict)
    teacher: Tensor | None = None

    @property
    def logits(self) -> Tensor:
        return self.outputs

    @property
    def labels(self) -> Tensor:
        """Of the test images, int64 N."""
        assert isinstance(self.truth, Classes)
        return self.truth.labels

    @property
    def exits(self) -> list[str]:
        return exit_names(self.run)


@dataclass(frozen=True)
class Stored:
    """Where the predictions of a run lie: `file` is its <seed>.json.

    seeds, teacher: where those of the variant's other seeds lie, and of the network that it learned from.
    """

    file: Path
    device: str = "cpu"
    seeds: "Mapping[int, Stored]" = field(default_factory=dict)
    teacher: "Stored | None" = None

    @cached_property
    def run(self) -> dict[str, Any]:
        try:
            return json.loads(self.file.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no JSON"
            raise PredictionsError(f"{self.file}: {reason}; `dvc checkout` or `dvc repro` brings it back") from None

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Of one of FILES, held against its hash."""
        path = self.file.with_name(self.file.stem + FILES[name])
        try:
            content = path.read_bytes()
        except OSError as error:
            raise PredictionsError(f"{path}: {error.strerror}; `dvc checkout` or `dvc repro` brings it back") from None
        if hashlib.sha256(content).hexdigest() != self.run["evaluation"]["files"][name]:
            raise PredictionsError(f"{path}: not the predictions that its record was made with; evaluate the run again")
        return load(content)

    @cached_property
    def test(self) -> dict[str, Tensor]:
        return self.tensors("predictions.safetensors")

    @cached_property
    def validation(self) -> dict[str, Tensor]:
        return self.tensors("validation.safetensors")

    def truth(self) -> Classes | Persons:
        if "labels" in self.test:
            return Classes(self.test["labels"])
        re_ranking = self.run["evaluation"]["re_ranking"]
        told = self.test["identities"], self.test["cameras"], int(self.test["queries"])
        return Persons(*told, re_ranking, self.device)

    def of(self, selection: str, needs: Collection[str] = ()) -> Predictions:
        """needs: of an analysis; of other runs only what it needs is given."""
        names = (*self.run["members"], "last")
        validation = self.validation[selection], self.validation["labels"]
        networks = {name: self.test[name] for name in names}
        seeds = OfSeeds(self, selection) if "seeds" in needs else {}
        teacher = self.outputs_of(self.teacher, selection) if self.teacher and "teacher" in needs else None
        return Predictions(self.run, self.test[selection], self.truth(), validation, networks, seeds, teacher)

    def outputs_of(self, other: "Stored", selection: str) -> Tensor:
        """Those of another run, of the same test images.  Nothing of it is kept."""
        tensors = other.tensors("predictions.safetensors")
        for name in ("labels", "identities"):
            if name in self.test and not torch.equal(self.test[name], tensors.get(name, torch.empty(0))):
                raise PredictionsError(f"{other.file}: of other test images than {self.file}; evaluate both again")
        return tensors[selection]

    def evaluations_of_others(self, needs: Collection[str]) -> dict[str, Any]:
        """What identifies the predictions of other runs that an analysis is given; nothing of what there is not."""
        found: dict[str, Any] = {}
        if "seeds" in needs and self.seeds:
            found["seeds"] = {str(seed): other.run["evaluation"] for seed, other in self.seeds.items()}
        if "teacher" in needs and self.teacher:
            found["teacher"] = self.teacher.run["evaluation"]
        return found


@dataclass(frozen=True)
class OfSeeds(Mapping[int, Tensor]):
    """The outputs of a variant's other seeds: of one network in memory at a time."""

    own: Stored
    selection: str

    def __getitem__(self, seed: int) -> Tensor:
        return self.own.outputs_of(self.own.seeds[seed], self.selection)

    def __iter__(self) -> Iterator[int]:
        return iter(self.own.seeds)

    def __len__(self) -> int:
        return len(self.own.seeds)
