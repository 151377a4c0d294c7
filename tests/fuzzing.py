"""Every reader of bytes from outside, and what to feed it that it does not expect: damaged, edited and random input.

A case is right when it succeeds, or ends in the project's UserError in one line (a line a fault, of params.yaml),
within SECONDS, and leaves nothing behind.  `test_fuzz.py` tries a few cases of each target, `benchmarks/fuzz.py` as
many as wanted.  Inputs are made as the other tests make them.
"""

import contextlib
import copy
import gzip
import hashlib
import io
import json
import os
import shutil
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import made_market
import numpy as np
import test_own_networks
import test_readers
import test_records
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from selfdistill.cli import main
from selfdistill.data.catalogue import DataEntry, read_catalogue
from selfdistill.data.describe import describe_folder
from selfdistill.data.fetch import MIRROR, fetch
from selfdistill.data.folder import files_of, read_list
from selfdistill.data.images import UnusableImageError, packed_form, upright
from selfdistill.data.prepare import prepare
from selfdistill.errors import ConfigError, UserError
from selfdistill.params import read_study
from selfdistill.reporting.records import read_records
from selfdistill.reporting.tables import write_tables
from selfdistill.training.checkpoint import Checkpoints

ROOT = Path(__file__).parents[1]
SECONDS = 20  # a case may take
Check = Callable[[Any], None]
Made = Callable[[Path], tuple[st.SearchStrategy, Check]]


class HangError(BaseException):
    """A case that takes too long; no reader catches it."""


@dataclass(frozen=True)
class Target:
    """share: of all cases, relative to the others; a case of one with a small share takes longer.  made: strategy and
    check, in a folder of its own."""

    name: str
    share: int
    made: Made


# ---- inputs ----

NUMBERS = [0, 1, 2, 255, 256, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1]
PIECES = [b"\0", b"\xff", b"\n", b",", b"[", b"{", b'"', b"../", b"\x80\x02", b"<<<<<<< HEAD\n", b"1e999", b"NaN", b"-"]
ODD: list[Any] = [None, True, False, 0, -1, 1, 3, 2**31, 2**63, 10**30, 0.5, 1e308, float("inf"), float("nan"), "", "x"]
ODD += [
    "a" * 300,
    "../..",
    "\n",
    "\x1b[31m",
    "\ud800",
    "5e-05",
    "0-9",
    "9-0",
    [],
    [[]],
    [1, 2, 3],
    ["x", "x"],
    {},
    {"a": 1},
]


@st.composite
def damaged(draw: st.DrawFn, base: bytes) -> bytes:
    """A few of its bytes exchanged, put in, left out, doubled or cut off; its head more often than the rest."""
    content = bytearray(base)
    for _ in range(draw(st.integers(1, 3))):
        end = len(content)
        at = draw(st.integers(0, min(end, 64)) | st.integers(max(0, end - 64), end) | st.integers(0, end))
        action = draw(st.sampled_from(["flip", "number", "cut", "behead", "insert", "drop", "double", "fill"]))
        if action == "flip" and at < end:
            content[at] ^= draw(st.integers(1, 255))
        elif action == "number":
            size, order = draw(st.sampled_from([(1, "big"), (2, "little"), (4, "little"), (4, "big"), (8, "little")]))
            content[at : at + size] = (draw(st.sampled_from(NUMBERS)) % 256**size).to_bytes(size, order)  # type: ignore[arg-type]
        elif action == "cut":
            del content[at:]
        elif action == "behead":
            del content[:at]
        elif action == "insert":
            content[at:at] = draw(st.sampled_from(PIECES) | st.binary(min_size=1, max_size=8))
        elif action == "drop":
            del content[at : at + draw(st.integers(1, 64))]
        elif action == "double":
            content[at:at] = content[at : at + draw(st.integers(1, 512))] * draw(st.sampled_from([1, 2, 50]))
        else:
            content[at : at + 16] = bytes([draw(st.integers(0, 255))]) * 16
    return bytes(content)


