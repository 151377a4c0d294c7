"""What DVC sees of a checkout: the default study and the digits always, any other study and data set once it is used.

A study and a data set have a dvc.yaml each, which the top's .dvcignore hides; one more .dvcignore beside it, which Git
does not keep, shows it.  So `dvc status`, `dvc pull` and the time that DVC takes speak only of what is used.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from selfdistill.data.catalogue import read_catalogue
from selfdistill.files import write_atomically

if TYPE_CHECKING:
    from selfdistill.config import Study

SETS = Path("data/sets")
STAGES = Path("..", "digits", "dvc.yaml")  # of every data set: a file there, for in a Git revision DVC reads no link


def show(folder: Path, study: "Study") -> None:
    """Show the study in `folder` and its data sets to DVC."""
    root = folder / study.root
    if folder.resolve() != root.resolve():
        put(folder / ".dvcignore")
    show_data_sets(root, study)


def show_data_sets(root: Path, study: "Study") -> list[str]:
    """Show a study's data sets to DVC, and make what stands in data/sets of one that is new in the catalogue; returns
    the names of those that DVC has not seen so before."""
    entries, new = read_catalogue(root / "data" / "params.yaml").datasets, []
    for name in study.data_sets:
        place = root / SETS / name
        declared = f'name: "{name}"\nreader: {json.dumps(entries[name].reader)}\n'
        changed = put(place / "params.yaml", declared)
        if not (place / "dvc.yaml").exists():
            (place / "dvc.yaml").unlink(missing_ok=True)
            (place / "dvc.yaml").symlink_to(STAGES)
        if (place / "dvc.yaml").is_symlink():
            changed |= put(place / ".dvcignore")
        if changed:
            new.append(name)
    return new


def put(path: Path, content: str = "!dvc.yaml\n") -> bool:
    """Write a file unless it has this content; whether it was written."""
    if path.is_file() and path.read_text(encoding="utf-8") == content:
        return False
    write_atomically(path, content.encode())
    return True
