"""Bytes from outside: read within bounds, and whatever reading them raises told in one line."""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from selfdistill.errors import UserError, first_line, lacking

JSON = 2**28  # bytes of a JSON file, at most: the largest record has some megabytes
MARKS = b"<<<<<<< ", b">>>>>>> "  # of a merge that was not finished, at the begin of a line


class OutsideError(UserError, ValueError):
    """A file that cannot be read, or is not what it should be; the message says which, why, and what to do."""


def regular_bytes(path: Path, most: int) -> bytes:
    """The content of a regular file of at most so many bytes; never waits, as a pipe would make one.

    OSError passes.  OutsideError, without the file's name: another kind of file, or a larger one.
    """
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(number)
        if not stat.S_ISREG(found.st_mode):
            raise OutsideError("a folder" if stat.S_ISDIR(found.st_mode) else "no regular file")
        if found.st_size > most:
            raise OutsideError(f"{found.st_size:,} bytes; allowed: at most {most:,}")
        with open(number, "rb", closefd=False) as file:
            return file.read(most)
    finally:
        os.close(number)


def merge_mark(content: bytes) -> int | None:
    """The first line, from 1, on which Git left the mark of a conflict."""
    return next((i for i, line in enumerate(content.splitlines(), 1) if line.startswith(MARKS)), None)


def json_object(path: Path, remedy: str, most: int = JSON) -> dict[str, Any]:
    """The object that a JSON file holds.  OutsideError: `path: reason; remedy`."""
    with untrusted(OutsideError, path, "cannot be read", remedy):
        content = regular_bytes(path, most)
        if merge_mark(content):
            raise OutsideError(f"{path}: holds the marks of a merge that was not finished; resolve it, or {remedy}")
        found = json.loads(content, parse_constant=no_number)
        if not isinstance(found, dict):
            raise OutsideError(f"{type(found).__name__} in place of an object")
        return found


def no_number(name: str) -> NoReturn:
    """Refuse the NaN and Infinity that Python reads and JSON does not know: no key and no record can hold them."""
    raise ValueError(f"{name} in place of a number")


@contextmanager
def untrusted(kind: type[UserError], place: Path | str, fault: str, remedy: str) -> Iterator[None]:
    """Inside, bytes from outside are read: whatever that raises becomes one `kind`, `place: fault (reason); remedy`.

    What already names the place passes.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, RuntimeError) and lacking(error):  # a device's memory, whatever the bytes are
            raise
        if isinstance(error, UserError) and str(error).startswith(str(place)):
            raise
        raise kind(f"{place}: {fault} ({reason_of(error)}); {remedy}") from error


def reason_of(error: BaseException) -> str:
    """Why something could not be read, in words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    reason = first_line(error)[:200]
    return f"no {error}" if isinstance(error, KeyError) else reason
