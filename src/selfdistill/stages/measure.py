"""Carry out analyses: all of those of stored predictions, or one probe of every network.

What was found of a run before, by an equal analysis from equal inputs, is not computed again: it stands in the record
that waits (`stages.finished`) or lies in DVC's cache.  So a new analysis, or a new run, computes only itself.
"""

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfdistill import analyses
from selfdistill.data.prepared import Dataset, PreparedError
from selfdistill.errors import UserError
from selfdistill.evaluation.inputs import SELECTIONS, Predictions, Stored
from selfdistill.evaluation.probed import Probed
from selfdistill.files import write_atomically
from selfdistill.locks import turn
from selfdistill.models.trained import load_network, read_run
from selfdistill.outside import OutsideError, json_object, untrusted
from selfdistill.stages import finished
from selfdistill.stages.evaluate import WEIGHTS
from selfdistill.stages.evaluate_seeds import BACK, hashes, of_cell, once, run_here
from selfdistill.stages.plan import measure_plan, probe_plan
from selfdistill.stages.train import finished_folder, writable
from selfdistill.training import determinism

if TYPE_CHECKING:  # its library, pydantic, may be missing on a machine that only trains
    from selfdistill.config import Study

Cell = tuple[str, str, int]


class MeasureError(UserError):
    """Nothing to measure, or an analysis that gave what it did not declare; the message says which."""


# ---- of stored predictions ----


def measure_study(study: "Study") -> None:
    """Write the record of every run that has predictions here: what training said of it, and what analyses found."""
    from tqdm import tqdm  # may be missing on a machine that only trains

    there = [cell for cell in study.cells() if study.prediction_file(*cell).is_file()]
    if not there:
        raise MeasureError(f"{study.results / 'predictions'}: no predictions of any cell; `dvc repro` makes them")
    writable(study.results / "records" / "measured")
    plan, device = measure_plan(study), determinism.apply(study.recipe)
    folder = finished_folder(study)
    outputs = finished.locked_outputs(Path("dvc.lock"))
    measured = study.results / "records" / "measured"
    every = {cell: predictions_here(study, cell, device) for cell in there}
    cached = finished.folder_in_cache(folder.parents[1], outputs.get(measured.as_posix(), ""))
    for cell in tqdm(there, unit="run", disable=None, leave=False):
        target, name = study.record_file(*cell), "measured-" + "-".join(map(str, cell))
        known = cached.get(target.relative_to(measured).as_posix())
        content = record_of(with_others(study, cell, every), plan, folder, name, known)
        write_atomically(target, content)


def predictions_here(study: "Study", cell: Cell, device: str) -> Stored:
    """The predictions of a cell.  OutsideError: what is said of them is damaged, or of another cell."""
    file = study.prediction_file(*cell)
    told = json_object(file, BACK)
    of_cell(told, cell, file, BACK)
    with untrusted(OutsideError, file, "not what evaluating writes", BACK):
        for place, kind in (
            (told["evaluation"]["files"], dict),
            (told["evaluation"]["key"], str),
            (told["members"], dict),
        ):
            if not isinstance(place, kind):
                raise ValueError(f"{place!r} in place of {kind.__name__}")
    return Stored(file, device)


def with_others(study: "Study", cell: Cell, every: dict[Cell, Stored]) -> Stored:
    """The predictions of a cell, with those that its analyses may need of other cells, where they are here."""
    model, variant, seed = cell
    teacher, teacher_model = study.teacher_of(variant)
    seeds = {other: (model, variant, other) for other in study.seeds_of(variant) if other != seed}
    return replace(
        every[cell],
        seeds={other: every[place] for other, place in seeds.items() if place in every},
        teacher=every.get((teacher_model or model, teacher, seed)) if teacher else None,
    )


def record_of(stored: Stored, plan: dict[str, dict], folder: Path, name: str, known: Path | None) -> bytes:
    """The record of a run, and its copy that waits until DVC has it, so that what is killed goes on where it was.

    known: an earlier one in DVC's cache.
    """
    with turn(folder.parents[1], name):
        waiting = sorted(folder.glob(f"{name}-*/record.json"))
        content, computed = measured(stored, plan, [*([known] if known else []), *waiting])
        if computed:
            for path in waiting:
                shutil.rmtree(path.parent, ignore_errors=True)
            write_atomically(folder / f"{name}-{finished.key_of(plan)[:16]}" / "record.json", content)
        elif known and waiting:
            finished.sweep(folder, name, iter([{"record.json": known}]))
    return content


def measured(stored: Stored, plan: dict[str, dict], earlier: Sequence[Path] = ()) -> tuple[bytes, list[str]]:
    """The record of a run, and the analyses that were computed for it; plan: `stages.plan.measure_plan`; earlier:
    records of the same cell, which may hold what is wanted."""
    run = stored.run
    wanted = {
        name: finished.key_of(
            {**own, "run": run["evaluation"], **stored.evaluations_of_others(analyses.about(name)["needs"])}
        )
        for name, own in plan.items()
        if applies(name, run)
    }
    found = dict(reusable(earlier, wanted))
    lacking = [name for name in wanted if name not in found]
    for name in lacking:
        found[name] = {"key": wanted[name], "rows": of_run(name, stored, plan[name]["settings"])}
    measures = {name: found[name] for name in wanted}
    return (json.dumps({**run, "measures": measures}, allow_nan=False) + "\n").encode(), lacking


