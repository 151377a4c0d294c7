"""The analyses: one file and one card each, found by file name.

An analysis' file holds a literal `ABOUT` and a pure function `analyse(inputs, **settings)`, which gives rows of keys
and numbers of one run, and perhaps `draw(ax, table, style)`, a figure of its table.  Tables, intervals, comparisons
and the page are made from what ABOUT says.  It is read without running the file: nothing here imports torch.

ABOUT:
title     of its section
needs     one or more of NEEDS: what it is given, and so when it can be made at all
settings  {name: {default, allowed: (low, high) | choices: [...]}}, as hyper-parameters of methods
keys      {name: title}: what tells the rows of a run apart
numbers   {name: {title, unit, better, judged, ...}}, the leading one first
          unit: "%" for a share, which tables show times 100; any other word, or "" for none
          better: "higher", "lower", or None where neither is
          judged: whether it is compared with the control, paired by seed
          exact: it is counted, not estimated: no interval, no bold cell, and of one run as of all
          digits: that readers see (2)
          shown: "table" (the default), "csv" for the file alone, "runs" for the table of all rows and of all runs
          relative_to_control: the number of which it is the ratio to the control's; the analysis does not give it
          summed: its sum over all runs stands in metrics.json
headline  the number that stands for a run, of the one analysis that can be made for a study's kind of images
shown     {key: value}: the rows of the table, where not all are; `deepest` is the exit after the last section
best      "variant" where the best row of a variant is bold, not the best variant of a row
beside    True where the study's headline number stands at the end of each row
"""

import ast
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from selfdistill.errors import UserError

FOLDER = Path(__file__).parent
REQUIRED = {"title": str, "needs": list, "settings": dict, "keys": dict, "numbers": dict}
OPTIONAL = {"headline": str, "shown": dict, "best": str, "beside": bool}
NEEDS = {
    "logits": "stored logits, of test images of classes",
    "features": "stored features, of test images of persons",
    "outputs": "either of them",
    "networks": "stored outputs of the further networks of a run, which has some",
    "seeds": "stored outputs of the variant's other seeds, where there are any",
    "teacher": "stored outputs of the network that a student learned from, where there is one",
    "run": "what training said of the run, its cost and history",
    "network": "the trained network: a probe",
    "images": "test images of the run's classes: a probe",
    "own": "the images of the data set that the run was trained on, and no other: a probe",
    "others": "the images of a data set of other classes: a probe",
}
PROBES = frozenset({"network", "images", "own", "others"})
SELECTED = frozenset({"logits", "features", "outputs", *PROBES})  # depend on the weights that a study selects
NUMBER = {"title": str, "unit": str, "better": (str, type(None)), "judged": bool}
MORE = {"exact": bool, "digits": int, "shown": str, "relative_to_control": str, "summed": bool}
CHOICES = {"better": ("higher", "lower", None), "shown": ("table", "csv", "runs"), "best": ("variant",)}


class AnalysisError(UserError, ValueError):
    """The analysis does not exist, or its file or card is not as it should be."""


@cache
def names() -> list[str]:
    """Every analysis' name, which is its file's: those that may stand for a run first."""
    return sorted(sorted(files()), key=lambda name: "headline" not in about(name))


