"""The networks of the papers: parameters and multiply-adds to the last digit, sections, exits, any size.

Sizes are counted on PyTorch's meta device, which computes shapes alone.  Where each number comes from
stands in the families' cards.
"""

import functools
import re

import pytest
import torch

from selfdistill import models
from selfdistill.data.vision import import_torchvision
from selfdistill.models.densenet import DenseLayer
from selfdistill.models.mobilenet import InvertedResidual
from selfdistill.models.preact_resnet import PreActBlock
from selfdistill.models.pyramidnet import PyramidBlock
from selfdistill.models.resnet import BasicBlock, Bottleneck, PaddedShortcut
from selfdistill.models.shufflenet import ShuffleUnit
from selfdistill.training.cost import inference_macs

# at 32 px and 100 classes: parameters, millions of multiply-adds, channels and sides of the sections' maps
SMALL = {
    "resnet18": (11_220_132, "555.469", (64, 32), (128, 16), (256, 8), (512, 4)),
    "resnet50": (23_705_252, "1298.014", (256, 32), (512, 16), (1024, 8), (2048, 4)),
    "resnet101": (42_697_380, "2510.168", (256, 32), (512, 16), (1024, 8), (2048, 4)),
    "resnet152": (58_341_028, "3722.322", (256, 32), (512, 16), (1024, 8), (2048, 4)),
    "resnet20": (278_324, "40.819", (16, 32), (32, 16), (64, 8)),
    "resnet32": (472_756, "69.130", (16, 32), (32, 16), (64, 8)),
    "resnet44": (667_188, "97.442", (16, 32), (32, 16), (64, 8)),
    "resnet56": (861_620, "125.754", (16, 32), (32, 16), (64, 8)),
    "resnet110": (1_736_564, "253.156", (16, 32), (32, 16), (64, 8)),
    "resnet20-a": (275_572, "40.557", (16, 32), (32, 16), (64, 8)),
    "resnet32-a": (470_004, "68.868", (16, 32), (32, 16), (64, 8)),
    "resnet44-a": (664_436, "97.180", (16, 32), (32, 16), (64, 8)),
    "resnet56-a": (858_868, "125.491", (16, 32), (32, 16), (64, 8)),
    "resnet110-a": (1_733_812, "252.893", (16, 32), (32, 16), (64, 8)),
    "vgg19-bn": (20_086_692, "398.182", (64, 16), (128, 8), (256, 4), (512, 1)),
    "resnext29-8x64d": (34_518_948, "5387.358", (256, 32), (512, 16), (1024, 8), (1024, 8)),
    "resnext29-4x64d": (17_654_692, "2736.558", (256, 32), (512, 16), (1024, 8), (1024, 8)),
    "wrn16-4": (2_772_020, "392.635", (64, 32), (128, 16), (256, 8), (256, 8)),
    "wrn40-2": (2_255_156, "327.611", (32, 32), (64, 16), (128, 8), (128, 8)),
    "wrn28-10": (36_536_884, "5243.386", (160, 32), (320, 16), (640, 8), (640, 8)),
    "wrn20-8": (17_204_276, None, (128, 32), (256, 16), (512, 8), (512, 8)),
    "wrn44-8": (41_991_220, None, (128, 32), (256, 16), (512, 8), (512, 8)),
    "pyramidnet101-240": (13_688_174, "2343.451", (384, 32), (704, 16), (880, 8), (1024, 8)),
    "pyramidnet110-270": (28_511_307, "4718.009", (106, 32), (196, 16), (241, 8), (286, 8)),
    "preact-resnet18": (11_217_444, "555.469", (64, 32), (128, 16), (256, 8), (512, 4)),
    "mobilenetv2": (2_369_380, "64.947", (24, 17), (32, 9), (96, 5), (1280, 5)),
    "shufflenetv2": (1_360_896, "43.676", (116, 16), (232, 8), (1024, 4)),
    "googlenet": (6_258_500, "1521.848", (480, 32), (832, 16), (1024, 8)),
    "densenet121": (7_048_548, "888.443", (256, 32), (512, 16), (1024, 8), (1024, 4)),
}

