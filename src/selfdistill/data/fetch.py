"""Fetch a data set's files: from a mirror folder, a package, or the network, each verified.

In every case `raw/<name>/` ends up with the same bytes: files that torchvision keeps unpacked
are stored unpacked, so that a published archive and an unpacked mirror give one hash.  Everything is
gathered beside that folder, in `raw/<name>.partial/`, and moved there when it is verified; nothing that
is refused stays.  Only a download that broke off does, until the same command continues it.

A hash that the catalogue lacks is taken from the first file that comes, told, and pinned in
`pins/<name>.json` beside `raw/`: from then on nothing else is accepted.  That file belongs into Git.
"""

import codecs
import gzip
import hashlib
import importlib.util
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from filelock import FileLock, Timeout

from selfdistill.data import archives
from selfdistill.data.mirror import MIRROR, FetchError, in_mirror, mirror_folder, tails
from selfdistill.files import sha256_of, write_atomically
from selfdistill.outside import OutsideError, json_object

if TYPE_CHECKING:  # pydantic is not needed here, and requests by downloads alone
    import requests

    from selfdistill.data.catalogue import DataEntry, Member, SourceFile

    Seen = tuple[SourceFile | Member, "Found"]  # a file, and what it is
T = TypeVar("T")
OFFLINE = "SELFDISTILL_OFFLINE"
TRIES = 5  # that bring nothing, one after the other, before a source is given up
PAUSE = 1.0  # seconds before the second try, twice as long before each that follows
TIMEOUT = 10, 60  # seconds to connect, and without a byte
DOWNLOAD = "download-"  # and the file's name
CHUNK = 2**16  # a broken connection loses as much at most
RESERVE = 2**30  # bytes of the disk that a download of unknown size leaves free


class Readable(Protocol):
    """A stream of bytes."""

    def read(self, size: int, /) -> bytes: ...


class BrokenOffError(Exception):
    """A download that may succeed when it is tried again."""


def fetch(name: str, entry: "DataEntry", raw: Path) -> None:
    """Put the verified files of `selfdistill.data.catalogue.DataEntry` into `raw`/`name`; of several processes one
    does so, and the others wait for it."""
    with alone(raw.parent / f".{name}.fetching", name):
        place = Place(name, entry, raw)
        try:
            for file in entry.files:
                fetch_file(place, file)
        except archives.ArchiveError as error:
            raise FetchError(f"{name}: {error}") from None
        finally:
            place.clear()


@contextmanager
def alone(lock_file: Path, name: str) -> Iterator[None]:
    """Hold a lock that ends with this process; a lock whose file is gone does not count (filelock looks)."""
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{name}: waiting for another process that fetches it", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock_file.unlink(missing_ok=True)
        lock.release()


@dataclass(frozen=True)
class Found:
    """What a file is; md5 only where it is asked for."""

    bytes: int
    sha256: str
    md5: str | None = None


