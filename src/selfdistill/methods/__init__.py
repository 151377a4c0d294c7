"""The methods: one file and one card each, found by file name.

A method file holds a literal `ABOUT` (title, paper, needs, hyper-parameters with their sources),
a pure loss function of tensors, and a small class.  `ABOUT` is read without running the file, so
that a study is checked in a fraction of a second and nothing here imports torch.
"""

import ast
from functools import cache
from importlib import import_module
from pathlib import Path

FOLDER = Path(__file__).parent


@cache
def names() -> list[str]:
    """Every method's name, which is its file's, sorted."""
    return sorted(p.stem for p in FOLDER.glob("*.py") if p.stem != "__init__")


@cache
def about(name: str) -> dict:
    """The literal `ABOUT` of a method's file."""
    path = FOLDER / f"{name}.py"
    for statement in ast.parse(path.read_text(encoding="utf-8"), str(path)).body:
        if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", None) == "ABOUT":
            return ast.literal_eval(statement.value)
    raise ValueError(f"{path}: no ABOUT; a method file states what it is in a literal of that name")


def card(name: str) -> str:
    """The method's card, as Markdown."""
    return (FOLDER / f"{name}.md").read_text(encoding="utf-8")


def load(name: str) -> type:
    """The method's class."""
    return getattr(import_module(f"{__name__}.{name}"), about(name)["class"])


def __getattr__(attribute: str):
    """`from selfdistill.methods import BYOT`, by the class's name."""
    if not attribute.startswith("_"):
        for name in names():
            if about(name)["class"] == attribute:
                return load(name)
    raise AttributeError(f"module {__name__!r} has no attribute {attribute!r}")
