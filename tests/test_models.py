"""Networks: sizes and costs to the last digit, and exits that stop early and say the same."""

import re
from pathlib import Path

import pytest
import torch

from selfdistill import models
from selfdistill.training.cost import inference_macs

CLASSES = 100


def built(name: str, exits: bool, size: int = 32):
    return models.build(name, channels=3, classes=CLASSES, size=(size, size), exits=exits, seed=0).eval()


def parameters(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("name", "sections", "count", "macs"),
    [
        # torchvision's 11,689,512 less 900 classes and with a 3x3 stem: - 461,700 - 7,680
        ("resnet18", 4, 11_220_132, "555.469"),
        # He et al.'s 0.27 million, 269,722, with 90 classes more and option B: + 5,850 + 2,752
        ("resnet20", 3, 278_324, "40.819"),
    ],
)
def test_parameters_and_multiply_adds_of_the_backbones(name, sections, count, macs):
    network = built(name, exits=False)
    assert len(network.backbone.sections) == sections
    assert parameters(network) == count
    (found,), whole = inference_macs(network, (3, 32, 32))
    assert f"{found / 1e6:.3f}" == macs
    assert found == whole


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet18", 13_011_152),
        # each exit: three convolutions, their batch normalisation and the classifier
        ("resnet20", 278_324 + (512 + 16_384 + 2_048 + 256 + 6_500) + (1_024 + 4_096 + 2_048 + 256 + 6_500)),
    ],
)
def test_parameters_with_exits(name, count):
    assert parameters(built(name, exits=True)) == count


def test_what_the_exits_of_resnet18_save():
    macs, _ = inference_macs(built("resnet18", exits=True), (3, 32, 32))
    assert [f"{macs[-1] / m:.2f}" for m in macs] == ["3.10", "1.87", "1.31", "1.00"]


@torch.no_grad()
@pytest.mark.parametrize("size", [28, 32, 64])
@pytest.mark.parametrize(
    ("name", "widths", "strides"),
    [("resnet18", (64, 128, 256, 512), (1, 2, 2, 2)), ("resnet20", (16, 32, 64), (1, 2, 2))],
)
def test_shapes_and_that_each_exit_alone_equals_the_whole(name, widths, strides, size):
    network = built(name, exits=True, size=size)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    outputs = network(images)
    side = size
    for found, width, stride in zip(outputs.maps, widths, strides, strict=True):
        side = -(-side // stride)
        assert found.shape == (2, width, side, side)
    assert network.exit_count == len(outputs.logits) == len(widths)
    for i, (logits, features) in enumerate(zip(outputs.logits, outputs.features, strict=True)):
        assert logits.shape == (2, CLASSES)
        assert features.shape == (2, widths[-1])
        torch.testing.assert_close(network.until(images, i), logits, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["resnet10-slim", "resnet18", "resnet20-a", "vgg19-bn", "shufflenetv2"])
def test_with_and_without_exits_the_backbone_starts_the_same(name):
    plain, multi = built(name, exits=False).state_dict(), built(name, exits=True).state_dict()
    assert all(torch.equal(value, multi[key]) for key, value in plain.items())


def exported(network, index: int, images: torch.Tensor) -> torch.export.ExportedProgram:
    batch = {0: torch.export.Dim.DYNAMIC}
    return torch.export.export(network.exit_module(index), (images,), dynamic_shapes=(batch,))


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet10-slim", "resnet20-a", "vgg19-bn", "mobilenetv2", "shufflenetv2-imagenet"])
def test_every_exit_can_be_exported_with_batches_of_any_size(name):
    network = built(name, exits=True)
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for i, logits in enumerate(network(images).logits):
        program = exported(network, i, images[:2])
        torch.testing.assert_close(program.module()(images), logits, rtol=1e-5, atol=1e-5)
        inside = sum(t.numel() for t in program.state_dict.values())
        assert inside < sum(t.numel() for t in network.state_dict().values()), "what lies behind is not in it"


def test_an_exits_module_shares_the_networks_weights_and_leaves_its_modes_alone():
    network = built("resnet10-slim", exits=True).train()
    network.backbone.stem.eval()
    module = network.exit_module(0)
    assert module.training
    assert not network.backbone.stem.training
    assert {id(p) for p in module.parameters()} <= {id(p) for p in network.parameters()}
    with pytest.raises(IndexError, match="exit 4: this network has 4; allowed: 0 to 3"):
        network.exit_module(4)


def test_the_guides_export_runs(tmp_path, monkeypatch):
    guide = (Path(__file__).parents[1] / "docs/networks.md").read_text()
    (code,) = (found for found in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "torch.export" in found)
    monkeypatch.chdir(tmp_path)
    exec(code, scope := {})
    images, network = torch.rand(3, 3, 32, 32), scope["network"]
    found = torch.export.load(tmp_path / "first_exit.pt2").module()(images)
    torch.testing.assert_close(found, network(images).logits[0], rtol=1e-5, atol=1e-5)
