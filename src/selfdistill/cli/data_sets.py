"""Data sets: fetch, prepare and describe them."""

from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from selfdistill.cli.common import Commands, add_command, add_preparation, catalogue_folder
from selfdistill.errors import UserError, lacking

if TYPE_CHECKING:
    from selfdistill.data.catalogue import DataEntry


def add(commands: Commands) -> None:
    command = partial(add_command, commands)
    sub = command(
        "fetch",
        fetch,
        "stage: get a data set's files and verify them",
        "Get the files of a data set of the catalogue (data/params.yaml) into data/raw/NAME: from the folder "
        "that SELFDISTILL_MIRROR names, from an installed package, or from the catalogue's addresses in order. "
        "Every file's SHA-256 is verified before it is put in place.",
        "Example: SELFDISTILL_MIRROR=/data/mirror selfdistill fetch fashion-mnist",
    )
    sub.add_argument("name", help="data set, as in data/params.yaml")
    sub = command(
        "prepare",
        prepare,
        "stage: split a data set and pack each split",
        "Split a fetched data set into the pool that studies draw from and the test, or into fixed splits, by the "
        "seed of the catalogue and stratified by class, and write one file a split to data/prepared/NAME.",
    )
    sub.add_argument("name", help="data set, as in data/params.yaml")
    sub = command(
        "describe",
        describe,
        "an entry of the catalogue for a folder of images",
        "Print the entry of data/params.yaml for a folder of images, CLASS/image.jpg or train/CLASS/image.jpg beside "
        "test/CLASS/image.jpg: its classes, the hash of the list of its files, sizes of the splits. Decodes every "
        "image once; those that cannot be used are left out of the counts.",
        "Example: selfdistill describe photos ~/photos >> data/params.yaml",
    )
    sub.add_argument("name", help="of the data set")
    sub.add_argument("folder", type=Path, help="that holds the images; it stays where it is")
    add_preparation(sub)


def fetch(options: Namespace) -> None:
    from selfdistill.data.fetch import fetch as fetch_files

    folder = catalogue_folder()
    try:
        fetch_files(options.name, read_entry(folder, options.name), folder / "raw")
    except OSError as error:  # a full disk, too
        raise UserError(lacking(error, folder / "raw") or error) from None


def prepare(options: Namespace) -> None:
    from selfdistill.data.prepare import prepare as prepare_splits

    folder = catalogue_folder()
    entry = read_entry(folder, options.name)
    try:
        report = prepare_splits(options.name, entry, folder / "raw", folder / "prepared")
    except (OSError, ValueError) as error:
        raise UserError(lacking(error, folder / "prepared") or error) from None
    counts = ", ".join(f"{part} {count:,}" for part, count in report["counts"].items())
    lists = (folder / "prepared" / options.name / "report").resolve()  # DVC prints this from data/
    bad, twice = report["quarantined"], sum(report["duplicates"].values())
    mostly = next(iter(report["reasons"]), "")  # sorted by how many files have it
    notes = f"; {bad:,} files could not be used, mostly: {mostly}; see {lists / 'quarantine.csv'}" if bad else ""
    notes += f"; {twice:,} images stand in two splits, see {lists / 'duplicates.csv'}" if twice else ""
    print(f"{options.name}: {counts}{notes}")


def describe(options: Namespace) -> None:
    from selfdistill.data.describe import describe_folder
    from selfdistill.studies import as_entry

    size = tuple(options.size) if options.size else None
    try:
        entry = describe_folder(options.folder, size=size, seed=options.seed)
    except (OSError, ValueError) as error:
        raise UserError(lacking(error, options.folder) or error) from None
    print(as_entry(options.name, entry), end="")


def read_entry(folder: Path, name: str) -> "DataEntry":
    """A data set of the catalogue in `folder`."""
    from selfdistill.data.catalogue import read_catalogue

    catalogue = read_catalogue(folder / "params.yaml")
    if name not in catalogue.datasets:
        raise UserError(f"{name!r} is not in {folder / 'params.yaml'}; there are {', '.join(catalogue.datasets)}")
    return catalogue.datasets[name]
