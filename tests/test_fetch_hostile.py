"""Damaged and hostile files: each is refused in one line that says what to do, and nothing of it stays."""

import gzip
import hashlib
import http.server
import io
import json
import os
import pickle
import stat
import subprocess
import sys
import tarfile
import threading
import time
import warnings
import zipfile

import pytest

from selfdistill.data import archives
from selfdistill.data import fetch as fetch_module
from selfdistill.data.catalogue import DataEntry
from selfdistill.data.fetch import MIRROR, OFFLINE, FetchError, fetch

CONTENT = {"set/images.bin": os.urandom(50_000), "set/labels.bin": bytes(range(100))}
KEPT = {name.rpartition("/")[2]: content for name, content in CONTENT.items()}


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    monkeypatch.delenv(MIRROR, raising=False)
    monkeypatch.delenv(OFFLINE, raising=False)
    monkeypatch.setattr(fetch_module, "PAUSE", 0)


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    folder = tmp_path / "mirror"
    folder.mkdir()
    monkeypatch.setenv(MIRROR, str(folder))
    return folder


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def made_entry(name: str, published: bytes, members: bool = True, sources=("http://127.0.0.1:9/",), **changes):
    """A data set of one file, of which the catalogue gives this hash."""
    unpacked = [{"name": n, "bytes": len(c), "sha256": sha256(c)} for n, c in CONTENT.items()] if members else []
    file = {"name": name, "bytes": len(published), "sha256": sha256(published), "sources": list(sources)}
    return DataEntry.model_validate(
        {
            "title": "made",
            "reader": "idx",
            "licence": "none",
            "citation": "none",
            "obtain": "ask its author",
            "classes": ["a", "b"],
            "split": {"train": 2, "validation": 1, "seed": 0},
            "files": [file | {"unpacked": unpacked} | changes],
        }
    )


# ---- real archives ----


def tarred(*more: tuple, content=CONTENT, mode: str = "w:gz") -> bytes:
    """A tar of the wanted files after others, (name, bytes or a type, link)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, what, *link in [*more, *content.items()]:
            info = tarfile.TarInfo(name)
            if (isinstance(what, bytes) and len(what) > 1) or what == b"":
                info.size = len(what)
                tar.addfile(info, io.BytesIO(what))
            else:
                info.type, info.linkname = what, "".join(link)
                tar.addfile(info)
    return buffer.getvalue()


def zipped(*more: tuple, content=CONTENT) -> bytes:
    """A zip of the wanted files after others, (name, bytes, mode)."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        warnings.simplefilter("ignore")  # of names that stand there twice
        for name, what, *mode in [*more, *content.items()]:
            info = zipfile.ZipInfo("placeholder")
            info.filename = name
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (mode[0] if mode else stat.S_IFREG | 0o644) << 16
            archive.writestr(info, what)
    return buffer.getvalue()


