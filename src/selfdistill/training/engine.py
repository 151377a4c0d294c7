"""The training loop: one for every method, device and number of processes.

A method names its loss terms; everything else (phases, restarts, teachers, order and augmentation of
the images, memories, validation, logging, cost, checkpoints) happens here.  `train` is the loop, `Run`
what it changes: whatever is not in a Run's `saved` is not known after a resume.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from selfdistill.data.prepared import Dataset
from selfdistill.errors import UserError
from selfdistill.models.sections import Outputs, SectionedNetwork, seeded
from selfdistill.models.trained import predict
from selfdistill.seeds import derived_seed
from selfdistill.training.chance import global_generators, seed_global_generators, set_global_generators
from selfdistill.training.checkpoint import Checkpoints
from selfdistill.training.cost import counted_flops
from selfdistill.training.distributed import ALONE, World, shared, synchronised
from selfdistill.training.graph import WARM_UP, GraphedStep
from selfdistill.training.method import Method, Peer, Phase, Step
from selfdistill.training.noise import noisy_labels
from selfdistill.training.optimiser import make_optimiser
from selfdistill.training.plan import Rows, draw_plan
from selfdistill.training.schedule import learning_rate
from selfdistill.training.source import Source, batches
from selfdistill.training.stopping import Interrupted, Stop


class MisfitError(UserError, ValueError):
    """Network, teacher, method and data do not fit together; the message says which and what is allowed."""


class NonFiniteLossError(UserError, RuntimeError):
    """A loss term became NaN or infinite; the message names term, epoch and step."""


class NonFiniteOutputsError(UserError, RuntimeError):
    """What a network says of some images is no number; the message says whose, of which split, and how many."""


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
    trained, a companion's included; history: one row an epoch; flops: of all training steps, 2 a
    multiply-add; seconds: of training, what a killed process had done since its last checkpoint left out."""

    last: SectionedNetwork
    validation_best: dict[str, Tensor]
    best_epoch: int
    members: dict[str, dict[str, Tensor]]
    kept: dict[int, dict[str, Tensor]]
    parameters: int
    history: list[dict[str, float]]
    flops: int
    seconds: float


def train(
    method: Method,
    build: Callable[[int], SectionedNetwork],
    dataset: Dataset,
    training: Source,
    validation: Split,
    recipe,
    *,
    seed: int,
    teacher: SectionedNetwork | None = None,
    checkpoints: Checkpoints | None = None,
    interruption: Stop | None = None,
    world: World = ALONE,
) -> Trained:
    """Train the network that `build(seed)` makes, or go on from the newest of `checkpoints`.

    recipe: `selfdistill.config.Recipe`.  teacher: a trained network, if the method needs one.
    Raises MisfitError before any work, NonFiniteLossError at the end of the epoch in which a term stopped
    being finite, and Interrupted after the step in which `interruption` received a signal, with the
    state saved.
    """
    run = Run(method, build, dataset, training, validation, recipe, seed, teacher, world)
    if checkpoints and (found := checkpoints.newest()):
        run.restore(*found)
        print_by_first(world, f"resumed at epoch {run.epoch + 1} of {run.epochs}, step {run.step + 1}")
    bar = tqdm(
        total=run.epochs,
        initial=run.epoch,
        unit="epoch",
        disable=None if world.rank == 0 else True,
        leave=False,
    )
    with bar, stream_for_graphs(run):
        while run.epoch < run.epochs:
            for _ in run.steps():
                if run.step == 0:  # the epoch is over
                    row = run.history[-1]
                    bar.update()
                    bar.set_postfix(loss=f"{row['loss']:.3f}", validation=f"{row['validation_accuracy']:.1%}")
                if run.epoch < run.epochs:
                    save_or_stop(run, checkpoints, interruption)
    return Trained(
        last=run.network,
        validation_best=run.best_state,
        best_epoch=run.best_epoch,
        members=run.all_members(),
        kept=run.kept,
        parameters=sum(p.numel() for p in run.optimiser.parameters),
        history=run.history,
        flops=run.flops,
        seconds=run.seconds(),
    )