class Place:
    """Where the files of one data set go, and what is known of those whose hash the catalogue lacks."""

    def __init__(self, name: str, entry: "DataEntry", raw: Path) -> None:
        self.name, self.entry = name, entry
        self.folder, self.partial = raw / name, raw / f"{name}.partial"
        self.pin_file = raw.parent / "pins" / f"{name}.json"
        self.pins: dict[str, dict] = {}
        if self.pin_file.is_file():
            with suppress(OutsideError):
                self.pins = json_object(self.pin_file, "")
            pins: list[object] = list(self.pins.values()) or [None]
            if not all(isinstance(pin, dict) and isinstance(pin.get("sha256"), str) for pin in pins):
                raise FetchError(f"{self.pin_file}: not what was written there; bring it back from Git")

    def sha256(self, file: "SourceFile | Member") -> str | None:
        """Of a SourceFile or Member: the catalogue's, or the pinned one."""
        return file.sha256 or self.pins.get(file.name, {}).get("sha256")

    def staged(self, target: str) -> Path:
        self.partial.mkdir(parents=True, exist_ok=True)
        return self.partial / target

    def fault(self, path: Path, found: Found, file: "SourceFile | Member") -> str | None:
        """Why this is not the published file."""
        sha256 = self.sha256(file)
        pinned = "" if file.sha256 else f" (pinned in {self.pin_file})"
        if file.sha256 and not getattr(file, "verified", True):
            pinned = " (listed elsewhere and never verified by this project; see the catalogue)"
        if sha256 is not None:
            fault = f"SHA-256 {found.sha256}, expected {sha256}{pinned}" if found.sha256 != sha256 else None
        elif file.md5 is not None:
            fault = f"MD5 {found.md5}, expected {file.md5}" if found.md5 != file.md5 else None
        elif file.bytes is not None and found.bytes != file.bytes:
            fault = f"{found.bytes:,} bytes, expected {file.bytes:,}"
        else:
            fault = None if looks_like(path, file.name) else f"not a {Path(file.name).suffix} file"
        if fault and is_page(path):
            return f"a web page and not the file; {fault}"
        return fault

    def pin(self, found: "list[Seen]") -> None:
        """Keep what the first fetched files are, [(SourceFile or Member, Found)], and say so."""
        new = [(file, f) for file, f in found if self.sha256(file) is None]
        if not new:
            return
        for file, f in new:
            known = "its MD5 is the published one" if file.md5 else "there was nothing to compare it with"
            print(f"{self.name}: {file.name}: {f.bytes:,} bytes, SHA-256 {f.sha256}; {known}", file=sys.stderr)
        self.pins |= {file.name: {"bytes": f.bytes, "sha256": f.sha256} for file, f in new}
        write_atomically(self.pin_file, (json.dumps(self.pins, indent=1, sort_keys=True) + "\n").encode())
        print(f"{self.name}: pinned in {self.pin_file}; keep that file in Git", file=sys.stderr)

    def clear(self) -> None:
        """Remove what is half done, except a download that can be continued, and empty folders."""
        for path in self.partial.glob("*"):
            if not path.name.startswith(DOWNLOAD):
                path.unlink()
        for folder in (self.partial, self.folder, self.folder.parent):
            with suppress(OSError):
                folder.rmdir()


# ---- one file ----


def fetch_file(place: Place, file: "SourceFile") -> None:
    """Bring one SourceFile, or its wanted members, unless they are there."""
    wanted: Sequence[SourceFile | Member] = file.unpacked or [file]
    if file.in_place:
        note_in_place(place, file)
        return
    if all(is_there(place.folder / w.target, place.sha256(w)) for w in wanted):
        return
    found: list[Seen] = unpacked(place, file) if file.unpacked else [(file, whole(place, file))]
    place.pin(found)
    place.folder.mkdir(parents=True, exist_ok=True)
    for w in wanted:
        os.replace(place.staged(w.target), place.folder / w.target)
    place.staged(download_name(file)).unlink(missing_ok=True)


def note_in_place(place: Place, file: "SourceFile") -> None:
    """Verify a file that stays in the mirror, and leave a note of it: a copy of ImageNet would be 147 GB, and
    DVC's cache would make another."""
    note = place.folder / f"{file.name}.json"
    known = place.sha256(file)
    with suppress(OutsideError):  # it is written anew
        if known and note.is_file() and json_object(note, "").get("sha256") == known:
            return
    path, found = archive(place, file)
    if archives.is_archive(file.name):
        checked(place, file, lambda: archives.check(path))
    place.pin([(file, found)])
    content = {"name": file.name, "bytes": found.bytes, "sha256": found.sha256}
    write_atomically(note, (json.dumps(content, indent=1) + "\n").encode())


def is_there(path: Path, sha256: str | None) -> bool:
    return sha256 is not None and path.is_file() and sha256_of(path) == sha256


def whole(place: Place, file: "SourceFile") -> Found:
    """Stage a file that is kept unchanged."""
    path, found = archive(place, file)
    target = place.staged(file.target)
    if path.parent == place.partial:
        os.replace(path, target)
    else:
        found = digests(path, copy=target, md5=file.md5 is not None)
        refuse(path, place.fault(target, found, file))
    if archives.is_archive(file.name):
        checked(place, file, lambda: archives.check(target))
    return found


