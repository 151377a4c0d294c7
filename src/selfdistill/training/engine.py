"""The training loop: one for every method, device and number of processes.

A method names its loss terms; everything else (phases, restarts, teachers, order and augmentation of
the images, memories, validation, logging, cost, checkpoints) happens here.  `train` is the loop, `Run`
what it changes: whatever is not in a Run's `saved` is not known after a resume.
"""

import copy
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from selfdistill.data.prepared import Dataset
from selfdistill.models.sections import SectionedNetwork
from selfdistill.models.trained import predict
from selfdistill.training.checkpoint import Checkpoints
from selfdistill.training.cost import counted_flops
from selfdistill.training.distributed import ALONE, World, shared, synchronised
from selfdistill.training.graph import WARM_UP, GraphedStep
from selfdistill.training.interruption import Interrupted, Interruption
from selfdistill.training.method import Method, Phase, Step
from selfdistill.training.optimiser import SGD
from selfdistill.training.plan import Rows, derived_seed, draw_plan
from selfdistill.training.schedule import learning_rate
from selfdistill.training.source import Source, batches


class NonFiniteLossError(RuntimeError):
    """A loss term became NaN or infinite; the message names term, epoch and step."""


@dataclass
class Split:
    """images, uint8 N x C x H x W, and labels, int64 N, on one device."""

    images: Tensor
    labels: Tensor


@dataclass
class Trained:
    """last: the network after the last epoch; validation_best: its state after the first epoch of
    highest validation accuracy, `best_epoch`; history: one row an epoch; flops: of all training
    steps, 2 a multiply-add; seconds: of training, what a killed process had done since its last
    checkpoint left out."""

    last: SectionedNetwork
    validation_best: dict[str, Tensor]
    best_epoch: int
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
    interruption: Interruption | None = None,
    world: World = ALONE,
) -> Trained:
    """Train the network that `build(seed)` makes, or go on from the newest of `checkpoints`.

    recipe: `selfdistill.config.Recipe`.  teacher: a trained network, if the method needs one.
    Raises NonFiniteLossError at the end of the epoch in which a term stopped being finite, and
    Interrupted after the step in which `interruption` received a signal, with the state saved.
    """
    run = Run(method, build, dataset, training, validation, recipe, seed, teacher, world)
    if checkpoints and (found := checkpoints.newest()):
        run.restore(*found)
        print_by_first(world, f"resumed at epoch {run.epoch + 1} of {recipe.epochs}, step {run.step + 1}")
    bar = tqdm(
        total=recipe.epochs,
        initial=run.epoch,
        unit="epoch",
        disable=None if world.rank == 0 else True,
        leave=False,
    )
    with bar, stream_for_graphs(run):
        while run.epoch < recipe.epochs:
            for _ in run.steps():
                if run.step == 0:  # the epoch is over
                    row = run.history[-1]
                    bar.update()
                    bar.set_postfix(loss=f"{row['loss']:.3f}", validation=f"{row['validation_accuracy']:.1%}")
                if run.epoch < recipe.epochs:
                    save_or_stop(run, checkpoints, interruption)
    return Trained(run.network, run.best_state, run.best_epoch, run.history, run.flops, run.seconds())


def save_or_stop(run: "Run", checkpoints: Checkpoints | None, interruption: Interruption | None) -> None:
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


