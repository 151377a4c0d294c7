"""What a recipe may ask for beside the ordinary: AdamW, exempt norms, label noise, kept epochs."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, get_args, get_origin

import made
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn

from selfdistill import methods
from selfdistill.config import Recipe
from selfdistill.errors import ConfigError, NonFiniteOutputsError
from selfdistill.models.trained import build
from selfdistill.params import read_study
from selfdistill.stages.train import write_run
from selfdistill.training import engine
from selfdistill.training.checkpoint import Checkpoints
from selfdistill.training.noise import noise_facts, noisy_labels
from selfdistill.training.optimiser import make_optimiser
from selfdistill.training.source import Resident
from selfdistill.training.stopping import Interrupted

ROOT = Path(__file__).parents[1]


def small_network() -> nn.Module:
    torch.manual_seed(0)
    # no bias before the norm: its gradient is rounding alone, which Adam would make as large as any other
    return nn.Sequential(nn.Linear(5, 7, bias=False), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3))


def six_steps(network: nn.Module, step) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    for i in range(6):
        images = torch.randn(8, 5, generator=generator)
        for parameter in network.parameters():
            parameter.grad = None
        F.cross_entropy(network(images), torch.arange(8) % 3).backward()
        step(0.05 / (i + 1))
    return network.state_dict()


@pytest.mark.parametrize("exempt", [False, True])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_an_optimiser_steps_as_torchs_own(name, exempt):
    recipe = made.RECIPE.model_copy(
        update={"optimiser": name, "decay_exempt": exempt, "weight_decay": 0.1, "beta1": 0.8}
    )
    ours, theirs = small_network(), small_network()
    mine = make_optimiser(ours, recipe)
    whole = [p for p in theirs.parameters() if p.ndim > 1 or not exempt]
    flat = [p for p in theirs.parameters() if p.ndim <= 1 and exempt]
    groups = [{"params": whole, "weight_decay": 0.1}, {"params": flat, "weight_decay": 0.0}]
    if name == "sgd":
        reference = torch.optim.SGD(groups, lr=1.0, momentum=recipe.momentum, nesterov=recipe.nesterov)
    else:
        reference = torch.optim.AdamW(groups, lr=1.0, betas=(0.8, 0.999))

    def their_step(rate: float) -> None:
        for group in reference.param_groups:
            group["lr"] = rate
        reference.step()

    found = six_steps(ours, lambda rate: mine.step(torch.tensor(rate)))
    expected = six_steps(theirs, their_step)
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=2e-6, atol=1e-7)
    moved = sum(float((found[k] - v).abs().sum()) for k, v in small_network().state_dict().items())
    assert moved > 0.1


def test_adamw_and_kept_epochs_survive_an_interruption_to_the_bit(tmp_path):
    recipe = {
        "optimiser": "adamw",
        "nesterov": False,
        "decay_exempt": True,
        "keep_epochs": [1, 3],
        "learning_rate": 0.01,
    }
    whole = made.train("plain", **recipe)
    assert set(whole.kept) == {1, 3}
    assert any(not torch.equal(whole.kept[1][k], whole.kept[3][k]) for k in whole.kept[1])
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(Interrupted):
        made.train("plain", checkpoints=checkpoints, interruption=made.stop_after(7), **recipe)
    resumed = made.train("plain", checkpoints=checkpoints, **recipe)
    for epoch, state in whole.kept.items():
        assert all(torch.equal(tensor, resumed.kept[epoch][key]) for key, tensor in state.items())
    assert all(torch.equal(v, resumed.last.state_dict()[k]) for k, v in whole.last.state_dict().items())


def test_kept_weights_of_the_last_epoch_are_the_last_weights():
    trained = made.train("plain", keep_epochs=[3])
    assert all(torch.equal(v, trained.kept[3][k]) for k, v in trained.last.state_dict().items())


def test_label_noise_changes_the_share_that_was_asked_for():
    labels = torch.arange(1000) % 10
    noisy = noisy_labels(labels, 10, 0.2, seed=3)
    changed = noisy != labels
    assert int(changed.sum()) == 200
    assert noisy.min() == 0
    assert noisy.max() == 9
    shift = (noisy - labels)[changed] % 10
    assert set(shift.tolist()) == set(range(1, 10))
    assert torch.equal(noisy, noisy_labels(labels, 10, 0.2, seed=3))
    assert not torch.equal(noisy, noisy_labels(labels, 10, 0.2, seed=4))
    assert torch.equal(labels, noisy_labels(labels, 10, 0.0, seed=3))
    assert torch.equal(labels, torch.arange(1000) % 10)


def test_label_noise_reaches_training_and_leaves_its_data_alone():
    """Two runs that begin with the same images and labels: the second's are not exchanged twice."""
    source, validation = Resident(*made.made_images(28, 1)), made.made_split(16, 2)
    clean = [source.labels.clone(), validation.labels.clone()]
    recipe = made.RECIPE.model_copy(update={"label_noise": 0.5, "label_noise_seed": 3})

    def run(recipe: Recipe) -> engine.Trained:
        method = methods.load("plain")()
        return engine.train(method, lambda s: build(made.FORM, s), made.DATASET, source, validation, recipe, seed=0)

    noisy, again, without = run(recipe), run(recipe), run(made.RECIPE)
    assert noisy.history[0]["loss"] != without.history[0]["loss"]
    assert noisy.history == again.history
    assert all(map(torch.equal, clean, (source.labels, validation.labels)))
    assert without.label_noise == {}
    assert noisy.label_noise == again.label_noise == noise_facts(clean[0], noisy_labels(clean[0], 4, 0.5, 3))
    assert noisy.label_noise["changed"] == 14


