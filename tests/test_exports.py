"""A trained network taken away: loaded as a module, as a folder of its own, as ONNX, with its card."""

import ast
import hashlib
import json
import math
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from conftest import ROOT
from made_run import TEST_IMAGES, made_run, seen
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.metrics import accuracy_score
from statsmodels.stats.proportion import proportion_confint
from test_light import run as run_code
from test_light import without  # noqa: F401  (a fixture)
from test_own_networks import EXAMPLE
from test_timm import NAMED

import selfdistill
from selfdistill import methods, models
from selfdistill.cli import main
from selfdistill.data.prepared import Dataset
from selfdistill.exports import card, folder, network, onnx
from selfdistill.models.trained import WeightsError, load_network, predict
from selfdistill.params import read_study
from selfdistill.stages import evaluate
from selfdistill.training.cost import counted_flops, inference_macs

SLIM = {"name": "resnet10-slim", "channels": 1, "classes": 4, "size": [8, 8]}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return made_run(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return seen(SLIM, 7, seed=9)[0]


@pytest.fixture(scope="module")
def wanted(run, pixels) -> torch.Tensor:
    """Logits of every exit, exits x 7 x 4, as the pipeline predicts them."""
    trained, record = load_network(run)
    return predict(trained, Dataset(**record["dataset"]), pixels)


def export(*arguments: str | Path) -> int:
    return main(["export", *map(str, arguments)])


def refused(capsys, *arguments: str | Path) -> str:
    """The one line that a refused export says."""
    assert export(*arguments) == 1
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    return told.err.removeprefix("selfdistill export: ").rstrip()


def under(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- as a module ----


@torch.no_grad()
def test_a_run_loads_as_a_module_that_returns_a_tensor(run, pixels, wanted):
    loaded = selfdistill.load(run)
    assert isinstance(loaded, torch.nn.Module)
    assert not any(module.training for module in loaded.modules())
    assert (loaded.data.classes, loaded.data.size, loaded.exit) == (["a", "b", "c", "d"], [8, 8], "4/4")
    images = loaded.data.normalise(pixels)
    std, mean = loaded.data.std[0], loaded.data.mean[0]
    torch.testing.assert_close(images, (pixels / 255 - mean) / std)
    torch.testing.assert_close(loaded(images), wanted[-1], rtol=0, atol=0)
    torch.testing.assert_close(selfdistill.load(str(run), exits="all")(images), wanted, rtol=0, atol=0)
    torch.testing.assert_close(selfdistill.load(run, pixels=True)(pixels), wanted[-1])
    torch.testing.assert_close(selfdistill.load(run, exit=np.int64(2), pixels=True)(pixels), wanted[1])
    taking = selfdistill.load(run, pixels=True)
    for module, given, said in (
        (taking, pixels / 255, "images of torch.float32 with pixels=True are not allowed; allowed: whole numbers"),
        (loaded, pixels, "images of torch.uint8 with pixels=False are not allowed; allowed: floats"),
        (loaded, images[0], r"images of \[1, 8, 8\] are not allowed; allowed: N x 1 x H x W"),
        (taking, pixels.expand(-1, 3, -1, -1), r"images of \[7, 3, 8, 8\] are not allowed; allowed: N x 1 x H x W"),
    ):
        with pytest.raises(ValueError, match=said):
            module(given)
    assert set(loaded.state_dict()) == set(selfdistill.load(run, pixels=True).state_dict())


@torch.no_grad()
def test_a_network_that_is_cut_at_an_exit_runs_nothing_behind_it(run, pixels):
    macs, _ = inference_macs(load_network(run)[0], (1, 8, 8))
    weights = []
    for exit in (1, 2, 3, 4):
        loaded = selfdistill.load(run, exit=exit)
        with counted_flops(loaded) as flops:
            loaded(loaded.data.normalise(pixels[:1]))
        assert flops.total == 2 * macs[exit - 1]
        weights.append(sum(tensor.numel() for tensor in loaded.state_dict().values()))
    assert weights[0] < weights[1] < weights[2]


def test_the_epoch_that_was_best_on_validation_loads_too(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    weights = load_file(run / "weights.safetensors")
    weights["backbone.classifier.bias"] += 1
    save_file(weights, tmp_path / "run/validation_best.safetensors")
    record = json.loads((run / "run.json").read_text())
    record["validation_best_sha256"] = sha256(tmp_path / "run/validation_best.safetensors")
    (tmp_path / "run/run.json").write_text(json.dumps(record))
    images = torch.zeros(1, 1, 8, 8)
    last, best = (
        selfdistill.load(tmp_path / "run")(images),
        selfdistill.load(tmp_path / "run", selection="validation")(images),
    )
    torch.testing.assert_close(best, last + 1)
    assert export(tmp_path / "run", tmp_path / "best", "--selection", "validation") == 0
    assert torch.equal(selfdistill.load(tmp_path / "best")(images), best)
    assert "Weights of epoch 3, the best on validation images." in (tmp_path / "best/README.md").read_text()
    with pytest.raises(network.ExportError, match="has the weights of selection validation; allowed: this one"):
        selfdistill.load(tmp_path / "best", selection="last")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"exit": 0}, "exit 0: this network has 4 exits; allowed: a whole number, 1 to 4"),
        ({"exit": 5}, "exit 5: this network has 4 exits"),
        ({"exit": True}, "exit True: this network has 4 exits"),
        ({"exit": "2"}, "exit '2': this network has 4 exits"),
        ({"exits": "some"}, "exits: 'some' is not allowed; allowed: 'deepest' or 'all'"),
        ({"exits": "all", "exit": 1}, "exit 1 beside exits='all' is not allowed"),
        ({"selection": "test"}, "selection: 'test' is not allowed; allowed: last or validation"),
    ],
)
def test_what_cannot_be_loaded_so_is_refused_in_a_line(run, arguments, said):
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        selfdistill.load(run, **arguments)
    assert "\n" not in str(caught.value)


