"""The folder in which a user keeps published files, and files that stay there."""

import os
from pathlib import Path

from selfdistill.data.reading import DataError, reading
from selfdistill.errors import UserError
from selfdistill.files import sha256_of
from selfdistill.outside import json_object

MIRROR = "SELFDISTILL_MIRROR"


class FetchError(UserError):
    """A file cannot be obtained, or is not the published one; the message says what to do."""


def in_mirror(name: str, relative: str, size: int | None = None) -> Path | None:
    """Where the mirror folder holds a file: under its name, or under the data set's and its name.

    size: of a member of an archive.  Such a one may lie under the last parts of its name too, for the folder that
    holds it may itself be the mirror; as `train` is a name that others have, what is not of that size is another file.
    """
    folder = mirror_folder()
    if folder is None:
        return None
    for path in (folder / relative, folder / name / relative):
        if path.is_file():
            return path
        if os.path.lexists(path):  # reading a pipe would wait for ever
            kind = "a folder" if path.is_dir() else "no file that can be read"
            raise FetchError(f"{path}: {kind}; put the published file {Path(relative).name} itself there")
    for tail in tails(relative):
        for path in (folder / tail, folder / name / tail):
            if os.path.isfile(path) and path.stat().st_size == size:
                return path
    return None


def mirror_folder() -> Path | None:
    """The absolute folder that MIRROR names, None where it names none.

    DVC runs a stage in data/, wherever the user stood who named it: a relative one that is not here is looked for
    in the folders above, up to the repository's top.
    """
    named = os.environ.get(MIRROR)
    if not named:
        return None
    looked = [place / named for place in here_to_top()] if not Path(named).is_absolute() else [Path(named)]
    for folder in looked:
        if folder.is_dir():
            return folder
    raise FetchError(
        f"{MIRROR}={named}: no such folder ({' nor '.join(map(str, looked))}); it names the folder that holds the "
        "published files"
    )


def here_to_top() -> list[Path]:
    """The working folder, and those above it up to the repository's top if it lies in one."""
    here = Path.cwd()
    places = [here, *here.parents]
    tops = [i for i, place in enumerate(places) if (place / "data" / "params.yaml").is_file()]
    return places[: tops[0] + 1] if tops else [here]


def tails(relative: str) -> list[str]:
    """b/c and c of a/b/c."""
    parts = relative.split("/")
    return ["/".join(parts[i:]) for i in range(1, len(parts))]


def in_place(raw: Path, name: str) -> Path:
    """Where a file lies that was noted in `raw`, a data set's folder, and verified; it is verified again."""
    note = raw / f"{name}.json"
    if not note.is_file():
        raise DataError(f"{note}: not there; fetch the data set first")
    with reading(note):
        sha256 = json_object(note, "fetch it again")["sha256"]
    path = in_mirror(raw.name, name)
    if path is None:
        raise DataError(f"{name} stays where you put it, and is not there; name its folder in {MIRROR}")
    if (found := sha256_of(path)) != sha256:
        raise DataError(f"{path}: SHA-256 {found}, expected {sha256} as when it was fetched; fetch the data set again")
    return path
