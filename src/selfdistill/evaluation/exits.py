"""The names of a network's exits."""

from collections.abc import Iterator
from typing import Any


def exit_names(run: dict[str, Any]) -> list[str]:
    """The section after which each exit stands, of how many: a network without others has one after the last."""
    exits, sections = len(run["cost"]["inference_macs"]), run["sections"]
    return [f"{sections - exits + i + 1}/{sections}" for i in range(exits)]


def unlike(run: dict[str, Any], found: list[Any]) -> Iterator[str]:
    """Whether rows are of other exits than a run has, shallow to deep and, of several, all of them together."""
    names = exit_names(run)
    wanted = [*names, "ensemble"] if len(names) > 1 else names
    if found != wanted:
        yield f"exits {', '.join(map(str, found))} are not allowed; allowed: {', '.join(wanted)}"