def test_a_record_says_which_labels_were_exchanged(tmp_path):
    """And says nothing of it without, so that records keep their form."""
    cell = SimpleNamespace(dataset=made.DATASET)
    for share, expected in ((0.5, {"changed": 14}), (0.0, {})):
        trained = made.train("plain", label_noise=share)
        write_run(tmp_path, {}, cell, trained, None)
        found = json.loads((tmp_path / "run.json").read_text()).get("label_noise", {})
        assert found == trained.label_noise
        assert expected.items() <= found.items()


def test_label_noise_is_refused_for_persons(tmp_path):
    content = yaml.safe_load((ROOT / "studies/sd-market1501/params.yaml").read_text())
    content["root"] = str(ROOT)
    content["recipe"]["label_noise"] = 0.2
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=r"label_noise: 0\.2 is not allowed; allowed: 0, because market1501 has"):
        read_study(tmp_path / "params.yaml")


def test_a_network_whose_outputs_are_no_numbers_is_refused_at_the_epochs_end():
    """The loss stays finite (some 1e19) while the weights become NaN; argmax would call all images class 0."""
    wild = {"learning_rate": 100.0, "weight_decay": 1.0, "epochs": 5, "schedule": "steps", "milestones": [0.99]}
    with pytest.raises((NonFiniteOutputsError, engine.NonFiniteLossError), match=r"NaN or infinite|not finite"):
        made.train("plain", **wild)
    network = copy.deepcopy(made.train("plain").last)
    with torch.no_grad():
        network.backbone.classifier.weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteOutputsError, match=r"the network: its outputs for (\d+) of the \1 validation"):
        engine.accuracy_of(network, made.DATASET, made.made_split(16, 2))


def test_a_warm_up_takes_half_of_a_phase_at_most():
    """SRDL shares six epochs out to two phases of three: a warm-up of two would leave a phase one."""
    for wanted, spent in ((1, 1.0), (2, 1.5)):
        rates = [row["learning_rate"] for row in made.train("srdl", epochs=6, warmup_epochs=wanted).history]
        assert rates[:3] == rates[3:]
        last = 1 - 1 / 4  # of four steps an epoch, the last one's rate is logged
        assert rates[0] == pytest.approx(0.05 * last / spent)
        assert 0 < rates[2] < rates[1]


def test_every_key_of_the_recipe_is_documented():
    """With its default, and its choices where it has some."""
    text = (ROOT / "docs" / "recipes.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in text.splitlines() if line.startswith("| `")]
    listed = {key.strip("`"): (allowed, default) for key, allowed, default in rows}
    assert set(listed) == set(Recipe.model_fields)
    for key, field in Recipe.model_fields.items():
        allowed, default = listed[key]
        if get_origin(field.annotation) is Literal:
            assert allowed == ", ".join(get_args(field.annotation)), key
        elif field.annotation is bool:
            assert allowed == "true, false", key
        if field.is_required() or field.default == []:
            assert default in ("none", "none are kept"), key
        else:
            assert default == json.dumps(field.default).strip('"').removesuffix(".0"), key