def bytes_like(base: bytes) -> st.SearchStrategy[bytes]:
    return damaged(base) | st.binary(max_size=64)


def places(value: Any, here: tuple = ()) -> Iterator[tuple]:
    yield here
    inside = value.items() if isinstance(value, dict) else enumerate(value[:4]) if isinstance(value, list) else ()
    for key, part in inside:
        yield from places(part, (*here, key))


def odd() -> st.SearchStrategy[Any]:
    """A copy, for an edit after it changes the lists and dictionaries among them."""
    return st.sampled_from(ODD).map(copy.deepcopy)


@st.composite
def edited(draw: st.DrawFn, base: Any) -> Any:
    """A value of JSON or YAML of which parts are exchanged, left out, doubled, or put somewhere else."""
    content = {"": copy.deepcopy(base)}
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from([("", *place) for place in places(content[""])]))
        *above, last = path
        parent: Any = content
        for key in above:
            parent = parent[key]
        action = draw(st.sampled_from(["odd", "drop", "add", "nest", "move"]))
        if action == "odd" or (action == "drop" and not above):
            parent[last] = draw(odd())
        elif action == "drop":
            del parent[last]
        elif action == "nest":
            parent[last] = [parent[last]]
        elif action == "move":
            other: Any = content
            for key in draw(st.sampled_from([("", *place) for place in places(content[""])])):
                other = other[key]
            parent[last] = copy.deepcopy(other)
        elif isinstance(parent[last], dict):
            parent[last][draw(st.sampled_from(["new", "", "\n", "x.y"]))] = draw(odd())
        elif isinstance(parent[last], list):
            parent[last].append(draw(odd()))
    return content[""]


def json_like(base: Any) -> st.SearchStrategy[bytes]:
    return edited(base).map(lambda value: json.dumps(value).encode()) | bytes_like(json.dumps(base).encode())


# ---- outcomes ----


def tree(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}


