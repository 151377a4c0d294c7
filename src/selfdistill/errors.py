"""Errors that users are told in one line: something that they gave, or that is missing, stops the work."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# what each extra brings, by the names of its modules
EXTRAS = {
    "pipeline": frozenset(
        {"dvc", "filelock", "jinja2", "matplotlib", "pandas", "pydantic", "requests", "ruamel", "scipy", "seaborn"}
    ),
    "export": frozenset({"onnx", "onnxruntime", "onnxscript"}),
}
WORDS = {"pipeline": "the pipeline's packages come with", "export": "what ONNX needs comes with"}

OUT_OF_ROOM = frozenset(
    getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "ENOTDIR", "EEXIST")
)


class UserError(Exception):
    """One line for the user: the place, the value, and what is allowed or to be done."""


class ConfigError(UserError):
    """Faults of a configuration, one a line: file, key path, value, what is allowed."""


class MissingPackageError(UserError, ImportError):
    """A package of an extra is needed and not installed; the message says which, and what to install."""


class NonFiniteOutputsError(UserError, RuntimeError):
    """A network's outputs for some images are not finite; the message says whose, of which split, and how many."""


@contextmanager
def asking_for_packages() -> Iterator[None]:
    """Inside, a package of an extra that is not installed is a MissingPackageError."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        extra = next((name for name, packages in EXTRAS.items() if package in packages), None)
        if extra is None:
            raise
        raise MissingPackageError(
            f"{package} is not installed; {WORDS[extra]}: pip install 'selfdistill[{extra}]'"
        ) from None


def lacking(error: BaseException, place: Path | None = None) -> str | None:
    """What gave out, in words, where an error says that a disk, a folder or memory did; None for any other.

    place: where the error itself names none.
    """
    if isinstance(error, OSError) and error.errno is not None:
        named = error.filename or place
        place_first = f"{printable(str(named))}: " if named else ""
        room = "; make room or make it writable" if error.errno in OUT_OF_ROOM else ""
        return f"{place_first}{error.strerror or error}{room}"
    allocating = isinstance(error, RuntimeError) and "alloc" in str(error) and "memory" in str(error)  # torch's
    if allocating or isinstance(error, MemoryError):
        return f"out of memory ({first_line(error)})"
    return None


def first_line(error: BaseException) -> str:
    """The first line of an error's words, or its name where it has none."""
    return ((str(error).strip() or type(error).__name__).splitlines())[0].rstrip(".")


def printable(text: str) -> str:
    """On one line: line breaks, and whatever else cannot be printed, as Python would write them."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)
