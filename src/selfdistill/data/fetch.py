"""Fetch a data set's files: from a mirror folder, a package, or the network, each verified.

Whatever the way, `raw/<name>/` ends up with the same bytes: files that torchvision keeps unpacked
are stored unpacked, so that a published archive and an unpacked mirror give one hash.
"""

import gzip
import hashlib
import importlib.util
import os
import sys
import tempfile
from pathlib import Path

import pooch

from selfdistill.files import sha256_of, write_atomically

MIRROR = "SELFDISTILL_MIRROR"


class FetchError(Exception):
    """A file cannot be had, or is not the published one; the message says what to do."""


def fetch(name: str, entry, raw: Path) -> None:
    """Put the verified files of `selfdistill.config.DataEntry` into `raw`/`name`."""
    for file in entry.files:
        if file.unpacked is None:
            target, content = file.name, lambda file=file: archive(name, file)
        else:
            target, content = Path(file.unpacked.name).name, lambda file=file: unpacked(name, file)
        wanted = (file.unpacked or file).sha256
        path = raw / name / target
        if not (path.is_file() and sha256_of(path) == wanted):
            write_atomically(path, content())


def unpacked(name: str, file) -> bytes:
    """The unpacked file: as it lies in the mirror, or from the archive."""
    path = in_mirror(name, file.unpacked.name)
    if path is not None:
        return verified(path, file.unpacked.sha256)
    content = gzip.decompress(archive(name, file))
    if hashlib.sha256(content).hexdigest() != file.unpacked.sha256:
        raise FetchError(
            f"{file.name}: its content is not the published one; see {file.unpacked.name} in the catalogue"
        )
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
    url = source + file.name if source.endswith("/") else source
    with tempfile.TemporaryDirectory() as folder:
        downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=30)
        path = pooch.retrieve(
            url, known_hash=f"sha256:{file.sha256}", fname=file.name, path=folder, downloader=downloader
        )
        return Path(path).read_bytes()
