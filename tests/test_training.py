"""The engine: the same bits again, the phases and teachers that methods ask for, honest selection and cost."""

import math
import os
import subprocess
import sys
from functools import cache, partial

import pytest
import torch
from made import DATASET, FORM, RECIPE, VARIANTS, bits, made_images, made_split, train
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from selfdistill import methods
from selfdistill.data.prepared import Dataset, open_splits
from selfdistill.models.trained import build, load_network
from selfdistill.seeds import derived_seed
from selfdistill.training import cost, determinism, engine, needs
from selfdistill.training.augment import crop, cutmix, cutout, flip, mixup
from selfdistill.training.checkpoint import Checkpoints
from selfdistill.training.optimiser import SGD
from selfdistill.training.plan import draw_plan
from selfdistill.training.schedule import learning_rate
from selfdistill.training.source import Resident, open_source


@cache
def trained(name: str) -> engine.Trained:
    """A short training that several tests look at."""
    return train(name)


@pytest.mark.parametrize("name", methods.names())
def test_a_seed_gives_the_same_bits_again(name):
    first, second = trained(name), train(name)
    assert bits(first) == bits(second)
    assert first.history == second.history
    assert first.best_epoch == second.best_epoch


@pytest.mark.parametrize("name", methods.names())
def test_every_method_trains_in_bfloat16_with_losses_in_float32(name):
    """The network computes in half precision, what a method sees and returns is whole."""
    seen = []

    class Spy(methods.load(name), about=methods.about(name)):
        def terms(self, step):
            terms = super().terms(step)
            outputs = [*step.student.logits, *step.student.features, *step.student.maps, *terms.values()]
            seen.extend(t.dtype for t in outputs)
            return terms

    slow = {"learning_rate": 0.001, "epochs": 2}  # at 0.05 a weight of 1000 (attention transfer) carries the two apart
    half, whole = train(name, method=Spy(), precision="bfloat16", **slow), train(name, **slow)
    assert set(seen) == {torch.float32}
    assert {t.dtype for t in half.last.parameters()} == {torch.float32}
    first, other = half.history[0]["loss"], whole.history[0]["loss"]
    assert first == pytest.approx(other, rel=0.05)
    assert first != other


def test_a_compiled_training_is_the_same_training():
    """torch.compile sums in another order: equal to the eager loss in the first epoch but for rounding."""
    eager, compiled = train("plain", epochs=1), train("plain", epochs=1, compile=True)
    assert compiled.history[0]["loss"] == pytest.approx(eager.history[0]["loss"], rel=1e-4)
    assert compiled.flops == eager.flops


@pytest.mark.parametrize("name", methods.names())
def test_outputs_without_gradient_are_cut_off_and_change_no_bit(name, monkeypatch):
    cut = []

    def compiled(network, dynamic):
        def forward(images):
            answer = network(images)
            outputs = answer[0] if isinstance(answer, tuple) else answer
            cut.append([t.requires_grad for t in (*outputs.logits, *outputs.features, *outputs.maps)])
            return answer

        return forward

    eager = bits(trained(name))
    monkeypatch.setattr(torch, "compile", compiled)
    assert bits(train(name, compile=True)) == eager
    assert cut
    if name == "plain":
        assert [sum(needed) for needed in cut] == [1] * len(cut)  # the logits, of one exit, one feature and its maps
        assert len(cut[0]) > 3


