"""A step of a run's training seen again: the loss of a method on a batch, at weights that the run kept.

What a step computes with beside the weights (a teacher, an average, a module that is trained with the network) is taken
from what the run left; where it left nothing, there is no loss.
"""

from collections.abc import Iterator
from functools import reduce
from operator import add
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from selfdistill import methods
from selfdistill.evaluation.probed import Probed
from selfdistill.models.sections import SectionedNetwork
from selfdistill.models.trained import build, load_network, study_of, weight_hashes
from selfdistill.training.distributed import ALONE
from selfdistill.training.engine import Run, Split, frozen
from selfdistill.training.needs import Need
from selfdistill.training.plan import draw_plan, on_device
from selfdistill.training.policy import make_policy
from selfdistill.training.source import batches, open_source

LAST = "weights"  # the name of the weights after the last epoch


def kept_weights(run: dict[str, Any]) -> list[tuple[int, str]]:
    """(epoch, name of the weights) of all that a run kept of its training, the last epoch's at the end."""
    phases = methods.load(run["method"])(**run["hyper"]).phases(run["recipe"]["epochs"])
    last = sum(phase.epochs for phase in phases)
    return [*((int(epoch), f"kept_{epoch}") for epoch in run["kept"] if int(epoch) != last), (last, LAST)]


def losses(
    probed: Probed, epoch: int, weights: str, count: int, method: str | None = None
) -> Iterator[tuple[SectionedNetwork, Tensor]]:
    """The network in training mode, and the whole loss with its graph, on each of the first `count` batches of an epoch
    (from 1), at the weights after it; nothing where the run did not keep what the loss needs.

    The batches are augmented as they were.  method: another one, with its defaults, on the same batches; the run's own
    if None.
    """
    run = run_at(probed, epoch, weights, method)
    if run is None:
        return
    _, phase, phase_epoch = run.phase()
    recipe, needs = run.recipe, run.needs.values()
    plan = draw_plan(
        run.labels,
        seed=run.seed,
        epoch=run.epoch,
        batch_size=recipe.batch_size,
        crop_padding=recipe.crop_padding,
        policy=make_policy(recipe),
        needs=needs,
    )
    ends = range(recipe.batch_size, len(run.labels) + 1, recipe.batch_size)
    wanted = [slice(end - recipe.batch_size, end) for end in ends[:count]]
    for need in needs:
        need.begin_epoch(run, phase_epoch)
    run.network.train()
    run.progress.fill_(phase_epoch / phase.epochs)
    for batch in batches(run.source, on_device(plan, run.device), wanted, recipe, None, run.late):
        terms = run.method(run.seen_by_method(run.eager, batch, len(batch["targets"])))
        if run.method.state:  # what it held in that epoch is not known
            return
        yield run.network, reduce(add, terms.values())


def run_at(probed: Probed, epoch: int, weights: str, method: str | None) -> Run | None:
    """The run as it was in an epoch, from 1, with the weights after it; None where something of it is not known."""
    told = probed.run
    rule = methods.load(method)() if method else methods.load(told["method"])(**told["hyper"])
    teacher = None
    if "teacher" in rule.needs:
        if probed.teacher is None:
            return None
        teacher = frozen(load_network(probed.teacher, probed.device)[0])
    recipe = SimpleNamespace(**{**told["recipe"], "compile": False, "cuda_graphs": False, "precision": "float32"})
    splits, form = probed.splits(), told["network"]
    study = study_of(probed.file.parent, form)
    run = Run(
        rule,
        lambda seed: build(form, seed, recipe.channels_last, study),
        probed.dataset,
        open_source(splits, probed.dataset, probed.device),
        Split(*splits.validation),
        recipe,
        told["seed"],
        teacher,
        ALONE,
    )
    run.epoch = epoch - 1
    run.begin_phase(fresh=True)
    run.network.load_state_dict(probed.weights(weights).state_dict())
    if not taught_by_previous(run, probed):
        return None
    return run if all(remembered(run, need, probed, weights) for need in run.needs.values()) else None


def taught_by_previous(run: Run, probed: Probed) -> bool:
    """Make the network that an earlier phase ended with the teacher, where the phase has one; whether that is known."""
    number, _, _ = run.phase()
    learning = [i for i, phase in enumerate(run.phases[:number]) if phase.learns_from_previous]
    if not learning:
        return True
    before = learning[-1]  # phases that were over
    names = f"kept_{sum(phase.epochs for phase in run.phases[:before])}", f"phase_{before}"
    there = [name for name in names if name in weight_hashes(probed.run)]
    if there:
        run.learn_from(probed.weights(there[0]))
    return bool(there)


def remembered(run: Run, need: Need, probed: Probed, weights: str) -> bool:
    """Give a need back what it held; whether all of it is known: of the last epoch, the networks that the run left."""
    run.step = 1  # between two steps of an epoch, where every need says what it holds
    held, members = need.saved(run), need.members()
    run.step = 0
    if held and (weights != LAST or len(held) != sum(map(len, members.values()))):
        return False
    with torch.no_grad():
        for name, state in members.items():
            for key, value in probed.weights(name).state_dict().items():
                state[key].copy_(value)
    return True
