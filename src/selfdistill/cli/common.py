"""What the commands share."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from selfdistill.errors import UserError

if TYPE_CHECKING:
    from selfdistill.config import Study


STUDY = Path("params.yaml")
Commands = argparse._SubParsersAction  # what commands, and the actions of a noun, are added to


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int | None] | None,
    help: str,
    description: str,
    epilog: str | None = None,
) -> argparse.ArgumentParser:
    """A sub-command that `run` carries out; returns its parser."""
    sub = commands.add_parser(name, help=help, description=description, epilog=epilog)
    sub.set_defaults(run=run)
    return sub


def add_preparation(sub: argparse.ArgumentParser) -> None:
    """How a folder of images is to be prepared."""
    sub.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="of the prepared images, 4 to 4096 (default: by them)"
    )
    sub.add_argument("--seed", type=int, default=0, help="of the splits (default: %(default)s)")


def read_study(file: Path) -> "Study":
    from selfdistill import params

    return params.read_study(file)


def numerics(study: "Study", devices: int = 0) -> None:
    """What must be set before torch and NumPy are loaded; leases so many GPUs if the recipe uses any."""
    from selfdistill.training import determinism

    if devices and study.recipe.device != "cpu":
        from selfdistill import lease

        try:
            lease.acquire(devices)
        except lease.LeaseError as error:
            raise UserError(error) from None
    determinism.prepare_environment(study.recipe.determinism, study.recipe.threads)


def catalogue_folder() -> Path:
    """The repository's `data/`, from its top, from inside it, or from a study's folder."""
    from selfdistill.schema import CATALOGUE, read_yaml

    for folder in (Path("data"), Path("."), Path("../../data")):
        path = folder / "params.yaml"
        if path.is_file() and "datasets" in read_yaml(path, CATALOGUE):
            return folder
    raise UserError("no catalogue here; run this at the repository's top, in data/ or in a study's folder")