class Run:
    """A training run between two steps, and how it takes the next."""

    def __init__(self, method, build, dataset, source, validation, recipe, seed, teacher, world) -> None:
        self.method, self.build, self.dataset, self.recipe, self.world = method, build, dataset, recipe, world
        self.source, self.validation, self.seed = source, validation, seed
        self.device = source.labels.device
        self.normalise = dataset.normaliser(self.device)
        self.labels = source.labels.cpu()  # chance is drawn on the CPU, the same for every device
        self.phases = method.phases(recipe.epochs)
        self.epoch = self.step = self.steps_done = 0
        self.history: list[dict[str, float]] = []
        self.best_accuracy, self.best_epoch, self.best_state = -1.0, 0, {}
        self.flops, self.step_flops = 0, {}
        self.seconds_before, self.started = 0.0, time.perf_counter()
        self.names: list[str] = []
        self.table = self.sizes = torch.empty(0)
        self.network: SectionedNetwork | None = None
        self.teacher = self.given_teacher = teacher
        self.rate, self.progress = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        seed_global_generators(derived_seed(seed, f"global/{world.rank}" if world.rank else "global"))
        self.stream = torch.cuda.Stream() if self.graphs else None
        self.begin_phase()

    # ---- phases ----

    def phase(self) -> tuple[int, Phase, int]:
        """Number of the phase, from 1, the phase, and its epochs that are over."""
        before = 0
        for number, phase in enumerate(self.phases, start=1):
            if self.epoch < before + phase.epochs:
                return number, phase, self.epoch - before
            before += phase.epochs
        raise ValueError(f"{type(self.method).__name__}: its phases have {before} epochs of {self.recipe.epochs}")

    def begin_phase(self) -> None:
        number, phase, _ = self.phase()
        if phase.learns_from_previous and self.network is not None:
            self.teacher = frozen(self.network)
        if self.network is None or phase.restart:
            self.network = self.build(derived_seed(self.seed, f"weights/{number}")).to(self.device)
        recipe = self.recipe
        self.optimiser = SGD(
            self.network, momentum=recipe.momentum, nesterov=recipe.nesterov, weight_decay=recipe.weight_decay
        )
        self.past = self.fresh = None
        if "memory" in self.method.needs:
            shape = len(self.labels), len(self.dataset.classes)
            self.past, self.fresh = (torch.zeros(shape, device=self.device) for _ in range(2))
        self.eager = self.network
        if self.world.size > 1:
            self.eager = shared(synchronised(self.network, self.device.type))
        # static shapes: the last, smaller batch of an epoch is compiled once, too
        self.forward = torch.compile(self.eager, dynamic=False) if recipe.compile else self.eager
        self.graphed, self.warm_steps = None, 0

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
            pairs="pairs" in method.needs,
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
        for batch in batches(self.source, plan, mine[self.step :], recipe):
            start, stop = cuts[self.step]
            self.rate.fill_(self.learning_rate(phase, phase_epoch, self.step / len(cuts)))
            row = self.take_step(batch, stop - start, number, remembers)
            if not len(self.table):
                self.table = torch.zeros(len(cuts), len(row), dtype=torch.float64, device=self.device)
            self.table[self.step] = row * len(batch["targets"])
            self.sizes[self.step] = len(batch["targets"])
            self.flops += self.step_flops[f"{number}/{stop - start}"]
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
        accuracy = accuracy_of(self.network, self.dataset, self.validation, self.world, self.autocast())
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
        # A network that a later phase throws away is no candidate.
        if number == len(self.phases) and accuracy > self.best_accuracy:
            self.best_accuracy, self.best_epoch = accuracy, self.epoch
            self.best_state = {k: v.clone() for k, v in self.network.state_dict().items()}
        if self.past is not None:
            self.past.copy_(self.world.sum(self.fresh))
            self.fresh.zero_()
        if phase_epoch == 0:
            self.graphed, self.warm_steps = None, 0  # with a memory, the next epoch's step is another one
        if self.epoch < self.recipe.epochs and self.phase()[2] == 0:
            self.begin_phase()

    def totals(self) -> tuple[Tensor, Tensor]:
        """What this epoch's steps logged, summed over their images, steps x names, and the numbers of images;
        over all processes, on the CPU, in float64.  One transfer an epoch: a look at each step's loss would
        make a GPU wait for the CPU."""
        sizes = self.sizes.to(self.device)
        return self.world.sum(self.table).cpu(), self.world.sum(sizes).cpu()

    # ---- a step ----

    def take_step(self, batch: Rows, whole: int, number: int, remembers: bool) -> Tensor:
        """One step on this process's rows of a batch of `whole` images; returns what it logs, by `names`.

        The first step of each phase and batch size is not compiled and its operations are counted; the
        others of its kind cost the same.
        """
        key = f"{number}/{whole}"
        if key not in self.step_flops:
            with counted_flops(self.network, self.teacher) as counted:
                row = self.compute(self.eager, batch, whole, remembers)
            self.step_flops[key] = counted.total * whole // len(batch["targets"])
            return row
        if not self.graphs or whole != self.recipe.batch_size:
            return self.compute(self.forward, batch, whole, remembers)
        if self.graphed is None and self.warm_steps < WARM_UP:
            self.warm_steps += 1
            return self.compute(self.forward, batch, whole, remembers)
        if self.graphed is None:
            self.graphed = GraphedStep(lambda inputs: self.compute(self.forward, inputs, whole, remembers), batch)
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

    def compute(self, forward: Callable, batch: Rows, whole: int, remembers: bool) -> Tensor:
        """Forward, loss, backward and update on a batch of uint8 images (see `source.batches`)."""
        step = self.seen_by_method(forward, batch, whole, remembers)
        terms = self.method.terms(step)
        loss = sum(terms.values())
        self.optimiser.zero_grad()
        # DistributedDataParallel averages over processes; rows are shared out unevenly by one at most
        scale = len(step.targets) * self.world.size / whole
        (loss if scale == 1 else loss * scale).backward()
        self.optimiser.step(self.rate)
        if self.fresh is not None:
            self.fresh.index_copy_(0, batch["index"], step.student.logits[-1].detach())
        correct = (step.student.logits[-1].argmax(dim=1) == step.targets).double().mean()
        named = {"loss": loss, **terms, **step.statistics, "training_accuracy": correct}
        self.names = list(named)
        return torch.stack([value.detach().double() for value in named.values()])

    def seen_by_method(self, forward: Callable, batch: Rows, whole: int, remembers: bool) -> Step:
        images, share = self.normalise(batch["main"]), None
        if "partner" in batch:
            partners = self.normalise(batch["partner"])
            images, share = self.method.mix(images, partners, batch["share"], batch["box"])
        more = [self.normalise(batch[name]) for name in batch if name.startswith("view ")]
        taught = pair = None
        with self.autocast():
            together = forward(torch.cat([images, *more]) if more else images)
            with torch.no_grad():
                if self.teacher is not None:
                    taught = self.teacher(images).float()
                if "pair" in batch:
                    pair = forward(self.normalise(batch["pair"])).float()
        views = together.float().chunks(1 + len(more))
        return Step(
            images=images,
            targets=batch["targets"],
            student=views[0],
            teacher=taught,
            progress=self.progress,
            views=views,
            pair=pair,
            past=self.past[batch["index"]] if self.past is not None and remembers else None,
            partner_targets=batch.get("partner_targets"),
            share=share,
            batch_mean=lambda values: self.world.sum_with_gradient(values.sum(dim=0)) / whole,
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
        if self.teacher is not self.given_teacher:
            tensors |= {f"teacher.{k}": v for k, v in self.teacher.state_dict().items()}
        if self.past is not None:
            tensors |= {"past": self.past, "fresh": self.world.sum(self.fresh)}
        if self.step:
            table, sizes = self.totals()
            stop_if_not_finite((table / sizes.unsqueeze(1))[: self.step], self.names, self.epoch + 1)
            tensors |= {"table": table, "sizes": sizes}
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
        self.network = None
        self.begin_phase()
        self.network.load_state_dict(part("network"))
        with torch.no_grad():
            for i, buffer in enumerate(self.optimiser.buffers):
                buffer.copy_(tensors[f"optimiser.{i}"])
        if best := part("best"):  # in the network's order, not the file's
            self.best_state = {k: best[k].to(self.device) for k in self.network.state_dict()}
        self.method.state = {k: v.to(self.device) for k, v in part("method").items()}
        if teacher := part("teacher"):
            self.teacher = frozen(self.build(0).to(self.device))
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
        "a lower recipe.learning_rate or a smaller weight of this term is the usual mend"
    )


