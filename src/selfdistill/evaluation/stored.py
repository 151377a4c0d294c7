"""The stored predictions of a run that is named by its folder."""

from pathlib import Path

from selfdistill.evaluation.inputs import PredictionsError, Stored
from selfdistill.models.trained import read_run

REMEDY = "`dvc checkout` or `dvc repro` brings them"


def predictions_of(folder: Path) -> Stored:
    """Of a run in RESULTS/runs/MODEL/VARIANT/SEED, or with a block before the seed.  PredictionsError: there are none,
    or they are of other weights."""
    file = predictions_file(folder)
    if file is None or not file.is_file():
        raise PredictionsError(f"{folder}: no stored predictions of this run; {REMEDY}")
    stored = Stored(file)
    if stored.run.get("weights_sha256") != read_run(folder)["weights_sha256"]:
        raise PredictionsError(f"{file}: predictions of other weights than those in {folder}; {REMEDY}")
    return stored


def predictions_file(folder: Path) -> Path | None:
    """Where they lie; None for a folder that is not below a study's `runs`."""
    for runs in folder.absolute().parents:
        cell = folder.absolute().relative_to(runs).parts
        if runs.name == "runs" and len(cell) in (3, 4):
            return runs.parent.joinpath("predictions", *cell[:2], f"{cell[-1]}.json")
    return None
