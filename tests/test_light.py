"""The light installation: what the wheel holds, and what works beside torch, torchvision and timm alone."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import selfdistill
from selfdistill.errors import EXTRAS, MissingPackageError
from selfdistill.methods import MethodError
from selfdistill.models import NetworkError
from selfdistill.training.method import HyperParameterError

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WITHOUT = """
import sys
from importlib.machinery import PathFinder

class Light(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {absent} else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Light
"""


def brought() -> set[str]:
    """The distributions that the wheel brings without an extra."""
    found: set[str] = set()
    waiting = list(PROJECT["dependencies"])
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        if name not in found and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            found.add(name)
            waiting += requires(name) or []
    return found


@pytest.fixture(scope="module")
def without() -> str:
    """Code that hides all that is installed and that the wheel does not bring."""
    light = brought()
    absent = {
        module
        for module, distributions in packages_distributions().items()
        if module != "selfdistill" and light.isdisjoint(map(canonicalize_name, distributions))
    }
    assert {"pandas", "scipy", "sklearn", "pydantic", "dvc", "snakemake", "seaborn", "matplotlib"} <= absent
    assert absent.isdisjoint({"torch", "torchvision", "timm", "numpy", "PIL", "yaml", "safetensors", "tqdm"})
    return WITHOUT.format(absent=absent)


def run(code: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)


def test_the_guide_to_a_training_loop_of_ones_own_runs_without_the_extra(without, tmp_path):
    guide = (ROOT / "docs/own-training-loop.md").read_text()
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", guide, re.M | re.S))
    done = run(without + code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "'label_smoothing'" in done.stdout


def test_what_a_run_says_of_each_image_is_packed_without_the_extra(without, tmp_path):
    code = """
import hashlib
from pathlib import Path
import torch
from safetensors.torch import save
from selfdistill.reporting import per_image

both = {"last": torch.eye(3)[None], "validation": torch.zeros(1, 3, 3)}
content = save({**both, "labels": torch.arange(3)})
Path("0.safetensors").write_bytes(content)
record = {"evaluation": {"files": {"predictions.safetensors": hashlib.sha256(content).hexdigest()}}}
found = per_image.of_predictions(Path("0.safetensors"), record)
print(found["last"]["correct"].tolist(), per_image.encoded(found)["last"]["nll"]["shape"])
"""
    done = run(without + code, tmp_path)
    assert done.stdout == "[[True, True, True]] [1, 3]\n", done.stderr


def test_without_the_extra_a_command_says_what_to_install(without, tmp_path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    command = without + "from selfdistill.cli import main; sys.exit(main())"
    done = run(command, tmp_path, "check")
    line = (
        "selfdistill check: pydantic is not installed; the pipeline's packages come with: "
        "pip install 'selfdistill[pipeline]'\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", line)
    done = run(command, tmp_path, "predict", "nowhere", "photo.png")
    assert done.returncode == 1
    assert done.stderr.startswith("selfdistill predict: nowhere")
    done = run(command, tmp_path, "methods", "byot")
    assert (done.returncode, done.stderr) == (0, "")


def test_without_scipy_sd_is_refused_in_one_line(without, tmp_path):
    last = run(without + "import selfdistill; selfdistill.create_method('sd')", tmp_path).stderr.splitlines()[-1]
    assert last.startswith("selfdistill.errors.MissingPackageError: scipy is not installed; ")
    assert issubclass(MissingPackageError, ImportError)


def test_the_extra_s_modules_are_those_that_the_package_imports_beside_the_light_ones():
    imported = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module]
            imported |= {name.partition(".")[0] for name in names}
    light = {"torch", "torchvision", "timm", "numpy", "PIL", "yaml", "safetensors", "tqdm"}
    light |= {"networkx"}  # torch's
    optional = {"pillow_heif"}
    assert imported - sys.stdlib_module_names - light - optional - {"selfdistill"} == set().union(*EXTRAS.values())


def test_the_wheel_holds_the_package_and_asks_for_the_light_set(tmp_path):
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    building = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", "wheels", "."]
    subprocess.run([sys.executable, *building], cwd=tmp_path, check=True, timeout=300)
    (file,) = (tmp_path / "wheels").iterdir()
    with zipfile.ZipFile(file) as wheel:
        held = {name for name in wheel.namelist() if name.startswith("selfdistill/")}
        (metadata,) = (wheel.read(name).decode() for name in wheel.namelist() if name.endswith("/METADATA"))
    package = ROOT / "src/selfdistill"
    files = {path.relative_to(ROOT / "src").as_posix() for path in package.rglob("*") if path.is_file()}
    assert held == {name for name in files if "__pycache__" not in name}
    assert {"selfdistill/py.typed", "selfdistill/methods/byot.md", "selfdistill/reporting/page.html"} <= held
    asked = re.findall(r"^Requires-Dist: ([A-Za-z-]+)[^;\n]*$", metadata, re.M)
    assert asked == ["torch", "torchvision", "timm", "numpy", "pillow", "pyyaml", "safetensors", "tqdm"]


def test_the_package_alone_loads_neither_torch_nor_yaml(tmp_path):
    code = "import sys, selfdistill; print([name for name in ('torch', 'yaml', 'numpy') if name in sys.modules])"
    assert run(code, tmp_path).stdout == "[]\n"


def test_methods_and_networks_by_name():
    assert selfdistill.create_method("byot", alpha=0.3).alpha == 0.3
    assert selfdistill.list_methods() == sorted(selfdistill.list_methods())
    selfdistill.list_methods().clear()
    assert "byot" in selfdistill.list_methods()
    assert {"resnet18", "vgg19-bn"} <= set(selfdistill.list_networks())
    network = selfdistill.create_network("resnet10-slim", classes=7, channels=1, exits=False)
    assert network.exit_count == 1
    for wrong, error in (
        (lambda: selfdistill.create_method("byod"), MethodError),
        (lambda: selfdistill.create_method("byot", alpha=2.0), HyperParameterError),
        (lambda: selfdistill.create_network("resnet", classes=10), NetworkError),
        (lambda: selfdistill.create_network("resnet18", classes=0), NetworkError),
        (lambda: selfdistill.create_network("resnet18", classes=10, size=64), NetworkError),
        (lambda: selfdistill.create_network("resnet18", classes=10, size=(32, 0)), NetworkError),
        (lambda: selfdistill.create_network("resnet18", classes=10, own="mine.py"), NetworkError),
    ):
        with pytest.raises(error) as raised:
            wrong()
        assert isinstance(raised.value, ValueError)
        assert "\n" not in str(raised.value)
