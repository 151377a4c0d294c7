"""Read a params.yaml.  Everything is checked before any work, and all faults are reported together.

Nothing here imports torch, so that a check takes a fraction of a second.
"""

import itertools
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from selfdistill import analyses, methods, models
from selfdistill.bounds import refused
from selfdistill.config import NAMES, NOTHING_OWN, SEEDS, Recipe, Study, block, seeds_of
from selfdistill.data.catalogue import DataEntry, read_catalogue, split_faults
from selfdistill.errors import UserError
from selfdistill.schema import (
    FAULTS,
    ConfigError,
    all_faults,
    nearest,
    read_yaml,
    shown,
    validate,
)
from selfdistill.search import COMMON, TUNED


def read_study(path: Path = Path("params.yaml")) -> Study:
    """The study that a params.yaml describes.  Raises ConfigError with every fault found."""
    content = read_yaml(path)
    faults = list(length_faults(content))
    if faults:
        raise ConfigError(all_faults(path, faults))
    study, faults = validate(Study, content)
    faults += islice(cross_faults(content, path.parent), FAULTS + 1)
    if faults:
        raise ConfigError(all_faults(path, faults))
    return study


def purpose(params: Path) -> str:
    """The first sentence of the comment that a params.yaml begins with."""
    lines = []
    for line in params.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#") or line.strip() == "#":
            break
        lines.append(line[1:].strip())
    return re.split(r"(?<!al)\.\s", " ".join(lines), maxsplit=1)[0].rstrip(".")


def names_in(content: dict, key: str) -> list[str]:
    """The strings of a list in a raw file; whatever else stands there is the schema's to refuse."""
    entries = content.get(key)
    return [e for e in entries if isinstance(e, str)] if isinstance(entries, list) else []


def length_faults(content: dict) -> Iterator[str]:
    """Lists that are too long to be looked through for further faults."""
    for key, most in {
        "seeds": SEEDS,
        **dict.fromkeys(("models", *LISTS, "teacher_models"), NAMES),
    }.items():
        entries = content.get(key)
        if isinstance(entries, list) and len(entries) > most:
            yield f"{key}: {len(entries):,} entries are not allowed; allowed: at most {most:,}"


LISTS = "methods", "students", "taught"  # of variants: which of them learn from a teacher, and from which


def cross_faults(content: dict, folder: Path) -> Iterator[str]:
    """Faults that no single value shows, found on the raw file so that they are told with the others."""
    for key in ("models", *LISTS, "teacher_models", "seeds"):
        entries = content.get(key)
        if isinstance(entries, list):
            seen: set[str] = set()
            for entry in entries:
                if (same := repr(entry)) not in seen:
                    seen.add(same)
                    continue
                yield f"{key}: {shown(entry)} stands there twice; allowed: each once"
    yield from seed_faults(content)
    yield from network_faults(content, folder)
    yield from weight_faults(content, folder)
    yield from variant_faults(content)
    yield from list_faults(content)
    yield from contrast_faults(content)
    yield from tuning_faults(content)
    yield from analysis_faults(content)
    yield from hyper_faults(content)
    yield from all_recipe_faults(content)
    yield from data_faults(content, folder)


def seed_faults(content: dict) -> Iterator[str]:
    """Blocks that share a seed, and too many seeds."""
    entries = content.get("seeds")
    seen: set[int] = set()
    for i, entry in enumerate(entries if isinstance(entries, list) else ()):
        try:
            seeds = set(seeds_of(block(entry)))
        except ValueError:
            continue
        if (twice := seen & seeds) and entry not in entries[:i]:
            yield f"seeds: {shown(entry)} holds {min(twice)} a second time; allowed: each seed once"
        seen |= seeds
        if len(seen) > SEEDS:
            break
    if len(seen) > SEEDS:
        yield f"seeds: {len(seen):,} are not allowed; allowed: at most {SEEDS:,}"