def test_a_selection_is_that_of_an_evaluation():
    assert network.WEIGHTS == evaluate.WEIGHTS


@pytest.mark.parametrize("place", ["nowhere", ".", "file"])
def test_a_place_without_a_network_is_refused_in_a_line(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(network.ExportError, match="no trained network") as caught:
        selfdistill.load(tmp_path / place)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / place) in str(caught.value)


def test_a_network_that_finds_persons_is_refused_in_a_line(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    record["dataset"]["pixels_sha256"] = {"query": "", "gallery": ""}
    (tmp_path / "run/run.json").write_text(json.dumps(record))
    with pytest.raises(network.ExportError, match="it was trained to find persons again"):
        selfdistill.load(tmp_path / "run")


# ---- as a folder ----


@torch.no_grad()
def test_a_folder_opens_elsewhere_and_without_the_extras(run, tmp_path, pixels, wanted, without):  # noqa: F811
    assert export(run, tmp_path / "out") == 0
    assert set(under(tmp_path / "out")) == {"README.md", "config.json", "model.safetensors"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    torch.testing.assert_close(selfdistill.load(tmp_path / "out", exits="all", pixels=True)(pixels), wanted)
    save_file({"pixels": pixels}, tmp_path / "pixels.safetensors")
    code = """
import selfdistill
from safetensors.torch import load_file
network = selfdistill.load("out", pixels=True)
print(network(load_file("pixels.safetensors")["pixels"]).argmax(dim=1).tolist())
"""
    done = run_code(without + code, tmp_path)
    assert done.stdout.strip() == str(wanted[-1].argmax(dim=1).tolist()), done.stderr
    done = run_code(without + "from selfdistill.cli import main; sys.exit(main())", tmp_path, "export", "out", "o.onnx")
    line = "selfdistill export: onnx is not installed; what ONNX needs comes with: pip install 'selfdistill[export]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", line)
    assert not (tmp_path / "o.onnx").exists()


def test_what_is_exported_from_an_exported_folder_says_the_same(run, tmp_path):
    assert export(run, tmp_path / "a/out") == export(tmp_path / "a/out", tmp_path / "b/out") == 0
    assert under(tmp_path / "a") == under(tmp_path / "b")


def test_a_network_file_of_a_users_own_goes_with_it(tmp_path, capsys):
    study = tmp_path / "study"
    (study / "own").mkdir(parents=True)
    (study / "own/mine.py").write_text(EXAMPLE)
    form = {"name": "threestage", "channels": 1, "classes": 4, "size": [8, 8]}
    own = [study / "own/mine.py"]
    trained = models.build("threestage", **{k: v for k, v in form.items() if k != "name"}, exits=True, seed=3, own=own)
    folder = study / "results/runs/threestage/plain/0"
    folder.mkdir(parents=True)
    save_file(trained.state_dict(), folder / "weights.safetensors")
    hashes = dict.fromkeys(("weights_sha256", "validation_best_sha256"), sha256(folder / "weights.safetensors"))
    told = {"members": {}, "kept": {}, "model": "threestage", "method": "plain", "seed": 0}
    data = {
        "name": "made",
        "classes": ["a", "b", "c", "`d`\n"],
        "channels": 1,
        "size": [8, 8],
        "mean": [0.5],
        "std": [0.3],
    }
    data |= {"pixels_sha256": {}, "counts": {}}
    record = {**hashes, **told, "network": {**form, "exits": True, "own": ["own/mine.py"]}, "dataset": data}
    (folder / "run.json").write_text(json.dumps(record))
    assert export(folder, tmp_path / "out") == 0
    shutil.rmtree(study)
    images = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(selfdistill.load(tmp_path / "out")(images), trained.eval()(images).logits[-1])
    text = (tmp_path / "out/README.md").read_text()
    assert "No predictions of test images were stored" in text
    assert "No catalogue that describes the data" in text
    capsys.readouterr()
    with open(tmp_path / "out/own/mine.py", "a") as file:
        file.write("\n")
    assert refused(capsys, tmp_path / "out", tmp_path / "b").endswith(
        "own/mine.py: not the file that was exported; export the network again"
    )


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def changed(**keys):
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **keys}))

    return change