def files() -> list[str]:
    return [path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__"]


def file(name: str) -> Path:
    return FOLDER / f"{name}.py"


@cache
def about(name: str) -> dict[str, Any]:
    """The literal `ABOUT` of an analysis' file, with every optional word of a number.  AnalysisError: there is none, or
    it is not as the head of this file says."""
    path = file(name)
    if not path.is_file():
        raise AnalysisError(f"no analysis {name!r}; there are {', '.join(sorted(files()))}")
    for statement in ast.parse(path.read_text(encoding="utf-8"), str(path)).body:
        if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", None) == "ABOUT":
            try:
                found = ast.literal_eval(statement.value)
            except ValueError:
                break
            for fault in faults(found):
                raise AnalysisError(f"{path}: ABOUT: {fault}")
            default = {"exact": False, "digits": 2, "shown": "table", "relative_to_control": None, "summed": False}
            return {**found, "numbers": {key: {**default, **number} for key, number in found["numbers"].items()}}
    raise AnalysisError(f"{path}: no ABOUT; an analysis states what it is in a literal of that name")


def faults(found: Any) -> Iterator[str]:
    """In what an ABOUT is not as it should be."""
    if not isinstance(found, dict):
        yield f"{type(found).__name__} is not allowed; allowed: a dictionary"
        return
    yield from form_faults("", found, REQUIRED, OPTIONAL)
    if any(not isinstance(found.get(key), kind) for key, kind in REQUIRED.items()):
        return
    for need in found["needs"]:
        if need not in NEEDS:
            yield f"needs: {need!r} is not allowed; allowed: {', '.join(NEEDS)}"
    if not found["needs"] or not found["numbers"]:
        yield "needs and numbers: none is not allowed; allowed: at least one of each"
    yield from number_faults(found["numbers"])
    if found.get("headline", next(iter(found["numbers"]), None)) not in found["numbers"]:
        yield f"headline: {found['headline']!r} is none of the numbers"
    for key in found.get("shown", {}):
        if key not in found["keys"]:
            yield f"shown.{key}: none of the keys"
    for name, spec in found["settings"].items():
        if not isinstance(spec, dict) or "default" not in spec or not set(spec) <= {"default", "allowed", "choices"}:
            yield f"settings.{name}: {spec!r} is not allowed; allowed: default, and allowed or choices"


def number_faults(numbers: dict) -> Iterator[str]:
    for key, number in numbers.items():
        if not isinstance(number, dict):
            yield f"numbers.{key}: {number!r} is not allowed; allowed: a dictionary with {', '.join(NUMBER)}"
            continue
        yield from form_faults(f"numbers.{key}.", number, NUMBER, MORE)
        if number.get("relative_to_control", key) not in numbers:
            yield f"numbers.{key}.relative_to_control: {number['relative_to_control']!r} is none of the numbers"


def form_faults(place: str, found: dict, required: dict, optional: dict) -> Iterator[str]:
    """Keys that are missing, unknown, or of another type or value."""
    known = {**required, **optional}
    yield from (f"{place}{key}: missing; it has no default" for key in required if key not in found)
    for key, value in found.items():
        if key not in known:
            yield f"{place}{key}: unknown key; allowed: {', '.join(known)}"
        elif not isinstance(value, known[key]):
            yield f"{place}{key}: {value!r} is not allowed"
        elif key in CHOICES and not isinstance(value, dict) and value not in CHOICES[key]:
            yield f"{place}{key}: {value!r} is not allowed; allowed: {', '.join(map(str, CHOICES[key]))}"


def is_probe(name: str) -> bool:
    """Whether it needs more than what is stored of a run."""
    return not PROBES.isdisjoint(about(name)["needs"])


def of_selection(name: str) -> bool:
    """Whether its rows depend on the weights that a study selects; otherwise they are of the last epoch."""
    return not SELECTED.isdisjoint(about(name)["needs"])


def settings(name: str, given: dict[str, Any] | None = None) -> dict[str, Any]:
    """The settings of an analysis, defaults included."""
    return {**{key: spec["default"] for key, spec in about(name)["settings"].items()}, **(given or {})}


@cache
def card(name: str) -> str:
    """The card beside an analysis' file, as Markdown.  AnalysisError: there is none."""
    path = FOLDER / f"{name}.md"
    if not path.is_file():
        raise AnalysisError(f"{path}: missing; beside every analysis' file stands a card of its name")
    return path.read_text(encoding="utf-8")


def paragraphs(name: str) -> list[str]:
    """Those of its card, without headings, each on one line."""
    parts = (" ".join(part.split()) for part in card(name).split("\n\n"))
    return [part for part in parts if part and not part.startswith("#")]


def lead(name: str) -> str:
    """The first paragraph of its card."""
    return next(iter(paragraphs(name)), "")


def caption(name: str) -> str:
    """What its card says of its figure, in the paragraph that begins with `Figure:`."""
    return next((text.removeprefix("Figure: ") for text in paragraphs(name) if text.startswith("Figure: ")), "")


def load(name: str) -> ModuleType:
    """The module of an analysis: `analyse`, and perhaps `draw`, `size` and `contradictions`."""
    about(name)
    return import_module(f"{__name__}.{name}")


def function(name: str) -> Callable[..., list[dict[str, Any]]]:
    return load(name).analyse


def headlines() -> list[str]:
    """The analyses that may stand for a run: each of another kind of images."""
    return [name for name in names() if "headline" in about(name)]


def deepest(exit_name: object) -> bool:
    """Whether `exit`, as `evaluation.inputs.exit_names` writes it, is the one after the last section."""
    before, slash, after = str(exit_name).partition("/")
    return bool(slash) and before == after


def shows(name: str, row: dict[str, Any]) -> bool:
    """Whether a row stands in the table."""
    wanted = about(name).get("shown", {})
    return all(deepest(row.get(key)) if value == "deepest" else row.get(key) == value for key, value in wanted.items())


def shown_keys(name: str) -> dict[str, str]:
    """The keys that tell the rows of the table apart."""
    found = about(name)
    return {key: title for key, title in found["keys"].items() if key not in found.get("shown", {})}