def network_faults(content: dict, folder: Path) -> Iterator[str]:
    """Networks that do not exist, and own files of the study that are missing or faulty."""
    own, files = content.get("own", NOTHING_OWN), []
    if isinstance(own, str) and own != NOTHING_OWN:
        if is_there(folder / own, Path.is_dir):
            files = sorted((folder / own).glob("*.py"))
        else:
            yield f"own: {shown(own)} is not a folder; allowed: a folder beside this file, or {NOTHING_OWN} for none"
    try:
        known = models.names(own=files)
    except UserError as error:
        yield f"own: {error}"
        return
    for key in ("models", "teacher_models"):
        for i, name in enumerate(names_in(content, key)):
            if name not in known and not name.startswith(models.TIMM):
                yield f"{key}[{i}]: {name!r} is not a network; {nearest(name, known)}, {models.TIMM}NAME"
    for name in names_in(content, "teacher_models"):
        if name in names_in(content, "models"):
            yield f"teacher_models: {name!r} is under models too; allowed: one of the two"


def weight_faults(content: dict, folder: Path) -> Iterator[str]:
    """Trained weights from elsewhere that are missing, or for a network that the study does not list."""
    listed = [name for key in ("models", "teacher_models") for name in names_in(content, key)]
    weights = content.get("weights")
    for name, given in weights.items() if isinstance(weights, dict) else ():
        if name not in listed:
            yield f"weights.{name}: no network of this study; {nearest(str(name), listed)}"
        if not isinstance(given, dict):
            continue
        if given.get("use") == "teacher" and name not in names_in(content, "teacher_models"):
            yield f'weights.{name}.use: "teacher" is not allowed; allowed: start, or a network of teacher_models'
        file = given.get("file")
        if isinstance(file, str) and not is_there(folder / file, Path.is_file):
            yield f"weights.{name}.file: {shown(file)} is not there; allowed: a safetensors file, seen from this file"


def is_there(path: Path, kind: Callable[[Path], bool]) -> bool:
    """Whether there is a file or folder; a name too long for the system is none."""
    try:
        return kind(path)
    except OSError:
        return False


def method_of(content: dict, name: str) -> str:
    """The method of a variant, in a raw file: the variant's, if one of this name is declared, else its own name."""
    variants = content.get("variants")
    declared = variants.get(name) if isinstance(variants, dict) else None
    method = declared.get("method") if isinstance(declared, dict) else name
    return method if isinstance(method, str) else ""


def variant_faults(content: dict) -> Iterator[str]:
    """Variants without a method, variants that no list names, and variants in the wrong list."""
    everywhere = [(key, name) for key in LISTS for name in names_in(content, key)]
    variants = content.get("variants")
    declared = [str(name) for name in variants] if isinstance(variants, dict) else []
    for name in declared:
        if name.endswith(TUNED):
            yield f"variants.{name}: the name of tuned values; allowed: a name that does not end in {TUNED}"
        if name in methods.names() and method_of(content, name) != name:
            yield f"variants.{name}: the name of another method; allowed: a name that no method has"
        if (method := method_of(content, name)) and method not in methods.names():
            yield f"variants.{name}.method: {method!r} is not a method; {nearest(method, methods.names())}"
        if name not in [listed for _, listed in everywhere]:
            yield f"variants.{name}: stands in none of {', '.join(LISTS)}; list it there, or take it out"
    for key in LISTS:
        for i, name in enumerate(names_in(content, key)):
            method = method_of(content, name)
            if method not in methods.names():
                if name not in declared:
                    yield f"{key}[{i}]: {name!r} is not a method; {nearest(name, [*methods.names(), *declared])}"
                continue
            needs_teacher = "teacher" in methods.about(method)["needs"]
            if needs_teacher and key == "methods":
                yield f"methods[{i}]: {name!r} learns from a trained teacher; list it under students or taught"
            if not needs_teacher and key != "methods":
                yield f"{key}[{i}]: {name!r} needs no trained teacher; list it under methods"


def list_faults(content: dict) -> Iterator[str]:
    """Variants in two lists, teachers without students, and a teacher or control that does not exist."""
    listed = names_in(content, "methods")
    everywhere = [(key, name) for key in LISTS for name in names_in(content, key)]
    for i, (key, name) in enumerate(everywhere):
        for other, same in everywhere[:i]:
            if same == name and other != key:
                yield f"{key}: {name!r} is under {other} too; allowed: one of the two"
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