DAMAGE = {
    "a byte of its weights": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-1] + b"x"),
        "its SHA-256 is",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "No such file"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "list in place of an object"),
    "another format": (changed(format=2), "format 2; allowed: 'selfdistill 1'"),
    "no network": (changed(network=3), "not what `selfdistill export` writes (network)"),
    "no such network": (changed(network={**SLIM, "exits": True, "name": "nothing"}), "is no network"),
    "another selection": (changed(selection="test"), "(selection 'test'; allowed: last or validation)"),
    "a selection that is a list": (changed(selection=[]), "(selection []; allowed: last or validation)"),
    "no selection": (changed(selection=None), "(selection None; allowed: last or validation)"),
    "results that are no numbers": (
        changed(reached=[{"exit": "1/4", "right": 1, "images": 2, "nll": math.nan, "ece": 0.1, "macs": 1}]),
        "(NaN in place of a number)",
    ),
    "own files that are elsewhere": (
        changed(network={**SLIM, "exits": True, "own": ["../mine.py"]}),
        "network.own: '../mine.py' is not allowed",
    ),
    "results that are none": (
        changed(reached=[{"exit": "1/4"}]),
        "a card cannot be written from its record (no 'right')",
    ),
    "a method that is none": (changed(method="byod"), "byod"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_folder_is_refused_in_a_line(run, tmp_path, capsys, case):
    assert export(run, tmp_path / "out") == 0
    capsys.readouterr()
    change, said = DAMAGE[case]
    change(tmp_path / "out")
    line = refused(capsys, tmp_path / "out", tmp_path / "new")
    assert said in line
    assert line.startswith(str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# ---- what is there already ----


def test_nothing_is_replaced_unless_it_is_asked_for(run, tmp_path, capsys):
    assert export(run, tmp_path / "out") == export(run, tmp_path / "out.onnx", "--exit", "1") == 0
    before = under(tmp_path)
    capsys.readouterr()
    assert (
        refused(capsys, run, tmp_path / "out")
        == f"{tmp_path}/out: there already; name another folder, or give --force to replace it"
    )
    assert refused(capsys, run, tmp_path / "out.onnx").startswith(f"{tmp_path}/out.onnx: there already")
    (tmp_path / "card.md").write_text("mine")
    (tmp_path / "net.onnx").mkdir()
    (tmp_path / "mine.onnx").write_text("mine")
    for force in ((), ("--force",)):  # nothing but what an export left is replaced
        for out, there in (("card.onnx", "card.md"), ("net.onnx", "net.onnx"), ("mine.onnx", "mine.onnx")):
            said = refused(capsys, run, tmp_path / out, *force)
            assert said == f"{tmp_path / there}: there, and not what an earlier export left; name another file"
    assert under(tmp_path) == {**before, "card.md": b"mine", "mine.onnx": b"mine"}
    (tmp_path / "out/README.md").write_text("mine")
    (tmp_path / "out.md").write_text((tmp_path / "out.md").read_text() + "notes")
    assert export(run, tmp_path / "out", "--force") == export(run, tmp_path / "out.onnx", "--exit", "1", "--force") == 0
    assert under(tmp_path) == {**before, "card.md": b"mine", "mine.onnx": b"mine"}, "the same bytes again"


def test_a_folder_of_something_else_is_never_replaced(run, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/diary.txt").write_text("dear")
    (tmp_path / "file").write_text("dear")
    (tmp_path / "link").symlink_to("mine")
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.json").write_text('{"format": "another"}')
    assert export(run, tmp_path / "more") == 0
    (tmp_path / "more/notes.txt").write_text("dear")
    capsys.readouterr()
    before = under(tmp_path)
    for name in ("mine", "file", "link", "config", "more"):
        said = refused(capsys, run, tmp_path / name, "--force")
        assert said.startswith(f"{tmp_path / name}: there, and no folder that was exported")
    assert under(tmp_path) == before
    (tmp_path / "empty").mkdir()
    assert export(run, tmp_path / "empty") == 0


def test_what_cannot_be_replaced_stays_where_it_is(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/file").write_text("dear")
    with pytest.raises(FileNotFoundError):
        folder.replace(tmp_path / "nothing", tmp_path / "out", tmp_path / "old")
    assert under(tmp_path) == {"out/file": b"dear"}


def test_predictions_of_other_weights_are_no_results_of_a_card(run, tmp_path, capsys):
    shutil.copytree(run.parents[5] / "results", tmp_path / "results")
    record = tmp_path / "results/predictions/resnet10-slim/byot/0.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "weights_sha256": "0" * 64}))
    folder = tmp_path / run.relative_to(run.parents[5])
    assert refused(capsys, folder, tmp_path / "out").startswith(f"{record}: predictions of other weights than those in")
    assert not (tmp_path / "out").exists()


def test_an_export_that_fails_leaves_nothing(run, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()
    for out in ("file/out", "file/out.onnx"):
        assert (
            refused(capsys, run, tmp_path / out)
            == f"{tmp_path / out}: {tmp_path}/file is no folder; name another place"
        )
    assert "allowed: such as network.onnx" in refused(capsys, run, tmp_path / ".onnx")
    assert "--exit 1: a folder holds every exit" in refused(capsys, run, tmp_path / "out", "--exit", "1")
    assert "exit 7: this network has 4 exits; allowed" in refused(capsys, run, tmp_path / "out.ONNX", "--exit", "7")
    monkeypatch.setattr(onnx, "TOLERANCE", -1.0)
    assert "ONNX Runtime and PyTorch differ by" in refused(capsys, run, tmp_path / "out.onnx", "--exit", "1")
    monkeypatch.setattr(card, "CARD", "{nothing}")
    assert "a card cannot be written from its record (no 'nothing')" in refused(capsys, run, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# ---- as ONNX ----


def held_against_pytorch(opened: network.Opened, exit: int, folder: Path) -> None:
    """Exports one exit, and compares batches of several sizes within 1e-4 of the largest logit."""
    loaded = opened.cut(exit)
    content = onnx.onnx_bytes(loaded, onnx.metadata(opened, loaded), folder / "out.onnx")
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(1)
    for count in (1, 2, 5):
        images = torch.randn(count, loaded.data.channels, *loaded.data.size, generator=generator)
        with torch.no_grad():
            logits = opened.network(images).logits[exit - 1]
        found = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
        assert (found - logits).abs().max() <= 1e-4 * logits.abs().max()


def fresh(name: str, size: int) -> network.Opened:
    """A network that was not trained.  The logits of a deep one are up to 1e10; with the statistics of a batch they
    would be 1, but PyTorch's own would be 1e-4 from those in double precision."""
    made = models.build(name, channels=3, classes=10, size=(size, size), exits=True, seed=0)
    data = Dataset("made", list("abcdefghij"), 3, (size, size), [0.5] * 3, [0.2] * 3, {})
    return network.Opened(made.eval(), data, {"model": name, "method": "byot"}, "last", Path(), "0" * 64, {})


@pytest.mark.parametrize("exit", [1, 4])
def test_an_exit_comes_out_of_onnx_runtime_as_of_pytorch(run, tmp_path, exit):
    held_against_pytorch(network.open_network(run), exit, tmp_path)


# quicker: the test above, of one network and two exits, and the test below, of a network of timm
@pytest.mark.nightly
@pytest.mark.parametrize("name", models.names())
def test_every_exit_of_every_network_comes_out_of_onnx_runtime_as_of_pytorch(name, tmp_path):
    opened = fresh(name, 64 if "imagenet" in name else 32)
    for exit in range(1, opened.exits + 1):
        held_against_pytorch(opened, exit, tmp_path)


# named networks of timm, and an exit, that every run of the tests exports
QUICK = {"resnet18": 1, "vit_tiny_patch16_224": 1}


@pytest.mark.parametrize("name", QUICK)
def test_an_exit_of_a_network_of_timm_comes_out_of_onnx_runtime_as_of_pytorch(name, tmp_path):
    held_against_pytorch(fresh(f"timm:{name}", 32), QUICK[name], tmp_path)


# quicker: the test above, of two of them
@pytest.mark.nightly
@pytest.mark.parametrize("name", NAMED.split())
def test_every_exit_of_twelve_networks_of_timm_comes_out_of_onnx_runtime_as_of_pytorch(name, tmp_path):
    opened = fresh(f"timm:{name}", 224 if name == "mixer_s32_224" else 32)
    for exit in range(1, opened.exits + 1):
        held_against_pytorch(opened, exit, tmp_path)


def test_an_onnx_file_says_how_it_is_used(run, tmp_path, pixels, wanted, monkeypatch):
    """By the code of its card alone, without this package."""
    assert export(run, tmp_path / "out.onnx", "--exit", "2") == 0
    text = (tmp_path / "out.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert "selfdistill" not in code
    monkeypatch.chdir(tmp_path)
    exec(code, scope := {"pixels": pixels.numpy()})
    np.testing.assert_allclose(scope["logits"], wanted[1].numpy(), atol=1e-4)
    assert scope["classes"] == ["a", "b", "c", "d"]
    told = scope["told"]
    assert told["weights_sha256"] == sha256(run / "weights.safetensors")
    assert (told["exit"], told["size"], told["channels"], told["data"]) == ("2/4", "[8, 8]", "1", "made")
    (inputs,), (outputs,) = scope["session"].get_inputs(), scope["session"].get_outputs()
    assert (inputs.name, inputs.shape, outputs.shape) == ("images", ["batch", 1, 8, 8], ["batch", 4])
    assert "Cut at exit 2/4" in text
    assert "| 2/4 |" in text
    assert "| 3/4 |" not in text


# ---- the card ----


def test_a_card_says_where_a_network_is_from_and_what_it_reaches(run, tmp_path):
    assert export(run, tmp_path / "out") == 0
    text = (tmp_path / "out/README.md").read_text()
    predictions = load_file(run.parents[5] / "results/predictions/resnet10-slim/byot/0.safetensors")
    for i, logits in enumerate(predictions["last"]):
        share = accuracy_score(predictions["labels"], logits.argmax(dim=1))
        low, high = proportion_confint(round(share * TEST_IMAGES), TEST_IMAGES, method="wilson")
        assert f"| {i + 1}/4 | {100 * share:.2f} | {100 * low:.2f} to {100 * high:.2f} |" in text
    for words in (
        f"SHA-256 `{sha256(run / 'weights.safetensors')}`",
        f"SHA-256 `{'c' * 64}`",
        "Be Your Own Teacher, arXiv 1905.08094; seed 0. Weights of the last epoch.",
        "Made images, 8x8 (`made`); 160 to train; 120 to validate.",
        "Licence: CC0 1.0. Cite: Nobody, Made images, 2026.",
        f"on {TEST_IMAGES} test images",
        '`{"alpha": 0.1}`',
        'selfdistill.load("out")',
        "Teacher: none that was trained before.",
        "The paper itself could not be read in full",
        "Values: set by hand",
    ):
        assert words in text, words


def test_a_card_says_what_the_method_is_read_from_who_taught_and_that_values_were_searched(run, tmp_path):
    shutil.copytree(run, tmp_path / "sd-tuned")
    record = json.loads((run / "run.json").read_text())
    told = {"method": "sd", "variant": "sd-tuned", "teacher": "plain", "teacher_sha256": "a" * 64}
    (tmp_path / "sd-tuned/run.json").write_text(json.dumps(record | told))
    out = tmp_path / 'a "b`c.x\udcff'
    assert export(tmp_path / "sd-tuned", out) == export(out, tmp_path / "again") == 0
    for place in (out, tmp_path / "again"):
        text = (place / "README.md").read_text()
        for words in (
            "Its authors withdrew it",
            "our reading of two abstracts",
            f'Teacher: `"resnet10-slim/plain"`, the same seed; SHA-256 of its weights `"{"a" * 64}"`.',
            "Values: the best of a search on validation images",
        ):
            assert words in text, words
    text = (out / "README.md").read_text()
    assert "b`c" not in text, "it would end the code"
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert ast.literal_eval(re.search(r"selfdistill.load\((.*)\)  ", code)[1]) == out.name
    ast.parse(card.USE_ONNX.format(name=card.literal(out.name), channels=1, height=8, width=8, classes=4)[10:-3])
    assert "Paper: not told." not in map(card.source_of, methods.names())


@pytest.mark.parametrize(("right", "images"), [(0, 10), (10, 10), (1, 3), (911, 1000), (5, 5000)])
def test_intervals_are_wilsons(right, images):
    assert card.wilson(right, images) == pytest.approx(proportion_confint(right, images, method="wilson"), abs=1e-12)


def test_weights_that_were_exchanged_are_not_taken_away(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    save_file({"a": torch.zeros(1)}, tmp_path / "run/weights.safetensors")
    assert "its SHA-256 is" in refused(capsys, tmp_path / "run", tmp_path / "out")
    with pytest.raises(WeightsError):
        selfdistill.load(tmp_path / "run")


# ---- the guide, and names for DVC ----


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "docs/taking-it-away.md").read_text(), re.M | re.S)


def test_the_guide_runs_as_printed(tmp_path, monkeypatch, capsys):
    made_run(tmp_path, block="0-9")
    monkeypatch.chdir(tmp_path)
    (python,) = blocks("python")
    exec(compile(python, "taking-it-away.md", "exec"), {})
    told, *shapes = capsys.readouterr().out.splitlines()
    assert set(ast.literal_eval(told)) <= set("abcd")
    assert shapes == ["torch.Size([4, 5, 4])", "torch.Size([5, 4])"]
    folder, files, early, _ = blocks("sh")
    for command in (folder + files).splitlines():
        assert main(shlex.split(command)[1:]) == 0
    assert set(under(tmp_path / "away")) == {
        *("byot-exit2.md", "byot-exit2.onnx", "byot.md", "byot.onnx"),
        *("byot/README.md", "byot/config.json", "byot/model.safetensors"),
    }
    Path("photos").mkdir()
    for i, image in enumerate(seen(SLIM, 6, seed=3)[0]):
        Image.fromarray(image[0].numpy()).save(f"photos/{i}.png")
    capsys.readouterr()
    for command in early.splitlines():
        assert main(shlex.split(command)[1:]) == 0
        done = capsys.readouterr()
        assert len(done.out.splitlines()) == 6
        assert "million multiply-adds an image on average, 6 images" in done.err


# quicker: the next test, of the names, without a network that is fetched by one
@pytest.mark.nightly
def test_a_network_is_fetched_by_its_name_as_the_guide_says(project):
    listing, names = project / "workflow/networks/dvc.yaml", blocks("sh")[-1]
    listing.write_text(listing.read_text().replace("/0-9/", "/0-1/"))  # this study's block
    assert project.changed() == set()
    assert project.run("dvc", "status", "--json", "workflow/networks/dvc.yaml").stdout.strip() == "{}"
    project.commit("names of this study's networks")
    project.run("sh", "-e", "-c", names)
    run, images = project / "results/runs/resnet10-slim/byot/0-1/0", torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        found, there = (selfdistill.load(place)(images) for place in (project / "fetched", run))
    assert torch.equal(found, there)


def test_the_names_for_dvc_are_of_the_default_studys_networks():
    """Of every variant as published, below an output that its lock has."""
    artifacts = yaml.safe_load((ROOT / "workflow/networks/dvc.yaml").read_text())["artifacts"]
    study, lock = read_study(ROOT / "params.yaml"), yaml.safe_load((ROOT / "dvc.lock").read_text())
    outputs = {out["path"] for stage in lock["stages"].values() for out in stage.get("outs", ())}
    assert list(artifacts) == study.published
    for name, artifact in artifacts.items():
        folder = study.run_folder(study.models[0], name, 0)
        assert artifact["path"] == f"../../{folder}"
        assert folder.parent.as_posix() in outputs
