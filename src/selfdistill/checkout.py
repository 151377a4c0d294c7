"""What must hold of a checkout before any work: a Git repository, outputs that DVC can keep, no merge in progress."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from selfdistill.errors import ConfigError
from selfdistill.outside import merge_mark

if TYPE_CHECKING:
    from selfdistill.config import Study


def require(folder: Path, study: "Study") -> None:
    """Raise ConfigError with all that stands in the way of the study in `folder`, one a line."""
    faults = [*no_git(folder / study.root), *links(folder, study), *unmerged(folder, study)]
    if faults:
        raise ConfigError("\n".join(faults))


def no_git(root: Path) -> Iterator[str]:
    """DVC refuses a tree without Git, such as an unpacked archive of the sources."""
    for place in (root.resolve(), *root.resolve().parents):
        if (place / ".git").exists():
            return
    yield f"{root.resolve()}: not a Git repository, and DVC needs one; make it one: git init && git add --all"


def links(folder: Path, study: "Study", data: bool = True) -> Iterator[str]:
    """Folders of outputs that are links out of the repository: DVC refuses them, when the work is done.  data: those of
    the study's data sets, too, which a training alone only reads."""
    root = folder / study.root
    top = root.resolve()
    trained = dict.fromkeys((model, variant) for model, variant, _ in study.cells())
    outputs = [study.results / "predictions" / model / variant for model, variant in trained]
    outputs += [study.results / "records" / "measured"]
    outputs += [study.results / "records" / "probes" / probe for probe in study.probes]
    outputs += [study.results / "runs" / model / variant / str(b) for model, variant in trained for b in study.blocks]
    places = [folder / part for path in outputs for part in (path, *path.parents[:-1])]
    for name in study.data_sets if data else ():
        places += [root / "data" / kind / part for kind in ("raw", "prepared") for part in ("", name)]
    for place in dict.fromkeys(places):
        if place.is_symlink() and not place.resolve().is_relative_to(top):
            yield (
                f"{place}: a link to {place.resolve()}, and DVC keeps no output outside the repository; remove it, and "
                "have the cache there: dvc cache dir --local FOLDER && dvc config --local cache.type symlink"
            )


def unmerged(folder: Path, study: "Study") -> Iterator[str]:
    """Files with the marks of a conflict, which a merge leaves and some readers would take for damage."""
    root = folder / study.root
    results = folder / study.results
    files = [folder / "dvc.lock", *(root / "data/sets" / n / "dvc.lock" for n in study.data_sets)]
    files += [*sorted((results / "hosts").rglob("*.json")), *sorted((results / "records/imported").rglob("*.json"))]
    for file in files:
        if file.is_file() and (line := merge_mark(file.read_bytes())):
            yield (
                f"{file}: line {line}: the mark of a merge; take one side, `git checkout --ours {file}` or --theirs, "
                "then `git add` it"
            )
