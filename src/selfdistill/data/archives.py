"""Archives, read with suspicion: tar, tar.gz and zip.

Nothing is ever unpacked by the names that an archive gives.  Its members are read one by one into places
that the caller chooses, and an archive is refused as a whole, before any of it is used, where a name
leaves its folder, a member is a link or a device, is there twice, or unpacks to more than it may.
"""

import gzip
import lzma
import re
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, BinaryIO, NoReturn, cast

from selfdistill.errors import UserError

TAR, GZIPPED_TAR, ZIP = (".tar",), (".tar.gz", ".tgz"), (".zip",)
KNOWN = TAR + GZIPPED_TAR + ZIP
# An archive of photographs or arrays hardly shrinks; deflate at its utmost makes 1,032 bytes of one.
RATIO = 100

# Bytes of a header that extends another one: names of 1,024 bytes and attributes need less.  Some of tarfile's
# patterns take time with the square of it (CVE-2024-6232): 0.3 s for so many.
HEADER = 2**14

# All that a damaged archive makes the standard library raise; a chain of long names ends in a RecursionError.
DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    ValueError,
    IndexError,
    OverflowError,
    MemoryError,
    RecursionError,
    NotImplementedError,
    struct.error,
)


class ArchiveError(UserError, ValueError):
    """An archive that is damaged or hostile."""


def is_archive(name: str) -> bool:
    return name.endswith(KNOWN)


def safe_name(name: str) -> str:
    """The name of a member, if it stays inside the folder that the archive stands for, on any system."""
    shown = ascii(name[:80])
    if not name.isprintable():  # control signs, unpaired surrogates, signs that turn the reading direction
        raise ArchiveError(f"the name {shown} holds signs that cannot be printed")
    if name.startswith("/") or "\\" in name or re.match("[A-Za-z]:", name) or ".." in name.split("/"):
        raise ArchiveError(f"the name {shown} leaves the archive's folder")
    if len(name.encode()) > 1024 or any(len(part.encode()) > 255 for part in name.split("/")):
        raise ArchiveError(f"the name {shown}... is longer than file systems allow")
    return unicodedata.normalize("NFC", name.removeprefix("./"))


