"""Files of the reports: a table is read, and files that belong together are written all or none."""

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from selfdistill.outside import OutsideError, merge_mark, untrusted

if TYPE_CHECKING:  # a package of the extra `pipeline`, which takes half a second to load
    import pandas as pd


def read_table(path: Path) -> "pd.DataFrame":
    """A table that `tables` wrote.  OutsideError: it is not there, or is not as it was written; the message says so.

    A figure or page of a damaged one would end in a fault of pandas that names no file, or show what is not so."""
    import pandas as pd

    from selfdistill.summary.table import fault_of

    with untrusted(OutsideError, path, "cannot be read", "`selfdistill tables` writes it again"):
        content = path.read_bytes()
        if merge_mark(content):
            raise ValueError("it holds the marks of a merge that was not finished")
        if not content.endswith(b"\n"):
            raise ValueError("it is cut off: its last line has no end")
        table = pd.read_csv(path)
        if fault := fault_of(path.stem, table):
            raise ValueError(fault)
        return table


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
