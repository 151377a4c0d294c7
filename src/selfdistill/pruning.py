"""Results of cells that a study no longer lists are removed, so that its tables forget them."""

import shutil
import sys
from pathlib import Path

from selfdistill.config import Study
from selfdistill.params import read_study
from selfdistill.search import untuned


def forget(folder: Path) -> list[Path]:
    """Remove results of cells that the study in `folder` no longer lists, and say how many; returns their paths."""
    study = read_study(folder / "params.yaml")
    results = folder / study.results
    removed = prune(study, results)
    if not removed:
        return []
    print(f"{results}: removed {len(removed)} results of cells that params.yaml no longer lists", file=sys.stderr)
    return removed


def prune(study: Study, results: Path) -> list[Path]:
    """Remove what `results` holds of cells that the study does not list; returns what was removed.

    Imported records stay, and what runs said of their machines: nothing could make them again, they are in Git, and no
    table reads those of other cells.
    """
    listed = {f"{model}/{variant}/{seed}" for model, variant, seed in study.cells()}
    trained = {f"{model}/{variant}" for model, variant, _ in study.cells()}
    blocks = {f"{cell}/{block}" for cell in trained for block in study.blocks}
    blocks |= {f"{model}/{variant}/{seed}" for model, variant, seed in study.cells() if untuned(variant)}
    removed = []
    probes = sorted((results / "records" / "probes").glob("*"))
    for folder in [results / "runs", results / "predictions", results / "records" / "measured", *probes]:
        known = blocks if folder.name == "runs" else listed
        known = known if folder not in probes or folder.name in study.probes else set()
        for path in sorted(folder.glob("*/*/*")):
            if path.name.startswith("."):  # .gitignore, and what a stage that still ends is writing
                continue
            # 0.validation.safetensors is of seed 0
            cell = path.relative_to(folder).with_name(path.name.partition(".")[0]).as_posix()
            if cell in known:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
            removed.append(path)
        for parent in [*sorted(folder.glob("*/*")), *sorted(folder.glob("*")), folder]:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
    searches = {f"{m}/{variant}" for m in study.models for variant in study.tuning.variants}
    for path in sorted((results / "tuning").glob("*/*")):
        if path.is_dir() and path.relative_to(results / "tuning").as_posix() not in searches:
            shutil.rmtree(path)
            removed.append(path)
    return removed