def damaged_lzma() -> bytes:
    """A zip whose labels are packed with LZMA, with settings that LZMA does not have."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("set/labels.bin", CONTENT["set/labels.bin"])
    return changed(buffer.getvalue(), b"\x09\x04\x05\0\x5d", b"\x09\x04\x05\0\xff")


def changed(content: bytes, old: bytes, new: bytes) -> bytes:
    assert content.count(old)
    return content.replace(old, new)


def overlapping_zip() -> bytes:
    """A bomb of many directory entries for one compressed block (Fifield 2019)."""
    packed = zipped(("bomb", bytes(2**20)), content={})
    at = packed.index(b"PK\x01\x02")
    end = packed.index(b"PK\x05\x06")
    header = packed[at:end]
    headers = b"".join(header.replace(b"bomb", b"%04d" % i) for i in range(200))
    tail = bytearray(packed[end:])
    tail[8:12] = (200).to_bytes(2, "little") * 2
    tail[12:16] = len(headers).to_bytes(4, "little")
    return packed[:at] + headers + bytes(tail)


# ---- headers that no tar program writes ----


def header(name: bytes, kind: bytes = tarfile.REGTYPE, size: int = 0) -> bytes:
    """512 bytes of a tar's header; a size that is negative or takes more than eleven octal digits in base 256."""
    digits = b"%011o\0" % size
    if not 0 <= size < 8**11:
        digits = (size if size < 0 else size + 2**95).to_bytes(12, "big", signed=size < 0)
    fields = name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + digits + b"00000000000\0"
    rest = kind + bytes(100) + b"ustar\x0000"
    block = (fields + b" " * 8 + rest).ljust(512, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def extended(content: bytes, after: bytes = b"", kind: bytes = tarfile.XHDTYPE) -> bytes:
    """A header with bytes of its own, that extends the one after it."""
    return header(b"extended", kind, len(content)) + content + bytes(-len(content) % 512) + after


def record(key: str, value: str) -> bytes:
    body = f" {key}={value}\n"
    return f"{len(body) + 2}{body}".encode()


FIRST = header(b"first", size=512) + bytes(512)
END = bytes(1024)
HOLES = record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0")
FALSE_HEADERS = {
    "a PAX header of 200,000 digits": (extended(b"1" * 200_000, header(b"a")) + END, r"a header of 200,000 bytes"),
    "a PAX header of 2^60 bytes": (header(b"a", tarfile.XHDTYPE, 2**60) + END, r"a header of [\d,]+ bytes; allowed"),
    "a name of 2^60 bytes": (header(b"a", tarfile.GNUTYPE_LONGNAME, 2**60) + END, r"a header of [\d,]+ bytes; allowed"),
    "a link of 2^34 bytes": (header(b"a", tarfile.GNUTYPE_LONGLINK, 2**34) + END, r"a header of [\d,]+ bytes; allowed"),
    "a member of -1 bytes": (header(b"a", size=-1) + END, "'a' has -1 bytes"),
    "a member of -1,024 bytes after another": (FIRST + header(b"a", size=-1024) + END, "'a' has -1,024 bytes"),
    "-512 bytes by a PAX header": (extended(record("size", "-512"), header(b"a")) + END, "'a' has -512 bytes"),
    "a folder of -512 bytes": (header(b"a/", tarfile.DIRTYPE, -512) + END, "'a' has -512 bytes"),
    "a name of -512 bytes": (header(b"a", tarfile.GNUTYPE_LONGNAME, -512) + END, "'a' has -512 bytes"),
    "a file of holes": (header(b"a", tarfile.GNUTYPE_SPARSE, 512) + END, "special file"),
    "a second header that is cut off": (FIRST + header(b"a")[:300], "a header is cut off or damaged|ends too early"),
    "a second header that is damaged": (
        FIRST + header(b"a").replace(b"a", b"b", 1) + END,
        "header is cut off or damaged",
    ),
    "a tar without its end": (FIRST, "a header is cut off or damaged|ends too early"),
    "a file of endless holes": (
        extended(HOLES, header(b"a", size=9)) + b"9\n".ljust(512, b"1"),
        "special file",
    ),
}


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
@pytest.mark.parametrize(("content", "words"), FALSE_HEADERS.values(), ids=list(FALSE_HEADERS))
@pytest.mark.parametrize("members", [True, False])
def test_a_header_that_lies_is_refused_before_it_is_believed(members, content, words, name, mirror, tmp_path):
    """Where no hash is known, so that the archive's own headers are all there is."""
    (mirror / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    before = sorted(tmp_path.rglob("*"))
    entry = made_entry(name, b"-", members, **UNVERIFIED | ({"unpacked": NO_HASHES["unpacked"]} if members else {}))
    begun = time.process_time()
    with pytest.raises(FetchError, match=words) as error:
        fetch("made", entry, tmp_path / "raw")
    assert time.process_time() - begun < 5
    assert len(str(error.value).splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_long_names_and_attributes_of_honest_archives_are_read(mirror, tmp_path):
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
            info = tarfile.TarInfo("/".join(["n" * 200] * 5))
            info.pax_headers = {"SCHILY.xattr.user.comment": "x" * 10_000}
            tar.addfile(info)
        (mirror / "x.tar").write_bytes(buffer.getvalue())
        fetch("made", made_entry("x.tar", buffer.getvalue(), members=False), tmp_path / str(form))
        assert contents(tmp_path / str(form) / "made") == {"x.tar": buffer.getvalue()}


OTHER = b"other content"
HOSTILE = {  # the hash is the catalogue's: what is inside must be refused
    "a name that climbs out of a tar": ("x.tar.gz", tarred(("../outside", OTHER))),
    "a name that climbs out on the way": ("x.tar.gz", tarred(("set/../../outside", OTHER))),
    "an absolute name in a tar": ("x.tar.gz", tarred(("/etc/cron.d/outside", OTHER))),
    "a drive letter in a tar": ("x.tar.gz", tarred(("C:/outside", OTHER))),
    "backslashes in a tar": ("x.tar.gz", tarred(("..\\..\\outside", OTHER))),
    "a symbolic link in a tar": ("x.tar.gz", tarred(("set", tarfile.SYMTYPE, "/etc"))),
    "a hard link in a tar": ("x.tar.gz", tarred(("set/passwd", tarfile.LNKTYPE, "/etc/passwd"))),
    "a device in a tar": ("x.tar.gz", tarred(("set/null", tarfile.CHRTYPE))),
    "a pipe in a tar": ("x.tar.gz", tarred(("set/pipe", tarfile.FIFOTYPE))),
    "a member twice in a tar": ("x.tar.gz", tarred(("set/labels.bin", CONTENT["set/labels.bin"]))),
    "a member twice, spelt otherwise": ("x.tar.gz", tarred(("./set/labels.bin", OTHER))),
    "a member missing from a tar": ("x.tar.gz", tarred(content={"set/labels.bin": CONTENT["set/labels.bin"]})),
    "a member of other bytes in a tar": ("x.tar.gz", tarred(content=CONTENT | {"set/labels.bin": bytes(100)})),
    "a member of another size in a tar": ("x.tar.gz", tarred(content=CONTENT | {"set/labels.bin": bytes(99)})),
    "a gzip bomb": ("x.tar.gz", tarred(("set/zeros", bytes(2**24)))),
    "a bomb within a plain tar": ("x.tar", tarred(("set/zeros", bytes(2**22)), mode="w")),
    "a name longer than any file system's": ("x.tar.gz", tarred(("set/" + "n" * 300, OTHER))),
    "a path longer than any file system's": ("x.tar.gz", tarred(("set/" * 400 + "name", OTHER))),
    "a name that turns the reading direction": ("x.tar.gz", tarred(("set/\u202egpj.exe", OTHER))),
    "a name with a line break": ("x.tar.gz", tarred(("set/a\nb", OTHER))),
    "a name that climbs out of a zip": ("x.zip", zipped(("../outside", OTHER))),
    "an absolute name in a zip": ("x.zip", zipped(("/outside", OTHER))),
    "backslashes in a zip": ("x.zip", zipped(("set\\..\\..\\outside", OTHER))),
    "a drive letter in a zip": ("x.zip", zipped(("c:outside", OTHER))),
    "a zero byte in a zip's name": ("x.zip", changed(zipped(("set/0#.bin", OTHER)), b"set/0#.bin", b"set/0\0.bin")),
    "a symbolic link in a zip": ("x.zip", zipped(("set/link", b"/etc/passwd", stat.S_IFLNK | 0o777))),
    "a pipe in a zip": ("x.zip", zipped(("set/pipe", b"", stat.S_IFIFO | 0o644))),
    "a member twice in a zip": ("x.zip", zipped(("set/labels.bin", OTHER))),
    "a member missing from a zip": ("x.zip", zipped(content={"set/labels.bin": CONTENT["set/labels.bin"]})),
    "a member of other bytes in a zip": ("x.zip", zipped(content=CONTENT | {"set/labels.bin": bytes(100)})),
    "a zip bomb": ("x.zip", zipped(("set/zeros", bytes(2**24)))),
    "a zip bomb of overlapping members": ("x.zip", overlapping_zip()),
    "a wrong checksum in a zip": ("x.zip", zipped().replace(zipped()[14:18], b"\1\2\3\4")),
    "another compression, damaged": ("x.zip", damaged_lzma()),
    "a zip without its end": ("x.zip", zipped()[:-30]),
    "a tar that ends in a member": ("x.tar.gz", gzip.compress(tarred(mode="w")[:30_000])),
    "a gzip file that ends too early": ("x.tar.gz", tarred()[:-300]),
    "nothing": ("x.tar.gz", b""),
    "no archive": ("x.zip", b"<html>moved</html>" * 100),
}


@pytest.mark.parametrize(("name", "content"), HOSTILE.values(), ids=list(HOSTILE))
def test_a_hostile_archive_leaves_nothing_behind(name, content, mirror, tmp_path):
    (mirror / name).write_bytes(content)
    entry = made_entry(name, content or b"-", sha256=sha256(content))
    before = sorted(tmp_path.rglob("*"))
    words = rf"^made: {name} cannot be unpacked \(.+\); correct its entry.+again$"
    with pytest.raises(FetchError, match=words) as error:
        fetch("made", entry, tmp_path / "raw")
    assert len(str(error.value).splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


OF_WHAT_IS_WANTED = ("missing", "other", "another", "checksum", "plain tar")
KEPT_WHOLE = [case for case in HOSTILE if not any(word in case for word in OF_WHAT_IS_WANTED)]


@pytest.mark.parametrize("case", KEPT_WHOLE)
def test_a_hostile_archive_that_is_to_be_kept_whole_is_refused_too(case, mirror, tmp_path):
    name, content = HOSTILE[case]
    (mirror / name).write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FetchError, match="cannot be unpacked"):
        fetch("made", made_entry(name, content or b"-", members=False, sha256=sha256(content)), tmp_path / "raw")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tar", "x.zip"])
def test_an_honest_archive_is_unpacked_whatever_its_kind(name, mirror, tmp_path):
    more = [("set/readme.txt", OTHER), ("set/größe-日本.txt", OTHER)]
    content = {"x.tar.gz": tarred(*more), "x.tar": tarred(*more, mode="w"), "x.zip": zipped(*more)}[name]
    (mirror / name).write_bytes(content)
    fetch("made", made_entry(name, content), tmp_path / "raw")
    assert contents(tmp_path / "raw/made") == KEPT
    fetch("made", made_entry(name, content, members=False), tmp_path / "whole")
    assert contents(tmp_path / "whole/made") == {name: content}


def contents(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ---- the mirror ----

GOOD = tarred()
PAGE = b"<!DOCTYPE html><html><title>502 Bad Gateway</title></html>"


def page(path):
    path.write_bytes(PAGE)


WRONG_PLACES = {
    "another file": (lambda path: path.write_bytes(GOOD[:-1] + b"\1"), r"SHA-256 \w+, expected \w+; replace the file"),
    "a truncated file": (lambda path: path.write_bytes(GOOD[:-100]), "replace the file"),
    "an empty file": (lambda path: path.write_bytes(b""), "replace the file"),
    "a web page": (page, "a web page and not the file.+replace the file"),
    "a folder": (lambda path: path.mkdir(), "a folder; put the published file x.tar.gz itself there"),
    "a pipe": (os.mkfifo, "no file that can be read; put"),
    "a link to nothing": (lambda path: path.symlink_to("nowhere"), "no file that can be read; put"),
    "a link to itself": (lambda path: path.symlink_to(path), "no file that can be read; put"),
}


@pytest.mark.parametrize(("make", "words"), WRONG_PLACES.values(), ids=list(WRONG_PLACES))
def test_what_is_not_the_published_file_in_the_mirror_is_refused(make, words, mirror, tmp_path):
    make(mirror / "x.tar.gz")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FetchError, match=words) as error:
        fetch("made", made_entry("x.tar.gz", GOOD), tmp_path / "raw")
    assert str(mirror / "x.tar.gz") in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


class Harmful:
    def __init__(self, folder) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_no_pickle_is_opened_before_its_hash_is_verified(mirror, tmp_path):
    (mirror / "set").mkdir()
    for name in CONTENT:
        (mirror / name).write_bytes(pickle.dumps(Harmful(tmp_path / "harm")))
    harmful = tarred(content=dict.fromkeys(CONTENT, pickle.dumps(Harmful(tmp_path / "harm"))))
    (mirror / "y.tar.gz").write_bytes(harmful)
    for name in ("x.tar.gz", "y.tar.gz"):
        with pytest.raises(FetchError, match="SHA-256"):
            fetch("made", made_entry(name, GOOD), tmp_path / "raw")
    assert not (tmp_path / "harm").exists()
    assert not (tmp_path / "raw").exists()


def test_a_file_that_the_user_must_obtain_is_named_with_its_place_and_hash(tmp_path):
    md5 = hashlib.md5(GOOD).hexdigest()
    for changes, how in (
        ({}, f"checked by its SHA-256 {sha256(GOOD)}"),
        ({"sha256": None, "md5": md5, "verified": False}, f"checked by its MD5 {md5}"),
        ({"sha256": None, "verified": False}, "SHA-256 is taken from the first one and pinned"),
    ):
        with pytest.raises(FetchError, match=f"must be obtained by you: ask its author. Put it.+{MIRROR}.+{how}"):
            fetch("made", made_entry("x.tar.gz", GOOD, sources=(), **changes), tmp_path / "raw")


@pytest.mark.parametrize(
    ("changes", "unpacked"),
    [
        ({}, "; unpacked: set/labels.bin or labels.bin of 100 bytes"),
        ({"unpacked": [{"name": name} for name in CONTENT]}, ""),  # nobody could say what they are
    ],
)
def test_a_mirror_without_the_file_is_told_with_the_names_looked_for(changes, unpacked, mirror, tmp_path):
    (mirror / "images.bin").write_bytes(CONTENT["set/images.bin"])
    with pytest.raises(FetchError, match="must be obtained by you") as error:
        fetch("made", made_entry("x.tar.gz", GOOD, sources=(), **changes), tmp_path / "raw")
    looked = f"; not found in {MIRROR}={mirror} nor in made/ there: x.tar.gz{unpacked}. Put it into a folder"
    assert looked in str(error.value)


@pytest.mark.parametrize("place", [".", "data", "studies/one"])
def test_a_relative_mirror_is_found_from_below_the_repositorys_top(place, tmp_path, monkeypatch):
    """DVC runs a stage in data/, wherever the user stood."""
    top = tmp_path / "outside/top"
    for folder in ("data", "studies/one", "published"):
        (top / folder).mkdir(parents=True)
    (top / "data/params.yaml").touch()
    (top / "published/x.tar.gz").write_bytes(GOOD)
    (tmp_path / "outside/above").mkdir()
    monkeypatch.chdir(top / place)
    monkeypatch.setenv(MIRROR, "published")
    fetch("made", made_entry("x.tar.gz", GOOD), tmp_path / "raw")
    assert contents(tmp_path / "raw/made") == KEPT
    monkeypatch.setenv(MIRROR, "above")
    with pytest.raises(FetchError, match=f"{MIRROR}=above: no such folder") as error:
        fetch("other", made_entry("x.tar.gz", GOOD), tmp_path / "raw")
    assert str(top / "above") in str(error.value)
    assert str(tmp_path / "outside/above") not in str(error.value)


# ---- hashes that nobody has verified ----

UNVERIFIED = {"sha256": None, "bytes": None, "verified": False}
NO_HASHES = {"unpacked": [{"name": name} for name in CONTENT]}


@pytest.mark.parametrize("changes", [UNVERIFIED, UNVERIFIED | NO_HASHES])
def test_the_first_file_of_an_unknown_hash_is_told_and_pinned(changes, mirror, tmp_path, capsys):
    (mirror / "x.tar.gz").write_bytes(GOOD)
    entry = made_entry("x.tar.gz", GOOD, **changes)
    fetch("made", entry, tmp_path / "data/raw")
    told = capsys.readouterr().err
    assert f"{len(GOOD):,} bytes, SHA-256 {sha256(GOOD)}; there was nothing to compare it with" in told
    pins = json.loads((tmp_path / "data/pins/made.json").read_text())
    assert pins["x.tar.gz"] == {"bytes": len(GOOD), "sha256": sha256(GOOD)}
    (mirror / "x.tar.gz").write_bytes(tarred(("set/more", OTHER)))
    fetch("made", entry, tmp_path / "data/raw")  # nothing to do
    assert contents(tmp_path / "data/raw/made") == KEPT
    (tmp_path / "data/raw/made/labels.bin").unlink()
    with pytest.raises(FetchError, match=r"expected \w+ \(pinned in .+made.json\); replace"):
        fetch("made", entry, tmp_path / "data/raw")
    (mirror / "x.tar.gz").write_bytes(GOOD)
    fetch("made", entry, tmp_path / "data/raw")
    assert contents(tmp_path / "data/raw/made") == KEPT
    assert capsys.readouterr().err == ""
    (tmp_path / "data/pins/made.json").write_text('{"x.tar.gz"')
    with pytest.raises(FetchError, match=r"made.json: not what was written there; bring it back from Git"):
        fetch("made", entry, tmp_path / "data/raw")


@pytest.mark.parametrize("content", [PAGE, b"", b"\0" * 1000, GOOD[:-100]])
def test_a_file_of_an_unknown_hash_is_refused_where_it_is_none(content, mirror, tmp_path):
    (mirror / "x.tar.gz").write_bytes(content)
    with pytest.raises(FetchError):
        fetch("made", made_entry("x.tar.gz", GOOD, **UNVERIFIED | NO_HASHES), tmp_path / "data/raw")
    assert not (tmp_path / "data/raw").exists()
    assert not (tmp_path / "data/pins").exists()


PAGES = {
    "a comment": b"<!-- hi --><html>",
    "a byte order mark": b"\xef\xbb\xbf<!DOCTYPE html>",
    "16 bits a sign": "\ufeff\n<HTML>".encode("utf-16-le"),
    "many blank lines": b"\r\n" * 500 + b"<Html lang=en>",
    "no html": b"<head><title>Moved</title></head>",
    "a body alone": b"<body onload=...>",
}


@pytest.mark.parametrize("name", ["x.csv", "x", "x.bin"])
@pytest.mark.parametrize("content", PAGES.values(), ids=list(PAGES))
def test_a_web_page_of_any_beginning_is_not_pinned(content, name, mirror, tmp_path):
    (mirror / name).write_bytes(content)
    with pytest.raises(FetchError, match="a web page and not the file"):
        fetch("made", made_entry(name, GOOD, members=False, **UNVERIFIED), tmp_path / "data/raw")
    assert contents(tmp_path / "data") == {}


NO_PAGES = {
    "x.csv": b"\xef\xbb\xbfname,text\n1,<html>\n",
    "y.csv": b"<3,<!\n",
    "x.zip": zipped(("page.html", PAGE)),
    "x.npy": b"\x93NUMPY\1\0<html>",
    "x.bin": b"\xff\xfe\0\0<html>"[:4] + bytes(9),
}


@pytest.mark.parametrize("name", NO_PAGES)
def test_what_is_no_web_page_is_taken_for_none(name, mirror, tmp_path):
    (mirror / name).write_bytes(NO_PAGES[name])
    fetch("made", made_entry(name, GOOD, members=False, **UNVERIFIED), tmp_path / "data/raw")
    assert contents(tmp_path / "data/raw/made") == {name: NO_PAGES[name]}


def test_a_file_of_which_only_the_md5_is_published_is_checked_by_it(mirror, tmp_path, capsys):
    (mirror / "x.tar.gz").write_bytes(GOOD)
    with pytest.raises(FetchError, match=r"MD5 \w+, expected 0{32}; replace"):
        fetch("made", made_entry("x.tar.gz", GOOD, **UNVERIFIED, md5="0" * 32), tmp_path / "data/raw")
    fetch("made", made_entry("x.tar.gz", GOOD, **UNVERIFIED, md5=hashlib.md5(GOOD).hexdigest()), tmp_path / "data/raw")
    assert "its MD5 is the published one" in capsys.readouterr().err


# ---- the network ----

LARGE = tarred(content=CONTENT | {"set/more": os.urandom(600_000)})


class Serving(http.server.ThreadingHTTPServer):
    """A web server of this machine; `asked` holds (path, Range) of each request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    """/good, /broken (each connection ends after 250,000 bytes), /ignorant (of ranges), /wrong (another range
    than asked for), /busy (503 twice), /down (503), /page, /short, /endless and /gone."""

    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.asked.append((self.path, asked))
        kind, times = self.path.split("/")[1], len(self.server.asked)
        if kind in ("gone", "down") or (kind == "busy" and times < 3):
            return self.send_error(404 if kind == "gone" else 503)
        content = {"page": PAGE, "short": LARGE[:-9], "other": LARGE[::-1]}.get(kind, LARGE)
        first = int(asked.removeprefix("bytes=").rstrip("-")) if asked and kind != "ignorant" else 0
        if first >= len(content):
            return self.send_error(416)
        self.send_response(206 if first else 200)
        if first:
            claimed = first + 7 * (kind == "wrong")
            self.send_header("Content-Range", f"bytes {claimed}-{len(content) - 1}/{len(content)}")
        if kind != "endless":
            self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        self.wfile.write(content[first : first + 250_000 if kind in ("broken", "wrong", "ignorant") else None])
        if kind == "ignorant" and times > 1:
            self.wfile.write(content[250_000:])
        if kind == "endless":
            self.wfile.write(bytes(2**20))
        return self.close_connection

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    with Serving() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def large_entry(*sources: str, **changes) -> DataEntry:
    return made_entry("x.tar.gz", LARGE, sources=sources, **changes)


def test_a_broken_download_goes_on_where_it_broke(server, tmp_path):
    fetch("made", large_entry(f"{server.url}/broken/"), tmp_path / "raw")
    assert contents(tmp_path / "raw") == {f"made/{n}": c for n, c in KEPT.items()}
    starts = [int(asked[6:-1]) for _, asked in server.asked[1:]]
    assert starts == sorted(starts)
    assert starts[0] > 250_000 - 2 * fetch_module.CHUNK
    assert len(server.asked) <= 4


def test_an_interrupted_download_goes_on_in_the_next_process_and_from_another_mirror(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_module, "TRIES", 1)
    partial = tmp_path / "raw/made.partial/download-x.tar.gz"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(LARGE[:300_000])
    with pytest.raises(FetchError, match="HTTP 503, 1 times"):
        fetch("made", large_entry(f"{server.url}/down/"), tmp_path / "raw")
    assert partial.read_bytes() == LARGE[:300_000]
    fetch("made", large_entry(f"{server.url}/good/"), tmp_path / "raw")
    assert server.asked[-1] == ("/good/x.tar.gz", "bytes=300000-")
    assert contents(tmp_path / "raw") == {f"made/{n}": c for n, c in KEPT.items()}
    assert not partial.parent.exists()


@pytest.mark.parametrize("kind", ["ignorant", "wrong", "busy"])
def test_a_server_that_answers_otherwise_than_asked_is_borne(kind, server, tmp_path):
    if kind == "wrong":  # never whole in one connection, and never with the part that was asked for
        with pytest.raises(FetchError, match=r"the connection broke .+, 5 times"):
            fetch("made", large_entry(f"{server.url}/wrong/"), tmp_path / "none")
    good = f"{server.url}/good/" if kind == "wrong" else f"{server.url}/{kind}/"
    fetch("made", large_entry(f"{server.url}/{kind}/", good), tmp_path / "raw")
    assert contents(tmp_path / "raw") == {f"made/{n}": c for n, c in KEPT.items()}


def test_half_a_file_that_is_another_one_is_thrown_away(server, tmp_path):
    partial = tmp_path / "raw/made.partial/download-x.tar.gz"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(bytes(300_000))
    fetch("made", large_entry(f"{server.url}/good/"), tmp_path / "raw")
    assert [asked for _, asked in server.asked] == ["bytes=300000-", None]
    assert contents(tmp_path / "raw") == {f"made/{n}": c for n, c in KEPT.items()}


def test_sources_are_asked_in_order_until_one_has_the_file(server, tmp_path):
    kinds = ["gone", "page", "short", "other", "endless", "good", "down"]
    fetch("made", large_entry(*[f"{server.url}/{kind}/" for kind in kinds]), tmp_path / "raw")
    assert [path.split("/")[1] for path, _ in server.asked] == kinds[:-1]
    assert contents(tmp_path / "raw") == {f"made/{n}": c for n, c in KEPT.items()}


REFUSED = {
    "gone": "HTTP 404",
    "page": "bytes offered",
    "short": "bytes offered",
    "other": "SHA-256",
    "endless": "more than",
}


@pytest.mark.parametrize(("kind", "words"), REFUSED.items())
def test_what_a_source_wrongly_serves_is_told_in_one_line_and_not_kept(kind, words, server, tmp_path):
    with pytest.raises(FetchError, match=f"{server.url}/{kind}/: .*{words}.*Put the file into a folder.*{MIRROR}") as e:
        fetch("made", large_entry(f"{server.url}/{kind}/"), tmp_path / "raw")
    assert len(str(e.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_page_in_place_of_a_file_of_unknown_hash_is_refused(server, tmp_path):
    with pytest.raises(FetchError, match="a web page and not the file"):
        fetch("made", large_entry(f"{server.url}/page/", **UNVERIFIED | NO_HASHES), tmp_path / "raw")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["endless", "good"])
def test_a_download_of_unknown_size_leaves_the_disk_some_room(kind, server, tmp_path, monkeypatch):
    """`good` says how long it is, which is the server's word alone."""
    left = iter(range(10 * fetch_module.RESERVE, -1, -fetch_module.RESERVE))
    usage = fetch_module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(fetch_module.shutil, "disk_usage", lambda _: usage._replace(free=next(left)))
    monkeypatch.setattr(fetch_module, "CHUNK", 2**12)
    words = rf"[\d,]+ bytes came, without an end in sight, and the disk has less than {2**30:,} left; write its `bytes`"
    with pytest.raises(FetchError, match=words) as error:
        fetch("made", large_entry(f"{server.url}/{kind}/", **UNVERIFIED | NO_HASHES), tmp_path / "raw")
    assert len(str(error.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
    fetch("made", large_entry(f"{server.url}/good/"), tmp_path / "raw")  # whose size is known is not asked for


def test_offline_the_network_is_not_asked(server, tmp_path, monkeypatch):
    monkeypatch.setenv(OFFLINE, "1")
    with pytest.raises(FetchError, match=f"not asked, because {OFFLINE} is set.+{MIRROR}"):
        fetch("made", large_entry(f"{server.url}/good/"), tmp_path / "raw")
    assert server.asked == []
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror/x.tar.gz").write_bytes(LARGE)
    monkeypatch.setenv(MIRROR, str(tmp_path / "mirror"))
    fetch("made", large_entry(f"{server.url}/good/"), tmp_path / "raw")
    assert server.asked == []


def test_of_several_processes_one_fetches(server, tmp_path):
    entry = large_entry(f"{server.url}/broken/").model_dump_json()
    code = (
        "import sys, pathlib; from selfdistill.data.catalogue import DataEntry;"
        "from selfdistill.data.fetch import fetch\n"
        "fetch('made', DataEntry.model_validate_json(sys.argv[1]), pathlib.Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, entry, str(tmp_path / "data/raw")]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    faults = [process.communicate(timeout=600)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], faults
    assert sum(asked is None for _, asked in server.asked) == 1
    assert contents(tmp_path) == {f"data/raw/made/{n}": c for n, c in KEPT.items()}


def test_a_killed_fetch_leaves_what_the_next_one_goes_on_with(server, tmp_path):
    (tmp_path / "raw/made.partial").mkdir(parents=True)
    (tmp_path / "raw/made.partial/images.bin").write_bytes(b"half")
    (tmp_path / "raw/.made.fetching").touch()
    fetch("made", large_entry(f"{server.url}/good/"), tmp_path / "raw")
    assert contents(tmp_path / "raw/made") == KEPT
    assert not (tmp_path / "raw/made.partial").exists()


def test_an_index_of_a_tar_gives_its_bytes(tmp_path):
    (tmp_path / "x.tar").write_bytes(tarred(mode="w"))
    with open(tmp_path / "x.tar", "rb") as file:
        for name, (first, size) in archives.tar_index(file).items():
            file.seek(first)
            assert file.read(size) == CONTENT[name]
