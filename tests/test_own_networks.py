"""A network file and trained weights of a user's own in a study."""

import hashlib
import json
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
    project.run("dvc", "repro", "--quiet")
    run = project / "results/runs/threestage/plain/0-1/0"
    weights = load_file(run / "weights.safetensors")
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and "running" not in name:
            torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-9)
    assert json.loads((run / "run.json").read_text())["weights"]["sha256"] == sha256
    assert project.changed() == set()
    (project / "own/mine.py").write_text(EXAMPLE.replace("nn.ReLU()", "nn.SiLU()"))
    project.run("dvc", "repro", "--quiet", "check")
    assert any(stage.startswith("train@threestage") for stage in project.changed())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def broken(:\n", "line 1: no valid Python"),
        ("x = 1\n", "no NETWORKS in it"),
        ("NETWORKS = {n: {} for n in 'ab'}\n", "NETWORKS is no literal"),
        ("NETWORKS = {'mine': 3}\n", "NETWORKS: allowed"),
        ("NETWORKS = {'mine': {'class': 'Mine'}}\n", "no class 'Mine'"),
        ("NETWORKS = {'mine': {'class': 'Mine'}}\nimport nothing_of_this_name\n", "ModuleNotFoundError while"),
        ("NETWORKS = {'mine': {'class': 'Mine'}}\nclass Mine:\n    pass\n", "cannot be made so"),
        ("NETWORKS = {'resnet18': {'class': 'Mine'}}\n", "'resnet18' is a network of resnet.py, too"),
        (
            "from torch import nn\nNETWORKS = {'mine': {'class': 'Mine'}}\nclass Mine(nn.Module):\n"
            "    def __init__(self, channels, classes):\n        super().__init__()\n",
            "no stem; allowed: a module with stem, sections and classifier",
        ),
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
    "a tensor less": lambda state: state.popitem(),
    "a tensor more": lambda state: state.update(extra=torch.zeros(1)),
    "another shape": lambda state: state.update({"backbone.classifier.bias": torch.zeros(5)}),
    "NaN": lambda state: state["backbone.classifier.bias"].fill_(torch.nan),
}


@pytest.mark.parametrize("name", BROKEN)
def test_weights_that_do_not_fit_are_refused_in_a_line(tmp_path, name):
    folder = run_folder(tmp_path)
    state = load_file(folder / "weights.safetensors")
    BROKEN[name](state)
    save_file(state, folder / "weights.safetensors")
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "weights_sha256": sha256_of(folder)}))
    with pytest.raises(
        trained.WeightsError, match=r"weights.safetensors: (lacks|has further|has of another|1|3 of 3)"
    ) as e:
        trained.load_network(folder)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("text", ["null", "[]", "{", "3", '{"weights_sha256": 1}', "[" * 100_000])
def test_a_run_json_that_is_none_is_refused_in_a_line(tmp_path, text):
    folder = run_folder(tmp_path)
    (folder / "run.json").write_text(text)
    with pytest.raises(trained.WeightsError, match=r"run.json: ") as caught:
        trained.load_network(folder)
    assert "\n" not in str(caught.value)