def test_many_compiled_trainings_in_one_process_are_all_compiled(monkeypatch):
    """Dynamo gives up on a `forward` of which it has compiled eight kinds, here two; there are more, of three sizes."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    with torch._dynamo.config.patch(recompile_limit=2, fail_on_recompile_limit_hit=True):
        for size, name in enumerate(("plain", "cskd", "byot"), start=4):
            train(name, epochs=1, batch_size=size, compile=True)


def test_another_seed_gives_other_bits():
    assert bits(train("plain", seed=0)) != bits(train("plain", seed=1))


@pytest.mark.parametrize("name", methods.names())
def test_history_names_every_term_and_they_add_up(name):
    history = trained(name).history
    assert [row["epoch"] for row in history] == list(range(1, len(history) + 1))
    other = {
        "epoch",
        "phase",
        "learning_rate",
        "loss",
        "training_accuracy",
        "validation_accuracy",
        "rectified_share",
    }
    for row in history:
        terms = {k: v for k, v in row.items() if k not in other}
        assert terms
        assert sum(terms.values()) == pytest.approx(row["loss"], rel=1e-5)


@pytest.mark.parametrize("name", methods.names())
def test_every_method_lowers_its_own_loss_on_the_digits(name, tiny_study):
    """Six epochs of real images, the teacher a plain network of two; from a phase's first epoch to its last."""
    data = tiny_study / "data/prepared/digits/training"
    splits = open_splits(data, split="per_seed", training_images=100, validation_images=100, seed=0)
    dataset, validation = Dataset.read(data), engine.Split(*splits.validation)
    training = open_source(splits, dataset, "cpu")
    method = methods.load(name)()
    form = {**FORM, "classes": 10, "exits": "exits" in method.needs}
    teacher = (
        load_network(tiny_study / "results/runs/resnet10-slim/plain/0-1/0")[0] if "teacher" in method.needs else None
    )
    recipe = RECIPE.model_copy(update={"epochs": 6, "batch_size": 25})
    trained = engine.train(
        method, lambda s: build(form, s), dataset, training, validation, recipe, seed=0, teacher=teacher
    )
    last = [row for row in trained.history if row["phase"] == trained.history[-1]["phase"]]
    assert last[-1]["loss"] < last[0]["loss"]


def test_methods_of_one_seed_start_from_one_backbone():
    plain = build(FORM, 3)
    with_exits = build({**FORM, "exits": True}, 3)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, with_exits.state_dict()[name]), name


def test_a_restart_begins_from_fresh_weights_and_learns_from_the_frozen_first_stage():
    seeds, teachers = [], []

    class Spy(methods.load("srdl"), about=methods.about("srdl")):
        def terms(self, step):
            teachers.append(step.teacher)
            return super().terms(step)

    def build_and_note(seed):
        seeds.append(seed)
        return build(FORM, seed)

    engine.train(Spy(), build_and_note, DATASET, Resident(*made_images(28, 1)), made_split(16, 2), RECIPE, seed=0)
    assert len(set(seeds)) == 2
    steps = math.ceil(28 / 8)
    assert [t is None for t in teachers] == [True] * 2 * steps + [False] * steps
    assert not teachers[-1].logits[0].requires_grad


def test_the_validation_best_is_the_first_of_the_highest_validation_accuracies():
    trained = train("plain", epochs=6)
    accuracies = [row["validation_accuracy"] for row in trained.history]
    assert trained.best_epoch == accuracies.index(max(accuracies)) + 1
    network = build(FORM, 0)
    network.load_state_dict(trained.validation_best)
    assert engine.accuracy_of(network, DATASET, made_split(16, 2)) == max(accuracies)


def test_a_network_that_a_restart_throws_away_is_never_the_best():
    assert train("srdl", epochs=6).best_epoch > 3


def test_training_learns():
    assert train("plain", epochs=40, flip=False).history[-1]["validation_accuracy"] > 0.9


def test_a_loss_that_is_not_finite_stops_with_term_epoch_and_step():
    class Broken(methods.load("plain"), about=methods.about("plain")):
        calls = 0

        def terms(self, step):
            Broken.calls += 1
            terms = super().terms(step)
            return {**terms, "extra": terms["cross_entropy"] * (math.nan if Broken.calls >= 6 else 0.0)}

    with pytest.raises(engine.NonFiniteLossError, match="'extra' is not finite at epoch 2, step 2"):
        engine.train(
            Broken(),
            lambda s: build(FORM, s),
            DATASET,
            Resident(*made_images(28, 1)),
            made_split(16, 2),
            RECIPE,
            seed=0,
        )