# torchvision's `num_params` and `_ops` of its weights, at 224 px and 1,000 classes
LARGE = {
    "resnet18-imagenet": (11_689_512, "1.814"),
    "resnet50-imagenet": (25_557_032, "4.089"),
    "resnet101-imagenet": (44_549_160, "7.801"),
    "resnet152-imagenet": (60_192_808, "11.514"),
    "shufflenetv2-imagenet": (2_278_604, "0.145"),
    "googlenet-imagenet": (6_624_904, "1.498"),
}

pytestmark = pytest.mark.filterwarnings("error")


@functools.cache
def counted(name: str, classes: int = 100, size: int = 32, channels: int = 3):
    """The network with exits, without weights."""
    with torch.device("meta"):
        network = models.build(name, channels=channels, classes=classes, size=(size, size), exits=True, seed=0)
    return network.eval()


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@functools.cache
def macs_of_exits(name: str, classes: int = 100, size: int = 32) -> tuple[list[int], int]:
    with torch.device("meta"):
        return inference_macs(counted(name, classes, size), (3, size, size))


def test_every_network_is_counted():
    assert {*SMALL, *LARGE, "resnet10-slim"} == set(models.names())


@pytest.mark.parametrize("name", SMALL)
def test_parameters_multiply_adds_and_sections(name):
    count, millions, *maps = SMALL[name]
    network = counted(name)
    assert parameters(network.backbone) == count
    if millions is not None:
        assert f"{macs_of_exits(name)[0][-1] / 1e6:.3f}" == millions
    found = network.maps(torch.zeros(1, 3, 32, 32, device="meta"))
    assert [tuple(m.shape) for m in found] == [(1, channels, side, side) for channels, side in maps]
    assert network.exit_count == len(maps)


@pytest.mark.parametrize("name", LARGE)
def test_the_forms_for_imagenet_are_torchvisions(name):
    count, billions = LARGE[name]
    assert parameters(counted(name, 1000, 224).backbone) == count
    assert f"{macs_of_exits(name, 1000, 224)[0][-1] / 1e9:.3f}" == billions


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet18", 11_173_962),
        ("resnet20-a", 269_722),
        ("vgg19-bn", 20_040_522),
        ("googlenet", 6_166_250),
        ("pyramidnet110-270", 28_485_477),
    ],
)
def test_parameters_at_ten_classes(name, count):
    assert parameters(counted(name, classes=10).backbone) == count


def test_the_exits_of_resnet50_are_those_of_byots_code():
    assert parameters(counted("resnet50")) == 26_732_752
    each, whole = macs_of_exits("resnet50")
    assert [f"{m / 1e6:.3f}" for m in each] == ["274.604", "580.788", "1047.405", "1298.014"]
    assert f"{whole / 1e6:.3f}" == "1391.952"


@pytest.mark.parametrize(
    ("name", "ratios"),
    [
        ("resnet50", ["4.73", "2.23", "1.24", "1.00"]),
        ("resnet101", ["9.14", "4.32", "1.11", "1.00"]),
        ("resnet152", ["13.56", "4.30", "1.07", "1.00"]),
    ],
)
def test_what_the_exits_save(name, ratios):
    each, _ = macs_of_exits(name)
    assert [f"{each[-1] / m:.2f}" for m in each] == ratios


# one of each form; the others differ from it in depth or width alone
FORMS = (
    "resnet10-slim resnet18 resnet50 resnet20 resnet20-a vgg19-bn resnext29-4x64d wrn16-4 wrn28-10 pyramidnet101-240 "
    "preact-resnet18 mobilenetv2 shufflenetv2 googlenet densenet121 resnet18-imagenet resnet50-imagenet"
)


