"""Networks cut into sections, by name: one file a family and its card, found by file name.

A family's file holds a literal `NETWORKS` (name: class and arguments) beside its classes.  The literal is read
without running the file, so that nothing here imports torch until a network is built.  A file of your own has
the same form; `own` names such files.
"""

import ast
import importlib.util
import re
import sys
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from selfdistill.errors import UserError

if TYPE_CHECKING:
    from selfdistill.models.sections import SectionedNetwork

FOLDER = Path(__file__).parent
# Any network of the timm library goes by its name there behind this prefix: `timm:convnext_tiny`
TIMM = "timm:"
OF_EXITS = "exit_width", "exit_bias"  # arguments of an entry that are not the backbone's


class NetworkError(UserError, ValueError):
    """A network that cannot be built as asked for; the message says why and what is allowed."""


def names(own: Sequence[Path] = ()) -> list[str]:
    """Every network's name, family by family; those of timm are not listed.  NetworkError: a file of `own` that is
    not a family, or a name that is in two files."""
    found: dict[str, Path] = {}
    for path in families(own):
        for name in entries(path) or ():
            if name in found:
                raise NetworkError(f"{path}: {name!r} is a network of {found[name].name}, too; choose another name")
            found[name] = path
    return list(found)


def families(own: Sequence[Path] = ()) -> list[Path]:
    """The files that hold networks: those of this folder, then a user's own."""
    shipped = [path for path in sorted(FOLDER.glob("*.py")) if path.stem != "__init__" and entries(path) is not None]
    for path in own:
        if entries(Path(path)) is None:
            raise NetworkError(f"{path}: no NETWORKS in it; allowed: a file as docs/networks.md shows it")
    return [*shipped, *map(Path, own)]


@cache
def entries(path: Path) -> dict[str, dict] | None:
    """The literal `NETWORKS` of a file, or None where it has none.  NetworkError: not Python, or not a literal."""
    if not path.is_file():
        raise NetworkError(f"{path}: no such file; allowed: a file as docs/networks.md shows it")
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise NetworkError(f"{path}: {error.strerror}") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f"line {error.lineno}: " if isinstance(error, SyntaxError) else ""
        raise NetworkError(f"{path}: {line}no valid Python ({getattr(error, 'msg', error)})") from None
    for statement in tree.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        if isinstance(statement, ast.Assign | ast.AnnAssign) and getattr(targets[0], "id", None) == "NETWORKS":
            return listing(statement, path)
    return None


def listing(statement: ast.Assign | ast.AnnAssign, path: Path) -> dict[str, dict]:
    """The value of `NETWORKS`, if it is what is allowed there."""
    place = f"{path}: line {statement.lineno}: NETWORKS"
    form = "allowed: {name: {'class': name of a class in this file, and its arguments}}, all literal"
    try:
        found = ast.literal_eval(statement.value) if statement.value else None
    except (ValueError, TypeError):  # TypeError: a key that cannot be one
        raise NetworkError(f"{place} is no literal; {form}") from None
    if not isinstance(found, dict) or not all(
        isinstance(entry, dict) and isinstance(entry.get("class"), str) for entry in found.values()
    ):
        raise NetworkError(f"{place}: {form}")
    for name in found:  # it names folders of results
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise NetworkError(f"{place}: {name!r} is no name; allowed: letters, digits, '.', '_' and '-'")
    if isinstance(statement.value, ast.Dict) and len(statement.value.keys) != len(found):
        raise NetworkError(f"{place}: a name stands there twice; allowed: each once")
    return found


def family_file(name: str, own: Sequence[Path] = ()) -> Path | None:
    """The file of a network's family; None for one of timm.  NetworkError: there is no such network."""
    if name.startswith(TIMM):
        return None
    for path in families(own):
        if name in (entries(path) or {}):
            return path
    raise NetworkError(f"{name!r} is no network; there are {', '.join(names(own))}, {TIMM}NAME")


def arguments(name: str, own: Sequence[Path] = ()) -> dict:
    """What is listed beside a network's name: its class, and the arguments that make it this network; nothing for one
    of timm."""
    file = family_file(name, own)
    return {} if file is None else dict((entries(file) or {})[name])


def card(family: str) -> str:
    """The card of a family, as Markdown."""
    return (FOLDER / f"{family}.md").read_text(encoding="utf-8")


def build(
    name: str,
    *,
    channels: int,
    classes: int,
    size: tuple[int, int],
    exits: bool,
    seed: int,
    own: Sequence[Path] = (),
) -> "SectionedNetwork":
    """A freshly initialised `SectionedNetwork`.

    channels, size: of the images, C and (H, W); exits: a classifier after every section; own: files of networks
    beside those of this folder.
    The backbone and the exits draw from generators of their own, so that networks of one seed start
    from the same backbone whether they have exits or not.  Raises NetworkError for a network that is not there,
    whose class cannot be built, or whose outputs are not what docs/networks.md says.
    """
    if name.startswith(TIMM):
        form = {"channels": channels, "classes": classes, "size": tuple(size), "exits": exits, "seed": seed}
        return import_module(f"{__name__}.from_timm").build_network(name.removeprefix(TIMM), **form)
    file, entry = family_file(name, own), arguments(name, own)
    assert file is not None  # those of timm alone have none
    exit_width, exit_bias = entry.pop("exit_width", 128), entry.pop("exit_bias", False)
    module = import_module(f"{__name__}.{file.stem}") if file.parent == FOLDER else module_of(file)
    sections = import_module(f"{__name__}.sections")
    made = getattr(module, entry.pop("class"), None)
    if made is None:
        raise NetworkError(f"{file}: {name}: no class {arguments(name, own)['class']!r} in this file")
    shape = (channels, *size)
    try:
        with sections.seeded(seed):
            trunk = made(channels=channels, classes=classes, **entry)
        if lacking := sections.lacking(trunk):
            raise NetworkError(
                f"{file}: {name}: {lacking}; allowed: a module with stem, sections and classifier (docs/networks.md)"
            )
        with sections.seeded(seed + 1):
            network = sections.SectionedNetwork(
                trunk,
                input_shape=shape,
                classes=classes,
                exit_width=exit_width if exits else None,
                exit_bias=exit_bias,
            )
            if file.parent != FOLDER:
                network.check(classes)
    except NetworkError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise NetworkError(
            f"{file}: {name}: it cannot be built for {classes} classes and images of {' x '.join(map(str, shape))} "
            f"({reason})"
        ) from error
    return network


def module_of(file: Path) -> ModuleType:
    """A file of a user's own, loaded once."""
    file = file.resolve()
    name = f"selfdistill_own_{file.stem}"
    loaded = sys.modules.get(name)
    if loaded is not None and loaded.__file__ == str(file):
        return loaded
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise NetworkError(f"{file}: cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        reason = (str(error).splitlines() or [""])[0]
        raise NetworkError(f"{file}: {type(error).__name__} while it is loaded: {reason}") from error
    return module
