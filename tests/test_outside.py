"""Files from outside, and full disks: one line with the file and what to do, in seconds, and what was there stays."""

import contextlib
import gzip
import json
import os
import resource
import signal
import time
import tracemalloc
import zlib
from pathlib import Path

import pytest
import yaml
from test_records import IMPORTED, MODEL, entry, pack, put, study  # noqa: F401  (a fixture)

from selfdistill.cli import main
from selfdistill.outside import OutsideError, json_object
from selfdistill.reporting.files import read_table, write_together
from selfdistill.stages.train import writable

RECORDS, HOSTS = Path("results/records"), Path("results/hosts")
CELL = f"{MODEL}/plain/0.json"
PREPARED = "../repository/data/prepared/digits/training/dataset.json"


def said(capsys, *arguments: str) -> tuple[int, list[str]]:
    """The exit code of a command, and the lines of standard error."""
    code = main(list(arguments))
    return code, capsys.readouterr().err.splitlines()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ---- what Git leaves of a merge, and what is cut off ----

DAMAGE = {
    "marks of a merge": (lambda whole: b"<<<<<<< HEAD\n" + whole + b"\n=======\n>>>>>>> other\n", "a merge"),
    "cut off": (lambda whole: whole[: len(whole) // 2], "cannot be read"),
    "empty": (lambda whole: b"", "cannot be read"),
    "null": (lambda whole: b"null", "NoneType in place of an object"),
    "no UTF-8": (lambda whole: b"\xff" + whole, "cannot be read"),
    "NaN": (lambda whole: whole.rstrip()[:-1] + b', "more": NaN}', "NaN in place of a number"),
    "without its keys": (lambda whole: b"{}", "not what was written there"),
}


@pytest.mark.parametrize(
    "file", [RECORDS / "measured" / CELL, HOSTS / CELL, IMPORTED / MODEL / "plain/1.json", Path(PREPARED)]
)
def test_a_damaged_file_is_named_with_what_to_do(study, capsys, file):  # noqa: F811
    put(study, entry(study, "plain", 0))
    assert main(["records", "import", str(pack("runs.jsonl.gz", entry(study, "plain", 1)))]) == 0
    prepared = Path(PREPARED)
    prepared.parent.mkdir(parents=True)
    prepared.write_text(json.dumps({"pixels_sha256": {"test": "0" * 64}, "counts": {"test": 1197}}))
    assert said(capsys, "tables")[0] == 0
    whole = file.read_bytes()
    for damage, (made, words) in DAMAGE.items():
        file.write_bytes(made(whole))
        before = contents(Path("results"))
        code, lines = said(capsys, "tables")
        if (file, damage) == (HOSTS / CELL, "without its keys"):  # it is of another run: not recorded
            assert (code, lines) == (0, [])
            continue
        assert (code, len(lines)) == (1, 1), damage
        assert f"{file}: ".removeprefix("..") in lines[0]
        assert words in lines[0]
        assert any(remedy in lines[0] for remedy in ("bring it back from Git", "dvc repro"))
        assert contents(Path("results")) == before


def test_a_record_in_the_place_of_another_cell_is_refused(study, capsys):  # noqa: F811
    put(study, entry(study, "plain", 0))
    (RECORDS / "measured" / CELL).rename(RECORDS / "measured" / MODEL / "plain/1.json")
    code, (line,) = said(capsys, "tables")
    assert code == 1
    assert "plain/1.json: the record of" in line


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (os.mkfifo, "no regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "no regular file"),
        (lambda path: path.write_text("[" * 10_000), "nested too deeply"),
        (lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 2**40), "bytes; allowed: at most"),
        (lambda path: path.mkdir(), "a folder"),
        (lambda path: None, "No such file"),
    ],
)
def test_a_file_without_end_or_none_is_never_waited_for(tmp_path, made, words):
    made(tmp_path / "file.json")
    with pytest.raises(OutsideError, match=words) as error:
        json_object(tmp_path / "file.json", "remove it")
    assert str(error.value).startswith(f"{tmp_path / 'file.json'}: cannot be read (")
    assert str(error.value).endswith("; remove it")