@contextlib.contextmanager
def limited() -> Iterator[None]:
    def late(*_: object) -> None:
        raise HangError(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def right(action: Callable[[], object], watched: Path) -> None:
    """Whether an action succeeds, or ends in one line and leaves the folder as it was."""
    before = tree(watched)
    try:
        with limited(), contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            action()
    except UserError as error:
        refused = error
    else:
        return
    lines = str(refused).splitlines()
    assert lines if isinstance(refused, ConfigError) else len(lines) == 1, f"{len(lines)} lines"
    assert (left := tree(watched)) == before, f"left behind: {left.keys() ^ before.keys()}"


def told(arguments: list[str]) -> None:
    """The same of a command of the command line."""
    errors = io.StringIO()
    with limited(), contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        code = main(arguments)
    lines = errors.getvalue().splitlines()
    assert code in (0, 1, 2)
    assert (code == 0) == (not lines), (code, lines)
    assert code == 2 or len(lines) <= 1, lines
    assert all(line.isprintable() for line in lines), lines


# ---- targets ----

ANNOTATIONS = "tiny-imagenet-200/val/val_annotations.txt"


def small_study(folder: Path) -> dict:
    """A repository with a small catalogue, and a study in it, which becomes the working folder."""
    repository = folder / "repository"
    (repository / "src").mkdir(parents=True)
    (repository / "src/selfdistill").symlink_to(ROOT / "src/selfdistill")
    (repository / "data").mkdir()
    catalogue = yaml.safe_load((ROOT / "data/params.yaml").read_text())
    catalogue["datasets"] = {"digits": catalogue["datasets"]["digits"]}
    (repository / "data/params.yaml").write_text(yaml.safe_dump(catalogue))
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content |= {"root": str(repository), "methods": ["plain", "byot"], "students": ["drkd"], "seeds": [0, 1]}
    content["variants"] = {"byot2": {"method": "byot", "hyper": {"alpha": 0.1}, "recipe": {"epochs": 3}}}
    content["methods"].append("byot2")
    content["recipe"] |= {"epochs": 3, "warmup_epochs": 0, "determinism": "seeded"}
    (folder / "here").mkdir()
    os.chdir(folder / "here")
    Path("params.yaml").write_text(yaml.safe_dump(content))
    return content


def params(folder: Path) -> tuple[st.SearchStrategy, Check]:
    content = small_study(folder)
    text = yaml.safe_dump(content).encode()
    strategy = edited(content).map(lambda value: yaml.safe_dump(value).encode()) | bytes_like(text)

    def check(given: bytes) -> None:
        Path("params.yaml").write_bytes(given)
        right(read_study, Path())

    return strategy, check


def catalogue(folder: Path) -> tuple[st.SearchStrategy, Check]:
    entries = yaml.safe_load((ROOT / "data/params.yaml").read_text())["datasets"]
    content = {"datasets": {name: entries[name] for name in ("digits", "market1501")}}
    path = folder / "params.yaml"
    strategy = edited(content).map(lambda value: yaml.safe_dump(value).encode())
    strategy |= bytes_like(yaml.safe_dump(content).encode())

    def check(given: bytes) -> None:
        path.write_bytes(given)
        right(lambda: read_catalogue(path), folder)

    return strategy, check


def records(folder: Path) -> tuple[st.SearchStrategy, Check]:
    """Of this checkout, its host and dataset.json, and imported ones."""
    small_study(folder)
    study = read_study()
    made = test_records.entry(study, "byot", 0)
    facts = {"pixels_sha256": {"pool": "0" * 64, "test": "0" * 64}, "counts": {"pool": 600, "test": 1197}}
    files = {
        study.record_file("resnet10-slim", "byot", 0): made["record"],
        study.host_file("resnet10-slim", "byot", 0): made["host"],
        study.imported_file("resnet10-slim", "plain", 1): test_records.entry(study, "plain", 1),
        study.data_folder / "training/dataset.json": facts,
    }
    for path, value in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
    strategy = st.sampled_from(list(files)).flatmap(lambda path: st.tuples(st.just(path), json_like(files[path])))

    def check(given: tuple[Path, bytes]) -> None:
        path, content = given
        path.write_bytes(content)
        right(lambda: read_records(study), Path("results"))
        path.write_text(json.dumps(files[path]))

    return strategy, check


def tables(folder: Path) -> tuple[st.SearchStrategy, Check]:
    """What the schema lets pass must make tables."""
    strategy, _ = records(folder)
    study = read_study()
    originals = {path: path.read_bytes() for path in Path("results").rglob("*.json")}

    def check(given: tuple[Path, bytes]) -> None:
        path, content = given
        original = originals.get(path) or path.read_bytes()
        path.write_bytes(content)
        shutil.rmtree("results/tables", ignore_errors=True)
        Path("results/metrics.json").unlink(missing_ok=True)
        right(lambda: write_tables(study), Path("results"))
        path.write_bytes(original)

    return strategy, check


def packed(folder: Path) -> tuple[st.SearchStrategy, Check]:
    """Files of `records export`."""
    small_study(folder)
    study = read_study()
    made = [test_records.entry(study, method, 0) for method in ("plain", "byot")]
    lines = [json.dumps(entry) for entry in made]
    whole = gzip.compress("\n".join(lines).encode(), mtime=0)
    entries = edited(made[0]).map(
        lambda value: gzip.compress("\n".join([json.dumps(value), lines[1]]).encode(), mtime=0)
    )
    inside = bytes_like(lines[0].encode()).map(lambda line: gzip.compress(line + b"\n" + lines[1].encode(), mtime=0))

    def check(given: bytes) -> None:
        shutil.rmtree("results", ignore_errors=True)
        Path("runs.jsonl.gz").write_bytes(given)
        errors = io.StringIO()
        with limited(), contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            code = main(["records", "import", "runs.jsonl.gz"])
        told = errors.getvalue().splitlines()
        assert (code == 1) == bool(told), (code, told)
        assert all(line.startswith("refused: ") and line.isprintable() for line in told), told
        assert code == 0 or not tree(Path("results")) if Path("results").exists() else True

    return entries | inside | bytes_like(whole), check


def checkpoints(folder: Path) -> tuple[st.SearchStrategy, Check]:
    saved = Checkpoints(folder / "run").save({"w": torch.arange(6.0)}, {"step": 1}, 1)
    content = saved.read_bytes()

    def check(given: bytes) -> None:
        shutil.rmtree(folder / "run")
        (folder / "run").mkdir()
        saved.write_bytes(given)
        right(Checkpoints(folder / "run").newest, folder)

    return bytes_like(content), check


def lists(folder: Path) -> tuple[st.SearchStrategy, Check]:
    rows = [f"{name}/{i}.png,9,{'0' * 64}" for name in ("train/a", "train/b", "test/a", "test/b") for i in range(2)]
    content = "\n".join(["path,bytes,sha256", *rows, ""]).encode()

    def check(given: bytes) -> None:
        right(lambda: files_of(read_list(given), folder), folder)

    return bytes_like(content), check


def picture(kind: str, mode: str) -> bytes:
    buffer = io.BytesIO()
    values = np.random.default_rng(0).integers(0, 256, (9, 7, 4), dtype=np.uint8)
    image = Image.fromarray(values).convert("RGB" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(values[..., 0].astype(np.uint16) * 16)
    image.save(buffer, kind)
    return buffer.getvalue()


PICTURES = [
    picture(*form)
    for form in (
        *(("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
        *(("JPEG", mode) for mode in ("L", "RGB", "CMYK")),
        *(("TIFF", mode) for mode in ("L", "RGB", "CMYK", "I;16")),
        *(("GIF", "P"), ("BMP", "RGB"), ("WEBP", "RGBA"), ("PPM", "RGB")),
    )
]


def images(folder: Path) -> tuple[st.SearchStrategy, Check]:
    def check(given: bytes) -> None:
        right(lambda: upright(given, 4095), folder)
        with contextlib.suppress(UnusableImageError):
            packed_form(given, 4, 3)

    return st.sampled_from(PICTURES).flatmap(bytes_like), check


def folders(folder: Path) -> tuple[st.SearchStrategy, Check]:
    """Folders of classes: odd names, and damaged images among whole ones."""
    names = ["a", "b", "train", "test", "val", ".hidden", "Thumbs.db", "a\nb", "ä", "x" * 200]
    kinds = st.sampled_from(["image", "text", "empty", "link", "pipe", "folder"])
    files = st.lists(st.tuples(st.sampled_from(names), st.sampled_from(names), kinds), max_size=6)
    whole = st.lists(st.sampled_from([("a",), ("b",), ("train", "a"), ("train", "b"), ("test", "a")]), max_size=5)
    pixels = PICTURES[4]

    def check(given: tuple[list, list]) -> None:
        top = folder / "images"
        shutil.rmtree(top, ignore_errors=True)
        top.mkdir()
        for parts in given[0]:
            place = top.joinpath(*parts)
            place.mkdir(parents=True, exist_ok=True)
            for i in range(6):
                (place / f"{i}.png").write_bytes(pixels)
        for parent, name, kind in given[1]:
            path = top / parent / name
            if not os.path.lexists(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                if kind == "folder":
                    path.mkdir()
                elif kind == "link":
                    path.symlink_to("../" + parent)
                elif kind == "pipe":
                    os.mkfifo(path)
                else:
                    path.write_bytes({"image": pixels, "text": b"text", "empty": b""}[kind])
        right(lambda: describe_folder(top), top)

    return st.tuples(whole, files), check


def raw_files(name: str, files: dict[str, bytes], entry: DataEntry) -> Made:
    """A target: one of a data set's raw files is another one when it is prepared."""

    def made(folder: Path) -> tuple[st.SearchStrategy, Check]:
        raw, prepared = folder / "raw", folder / "prepared"
        (raw / name).mkdir(parents=True)
        prepared.mkdir()
        for file, content in files.items():
            (raw / name / file).write_bytes(content)
        strategy = st.sampled_from(sorted(files)).flatmap(
            lambda file: st.tuples(st.just(file), bytes_like(files[file]))
        )

        def check(given: tuple[str, bytes]) -> None:
            file, content = given
            (raw / name / file).write_bytes(content)
            right(lambda: prepare(name, entry, raw, prepared), prepared)
            shutil.rmtree(prepared)
            prepared.mkdir()
            (raw / name / file).write_bytes(files[file])

        return strategy, check

    return made


def zip_members(name: str, files: dict[str, bytes], entry: DataEntry, text: str) -> Made:
    """A target: a member of a zip archive that is a text is another one, in an archive that is whole."""

    def made(folder: Path) -> tuple[st.SearchStrategy, Check]:
        archive = entry.files[0].name
        _, check = raw_files(name, {archive: test_readers.zipped(files)}, entry)(folder)
        texts = bytes_like(files[text]).map(lambda content: (archive, test_readers.zipped(files | {text: content})))
        return texts, check

    return made


def archives(name: str, content: bytes, entry: DataEntry) -> Made:
    """A target: a published archive without a known hash, which is unpacked or noted where it lies."""

    def made(folder: Path) -> tuple[st.SearchStrategy, Check]:
        mirror, data = folder / "mirror", folder / "data"
        mirror.mkdir()
        data.mkdir()

        def check(given: bytes) -> None:
            os.environ[MIRROR] = str(mirror)
            (mirror / entry.files[0].name).write_bytes(given)
            right(lambda: fetch(name, entry, data / "raw"), data)
            shutil.rmtree(data)
            data.mkdir()
            del os.environ[MIRROR]

        return bytes_like(content), check

    return made


def unpinned(name: str, archive: str, wanted: list[str], **changes: Any) -> DataEntry:
    """The catalogue's entry with one archive that nothing is known of."""
    file = {"name": archive, "bytes": None, "sha256": None, "verified": False, "sources": []}
    file |= {"unpacked": [{"name": member} for member in wanted]} | changes
    entry = test_readers.CATALOGUE[name].model_dump()
    return DataEntry.model_validate(entry | {"files": [file], "obtain": "ask"})


def predictions(folder: Path) -> tuple[st.SearchStrategy, Check]:
    """A run's run.json and weights, and images given to it."""
    run = folder / "run"
    run.mkdir()
    test_own_networks.run_folder(run)
    record = json.loads((run / "run.json").read_text())
    record["dataset"] = {"name": "made", "classes": ["a", "b", "c"], "channels": 1, "size": [8, 8], "mean": [0.5]}
    record["dataset"] |= {"std": [0.2], "pixels_sha256": {}, "counts": {}, "shorter_side": None, "white": None}
    (run / "run.json").write_text(json.dumps(record))
    image = folder / "image.png"
    files = {run / "run.json": json.dumps(record).encode(), image: PICTURES[1]}
    files[run / "weights.safetensors"] = weights = (run / "weights.safetensors").read_bytes()
    state = {"w": torch.zeros(3)}
    strategy = st.one_of(
        st.tuples(st.just(run / "run.json"), json_like(record)),
        st.tuples(st.just(image), st.sampled_from(PICTURES).flatmap(bytes_like)),
        st.tuples(st.just(run / "weights.safetensors"), bytes_like(weights) | st.just(save(state))),
    )

    def check(given: tuple[Path, bytes]) -> None:
        for path, content in files.items():
            path.write_bytes(content)
        path, content = given
        path.write_bytes(content)
        if path.suffix == ".safetensors":  # as if training had left it so
            known = record | {"weights_sha256": hashlib.sha256(content).hexdigest()}
            (run / "run.json").write_text(json.dumps(known))
        told(["predict", str(run), str(image)])

    return strategy, check


def targets() -> list[Target]:
    sets, splits = test_readers.small_sets(), test_readers.SPLITS
    entries = {}
    for name in sets:
        content = test_readers.CATALOGUE[name].model_dump() | {"images": None, "split": splits.get(name, {})}
        entries[name] = DataEntry.model_validate(content | ({"split": None} if splits.get(name, {}) is None else {}))
    tiny = test_readers.tiny_files()
    persons = made_market.market()
    market_entry = test_readers.CATALOGUE["market1501"].model_dump() | {
        "images": None,
        "image": {"size": [32, 16], "channels": 3},
        "split": {"train": 80, "validation": 16},
    }
    market = DataEntry.model_validate(market_entry)
    kept = {name.rpartition("/")[2]: b"x" * 50 for name in ("set/images", "set/labels")}
    wanted = [f"set/{name}" for name in kept]
    members = [test_readers.member(f"set/{name}", content) for name, content in kept.items()]
    tar, zipped = test_readers.tar(*members), test_readers.zipped({f"set/{n}": c for n, c in kept.items()})
    return [
        Target("params", 6, params),
        Target("catalogue", 3, catalogue),
        Target("records", 12, records),
        Target("tables", 1, tables),
        Target("packed records", 6, packed),
        Target("checkpoints", 20, checkpoints),
        Target("lists", 30, lists),
        Target("images", 30, images),
        Target("folders", 3, folders),
        *(Target(f"raw {name}", 3, raw_files(name, files, entries[name])) for name, files in sets.items()),
        Target("tiny annotations", 2, zip_members("tiny-imagenet", tiny, entries["tiny-imagenet"], ANNOTATIONS)),
        Target(
            "raw market1501", 1, raw_files("market1501", {market.files[0].name: test_readers.zipped(persons)}, market)
        ),
        Target("tar", 8, archives("idx", tar, unpinned("fashion-mnist", "set.tar", wanted))),
        Target(
            "tar.gz", 5, archives("idx", gzip.compress(tar, mtime=0), unpinned("fashion-mnist", "set.tar.gz", wanted))
        ),
        Target("zip", 8, archives("idx", zipped, unpinned("fashion-mnist", "set.zip", wanted))),
        Target("tar in place", 8, archives("idx", tar, unpinned("fashion-mnist", "set.tar", [], in_place=True))),
        Target(
            "gz",
            5,
            archives("idx", gzip.compress(b"x" * 50, mtime=0), unpinned("fashion-mnist", "images.gz", ["images"])),
        ),
        Target("predict", 3, predictions),
    ]


# ---- running ----


def tried(target: Target, cases: int, number: int | None) -> tuple[int, str | None]:
    """How many cases were tried, and of the smallest failing one the error, the example and the traceback.

    number: of the draws, None for those that are always the same."""
    count, last = 0, None
    here = os.getcwd()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        strategy, check = target.made(Path(folder))

        @settings(
            max_examples=cases,
            database=None,
            deadline=None,
            derandomize=number is None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
            report_multiple_bugs=False,
        )
        @given(strategy)
        def case(example: Any) -> None:
            nonlocal count, last
            count += 1
            try:
                check(example)
            except (Exception, HangError):
                last = example
                raise

        try:
            with contextlib.redirect_stdout(io.StringIO()):
                (case if number is None else seed(number)(case))()
        except (Exception, HangError) as error:
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            return count, f"{said}\n\n{last!r}\n\n{traceback.format_exc()}"
        finally:
            os.chdir(here)
    return count, None
