"""One trial of a search: its values, a training with them, and what it reaches on the validation images.

What a trial's result depends on lies below this file or stands in the plan; when it is carried out (`stages.tune`)
does not.
"""

from dataclasses import dataclass
from typing import Any

from torch.nn import functional

from selfdistill import methods
from selfdistill.errors import NonFiniteOutputsError
from selfdistill.models.sections import SectionedNetwork
from selfdistill.models.trained import predict
from selfdistill.search import COMMON, trial_values
from selfdistill.seeds import derived_seed
from selfdistill.stages.cell import Cell, open_cell, train_cell
from selfdistill.training import engine
from selfdistill.training.checkpoint import Checkpoints
from selfdistill.training.distributed import ALONE, World
from selfdistill.training.progress import Progress
from selfdistill.training.stopping import Stop

DIVERGED = engine.NonFiniteLossError, engine.NonFiniteWeightsError, NonFiniteOutputsError


@dataclass(frozen=True)
class Values:
    """What a trial is trained with; searched: what of it the search has chosen."""

    hyper: dict[str, Any]
    recipe: Any
    searched: dict[str, dict[str, Any]]


def values_of(study: Any, plan: dict, seed: int, trial: int, device: str, teacher: SectionedNetwork | None) -> Values:
    """The values of a trial; study: `selfdistill.config.Study`, in whose folder we are; plan:
    `stages.plan.tuning_plan`; seed: of the replicate, from whose training images the share of a term is measured."""

    def ratio(hyper: dict[str, Any], key: str, term: str) -> float:
        cell = open_cell(study, {**plan, "hyper": {**hyper, key: 1.0}}, seed, device)
        found = first_step(cell, study.variant(plan["variant"]).recipe, trial_seed(seed, trial), teacher)
        return (found["loss"] - found[term]) / found[term] if found[term] > 0 else 0.0

    purpose = "/".join((study.dataset, plan["model"], plan["variant"]))
    bounds, spaces = methods.executed(plan["method"])["hyper"], plan["search"]
    own = study.variant(plan["variant"]).recipe
    hyper, recipe = trial_values(COMMON[own.optimiser], spaces, plan["hyper"], bounds, purpose, seed, trial, ratio)
    changed = {key: value for key, value in hyper.items() if key in spaces and trial}
    return Values(hyper, own.model_copy(update=recipe), {"hyper": changed, "recipe": recipe})


def trial_seed(seed: int, trial: int) -> int:
    """Of a trial's weights and order of images: another one than the final's, which then measures values, not luck."""
    return derived_seed(seed, f"trial/{trial}") % 2**31


def first_step(cell: Cell, recipe: Any, seed: int, teacher: SectionedNetwork | None) -> dict[str, float]:
    """What the first step of a training logs, by name: the loss, and the terms that it is the sum of."""
    frozen = engine.frozen(teacher) if teacher is not None else None
    run = engine.Run(cell.rule, cell.build, cell.dataset, cell.training, cell.validation, recipe, seed, frozen, ALONE)
    next(run.steps())
    return dict(zip(run.names, (run.table[0] / run.sizes[0]).tolist(), strict=True))


def run_trial(
    study: Any,
    plan: dict,
    values: Values,
    seed: int,
    trial: int,
    *,
    device: str,
    teacher: SectionedNetwork | None,
    checkpoints: Checkpoints,
    interruption: Stop | None,
    progress: Progress,
    world: World,
) -> dict[str, Any]:
    """Train with a trial's values for the search's epochs; returns what its file says: the validation loss and
    accuracy of the last epoch, both None where it diverged, and FLOPs."""
    cell = open_cell(study, {**plan, "hyper": values.hyper}, seed, device)
    own = values.recipe.epochs * plan["tuning"]["epochs"] / study.recipe.epochs  # of a variant that trains for longer
    short = {"epochs": max(round(own), values.recipe.warmup_epochs + 1), "keep_epochs": []}
    found: dict[str, Any] = {"trial": trial, **values.searched}
    try:
        trained = train_cell(
            cell,
            values.recipe.model_copy(update=short),
            trial_seed(seed, trial),
            teacher=teacher,
            checkpoints=checkpoints,
            interruption=interruption,
            progress=progress,
            world=world,
        )
    except DIVERGED as error:
        return {**found, "validation_nll": None, "validation_accuracy": None, "flops": None, "diverged": str(error)}
    logits = predict(trained.last, cell.dataset, cell.validation.images)[-1]
    nll = functional.cross_entropy(logits.double(), cell.validation.labels).item()
    accuracy = trained.history[-1]["validation_accuracy"]
    return {**found, "validation_nll": nll, "validation_accuracy": accuracy, "flops": round(trained.flops)}