def unpacked(place: Place, file: "SourceFile") -> "list[Seen]":
    """Stage the wanted members, as they lie in the mirror or from the archive: [(file or member, Found)]."""
    paths = [in_mirror(place.name, member.name, member.bytes) for member in file.unpacked]
    there = [path for path in paths if path is not None]
    if len(there) == len(paths) and verifiable(place, file):
        seen: list[Seen] = []
        for member, path in zip(file.unpacked, there, strict=True):
            found = digests(path, copy=place.staged(member.target), md5=True)
            refuse(path, place.fault(path, found, member))
            seen.append((member, found))
        return seen
    path, whole_archive = archive(place, file)
    return [(file, whole_archive), *checked(place, file, lambda: take_out(place, file, path))]


def verifiable(place: Place, file: "SourceFile") -> bool:
    """Whether the members of an archive can be told from others without it."""
    return all(place.sha256(member) or member.md5 for member in file.unpacked)


def checked(place: Place, file: "SourceFile", action: Callable[[], T]) -> T:
    """An action on an archive; if it is refused, the message says what to do, and the archive is not kept."""
    try:
        return action()
    except archives.DAMAGED as error:
        place.staged(download_name(file)).unlink(missing_ok=True)
        raise FetchError(
            f"{place.name}: {file.name} cannot be unpacked ({error}); correct its entry in data/params.yaml, or get "
            "the file from its publisher again"
        ) from None


def take_out(place: Place, file: "SourceFile", path: Path) -> "list[Seen]":
    """Stage the wanted members of an archive: regular files of exactly the declared name, size and hash."""
    wanted, found = {member.name: member for member in file.unpacked}, {}
    contents: Iterator[tuple[str, int | None, Readable]]
    if file.name.endswith(archives.KNOWN):
        sizes = [member.bytes for member in file.unpacked if member.bytes is not None]
        # twice what is wanted leaves room for whatever else lies in a published archive
        most = 2 * sum(sizes) + 2**20 if len(sizes) == len(file.unpacked) else None
        contents = archives.members(path, most)
    else:
        contents = gunzipped(path, file.unpacked[0])
    for name, size, content in contents:
        member = wanted.get(name)
        if member is not None and member.bytes in (None, size):
            target = place.staged(member.target)
            found[name] = digests_of(content, target, md5=member.md5 is not None)
            if fault := place.fault(target, found[name], member):
                raise ValueError(f"{name}: {fault}")
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ValueError(f"{missing[0]} is not in it with the catalogue's size and SHA-256")
    return [(member, found[member.name]) for member in file.unpacked]


def gunzipped(path: Path, member: "Member") -> "Iterator[tuple[str, int | None, Limited]]":
    """The one content of a .gz; one byte more than declared is enough to refuse it."""
    most = member.bytes if member.bytes is not None else archives.RATIO * path.stat().st_size + 2**20
    with gzip.open(path) as content:
        yield member.name, member.bytes, Limited(content, most)


class Limited:
    """A stream of at most so many bytes."""

    def __init__(self, stream: Readable, most: int) -> None:
        self.stream, self.most, self.left = stream, most, most

    def read(self, size: int) -> bytes:
        content = self.stream.read(min(size, self.left + 1))
        self.left -= len(content)
        if self.left < 0:
            raise ValueError(f"it unpacks to more than {self.most:,} bytes")
        return content


def digests(path: Path, copy: Path | None = None, md5: bool = False) -> Found:
    with open(path, "rb") as file:
        return digests_of(file, copy, md5)


def digests_of(stream: Readable, copy: Path | None = None, md5: bool = False) -> Found:
    """Of a stream to its end, which is copied meanwhile."""
    size, sha256, old = 0, hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with open(copy or os.devnull, "wb") as target:
        while block := stream.read(2**20):
            size += len(block)
            sha256.update(block)
            if md5:
                old.update(block)
            if copy:
                target.write(block)
        if copy:
            target.flush()
            os.fsync(target.fileno())
    return Found(size, sha256.hexdigest(), old.hexdigest() if md5 else None)


