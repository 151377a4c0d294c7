"""What a study's params.yaml may say; `selfdistill.params` reads and checks one.

Nothing here imports torch, so that a check takes a fraction of a second.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator

from selfdistill import methods
from selfdistill.schema import (
    Name,
    Sha256,
    Strict,
)
from selfdistill.search import COMMON, TUNED, untuned

# a network, also one of timm's: whether it exists is seen when it is built, because timm takes seconds to load
NetworkName = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^(timm:)?[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Share = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
NOTHING_OWN = "params.yaml"  # DVC needs the name of something that is there
SEEDS = 10_000  # of a study, at most
NAMES = 1000  # of a list, at most


def block(value: Any) -> int | str:
    """An entry of `seeds`."""
    if type(value) is int and 0 <= value < 2**31:
        return value
    if isinstance(value, str) and re.fullmatch(r"(0|[1-9]\d{0,8})-[1-9]\d{0,8}", value):
        first, last = map(int, value.split("-"))
        if first < last < first + SEEDS:
            return value
    raise ValueError(f"a seed from 0 to {2**31 - 1}, or a rising block such as 0-9 of at most {SEEDS:,}")


Block = Annotated[int | str, PlainValidator(block)]


def optimiser(value: Any) -> str:
    """One that has a space to be searched in."""
    if isinstance(value, str) and value in COMMON:
        return value
    raise ValueError(" or ".join(map(repr, COMMON)))


Optimiser = Annotated[str, PlainValidator(optimiser)]


class Recipe(Strict):
    """How every method of a study trains.

    momentum and nesterov are SGD's, beta1 and beta2 AdamW's, whose weight decay is decoupled.  decay_exempt: norms and
    biases get no weight decay.  policy: operations on images, between flip and cutout; policy_operations and
    policy_magnitude are RandAugment's.  label_noise: share of the training labels that are exchanged for another class,
    drawn by label_noise_seed; validation and test stay clean, and the training accuracy that is logged is against the
    exchanged labels.  keep_epochs: after which epochs, counted over all phases, the weights are kept as well.
    """

    epochs: int = Field(ge=1, le=100_000)
    batch_size: int = Field(ge=2, le=1_000_000)
    learning_rate: float = Field(gt=0, le=100, allow_inf_nan=False)
    momentum: float = Field(ge=0, lt=1, allow_inf_nan=False)
    nesterov: bool
    weight_decay: float = Field(ge=0, le=1, allow_inf_nan=False)
    optimiser: Optimiser = "sgd"
    beta1: float = Field(default=0.9, ge=0, lt=1, allow_inf_nan=False)
    beta2: float = Field(default=0.999, ge=0, lt=1, allow_inf_nan=False)
    decay_exempt: bool = False
    schedule: Literal["cosine", "steps"]
    milestones: list[Share]
    decay: float = Field(gt=0, le=1, allow_inf_nan=False)
    warmup_epochs: int = Field(ge=0, le=10_000)
    crop_padding: int = Field(ge=0, le=64)
    flip: bool
    cutout: int = Field(default=0, ge=0, le=1024)
    policy: Literal["none", "randaugment", "autoaugment"] = "none"
    policy_operations: int = Field(default=2, ge=1, le=14)
    policy_magnitude: int = Field(default=9, ge=0, le=30)
    label_noise: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    label_noise_seed: int = Field(default=0, ge=0, lt=2**31)
    keep_epochs: list[Annotated[int, Field(ge=1, le=100_000)]] = []
    device: Literal["cpu", "cuda", "auto"]
    threads: int = Field(ge=1, le=1024)
    determinism: Literal["off", "seeded", "strict", "portable"]
    precision: Literal["float32", "bfloat16"] = "float32"
    channels_last: bool = True
    compile: bool = False
    cuda_graphs: bool = False
    processes: int = Field(default=1, ge=1, le=1024)
    workers: int = Field(default=0, ge=0, le=256)


class Variant(Strict):
    """A method with other values than the study's; only what differs is given."""

    method: Name
    title: Annotated[str, Field(min_length=1, max_length=60)] | None = None
    hyper: dict[str, Any] = {}
    recipe: dict[str, Any] = {}