@pytest.mark.parametrize("name", FORMS.split())
def test_one_row_of_logits_an_image_whatever_its_size(name):
    for channels, size in ((3, 32), (3, 48), (3, 64), (1, 28)):
        network = counted(name, classes=7, size=size, channels=channels)
        outputs = network(torch.zeros(2, channels, size, size, device="meta"))
        assert {tuple(found.shape) for found in outputs.logits} == {(2, 7)}
        assert len(outputs.logits) == len(outputs.maps)


@pytest.mark.parametrize("name", FORMS.split())
def test_exits_fit_images_of_any_proportion(name):
    """An exit's kernel is the ratio of heights by that of widths: with one number, of the widths, it was larger
    than the map of a low and wide image."""
    for size in ((33, 47), (128, 64), (16, 256), (64, 24)):
        with torch.device("meta"):
            network = models.build(name, channels=3, classes=7, size=size, exits=True, seed=0).eval()
        outputs = network(torch.zeros(2, 3, *size, device="meta"))
        assert {tuple(found.shape) for found in outputs.logits} == {(2, 7)}
        for shallow, found in zip(network.exits, outputs.maps, strict=False):
            made, wanted = shallow.bottleneck(found).shape[2:], outputs.maps[-1].shape[2:]
            # of odd sizes the ratio is rounded down
            assert all(side <= found_side < 2 * side for found_side, side in zip(made, wanted, strict=True)), size