@pytest.mark.parametrize("exits", [False, True])
def test_flops_are_those_of_torchs_counter(exits):
    network, teacher = build({**FORM, "exits": exits}, 0), engine.frozen(build(FORM, 1))
    images = torch.randn(5, 1, 8, 8)

    def loss():
        with torch.no_grad():
            taught = teacher(images)
        return sum(z.square().mean() for z in network(images).logits) + taught.logits[-1].mean()

    with cost.counted_flops(network, teacher) as ours:
        loss().backward()
    with FlopCounterMode(display=False) as theirs:
        loss().backward()
    assert ours.total == theirs.get_total_flops() > 0


def test_stopping_at_an_exit_costs_less_and_gives_the_same_logits():
    network = build({**FORM, "exits": True}, 0).eval()
    macs, together = cost.inference_macs(network, (1, 8, 8))
    assert macs == sorted(macs)
    assert len(macs) == 4
    assert together > macs[-1]
    images = torch.randn(3, 1, 8, 8)
    for i, logits in enumerate(network(images).logits):
        assert torch.equal(network.until(images, i), logits)


def test_our_sgd_is_torchs():
    networks = [build(FORM, 5) for _ in range(2)]
    ours = SGD(networks[0], momentum=0.9, nesterov=True, weight_decay=5e-4)
    theirs = torch.optim.SGD(networks[1].parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    images = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for step in range(5):
        for network in networks:
            network.zero_grad()
            network(images).logits[-1].square().mean().backward()
        ours.step(torch.tensor(0.1 / (step + 1)))
        theirs.param_groups[0]["lr"] = 0.1 / (step + 1)
        theirs.step()
    for a, b in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_schedule_warms_up_and_decays():
    cosine = {"peak": 0.1, "schedule": "cosine", "warmup": 0.2, "milestones": [], "decay": 0.1}
    assert learning_rate(0.0, **cosine) == 0
    assert learning_rate(0.1, **cosine) == pytest.approx(0.05)
    assert learning_rate(0.2, **cosine) == pytest.approx(0.1)
    assert learning_rate(0.6, **cosine) == pytest.approx(0.05)
    assert learning_rate(0.9999, **cosine) < 1e-6
    steps = {**cosine, "schedule": "steps", "milestones": [0.5, 0.75], "decay": 0.2}
    assert [learning_rate(p, **steps) for p in (0.3, 0.5, 0.8)] == pytest.approx([0.1, 0.02, 0.004])


def test_crops_are_windows_of_the_padded_image():
    images = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8).repeat(50, 2, 1, 1)
    offsets = torch.randint(5, (50, 2), generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images[0], [2] * 4)
    for (y, x), cropped in zip(offsets.tolist(), crop(images, 2, offsets), strict=True):
        assert torch.equal(cropped, padded[:, y : y + 8, x : x + 8])
    assert crop(images, 0, offsets) is images


def test_flips_mirror_the_images_that_the_mask_names():
    images = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).repeat(4, 1, 1, 1)
    flipped = flip(images, torch.tensor([True, False, False, True]))
    assert torch.equal(flipped, torch.stack([images[0].flip(2), images[1], images[2], images[3].flip(2)]))


def test_cutout_blanks_a_square_clipped_at_the_border():
    images = torch.full((2, 3, 8, 8), 9, dtype=torch.uint8)
    out = cutout(images, 4, torch.tensor([[0.5, 0.5], [0.0, 0.99]]))
    expected = images.clone()
    expected[0, :, 2:6, 2:6] = 0
    expected[1, :, 0:2, 5:8] = 0
    assert torch.equal(out, expected)
    assert cutout(images, 0, torch.zeros(2, 2)) is images


def test_mixup_and_cutmix_keep_the_share_they_return():
    mine, theirs = torch.ones(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)
    share = torch.tensor([0.75, 0.3])
    assert torch.allclose(mixup(mine, theirs, share).mean(dim=(1, 2, 3)), share)
    mixed, kept = cutmix(mine, theirs, share, torch.tensor([[0.5, 0.5], [0.0, 0.0]]))
    assert torch.allclose(mixed.mean(dim=(1, 2, 3)), kept)
    assert kept[0] == 0.75  # a box of 4 x 4 in 8 x 8
    assert kept[1] > 0.3  # clipped by the corner


def needs_of(name):
    return needs.of(methods.load(name)()).values()


