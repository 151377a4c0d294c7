"""A study's params.yaml: check it, and remove the results of what it no longer lists."""

from argparse import Namespace
from functools import partial
from pathlib import Path

from selfdistill.cli.common import STUDY, Commands, add_command, read_study
from selfdistill.errors import ConfigError


def add(commands: Commands) -> None:
    command = partial(add_command, commands)
    sub = command(
        "check",
        check,
        "stage: validate a params.yaml",
        "Validate a study before any work. Every fault is told at once: key path, value, what is allowed. Exit "
        "code 2 if there is one; nothing is written then. A dvc.lock that a kill cut is put back. With --write, as the "
        "pipeline's first stage, also write results/plan: the parameters of each training and a hash of the code that "
        "it executes.",
    )
    sub.add_argument("file", nargs="?", type=Path, default=STUDY, help="a study's params.yaml (default: %(default)s)")
    sub.add_argument("--write", action="store_true", help="write results/plan beside the file")
    sub = command(
        "prune",
        prune,
        "drop results of cells that the study no longer lists",
        "Remove runs, predictions and records of models, methods and seeds that params.yaml no longer lists, so "
        "that the tables forget them. What DVC has cached stays in its cache. make repro and Snakemake do this "
        "by themselves; before a bare `dvc repro` it is yours to do. Waits for a `dvc repro` that "
        "is still at work here.",
    )


def check(options: Namespace) -> None:
    from selfdistill.checkout import require

    folder = options.file.parent
    study = read_study(options.file)
    require(folder, study)
    if options.write:
        from selfdistill.showing import show_data_sets
        from selfdistill.stages.plan import write_plan

        if new := show_data_sets(folder / study.root, study):
            raise ConfigError(f"{options.file}: {', '.join(new)}: shown to DVC now; give the same command again")
        write_plan(study)
    else:
        from selfdistill.locks import restore

        for line in restore(folder / study.root):
            print(line)
    print(f"{options.file}: in order; {len(study.cells())} cells on {study.dataset}")


def prune(options: Namespace) -> None:
    from selfdistill.locks import refuse_beside_snakemake, restore, wait_for_others
    from selfdistill.pruning import forget

    root = STUDY.parent / read_study(STUDY).root
    refuse_beside_snakemake(root, STUDY.parent)
    wait_for_others(root)
    for line in restore(root):  # where one of those that we waited for was killed
        print(line)
    for path in forget(STUDY.parent):
        print(f"removed {path}")