class Once:
    """Names, each allowed once."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def __call__(self, name: str) -> str:
        if name in self.seen:
            raise ArchiveError(f"{name!a} stands in it twice")
        self.seen.add(name)
        return name


def members(path: Path, most: int | None = None) -> Iterator[tuple[str, int, IO[bytes]]]:
    """(name, bytes, content) of every file of an archive, in its order; read a content before going on.

    most: bytes that the whole may unpack to; RATIO times its own size if None.  Raises ArchiveError, at
    the member that shows that the archive must not be used: trust no member before the last has passed.
    """
    most = RATIO * path.stat().st_size + 2**20 if most is None else most
    try:
        yield from (zip_members if path.name.endswith(ZIP) else tar_members)(path, most)
    except ArchiveError:
        raise
    except DAMAGED as error:
        raise ArchiveError(str(error) or type(error).__name__) from None


def tar_members(path: Path, most: int) -> Iterator[tuple[str, int, IO[bytes]]]:
    with ExitStack() as stack:
        content: BinaryIO | gzip.GzipFile = stack.enter_context(open(path, "rb"))
        if path.name.endswith(GZIPPED_TAR):
            content = stack.enter_context(gzip.open(path))
        stream = cast("IO[bytes]", Bounded(content, most))  # tarfile reads from this, and from nothing else
        tar = stack.enter_context(tarfile.open(fileobj=stream, mode="r|", tarinfo=Member))
        once = Once()
        for member in tar:
            name = regular(member)
            held = tar.extractfile(member) if name is not None else None
            if name is not None and held is not None:
                yield once(name), member.size, held


class Member(tarfile.TarInfo):
    """A header that is refused before tarfile trusts what it says of the bytes that follow.

    A tar ends in a block of zeros: a header that is cut off, damaged or missing, which tarfile takes for the end
    where members came before, is refused too, for nobody could say what followed.
    Of a file of holes tarfile reads a map as long as that map says, also past the end: the map is not read."""

    EXTENDING = (
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
    )

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "Member":
        try:
            member = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise ArchiveError(f"a header is cut off or damaged ({error})") from None
        if member.type in cls.EXTENDING and member.size > HEADER:
            raise ArchiveError(f"a header of {member.size:,} bytes; allowed: {HEADER:,}")
        if member.type == tarfile.GNUTYPE_SPARSE:
            member._proc_sparse(None)
        return member.of_a_size()

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "Member":
        return super().fromtarfile(tar).of_a_size()  # again, for a header that extends it may say another

    def of_a_size(self) -> "Member":
        if self.size < 0:
            raise ArchiveError(f"{self.name[:80]!a} has {self.size:,} bytes")
        return self

    def _proc_sparse(self, *_: object) -> NoReturn:
        raise ArchiveError(f"{self.name[:80]!a} is a device or another special file")

    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _proc_sparse


def regular(member: tarfile.TarInfo) -> str | None:
    """The safe name of a file, None for a folder; nothing else may lie in an archive."""
    name = safe_name(member.name)
    if member.isdir():
        return None
    if not member.isreg() or member.issparse():
        kind = {tarfile.SYMTYPE: "a symbolic link", tarfile.LNKTYPE: "a hard link", tarfile.FIFOTYPE: "a pipe"}
        raise ArchiveError(f"{name!a} is {kind.get(member.type, 'a device or another special file')}")
    return name


def zip_members(path: Path, most: int) -> Iterator[tuple[str, int, IO[bytes]]]:
    with zipfile.ZipFile(path) as archive:
        for name, member in zip_index(archive, most).items():
            with archive.open(member) as content:  # which ends at the declared size, and checks the CRC there
                yield name, member.file_size, content


def zip_index(archive: zipfile.ZipFile, most: int) -> dict[str, zipfile.ZipInfo]:
    """{safe name: member} of the files of a zip archive, all of whose headers were checked."""
    once, found, left = Once(), {}, most
    for member in archive.infolist():
        # what the archive says, not what zipfile makes of it: it cuts a name at its first zero byte
        name = safe_name(member.orig_filename)
        if member.is_dir():
            continue
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise ArchiveError(f"{name!a} is a link or a special file")
        if member.flag_bits & 1:
            raise ArchiveError(f"{name!a} is encrypted")
        left -= member.file_size
        if left < 0:
            raise ArchiveError(f"it unpacks to more than {most:,} bytes")
        found[once(name)] = member
    return found


def check(path: Path) -> None:
    """Refuse a bad archive that is kept packed, from its headers; a compressed tar is read to its end."""
    if path.name.endswith(ZIP):
        try:
            with zipfile.ZipFile(path) as archive:
                zip_index(archive, RATIO * path.stat().st_size + 2**20)
        except DAMAGED as error:
            raise ArchiveError(str(error)) from None
    elif path.name.endswith(GZIPPED_TAR):
        for _ in members(path):
            pass
    elif path.name.endswith(TAR):
        with open(path, "rb") as file:
            tar_index(file)


def tar_index(file: BinaryIO, end: int | None = None) -> dict[str, tuple[int, int]]:
    """{safe name: (first byte, bytes)} of the files of an uncompressed tar that begins where `file` stands.

    end: where the file, or the tar around this one, ends.  For random access without unpacking.
    """
    if end is None:
        here = file.tell()
        end = file.seek(0, 2)
        file.seek(here)
    once, found = Once(), {}
    try:
        with tarfile.open(fileobj=file, mode="r:", tarinfo=Member) as tar:
            for member in tar:
                if member.offset_data + member.size > end:
                    raise ArchiveError(f"{member.name[:80]!a} is cut off")
                name = regular(member)
                if name is not None:
                    found[once(name)] = member.offset_data, member.size
                tar.members.clear()  # type: ignore[attr-defined]  # else 1,000,000 headers would stay in memory
    except ArchiveError:
        raise
    except DAMAGED as error:
        raise ArchiveError(str(error) or type(error).__name__) from None
    return found


class Bounded:
    """A stream that refuses to give more than `limit` bytes, or to be read at its end: a header of a
    hostile archive may claim any size, and tarfile would go through so many bytes, or wait for them."""

    def __init__(self, stream: BinaryIO | gzip.GzipFile, limit: int) -> None:
        self.stream, self.limit, self.left = stream, limit, limit

    def read(self, size: int) -> bytes:
        content = self.stream.read(size)
        self.left -= len(content)
        if self.left < 0:
            raise ArchiveError(f"it unpacks to more than {self.limit:,} bytes")
        if size and not content:
            raise EOFError("it ends too early")
        return content