class Contrast(Strict):
    """A comparison that is declared before the study runs, and tested once a network.

    exit: last, the deepest of each network; the section, counted from 1, after which it stands; or ensemble, all exits
    together.  Where `against` has no exit there, or no other exits, its deepest is compared.  table: whose
    hyper-parameters.  margin: a difference, in points, that would not matter; the study's where it is left out.
    """

    of: Name
    against: Name
    exit: Literal["last", "ensemble"] | Annotated[int, Field(ge=1, le=100)] = "last"
    table: Literal["published", "tuned"] = "published"
    margin: float | None = Field(default=None, gt=0, le=100, allow_inf_nan=False)

    @property
    def pair(self) -> tuple[str, str]:
        """The variants whose runs are compared: with table `tuned` the winners of both searches."""
        end = TUNED if self.table == "tuned" else ""
        return self.of + end, self.against + end


class Tuning(Strict):
    """The same search for each of these variants, and how its winners are found; `selfdistill.search`.

    methods, students: which of the study's are tuned, nothing for none.  trials: of a search, the first with the
    values as published.  replicates: searches of a variant, each with the split of one of the study's seeds, the first
    ones; the winner of each is trained once more, as a run of the variant NAME-tuned.  epochs: of a trial, None for the
    recipe's.
    """

    methods: list[Name]
    students: list[Name]
    trials: int = Field(ge=1, le=1000)
    replicates: int = Field(ge=1, le=1000)
    epochs: int | None = Field(ge=1, le=100_000)

    @property
    def variants(self) -> list[str]:
        """All that are tuned."""
        return [*self.methods, *self.students]


class Probe(Strict):
    """An analysis of networks themselves, of all that the study trains.  data: the data set whose images it takes."""

    analysis: Name
    data: Name
    settings: dict[str, Any] = {}


class GivenWeights(Strict):
    """Trained weights from elsewhere, a safetensors file: what the network starts from, or what teaches."""

    file: str = Field(min_length=1)
    sha256: Sha256
    use: Literal["start", "teacher"]


@dataclass(frozen=True)
class Resolved:
    """A variant with all that its training depends on.  name: of the variant; for a plain entry of `methods`
    it is the method's."""

    name: str
    method: str
    title: str
    hyper: dict[str, Any]
    recipe: Recipe


