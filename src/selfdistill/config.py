"""What a params.yaml may say.  Everything is checked before any work, and all faults are told at once.

Two files: a study's `params.yaml` (`Study`) and the catalogue `data/params.yaml` (`Catalogue`).
Nothing here imports torch, so that a check takes a fraction of a second.
"""

import difflib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from selfdistill import methods, models

Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
# a network, also one of timm's: whether it exists is seen when it is built, for timm takes seconds to load
NetworkName = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^(timm:)?[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Share = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Md5 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class ConfigError(Exception):
    """Faults of a configuration, one a line: file, key path, value, what is allowed."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Recipe(Strict):
    """How every method of a study trains."""

    epochs: int = Field(ge=1, le=100_000)
    batch_size: int = Field(ge=2, le=1_000_000)
    learning_rate: float = Field(gt=0, le=100, allow_inf_nan=False)
    momentum: float = Field(ge=0, lt=1, allow_inf_nan=False)
    nesterov: bool
    weight_decay: float = Field(ge=0, le=1, allow_inf_nan=False)
    schedule: Literal["cosine", "steps"]
    milestones: list[Share]
    decay: float = Field(gt=0, le=1, allow_inf_nan=False)
    warmup_epochs: int = Field(ge=0, le=10_000)
    crop_padding: int = Field(ge=0, le=64)
    flip: bool
    cutout: int = Field(default=0, ge=0, le=1024)
    device: Literal["cpu", "cuda", "auto"]
    threads: int = Field(ge=1, le=1024)
    determinism: Literal["off", "seeded", "strict", "portable"]
    precision: Literal["float32", "bfloat16"] = "float32"
    channels_last: bool = True
    compile: bool = False
    cuda_graphs: bool = False
    processes: int = Field(default=1, ge=1, le=1024)
    workers: int = Field(default=0, ge=0, le=256)


class Study(Strict):
    """A study: one data set, one recipe, models x methods x seeds.

    students learn from the `teacher` method's network of their own model and seed, taught from that of
    `teacher_models`, a network that the study trains with this one method only.  robustness: data sets of test
    images alone, new or corrupted ones, on which every network of `models` is tested, too.
    """

    root: str = Field(min_length=1)
    dataset: Name
    models: list[NetworkName] = Field(min_length=1)
    methods: list[Name] = Field(min_length=1)
    students: list[Name]
    teacher_models: list[NetworkName] = Field(max_length=1)
    taught: list[Name]
    robustness: list[Name]
    teacher: Name
    control: Name
    seeds: list[Annotated[int, Field(ge=0, lt=2**31)]] = Field(min_length=1)
    selection: Literal["last", "validation"]
    recipe: Recipe
    hyper: dict[str, dict[str, Any]]

    @property
    def data_folder(self) -> Path:
        return self.prepared(self.dataset)

    def prepared(self, dataset: str) -> Path:
        return Path(self.root) / "data" / "prepared" / dataset

    @property
    def results(self) -> Path:
        return Path("results")

    @property
    def all_methods(self) -> list[str]:
        """What every network of `models` is trained with."""
        return [*self.methods, *self.students, *self.taught]

    def teacher_of(self, method: str) -> tuple[str | None, str | None]:
        """(method, network) of the trained network that a method learns from: the network is None for that
        of the same model, both are None for a method without a teacher."""
        if method in self.taught:
            return self.teacher, self.teacher_models[0]
        return (self.teacher if method in self.students else None), None

    def cells(self) -> list[tuple[str, str, int]]:
        """(model, method, seed) of every cell, in the study's order, the larger teachers last."""
        own = [(m, method, seed) for m in self.models for method in self.all_methods for seed in self.seeds]
        return own + [(m, self.teacher, seed) for m in self.teacher_models for seed in self.seeds]


class Member(Strict):
    """One file inside a published archive, under its path there and in torchvision's layout; bytes and
    sha256 are None where nobody published them."""

    name: str = Field(max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)*$")
    bytes: int | None = Field(default=None, gt=0)
    sha256: Sha256 | None = None
    md5: Md5 | None = None

    @property
    def target(self) -> str:
        """Its name in the data set's folder of raw files."""
        return self.name.rpartition("/")[2]


class SourceFile(Strict):
    """One file of a data set as published.

    sha256: None where none is known; `verified` then is false, and the first file that is fetched is
    pinned (`selfdistill.data.fetch`).  verified: whether this project has seen the file with this hash.
    unpacked: the members of a .tar.gz, .tar or .zip that are wanted, or the one content of a .gz; empty for
    a file that is kept as it is.  in_place: it stays in the mirror, and a note of it is kept.
    """

    name: Name
    bytes: int | None = Field(gt=0)
    sha256: Sha256 | None
    md5: Md5 | None = None
    verified: bool = True
    in_place: bool = False
    unpacked: list[Member] = []
    sources: list[Annotated[str, Field(pattern=r"^(https?|package|folder)://")]] = []

    @property
    def target(self) -> str:
        return self.name


class SplitSizes(Strict):
    train: int = Field(ge=2)
    validation: int = Field(ge=1)
    seed: int = Field(ge=0, lt=2**31)


class ImageForm(Strict):
    """What image files are made into: size (H, W) and channels.  shorter_side: where training images are too
    many to keep as pixels, they are packed as JPEG files with at most so many pixels there."""

    size: list[Annotated[int, Field(ge=4, le=4096)]] = Field(min_length=2, max_length=2)
    channels: Literal[1, 3]
    shorter_side: int | None = Field(default=None, ge=8, le=4096)


class ReRanking(Strict):
    """k-reciprocal re-ranking of a gallery, `selfdistill.evaluation.retrieval.re_rank`."""

    k1: int = Field(ge=1, le=10_000)
    k2: int = Field(ge=1, le=10_000)
    weight: float = Field(ge=0, le=1, allow_inf_nan=False)


class DataEntry(Strict):
    """obtain: where and how a user gets files that have no sources.  image: for readers of image files.
    re_ranking: of sets of persons to be found again: report re-ranked metrics, too.
    images: how many each published split has.  classes: None where the reader takes them from the files.
    tests: the data set whose networks a set without `split` tests."""

    title: str
    reader: Name
    licence: str
    citation: str
    obtain: str | None = None
    files: list[SourceFile] = Field(min_length=1)
    image: ImageForm | None = None
    images: dict[str, Annotated[int, Field(ge=1)]] | None = None
    classes: Annotated[list[str], Field(min_length=2)] | None = None
    split: SplitSizes | None = None
    tests: Name | None = None
    re_ranking: ReRanking | None = None


class Catalogue(Strict):
    datasets: dict[Name, DataEntry] = Field(min_length=1)


def read_study(path: Path = Path("params.yaml")) -> Study:
    """The study that a params.yaml describes.  Raises ConfigError with every fault found."""
    content = read_yaml(path)
    study, faults = validate(Study, content)
    faults += list(cross_faults(content, path.parent))
    if faults:
        raise ConfigError("\n".join(f"{path}: {fault}" for fault in dict.fromkeys(faults)))
    return study


def read_catalogue(path: Path) -> Catalogue:
    """The data sets of a data/params.yaml.  Raises ConfigError with every fault found."""
    catalogue, faults = validate(Catalogue, read_yaml(path))
    readers = Path(__file__).parent / "data"
    for name, entry in catalogue.datasets.items() if catalogue else ():
        if not (readers / f"{entry.reader}.py").is_file():
            faults.append(f"datasets.{name}.reader: {entry.reader!r} is no file {readers / entry.reader}.py")
        faults += unpacked_faults(f"datasets.{name}.files", entry.files)
        faults += source_faults(f"datasets.{name}", entry)
        if entry.split is not None and entry.tests is not None:
            faults.append(f"datasets.{name}.tests: {entry.tests!r} is not allowed beside `split`; allowed: one of both")
        if entry.tests is not None and entry.tests not in catalogue.datasets:
            faults.append(f"datasets.{name}.tests: {entry.tests!r}; {nearest(entry.tests, list(catalogue.datasets))}")
        elif entry.tests is not None and entry.classes != catalogue.datasets[entry.tests].classes:
            faults.append(f"datasets.{name}.classes: not those of {entry.tests}; allowed: the same, in the same order")
    if faults:
        raise ConfigError("\n".join(f"{path}: {fault}" for fault in faults))
    return catalogue


def unpacked_faults(place: str, files: list[SourceFile]) -> Iterator[str]:
    """Archives of no known form, and files that would take each other's place."""
    targets = []
    for i, file in enumerate(files):
        archive = file.name.endswith((".tar.gz", ".tgz", ".tar", ".zip"))
        if file.unpacked and not (archive or file.name.endswith(".gz")):
            allowed = "a .tar.gz, .tgz, .tar, .zip or .gz"
            yield f"{place}[{i}].unpacked: {file.name!r} cannot be unpacked; allowed: {allowed}"
        elif len(file.unpacked) > 1 and not archive:
            yield f"{place}[{i}].unpacked: {len(file.unpacked)} files; allowed: one, for a .gz holds no more"
        targets += [member.target for member in file.unpacked] or [file.name]
    for target in sorted({t for t in targets if targets.count(t) > 1}):
        yield f"{place}: two files would be kept as {target!r}; allowed: each name once"


def source_faults(place: str, entry: DataEntry) -> Iterator[str]:
    """Files that nobody could fetch, and hashes that nobody has verified."""
    for i, file in enumerate(entry.files):
        if not file.sources and entry.obtain is None:
            yield f"{place}.files[{i}].sources: none; allowed: at least one, or `obtain`: how a user gets the file"
        if file.verified and (file.sha256 is None or file.bytes is None):
            yield (
                f"{place}.files[{i}].verified: true is not allowed without bytes and sha256; allowed: false, and the "
                "first file that is fetched is pinned"
            )


class UniqueKeyLoader(yaml.SafeLoader):
    """YAML without repeated keys: PyYAML lets the later one win in silence."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key_node.tag != "tag:yaml.org,2002:merge" and isinstance(key, str | int | float | bool | None):
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key!r} stands here a second time", key_node.start_mark
                    )
                seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); a study is a folder with a params.yaml"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    try:
        content = yaml.load(text, UniqueKeyLoader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(f"{path}: {place}not valid YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: {shown(content)} at the top; allowed: a mapping of keys to values")
    return content


def validate(schema: type[BaseModel], content: dict) -> tuple[Any, list[str]]:
    """The model, or None and its faults in words."""
    try:
        return schema.model_validate(content), []
    except ValidationError as error:
        return None, [in_words(fault, schema) for fault in error.errors()]
    except RecursionError:
        return None, ["nested too deeply, or an alias that contains itself"]


def in_words(fault: dict, schema: type[BaseModel]) -> str:
    """A pydantic fault as: key path, value given, what is allowed."""
    place, kind = key_path(fault["loc"]), fault["type"]
    if kind == "missing":
        return f"{place}: missing; it has no default"
    if kind == "extra_forbidden":
        known = known_keys(schema, fault["loc"][:-1])
        return f"{place}: unknown key; {nearest(str(fault['loc'][-1]), known)}"
    expected = fault["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    if kind == "string_pattern_mismatch":
        expected = f"text of the form {fault['ctx']['pattern']}"
    elif kind == "too_long":
        expected = f"at most {fault['ctx']['max_length']} entry"
    elif kind == "too_short":
        expected = f"at least {fault['ctx']['min_length']} entry"
    elif kind in ("int_type", "int_from_float"):
        expected = "whole number"
    elif kind == "float_type" and reads_as_number(fault["input"]):
        expected = "number (YAML takes this one for text: write it with a decimal point and without quotes)"
    return f"{place}: {shown(fault['input'])} is not allowed; allowed: {expected}"


def reads_as_number(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(float(value) or True)
    except ValueError:
        return False


def known_keys(schema: Any, loc: tuple) -> list[str]:
    for part in loc:
        if isinstance(schema, type) and issubclass(schema, BaseModel) and part in schema.model_fields:
            schema = schema.model_fields[part].annotation
        else:  # an entry of a list or mapping: its schema is the last type argument
            schema = getattr(schema, "__args__", (None,))[-1]
    return list(getattr(schema, "model_fields", {}))


def key_path(loc: tuple) -> str:
    path = ""
    for part in loc:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path


def shown(value: Any) -> str:
    """A value as a person wrote it, shortened."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, RecursionError):
        text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def nearest(given: str, known: list[str]) -> str:
    close = difflib.get_close_matches(given, known, n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + f"known: {', '.join(known) or 'none'}"


def names_in(content: dict, key: str) -> list[str]:
    """The strings of a list in a raw file; whatever else stands there is the schema's to refuse."""
    entries = content.get(key)
    return [e for e in entries if isinstance(e, str)] if isinstance(entries, list) else []


def cross_faults(content: dict, folder: Path) -> Iterator[str]:
    """Faults that no single value shows, found on the raw file so that they are told with the others."""
    for key in ("models", "methods", "students", "teacher_models", "taught", "robustness", "seeds"):
        entries = content.get(key)
        if isinstance(entries, list):
            twice = [e for i, e in enumerate(entries) if e in entries[:i]]
            for entry in twice:
                yield f"{key}: {shown(entry)} stands there twice; allowed: each once"
    for key in ("models", "teacher_models"):
        for i, name in enumerate(names_in(content, key)):
            if name not in models.NETWORKS and not name.startswith(models.TIMM):
                known = f"{nearest(name, list(models.NETWORKS))}, {models.TIMM}NAME"
                yield f"{key}[{i}]: {name!r} is no network; {known}"
    for name in names_in(content, "teacher_models"):
        if name in names_in(content, "models"):
            yield f"teacher_models: {name!r} stands under models too; allowed: one of both"
    yield from method_faults(content)
    yield from hyper_faults(content)
    yield from recipe_faults(content)
    yield from data_faults(content, folder)


def method_faults(content: dict) -> Iterator[str]:
    listed = names_in(content, "methods")
    everywhere = [(key, name) for key in ("methods", "students", "taught") for name in names_in(content, key)]
    for key in ("methods", "students", "taught"):
        for i, name in enumerate(names_in(content, key)):
            if name not in methods.names():
                yield f"{key}[{i}]: {name!r} is no method; {nearest(name, methods.names())}"
                continue
            needs_teacher = "teacher" in methods.about(name)["needs"]
            if needs_teacher and key == "methods":
                yield f"methods[{i}]: {name!r} learns from a trained teacher; list it under students or taught"
            if not needs_teacher and key != "methods":
                yield f"{key}[{i}]: {name!r} needs no trained teacher; list it under methods"
    for i, (key, name) in enumerate(everywhere):
        for other, same in everywhere[:i]:
            if same == name and other != key:
                yield f"{key}: {name!r} stands under {other} too; allowed: one of both"
    if names_in(content, "taught") and content.get("teacher_models") == []:
        yield "teacher_models: [] is not allowed with methods under taught; allowed: one network, their teacher"
    if names_in(content, "teacher_models") and content.get("taught") == []:
        yield "taught: [] is not allowed with teacher_models; allowed: the methods that learn from that network"
    teacher, control = content.get("teacher"), content.get("control")
    if isinstance(teacher, str) and teacher not in listed:
        yield f"teacher: {teacher!r} is not in this study; allowed: one of methods ({', '.join(listed)})"
    compared = [name for _, name in everywhere]
    if isinstance(control, str) and control not in compared:
        yield f"control: {control!r} is not in this study; allowed: {', '.join(compared)}"


def hyper_faults(content: dict) -> Iterator[str]:
    hyper = content.get("hyper")
    if not isinstance(hyper, dict):
        return
    for name in (name for key in ("methods", "students", "taught") for name in names_in(content, key)):
        if name not in hyper and name in methods.names():
            yield f"hyper.{name}: missing; write `{name}: {{}}` for the method's defaults"
    for name, values in hyper.items():
        if name not in methods.names():
            yield f"hyper.{name}: no such method; {nearest(str(name), methods.names())}"
            continue
        known = methods.about(name)["hyper"]
        for key, value in values.items() if isinstance(values, dict) else ():
            if key not in known:
                yield f"hyper.{name}.{key}: unknown key; {nearest(str(key), list(known))}"
            elif expected := refused(value, known[key]):
                yield f"hyper.{name}.{key}: {shown(value)} is not allowed; allowed: {expected}"


def refused(value: Any, spec: dict) -> str | None:
    """What is allowed for a hyper-parameter, if `value` is not."""
    default = spec["default"]
    if "choices" in spec:
        return None if value in spec["choices"] else f"one of {', '.join(map(str, spec['choices']))}"
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    whole = isinstance(default, int)
    low, high = spec["allowed"]
    fits = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if fits and low <= value <= high:
        return None
    return f"a {'whole number' if whole else 'number'} from {low:g} to {high:g}"


def recipe_faults(content: dict) -> Iterator[str]:
    recipe = content.get("recipe")
    if not isinstance(recipe, dict):
        return
    milestones = recipe.get("milestones")
    if isinstance(milestones, list) and all(type(m) in (int, float) for m in milestones):
        if any(a >= b for a, b in itertools.pairwise(milestones)):
            yield f"recipe.milestones: {shown(milestones)} is not allowed; allowed: rising shares of the training"
        if recipe.get("schedule") == "steps" and not milestones:
            yield "recipe.milestones: [] is not allowed with schedule steps; allowed: at least one share"
        if recipe.get("schedule") == "cosine" and milestones:
            yield f"recipe.milestones: {shown(milestones)} has no effect with schedule cosine; allowed: []"
    epochs, warmup = recipe.get("epochs"), recipe.get("warmup_epochs")
    if type(epochs) is int and type(warmup) is int and 0 < epochs <= warmup:
        yield f"recipe.warmup_epochs: {warmup} is not allowed; allowed: fewer than recipe.epochs ({epochs})"
    if recipe.get("nesterov") is True and recipe.get("momentum") in (0, 0.0):
        yield "recipe.nesterov: true is not allowed without momentum; allowed: false, or a momentum above 0"
    yield from computing_faults(recipe)


def computing_faults(recipe: dict) -> Iterator[str]:
    """Of the keys that say how a recipe is computed."""
    if recipe.get("determinism") == "portable":
        if recipe.get("device") in ("cuda", "auto"):
            yield f"recipe.device: {recipe['device']!r} is not allowed with determinism portable; allowed: cpu"
        if type(recipe.get("threads")) is int and recipe["threads"] > 1:
            yield f"recipe.threads: {recipe['threads']} is not allowed with determinism portable; allowed: 1"
        # compiled and bfloat16 kernels are made for the CPU at hand
        if recipe.get("compile") is True:
            yield "recipe.compile: true is not allowed with determinism portable; allowed: false"
        if recipe.get("precision") == "bfloat16":
            yield 'recipe.precision: "bfloat16" is not allowed with determinism portable; allowed: float32'
    if recipe.get("cuda_graphs") is True:
        if recipe.get("device") == "cpu":
            yield "recipe.cuda_graphs: true is not allowed with device cpu; allowed: false"
        if type(recipe.get("processes")) is int and recipe["processes"] > 1:
            yield f"recipe.cuda_graphs: true is not allowed with {recipe['processes']} processes; allowed: false"


def data_faults(content: dict, folder: Path) -> Iterator[str]:
    root = content.get("root")
    if not isinstance(root, str) or not root:
        return
    catalogue_path = folder / root / "data" / "params.yaml"
    if not (folder / root / "src" / "selfdistill").is_dir() or not catalogue_path.is_file():
        yield f"root: {root!r} is not the repository's top folder; allowed: the way there from this file"
        return
    catalogue = read_catalogue(catalogue_path)
    dataset = content.get("dataset")
    if not isinstance(dataset, str):
        return
    if dataset not in catalogue.datasets:
        yield f"dataset: {dataset!r} is not in the catalogue; {nearest(dataset, list(catalogue.datasets))}"
        return
    entry = catalogue.datasets[dataset]
    if entry.split is None:
        known = [name for name, other in catalogue.datasets.items() if other.split is not None]
        yield f"dataset: {dataset!r} has no training images of classes; allowed: {', '.join(known)}"
        return
    of_it = [name for name, other in catalogue.datasets.items() if other.tests == dataset]
    for i, name in enumerate(names_in(content, "robustness")):
        if name not in of_it:
            yield f"robustness[{i}]: {name!r} does not test networks of {dataset}; {nearest(name, of_it)}"
    size = entry.split.train
    recipe = content.get("recipe")
    batch = recipe.get("batch_size") if isinstance(recipe, dict) else None
    if type(batch) is int and batch > size:
        yield f"recipe.batch_size: {batch} is not allowed; allowed: at most the {size} training images of {dataset}"
    processes = recipe.get("processes", 1) if isinstance(recipe, dict) else 1
    smallest = (size % batch or batch) if type(batch) is int and batch > 1 else None
    if smallest and smallest > 1 and type(processes) is int and smallest < processes <= 1024:
        yield (
            f"recipe.processes: {processes} is not allowed; the smallest batch of an epoch has {smallest} of the "
            f"{size} training images, and each process needs one"
        )
    elif type(batch) is int and batch > 1 and size % batch == 1:
        yield (
            f"recipe.batch_size: {batch} is not allowed; it leaves one of the {size} training images for "
            "the last batch, and batch normalisation needs two"
        )
