"""What makes a result stale: the code that it executes, and nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

from selfdistill import closure

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
    with pytest.raises(ValueError, match=r"own.py: line 1: no valid Python"):
        closure.code_sha256([tmp_path / "own.py"])
