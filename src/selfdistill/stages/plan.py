"""What every stage of a study depends on, besides the data: written by `check`, watched by DVC.

`results/plan` has one small file for each training (model and variant), each network's evaluation, all analyses of
stored predictions, each probe, and each stage that reports: parameters, and one hash over the code that can change the
result (`selfdistill.closure`).  The stages depend on these files and on no folder of code, so that a docstring, a card
or a new method makes nothing stale.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfdistill import analyses, methods, models
from selfdistill.closure import PACKAGE, code_sha256
from selfdistill.files import sha256_of, write_atomically
from selfdistill.protocol import PROTOCOL
from selfdistill.search import TUNED, spaces_of

if TYPE_CHECKING:  # its library, pydantic, may be missing on a machine that only trains
    from selfdistill.config import Study

TRAINING = ("stages/cell.py", "training/determinism.py")
TUNING = ("search.py", "stages/trial.py")
EVALUATION = ("stages/evaluate.py", "training/determinism.py")
MEASURING = ("evaluation/inputs.py", "training/determinism.py")  # what hands an analysis its inputs
PROBING = ("evaluation/probed.py", "training/determinism.py")
SPLIT = ("split", "training_images", "validation_images")  # which validation images a seed has
REPORTS = {
    "tables": (),
    "figures": ("summary/style.mplstyle",),
    "page": tuple(f"reporting/{name}" for name in ("page.html", "parts.html", "page.css", "page.js")),
}  # beside code: what they read
# A schema of parameters, a place on the disk and the names that the package offers are not part of a result; anything
# of them that is part of one is in the plan itself.
NO_REPORT = ("__init__.py", "bounds.py", "config.py", "params.py", "schema.py", "errors.py", "methods/__init__.py")
NO_RESULT = (*NO_REPORT, "analyses/__init__.py")  # which says what of an analysis is shown


def training_plan(study: "Study", model: str, variant: str) -> dict:
    """All that a training of this network depends on, except data, teacher's weights and seed; the working folder is
    the study's."""
    resolved = study.variant(variant)
    teacher, teacher_model = study.teacher_of(variant)
    given = study.weights.get(model)
    return {
        "protocol": PROTOCOL,
        "model": model,
        "variant": variant,
        "method": resolved.method,
        "teacher": teacher,
        "teacher_model": teacher_model,
        "split": study.split,
        "training_images": study.training_images,
        "validation_images": study.validation_images,
        "hyper": resolved.hyper,
        "recipe": dict(vars(resolved.recipe)),
        "arguments": models.arguments(model, study.own_networks),
        "weights": given and {"use": given.use, "sha256": sha256_of(Path(given.file))},
        "code_sha256": code_of(*TRAINING, *method_files(resolved.method), *network_files(study, model)),
    }


def tuning_plan(study: "Study", model: str, variant: str) -> dict:
    """The same of a search; `code_sha256` is that of its trainings."""
    plan, resolved = training_plan(study, model, variant), study.variant(variant)
    teacher, _ = study.teacher_of(variant + TUNED)
    return {
        **plan,
        "teacher": teacher,
        "tuning": {
            "trials": study.tuning.trials,
            "epochs": study.trial_epochs,
            "seeds": study.seeds_of(variant + TUNED),
        },
        "search": spaces_of(resolved.method),
        "search_code_sha256": code_of(*TUNING, *method_files(resolved.method), *network_files(study, model)),
    }


def evaluation_plan(study: "Study", model: str) -> dict:
    """What predicting with a network depends on, except its weights and the images, of which it says the split."""
    recipe = study.recipe
    numerics = {key: getattr(recipe, key) for key in ("device", "threads", "determinism")}
    return {
        "protocol": PROTOCOL,
        **numerics,
        **{key: getattr(study, key) for key in SPLIT},
        "code_sha256": code_of(*EVALUATION, *network_files(study, model)),
        "arguments": models.arguments(model, study.own_networks),
    }


def measure_plan(study: "Study") -> dict[str, dict]:
    """What each analysis of stored predictions depends on, except these."""
    return {
        name: analysis_plan(name, study.analyses.get(name)) for name in analyses.names() if not analyses.is_probe(name)
    }


def probe_plan(study: "Study", probe: str) -> dict:
    """What a probe depends on, except the runs and the images of its data set."""
    declared, recipe = study.probes[probe], study.recipe
    return {
        "protocol": PROTOCOL,
        **{key: getattr(recipe, key) for key in ("device", "threads", "determinism")},
        "selection": study.selection,
        "seeds": study.seeds,
        "analysis": declared.analysis,
        "data": declared.data,
        **analysis_plan(declared.analysis, declared.settings),
    }


