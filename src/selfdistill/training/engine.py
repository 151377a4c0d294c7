"""The training loop: one for every method, device and number of processes.

A method names its loss terms, and what it needs for them beside images and labels (`needs`); everything else
(phases, restarts, teachers, order and augmentation of the images, validation, logging, cost, checkpoints) happens
here.  `train` is the loop, `Run`
what it changes: whatever is not in a Run's `saved` is not known after a resume.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor, nn

from selfdistill.data.prepared import Dataset
from selfdistill.errors import NonFiniteOutputsError, UserError
from selfdistill.models.sections import Outputs, SectionedNetwork
from selfdistill.models.trained import predict, rows_not_finite
from selfdistill.seeds import derived_seed
from selfdistill.training import needs
from selfdistill.training.checkpoint import Checkpoints
from selfdistill.training.cost import counted_flops
from selfdistill.training.distributed import ALONE, World, shared, synchronised
from selfdistill.training.generators import global_generators, seed_global_generators, set_global_generators
from selfdistill.training.graph import WARM_UP, GraphedStep
from selfdistill.training.method import Method, Phase, Step
from selfdistill.training.needs import Seen
from selfdistill.training.noise import noise_facts, noisy_labels
from selfdistill.training.optimiser import make_optimiser
from selfdistill.training.plan import Rows, draw_plan, on_device
from selfdistill.training.policy import make_policy
from selfdistill.training.progress import Progress
from selfdistill.training.schedule import learning_rate
from selfdistill.training.source import Source, batches
from selfdistill.training.spared import Spared, watched
from selfdistill.training.stopping import Interrupted, Stop

# seconds between two questions of several processes whether to stop or to save: one costs 0.9 ms on two CPUs
ASKING = 0.1
OFFERED = frozenset(offered.name for offered in fields(Step))


class MisfitError(UserError, ValueError):
    """Network, teacher, method and data do not fit together; the message says which and what is allowed."""


class NonFiniteLossError(UserError, RuntimeError):
    """A loss term became NaN or infinite; the message names term, epoch and step."""


class NonFiniteWeightsError(UserError, RuntimeError):
    """A trained network holds weights that are NaN or infinite; the message says which."""


@dataclass
class Split:
    """images, uint8 N x C x H x W, and labels, int64 N, on one device."""

    images: Tensor
    labels: Tensor


@dataclass
class Trained:
    """last: the network after the last epoch; kept: its states after the epochs that the recipe names;
    validation_best: its state after the first epoch of
    highest validation accuracy, `best_epoch`; members: states of other networks of the same form that
    the method leaves (earlier generations, a running average, a peer), by name; parameters: how many were
    trained, a companion's included; history: one row an epoch, its training accuracy against the exchanged
    labels where there are some; label_noise: how many were exchanged and a hash of all, {} for none; flops: of
    all training steps, 2 a multiply-add; seconds: of training, what a killed process had
    done since its last checkpoint left out."""

    last: SectionedNetwork
    validation_best: dict[str, Tensor]
    best_epoch: int
    members: dict[str, dict[str, Tensor]]
    kept: dict[int, dict[str, Tensor]]
    parameters: int
    history: list[dict[str, float]]
    flops: int
    seconds: float
    label_noise: dict[str, int | str] = field(default_factory=dict)


def train(
    method: Method,
    build: Callable[[int], SectionedNetwork],
    dataset: Dataset,
    training: Source,
    validation: Split,
    recipe: Any,
    *,
    seed: int,
    teacher: SectionedNetwork | None = None,
    checkpoints: Checkpoints | None = None,
    interruption: Stop | None = None,
    progress: Progress | None = None,
    world: World = ALONE,
) -> Trained:
    """Train the network that `build(seed)` makes, or go on from the newest of `checkpoints`.

    recipe: `selfdistill.config.Recipe`.  teacher: a trained network, if the method needs one.
    Raises MisfitError before any work; NonFiniteLossError and NonFiniteOutputsError at the end of the epoch in which
    a term, or what the network says of the validation images, stopped being finite; NonFiniteWeightsError at the
    end of the training; and Interrupted after the step in which `interruption` received a signal, with the state
    saved.
    """
    run = Run(method, build, dataset, training, validation, recipe, seed, teacher, world)
    told = progress if progress and world.rank == 0 else Progress()
    if checkpoints and (found := checkpoints.newest()):
        run.restore(*found)
        told.resumed(run.epoch, run.epochs, run.step)
    with stream_for_graphs(run):
        while run.epoch < run.epochs:
            for _ in run.steps():
                if run.step == 0:  # the epoch is over
                    told.epoch_over(run.history[-1], run.epochs)
                if run.epoch < run.epochs:
                    save_or_stop(run, checkpoints, interruption)
    members = run.all_members()
    states = {"the network": run.network.state_dict(), "the best network": run.best_state, **members}
    for whose, state in states.items():
        stop_if_weights_are_not_finite(state, whose)
    return Trained(
        last=run.network,
        validation_best=run.best_state,
        best_epoch=run.best_epoch,
        members=members,
        kept=run.kept,
        parameters=sum(p.numel() for p in run.optimiser.parameters),
        history=run.history,
        flops=run.flops,
        seconds=run.seconds(),
        label_noise=run.label_noise,
    )


def save_or_stop(run: "Run", checkpoints: Checkpoints | None, interruption: Stop | None) -> None:
    """Between two steps: save if it is time to, save and raise Interrupted if a signal came.

    All processes do the same, whichever of them got the signal; the first one's clock decides, of the next question,
    too: several processes ask each other every ASKING seconds, not after every step, which for each would wait for the
    slowest.
    """
    if run.steps_done < run.ask_at:
        return
    received = interruption.received if interruption else 0
    first, now = run.world.rank == 0, time.perf_counter()
    due = checkpoints is not None and first and checkpoints.due()
    steps = 1
    if run.world.size > 1 and run.steps_done > run.asked[0]:
        a_step = (now - run.asked[1]) / (run.steps_done - run.asked[0])
        steps = max(1, min(1000, int(ASKING / a_step)))
    order, steps = run.world.most_of_each([1000 + received if received else int(due), steps if first else 0])
    run.asked, run.ask_at = (run.steps_done, now), run.steps_done + steps
    if not order:
        return
    where = f"epoch {run.epoch + 1}, step {run.step + 1}"
    if checkpoints:
        tensors, state = run.saved()
        if run.world.rank == 0:
            checkpoints.save(tensors, state, run.steps_done)
    if order > 1000:
        saved = "its state is saved; the same command goes on from there" if checkpoints else "nothing is saved"
        raise Interrupted(f"stopped before {where}; {saved}", order - 1000)


class Together(nn.Module):
    """A network and what is trained beside it, by name, as one module: one forward pass, one set of gradients."""

    def __init__(self, network: SectionedNetwork, beside: dict[str, nn.Module]) -> None:
        super().__init__()
        self.network, self.beside = network, nn.ModuleDict(beside)

    def forward(self, images: Tensor) -> tuple[Outputs, dict[str, Outputs]]:
        outputs = self.network(images)
        return outputs, {name: module(images, outputs) for name, module in self.beside.items()}


class Run:
    """A training run between two steps, and how it takes the next."""

    network: SectionedNetwork

    def __init__(
        self,
        method: Method,
        build: Callable[[int], SectionedNetwork],
        dataset: Dataset,
        source: Source,
        validation: Split,
        recipe: Any,
        seed: int,
        teacher: SectionedNetwork | None,
        world: World,
    ) -> None:
        self.method, self.build, self.dataset, self.recipe, self.world = method, build, dataset, recipe, world
        self.source, self.validation, self.seed = source, validation, seed
        self.device = source.labels.device
        classes = len(dataset.classes)
        self.label_noise: dict[str, int | str] = {}
        if recipe.label_noise:  # the caller's source keeps its labels: another run may begin with it
            clean, self.source = source.labels, copy.copy(source)
            self.source.labels = noisy_labels(clean, classes, recipe.label_noise, recipe.label_noise_seed)
            self.label_noise = noise_facts(clean, self.source.labels)
        self.normalise = dataset.normaliser(self.device)
        self.labels = self.source.labels.cpu()  # plans are drawn on the CPU, the same for every device
        self.needs = needs.of(method)
        self.late = needs.late(self.needs.values())
        self.phases = method.phases(recipe.epochs)
        self.epochs = sum(phase.epochs for phase in self.phases)
        self.epoch = self.step = self.steps_done = 0
        self.ask_at, self.asked = 0, (0, time.perf_counter())  # when processes ask each other whether to stop
        self.history: list[dict[str, float]] = []
        self.best_accuracy, self.best_epoch = -1.0, 0
        self.best_state: dict[str, Tensor] = {}
        self.flops = 0
        self.step_flops: dict[str, int] = {}
        self.reached: dict[str, list[int]] = {}  # which outputs get a gradient, by kind of step
        self.seconds_before, self.started = 0.0, time.perf_counter()
        self.names: list[str] = []
        self.table = self.sizes = torch.empty(0)
        self.members: dict[str, dict[str, Tensor]] = {}
        self.kept: dict[int, dict[str, Tensor]] = {}
        self.given_teacher = teacher
        self.teacher: nn.Module | None = teacher
        self.rate, self.progress = (torch.zeros((), device=self.device) for _ in range(2))
        seed_global_generators(derived_seed(seed, f"global/{world.rank}" if world.rank else "global"))
        self.stream = torch.cuda.Stream() if self.graphs else None
        if recipe.compile:
            # Dynamo counts what this process has compiled of a `forward`, whatever the run, and from the ninth on
            # runs it uncompiled in silence
            torch.compiler.reset()
        self.begin_phase(fresh=True)
        if fault := next(self.misfits(), None):
            raise MisfitError(f"{type(method).__name__}: {fault}")

    def misfits(self) -> Iterator[str]:
        """Why this network, teacher, method and data cannot work together, in words."""
        classes = len(self.dataset.classes)
        for split, labels in (("training", self.labels), ("validation", self.validation.labels)):
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
                found = f"{int(labels.min())} to {int(labels.max())}"
                yield f"{split} labels from {found}; allowed: 0 to {classes - 1}, one of {classes} classes"
        for name, network in (("network", self.network), ("teacher", self.given_teacher)):
            if network is not None and (known := self.dry_run(network).logits[-1].shape[1]) != classes:
                yield f"the {name} knows {known} classes; allowed: {classes}, those of {self.dataset.name}"
        for need in self.needs.values():
            if fault := need.misfit(self):
                yield fault

    def dry_run(self, network: nn.Module) -> Outputs:
        """What a network says of one black image, its state left alone."""
        was_training = network.training
        network.eval()
        with torch.no_grad():
            outputs = network(torch.zeros(1, self.dataset.channels, *self.dataset.size, device=self.device))
        network.train(was_training)
        return outputs

    # ---- phases ----

    def phase(self) -> tuple[int, Phase, int]:
        """Number of the phase, from 1, the phase, and its epochs that are over."""
        before = 0
        for number, phase in enumerate(self.phases, start=1):
            if self.epoch < before + phase.epochs:
                return number, phase, self.epoch - before
            before += phase.epochs
        raise ValueError(f"epoch {self.epoch + 1} of {self.epochs}: all phases are over")

    def begin_phase(self, fresh: bool = False) -> None:
        """fresh: with another network, whatever the phase says: the run begins, or is restored."""
        number, phase, _ = self.phase()
        if phase.learns_from_previous and not fresh:
            self.learn_from(self.network)
        if restarted := fresh or phase.restart:
            self.network = self.fresh_network(f"weights/{number}")
        for need in self.needs.values():
            need.begin_phase(self, restarted)
        beside = {name: need.module for name, need in self.needs.items() if need.module is not None}
        trained: nn.Module = Together(self.network, beside) if beside else self.network
        self.optimiser = make_optimiser(trained, self.recipe)
        self.eager = trained
        if self.world.size > 1:
            self.eager = shared(synchronised(trained, self.device.type))
        self.spared = Spared(self.eager)
        self.forward = torch.compile(self.spared, dynamic=False) if self.recipe.compile else self.eager
        self.drop_graph()

    def drop_graph(self) -> None:
        self.graphed: GraphedStep | None = None
        self.graphed_kind, self.warm_steps = "", 0

    def fresh_network(self, purpose: str) -> SectionedNetwork:
        return self.build(derived_seed(self.seed, purpose)).to(self.device)

    def learn_from(self, network: SectionedNetwork) -> None:
        """Take a copy of this network as the teacher, in the mode that the phase asks for."""
        self.teacher = self.reference(network, training=self.phase()[1].teacher_in_training_mode)

    def reference(self, network: SectionedNetwork, training: bool) -> nn.Module:
        """A frozen copy of a network, which normalises by its running statistics or, in training, by the batch's."""
        copied: nn.Module = frozen(network)
        if training:
            copied.train()
            if self.world.size > 1:
                copied = synchronised(copied, self.device.type)
        return copied

    def all_members(self) -> dict[str, dict[str, Tensor]]:
        """The states of what is left beside the network, by name."""
        found = dict(self.members)
        for need in self.needs.values():
            found |= need.members()
        return found

    # ---- an epoch ----

    def steps(self) -> Iterator[None]:
        """Take the steps that are left of this epoch, yielding after each; ends the epoch after the last."""
        number, phase, phase_epoch = self.phase()
        recipe, count = self.recipe, len(self.labels)
        plan = draw_plan(
            self.labels,
            seed=self.seed,
            epoch=self.epoch,
            batch_size=recipe.batch_size,
            crop_padding=recipe.crop_padding,
            policy=make_policy(recipe),
            needs=self.needs.values(),
        )
        plan = on_device(plan, self.device)
        cuts = [(a, min(a + recipe.batch_size, count)) for a in range(0, count, recipe.batch_size)]
        mine = [self.world.share(*cut) for cut in cuts]
        if self.step == 0:
            self.table, self.sizes = torch.empty(0), torch.zeros(len(cuts), dtype=torch.float64)
        for need in self.needs.values():
            need.begin_epoch(self, phase_epoch)
        self.network.train()  # once an epoch: it walks through all modules, 0.2 ms
        self.progress.fill_(phase_epoch / phase.epochs)
        before = mine[self.step - 1] if self.step else None
        for batch in batches(self.source, plan, mine[self.step :], recipe, before, self.late):
            whole = cuts[self.step][1] - cuts[self.step][0]
            self.rate.fill_(self.learning_rate(phase, phase_epoch, self.step / len(cuts)))
            for need in self.needs.values():
                need.begin_step(phase_epoch * len(cuts) + self.step)
            # steps of one kind do the same operations: in a phase, of as many images and with as many streams
            kind = "/".join(map(str, (number, whole, *(name for name in plan if name in batch), *self.forms())))
            usual = whole == recipe.batch_size and plan.keys() <= batch.keys()
            row = self.take_step(batch, whole, kind, usual)
            if not len(self.table):
                self.table = torch.zeros(len(cuts), len(row), dtype=torch.float64, device=self.device)
            self.table[self.step] = row * len(batch["targets"])
            self.sizes[self.step] = len(batch["targets"])
            self.flops += self.step_flops[kind]
            self.step += 1
            self.steps_done += 1
            if self.step == len(cuts):
                self.end_epoch(number, phase, phase_epoch)
            yield

    def forms(self) -> list[str]:
        return [need.form for need in self.needs.values() if need.form]

    def learning_rate(self, phase: Phase, phase_epoch: int, share: float) -> float:
        recipe = self.recipe
        return learning_rate(
            (phase_epoch + share) / phase.epochs,
            peak=recipe.learning_rate,
            schedule=recipe.schedule,
            warmup=min(recipe.warmup_epochs / phase.epochs, 0.5),
            milestones=recipe.milestones,
            decay=recipe.decay,
        )

    def end_epoch(self, number: int, phase: Phase, phase_epoch: int) -> None:
        table, sizes = self.totals()
        stop_if_not_finite(table / sizes.unsqueeze(1), self.names, self.epoch + 1)
        means = table.sum(dim=0) / sizes.sum()
        rate = self.learning_rate(phase, phase_epoch, 1 - 1 / len(sizes))
        recipe = self.recipe
        accuracy = accuracy_of(
            self.network,
            self.dataset,
            self.validation,
            self.world,
            self.autocast(),
            f"the network after epoch {self.epoch + 1}",
        )
        self.epoch, self.step = self.epoch + 1, 0
        self.history.append(
            {
                "epoch": self.epoch,
                "phase": number,
                "learning_rate": rate,
                **dict(zip(self.names, means.tolist(), strict=True)),
                "validation_accuracy": accuracy,
            }
        )
        if self.epoch in recipe.keep_epochs:
            self.kept[self.epoch] = {k: v.clone() for k, v in self.network.state_dict().items()}
        # A network that a later phase throws away is not a candidate.
        if number == len(self.phases) and accuracy > self.best_accuracy:
            self.best_accuracy, self.best_epoch = accuracy, self.epoch
            self.best_state = {k: v.clone() for k, v in self.network.state_dict().items()}
        for need in self.needs.values():
            need.end_epoch(self)
        if phase_epoch + 1 == phase.epochs:
            if phase.kept:
                self.members[f"phase_{number}"] = {k: v.clone() for k, v in self.network.state_dict().items()}
            if self.epoch < self.epochs:
                self.begin_phase()

    def totals(self) -> tuple[Tensor, Tensor]:
        """What this epoch's steps logged, summed over their images, steps x names, and the numbers of images;
        over all processes, on the CPU, in float64.  One transfer an epoch: a look at each step's loss would
        make a GPU wait for the CPU."""
        sizes = self.sizes.to(self.device)
        return self.world.sum(self.table).cpu(), self.world.sum(sizes).cpu()

    # ---- a step ----

    def take_step(self, batch: Rows, whole: int, kind: str, usual: bool) -> Tensor:
        """One step on this process's rows of a batch; returns what it logs, by `names`.

        whole: images of the batch over all processes.  The first step of each kind is not compiled and its operations
        are counted.  usual: most steps are of this kind; the others, one or two an epoch, are worth no compiling.
        """
        if kind not in self.step_flops:
            beside = [network for need in self.needs.values() for network in need.networks()]
            reached: set[int] = set()
            with counted_flops(self.network, self.teacher, *beside) as counted:
                row = self.compute(watched(self.eager, reached), batch, whole)
            self.reached[kind] = sorted(reached)
            self.step_flops[kind] = sum(self.world.gather(counted.total))
            return row
        if not usual:
            return self.compute(self.eager, batch, whole)
        self.spared.reached = self.reached[kind]
        if not self.graphs:
            return self.compute(self.forward, batch, whole)
        if kind != self.graphed_kind:
            self.drop_graph()
            self.graphed_kind = kind
        if self.graphed is None and self.warm_steps < WARM_UP:
            self.warm_steps += 1
            return self.compute(self.forward, batch, whole)
        if self.graphed is None:
            self.graphed = GraphedStep(lambda inputs: self.compute(self.forward, inputs, whole), batch)
        return self.graphed(batch)

    @property
    def graphs(self) -> bool:
        return (
            self.recipe.cuda_graphs
            and self.device.type == "cuda"
            and self.world.size == 1
            and all(need.graphable for need in self.needs.values())
        )

    def autocast(self) -> AbstractContextManager:
        if self.recipe.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, getattr(torch, self.recipe.precision))

    def compute(self, forward: Callable, batch: Rows, whole: int) -> Tensor:
        """Forward, loss, backward and update on a batch of uint8 images (see `source.batches`)."""
        step = self.seen_by_method(forward, batch, whole)
        terms = self.method(step)
        loss = reduce(add, terms.values())
        self.optimiser.zero_grad()
        # DistributedDataParallel averages over processes; rows are shared out unevenly by one at most
        scale = len(step.targets) * self.world.size / step.batch_size
        (loss if scale == 1 else loss * scale).backward()
        self.optimiser.step(self.rate)
        for need in self.needs.values():
            need.end_step(self, step, batch)
        correct = (step.student.logits[-1].argmax(dim=1) == step.targets).double().mean()
        named = {"loss": loss, **terms, **step.statistics, "training_accuracy": correct}
        self.names = list(named)
        return torch.stack([value.detach().double() for value in named.values()])

    def seen_by_method(self, forward: Callable, batch: Rows, whole: int) -> Step:
        images = self.normalise(batch["main"])
        given: dict[str, Any] = {}
        for need in self.needs.values():
            images, more = need.blended(self, images, batch)
            given |= more
        streams = ["main", *(name for need in self.needs.values() for name in need.forwarded(batch))]
        inputs = [images, *(self.normalise(batch[name]) for name in streams[1:])]
        sizes = [len(part) for part in inputs]
        with self.autocast():
            together, beside = both(forward(torch.cat(inputs) if len(inputs) > 1 else images))
        outputs = dict(zip(streams, together.split(sizes), strict=True))
        first = {name: found.split(sizes)[0] for name, found in beside.items()}
        seen = Seen(batch, images, outputs, first, lambda others: both(forward(others))[0])
        with self.autocast(), torch.no_grad():
            if self.teacher is not None:
                given["teacher"] = self.teacher(images)
            for need in self.needs.values():
                given |= need.given(self, seen)
        return Step(
            images=images,
            targets=batch["targets"],
            student=outputs["main"],
            progress=self.progress,
            phase=self.phase()[0],
            batch_mean=lambda values: self.world.sum_with_gradient(values.sum(dim=0)) / whole,
            batch_sum=lambda values: self.world.sum_with_gradient(values.sum(dim=0)),
            whole_batch=lambda values: self.world.rows_of_all(values, whole),
            batch_size=whole,
            **{name: value for name, value in given.items() if name in OFFERED},
            more={name: value for name, value in given.items() if name not in OFFERED},
        )

    # ---- checkpoints ----

    def seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started

    def saved(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that the run needs to go on from here, as tensors and as what JSON can hold."""
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"optimiser.{i}": v for i, v in enumerate(self.optimiser.buffers)}
        tensors |= {f"best.{k}": v for k, v in self.best_state.items()}
        tensors |= {f"method.{k}": v for k, v in self.method.state.items()}
        tensors |= {f"member/{name}/{k}": v for name, state in self.members.items() for k, v in state.items()}
        tensors |= {f"kept/{epoch}/{k}": v for epoch, state in self.kept.items() for k, v in state.items()}
        if self.teacher is not None and self.teacher is not self.given_teacher:
            tensors |= {f"teacher.{k}": v for k, v in self.teacher.state_dict().items()}
        for name, need in self.needs.items():
            tensors |= {f"need/{name}.{k}": v for k, v in need.saved(self).items()}
        if self.step:
            table, sizes = self.totals()
            stop_if_not_finite((table / sizes.unsqueeze(1))[: self.step], self.names, self.epoch + 1)
            tensors |= {"table": table, "sizes": sizes}
        states = self.world.gather(global_generators(self.device))
        for rank, (generators, _) in enumerate(states):
            tensors |= {f"generators.{rank}.{k}": v for k, v in generators.items()}
        numbers = ("epoch", "step", "steps_done", "best_accuracy", "best_epoch", "flops")
        tables = ("history", "step_flops", "reached", "names")
        state = {name: getattr(self, name) for name in (*numbers, *tables)}
        return tensors, {**state, "seconds": self.seconds(), "generators": [other for _, other in states]}

    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Become what `saved` described."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")}

        self.seconds_before = state.pop("seconds")
        generators = state.pop("generators")
        for name, value in state.items():
            setattr(self, name, value)
        self.ask_at, self.asked = 0, (self.steps_done, time.perf_counter())
        self.begin_phase(fresh=True)
        self.network.load_state_dict(part("network"))
        for name, need in self.needs.items():
            need.restore(self, part(f"need/{name}"))
        for key in [k for k in tensors if k.startswith("member/")]:
            _, name, tensor = key.split("/", 2)
            self.members.setdefault(name, {})[tensor] = tensors[key].to(self.device)
        for key in [k for k in tensors if k.startswith("kept/")]:
            _, epoch, tensor = key.split("/", 2)
            self.kept.setdefault(int(epoch), {})[tensor] = tensors[key].to(self.device)
        with torch.no_grad():
            for i, buffer in enumerate(self.optimiser.buffers):
                buffer.copy_(tensors[f"optimiser.{i}"])
        if best := part("best"):  # in the network's order, not the file's
            self.best_state = {k: best[k].to(self.device) for k in self.network.state_dict()}
        self.method.state = {k: v.to(self.device) for k, v in part("method").items()}
        if teacher := part("teacher"):
            self.learn_from(self.fresh_network("any"))
            self.teacher.load_state_dict(teacher)  # type: ignore[union-attr]  # learn_from has made it
        if self.step:
            first = self.world.rank == 0  # sums over processes were saved; one process takes them up again
            self.table, self.sizes = (
                tensors[name] if first else torch.zeros_like(tensors[name]) for name in ("table", "sizes")
            )
            self.table = self.table.to(self.device)
        if self.world.rank < len(generators):
            set_global_generators(part(f"generators.{self.world.rank}"), generators[self.world.rank], self.device)


def stop_if_not_finite(table: Tensor, names: list[str], epoch: int) -> None:
    """table: steps x names, on the CPU."""
    if torch.isfinite(table).all():
        return
    step = int((~torch.isfinite(table)).any(dim=1).nonzero()[0])
    culprits = [n for n, v in zip(names, table[step].tolist(), strict=True) if not math.isfinite(v)]
    culprit = next((n for n in culprits if n != "loss"), "loss")
    values = ", ".join(f"{n} {v:.4g}" for n, v in zip(names, table[step].tolist(), strict=True))
    raise NonFiniteLossError(
        f"the loss term {culprit!r} is not finite at epoch {epoch}, step {step + 1} ({values}); "
        "a lower recipe.learning_rate or a smaller weight of this term usually helps"
    )


def stop_if_weights_are_not_finite(state: dict[str, Tensor], whose: str) -> None:
    """Weights that no validation image uses may still be NaN or infinite: a map that no output depends on, a member."""
    lost = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if lost:
        raise NonFiniteWeightsError(
            f"{whose} after the last epoch: {len(lost)} of {len(state)} tensors of weights hold what is no number (NaN "
            f"or infinite), the first is {lost[0]!r}; a lower recipe.learning_rate or recipe.weight_decay usually helps"
        )


def frozen(network: SectionedNetwork) -> SectionedNetwork:
    """A copy that teaches: evaluation mode, no gradient."""
    return copy.deepcopy(network).eval().requires_grad_(False)


def both(answer: Outputs | tuple[Outputs, dict[str, Outputs]]) -> tuple[Outputs, dict[str, Outputs]]:
    """What the network says, and what is trained beside it, by name."""
    return answer if isinstance(answer, tuple) else (answer, {})


def accuracy_of(
    network: SectionedNetwork,
    dataset: Dataset,
    split: Split,
    world: World = ALONE,
    precision: AbstractContextManager | None = None,
    whose: str = "the network",
) -> float:
    """Share of the validation split that the deepest exit gets right; several processes share the images out.

    Raises NonFiniteOutputsError, with `whose` outputs they are, where an exit's outputs for an image are not finite:
    argmax would call such an image one of class 0.
    """
    mine = world.share(0, len(split.labels))
    with precision or nullcontext():
        logits = predict(network, dataset, split.images[mine])
    right = (logits[-1].argmax(dim=1) == split.labels[mine]).sum()
    correct, bad = world.sum(torch.stack([right, rows_not_finite(logits)])).tolist()
    if bad:
        raise NonFiniteOutputsError(
            f"{whose}: its outputs for {bad} of the {len(split.labels)} validation images are no numbers (NaN or "
            "infinite); a lower recipe.learning_rate or recipe.weight_decay usually helps"
        )
    return correct / len(split.labels)


@contextmanager
def stream_for_graphs(run: Run) -> Iterator[None]:
    """A CUDA graph is captured on the stream on which everything before it ran, and not on the default one.

    What runs on either waits for the other at both ends: PyTorch's streams do not wait by themselves.
    """
    if not run.graphs:
        yield
        return
    with torch.cuda.stream(run.stream):
        torch.cuda.synchronize()
        yield
        torch.cuda.synchronize()
