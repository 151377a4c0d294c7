"""A network file and trained weights of a user's own in a study."""

import hashlib
import json
import os
import re
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from selfdistill import models
from selfdistill.models import trained

GUIDE = (Path(__file__).parents[1] / "docs" / "networks.md").read_text()
EXAMPLE = re.search(r"```python\n(.*?)```", GUIDE, re.DOTALL).group(1)


def test_the_guides_network_trains_in_a_study_from_given_weights(project):
    (project / "own").mkdir()
    (project / "own/mine.py").write_text(EXAMPLE)
    form = {"channels": 1, "classes": 10, "size": (8, 8), "exits": False}
    network = models.build("threestage", **form, seed=5, own=[project / "own/mine.py"])
    save_file(network.state_dict(), project / "own/start.safetensors")
    sha256 = hashlib.sha256((project / "own/start.safetensors").read_bytes()).hexdigest()
    content = yaml.safe_load((project / "params.yaml").read_text())
    content |= {"own": "own", "models": ["threestage"], "methods": ["plain"], "students": []}
    content["weights"] = {"threestage": {"file": "own/start.safetensors", "sha256": sha256, "use": "start"}}
    content["recipe"]["learning_rate"] = 1e-12  # what it ends with is what it began with
    content["recipe"]["weight_decay"] = 0.0
    (project / "params.yaml").write_text(yaml.safe_dump(content))
    project.run("selfdistill", "check")
    project.run("dvc", "repro", "--quiet", "train@threestage-plain-0-1")
    run = project / "results/runs/threestage/plain/0-1/0"
    weights = load_file(run / "weights.safetensors")
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and "running" not in name:
            torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-9)
    assert json.loads((run / "run.json").read_text())["weights"]["sha256"] == sha256
    assert "train@threestage-plain-0-1" not in project.changed()
    (project / "own/mine.py").write_text(EXAMPLE.replace("nn.ReLU()", "nn.SiLU()"))
    project.run("dvc", "repro", "--quiet", "check")
    assert "train@threestage-plain-0-1" in project.changed()


def own_class(body: str) -> str:
    """A network file whose class has this as its body of `__init__`, after the parts that are in order."""
    return (
        "from torch import nn\nNETWORKS = {'mine': {'class': 'Mine'}}\nclass Mine(nn.Module):\n"
        "    def __init__(self, channels, classes):\n        super().__init__()\n"
        "        self.stem = nn.Conv2d(channels, 4, 3)\n        self.sections = nn.ModuleList([nn.Conv2d(4, 4, 1)])\n"
        f"        self.classifier = nn.Linear(4, classes)\n        {body}\n"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def broken(:\n", "line 1: no valid Python"),
        ("x = 1\n", "no NETWORKS in it"),
        ("NETWORKS = {n: {} for n in 'ab'}\n", "NETWORKS is no literal"),
        ("NETWORKS = {'mine': 3}\n", "NETWORKS: allowed"),
        ("NETWORKS = {'mine': {'class': 'Mine'}}\n", "no class 'Mine'"),
        ("NETWORKS = {'mine': {'class': 'Mine'}}\nimport nothing_of_this_name\n", "ModuleNotFoundError while"),
        (
            "NETWORKS = {'mine': {'class': 'Mine'}}\nclass Mine:\n    pass\n",
            "images of 1 x 8 x 8 (TypeError: Mine() takes no",
        ),
        ("NETWORKS = {'resnet18': {'class': 'Mine'}}\n", "'resnet18' is a network of resnet.py, too"),
        (
            "from torch import nn\nNETWORKS = {'mine': {'class': 'Mine'}}\nclass Mine(nn.Module):\n"
            "    def __init__(self, channels, classes):\n        super().__init__()\n",
            "no stem; allowed: a module with stem, sections and classifier",
        ),
        ("NETWORKS = {'mine': {'class': 'Mine'}}\ndef Mine(**_):\n    return 3\n", "int is no torch.nn.Module"),
        (own_class("raise RuntimeError('wide\\nand long')"), "(RuntimeError: wide)"),
        (own_class("raise AssertionError"), "(AssertionError: )"),
        (own_class("del self.sections; self.sections = [nn.Conv2d(4, 4, 1)]"), "sections is no torch.nn.Module"),
        (own_class("self.sections = nn.ModuleList()"), "sections is no torch.nn.ModuleList of at least one section"),
        (own_class("self.sections.append(nn.Flatten())"), "sections[1] gives [1, 144]; allowed: a map N x C x H x W"),
        (own_class("self.classifier = nn.Linear(4, 3)"), "classifier gives [1, 3]; allowed: logits [1, 2]"),
        (own_class("self.classifier = nn.Linear(5, classes)"), "cannot be multiplied"),
        (own_class("self.stem = nn.Conv2d(channels, 4, 9)"), "RuntimeError: Calculated padded input size"),
        ("NETWORKS = {'../mine': {'class': 'Mine'}}\n", "'../mine' is no name; allowed: letters, digits"),
        ("NETWORKS = {3: {'class': 'Mine'}}\n", "3 is no name; allowed: letters, digits"),
        ("NETWORKS = {'mine': {'class': 'A'}, 'mine': {'class': 'B'}}\n", "a name stands there twice"),
        ("NETWORKS = {[]: {'class': 'Mine'}}\n", "NETWORKS is no literal"),
        ("NETWORKS: dict\n", "NETWORKS: allowed"),
        ("NETWORKS = {'mine': {'class': 'Mine'}}\n\0", "no valid Python"),
    ],
)
def test_a_network_file_that_is_none_is_refused_in_a_line(tmp_path, text, said):
    (tmp_path / "mine.py").write_text(text)
    own = [tmp_path / "mine.py"]

    def use() -> None:
        models.names(own=own)
        models.build("mine", channels=1, classes=2, size=(8, 8), exits=False, seed=0, own=own)

    with pytest.raises(models.NetworkError, match=re.escape(said)) as caught:
        use()
    assert "mine.py" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "said"), [("none.py", "no such file"), (".", "no such file")])