def contrast_faults(content: dict) -> Iterator[str]:
    """Contrasts of what there is not, of a variant with itself, and the same one twice.

    A method that the study does not list is no fault: lists are cut for a quick run, and the table then says so.
    """
    contrasts, seen = content.get("contrasts"), {}
    variants = content.get("variants")
    compared = [*methods.names(), *(map(str, variants) if isinstance(variants, dict) else ())]
    for name, contrast in contrasts.items() if isinstance(contrasts, dict) else ():
        if not isinstance(contrast, dict):
            continue
        of, against, place = contrast.get("of"), contrast.get("against"), f"contrasts.{name}"
        for key, variant in (("of", of), ("against", against)):
            if isinstance(variant, str) and variant not in compared:
                yield f"{place}.{key}: {variant!r} is no method and no variant; {nearest(variant, compared)}"
        if isinstance(of, str) and of == against:
            yield f"{place}.against: {against!r} is what it is compared with; allowed: another variant"
        pair = (
            str(sorted(map(str, (of, against)))),
            str(contrast.get("exit", "last")),
            str(contrast.get("table", "published")),
        )
        if pair in seen:
            yield f"{place}: the same two variants, exit and table as contrasts.{seen[pair]}; allowed: each once"
        seen[pair] = name


def tuning_faults(content: dict) -> Iterator[str]:
    """Tuned variants that do not exist, in the wrong list, or without what they are compared with or learn from.

    One that the study's lists leave out is no fault, nor are fewer seeds than replicates: lists are cut for a quick
    run.
    """
    tuning, variants = content.get("tuning"), content.get("variants")
    if not isinstance(tuning, dict):
        return
    known = [*methods.names(), *(map(str, variants) if isinstance(variants, dict) else ())]
    for key in ("methods", "students"):
        names = names_in(tuning, key)
        for i, name in enumerate(names):
            method = method_of(content, name)
            if method not in methods.names():
                yield f"tuning.{key}[{i}]: {name!r} is no method and no variant; {nearest(name, known)}"
            elif ("teacher" in methods.about(method)["needs"]) != (key == "students"):
                yield f"tuning.{key}[{i}]: {name!r} is not allowed; allowed: under students what learns from a teacher"
            if name in names[:i]:
                yield f"tuning.{key}: {name!r} stands there twice; allowed: each once"
    tuned = [name for key in ("methods", "students") for name in names_in(tuning, key)]
    control, teacher = content.get("control"), content.get("teacher")
    if tuned and isinstance(control, str) and control not in tuned:
        yield f"tuning: without {control!r} nothing can be compared; allowed: the control among the tuned variants"
    if names_in(tuning, "students") and isinstance(teacher, str) and teacher not in names_in(tuning, "methods"):
        yield f"tuning.methods: {teacher!r} is missing; allowed: with it, the teacher of tuning.students"
    recipe = content.get("recipe")
    epochs, warmup = tuning.get("epochs"), recipe.get("warmup_epochs") if isinstance(recipe, dict) else None
    if type(epochs) is int and type(warmup) is int and 0 < epochs <= warmup:
        yield f"tuning.epochs: {epochs} is not allowed; allowed: more than recipe.warmup_epochs ({warmup})"


def analysis_faults(content: dict) -> Iterator[str]:
    """Analyses that there are not, of the other kind, or with settings that they do not have."""
    given, probes = content.get("analyses"), content.get("probes")
    asked: list[tuple[str, Any, Any, bool]] = []
    for name, values in given.items() if isinstance(given, dict) else ():
        asked.append((f"analyses.{name}", name, values, False))
    for name, probe in probes.items() if isinstance(probes, dict) else ():
        if isinstance(probe, dict) and isinstance(probe.get("analysis"), str):
            asked.append((f"probes.{name}.settings", probe["analysis"], probe.get("settings"), True))
    for place, name, values, probed in asked:
        known = [other for other in analyses.names() if analyses.is_probe(other) == probed]
        if name not in known:
            where, kind = place.replace(".settings", ".analysis"), "probe" if probed else "analysis of predictions"
            yield f"{where}: {str(name)!r} is no {kind}; {nearest(str(name), known)}"
            continue
        specs = analyses.about(name)["settings"]
        for key, value in values.items() if isinstance(values, dict) else ():
            if key not in specs:
                yield f"{place}.{key}: unknown key; {nearest(str(key), list(specs))}"
            elif expected := refused(value, specs[key]):
                yield f"{place}.{key}: {shown(value)} is not allowed; allowed: {expected}"


