"""Probes of networks: flatness, gradients, separability, other classes, corrupted images, timed early exit; against
literal forms."""

import io
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from made import DATASET, FORM, RECIPE, made_images
from PIL import Image
from safetensors.torch import save_file
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score, roc_curve
from torch import nn
from torch.func import functional_call, hessian

from selfdistill import analyses, methods
from selfdistill.analyses import corruptions, early_latency, flatness, gradients, ood, separability
from selfdistill.data.prepared import open_splits
from selfdistill.data.prepared.packed import centre_cropped, write_packed
from selfdistill.errors import UserError
from selfdistill.evaluation import anytime
from selfdistill.evaluation.calibration import log_odds
from selfdistill.evaluation.probed import Probed, chosen
from selfdistill.evaluation.replay import kept_weights, losses, run_at
from selfdistill.host import hardware
from selfdistill.models.sections import seeded
from selfdistill.models.trained import build, load_network
from selfdistill.stages.measure import carried_out
from selfdistill.stages.train import write_run
from selfdistill.training import engine
from selfdistill.training.noise import noisy_labels
from selfdistill.training.source import open_source

EPOCHS = 4
STILL = 1e-20  # a learning rate at which no weight moves


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The folder of a prepared data set: 64 images to draw from, and 40 to test."""
    folder = tmp_path_factory.mktemp("prepared")
    for part, name, count in (("training", "pool", 64), ("test", "test", 40)):
        (folder / part).mkdir()
        images, labels = made_images(count, len(name))
        save_file({"images": images, "labels": labels}, folder / part / f"{name}.safetensors")
    dataset = replace(DATASET, counts={"pool": 64, "test": 40}, pixels_sha256={"pool": "0" * 64, "test": "1" * 64})
    (folder / "training" / "dataset.json").write_text(json.dumps(vars(dataset)))
    return folder


def train_run(folder, prepared, name, teacher=None, **changes):
    """A short training, written as a run's folder: what a probe is given of it."""
    method = methods.load(name)()
    recipe = RECIPE.model_copy(update={"epochs": EPOCHS, "keep_epochs": list(range(1, EPOCHS)), **changes})
    splits = open_splits(prepared / "training", split="per_seed", training_images=24, validation_images=16, seed=0)
    form = {**FORM, "exits": "exits" in method.needs}
    trained = engine.train(
        method,
        lambda seed: build(form, seed),
        DATASET,
        open_source(splits, DATASET, "cpu"),
        engine.Split(*splits.validation),
        recipe,
        seed=0,
        teacher=engine.frozen(load_network(teacher)[0]) if "teacher" in method.needs else None,
    )
    told = {"method": name, "seed": 0, "split": splits.facts, "training_images": 24, "validation_images": 16}
    told |= {"hyper": {key: getattr(method, key) for key in method.about["hyper"]}, "recipe": dict(vars(recipe))}
    told |= {"network": form, "dataset": vars(DATASET)}
    write_run(folder, told, SimpleNamespace(dataset=DATASET), trained, None)
    network, run = load_network(folder)
    inputs = Probed(run, network, DATASET, folder / "weights.safetensors", prepared, "cpu", prepared, teacher)
    return inputs, trained


@pytest.fixture(scope="module")
def run(prepared, tmp_path_factory):
    """A run of deep supervision."""
    return train_run(tmp_path_factory.mktemp("run"), prepared, "deep_supervision")[0]


# ---- what a probe is given ----


def test_training_images_are_those_that_the_run_saw(run, prepared):
    images, labels = open_splits(
        prepared / "training", split="per_seed", training_images=24, validation_images=16, seed=0
    ).training
    shown = run.training(1000)
    order = chosen(24, 1000, run.seed("images"))
    assert sorted(order.tolist()) == list(range(24))
    assert torch.equal(shown.images, images[order])
    assert torch.equal(shown.labels, labels[order])
    assert torch.equal(run.training(7).images, shown.images[:7])
    noise = {"label_noise": 0.5, "label_noise_seed": 3}
    noisy = replace(run, run={**run.run, "recipe": {**run.run["recipe"], **noise}}).training(1000)
    assert torch.equal(noisy.labels, noisy_labels(labels, 4, 0.5, 3)[order])


