"""The methods: one file and one card each, found by file name.

A method's file holds what is executed: a literal `ABOUT` (class, needs, hyper-parameters with their bounds), a pure
loss function of tensors, and a small class.  Its card `NAME.md` holds what is not: title, paper, group, cost, meaning
and source of each hyper-parameter (as YAML between two lines of dashes), and the text.  Both are read without running
the file, so that a study is checked in a fraction of a second and nothing here imports torch.
"""

import ast
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from selfdistill.errors import UserError

if TYPE_CHECKING:
    from selfdistill.training.method import Method

FOLDER = Path(__file__).parent
HEAD = ("title", "name", "paper", "group", "cost", "hyper")
COLOURS = ("blue", "orange", "green", "red", "pink", "brown", "sky", "grey")
MARKERS = ("circle", "square", "diamond", "triangle", "pentagon")
LOOKS = frozenset(f"{colour} {marker}" for colour in COLOURS for marker in MARKERS)
MOST_SEARCHED = 3  # of a method's own: as many for each, whatever it has
MORE = ("look", "control")  # may stand there, too: colour and marker in every figure, and the matched control


class MethodError(UserError, ValueError):
    """The method does not exist, or its file and its card do not fit each other."""


@cache
def names() -> list[str]:
    """Every method's name, which is its file's, sorted."""
    return sorted(p.stem for p in FOLDER.glob("*.py") if p.stem != "__init__")


def file(name: str) -> Path:
    """The file that a training with this method executes."""
    return FOLDER / f"{name}.py"


@cache
def executed(name: str) -> dict[str, Any]:
    """The literal `ABOUT` of a method's file: class, needs, and hyper-parameters with default and bounds."""
    path = file(name)
    for statement in ast.parse(path.read_text(encoding="utf-8"), str(path)).body:
        if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", None) == "ABOUT":
            return ast.literal_eval(statement.value)
    raise MethodError(f"{path}: no ABOUT; a method file states what it is in a literal of that name")


@cache
def prose(name: str) -> tuple[dict[str, Any], str]:
    """The head of a method's card, and its text.  MethodError: there is no card, or its head is not as it should be."""
    path = FOLDER / f"{name}.md"
    if not path.is_file():
        raise MethodError(f"{path}: missing; beside every method's file stands a card of its name")
    before, _, rest = path.read_text(encoding="utf-8").partition("---\n")
    head, closing, text = rest.partition("---\n")
    try:
        found = yaml.load(head, getattr(yaml, "CSafeLoader", yaml.SafeLoader)) if closing and not before else None
    except yaml.YAMLError as error:
        raise MethodError(f"{path}: its head is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict) or set(found) - set(MORE) != set(HEAD) or not isinstance(found["hyper"], dict):
        allowed = f"{', '.join(HEAD)}, perhaps {' and '.join(MORE)}"
        raise MethodError(f"{path}: no proper head; a card begins with {allowed}, between two lines of ---")
    return found, text


@cache
def about(name: str) -> dict[str, Any]:
    """All that is known of a method: class, title, name, paper, group, needs, cost, look, control, and of every
    hyper-parameter default, bounds, meaning and source.  control: the method that it is fairly compared with, and why:
    of the same cost, or with the same parts but for the method's idea.  MethodError: one that is not in both file
    and card."""
    code, (head, _) = executed(name), prose(name)
    specs, words = code["hyper"], head["hyper"]
    for key in sorted(specs.keys() ^ words.keys()):
        lacking = FOLDER / f"{name}.{'md' if key in specs else 'py'}"
        raise MethodError(f"{lacking}: no hyper-parameter {key!r}; allowed: the same ones in file and card")
    for key, entry in words.items():
        if not isinstance(entry, dict) or set(entry) - {"search"} != {"meaning", "source"}:
            allowed = "its meaning and its source, perhaps its search"
            raise MethodError(f"{FOLDER / name}.md: hyper.{key} is {entry!r}; allowed: {allowed}")
        if (fault := search_fault(entry.get("search"), specs)) is not None:
            raise MethodError(f"{FOLDER / name}.md: hyper.{key}.search: {fault}")
    if sum("search" in entry and "value" not in entry["search"] for entry in words.values()) > MOST_SEARCHED:
        raise MethodError(f"{FOLDER / name}.md: more than {MOST_SEARCHED} hyper-parameters are searched")
    look = head.get("look")
    if look is not None and (not isinstance(look, str) or look not in LOOKS):
        allowed = f"one of {', '.join(COLOURS)}, and one of {', '.join(MARKERS)}"
        raise MethodError(f"{FOLDER / name}.md: look is {look!r}; allowed: {allowed}")
    control = head.get("control")
    if control is not None and (
        not isinstance(control, dict) or set(control) != {"method", "because"} or control["method"] not in names()
    ):
        raise MethodError(f"{FOLDER / name}.md: control is {control!r}; allowed: a method that there is, and because")
    hyper = {key: {**spec, **words[key]} for key, spec in specs.items()}
    return {**dict.fromkeys(MORE), **head, "class": code["class"], "needs": code["needs"], "hyper": hyper}


def search_fault(space: Any, specs: dict[str, Any]) -> str | None:
    """What is wrong with a hyper-parameter's `search`; `selfdistill.search` says what it may be."""
    if space is None or (isinstance(space, dict) and list(space) == ["value"]):
        return None
    forms = "low, high and scale (linear or log), perhaps with times or share; or value"
    if not isinstance(space, dict) or set(space) - {"times", "share"} != {"low", "high", "scale"}:
        return f"{space!r} is not allowed; allowed: {forms}"
    low, high, share = space["low"], space["high"], "share" in space
    if space["scale"] not in ("linear", "log") or not all(isinstance(end, int | float) for end in (low, high)):
        return f"{space!r} is not allowed; allowed: {forms}"
    if not low < high or (low <= 0 and (share or space["scale"] == "log")) or (high >= 1 and share):
        return f"low {low}, high {high} are not allowed; allowed: rising; above 0 with log, and below 1 for a share"
    unknown = sorted(set(space.get("times", {})) - set(specs))
    return f"times: {unknown[0]!r} is not allowed; allowed: {', '.join(specs)}" if unknown else None


def card(name: str) -> str:
    """The text of a method's card, as Markdown."""
    return prose(name)[1]


def load(name: str) -> "type[Method]":
    """The method's class."""
    return getattr(import_module(f"{__name__}.{name}"), executed(name)["class"])


def create(name: str, **hyper: Any) -> "Method":
    """A method by its name, with these hyper-parameters and the defaults of the others.

    MethodError: no such method.  HyperParameterError: a value that is not allowed."""
    if name not in names():
        raise MethodError(f"no method {name!r}; there are {', '.join(names())}")
    return load(name)(**hyper)


def __getattr__(attribute: str) -> "type[Method]":
    """`from selfdistill.methods import BYOT`, by the class's name."""
    if not attribute.startswith("_"):
        for name in names():
            if executed(name)["class"] == attribute:
                return load(name)
    raise AttributeError(f"module {__name__!r} has no attribute {attribute!r}")