def hyper_faults(content: dict) -> Iterator[str]:
    hyper, variants = content.get("hyper"), content.get("variants")
    if not isinstance(hyper, dict):
        return
    used = dict.fromkeys(method_of(content, name) for key in LISTS for name in names_in(content, key))
    for method in used:
        if method not in hyper and method in methods.names():
            yield f"hyper.{method}: missing; write `{method}: {{}}` for the method's defaults"
    for name, values in hyper.items():
        if name not in methods.names():
            yield f"hyper.{name}: no such method; {nearest(str(name), methods.names())}"
        else:
            yield from value_faults(f"hyper.{name}", name, values)
    for name, variant in variants.items() if isinstance(variants, dict) else ():
        method = method_of(content, name)
        if isinstance(variant, dict) and method in methods.names():
            yield from value_faults(f"variants.{name}.hyper", method, variant.get("hyper"))


def value_faults(place: str, method: str, values: Any) -> Iterator[str]:
    """Hyper-parameters that a method does not have, or not with these values."""
    known = methods.about(method)["hyper"]
    for key, value in values.items() if isinstance(values, dict) else ():
        if key not in known:
            yield f"{place}.{key}: unknown key; {nearest(str(key), list(known))}"
        elif expected := refused(value, known[key]):
            yield f"{place}.{key}: {shown(value)} is not allowed; allowed: {expected}"


# Keys of a recipe that say where and how a run is computed, not what is trained: no variant has its own, and by
# these alone may an imported run differ from the study.
COMPUTING = frozenset(
    {
        "device",
        "threads",
        "determinism",
        "precision",
        "channels_last",
        "compile",
        "cuda_graphs",
        "processes",
        "workers",
    }
)


def all_recipe_faults(content: dict) -> Iterator[str]:
    """Of the study's recipe, and of each variant's."""
    yield from recipe_faults(content)
    recipe, variants = content.get("recipe"), content.get("variants")
    for name, variant in variants.items() if isinstance(variants, dict) else ():
        own = variant.get("recipe") if isinstance(variant, dict) else None
        if not isinstance(own, dict) or not isinstance(recipe, dict):
            continue
        place = f"variants.{name}.recipe"
        for key in sorted(set(own) & COMPUTING):
            yield f"{place}.{key}: not a variant's to say; set it under recipe, for all"
        _, faults = validate(Recipe, {**recipe, **own})
        inherited = set(validate(Recipe, recipe)[1])
        yield from (f"{place}.{fault}" for fault in faults if fault not in inherited)
        inherited = set(recipe_faults({"recipe": recipe}))
        for fault in recipe_faults({"recipe": {**recipe, **own}}):
            if fault not in inherited:
                yield f"variants.{name}.{fault}"


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
        fewer = f"fewer than recipe.epochs ({epochs})" + (", which is 0" if epochs == 1 else "")
        yield f"recipe.warmup_epochs: {warmup} is not allowed; allowed: {fewer}"
    kept = recipe.get("keep_epochs")
    whole = isinstance(kept, list) and all(type(epoch) is int for epoch in kept)
    if whole and any(a >= b for a, b in itertools.pairwise(kept)):
        yield f"recipe.keep_epochs: {shown(kept)} is not allowed; allowed: rising epochs"
    if whole and kept and type(recipe.get("epochs")) is int and kept[-1] > recipe["epochs"]:
        yield f"recipe.keep_epochs: {kept[-1]} is not allowed; allowed: 1 to recipe.epochs ({recipe['epochs']})"
    chosen = recipe.get("optimiser", "sgd")
    if chosen != "sgd" and chosen in list(COMMON) and recipe.get("nesterov") is True:
        yield f"recipe.nesterov: true has no effect with optimiser {chosen}; allowed: false"
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