def refuse(path: Path, fault: str | None) -> None:
    if fault:
        raise FetchError(f"{path}: {fault}; replace the file, it is not the published one")


FIRST_BYTES = {".gz": b"\x1f\x8b", ".tgz": b"\x1f\x8b", ".zip": b"PK", ".npy": b"\x93NUMPY"}


def looks_like(path: Path, name: str) -> bool:
    """Whether a file without a known hash begins as its name promises."""
    with open(path, "rb") as file:
        head = file.read(262)
    if name.endswith(".tar"):
        return head[257:] == b"ustar"
    return head.startswith(FIRST_BYTES.get(Path(name).suffix, b"")) and not is_page(path)


# What a web page may begin with, by and large as browsers tell one; no CSV, archive or array does.
PAGE = (b"<!doctype", b"<!--", b"<html", b"<head", b"<body", b"<title", b"<meta", b"<script", b"<?xml")


def is_page(path: Path) -> bool:
    with open(path, "rb") as file:
        head = file.read(4096)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        head = head[2:].replace(b"\0", b"")
    return head.removeprefix(codecs.BOM_UTF8).lstrip().lower().startswith(PAGE)


# ---- where files come from ----


def archive(place: Place, file: "SourceFile") -> tuple[Path, Found]:
    """The verified published file: in the mirror or a package, or downloaded from the first source that has it."""
    path = in_mirror(place.name, file.name)
    if path is not None:
        return path, verified(place, path, file)
    failures = []
    for source in file.sources:
        if source.startswith("folder://"):
            return listed(place, source, file)
        try:
            if source.startswith("package://"):
                path = in_package(source)
                return path, verified(place, path, file)
            return downloaded(place, source, file)
        except (FetchError, OSError, ValueError) as error:
            failures.append(f"{source}: {str(error).splitlines()[0]}")
    size = f" ({file.bytes:,} bytes)" if file.bytes else ""
    looked = not_in_mirror(place, file)
    if not failures:
        how = f"SHA-256 {place.sha256(file)}" if place.sha256(file) else f"MD5 {file.md5}" if file.md5 else None
        raise FetchError(
            f"{place.name}: {file.name}{size} must be obtained by you: {place.entry.obtain}{looked}. Put it into a "
            f"folder and name the folder in {MIRROR}; "
            + (f"it is checked by its {how}" if how else "its SHA-256 is taken from the first one and pinned")
        )
    raise FetchError(
        f"{place.name}: {file.name}{size} could not be fetched from any source: {'; '.join(failures)}{looked}. Put the "
        f"file into a folder and name the folder in {MIRROR} to go on without the network"
    )


def verified(place: Place, path: Path, file: "SourceFile") -> Found:
    found = digests(path, md5=file.md5 is not None)
    refuse(path, place.fault(path, found, file))
    return found


def not_in_mirror(place: Place, file: "SourceFile") -> str:
    """What was looked for in the mirror folder and is not there; nothing where none is named."""
    folder = mirror_folder()
    if folder is None:
        return ""
    looked = f"; not found in {MIRROR}={folder} nor in {place.name}/ there: {file.name}"
    if not verifiable(place, file):
        return looked
    for member in file.unpacked:
        if in_mirror(place.name, member.name, member.bytes) is None:
            names = [member.name] if member.bytes is None else [member.name, *tails(member.name)]
            size = "" if member.bytes is None else f" of {member.bytes:,} bytes"
            looked += f"; unpacked: {' or '.join(names)}{size}"
    return looked


def in_package(source: str) -> Path:
    """package://PACKAGE/PATH: a file that an installed package ships."""
    package, path = source.removeprefix("package://").split("/", 1)
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FetchError(f"the package {package} is not installed")
    return Path(spec.submodule_search_locations[0]) / path