class Study(Strict):
    """A study: one data set, one recipe, models x variants x seeds.

    methods, students and taught list variants by name: a method's, or one of `variants`, so that a method
    may be listed more than once.  students learn from the `teacher` variant's network of their own model and seed,
    taught from that of `teacher_models`, a network that the study trains with this one variant only.
    probes: analyses of the networks themselves, by a name of the study's own; analyses: settings of those of stored
    predictions, by analysis.  seeds: numbers, each a stage of its own, and blocks such as 0-9, trained by one stage.
    split: `per_seed` draws training and validation images for each seed by itself; `fixed` keeps one draw.
    own: params.yaml for nothing, or a folder with network files and weights of the study's own.
    contrasts: the comparisons that get a verdict; margin: of accuracy, in points, within which two are equivalent.
    tuning: whose hyper-parameters are searched, and how.
    """

    root: str = Field(min_length=1)
    own: str = Field(default=NOTHING_OWN, min_length=1)
    dataset: Name
    split: Literal["per_seed", "fixed"]
    training_images: int | None = Field(ge=2)
    validation_images: int | None = Field(ge=1)
    models: list[NetworkName] = Field(min_length=1)
    methods: list[Name] = Field(min_length=1)
    students: list[Name]
    teacher_models: list[NetworkName] = Field(max_length=1)
    taught: list[Name]
    variants: dict[Name, Variant] = {}
    probes: dict[Name, Probe]
    analyses: dict[Name, dict[str, Any]] = {}
    teacher: Name
    control: Name
    blocks: list[Block] = Field(alias="seeds", min_length=1)
    selection: Literal["last", "validation"]
    recipe: Recipe
    hyper: dict[str, dict[str, Any]]
    weights: dict[NetworkName, GivenWeights] = {}
    contrasts: dict[Name, Contrast] = {}
    margin: float = Field(default=1.0, gt=0, le=100, allow_inf_nan=False)
    tuning: Tuning

    @property
    def data_folder(self) -> Path:
        return self.prepared(self.dataset)

    def prepared(self, dataset: str) -> Path:
        return Path(self.root) / "data" / "prepared" / dataset

    @property
    def results(self) -> Path:
        return Path("results")

    @property
    def seeds(self) -> list[int]:
        return [seed for block in self.blocks for seed in seeds_of(block)]

    @property
    def own_networks(self) -> list[Path]:
        """The network files of the study's own."""
        return sorted(Path(self.own).glob("*.py")) if self.own != NOTHING_OWN else []

    @property
    def published(self) -> list[str]:
        """What every network of `models` is trained with, by the values of this file."""
        return [*self.methods, *self.students, *self.taught]

    @property
    def all_variants(self) -> list[str]:
        """The published ones, and those of tuned values."""
        return [*self.published, *(name + TUNED for name in self.tuning.variants)]

    def seeds_of(self, variant: str) -> list[int]:
        """The seeds that a variant is trained from: of tuned values, one a replicate of its search."""
        return self.seeds if untuned(variant) is None else self.seeds[: self.tuning.replicates]

    def variant(self, name: str) -> Resolved:
        """A variant with everything that its training depends on, defaults of hyper-parameters included; of tuned
        values, what the search begins with."""
        if base := untuned(name):
            resolved = self.variant(base)
            return replace(resolved, name=name, title=f"{resolved.title}, tuned")
        chosen = self.variants.get(name) or Variant(method=name)
        about = methods.about(chosen.method)
        default = {key: spec["default"] for key, spec in about["hyper"].items()}
        return Resolved(
            name=name,
            method=chosen.method,
            title=chosen.title or (about["title"] if name == chosen.method else name),
            hyper={**default, **self.hyper.get(chosen.method, {}), **chosen.hyper},
            recipe=Recipe.model_validate({**self.recipe.model_dump(), **chosen.recipe}),
        )

    def teacher_of(self, variant: str) -> tuple[str | None, str | None]:
        """(variant, network) of the trained network that a variant learns from: the network is None for that
        of the same model, both are None for a variant without a teacher.  With tuned values the teacher has them, too.
        """
        if variant in self.taught:
            return self.teacher, self.teacher_models[0]
        if base := untuned(variant):
            return (self.teacher + TUNED if base in self.tuning.students else None), None
        return (self.teacher if variant in self.students else None), None

    def cells(self) -> list[tuple[str, str, int]]:
        """(model, variant, seed) of every cell, in the study's order, the larger teachers last."""
        own = [(m, name, seed) for m in self.models for name in self.all_variants for seed in self.seeds_of(name)]
        return own + [(m, self.teacher, seed) for m in self.teacher_models for seed in self.seeds]

    def run_folder(self, model: str, variant: str, seed: int) -> Path:
        """Where a run lies: by its seed alone, or, of a block of several, by block and seed."""
        folder = self.results / "runs" / model / variant
        if untuned(variant):
            return folder / str(seed)
        block = next(block for block in self.blocks if seed in seeds_of(block))
        return folder / str(seed) if isinstance(block, int) else folder / str(block) / str(seed)

    @property
    def trial_epochs(self) -> int:
        """Of a trial."""
        return self.tuning.epochs or self.recipe.epochs

    @property
    def search_epochs(self) -> float:
        """Of all trials of a search, in trainings of the recipe's length."""
        return self.tuning.trials * self.trial_epochs / self.recipe.epochs

    def trial_file(self, model: str, variant: str, seed: int, trial: int) -> Path:
        """What a trial of a search found; variant: the one that is tuned."""
        return self.results / "tuning" / model / variant / f"{seed}-{trial}.json"

    def search_file(self, model: str, variant: str, seed: int) -> Path:
        """What a whole search found."""
        return self.results / "tuning" / model / variant / f"{seed}.json"

    @property
    def data_sets(self) -> list[str]:
        """Every data set that it takes images of, its own first."""
        return list(dict.fromkeys([self.dataset, *(probe.data for probe in self.probes.values())]))

    def prediction_file(self, model: str, variant: str, seed: int) -> Path:
        """What an evaluation says of a run, beside its predictions."""
        return self.results / "predictions" / model / variant / f"{seed}.json"

    def record_file(self, model: str, variant: str, seed: int) -> Path:
        return self.results / "records" / "measured" / model / variant / f"{seed}.json"

    def probe_file(self, probe: str, model: str, variant: str, seed: int) -> Path:
        return self.results / "records" / "probes" / probe / model / variant / f"{seed}.json"

    def imported_file(self, model: str, variant: str, seed: int) -> Path:
        return self.results / "records" / "imported" / model / variant / f"{seed}.json"

    def host_file(self, model: str, variant: str, seed: int) -> Path:
        """What a run says of the machine and the day."""
        return self.results / "hosts" / model / variant / f"{seed}.json"


def seeds_of(block: int | str) -> range:
    """The seeds of an entry of `seeds`: a number, or first and last of a block, 0-9."""
    first, last = (block, block) if isinstance(block, int) else map(int, block.split("-"))
    return range(first, last + 1)
