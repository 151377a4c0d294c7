"""Whether the weights of a run can be here at all: those of an imported run stayed where it was trained."""

from pathlib import Path

from selfdistill.models.trained import WeightsError


def refuse_imported(folder: Path) -> None:
    """Raise WeightsError, for whatever is about to load weights, where a run is here only as an imported one.

    folder: the run's, RESULTS/runs/MODEL/VARIANT/SEED, or with a block before the seed; it need not be there.
    """
    for runs in folder.absolute().parents:
        cell = folder.absolute().relative_to(runs).parts
        imported = runs.parent.joinpath("records", "imported", *cell[:2], f"{cell[-1]}.json")
        if runs.name == "runs" and imported.is_file() and not (folder / "run.json").exists():
            raise WeightsError(
                f"{folder}: this run was imported, without its weights; do this where it was trained, or train it here"
            )