def test_packed_training_images_are_seen_by_their_centre(run, tmp_path):
    """Those of a data set whose training images are decoded as they are needed."""
    generator, files = np.random.default_rng(0), []
    for _ in range(6):
        file = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (20, 24), dtype=np.uint8)).save(file, "PNG")
        files.append(file.getvalue())
    folder, labels = tmp_path / "training", np.arange(6) % 4
    write_packed(folder, "train", files, labels, np.arange(6))
    images, others = made_images(8, 0)
    save_file({"images": images, "labels": others}, folder / "validation.safetensors")
    parts = {"train": "0" * 64, "validation": "1" * 64}
    facts = vars(replace(DATASET, counts={"train": 6, "validation": 8}, pixels_sha256=parts))
    (folder / "dataset.json").write_text(json.dumps(facts))
    told = {"split": {"split": "fixed"}, "training_images": None, "validation_images": None}
    probed = replace(run, run={**run.run, **told}, own=tmp_path)
    shown = probed.training(4)
    rows = chosen(6, 4, probed.seed("images")).tolist()
    for row, pixels, label in zip(rows, shown.images, shown.labels, strict=True):
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), centre_cropped(files[row], (8, 8), 1))
        assert label == labels[row]


# ---- flatness ----


def test_noise_is_as_long_as_each_filter(run):
    network = run.network.deepest()
    noise = flatness.filter_noise(network, torch.Generator().manual_seed(0))
    weights = dict(network.named_parameters())
    assert set(noise) == {name for name, weight in weights.items() if weight.ndim > 1}
    for name, direction in noise.items():
        for filter_noise, weight in zip(direction, weights[name], strict=True):
            assert filter_noise.norm().item() == pytest.approx(weight.norm().item(), rel=1e-5)
    halfway = dict(flatness.moved(network, noise, 0.5).named_parameters())
    for name, weight in weights.items():
        expected = weight + 0.5 * noise[name] if name in noise else weight
        assert torch.allclose(halfway[name], expected, atol=1e-7)


def test_no_noise_leaves_the_network_as_it_is(run):
    network = run.network.deepest()
    noise = flatness.filter_noise(network, torch.Generator().manual_seed(0))
    images = DATASET.normalise(run.training(20).images)
    same = flatness.moved(network, noise, 0.0)
    assert torch.equal(same(images), network(images))
    rows = flatness.analyse(run, images=20, draws=1, sigmas=2, largest=0.5, vectors=1)
    again = flatness.with_statistics_of(network, images)
    right = (again(images).argmax(dim=1) == run.training(20).labels).double().mean().item()
    assert (rows[0]["sigma"], rows[0]["accuracy"]) == ("0", right)


def test_statistics_are_those_of_the_images(run):
    """In evaluation mode the network then says what it says in training mode, but for n / (n - 1) of the variance."""
    network, images = run.network.deepest(), DATASET.normalise(run.training(20).images)
    again = flatness.with_statistics_of(network, images)
    stem = next(module for module in again.modules() if isinstance(module, nn.BatchNorm2d))
    seen = network[0][0](images) if isinstance(network[0], nn.Sequential) else network[0].conv(images)
    assert torch.allclose(stem.running_mean, seen.mean(dim=(0, 2, 3)), atol=1e-5)
    assert torch.allclose(stem.running_var, seen.transpose(0, 1).flatten(1).var(dim=1), rtol=1e-4)
    before = next(m.running_mean for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    assert not torch.equal(stem.running_mean, before), "the network itself keeps its own"


def test_the_trace_is_that_of_the_exact_hessian():
    with seeded(0):
        network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)).eval()
        images, labels = torch.randn(7, 1, 4, 4), torch.arange(7) % 3
    names, parameters = zip(*network.named_parameters(), strict=True)
    flat = torch.cat([p.detach().flatten() for p in parameters])

    def loss(values: torch.Tensor) -> torch.Tensor:
        parts = values.split([p.numel() for p in parameters])
        weights = {n: part.view(p.shape) for n, part, p in zip(names, parts, parameters, strict=True)}
        return F.cross_entropy(functional_call(network, weights, (images,)), labels)

    exact = hessian(loss)(flat)
    batches = [(images[:4], labels[:4]), (images[4:], labels[4:])]
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        vector = torch.cat([flatness.signs(p, generator).flatten() for p in parameters])
        assert set(vector.tolist()) == {-1.0, 1.0}
        found = flatness.hessian_trace(network, batches, [seed])
        assert found == pytest.approx((vector @ exact @ vector).item(), rel=1e-4)
    many = flatness.hessian_trace(network, batches, list(range(200)))
    deviation = math.sqrt(2 * (exact - exact.diag().diag()).square().sum().item() / 200)  # of the mean of so many
    assert many == pytest.approx(exact.trace().item(), abs=3 * deviation)