def plan(**changes):
    labels = torch.arange(23) % 3
    wanted = {"seed": 1, "epoch": 4, "batch_size": 8, "crop_padding": 2, **changes}
    return labels, draw_plan(labels, **wanted)


def test_an_epochs_plan_depends_on_seed_and_epoch_alone():
    _, first = plan()
    for changes in ({"batch_size": 5}, *({"needs": needs_of(name)} for name in ("ddgsd", "cskd", "mixup", "bake"))):
        _, other = plan(**changes)
        assert all(torch.equal(v, other["main"][k]) for k, v in first["main"].items()), changes
    for changes in ({"seed": 2}, {"epoch": 5}):
        assert not torch.equal(plan(**changes)[1]["main"]["image"], first["main"]["image"])
    assert sorted(first["main"]["image"].tolist()) == list(range(23))


def test_pairs_are_other_images_of_the_class_and_partners_are_of_the_batch():
    labels, drawn = plan(needs=[*needs_of("cskd"), *needs_of("mixup"), *needs_of("ddgsd")])
    main, pair, partner = drawn["main"], drawn["pair"], drawn["partner"]
    assert torch.equal(labels[pair["image"]], labels[main["image"]])
    assert (pair["image"] != main["image"]).all()
    for start in range(0, 23, 8):
        batch = slice(start, start + 8)
        assert sorted(partner["image"][batch].tolist()) == sorted(main["image"][batch].tolist())
        assert len(partner["share"][batch].unique()) == 1
    assert torch.equal(drawn["view 1"]["image"], main["image"])
    assert not torch.equal(drawn["view 1"]["offsets"], main["offsets"])


PREPARED = """
import sys
from types import SimpleNamespace
from selfdistill.training import determinism
early, level, late = sys.argv[1:]
if early == "torch":
    import torch
else:
    determinism.prepare_environment(early, 1)
import torch
for wanted in (level, late):
    determinism.prepare_environment(wanted, 1)
    try:
        determinism.apply(SimpleNamespace(determinism=wanted, threads=1, device="cpu"))
        print(wanted, torch.are_deterministic_algorithms_enabled(), torch.backends.cpu.get_cpu_capability())
    except determinism.DeterminismError as error:
        print("refused:", error)
"""


@pytest.mark.parametrize(
    ("early", "level", "late", "said"),
    [
        ("portable", "portable", "portable", ["portable True AVX2", "portable True AVX2"]),
        ("seeded", "seeded", "strict", ["seeded False", "strict True"]),
        ("seeded", "seeded", "portable", ["seeded False", "refused: recipe.determinism: portable cannot be had here"]),
        ("portable", "portable", "seeded", ["portable True", "refused: recipe.determinism: seeded cannot be had"]),
        (
            "torch",
            "off",
            "portable",
            ["off False", "refused: recipe.determinism: portable cannot be had here: PyTorch"],
        ),
    ],
)
def test_a_level_of_determinism_holds_or_is_refused(early, level, late, said):
    """Each in a process of its own: what the libraries read when they are loaded cannot be set later."""
    command = [sys.executable, "-c", PREPARED, early, level, late]
    unset = {k: v for k, v in os.environ.items() if k not in determinism.PORTABLE and k != "CUBLAS_WORKSPACE_CONFIG"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=unset)
    lines = done.stdout.splitlines()
    assert all(line.startswith(part) for line, part in zip(lines, said, strict=True)), lines