@pytest.mark.parametrize("content", [b"<<<<<<< HEAD\na,b\n", b"", b"a,b\n1\n1,2,3\n", b"\xff\xfe,", None])
def test_a_table_that_is_none_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(OutsideError, match=r"t.csv: cannot be read \(.+\); `selfdistill tables` writes it again"):
        read_table(tmp_path / "t.csv")


# ---- packed records that unpack to more than they may ----


def without_end(piece: bytes, times: int) -> bytes:
    """As packed as can be: a MiB of pieces, so many times."""
    packing = zlib.compressobj(9, wbits=31)
    return b"".join([*(packing.compress(piece * 2**20) for _ in range(times)), packing.flush()])


HOSTILE = {
    "a line of 64 MB": (without_end(b" ", 64), "it unpacks to lines of more than 67,108,864 bytes, or to 100 times"),
    "64 MB of line breaks": (without_end(b"\n", 64), "it is not read on"),
    "48 MB of short lines": (without_end(b"{}\n", 16), "it is not read on"),
    "deeply nested": (gzip.compress(b"[" * 10**6), "allowed: a JSON object"),
}


@pytest.mark.parametrize("content", HOSTILE)
def test_a_small_file_of_large_content_is_refused_in_seconds_and_little_memory(study, capsys, content):  # noqa: F811
    packed, words = HOSTILE[content]
    Path("runs.jsonl.gz").write_bytes(packed)
    main(["records", "list"])  # loads what is needed
    capsys.readouterr()
    started = time.process_time()
    tracemalloc.start()
    code, lines = said(capsys, "records", "import", "runs.jsonl.gz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert code == 1
    assert words in lines[-1]
    assert len(lines) <= 21
    assert time.process_time() - started < 10
    assert peak < 300 * 2**20
    assert not IMPORTED.exists()


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (os.mkfifo, "no regular file"),
        (os.mkdir, "a folder"),
        (lambda path: os.symlink("/dev/zero", path), "no regular file"),
    ],
)
def test_what_is_no_file_of_records_is_refused_in_a_line(study, capsys, made, words):  # noqa: F811
    made("runs.jsonl.gz")
    code, (line,) = said(capsys, "records", "import", "runs.jsonl.gz")
    assert (code, words in line) == (1, True)


# ---- params.yaml ----


def with_seeds(seeds: str) -> bytes:
    content = yaml.safe_load(Path("params.yaml").read_text())
    del content["seeds"]
    return f"seeds: {seeds}\n".encode() + yaml.safe_dump(content).encode()


def bomb(levels: int) -> bytes:
    return b"a0: &a0 [x, x]\n" + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (i, i, i - 1, i - 1) for i in range(1, levels))


PARAMS = {
    "100,000 seeds": (lambda: with_seeds(str(list(range(100_000)))), "allowed: at most 262,144; many seeds"),
    "10,001 seeds": (lambda: with_seeds(str(list(range(10_001)))), "seeds: 10,001 entries are not allowed"),
    "a block of 100,000 seeds": (lambda: with_seeds("[0-99999]"), "seeds[0]"),
    "many blocks": (lambda: with_seeds(str([f"{i}0000-{i}9999" for i in range(1, 900)])), "allowed: at most 10,000"),
    "aliases of aliases": (lambda: bomb(60), "its aliases stand for more than 200,000 values"),
    "an alias of itself": (lambda: b"a: &a [*a]\n", "or one contains itself"),
    "deeply nested": (lambda: b"a: " + b"[" * 200_000, "nested more than 50 times"),
    "nested by dashes": (lambda: b"- " * 100_000 + b"x", "nested more than 50 times"),
    "zeros": (lambda: bytes(1000), "not valid YAML"),
    "a terabyte": (None, "1,099,511,627,776 bytes"),
}