def test_flatness_is_the_area_under_its_curve_and_the_same_again(run):
    settings = {"images": 20, "draws": 2, "sigmas": 3, "largest": 0.9, "vectors": 2}
    rows = flatness.analyse(run, **settings)
    *curve, all_of_them = rows
    assert [row["sigma"] for row in rows] == ["0", "0.3", "0.6", "0.9", "all"]
    for key in ("accuracy", "loss"):
        area = np.trapezoid([row[key] for row in curve], [0, 0.3, 0.6, 0.9]) / 0.9
        assert all_of_them[key] == pytest.approx(area, rel=1e-12)
    assert rows == flatness.analyse(run, **settings)
    other = replace(run, run={**run.run, "seed": 1})
    assert (
        flatness.generator_of(run, "noise/0").initial_seed() != flatness.generator_of(other, "noise/0").initial_seed()
    )
    assert curve[0]["loss"] < curve[-1]["loss"]


# ---- gradients ----

# Of these a run keeps too little for the whole loss, at the weights after the last epoch, too.
UNKNOWN = {"fitnet", "frskd", "dlb", "pskd"}
LAST_ALONE = {"mean_teacher", "dml"}  # a network that is left at the end


@pytest.mark.parametrize("name", methods.names())
def test_the_whole_loss_is_the_one_that_training_logged(name, prepared, tmp_path):
    """At a learning rate of almost 0 the weights stay, and an epoch's mean loss is that of its batches at the kept
    weights."""
    teacher = None
    if "teacher" in methods.about(name)["needs"]:
        teacher = tmp_path / "teacher"
        train_run(teacher, prepared, "plain", epochs=2, keep_epochs=[])
    still = {"learning_rate": STILL, "weight_decay": 0.0}
    inputs, trained = train_run(tmp_path / "run", prepared, name, teacher, **still)
    checked = 0
    for epoch, weights in kept_weights(inputs.run):
        found = [loss.item() for _, loss in losses(inputs, epoch, weights, 3)]
        if name in UNKNOWN or (name in LAST_ALONE and weights != "weights"):
            assert not found
            continue
        logged = trained.history[epoch - 1]["loss"]
        assert len(found) == 3
        assert np.mean(found) == pytest.approx(logged, rel=1e-4), f"epoch {epoch}"
        checked += 1
    assert checked or name in UNKNOWN


def test_without_its_teacher_there_is_no_whole_loss(prepared, tmp_path):
    train_run(tmp_path / "teacher", prepared, "plain", epochs=2, keep_epochs=[])
    inputs, _ = train_run(tmp_path / "run", prepared, "drkd", tmp_path / "teacher", epochs=2, keep_epochs=[1])
    rows = gradients.analyse(replace(inputs, teacher=None), batches=1)
    ratios = {(row["epoch"], row["loss"]): row["ratio"] for row in rows if row["layer"] == "all"}
    assert ratios["1", "whole"] is ratios["last", "whole"] is None
    assert all(math.isfinite(ratios[epoch, "deepest"]) for epoch in ("1", "last"))


def test_the_network_of_an_earlier_phase_teaches_where_it_was_kept(prepared, tmp_path):
    inputs, _ = train_run(tmp_path / "run", prepared, "srdl", keep_epochs=[1])
    assert [(epoch, len(list(losses(inputs, epoch, weights, 1)))) for epoch, weights in kept_weights(inputs.run)] == [
        (1, 1),
        (4, 0),
    ], "the first of its two phases ends with epoch 2"


@pytest.mark.parametrize(
    ("name", "need", "left"), [("dml", "companion", "peer"), ("mean_teacher", "average", "average")]
)
def test_a_network_that_the_run_left_is_given_back(name, need, left, prepared, tmp_path):
    inputs, _ = train_run(tmp_path / "run", prepared, name, keep_epochs=[])
    held = run_at(inputs, EPOCHS, "weights", None).needs[need].members()[left]
    for key, tensor in inputs.weights(left).state_dict().items():
        assert torch.equal(held[key], tensor), key