def listed(place: Place, source: str, file: "SourceFile") -> tuple[Path, Found]:
    """The list of a folder's files (`selfdistill.data.folder`), in place of the files."""
    from selfdistill.data.folder import list_of

    folder = place.folder.parent.parent / source.removeprefix("folder://")
    path = place.staged(download_name(file))
    try:
        path.write_bytes(list_of(folder))
    except ValueError as error:
        raise FetchError(f"{place.name}: {error}") from None
    found = digests(path)
    if found.sha256 != file.sha256:
        path.unlink()
        raise FetchError(
            f"{place.name}: {folder} has changed since it was described (the SHA-256 of the list of its files is "
            f"{found.sha256}, expected {file.sha256}); describe it anew, or bring the old files back"
        )
    return path, found


def download_name(file: "SourceFile") -> str:
    return DOWNLOAD + file.name


def downloaded(place: Place, source: str, file: "SourceFile") -> tuple[Path, Found]:
    """A verified download, from a URL, or from `file.name` under it if it ends with a slash."""
    if os.environ.get(OFFLINE, "0") not in ("", "0"):
        raise FetchError(f"not asked, because {OFFLINE} is set")
    url = source + file.name if source.endswith("/") else source
    path = place.staged(download_name(file))
    checkable = place.sha256(file) or file.md5
    if not checkable:  # two halves of two files would not be noticed
        path.unlink(missing_ok=True)
    for resumed in (path.exists(), False):
        download(url, path, file, resumable=bool(checkable))
        found = digests(path, md5=file.md5 is not None)
        fault = place.fault(path, found, file)
        if fault is None:
            return path, found
        path.unlink()
        if not resumed:  # else the half that was there may be what is wrong
            break
    raise FetchError(fault)


def download(url: str, path: Path, file: "SourceFile", resumable: bool) -> None:
    """Bring `path` to its full length, from where it ends, over as many connections as bring something."""
    import requests  # here, because a mirror does without it

    failures, longest = 0, path.stat().st_size if path.exists() else 0
    with requests.Session() as session:
        while True:
            try:
                return receive(session, url, path, file)
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
                reason = f"the connection broke ({type(error).__name__})"
            except BrokenOffError as error:
                reason = str(error)
            size = path.stat().st_size if path.exists() else 0
            failures, longest = (1, size) if size > longest else (failures + 1, longest)
            if not resumable:
                path.unlink(missing_ok=True)
            if failures >= TRIES:
                raise FetchError(f"{reason}, {TRIES} times")
            time.sleep(PAUSE * 2 ** (failures - 1))


def receive(session: "requests.Session", url: str, path: Path, file: "SourceFile") -> None:
    """Go on with `path` in one request.  Raises BrokenOffError where another may do better, else FetchError."""
    from tqdm import tqdm

    have = path.stat().st_size if path.exists() else 0
    if have and have == file.bytes:
        return
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        status = answer.status_code
        if status in (408, 429) or status >= 500:
            raise BrokenOffError(f"HTTP {status}")
        part = answer.headers.get("Content-Range", "")
        if status == 416 or (status == 206 and not part.startswith(f"bytes {have}-")):
            path.unlink(missing_ok=True)
            raise BrokenOffError(f"HTTP {status} with another part than the one asked for")
        if status not in (200, 206):
            raise FetchError(f"HTTP {status} {answer.reason}")
        have = have if status == 206 else 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else file.bytes
        if file.bytes is not None and total != file.bytes:
            raise FetchError(f"{total:,} bytes offered, {file.bytes:,} expected")
        bar = tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=file.name, disable=None, leave=False)
        with open(path, "ab" if have else "wb") as target, bar:
            for block in answer.iter_content(CHUNK):
                have += len(block)
                if total is not None and have > total:
                    path.unlink()
                    raise FetchError(f"more than {total:,} bytes come")
                if file.bytes is None and shutil.disk_usage(path.parent).free < RESERVE:
                    path.unlink()
                    raise FetchError(
                        f"{have:,} bytes came, without an end in sight, and the disk has less than {RESERVE:,} left; "
                        "write its `bytes` into data/params.yaml, or make room"
                    )
                target.write(block)
                bar.update(len(block))
    if total is not None and have < total:
        if is_page(path):
            path.unlink()
            raise FetchError("a web page and not the file")
        raise BrokenOffError(f"the connection ended after {have:,} of {total:,} bytes")