def test_a_network_file_that_is_not_there_is_refused_in_a_line(tmp_path, name, said):
    with pytest.raises(models.NetworkError, match=said):
        models.names(own=[tmp_path / name])


def test_the_name_of_two_own_files_networks_is_refused(tmp_path):
    for file in ("a.py", "b.py"):
        (tmp_path / file).write_text("NETWORKS: dict = {'mine': {'class': 'Mine'}}\n")
    with pytest.raises(models.NetworkError, match=r"b\.py: 'mine' is a network of a\.py, too; choose another name"):
        models.names(own=[tmp_path / "a.py", tmp_path / "b.py"])


def run_folder(tmp_path: Path) -> Path:
    """What training leaves of a small network."""
    form = {"name": "resnet10-slim", "channels": 1, "classes": 3, "size": [8, 8], "exits": False}
    state = trained.build(form, 0).state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "weights.safetensors")
    record = {"network": form, "dataset": {}, "members": {}, "kept": {}}
    record |= dict.fromkeys(("weights_sha256", "validation_best_sha256"), sha256_of(tmp_path))
    (tmp_path / "run.json").write_text(json.dumps(record))
    return tmp_path


def sha256_of(folder: Path) -> str:
    return hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()


def test_a_flipped_byte_in_weights_is_noticed_where_they_are_read(tmp_path):
    folder = run_folder(tmp_path)
    trained.load_network(folder)
    content = bytearray((folder / "weights.safetensors").read_bytes())
    content[-3] ^= 1
    (folder / "weights.safetensors").write_bytes(content)
    with pytest.raises(
        trained.WeightsError, match=r"weights.safetensors: its SHA-256 is [0-9a-f]{64}, not [0-9a-f]{64}"
    ):
        trained.load_network(folder)


BROKEN = {
    "a tensor less": (lambda state: state.pop("backbone.classifier.bias"), "lacks 1 of the network's 74 tensors"),
    "a tensor more": (
        lambda state: state.update(extra=torch.zeros(1)),
        "has further 1 tensors beside the",
    ),
    "another shape": (
        lambda state: state.update({"backbone.classifier.bias": torch.zeros(5)}),
        "has of another shape 1 of the network's 74 tensors, such as backbone.classifier.bias",
    ),
    "integers": (
        lambda state: state.update({"backbone.classifier.bias": torch.zeros(3, dtype=torch.int32)}),
        "has of another kind of number 1 of the network's 74 tensors, such as backbone.classifier.bias",
    ),
    "NaN": (
        lambda state: state["backbone.classifier.bias"].fill_(torch.nan),
        "3 of 3 numbers of backbone.classifier.bias are not finite",
    ),
    "too large for float32": (
        lambda state: state.update({"backbone.classifier.bias": torch.full((3,), 1e200, dtype=torch.float64)}),
        "3 of 3 numbers of backbone.classifier.bias are not finite",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_weights_that_do_not_fit_are_refused_in_a_line(tmp_path, name):
    folder = run_folder(tmp_path)
    state = load_file(folder / "weights.safetensors")
    damage, said = BROKEN[name]
    damage(state)
    save_file(state, folder / "weights.safetensors")
    accept(folder)
    with pytest.raises(trained.WeightsError, match=re.escape(f"weights.safetensors: {said}")) as caught:
        trained.load_network(folder)
    assert "\n" not in str(caught.value)


def accept(folder: Path) -> None:
    """Write the hash of the weights that lie there into run.json, so that only their content is at fault."""
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "weights_sha256": sha256_of(folder)}))