def frozen(network: SectionedNetwork) -> SectionedNetwork:
    """A copy that teaches: evaluation mode, no gradient."""
    return copy.deepcopy(network).eval().requires_grad_(False)


def accuracy_of(
    network: SectionedNetwork,
    dataset: Dataset,
    split: Split,
    world: World = ALONE,
    precision: AbstractContextManager | None = None,
) -> float:
    """Share of the split that the deepest exit gets right; several processes share the images out."""
    mine = world.share(0, len(split.labels))
    with precision or nullcontext():
        deepest = predict(network, dataset, split.images[mine])[-1]
    return world.sum((deepest.argmax(dim=1) == split.labels[mine]).sum()).item() / len(split.labels)


# ---- generators of the libraries, for networks and methods that draw while they train ----


def seed_global_generators(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def global_generators(device: torch.device) -> tuple[dict[str, Tensor], dict]:
    """The states of torch's generators, as tensors, and of Python's and NumPy's, as what JSON can hold."""
    tensors = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    name, keys, *rest = np.random.get_state()
    return tensors, {"python": random.getstate(), "numpy": [name, keys.tolist(), *rest]}


def set_global_generators(tensors: dict[str, Tensor], other: dict, device: torch.device) -> None:
    torch.set_rng_state(tensors["cpu"])
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], device)
    version, keys, gauss = other["python"]
    random.setstate((version, tuple(keys), gauss))
    np.random.set_state(tuple(other["numpy"]))


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