def save_or_stop(run: "Run", checkpoints: Checkpoints | None, interruption: Stop | None) -> None:
    """Between two steps: save if it is time to, save and raise Interrupted if a signal came.

    All processes do the same, whichever of them got the signal; the first one's clock decides.
    """
    received = interruption.received if interruption else 0
    due = checkpoints is not None and run.world.rank == 0 and checkpoints.due()
    order = run.world.most(1000 + received if received else int(due))
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
    """A network and its method's companion as one module: one forward pass, one set of gradients."""

    def __init__(self, network: SectionedNetwork, companion: nn.Module) -> None:
        super().__init__()
        self.network, self.companion = network, companion

    def forward(self, images: Tensor) -> tuple[Outputs, Outputs]:
        outputs = self.network(images)
        return outputs, self.companion(images, outputs)


class Run:
    """A training run between two steps, and how it takes the next."""

    def __init__(self, method, build, dataset, source, validation, recipe, seed, teacher, world) -> None:
        self.method, self.build, self.dataset, self.recipe, self.world = method, build, dataset, recipe, world
        self.source, self.validation, self.seed = source, validation, seed
        self.device = source.labels.device
        classes = len(dataset.classes)
        source.labels = noisy_labels(source.labels, classes, recipe.label_noise, recipe.label_noise_seed)
        self.normalise = dataset.normaliser(self.device)
        self.labels = source.labels.cpu()  # chance is drawn on the CPU, the same for every device
        self.phases = method.phases(recipe.epochs)
        self.epochs = sum(phase.epochs for phase in self.phases)
        self.epoch = self.step = self.steps_done = 0
        self.history: list[dict[str, float]] = []
        self.best_accuracy, self.best_epoch, self.best_state = -1.0, 0, {}
        self.flops, self.step_flops = 0, {}
        self.seconds_before, self.started = 0.0, time.perf_counter()
        self.names: list[str] = []
        self.table = self.sizes = torch.empty(0)
        self.network: SectionedNetwork | None = None
        self.companion: nn.Module | None = None
        self.members: dict[str, dict[str, Tensor]] = {}
        self.kept: dict[int, dict[str, Tensor]] = {}
        self.teacher = self.given_teacher = teacher
        self.rate, self.progress, self.decay = (torch.zeros((), device=self.device) for _ in range(3))
        seed_global_generators(derived_seed(seed, f"global/{world.rank}" if world.rank else "global"))
        self.stream = torch.cuda.Stream() if self.graphs else None
        self.begin_phase()
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
        if "exits" in self.method.needs and self.network.exit_count < 2:
            yield "the network has 1 exit; allowed: 2 or more"
        if "teacher" in self.method.needs and self.given_teacher is None:
            yield "it learns from a trained network, and there is none"

    def dry_run(self, network: SectionedNetwork) -> Outputs:
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

    def begin_phase(self) -> None:
        number, phase, _ = self.phase()
        needs, recipe = self.method.needs, self.recipe
        if phase.learns_from_previous and self.network is not None:
            self.learn_from(self.network)
        if self.network is None or phase.restart:
            self.network = self.fresh_network(f"weights/{number}")
            self.companion = None
        if "average" in needs:
            self.learn_from(self.network)
        if self.companion is None and "companion" in needs:
            with seeded(derived_seed(self.seed, f"companion/{number}")):
                self.companion = self.method.companion(
                    self.dry_run(self.network),
                    self.dry_run(self.teacher) if self.teacher is not None else None,
                    lambda: self.fresh_network(f"weights of a peer/{number}"),
                ).to(self.device)
        trained = self.network if self.companion is None else Together(self.network, self.companion)
        self.optimiser = make_optimiser(trained, recipe)
        classes = len(self.dataset.classes)
        self.past = self.fresh = None
        if "memory" in needs:
            shape = len(self.labels), classes
            self.past, self.fresh = (torch.zeros(shape, device=self.device) for _ in range(2))
        self.last = torch.zeros(recipe.batch_size, classes, device=self.device) if "last_batch" in needs else None
        self.eager = trained
        if self.world.size > 1:
            self.eager = shared(synchronised(trained, self.device.type))
        # static shapes: the last, smaller batch of an epoch is compiled once, too
        self.forward = torch.compile(self.eager, dynamic=False) if recipe.compile else self.eager
        self.graphed, self.warm_steps = None, 0

    def fresh_network(self, purpose: str) -> SectionedNetwork:
        return self.build(derived_seed(self.seed, purpose)).to(self.device)

    def learn_from(self, network: SectionedNetwork) -> None:
        """Take a copy of this network as the teacher, in the mode that the phase asks for.

        A running average normalises by the batch, as in the public code of Mean Teacher: the running
        statistics of a network that it is no more would not fit it.
        """
        self.teacher = frozen(network)
        if "average" in self.method.needs or self.phase()[1].teacher_in_training_mode:
            self.teacher.train()
            if self.world.size > 1:
                self.teacher = synchronised(self.teacher, self.device.type)

    def all_members(self) -> dict[str, dict[str, Tensor]]:
        """The states of what is left beside the network, by name."""
        found = dict(self.members)
        if "average" in self.method.needs:
            found["average"] = self.teacher.state_dict()
        if isinstance(self.companion, Peer):
            found["peer"] = self.companion.network.state_dict()
        return found

    # ---- an epoch ----

    def steps(self):
        """Take the steps that are left of this epoch, yielding after each; ends the epoch after the last."""
        number, phase, phase_epoch = self.phase()
        recipe, method, count = self.recipe, self.method, len(self.labels)
        plan = draw_plan(
            self.labels,
            seed=self.seed,
            epoch=self.epoch,
            batch_size=recipe.batch_size,
            crop_padding=recipe.crop_padding,
            views=2 if "views" in method.needs else 1,
            positives=method.positives if "positives" in method.needs else 0,
            pairs="pairs" in method.needs,
            last_batch="last_batch" in method.needs,
            mixing=method.alpha if "partners" in method.needs else None,
        )
        # one transfer an epoch and stream, none a step
        plan = {name: {k: v.to(self.device, non_blocking=True) for k, v in t.items()} for name, t in plan.items()}
        cuts = [(a, min(a + recipe.batch_size, count)) for a in range(0, count, recipe.batch_size)]
        mine = [self.world.share(*cut) for cut in cuts]
        if self.step == 0:
            self.table, self.sizes = torch.empty(0), torch.zeros(len(cuts), dtype=torch.float64)
        remembers = phase_epoch > 0
        self.network.train()  # once an epoch: it walks through all modules, 0.2 ms
        self.progress.fill_(phase_epoch / phase.epochs)
        before = mine[self.step - 1] if self.step else None
        for batch in batches(self.source, plan, mine[self.step :], recipe, before):
            whole = cuts[self.step][1] - cuts[self.step][0]
            self.rate.fill_(self.learning_rate(phase, phase_epoch, self.step / len(cuts)))
            if "average" in method.needs:
                # the plain mean of all states so far, until `decay` keeps more (Mean Teacher's public code)
                steps = phase_epoch * len(cuts) + self.step + 1
                self.decay.fill_(min(1 - 1 / (steps + 1), method.decay))
            # steps of one kind cost the same: in a phase, with as many images, this batch's and the last one's
            again = cuts[self.step - 1][1] - cuts[self.step - 1][0] if "last" in batch else 0
            kind = f"{number}/{whole}/{again}"
            row = self.take_step(batch, (whole, again), kind, remembers)
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
        # A network that a later phase throws away is no candidate.
        if number == len(self.phases) and accuracy > self.best_accuracy:
            self.best_accuracy, self.best_epoch = accuracy, self.epoch
            self.best_state = {k: v.clone() for k, v in self.network.state_dict().items()}
        if self.past is not None:
            self.past.copy_(self.world.sum(self.fresh))
            self.fresh.zero_()
            if phase_epoch == 0:
                self.graphed, self.warm_steps = None, 0  # from now on the step has a past
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

    def take_step(self, batch: Rows, sizes: tuple[int, int], kind: str, remembers: bool) -> Tensor:
        """One step on this process's rows of a batch; returns what it logs, by `names`.

        sizes: images of the whole batch, and of the last one where that comes again, else 0.  The first
        step of each kind is not compiled and its operations are counted.
        """
        if kind not in self.step_flops:
            with counted_flops(self.network, self.companion, self.teacher) as counted:
                row = self.compute(self.eager, batch, sizes, remembers)
            self.step_flops[kind] = sum(self.world.gather(counted.total))
            return row
        graphable = sizes[0] == self.recipe.batch_size and ("last" in batch or self.last is None)
        if not self.graphs or not graphable:
            return self.compute(self.forward, batch, sizes, remembers)
        if self.graphed is None and self.warm_steps < WARM_UP:
            self.warm_steps += 1
            return self.compute(self.forward, batch, sizes, remembers)
        if self.graphed is None:
            self.graphed = GraphedStep(lambda inputs: self.compute(self.forward, inputs, sizes, remembers), batch)
        return self.graphed(batch)

    @property
    def graphs(self) -> bool:
        return (
            self.recipe.cuda_graphs
            and self.device.type == "cuda"
            and self.world.size == 1
            and "host" not in self.method.needs
        )

    def autocast(self):
        if self.recipe.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, getattr(torch, self.recipe.precision))

    def compute(self, forward: Callable, batch: Rows, sizes: tuple[int, int], remembers: bool) -> Tensor:
        """Forward, loss, backward and update on a batch of uint8 images (see `source.batches`)."""
        step = self.seen_by_method(forward, batch, sizes, remembers)
        terms = self.method(step)
        loss = sum(terms.values())
        self.optimiser.zero_grad()
        # DistributedDataParallel averages over processes; rows are shared out unevenly by one at most
        scale = len(step.targets) * self.world.size / step.batch_size
        (loss if scale == 1 else loss * scale).backward()
        self.optimiser.step(self.rate)
        if self.fresh is not None:
            self.fresh.index_copy_(0, batch["index"], step.student.logits[-1].detach())
        if self.last is not None:
            self.last[: len(step.targets)].copy_(step.student.logits[-1].detach())
        if "average" in self.method.needs:
            move_average(self.teacher, self.network, self.decay)
        correct = (step.student.logits[-1].argmax(dim=1) == step.targets).double().mean()
        named = {"loss": loss, **terms, **step.statistics, "training_accuracy": correct}
        self.names = list(named)
        return torch.stack([value.detach().double() for value in named.values()])

    def seen_by_method(self, forward: Callable, batch: Rows, sizes: tuple[int, int], remembers: bool) -> Step:
        images, share = self.normalise(batch["main"]), None
        if "partner" in batch:
            partners = self.normalise(batch["partner"])
            images, share = self.method.mix(images, partners, batch["share"], batch["box"])
        more = {n: self.normalise(b) for n, b in batch.items() if n.startswith(("view ", "positive ")) or n == "last"}
        taught = pair = None
        with self.autocast():
            together, beside = both(forward(torch.cat([images, *more.values()]) if more else images))
            with torch.no_grad():
                if self.teacher is not None:
                    taught = self.teacher(images)
                if "pair" in batch:
                    pair = both(forward(self.normalise(batch["pair"])))[0]
        rows = [len(images), *map(len, more.values())]
        own, *others = together.split(rows)
        found = dict(zip(more, others, strict=True))
        return Step(
            images=images,
            targets=batch["targets"],
            student=own,
            teacher=taught,
            progress=self.progress,
            phase=self.phase()[0],
            companion=beside.split(rows)[0] if beside is not None else None,
            views=[own, *(o for n, o in found.items() if n.startswith("view "))],
            positives=[o for n, o in found.items() if n.startswith("positive ")],
            pair=pair,
            past=self.past[batch["index"]] if self.past is not None and remembers else None,
            last=found.get("last"),
            last_targets=batch.get("last_targets"),
            last_logits=self.last[: len(batch["last"])] if "last" in batch else None,
            partner_targets=batch.get("partner_targets"),
            share=share,
            batch_mean=lambda values: self.world.sum_with_gradient(values.sum(dim=0)) / sizes[0],
            batch_sum=lambda values: self.world.sum_with_gradient(values.sum(dim=0)),
            whole_batch=lambda values: self.world.rows_of_all(values, sizes[0]),
            batch_size=sizes[0],
            last_batch_size=sizes[1],
        )

    # ---- checkpoints ----

    def seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started

    def saved(self) -> tuple[dict[str, Tensor], dict]:
        """All that the run needs to go on from here, as tensors and as what JSON can hold."""
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"optimiser.{i}": v for i, v in enumerate(self.optimiser.buffers)}
        tensors |= {f"best.{k}": v for k, v in self.best_state.items()}
        tensors |= {f"method.{k}": v for k, v in self.method.state.items()}
        tensors |= {f"member/{name}/{k}": v for name, state in self.members.items() for k, v in state.items()}
        tensors |= {f"kept/{epoch}/{k}": v for epoch, state in self.kept.items() for k, v in state.items()}
        if self.companion is not None:
            tensors |= {f"companion.{k}": v for k, v in self.companion.state_dict().items()}
        if self.teacher is not self.given_teacher:
            tensors |= {f"teacher.{k}": v for k, v in self.teacher.state_dict().items()}
        if self.past is not None:
            tensors |= {"past": self.past, "fresh": self.world.sum(self.fresh)}
        if self.step:
            table, sizes = self.totals()
            stop_if_not_finite((table / sizes.unsqueeze(1))[: self.step], self.names, self.epoch + 1)
            tensors |= {"table": table, "sizes": sizes}
            if self.last is not None:
                before = min(self.recipe.batch_size, len(self.labels) - (self.step - 1) * self.recipe.batch_size)
                mine = self.world.share(0, before)
                tensors["last"] = self.world.rows_of_all(self.last[: mine.stop - mine.start], before)[0]
        chance = self.world.gather(global_generators(self.device))
        for rank, (generators, _) in enumerate(chance):
            tensors |= {f"chance.{rank}.{k}": v for k, v in generators.items()}
        numbers = ("epoch", "step", "steps_done", "history", "best_accuracy", "best_epoch", "flops", "step_flops")
        state = {name: getattr(self, name) for name in (*numbers, "names")}
        return tensors, {**state, "seconds": self.seconds(), "chance": [other for _, other in chance]}

    def restore(self, tensors: dict[str, Tensor], state: dict) -> None:
        """Become what `saved` described."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")}

        self.seconds_before = state.pop("seconds")
        chance = state.pop("chance")
        for name, value in state.items():
            setattr(self, name, value)
        self.network = self.companion = None
        self.begin_phase()
        self.network.load_state_dict(part("network"))
        if self.companion is not None:
            self.companion.load_state_dict(part("companion"))
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
            self.teacher.load_state_dict(teacher)
        first = self.world.rank == 0  # sums over processes were saved; one process takes them up again
        if self.past is not None:
            self.past.copy_(tensors["past"])
            self.fresh.copy_(tensors["fresh"] if first else torch.zeros_like(tensors["fresh"]))
        if self.step:
            self.table, self.sizes = (
                tensors[name] if first else torch.zeros_like(tensors[name]) for name in ("table", "sizes")
            )
            self.table = self.table.to(self.device)
        if "last" in tensors:
            rows = tensors["last"][self.world.share(0, len(tensors["last"]))]
            self.last[: len(rows)].copy_(rows)
        if self.world.rank < len(chance):
            set_global_generators(part(f"chance.{self.world.rank}"), chance[self.world.rank], self.device)


def stop_if_not_finite(table: Tensor, names: list[str], epoch: int) -> None:
    """table: steps x names, on the CPU."""
    if torch.isfinite(table).all():
        return
    step = (~torch.isfinite(table)).any(dim=1).nonzero()[0].item()
    culprits = [n for n, v in zip(names, table[step].tolist(), strict=True) if not math.isfinite(v)]
    culprit = next((n for n in culprits if n != "loss"), "loss")
    values = ", ".join(f"{n} {v:.4g}" for n, v in zip(names, table[step].tolist(), strict=True))
    raise NonFiniteLossError(
        f"the loss term {culprit!r} is not finite at epoch {epoch}, step {step + 1} ({values}); "
        "a lower recipe.learning_rate or a smaller weight of this term usually helps"
    )


def frozen(network: SectionedNetwork) -> SectionedNetwork:
    """A copy that teaches: evaluation mode, no gradient."""
    return copy.deepcopy(network).eval().requires_grad_(False)


@torch.no_grad()
def move_average(average: nn.Module, network: nn.Module, decay: Tensor) -> None:
    """average <- decay average + (1 - decay) network, of the weights; decay: a tensor of no dimension."""
    for mean, weight in zip(average.parameters(), network.parameters(), strict=True):
        mean.lerp_(weight, 1 - decay)


def both(answer: Outputs | tuple[Outputs, Outputs]) -> tuple[Outputs, Outputs | None]:
    """What the network says, and its companion, if there is one."""
    return answer if isinstance(answer, tuple) else (answer, None)


def accuracy_of(
    network: SectionedNetwork,
    dataset: Dataset,
    split: Split,
    world: World = ALONE,
    precision: AbstractContextManager | None = None,
    whose: str = "the network",
) -> float:
    """Share of the validation split that the deepest exit gets right; several processes share the images out.

    Raises NonFiniteOutputsError, with `whose` outputs they are, where an exit's outputs for an image are no numbers:
    argmax would call such an image one of class 0.
    """
    mine = world.share(0, len(split.labels))
    with precision or nullcontext():
        logits = predict(network, dataset, split.images[mine])
    right = (logits[-1].argmax(dim=1) == split.labels[mine]).sum()
    lost = (~torch.isfinite(logits).all(dim=2)).any(dim=0).sum()
    correct, bad = world.sum(torch.stack([right, lost])).tolist()
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


def print_by_first(world: World, text: str) -> None:
    if world.rank == 0:
        tqdm.write(text)
