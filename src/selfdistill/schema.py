"""Checked YAML: files are read without surprises, and every fault of one is told in words, all at once.

Nothing here imports torch, so that a check takes a fraction of a second.
"""

import difflib
import json
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from selfdistill.errors import ConfigError

Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Md5 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class UniqueKeyLoader(yaml.SafeLoader):
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


def read_yaml(path: Path) -> dict:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); a study is a folder with a params.yaml"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    try:
        content = yaml.load(text, UniqueKeyLoader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(f"{path}: {place}not valid YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: {shown(content)} at the top; allowed: a mapping of keys to values")
    return content


def validate(schema: type[BaseModel], content: dict) -> tuple[Any, list[str]]:
    """The model, or None and its faults in words."""
    try:
        return schema.model_validate(content), []
    except ValidationError as error:
        return None, [in_words(dict(fault), schema) for fault in error.errors()]
    except RecursionError:
        return None, ["nested too deeply, or an alias that contains itself"]


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
    elif kind in ("int_type", "int_from_float"):
        expected = "whole number"
    elif kind == "float_type" and reads_as_number(fault["input"]):
        expected = "number (YAML takes this one for text: write it with a decimal point and without quotes)"
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
    return path


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