@pytest.mark.parametrize("wanted", ["cuda", "auto"])
@pytest.mark.parametrize("rank", [None, 0, 3])
def test_each_process_has_the_gpu_of_its_number(wanted, rank, monkeypatch):
    """By name, for what loads tensors to a device: to safetensors a bare "cuda" is the first GPU in each process."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", str(rank))
    recipe = RECIPE.model_copy(update={"device": wanted, "determinism": "seeded"})
    assert determinism.apply(recipe) == f"cuda:{rank or 0}"
    assert chosen == [rank or 0]


def test_the_training_accuracy_that_is_logged_is_the_share_that_is_right():
    """One batch of all images, whose statistics do not depend on their order, and a rate that changes nothing."""
    still = {"epochs": 1, "warmup_epochs": 0, "batch_size": 28, "crop_padding": 0, "flip": False}
    row = train("plain", learning_rate=1e-12, **still).history[0]
    images, labels = made_images(28, 1)
    network = build(FORM, derived_seed(0, "weights/1")).train()
    right = network(DATASET.normalise(images)).logits[-1].argmax(dim=1) == labels
    assert row["training_accuracy"] == pytest.approx(right.double().mean().item())
    assert right.double().mean().item() != 0.5


def test_partners_are_drawn_uniformly_within_a_batch():
    """Of 6 images a batch each is each one's partner, itself included, a sixth of the time: chi-square over 3,000."""
    labels, counts = torch.arange(6) % 2, torch.zeros(6, 6)
    for epoch in range(3000):
        plan = draw_plan(labels, seed=1, epoch=epoch, batch_size=6, crop_padding=0, needs=needs_of("mixup"))
        counts[plan["main"]["image"], plan["partner"]["image"]] += 1
    expected = counts.sum() / 36
    assert ((counts - expected) ** 2 / expected).sum() < 63  # the 99.8th percentile at 35 degrees of freedom


# What torch refuses on a GPU at "strict" and "portable" (torch.use_deterministic_algorithms), as a CPU calls it
REFUSED = {
    *("_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward", "adaptive_max_pool2d_backward"),
    *("avg_pool3d_backward", "max_pool3d_with_indices_backward", "fractional_max_pool2d_backward", "max_unpool2d"),
    *("upsample_linear1d_backward", "upsample_bilinear2d_backward", "upsample_bicubic2d_backward"),
    *("upsample_trilinear3d_backward", "reflection_pad1d_backward", "reflection_pad2d_backward", "nll_loss2d_forward"),
    *("put_", "histc", "bincount", "median", "grid_sampler_2d_backward", "kthvalue", "cumsum", "cumprod"),
}


class Called(TorchDispatchMode):
    """The names of all operations, backward ones included."""

    def __init__(self) -> None:
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.__name__.split(".")[0])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [*methods.names(), *VARIANTS])
def test_strict_calls_nothing_that_torch_refuses_on_a_gpu(name, monkeypatch):
    called, compute = Called(), engine.Run.compute

    def watched(run, *arguments):
        with called:
            return compute(run, *arguments)

    monkeypatch.setattr(engine.Run, "compute", watched)
    train(name, epochs=2)
    assert {"convolution", "convolution_backward"} <= called.names
    assert not called.names & REFUSED


def test_what_would_be_refused_on_a_gpu_is_seen():
    with Called() as called:
        maps = torch.randn(2, 3, 5, 5, requires_grad=True)
        torch.nn.functional.adaptive_avg_pool2d(maps, 2).sum().backward()
        torch.ones(3).cumsum(0)
    assert called.names & REFUSED == {"_adaptive_avg_pool2d_backward", "cumsum"}


def test_weights_that_are_no_numbers_are_refused_at_the_end():
    """Where no output rests on them: no loss and no validation image shows it."""

    def build_with_more(seed):
        network = build(FORM, seed)
        network.unread = torch.nn.Parameter(torch.tensor([1.0, math.inf]))
        return network

    arguments = (DATASET, Resident(*made_images(28, 1)), made_split(16, 2), RECIPE)
    with pytest.raises(engine.NonFiniteWeightsError, match=r"the network after the last epoch: 1 of \d+ .*'unread'"):
        engine.train(methods.load("plain")(), build_with_more, *arguments, seed=0)


def test_no_checkpoint_holds_what_is_no_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        Checkpoints(tmp_path).save({}, {"loss": math.nan}, 1)
    assert not list(tmp_path.iterdir())


def test_odd_steps_are_not_compiled(monkeypatch):
    """The last, smaller batch and the first step without a batch before come once an epoch."""
    sizes = []

    def compiled(network, dynamic):
        def forward(images):
            sizes.append(len(images))
            return network(images)

        return forward

    monkeypatch.setattr(torch, "compile", compiled)
    train("dlb", compile=True)
    assert sizes == [16] * (3 * 2 - 1)  # of 4 steps an epoch; the very first of the kind is counted, not compiled