def analysis_plan(name: str, given: dict | None) -> dict:
    handing = PROBING if analyses.is_probe(name) else MEASURING
    return {"settings": analyses.settings(name, given), "code_sha256": code_of(*handing, analyses.file(name))}


def report_plan(study: "Study", stage: str) -> dict:
    """What a stage that reports depends on, except records, tables and figures: its code, the analyses, and the prose
    of methods and analyses."""
    used = dict.fromkeys(study.variant(name).method for name in study.all_variants)
    titles = {name: study.variant(name).title for name in study.all_variants}
    cards = {name: sha256_of(methods.FOLDER / f"{name}.md") for name in used}
    files = {name: sha256_of(PACKAGE / name) for name in REPORTS[stage]}
    plan: dict[str, Any] = {
        "code_sha256": code_of(f"reporting/{stage}.py", without=NO_REPORT),
        "files": files,
        "titles": titles,
        "cards": cards,
        "analyses": {name: code_of(analyses.file(name)) for name in analyses.names()},
    }
    if stage == "page":
        plan["analysis_cards"] = {name: sha256_of(analyses.FOLDER / f"{name}.md") for name in analyses.names()}
    if stage == "tables":  # here and not among the stage's params, which DVC wants to be in every params.yaml
        contrasts = {name: contrast.model_dump() for name, contrast in study.contrasts.items()}
        plan |= {"contrasts": contrasts, "margin": study.margin}
    if stage in ("tables", "page"):
        plan["claims"] = claims_plan(study)
    return plan


def claims_plan(study: "Study") -> list[dict]:
    """The tests of the papers' claims that the study makes, with what its page says of each claim."""
    from selfdistill.claims.declared import asked_of, read_claims, study_here  # pydantic, which may be missing

    claims = read_claims()
    return [
        {"claim": name, "says": claim.claim, "settings": claims.papers[claim.paper].settings, "place": place}
        | test.model_dump(exclude_none=True)
        for name, place, test in asked_of(claims, study_here(study.root))
        for claim in (claims.claims[name],)
    ]


def method_files(method: str) -> list[Path]:
    """A method's file, and those of its needs."""
    needs = [PACKAGE / "training" / "needs" / f"{need}.py" for need in methods.about(method)["needs"]]
    return [methods.file(method), *(path for path in needs if path.is_file())]


def network_files(study: "Study", model: str) -> list[Path]:
    file = models.family_file(model, own=study.own_networks)
    return [file.resolve() if file is not None else PACKAGE / "models" / "from_timm.py"]


def code_of(*roots: str | Path, without: Sequence[str] = NO_RESULT) -> str:
    return code_sha256([PACKAGE / root for root in roots], stop=[PACKAGE / name for name in without])


def write_plan(study: "Study") -> None:
    """Write results/plan of the study in the working folder; files of what it no longer lists are removed."""
    own = [(m, v) for m in study.models for v in study.published] + [(m, study.teacher) for m in study.teacher_models]
    plans = {Path("training", model, f"{variant}.json"): training_plan(study, model, variant) for model, variant in own}
    tuned = [(m, v) for m in study.models for v in study.tuning.variants]
    plans |= {Path("tuning", model, f"{variant}.json"): tuning_plan(study, model, variant) for model, variant in tuned}
    for model in (*study.models, *study.teacher_models):
        plans[Path("evaluation", f"{model}.json")] = evaluation_plan(study, model)
    # with the cells, for what a study no longer lists is removed when the work begins, after a scheduler has asked
    plans[Path("measure.json")] = {**measure_plan(study), "cells": sorted({(m, v) for m, v, _ in study.cells()})}
    plans |= {Path("probes", f"{name}.json"): probe_plan(study, name) for name in study.probes}
    plans |= {Path("reporting", f"{stage}.json"): report_plan(study, stage) for stage in REPORTS}
    folder = study.results / "plan"
    for path, content in plans.items():
        text = (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()
        if not (folder / path).is_file() or (folder / path).read_bytes() != text:
            write_atomically(folder / path, text)
    for path in sorted(folder.rglob("*.json")):
        if path.relative_to(folder) not in plans:
            path.unlink()
    for path in sorted((p for p in folder.glob("**") if p.is_dir()), reverse=True):
        if not any(path.iterdir()):
            path.rmdir()