@pytest.mark.parametrize("name", models.names())
def test_a_step_reaches_every_parameter_and_exits_agree_with_the_whole(name):
    network = models.build(name, channels=1, classes=5, size=(16, 16), exits=True, seed=0)
    images = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(4)
    losses = [torch.nn.functional.cross_entropy(logits, targets) for logits in network(images).logits]
    sum(losses).backward()
    unreached = [k for k, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert unreached == []
    assert all(p.grad.abs().sum() > 0 for p in network.backbone.classifier.parameters())
    network.eval()
    with torch.no_grad():
        outputs = network(images)
        logits = outputs.logits
        # a ReLU before the classifier, but in the one network whose public code has none there
        assert (outputs.maps[-1].min() >= 0) == (name != "preact-resnet18")
        for i in {0, len(logits) - 1}:
            torch.testing.assert_close(network.until(images, i), logits[i], rtol=0, atol=0)


def test_shortcuts_without_parameters_drop_pixels_or_average_them_and_append_zeros():
    x = torch.arange(2 * 3 * 4 * 4.0).reshape(2, 3, 4, 4)
    dropped = PaddedShortcut(5, 2)(x)
    assert torch.equal(dropped[:, :3], x[:, :, ::2, ::2])
    assert dropped.shape == (2, 5, 2, 2)
    assert not dropped[:, 3:].any()
    block = PyramidBlock(3, 5, 2, bottleneck=False).eval()
    torch.nn.init.zeros_(block.residual[-1].weight)
    assert torch.equal(block(x)[:, :3], torch.nn.functional.avg_pool2d(x, 2))
    assert not block(x)[:, 3:].any()
    assert block(torch.rand(2, 3, 5, 5)).shape == (2, 5, 3, 3)  # odd sizes are rounded up


@torch.no_grad()
@pytest.mark.parametrize(
    ("block", "last"),
    [
        (BasicBlock(8, 8, 1), "bn2"),
        (BasicBlock(8, 8, 1, padded=True), "bn2"),
        (Bottleneck(8, 8, 1, inner=4, groups=2), "residual.2.1"),
        (PreActBlock(8, 8, 1), "conv2"),
        (PyramidBlock(8, 8, 1, bottleneck=False), "residual.5"),
        (PyramidBlock(8, 2, 1, bottleneck=True), "residual.8"),
        (InvertedResidual(8, 8, 1, 6), "residual.2.1"),
    ],
    ids=lambda value: getattr(value, "_get_name", str)(),
)
def test_a_block_whose_last_layer_is_zero_is_the_identity(block, last):
    x = torch.rand(2, 8, 6, 6)
    assert not torch.equal(block(x), x)
    torch.nn.init.zeros_(block.get_submodule(last).weight)
    assert torch.equal(block(x), x)


@torch.no_grad()
def test_half_the_channels_pass_a_shuffle_unit_and_come_out_between_the_others():
    x = torch.rand(2, 8, 6, 6)
    y = ShuffleUnit(8, 8, 1)(x)
    assert torch.equal(y[:, 0::2], x[:, :4])
    assert not torch.equal(y[:, 1::2], x[:, 4:])


@torch.no_grad()
def test_a_dense_layer_appends_to_its_input():
    x = torch.rand(2, 8, 6, 6)
    y = DenseLayer(8, 3)(x)
    assert y.shape == (2, 11, 6, 6)
    assert torch.equal(y[:, :8], x)


@pytest.mark.parametrize("family", [path.stem for path in models.families()])
def test_a_familys_card_has_a_row_for_each_of_its_networks_with_its_numbers(family):
    rows = re.findall(r"^\| `([^`]+)` \|(.*)\|$", models.card(family), re.M)
    assert [name for name, _ in rows] == list(models.entries(models.FOLDER / f"{family}.py"))
    for name, row in rows:
        form = (1000, 224) if name in LARGE else ()
        network, (each, _) = counted(name, *form), macs_of_exits(name, *form)
        sections, width, count, millions, saved = [cell.strip() for cell in row.split("|")][1:6]
        assert sections == str(len(network.backbone.sections)), name
        assert width == str(network.exits[0].bottleneck[0].out_channels), name
        assert count == f"{parameters(network.backbone):,}", name
        assert millions == f"{each[-1] / 1e6:,.3f}", name
        assert saved == ", ".join(f"{each[-1] / m:.2f}" for m in each[:-1]), name


def test_every_card_is_of_a_family_and_the_guide_links_it():
    families = {path.stem for path in models.families()}
    assert {path.stem for path in models.FOLDER.glob("*.md")} == families
    assert not families & {"sections", "layers", "trained", "from_timm", "bifpn"}
    guide = (models.FOLDER.parents[2] / "docs/networks.md").read_text()
    assert set(re.findall(r"models/(\w+)\.md", guide)) == families
    assert all(f"`{name}`" in guide for name in models.names())


@pytest.mark.parametrize(
    ("name", "constructor", "further"),
    [
        ("shufflenetv2-imagenet", "shufflenet_v2_x1_0", {}),
        ("googlenet-imagenet", "googlenet", {"aux_logits": False, "init_weights": True}),
    ],
)
@torch.no_grad()
def test_networks_of_torchvisions_modules_say_what_torchvisions_says(name, constructor, further):
    """From the same seed: the same weights, and the same logits to the bit."""
    form = {"channels": 3, "classes": 7, "size": (64, 64), "seed": 2}
    network = models.build(name, **form, exits=True).eval()
    torch.manual_seed(2)
    whole = getattr(import_torchvision().models, constructor)(weights=None, num_classes=7, **further).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(network(images).logits[-1], whole(images))
    grey = models.build(name, **{**form, "channels": 1}, exits=False).eval()
    assert grey(images[:, :1]).logits[0].shape == (2, 7)


def test_a_new_familys_file_is_found_without_a_list(tmp_path, monkeypatch):
    before = models.names()
    for path in models.FOLDER.glob("*.py"):
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "new.py").write_text('NETWORKS = {"newnet": {"class": "New"}}\n')
    monkeypatch.setattr(models, "FOLDER", tmp_path)
    assert sorted(models.names()) == sorted([*before, "newnet"])
    assert models.family_file("newnet") == tmp_path / "new.py"
