"""What makes a result stale: the code that it executes, and nothing else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from selfdistill import closure
from selfdistill.files import sha256_of
from selfdistill.params import read_study
from selfdistill.stages import plan

BEFORE = '''
"""A docstring."""
import math
from selfdistill.files import sha256_of


class Thing:
    """Another."""

    rate: float = 0.1

    def double(self, x: int) -> int:
        """A third."""
        # a comment
        return 2 * x if x else f"{x:>{3}}" "tail" f"{self.rate!r}"


async def wait():
    "Only a docstring."
'''


def sha256(folder: Path, text: str) -> str:
    path = folder / "code.py"
    path.write_text(text)
    closure.tree_of.cache_clear()
    closure.executed_sha256.cache_clear()
    return closure.executed_sha256(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""A docstring."""', '"""Rewritten,\n\nwith an equation."""'),
        ('    """Another."""\n', ""),
        ("# a comment", "# another one"),
        ("x: int) -> int:", "x):"),
        ("import math\n", "import math\n\n\n\n"),
        ("return 2 * x if x else", "return (2\n            * x) if x else"),
        ('f"{x:>{3}}" "tail" f"{self.rate!r}"', "f'{x:>{3}}tail{self.rate!r}'"),
    ],
)
def test_words_and_layout_change_no_hash(tmp_path, old, new):
    assert old in BEFORE
    assert sha256(tmp_path, BEFORE.replace(old, new)) == sha256(tmp_path, BEFORE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return 2 * x", "return 3 * x"),
        ("return 2 * x", "return 2.0 * x"),
        ("rate: float = 0.1", "rate: float = 0.10000001"),
        ("rate: float = 0.1", "rate: int = 0.1"),  # a field's type is executed, by dataclasses for one
        ("self.rate!r", "self.rate!s"),
        (":>{3}", ":<{3}"),
        ("tail", "tale"),
        ("def double", "def twice"),
        ("async def", "def"),
        ("import math", "import random"),
        ("(self, x: int)", "(self, x: int = 0)"),
    ],
)
def test_executed_code_changes_the_hash(tmp_path, old, new):
    assert old in BEFORE
    assert sha256(tmp_path, BEFORE.replace(old, new)) != sha256(tmp_path, BEFORE)


def test_the_hash_is_the_one_that_other_versions_of_python_give(tmp_path):
    """3.12, 3.13 and 3.14 give this very hash, too, and one hash over all files of the package (tried 2026-11-26);
    their syntax trees have further fields, and cut the text of an f-string elsewhere."""
    assert sha256(tmp_path, BEFORE) == "f775a8022512d2d66f7a13c7a1a36c99c048147b1539fb1804151af2b10bc539"


def test_the_closure_follows_imports_inside_functions_and_packages():
    names = {closure.name_of(path) for path in closure.closure([closure.PACKAGE / "training" / "engine.py"])}
    assert {"training/engine.py", "training/__init__.py", "models/sections.py", "models/__init__.py"} <= names
    assert not any(name.startswith(("reporting/", "cli", "stages/")) for name in names)


def test_what_a_training_loads_is_in_its_closure(tmp_path):
    """The other way round: import everything that a run imports, and look for files that the closure lacks."""
    script = (
        "import sys; from selfdistill.stages import cell; from selfdistill import closure, methods, models;"
        "methods.load('byot'); models.build('resnet10-slim', channels=1, classes=10, size=(8, 8), exits=True, seed=0);"
        "loaded = {m.__file__ for n, m in sys.modules.items() if n.startswith('selfdistill') and m.__file__};"
        "print('\\n'.join(sorted(loaded)))"
    )
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    roots = [closure.PACKAGE / name for name in ("stages/cell.py", "methods/byot.py", "models/resnet.py")]
    needs = [closure.PACKAGE / "training" / "needs" / "exits.py"]
    known = closure.closure([*roots, *(path for path in needs if path.is_file()), closure.PACKAGE / "closure.py"])
    assert {Path(path) for path in printed} <= known


def test_code_that_is_no_python_is_named(tmp_path):
    (tmp_path / "own.py").write_text("def broken(:\n")
    with pytest.raises(SyntaxError) as raised:
        closure.code_sha256([tmp_path / "own.py"])
    assert closure.invalid(raised.value) == f"{tmp_path}/own.py: line 1: no valid Python: invalid syntax"


LOADED = """
import json, os, sys

read = set()


def note(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and (arguments[1] or "r").strip("bt") == "r":
        read.add(os.path.abspath(arguments[0]))


def modules():
    return {file for module in [*sys.modules.values()] if (file := getattr(module, "__file__", None))}


sys.addaudithook(note)
from selfdistill.cli import main
from selfdistill.cli.common import STUDY, numerics, read_study

numerics(read_study(STUDY))  # what every stage begins with, and what decides whether there is a result, not which
known, seen = modules(), {*read}
code = main([sys.argv[1]])
print(json.dumps([code, sorted(modules() - known), sorted(read - seen)]))
"""


@pytest.mark.parametrize("stage", plan.REPORTS)
def test_what_a_report_loads_and_reads_is_in_its_plan_or_a_dependency(stage, project, monkeypatch):
    """All that it imports is hashed, and each file is an output that the stage depends on, or hashed, too."""
    source = project / "src/selfdistill"
    printed = project.run("python", "-c", LOADED, stage, PYTHONPATH=str(source.parent)).stdout
    code, loaded, read = json.loads(printed.splitlines()[-1])
    assert code == 0
    own = {Path(path).relative_to(source) for path in loaded if Path(path).is_relative_to(source)}
    assert Path(f"reporting/{stage}.py") in own

    hashed = set()
    monkeypatch.setattr(closure, "executed_sha256", lambda path: hashed.add(path.relative_to(closure.PACKAGE)) or "0")
    monkeypatch.chdir(project.folder)
    planned = plan.report_plan(read_study(), stage)
    assert own - {Path(name) for name in plan.NO_RESULT} <= hashed

    declared = yaml.safe_load((project / "dvc.yaml").read_text())["stages"][stage]
    folders = [
        *declared["deps"],
        "results/hosts",  # measured once, and no output
        "results/predictions",  # of which the record has the hash
        "src/selfdistill/claims/claims.yaml",  # of which the plan has what this study is asked
    ]
    files = {*planned["files"].values(), *planned.get("analysis_cards", {}).values()}
    for path in map(Path, read):
        if path.is_relative_to(project.folder) and path.suffix not in (".py", ".pyc"):
            name = path.relative_to(project.folder)
            assert any(name.is_relative_to(folder) for folder in folders) or sha256_of(path) in files, name
    cards = {name: sha256_of(source / f"methods/{name}.md") for name in ("plain", "byot", "drkd")}
    assert planned["cards"] == cards


def test_what_hands_an_analysis_its_inputs_is_in_its_plan(monkeypatch):
    hashed = set()
    monkeypatch.setattr(closure, "executed_sha256", lambda path: hashed.add(closure.name_of(path)) or "0")
    plan.analysis_plan("accuracy", None)
    assert {"evaluation/inputs.py", "evaluation/classification.py", "training/determinism.py"} <= hashed
    assert "analyses/exits.py" not in hashed
    assert "evaluation/probed.py" not in hashed, "a new probe makes nothing stale that is stored"
    plan.analysis_plan("gradients", None)
    assert {"evaluation/probed.py", "evaluation/replay.py", "training/engine.py"} <= hashed
    assert "analyses/flatness.py" not in hashed