def test_gradients_are_autograds_by_layer(run):
    """Of the first batch, the label loss of the deepest exit alone, in training mode."""
    ((network, loss),) = losses(run, EPOCHS, "weights", 1, "plain")
    loss.backward()
    weights = {n: p for n, p in network.backbone.named_parameters() if p.ndim > 1}
    expected = [math.log(sum(abs(v) for v in w.grad.flatten().tolist()) / w.numel()) for w in weights.values()]
    rows = [r for r in gradients.analyse(run, batches=1) if (r["epoch"], r["loss"]) == ("last", "deepest")]
    assert [row["layer"] for row in rows] == [*(name.removesuffix(".weight") for name in weights), "all"]
    assert [row["size"] for row in rows[:-1]] == pytest.approx(expected, rel=1e-5)
    third = len(expected) // 3
    assert rows[-1]["ratio"] == pytest.approx(np.mean(expected[:third]) - np.mean(expected[-third:]), rel=1e-5)


def test_gradients_come_out_the_same_again_and_the_whole_loss_has_others(run):
    rows = gradients.analyse(run, batches=2)
    assert rows == gradients.analyse(run, batches=2)
    ratios = {(row["epoch"], row["loss"]): row["ratio"] for row in rows if row["layer"] == "all"}
    assert {epoch for epoch, _ in ratios} == {"1", "2", "3", "last"}
    assert all(ratios[epoch, "whole"] > ratios[epoch, "deepest"] for epoch, _ in ratios), (
        "shallow exits reach early layers"
    )


def test_a_layer_that_no_loss_reaches_has_no_logarithm():
    assert gradients.over_layers([1.0, None, 2.0]) == {"ratio": None, "size": None}
    assert gradients.over_layers([3.0, 2.0, 1.0]) == {"ratio": 2.0, "size": 2.0}
    assert gradients.over_layers([]) == {"ratio": None, "size": None}


# ---- separability ----


def test_scatter_is_that_of_a_loop():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 30)
    features = generator.normal(size=(30, 5)) + labels[:, None]
    mean, between, within = features.mean(axis=0), 0.0, 0.0
    for c in range(3):
        of_class = features[labels == c]
        between += len(of_class) * ((of_class.mean(axis=0) - mean) ** 2).sum()
        for x in of_class:
            within += ((x - of_class.mean(axis=0)) ** 2).sum()
    found = separability.scatter_ratio(torch.from_numpy(features), torch.from_numpy(labels))
    assert found == pytest.approx(between / within, rel=1e-12)
    assert separability.scatter_ratio(torch.ones(4, 2), torch.arange(4) % 2) is None
    variances = separability.component_variances(torch.from_numpy(features)).numpy()
    assert variances == pytest.approx(PCA().fit(features).explained_variance_, rel=1e-9)


def test_separability_is_of_each_exit(run):
    rows = separability.analyse(run, images=30)
    assert [row["exit"] for row in rows] == run.exits == ["1/4", "2/4", "3/4", "4/4"]
    shown = run.test(30)
    run.network.eval()
    with torch.no_grad():
        features = run.network(DATASET.normalise(shown.images)).features
    for row, seen in zip(rows, features, strict=True):
        assert row["scatter"] == pytest.approx(separability.scatter_ratio(seen, shown.labels), rel=1e-5)
        share = PCA().fit(seen.double().numpy()).explained_variance_ratio_
        assert row["two"] == pytest.approx(share[:2].sum(), rel=1e-5)
        assert row["dimensions"] == pytest.approx(1 / (share**2).sum(), rel=1e-5)


# ---- images of other classes ----


@pytest.mark.parametrize("ties", [False, True])
def test_auroc_and_false_positives_are_scikit_learns(ties):
    generator = torch.Generator().manual_seed(0)
    inside, outside = torch.randn(57, generator=generator) + 1, torch.randn(43, generator=generator)
    if ties:
        inside, outside = inside.round(), outside.round()
    truth, scores = np.repeat([1, 0], [57, 43]), torch.cat([inside, outside]).numpy()
    assert ood.auroc(inside, outside) == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert ood.false_positives(inside, outside) == pytest.approx(false[np.argmax(true >= 0.95)], abs=1e-12)


def test_scores_are_probability_and_energy():
    logits = torch.tensor([[[2.0, 0.0, -1.0], [0.0, 0.0, 0.0]]], dtype=torch.float64)
    exponentials = np.exp(logits.numpy())
    assert log_odds(logits).sigmoid().numpy() == pytest.approx(exponentials.max(axis=2) / exponentials.sum(axis=2))
    sure, surer = (log_odds(torch.tensor([[gap, 0.0, 0.0]])) for gap in (40.0, 50.0))  # both probabilities round to 1
    assert (ood.auroc(surer, sure), ood.false_positives(surer, sure)) == (1, 0)
    assert ood.energy(logits).numpy() == pytest.approx(np.log(exponentials.sum(axis=2)))


