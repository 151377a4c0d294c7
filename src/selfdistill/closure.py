"""The code that a result depends on, and one hash over it.

The closure of some files is these files and every file of this package that they import, at the top or inside a
function.  It is read from the files, never from what happens to be loaded, so that the hash is the same in
every process.  Only the executed code of a file counts: docstrings, comments, layout and the annotations
of functions are left out.  The hash is the same on every Python from 3.11 on: syntax trees print
differently from version to version, so they are written out here in a form of our own.

What is imported by a computed name (a method, a network, a need, a reader) is not seen.  The caller
names these files among the roots.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent
# of nodes: positions and types, and fields that are newer than 3.11 and empty in code that 3.11 can run
LEFT_OUT = frozenset({"ctx", "kind", "type_comment", "type_ignores", "type_params"})
BODIES = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def code_sha256(roots: Iterable[Path], stop: Iterable[Path] = ()) -> str:
    """One hash over the closure of some files, by their names in the package (those outside by their bare name)
    and their executed code.  stop: files that are neither counted nor followed.

    SyntaxError: a file is not valid Python of this version; `invalid` says which and where.
    """
    digest = hashlib.sha256()
    for name, path in sorted((name_of(path), path) for path in closure(roots, stop)):
        digest.update(f"{name}\n{executed_sha256(path)}\n".encode())
    return digest.hexdigest()


def closure(roots: Iterable[Path], stop: Iterable[Path] = ()) -> set[Path]:
    """Some files and all files of the package that they import, directly or not."""
    kept_out = {path.resolve() for path in stop}
    found: set[Path] = set()
    waiting = [path.resolve() for path in roots]
    while waiting:
        path = waiting.pop()
        if path not in found and path not in kept_out:
            found.add(path)
            waiting += (*packages(path), *imported(path))
    return found


def invalid(error: SyntaxError) -> str:
    """In a line, which file is not valid Python, and where."""
    return f"{error.filename}: line {error.lineno}: no valid Python: {error.msg}"


def packages(path: Path) -> list[Path]:
    """The `__init__` files of the folders that a file of the package lies in."""
    inside = [folder / "__init__.py" for folder in path.parents if folder.is_relative_to(PACKAGE)]
    return [file for file in inside if file.is_file()]


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix() if path.is_relative_to(PACKAGE) else path.name


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_bytes(), str(path))


@cache
def imported(path: Path) -> tuple[Path, ...]:
    """The files of the package that a file's import statements name, `__init__` files of their folders included."""
    names = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return tuple(sorted({file for name in names for file in files_of(name)}))


def files_of(module: str) -> Iterator[Path]:
    """The files that importing `module` runs; nothing for a module outside the package."""
    first, *parts = module.split(".")
    if first != PACKAGE.name:
        return
    for i in range(len(parts) + 1):
        place = PACKAGE.joinpath(*parts[:i])
        for file in (place / "__init__.py", place.with_suffix(".py")):
            if file.is_file():
                yield file


@cache
def executed_sha256(path: Path) -> str:
    """Of what a file executes, without docstrings, comments and annotations of functions."""
    return hashlib.sha256("".join(written(tree_of(path))).encode()).hexdigest()


def written(value: object) -> Iterator[str]:
    """A syntax tree in a form that does not depend on the version of Python."""
    if isinstance(value, ast.JoinedStr):
        yield f"f({','.join(''.join(written(part)) for part in joined(value.values))})"
    elif isinstance(value, ast.AST):
        yield type(value).__name__ + "("
        for field in sorted(value._fields):
            content = getattr(value, field, None)
            if field in LEFT_OUT or content is None or content == []:
                continue
            if isinstance(value, ast.FunctionDef | ast.AsyncFunctionDef) and field == "returns":
                continue
            if isinstance(value, ast.arg) and field == "annotation":
                continue
            if field == "body" and isinstance(value, BODIES):
                content = [part for part in without_docstring(content) if not is_listing(part)]
            yield f"{field}="
            yield from written(content)
            yield ","
        yield ")"
    elif isinstance(value, list):
        yield "["
        for item in value:
            yield from written(item)
            yield ","
        yield "]"
    else:  # ascii: repr prints letters that a newer Unicode knows otherwise
        yield ascii(value)


def joined(parts: list[ast.expr]) -> list[ast.expr]:
    """The parts of an f-string; versions differ in where they cut its literal text."""
    found: list[ast.expr] = []
    for part in parts:
        before = found[-1] if found else None
        if isinstance(part, ast.Constant) and isinstance(before, ast.Constant):
            found[-1] = ast.Constant(str(before.value) + str(part.value))
        else:
            found.append(part)
    return [part for part in found if not (isinstance(part, ast.Constant) and part.value == "")]


def is_listing(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", None) == "NETWORKS"


def without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0]
    is_text = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    return body[1:] if is_text else body
