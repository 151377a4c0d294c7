"""Files of the reports: a table is read, and files that belong together are written all or none."""

import errno
import hashlib
import io
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from selfdistill.outside import OutsideError, merge_mark, untrusted

if TYPE_CHECKING:  # a package of the extra `pipeline`, which takes half a second to load
    import pandas as pd

SUMS = "SHA256SUMS"  # of the tables beside it


def sums_of(contents: dict[Path, bytes]) -> bytes:
    """The file SUMS of these files of one folder, as `sha256sum --check` reads it."""
    lines = (f"{hashlib.sha256(contents[path]).hexdigest()}  {path.name}\n" for path in sorted(contents))
    return "".join(lines).encode()


def read_tables(folder: Path, names: Iterable[str]) -> "dict[str, pd.DataFrame]":
    """Those of these tables that `tables` has written to the folder, by name.  OutsideError: one is gone, or is not as
    it was written, by SUMS; where there are no SUMS, an earlier version wrote them, and what is there is taken."""
    sums, remedy = None, "`selfdistill tables` writes it again"
    if (folder / SUMS).is_file():
        with untrusted(OutsideError, folder / SUMS, "cannot be read", remedy):
            lines = (folder / SUMS).read_text(encoding="ascii").splitlines()
            sums = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    files = {name: folder / f"{name}.csv" for name in names}
    if sums is None:
        return {name: read_table(path) for name, path in files.items() if path.is_file()}
    return {name: read_table(path, sums[path.name]) for name, path in files.items() if path.name in sums}


def read_table(path: Path, sha256: str | None = None) -> "pd.DataFrame":
    """A table that `tables` wrote.  OutsideError: it is not there, or none, or has another hash than is given."""
    import pandas as pd

    with untrusted(OutsideError, path, "cannot be read", "`selfdistill tables` writes it again"):
        content = path.read_bytes()
        if merge_mark(content):
            raise ValueError("it holds the marks of a merge that was not finished")
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError(f"it is not as it was written, by {SUMS} beside it")
        return pd.read_csv(io.BytesIO(content))


def write_whole(folder: Path, contents: dict[Path, bytes]) -> None:
    """`write_together`, and then remove what an earlier writing left in the folder, by the endings of what is written:
    the table of an analysis that the study no longer has."""
    write_together(contents)
    endings = {path.suffix for path in contents if path.parent == folder}
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.suffix in endings and path not in contents and path.is_file():
            path.unlink()


def write_together(contents: dict[Path, bytes]) -> None:
    """Write all beside their targets, flushed to disk, before the first takes its target's place: a full disk or a
    folder that cannot be written leaves what was there, and nothing else.  OSError names the file."""
    partials = {path: path.with_name(path.name + ".partial") for path in contents}
    done = False
    try:
        for path, partial in partials.items():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                if path.is_dir():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
                with open(partial, "wb") as file:
                    file.write(contents[path])
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from error
        for path, partial in partials.items():
            os.replace(partial, path)
        done = True
    finally:
        for path, partial in partials.items() if not done else ():
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            with suppress(OSError):
                path.parent.rmdir()  # a new one: any other holds something