def test_other_images_are_brought_to_the_networks_form(run, prepared, tmp_path):
    colours = torch.randint(256, (6, 3, 16, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    made = ood.brought(colours, (8, 8), 1)
    for one, pixels in zip(made, colours, strict=True):
        picture = Image.fromarray(pixels.permute(1, 2, 0).numpy()).convert("L").resize((8, 8), Image.Resampling.LANCZOS)
        assert np.array_equal(one[0].numpy(), np.asarray(picture))
    grey = colours[:, :1]
    assert torch.equal(ood.brought(grey, (16, 12), 3), grey.expand(-1, 3, -1, -1))
    assert ood.brought(grey, (16, 12), 1) is grey
    for part in ("training", "test"):
        (tmp_path / part).mkdir()
    save_file({"images": colours, "labels": torch.zeros(6, dtype=torch.int64)}, tmp_path / "test/test.safetensors")
    (tmp_path / "training/dataset.json").write_text('{"name": "colours", "classes": ["red", "green"]}')
    known = {"name": "part", "classes": ["red", f"{run.dataset.classes[0].upper()}, of which there are two"]}
    with pytest.raises(UserError, match="part: 1 of its classes are those that the network knows"):
        ood.refuse_known(run.dataset.classes, known)
    rows = ood.analyse(replace(run, prepared=tmp_path), images=30)
    assert [(row["score"], row["exit"]) for row in rows] == [(s, e) for s in ("softmax", "energy") for e in run.exits]
    logits = run.logits(run.test(30), "own"), run.logits(replace(run.test(6), images=made), "made")
    probabilities = [z[-1].double().softmax(dim=1).max(dim=1).values.numpy() for z in logits]
    expected = roc_auc_score(np.repeat([1, 0], [30, 6]), np.concatenate(probabilities))
    assert rows[3]["auroc"] == pytest.approx(expected, abs=1e-12)


# ---- corrupted images ----


def literal(name, pixels, severity):
    """One image, float H x W x C in [0, 1], without chance; as the code that made the published sets."""
    if name == "contrast":
        c = [0.75, 0.5, 0.4, 0.3, 0.15][severity - 1]
        means = np.mean(pixels, axis=(0, 1), keepdims=True)
        return np.clip((pixels - means) * c + means, 0, 1) * 255
    if name == "brightness":
        c = [0.05, 0.1, 0.15, 0.2, 0.3][severity - 1]
        from matplotlib.colors import hsv_to_rgb, rgb_to_hsv

        hsv = rgb_to_hsv(pixels)
        hsv[..., 2] = np.clip(hsv[..., 2] + c, 0, 1)
        return np.clip(hsv_to_rgb(hsv), 0, 1) * 255
    image = Image.fromarray(np.uint8(np.rint(pixels * 255)))
    if name == "jpeg_compression":
        file = io.BytesIO()
        image.save(file, "JPEG", quality=[80, 65, 58, 50, 40][severity - 1])
        return np.asarray(Image.open(file))
    c = [0.95, 0.9, 0.85, 0.75, 0.65][severity - 1]
    smaller = image.resize((int(32 * c), int(32 * c)), Image.Resampling.BOX)
    return np.asarray(smaller.resize((32, 32), Image.Resampling.BOX))


def photographs(count=4, channels=3):
    generator = np.random.default_rng(0)
    rough = generator.integers(0, 256, (count, channels, 8, 8), dtype=np.uint8)
    return torch.from_numpy(rough.repeat(4, axis=2).repeat(4, axis=3))


@pytest.mark.parametrize("name", ["contrast", "brightness", "jpeg_compression", "pixelate"])
def test_a_corruption_without_chance_is_the_published_one(name):
    images = photographs()
    for severity in range(1, 6):
        found = corruptions.corrupted(images, name, severity, 0)
        for one, pixels in zip(found, images, strict=True):
            expected = literal(name, pixels.permute(1, 2, 0).numpy() / 255.0, severity)
            gap = np.abs(one.permute(1, 2, 0).numpy().astype(float) - np.floor(expected + 1e-6))
            assert gap.max() <= (1 if name == "brightness" else 0), "hue and back again rounds"


def test_noise_has_its_strength_and_no_chance_of_its_own():
    grey = torch.full((40, 3, 32, 32), 128, dtype=torch.uint8)
    gap = corruptions.corrupted(grey, "gaussian_noise", 5, 0).double() / 255 - 128 / 255
    assert gap.std().item() == pytest.approx(0.10, rel=0.02)
    shot = corruptions.corrupted(grey, "shot_noise", 5, 0).double() / 255
    assert shot.std().item() == pytest.approx(math.sqrt(128 / 255 / 50), rel=0.02)
    impulses = corruptions.corrupted(grey, "impulse_noise", 5, 0)
    for value in (0, 255):
        assert (impulses == value).double().mean().item() == pytest.approx(0.035, rel=0.05)
    blurred = corruptions.corrupted(photographs(), "gaussian_blur", 5, 0).double()
    assert blurred.std() < photographs().double().std()
    for name in corruptions.CORRUPTIONS:
        first = corruptions.corrupted(photographs(), name, 2, 7)
        assert torch.equal(first, corruptions.corrupted(photographs(), name, 2, 7))
        assert not torch.equal(first, photographs())
        assert corruptions.corrupted(photographs(channels=1), name, 2, 7).shape == (4, 1, 32, 32)
    assert not torch.equal(
        corruptions.corrupted(grey, "gaussian_noise", 5, 0), corruptions.corrupted(grey, "gaussian_noise", 5, 1)
    )


def test_corruptions_have_the_rows_of_robustness(run):
    rows = corruptions.analyse(run, images=12, seed=0)
    assert rows == corruptions.analyse(run, images=12, seed=0)
    *each, mean = rows
    assert len(each) == 8 * 5 * 5, "corruptions, severities, exits with the ensemble"
    assert list(corruptions.contradictions(run.run, rows)) == []
    deepest = [row["accuracy"] for row in each if row["exit"] == "4/4"]
    assert (mean["set"], mean["severity"], mean["accuracy"]) == ("all", None, pytest.approx(np.mean(deepest)))
    images = run.test(12)
    made = corruptions.corrupted(images.images, "contrast", 3, 0)
    right = (run.logits(replace(images, images=made), "made")[-1].argmax(dim=1) == images.labels).double().mean()
    told = [r["accuracy"] for r in each if (r["set"], r["severity"], r["exit"]) == ("contrast", 3, "4/4")]
    assert told == [right.item()]
    about = {name: analyses.about(name) for name in ("robustness", "corruptions")}
    assert about["robustness"]["keys"] == about["corruptions"]["keys"]
    assert list(about["robustness"]["numbers"]) == list(about["corruptions"]["numbers"])


# ---- timed early exit ----


def test_early_exit_is_timed_with_thresholds_of_the_validation_images(run, prepared):
    rows = carried_out("early_latency", run, {"images": 64, "repeats": 2})
    assert not list(early_latency.contradictions(run.run, rows))
    assert {row["host"] for row in rows} == {hardware("cpu")}
    assert all(0 < row["milliseconds"] < 1000 for row in rows)
    with torch.no_grad():
        shown = [
            torch.stack(run.network(DATASET.normalise(images)).logits)
            for images in (run.splits().validation[0], run.test(1000).images)
        ]
    known, sure = (anytime.confidence(logits) for logits in shown)
    chosen_by = shown[0].argmax(dim=2) == run.splits().validation[1]
    right = shown[1].argmax(dim=2) == run.test(1000).labels
    macs = anytime.leaving_macs(run.network)
    wanted = {
        f"{level} %": anytime.budget_threshold(known, macs, macs[0] + level / 100 * (macs[-1] - macs[0]))
        for level in (10, 25, 50, 75)
    } | {"no loss": anytime.lossless_threshold(known, chosen_by)}
    for row in rows:
        if row["rule"] == "a fixed exit":
            accuracy = right[int(row["at"][0]) - 1]
        else:
            assert row["threshold"] == wanted[row["at"]]
            taken = anytime.exits_taken(sure, [row["threshold"]] * 3)
            accuracy = right[taken, torch.arange(40)]
        assert row["accuracy"] == pytest.approx(accuracy.double().mean().item())


def test_each_rule_is_timed_on_the_same_images_one_by_one_and_in_batches(run):
    passes = []
    hook = run.network.backbone.stem.register_forward_hook(
        lambda _, images, __: passes.append((len(images[0]), torch.get_num_threads()))
    )
    try:
        rows = carried_out("early_latency", run, {"images": 64, "repeats": 2})
    finally:
        hook.remove()
    shown = passes[-3 * 9 * (40 + 1) :]  # before them: the logits that accuracy and thresholds come from
    assert len(rows) == 2 * 9
    assert shown == 3 * (9 * 40 * [(1, 1)] + 9 * [(40, 1)])
