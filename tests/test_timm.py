"""Networks of timm by name: built, cut, trained, loaded again, or refused in one line."""

import hashlib
import json

import pytest
import torch
from made import DATASET, RECIPE, made_images, made_split
from PIL import Image
from safetensors.torch import save_file

from selfdistill import methods, models
from selfdistill.data.prepared import Dataset
from selfdistill.models.trained import build, load_network
from selfdistill.training import engine
from selfdistill.training.cost import inference_macs
from selfdistill.training.source import Resident

TINY = "timm:test_resnet"  # 0.4 million parameters, timm's own for its tests
FORM = {"name": TINY, "channels": 1, "classes": 4, "size": [32, 32], "exits": True}


def built(name: str, exits: bool, size: int = 32, seed: int = 0):
    return models.build(name, channels=3, classes=10, size=(size, size), exits=exits, seed=seed)


@pytest.mark.parametrize(
    ("name", "widths", "features"),
    [
        (TINY, [32, 48, 192, 96], 96),
        ("timm:resnet10t", [64, 128, 256, 512], 512),
        ("timm:test_convnext", [24, 32, 48, 64], 64),
        # its classifier sees more channels than the last map has; so do its exits
        ("timm:test_efficientnet", [24, 32, 48, 64], 256),
        # made for one size; blocks of tokens, of which one is of a class
        ("timm:test_vit", [64, 64, 64, 64], 64),
    ],
)
@torch.no_grad()
def test_the_last_four_maps_that_timm_names_are_the_sections(name, widths, features):
    network = built(name, exits=True).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    outputs = network(images)
    assert [m.shape[1] for m in outputs.maps] == widths
    assert [f.shape for f in outputs.features] == [(2, features)] * 4
    assert [z.shape for z in outputs.logits] == [(2, 10)] * 4
    for i, logits in enumerate(outputs.logits):
        torch.testing.assert_close(network.until(images, i), logits, rtol=0, atol=0)
    torch.testing.assert_close(outputs.logits[-1], network.backbone(images))
    macs, _ = inference_macs(network, (3, 32, 32))
    assert len(macs) == 4


@pytest.mark.parametrize(
    ("name", "size", "shapes"),
    [
        ("timm:vit_tiny_patch16_224", (33, 47), [(192, 2, 2)] * 4),
        ("timm:swin_tiny_patch4_window7_224", (32, 64), [(96, 8, 16), (192, 4, 8), (384, 2, 4), (768, 1, 2)]),
        ("timm:convnext_tiny", (33, 47), [(96, 8, 11), (192, 4, 5), (384, 2, 2), (768, 1, 1)]),
        ("timm:levit_128s", (64, 64), [(128, 4, 4), (256, 2, 2), (384, 1, 1)]),
        ("timm:deit_tiny_distilled_patch16_224", (48, 32), [(192, 3, 2)] * 4),
        ("timm:dla34", (64, 64), [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]),
    ],
)
@torch.no_grad()
def test_maps_of_tokens_and_of_channels_that_stand_last_are_in_their_places(name, size, shapes):
    network = models.build(name, channels=3, classes=10, size=size, exits=True, seed=0).eval()
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    outputs = network(images)
    assert [m.shape[1:] for m in outputs.maps] == shapes
    assert [z.shape for z in outputs.logits] == [(2, 10)] * len(shapes)
    torch.testing.assert_close(outputs.logits[-1], network.backbone(images))


# small at 32 pixels, or at the size they are made for, and of twelve kinds
NAMED = (
    "convnext_atto resnet18 efficientnet_b0 mobilenetv3_small_050 vit_tiny_patch16_224 deit_tiny_patch16_224 "
    "swin_tiny_patch4_window7_224 mixer_s32_224 regnetx_002 densenet121 res2net50_14w_8s ghostnet_100"
)


@pytest.mark.parametrize("name", NAMED.split())
@torch.no_grad()
def test_a_shallow_exit_of_twelve_networks_is_exported_and_runs_nothing_behind_it(name):
    size = 224 if name == "mixer_s32_224" else 32
    network = built(f"timm:{name}", exits=True, size=size).eval()
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    wanted = network(images).logits[0]
    program = torch.export.export(
        network.exit_module(0), (images[:2],), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
    )
    torch.testing.assert_close(program.module()(images), wanted, rtol=1e-5, atol=1e-5)
    last = network.backbone.get_submodule(network.section_names[-1])
    ran = []
    last.register_forward_hook(lambda *_: ran.append(1))
    assert torch.equal(network.until(images, 0), wanted)
    assert not ran
    assert not any(key.startswith(f"0.backbone.{network.section_names[-1]}.") for key in program.state_dict)


