"""Studies: list them, show one, make one."""

import os
from argparse import Namespace
from functools import partial
from pathlib import Path

from selfdistill.cli.common import Commands, add_command, add_preparation, catalogue_folder
from selfdistill.errors import UserError


def add(commands: Commands) -> None:
    noun = add_command(
        commands,
        "study",
        None,
        "the studies: list, cost, a new one of your own images",
        "What studies there are, what one of them would cost and what of it has run, and a new study of a folder of "
        "images. Run at the repository's top or in a study's folder.",
        "Example: selfdistill study new photos --data ~/photos && make study STUDY=photos",
    )
    actions = noun.add_subparsers(dest="action", required=True, metavar="ACTION")
    action = partial(add_command, actions)
    sub = action(
        "list",
        list_studies,
        "what studies there are",
        "List the studies: data set, networks, methods, seeds, cells, and what each is for.",
    )
    sub.add_argument("--json", action="store_true", help="machine-readable, with the names of networks and methods")
    sub = action(
        "show",
        show_study,
        "what a study would cost and what of it has run",
        "Print a study's cells, an estimate of its hours and bytes with the numbers it comes from, and how many of "
        "its cells have run here, are imported or lie in DVC's cache. Counts multiply-adds; nothing is run.",
        "Example: selfdistill study show byot-cifar100 --tflops 150",
    )
    sub.add_argument("name", help="of a folder in studies/, or default")
    sub.add_argument("--tflops", type=float, metavar="N", help="10^12 operations a second that training sustains")
    sub = action(
        "use",
        use_study,
        "show a study and its data sets to DVC",
        "From then on `dvc repro studies/NAME/dvc.yaml`, `dvc status` and their relatives work on the study, too. make "
        "study and Snakemake do this by themselves. To hide it again remove studies/NAME/.dvcignore.",
        "Example: selfdistill study use fashion-mnist && dvc repro studies/fashion-mnist/dvc.yaml",
    )
    sub.add_argument("name", help="of a folder in studies/, or default")
    sub = action(
        "new",
        new_study,
        "a study of your own images",
        "Describe a folder of images, CLASS/image.jpg or train/CLASS/image.jpg beside test/CLASS/image.jpg, in "
        "data/params.yaml and make studies/NAME, ready for `make study STUDY=NAME`. The images stay where they are.",
        "Example: selfdistill study new photos --data ~/photos && make study STUDY=photos",
    )
    sub.add_argument("name", help="of the data set and of the study")
    sub.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="that holds the images")
    add_preparation(sub)


def list_studies(options: Namespace) -> None:
    import json

    from selfdistill import studies
    from selfdistill.studies_text import listed

    rows = studies.listing(repository())
    print(json.dumps(rows, indent=1) if options.json else listed(rows))


def show_study(options: Namespace) -> None:
    from selfdistill.studies_text import shown

    root = repository()
    folder_of(root, options.name)
    if options.tflops is not None and not 0 < options.tflops < 1e6:
        raise UserError(f"--tflops {options.tflops} is not allowed; allowed: above 0 and below 1000000")
    print(shown(root, options.name, options.tflops))


def use_study(options: Namespace) -> None:
    from selfdistill.params import read_study
    from selfdistill.showing import show

    folder = folder_of(repository(), options.name)
    try:
        show(folder, read_study(folder / "params.yaml"))
    except OSError as error:
        raise UserError(error) from None


def folder_of(root: Path, name: str) -> Path:
    from selfdistill import studies
    from selfdistill.schema import nearest

    known = studies.folders(root)
    if name not in known:
        raise UserError(f"no study {name!r}; {nearest(name, list(known))}")
    return known[name]


def new_study(options: Namespace) -> None:
    from selfdistill import studies
    from selfdistill.studies_text import made

    size = tuple(options.size) if options.size else None
    folder = studies.new_study(repository(), options.name, options.data, size, options.seed)
    print(made(options.name, folder / "params.yaml"))


def repository() -> Path:
    """The repository's top, from anywhere where there is a catalogue."""
    return Path(os.path.relpath((catalogue_folder() / "..").resolve()))