def applies(analysis: str, run: dict[str, Any]) -> bool:
    """Whether what an analysis needs is stored of a run."""
    persons = "re_ranking" in run["evaluation"]
    lacking = {"logits"} if persons else {"features"}
    if not run["members"]:
        lacking.add("networks")
    return lacking.isdisjoint(analyses.about(analysis)["needs"])


def reusable(files: Sequence[Path], wanted: dict[str, str]) -> Iterator[tuple[str, dict]]:
    """What earlier records hold of these analyses and keys."""
    for file in [] if finished.fresh() else files:
        try:
            measures = json.loads(file.read_bytes())["measures"]
            for analysis, key in wanted.items():
                if measures.get(analysis, {}).get("key") == key and isinstance(measures[analysis]["rows"], dict):
                    yield analysis, measures[analysis]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # damaged: it is computed again
            continue


def of_run(analysis: str, stored: Stored, settings: dict[str, Any]) -> dict[str, list[dict]]:
    """The rows of an analysis, by the selection that they are of."""
    selections = SELECTIONS if analyses.of_selection(analysis) else SELECTIONS[:1]
    needs = analyses.about(analysis)["needs"]
    return {selection: carried_out(analysis, stored.of(selection, needs), settings) for selection in selections}


def carried_out(analysis: str, inputs: Predictions | Probed, settings: dict[str, Any]) -> list[dict]:
    """Its rows, each with all of its keys and no number that it does not declare; what is not finite is none."""
    about = analyses.about(analysis)
    rows = []
    for row in analyses.function(analysis)(inputs, **settings):
        lacking = [key for key in about["keys"] if key not in row]
        unknown = [key for key in row if key not in about["keys"] and key not in about["numbers"]]
        for key in (*lacking, *unknown):
            fault = "a row without key" if key in lacking else "a row with"
            declared = ", ".join([*about["keys"], *about["numbers"]])
            raise MeasureError(f"{analyses.file(analysis)}: {fault} {key!r}; ABOUT declares {declared}")
        rows.append(
            {
                key: None if isinstance(value, float) and not math.isfinite(value) else value
                for key, value in row.items()
            }
        )
    return rows


# ---- of the networks themselves ----


def probe_study(study: "Study", probe: str) -> None:
    """Carry out a probe on every run of this checkout, and write results/records/probes/<probe>/...: whose weights,
    the SHA-256 of the pixels of each set, and the rows."""
    from tqdm import tqdm  # may be missing on a machine that only trains

    plan = probe_plan(study, probe)
    prepared, device = study.prepared(plan["data"]), determinism.apply(study.recipe)
    writable(study.results / "records" / "probes" / probe)
    with untrusted(PreparedError, prepared, "cannot be read", "prepare the data set again"):
        facts = json_object(prepared / "training" / "dataset.json", "prepare the data set again")
        parts = {"name": str, "classes": list, "counts": dict, "pixels_sha256": dict}
        if faults := [key for key, kind in parts.items() if not isinstance(facts.get(key), kind)]:
            raise ValueError(f"dataset.json has no {faults[0]}")
    inputs = {**{key: value for key, value in plan.items() if key != "seeds"}, "other": hashes(prepared)}
    if plan["data"] != study.dataset:
        inputs["own"] = hashes(study.data_folder)
    outputs = finished.locked_outputs(Path("dvc.lock"))
    cells = [cell for cell in study.cells() if not only_imported(study, cell)]
    runs = {cell: run_here(study.run_folder(*cell), cell) for cell in cells}  # before any work
    for cell in tqdm(cells, unit="run", disable=None, leave=False):
        folder, target = study.run_folder(*cell), study.probe_file(probe, *cell)
        teacher = teacher_here(study, runs[cell])

        def write(place: Path, key: str, folder: Path = folder, teacher: Path | None = teacher) -> None:
            network, run = load_network(folder, device, WEIGHTS[study.selection])
            file = folder / f"{WEIGHTS[study.selection]}.safetensors"
            dataset = Dataset(**run["dataset"])
            given = Probed(run, network, dataset, file, prepared, device, study.data_folder, teacher)
            told = {
                **{part: plan[part] for part in ("protocol", "analysis", "data", "settings", "selection")},
                "weights_sha256": run["weights_sha256"],
                "pixels_sha256": facts["pixels_sha256"],
                "rows": carried_out(plan["analysis"], given, plan["settings"]),
                "evaluation": {"key": key, "files": {}},
            }
            write_atomically(place / "record.json", (json.dumps(told, allow_nan=False) + "\n").encode())

        name, own = "-".join(map(str, ("probe", probe, *cell))), {**inputs, "run": runs[cell]}
        own["teacher"] = teacher is not None  # whose weights another checkout may have
        place = study.results / "records" / "probes" / probe
        once(finished_folder(study), name, own, {"record.json": target}, outputs, write, place)


def teacher_here(study: "Study", run: dict[str, Any]) -> Path | None:
    """The folder of the run that another learnt from; None where there is none, or where its weights are not here."""
    if run["teacher"] is None:
        return None
    folder = study.run_folder(run["teacher_model"] or run["model"], run["teacher"], run["seed"])
    there = (folder / "run.json").is_file() and read_run(folder)["weights_sha256"] == run["teacher_sha256"]
    return folder if there else None


def only_imported(study: "Study", cell: Cell) -> bool:
    """Whether a run was made elsewhere, and its weights stayed there."""
    return study.imported_file(*cell).is_file() and not (study.run_folder(*cell) / "run.json").exists()
