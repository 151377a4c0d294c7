"""Errors that users are told in one line: something that they gave, or that is missing, stops the work."""

from collections.abc import Iterator
from contextlib import contextmanager

# what the extra `pipeline` brings, by the names of its modules
PIPELINE = frozenset({"dvc", "filelock", "jinja2", "matplotlib", "pandas", "pydantic", "requests", "scipy", "seaborn"})


class UserError(Exception):
    """One line for the user: the place, the value, and what is allowed or to be done."""


class ConfigError(UserError):
    """Faults of a configuration, one a line: file, key path, value, what is allowed."""


class MissingPackageError(UserError, ImportError):
    """A package of the extra `pipeline` is needed and not installed; the message says which, and what to install."""


class NonFiniteOutputsError(UserError, RuntimeError):
    """A network's outputs for some images are not finite; the message says whose, of which split, and how many."""


@contextmanager
def asking_for_packages() -> Iterator[None]:
    """Inside, a package of the extra `pipeline` that is not installed is a MissingPackageError."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in PIPELINE:
            raise
        raise MissingPackageError(
            f"{package} is not installed; the pipeline's packages come with: pip install 'selfdistill[pipeline]'"
        ) from None