def person_faults(content: dict, dataset: str, entry: DataEntry) -> Iterator[str]:
    """Of a study on persons to be found again: label noise, which exchanges classes, has no meaning for them."""
    if "gallery" not in (entry.images or {}):
        return
    recipes = {"recipe": content.get("recipe")}
    variants = content.get("variants")
    for name, variant in variants.items() if isinstance(variants, dict) else ():
        recipes[f"variants.{name}.recipe"] = variant.get("recipe") if isinstance(variant, dict) else None
    for place, recipe in recipes.items():
        if isinstance(recipe, dict) and recipe.get("label_noise"):
            noise = shown(recipe["label_noise"])
            yield f"{place}.label_noise: {noise} is not allowed; allowed: 0, because {dataset} has persons, not classes"


def probe_faults(probes: Any, dataset: str, entries: dict[str, DataEntry]) -> Iterator[str]:
    """Probes of a data set's networks that take images which they cannot use."""
    tests = [name for name, other in entries.items() if other.tests == dataset]
    others = [name for name in entries if not_of_other_classes(name, dataset, entries) is None]
    persons = "gallery" in (entries[dataset].images or {})
    for name, probe in probes.items() if isinstance(probes, dict) else ():
        data, analysis = (probe.get(key) if isinstance(probe, dict) else None for key in ("data", "analysis"))
        needs = set(analyses.about(analysis)["needs"]) if analysis in analyses.names() else set()
        if persons and needs & {"images", "others"}:
            yield f"probes.{name}.analysis: {analysis!r} is not allowed; {dataset} has persons, and it needs classes"
        if not isinstance(data, str):
            continue
        if "others" in needs:
            if (reason := not_of_other_classes(data, dataset, entries)) is not None:
                yield f"probes.{name}.data: {data!r} {reason}; {nearest(data, others)}"
        elif "own" in needs:
            if data != dataset:
                allowed = f"allowed: {dataset}, the study's own"
                yield f"probes.{name}.data: {data!r} is not allowed with {analysis}; {allowed}"
        elif "images" in needs and data == dataset:
            known = ", ".join(tests) or "none"
            yield f"probes.{name}.data: {data!r} is the study's own, which its tables have; known: {known}"
        elif data not in (those := tests if "images" in needs else [dataset, *tests]):
            yield f"probes.{name}.data: {data!r} does not test networks of {dataset}; {nearest(data, those)}"


def not_of_other_classes(name: str, dataset: str, entries: dict[str, DataEntry]) -> str | None:
    """Why a data set cannot show a network of another one images of other classes; None where it can.  Classes that
    only the files name are held against each other when the probe runs."""
    if name not in entries:
        return "is not in the catalogue"
    other = entries[name]
    shared = sorted(set(other.classes or ()) & set(entries[dataset].classes or ()))
    reasons = {
        "is the study's own, of no other classes": name == dataset,
        f"is a test set for networks of {other.tests}, which stands for its classes": other.tests is not None,
        "has persons, not classes": "gallery" in (other.images or {}),
        "has no training images of classes": other.split is None,
        f"has classes of {dataset}, such as {''.join(shared[:1])!r}": bool(shared),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def data_faults(content: dict, folder: Path) -> Iterator[str]:
    root = content.get("root")
    if not isinstance(root, str) or not root:
        return
    catalogue_path = folder / root / "data" / "params.yaml"
    if not is_there(folder / root / "src" / "selfdistill", Path.is_dir) or not catalogue_path.is_file():
        yield f"root: {shown(root)} is not the repository's top folder; allowed: the way there from this file"
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
    yield from probe_faults(content.get("probes"), dataset, catalogue.datasets)
    sizes = [content.get(key) for key in ("training_images", "validation_images")]
    if content.get("split") in ("per_seed", "fixed") and all(size is None or type(size) is int for size in sizes):
        yield from split_faults(entry, content["split"], *sizes)
    yield from person_faults(content, dataset, entry)
    size = sizes[0] if type(sizes[0]) is int else entry.split.train
    if size is None:
        return
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
