"""Fetch a data set's files: from a mirror folder, a package, or the network, each verified.

Whatever the way, `raw/<name>/` ends up with the same bytes: files that torchvision keeps unpacked
are stored unpacked, so that a published archive and an unpacked mirror give one hash.  Of an archive
only the members that the catalogue names are read, into memory, and nothing is written before all of
them are verified: no path, link or mode inside an archive has any effect.
"""

import gzip
import hashlib
import importlib.util
import io
import os
import sys
import tarfile
import tempfile
import zlib
from pathlib import Path
from typing import BinaryIO

from selfdistill.files import sha256_of, write_atomically

MIRROR = "SELFDISTILL_MIRROR"


class FetchError(Exception):
    """A file cannot be had, or is not the published one; the message says what to do."""


def fetch(name: str, entry, raw: Path) -> None:
    """Put the verified files of `selfdistill.config.DataEntry` into `raw`/`name`."""
    folder = raw / name
    for file in entry.files:
        wanted = {member.target: member.sha256 for member in file.unpacked} or {file.name: file.sha256}
        if all((folder / t).is_file() and sha256_of(folder / t) == sha256 for t, sha256 in wanted.items()):
            continue
        contents = unpacked(name, file) if file.unpacked else {file.name: archive(name, file)}
        for target, content in contents.items():
            write_atomically(folder / target, content)


def unpacked(name: str, file) -> dict[str, bytes]:
    """{target: content} of the wanted members: as they lie in the mirror, or from the archive."""
    paths = [in_mirror(name, member.name) for member in file.unpacked]
    if all(paths):
        return {m.target: verified(path, m.sha256) for m, path in zip(file.unpacked, paths, strict=True)}
    packed = archive(name, file)
    try:
        members = (untarred if file.name.endswith((".tar.gz", ".tgz")) else unzipped)(packed, file.unpacked)
        for member in file.unpacked:
            if hashlib.sha256(members.get(member.name, b"")).hexdigest() != member.sha256:
                raise ValueError(f"{member.name} is not in it with the catalogue's size and SHA-256")
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, RecursionError) as error:
        raise FetchError(
            f"{name}: {file.name} cannot be unpacked ({error}); correct its entry in data/params.yaml"
        ) from None
    return {member.target: members[member.name] for member in file.unpacked}


def unzipped(packed: bytes, wanted: list) -> dict[str, bytes]:
    """{name: content} of a .gz, which holds one file; one byte more than declared is enough to refuse it."""
    (member,) = wanted
    with gzip.open(io.BytesIO(packed)) as content:
        return {member.name: content.read(member.bytes + 1)}


def untarred(packed: bytes, wanted: list) -> dict[str, bytes]:
    """{name: content} of the wanted members of a .tar.gz: regular files of exactly the declared name and size."""
    sizes, found = {member.name: member.bytes for member in wanted}, {}
    # twice what is wanted leaves room for whatever else lies in a published archive
    limit = 2 * sum(sizes.values()) + 2**20
    with gzip.open(io.BytesIO(packed)) as content, tarfile.open(fileobj=Bounded(content, limit), mode="r|") as tar:
        for member in tar:
            if member.isreg() and sizes.get(member.name) == member.size:
                found.setdefault(member.name, tar.extractfile(member).read())
            if len(found) == len(sizes):
                break
    return found


class Bounded:
    """A stream that refuses to give more than `limit` bytes, or to be read at its end: a header of a
    hostile archive may claim any size, and tarfile would go through so many bytes, or wait for them."""

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self.stream, self.limit, self.left = stream, limit, limit

    def read(self, size: int) -> bytes:
        content = self.stream.read(size)
        self.left -= len(content)
        if self.left < 0:
            raise ValueError(f"it unpacks to more than {self.limit:,} bytes")
        if size and not content:
            raise EOFError("it ends too early")
        return content


def archive(name: str, file) -> bytes:
    """The published file, from the mirror folder or the first source that has it."""
    path = in_mirror(name, file.name)
    if path is not None:
        return verified(path, file.sha256)
    failures = []
    for source in file.sources:
        try:
            if source.startswith("package://"):
                return verified(in_package(source), file.sha256)
            return download(source, file)
        except (FetchError, OSError, ValueError) as error:
            failures.append(f"  {source}: {str(error).splitlines()[0]}")
    raise FetchError(
        f"{name}: {file.name} ({file.bytes:,} bytes) could not be fetched from any source:\n"
        + "\n".join(failures)
        + f"\nPut the file into a folder and name the folder in {MIRROR} to go on without the network."
    )


def in_mirror(name: str, relative: str) -> Path | None:
    """Where the mirror folder holds a file: under its name, or under the data set's and its name."""
    if MIRROR not in os.environ:
        return None
    folder = Path(os.environ[MIRROR])
    if not folder.is_dir():
        raise FetchError(f"{MIRROR}={folder}: no such folder; it names the folder that holds the published files")
    return next((p for p in (folder / relative, folder / name / relative) if p.is_file()), None)


def in_package(source: str) -> Path:
    """package://PACKAGE/PATH: a file that an installed package ships."""
    package, path = source.removeprefix("package://").split("/", 1)
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FetchError(f"the package {package} is not installed")
    return Path(spec.submodule_search_locations[0]) / path


def verified(path: Path, sha256: str) -> bytes:
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise FetchError(f"{path}: SHA-256 {found}, expected {sha256}; replace the file, it is not the published one")
    return content


def download(source: str, file) -> bytes:
    """From a URL, or from `file.name` under it if it ends with a slash; pooch checks the hash."""
    import pooch  # here, because a mirror does without it

    url = source + file.name if source.endswith("/") else source
    with tempfile.TemporaryDirectory() as folder:
        downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=30)
        path = pooch.retrieve(
            url, known_hash=f"sha256:{file.sha256}", fname=file.name, path=folder, downloader=downloader
        )
        return Path(path).read_bytes()