@pytest.mark.parametrize("name", [TINY, "timm:test_convnext", "timm:test_efficientnet", "timm:test_vit"])
@torch.no_grad()
def test_every_exit_is_exported(name):
    network = built(name, exits=True).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for i, logits in enumerate(network(images).logits):
        program = torch.export.export(network.exit_module(i), (images,))
        torch.testing.assert_close(program.module()(images), logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_shallow_exit_takes_images_of_another_size_and_leaves_modes_alone():
    """What lies behind has other shapes then, which are found by one more dry run."""
    network = built(TINY, exits=True).train()
    network.backbone.layer1.eval()
    modes = {name: module.training for name, module in network.named_modules()}
    images = torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    network.until(images, 0)
    assert {name: module.training for name, module in network.named_modules()} == modes
    network.eval()
    assert torch.equal(network.until(images, 1), network(images).logits[1])


def test_a_map_of_tokens_is_laid_out_as_the_image_is():
    """Row by row from the top; what has no place, a class token in front, is left out."""
    from selfdistill.models.from_timm import layout

    backbone = built("timm:test_vit", exits=False).backbone
    places = torch.arange(2.0 * 3).view(1, 6, 1).expand(1, 6, 64)
    tokens = torch.cat([torch.full((1, 1, 64), -1.0), places], dim=1)
    stage = {"module": "blocks.0", "num_chs": 64, "reduction": 16}
    for tokens_seen in (tokens, places):  # some networks add their class token later
        found = layout(backbone, [stage], (3, 35, 48))("blocks.0", tokens_seen)
        assert found.shape == (1, 64, 2, 3)
        assert found[0, 7].tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(ValueError, match=r"blocks.0: 7 tokens; allowed: 1 \+ 2 x 2"):
        layout(backbone, [stage], (3, 33, 35))("blocks.0", tokens)


def test_the_seed_decides_and_the_backbone_is_the_same_with_exits():
    plain, exits, other = built(TINY, False), built(TINY, True), built(TINY, True, seed=1)
    before, with_exits, of_other = plain.state_dict(), exits.state_dict(), other.state_dict()
    assert all(torch.equal(value, with_exits[key]) for key, value in before.items())
    again = built(TINY, True).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in with_exits.items())
    assert not torch.equal(with_exits["backbone.conv1.0.weight"], of_other["backbone.conv1.0.weight"])
    assert not torch.equal(with_exits["exits.0.classifier.weight"], of_other["exits.0.classifier.weight"])


def test_it_trains_with_early_exits_and_loads_again_and_predicts(tmp_path, capsys):
    from selfdistill.cli import main

    images, labels = made_images(16, 1)
    images = images.repeat_interleave(4, 2).repeat_interleave(4, 3)
    dataset = Dataset(**{**vars(DATASET), "size": (32, 32)})
    split = made_split(8, 2)
    validation = engine.Split(split.images.repeat_interleave(4, 2).repeat_interleave(4, 3), split.labels)
    trained = engine.train(
        methods.load("byot")(),
        lambda seed: build(FORM, seed),
        dataset,
        Resident(images, labels),
        validation,
        RECIPE.model_copy(update={"epochs": 1, "warmup_epochs": 0}),
        seed=0,
    )
    assert trained.last.exit_count == 4
    assert trained.flops > 0
    save_file({k: v.contiguous() for k, v in trained.last.state_dict().items()}, tmp_path / "weights.safetensors")
    sha256 = hashlib.sha256((tmp_path / "weights.safetensors").read_bytes()).hexdigest()
    described = {"network": FORM, "dataset": {**vars(dataset), "size": [32, 32]}, "members": {}, "kept": {}}
    described |= {"weights_sha256": sha256, "validation_best_sha256": sha256}
    (tmp_path / "run.json").write_text(json.dumps(described))
    network, _ = load_network(tmp_path)
    with torch.no_grad():
        x = torch.randn(3, 1, 32, 32)
        torch.testing.assert_close(network(x).logits[0], trained.last.eval()(x).logits[0])
    Image.new("L", (32, 32), 90).save(tmp_path / "photo.png")
    assert main(["predict", str(tmp_path), str(tmp_path / "photo.png"), "--exit", "1"]) == 0
    assert "exit 1/4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "size", "parts"),
    [
        ("timm:resnet10tt", 32, ["timm:resnet10tt", "no such network", "resnet10t"]),
        ("timm:hrnet_w18_small", 64, ["cannot be cut for images of 64 x 64 pixels", "no module 'stage1'"]),
        ("timm:inception_v3", 32, ["cannot be cut for images of 32 x 32 pixels"]),
        ("timm:nest_tiny", 30, ["cannot be"]),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(name, size, parts):
    with pytest.raises(models.NetworkError) as error:
        built(name, exits=False, size=size)
    assert "\n" not in str(error.value)
    assert all(part in str(error.value) for part in parts), error.value


@pytest.mark.nightly  # 29 s; steps of its networks are trained by the other tests
def test_a_study_of_timm_is_checked_without_loading_timm_and_runs_in_dvc(project):
    project.params(models=[TINY], methods=["plain"], students=[], seeds=[0])
    script = (
        "import sys, time; from selfdistill.cli import main; main(['check']);"
        "print({'torch', 'timm'} & {*sys.modules}, time.process_time() < 2)"
    )
    assert "set() True" in project.run("python", "-c", script).stdout
    project.run("workflow/run", "prune")
    project.run("dvc", "repro", "--quiet")
    assert project.changed() == set()
    assert (project / f"results/records/measured/{TINY}/plain/0.json").is_file()
    name = f"train@{TINY}-plain-0"
    assert "didn't change" in project.run("dvc", "repro", "--single-item", name).stdout
    assert "Nothing to be done" in (done := project.run("snakemake", "-n")).stdout + done.stderr
