"""Checked YAML: files are read without surprises, and every fault of one is told in words, all at once.

Nothing here imports torch, so that a check takes a fraction of a second.
"""

import difflib
import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from selfdistill.errors import ConfigError, first_line, printable
from selfdistill.outside import OutsideError, merge_mark, regular_bytes

Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Md5 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


STUDY, CATALOGUE = 2**18, 2**21  # bytes of a params.yaml and of the catalogue, at most
DEPTH = 50  # of what is nested; libyaml, asked to build 60,000 levels, ends the process
VALUES = 200_000  # that a file stands for, at most: a few aliases of aliases stand for thousands of millions
FAULTS = 100  # of a file that are told
LINE = 2000  # letters of a fault, at most: the longest list of what is known has some 1,000

Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # 600 kB: 2 s, 15 s in Python


class UniqueKeyLoader(Loader):
    """YAML without repeated keys: PyYAML lets the later one win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key_node.tag != "tag:yaml.org,2002:merge" and isinstance(key, str | int | float | bool | None):
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key!r} stands here a second time", key_node.start_mark
                    )
                seen.add(key)
        return super().construct_mapping(node, deep)


# ---- YAML 1.1, which PyYAML reads, and 1.2, which DVC reads and writes ----


def scalars(top: yaml.Node) -> Iterator[yaml.ScalarNode]:
    """Every scalar below a node once, keys and what aliases name included."""
    seen, waiting = set(), [top]
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.ScalarNode):
            yield node
        elif isinstance(node, yaml.MappingNode):
            waiting += (part for pair in node.value for part in pair)
        else:
            waiting += node.value


def as_dvc_reads(node: yaml.ScalarNode, loader: yaml.SafeLoader) -> None:
    """Make a plain scalar a number that only YAML 1.2 calls one, as DVC writes 0.00005; any other that the versions
    read differently is refused, and so is a date, which is text by the letter of 1.2."""
    text = node.value
    if node.style and node.tag != TEXT:
        raise ForeignValueError(None, None, f"{node.tag} {shown(text)}: write it without the tag", node.start_mark)
    if node.style or (text.isdecimal() and str(int(text[:20])) == text[:20]) or (text.isalpha() and len(text) > 5):
        return
    if node.tag != loader.resolve(yaml.ScalarNode, text, (True, False)):
        if node.tag != TEXT:
            raise ForeignValueError(None, None, f"{node.tag} {text}: write it without the tag", node.start_mark)
        return
    tag, theirs = read_by_dvc(text)
    if tag == FLOAT and node.tag == TEXT and NUMBER.fullmatch(text):
        node.tag = FLOAT
    ours = "text" if node.tag == TEXT else shown(loader.construct_object(node))
    number = {INT, FLOAT} & {node.tag, tag}
    if ours != theirs or node.tag != tag or node.tag == DATE or (number and not NUMBER.fullmatch(text)):
        others = theirs if theirs != ours else "text"
        fault = f"{text} is {ours} for some readers of YAML and {others} for others; allowed: text in quotes, a number "
        fault += "in decimal digits alone, true, false"
        raise ForeignValueError(None, None, fault, node.start_mark)


class ForeignValueError(yaml.constructor.ConstructorError):
    """A value that the versions of YAML read differently."""


TEXT, INT, FLOAT, DATE, MERGE = ("tag:yaml.org,2002:" + kind for kind in ("str", "int", "float", "timestamp", "merge"))
# of both versions, and of 1.2 the exponents
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|0x[0-9a-fA-F]+|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


@cache
def read_by_dvc(text: str) -> tuple[str, str]:
    """The tag of a plain scalar as DVC reads it, and its value, `text` for text."""
    import ruamel.yaml

    reader = dvc_reader()
    tag = str(reader.resolver.resolve(ruamel.yaml.ScalarNode, text, (True, False)))
    try:
        return tag, "text" if tag == TEXT else shown(reader.load(text))
    except (ruamel.yaml.YAMLError, ValueError):  # the keys << and =
        return tag, "an error"


@cache
def dvc_reader() -> Any:
    """DVC's reader of YAML: making one costs more than reading a scalar, and a params.yaml has hundreds."""
    import ruamel.yaml

    return ruamel.yaml.YAML(typ="safe", pure=True)


class QuotingDumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would read as something else."""


def quoted(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    plain = "\n" in text or read_by_dvc(text)[0] == TEXT
    return dumper.represent_scalar(TEXT, text, style=None if plain else "'")


QuotingDumper.add_representer(str, quoted)


def as_yaml(content: Any) -> str:
    """As it may stand in a file that both versions of YAML read."""
    return yaml.dump(content, Dumper=QuotingDumper, sort_keys=False, allow_unicode=True, width=110)


# ---- reading ----


def read_yaml(path: Path, most: int = STUDY) -> dict:
    """The mapping that a file holds; most: its bytes, at most.  ConfigError: in one line, why it is none."""
    try:
        text = regular_bytes(path, most).decode()
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); a study is a folder with a params.yaml"
        ) from None
    except OutsideError as error:
        large = "allowed" in str(error)
        advice = "many seeds are written as blocks, such as 0-9" if large else "a study is a folder with a params.yaml"
        raise ConfigError(f"{path}: {error}; {advice}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    if line := merge_mark(text.encode()):
        raise ConfigError(f"{path}: line {line}: the mark of a merge; finish the merge in this file")
    try:
        content = built(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        kind = "" if isinstance(error, ForeignValueError) else "not valid YAML: "
        raise ConfigError(f"{path}: {place}{kind}{error.problem or error.context}") from None
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {first_line(error)}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: {shown(content)} at the top; allowed: a mapping of keys to values")
    return content


def built(text: str) -> Any:
    """What a YAML text stands for.  ValueError: it is nested too deeply, or stands for too much."""
    depth = 0
    for event in yaml.parse(text, Loader):
        if isinstance(event, yaml.DocumentStartEvent) and event.version is not None:
            mark: Any = event.start_mark
            raise ForeignValueError(None, None, "a %YAML line; take it out", mark)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEPTH:
            line = f"line {event.start_mark.line + 1}: " if event.start_mark else ""
            raise ValueError(f"{line}nested more than {DEPTH} times")
    loader = UniqueKeyLoader(text)
    try:
        node = loader.get_single_node()
        if node is not None and values_of(node, {}) > VALUES:
            raise ValueError(f"its aliases stand for more than {VALUES:,} values, or one contains itself")
        if node is not None:
            for scalar in scalars(node):
                as_dvc_reads(scalar, loader)
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def values_of(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for, those of aliases each time; known: by its address, of nodes seen."""
    if id(node) not in known:
        known[id(node)] = VALUES + 1  # met again inside itself
        inside: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            inside = node.value
        elif isinstance(node, yaml.MappingNode):
            inside = [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(values_of(part, known) for part in inside)
    return known[id(node)]


def validate(schema: type[BaseModel], content: dict) -> tuple[Any, list[str]]:
    """The model, or None and its faults in words."""
    try:
        return schema.model_validate(content), []
    except ValidationError as error:
        return None, [in_words(dict(fault), schema) for fault in error.errors()[: FAULTS + 1]]
    except RecursionError:
        return None, ["nested too deeply, or an alias that contains itself"]


def all_faults(path: Path, faults: Iterable[str]) -> str:
    """The faults of a file, each once and in a line of its own."""
    told = list(islice(dict.fromkeys(faults), FAULTS + 1))
    further = ["further faults, which are not shown"] if told[FAULTS:] else []
    return "\n".join(printable(f"{path}: {cut(fault)}") for fault in [*told[:FAULTS], *further])


def cut(fault: str) -> str:
    """A fault with the beginning of a value that would fill the screen."""
    return fault if len(fault) <= LINE else f"{fault[:LINE]}..."


def in_words(fault: dict, schema: type[BaseModel]) -> str:
    """A pydantic fault as: key path, value given, what is allowed."""
    place, kind = key_path(fault["loc"]), fault["type"]
    if kind == "missing":
        return f"{place}: missing; it has no default"
    if kind == "extra_forbidden":
        known = known_keys(schema, fault["loc"][:-1])
        return f"{place}: unknown key; {nearest(str(fault['loc'][-1]), known)}"
    expected = fault["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    if kind == "string_pattern_mismatch":
        expected = f"text of the form {fault['ctx']['pattern']}"
    elif kind == "too_long":
        expected = f"at most {fault['ctx']['max_length']} entry"
    elif kind == "too_short":
        expected = f"at least {fault['ctx']['min_length']} entry"
    elif kind == "value_error":
        expected = str(fault["ctx"]["error"])
    elif kind == "model_type":
        expected = f"a mapping with {', '.join(known_keys(schema, fault['loc']))}"
    elif kind == "dict_type":
        expected = "a mapping of keys to values"
    elif kind in ("int_type", "int_from_float"):
        expected = "whole number"
    elif kind == "float_type" and reads_as_number(fault["input"]):
        expected = "number, without quotes"
    return f"{place}: {shown(fault['input'])} is not allowed; allowed: {expected}"


def reads_as_number(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(float(value) or True)
    except ValueError:
        return False


def known_keys(schema: Any, loc: tuple) -> list[str]:
    for part in loc:
        if isinstance(schema, type) and issubclass(schema, BaseModel) and part in schema.model_fields:
            schema = schema.model_fields[part].annotation
        else:  # an entry of a list or mapping: its schema is the last type argument
            schema = getattr(schema, "__args__", (None,))[-1]
    return list(getattr(schema, "model_fields", {}))


def key_path(loc: tuple) -> str:
    path = ""
    for part in loc:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return printable(path)  # a key may hold a line break


def shown(value: Any) -> str:
    """A value as a person wrote it, shortened."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, RecursionError):
        text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def nearest(given: str, known: list[str]) -> str:
    close = difflib.get_close_matches(given, known, n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + f"known: {', '.join(known) or 'none'}"