@pytest.mark.parametrize("case", PARAMS)
def test_a_vast_study_is_refused_in_seconds(study, capsys, case):  # noqa: F811
    made, words = PARAMS[case]
    content = made() if made else b""
    Path("params.yaml").write_bytes(content)
    if made is None:
        os.truncate("params.yaml", 2**40)
    started = time.process_time()
    code, lines = said(capsys, "check")
    assert time.process_time() - started < 10
    assert (code, len(lines)) == (2, 1)
    assert words in lines[0]


def test_a_study_of_very_many_faults_tells_the_first_hundred(study, capsys):  # noqa: F811
    more = "".join(f"key{i}: 1\n" for i in range(3000))
    Path("params.yaml").write_text(Path("params.yaml").read_text() + more + '"a\\nb": 1\n')
    code, lines = said(capsys, "check")
    assert (code, len(lines)) == (2, 101)
    assert lines[-1] == "params.yaml: further faults, which are not shown"


# ---- full disks ----


@contextlib.contextmanager
def full_disk(left: int):
    """No file may grow beyond so many bytes."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (left, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_one_line_and_what_was_there_stays(study, capsys):  # noqa: F811
    (Path(study.root) / ".git").mkdir()  # of a tree without it `check` speaks first,
    main(["check", "--write"])  # and of a data set that DVC is shown now
    for seed in study.seeds:
        put(study, entry(study, "plain", seed))
    pack("other.jsonl.gz", *(entry(study, "plain", seed, 0.5) for seed in study.seeds))
    assert [main([stage]) for stage in ("tables", "figures", "page")] == [0, 0, 0]
    put(study, entry(study, "plain", 0, 0.25))
    exported, imported = ["records", "export", "runs.jsonl.gz"], ["records", "import", "other.jsonl.gz"]
    for arguments in (["tables"], ["figures"], ["page"], exported, imported, ["check", "--write"]):
        before = contents(Path())
        for left in (0, *([] if arguments == ["figures"] else [100])):  # bytes: of some files, too
            capsys.readouterr()
            with full_disk(left):
                code = main(arguments)
            assert code == 1, (arguments, left)
            line = capsys.readouterr().err.splitlines()[-1]
            assert line.startswith(f"selfdistill {arguments[0]}: ")
            assert line.endswith(": File too large; make room or make it writable")
            after = contents(Path())
            assert {name: after[name] for name in before} == before
            assert all("plan" in name for name in after.keys() - before.keys())  # of a plan each file stands alone
            assert not list(Path().rglob("*.partial"))
    assert main(["tables"]) == 0


def test_a_full_disk_is_found_before_the_work_by_name_and_nothing_is_left_on_it(tmp_path):
    (tmp_path / "there").mkdir()
    for name in ("there", "new"):
        with full_disk(0), pytest.raises(OSError, match="File too large") as error:
            writable(tmp_path / name)
        assert error.value.filename == str(tmp_path / name)
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]


def test_a_folder_that_cannot_be_written_is_one_line(study, capsys):  # noqa: F811
    put(study, entry(study, "plain", 0))
    before = contents(Path("results"))
    Path("results/tables").symlink_to("/sys")  # read-only for everyone, root included
    code, (line,) = said(capsys, "tables")
    assert code == 1
    assert "results/tables/" in line
    assert "make it writable" in line
    Path("results/tables").unlink()
    assert contents(Path("results")) == before


def test_files_that_belong_together_are_written_all_or_none(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "c").mkdir()
    with pytest.raises(IsADirectoryError, match="c"):
        write_together({tmp_path / "a": b"new", tmp_path / "new/b": b"new", tmp_path / "c": b"new"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c"]
    assert (tmp_path / "a").read_text() == "old"
    write_together({tmp_path / "a": b"new", tmp_path / "new/b": b"new"})
    assert contents(tmp_path) == {str(tmp_path / "a"): b"new", str(tmp_path / "new/b"): b"new"}
