"""One run of a study: from its plan and the prepared images to a trained network.

What a result depends on lies below this file or stands in the plan; writing it down (`stages.train`) does not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfdistill import methods
from selfdistill.data.prepared import Dataset, open_splits
from selfdistill.models.sections import SectionedNetwork
from selfdistill.models.trained import build, initialise_from
from selfdistill.training import engine
from selfdistill.training.checkpoint import Checkpoints
from selfdistill.training.distributed import World
from selfdistill.training.progress import Progress
from selfdistill.training.source import Source, open_source
from selfdistill.training.stopping import Stop


@dataclass(frozen=True)
class Cell:
    """A run before it begins.  facts: what its record says of its inputs, beside the plan."""

    rule: engine.Method
    build: Callable[[int], SectionedNetwork]
    dataset: Dataset
    training: Source
    validation: engine.Split
    facts: dict


def open_cell(study: Any, plan: dict, seed: int, device: str) -> Cell:
    """The method, the network and the images of one seed; study: `selfdistill.config.Study`, in whose folder we
    are; plan: `stages.plan.training_plan`."""
    folder = study.data_folder / "training"
    dataset = Dataset.read(folder)
    wanted = {key: plan[key] for key in ("split", "training_images", "validation_images")}
    splits = open_splits(folder, **wanted, seed=seed, device=device)
    rule = methods.load(plan["method"])(**plan["hyper"])
    shape = {"channels": dataset.channels, "classes": len(dataset.classes), "size": list(dataset.size)}
    form = {"name": plan["model"], **shape, "exits": "exits" in rule.needs}
    if own := [path.as_posix() for path in study.own_networks]:
        form["own"] = own
    given = study.weights.get(plan["model"])

    def fresh(weights_seed: int) -> SectionedNetwork:
        network = build(form, weights_seed, study.recipe.channels_last)
        if given is not None:
            initialise_from(network, Path(given.file), given.sha256)
        return network

    hyper = {name: getattr(rule, name) for name in rule.about["hyper"]}
    facts = {"network": form, "dataset": vars(dataset), "split": splits.facts, "hyper": hyper}
    validation = engine.Split(*splits.validation)
    return Cell(rule, fresh, dataset, open_source(splits, dataset, device), validation, facts)


def train_cell(
    cell: Cell,
    recipe: Any,
    seed: int,
    *,
    teacher: SectionedNetwork | None,
    checkpoints: Checkpoints,
    interruption: Stop | None,
    progress: Progress,
    world: World,
) -> engine.Trained:
    """Train it, or go on from the newest checkpoint; raises what `engine.train` raises."""
    return engine.train(
        cell.rule,
        cell.build,
        cell.dataset,
        cell.training,
        cell.validation,
        recipe,
        seed=seed,
        teacher=engine.frozen(teacher) if teacher is not None else None,
        checkpoints=checkpoints,
        interruption=interruption,
        progress=progress,
        world=world,
    )


def given_network(cell: Cell) -> engine.Trained:
    """A network whose weights were given, unchanged: with a history of one row, epoch 0, and without any cost."""
    network = cell.build(0).to(cell.training.labels.device)
    accuracy = engine.accuracy_of(network, cell.dataset, cell.validation)
    row = {"epoch": 0, "phase": 0, "learning_rate": 0.0, "training_accuracy": 0.0, "validation_accuracy": accuracy}
    return engine.Trained(
        last=network,
        validation_best=network.state_dict(),
        best_epoch=0,
        members={},
        kept={},
        parameters=0,
        history=[row],
        flops=0,
        seconds=0.0,
    )