@pytest.mark.parametrize("content", [b"", b"12345678", b"\xff" * 400, None])
def test_a_file_that_is_no_safetensors_is_refused_in_a_line(tmp_path, content):
    folder = run_folder(tmp_path)
    whole = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(trained.WeightsError, match=r"weights.safetensors: its SHA-256 is"):
        trained.load_network(folder)
    accept(folder)
    with pytest.raises(trained.WeightsError, match=r"weights.safetensors: no safetensors file \(") as caught:
        trained.load_network(folder)
    assert "\n" not in str(caught.value)


def test_weights_that_are_missing_or_a_pipe_are_refused_in_a_line(tmp_path):
    folder = run_folder(tmp_path)
    (folder / "weights.safetensors").unlink()
    with pytest.raises(trained.WeightsError, match=r"weights.safetensors: No such file"):
        trained.load_network(folder)
    os.mkfifo(folder / "weights.safetensors")
    with pytest.raises(trained.WeightsError, match=r"weights.safetensors: no regular file"):
        trained.load_network(folder)
    with pytest.raises(trained.WeightsError, match=r"other.safetensors: not of this run; there are weights, valid"):
        trained.load_network(folder, weights="other")


@pytest.mark.parametrize("text", ["null", "[]", "{", "3", '{"weights_sha256": 1}', "[" * 100_000])
def test_a_run_json_that_is_none_is_refused_in_a_line(tmp_path, text):
    folder = run_folder(tmp_path)
    (folder / "run.json").write_text(text)
    with pytest.raises(trained.WeightsError, match=r"run.json: ") as caught:
        trained.load_network(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"network": {}}, "network.name"),
        ({"network": {"size": [0, 8]}}, "network.size"),
        ({"network": {"size": 8}}, "network.size"),
        ({"network": {"classes": True}}, "network.classes"),
        ({"network": {"exits": 1}}, "network.exits"),
        ({"network": {"own": [3]}}, "network.own"),
        ({"network": {"seed": 3}}, "network.seed"),
        ({"members": []}, "members"),
        ({"kept": None}, "kept"),
        ({"dataset": "digits"}, "dataset"),
        ({"weights_sha256": None}, "weights_sha256"),
    ],
)
def test_a_key_of_run_json_that_training_would_not_write_is_named(tmp_path, change, said):
    folder = run_folder(tmp_path)
    record = json.loads((folder / "run.json").read_text())
    if form := change.get("network"):
        change = {"network": record["network"] | form}
    (folder / "run.json").write_text(json.dumps(record | change))
    with pytest.raises(trained.WeightsError, match=rf"run.json: not what training writes \({re.escape(said)}\)"):
        trained.load_network(folder)


def started(tmp_path: Path, name: str, classes: int, change=lambda state: None) -> tuple[list[str], dict, dict]:
    """What stays fresh of a network of 3 classes that starts from one of `classes`, and the states of both."""
    form = {"name": name, "channels": 1, "size": [32, 32], "exits": True}
    state = {k: v.contiguous() for k, v in trained.build({**form, "classes": classes}, 0).state_dict().items()}
    change(state)
    save_file(state, tmp_path / "given.safetensors")
    sha256 = hashlib.sha256((tmp_path / "given.safetensors").read_bytes()).hexdigest()
    network = trained.build({**form, "classes": 3}, 1)
    left = trained.initialise_from(network, tmp_path / "given.safetensors", sha256)
    return left, state, network.state_dict()


@pytest.mark.parametrize("name", ["resnet10-slim", "googlenet-imagenet", "timm:test_resnet"])
def test_a_start_from_weights_leaves_only_classifiers_of_other_classes_fresh(tmp_path, name):
    left, given, found = started(tmp_path, name, classes=3)
    assert left == []
    assert all(torch.equal(given[k], found[k]) for k in found)
    left, given, found = started(tmp_path, name, classes=7)
    exits = len({k.split(".")[1] for k in found if k.startswith("exits.")}) + 1
    assert len(left) == 2 * exits, "a weight and a bias each"
    assert all(torch.equal(given[k], found[k]) == (k not in left) for k in found)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.update({"exits.0.classifier.weight": torch.zeros(7, 5)}), "another shape 1 of"),
        (lambda state: state.update({"backbone.stem.0.weight": torch.zeros(17, 1, 3, 3)}), "another shape 1 of"),
        (lambda state: state.pop("exits.1.classifier.bias"), "lacks 1 of the network's"),
    ],
)
def test_a_start_from_weights_of_another_network_is_refused(tmp_path, change, said):
    with pytest.raises(trained.WeightsError, match=said):
        started(tmp_path, "resnet10-slim", 7, change)


def test_a_start_from_weights_of_another_hash_is_refused(tmp_path):
    folder = run_folder(tmp_path)
    network = trained.build(json.loads((folder / "run.json").read_text())["network"], 0)
    with pytest.raises(trained.WeightsError, match=f"its SHA-256 is {sha256_of(folder)}, not {'0' * 64}"):
        trained.initialise_from(network, folder / "weights.safetensors", "0" * 64)
