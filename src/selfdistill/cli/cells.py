"""Cells of a study: train and evaluate them, and carry out analyses."""

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from selfdistill.cli.common import STUDY, Commands, numerics, read_study
from selfdistill.errors import UserError

if TYPE_CHECKING:
    from selfdistill.config import Study
    from selfdistill.stages.interruption import Interruption


def add(commands: Commands) -> None:
    cell = ArgumentParser(add_help=False)
    cell.add_argument("--model", required=True, help="network, one of the study's models")
    cell.add_argument("--variant", required=True, help="one of the study's methods, students or taught")
    sub = commands.add_parser(
        "train",
        parents=[cell],
        help="stage: train one network with one variant from each seed of a block",
        description="Train cells of the study, a block of seeds in one process, and write each one's weights (last "
        "epoch, and best on validation), history and description to results/runs/MODEL/VARIANT. A seed that was "
        "finished before from equal inputs is not trained again; SELFDISTILL_FRESH=1 trains it all the same. The test "
        "split is not touched.",
        epilog="Example: selfdistill train --model resnet10-slim --variant byot --seeds 0-9. A run that was killed "
        "goes on from its last checkpoint (in .work/checkpoints, or where SELFDISTILL_CHECKPOINTS says) when the "
        "same command is given again; after SIGTERM it saves and exits with 75: run me again.",
    )
    sub.add_argument("--seeds", required=True, help="one entry of the study's seeds: a number, or a block such as 0-9")
    sub.set_defaults(run=train)
    sub = commands.add_parser(
        "tune",
        parents=[cell],
        help="stage: search a variant's hyper-parameters, and train the winners",
        description="Search the hyper-parameters of a variant, one of the study's `tuning`: for each replicate as many "
        "trials as it says, of which the first has the values as published, each trained on that seed's training "
        "images and judged by the loss on its validation images. Then train each replicate's winner as a run of "
        "VARIANT-tuned. Writes results/tuning/MODEL/VARIANT and results/runs/MODEL/VARIANT-tuned. Trials that were "
        "finished before from equal inputs are not trained again; SELFDISTILL_FRESH=1 trains them all the same. The "
        "test split is not touched.",
        epilog="Example: selfdistill tune --model resnet10-slim --variant byot",
    )
    sub.set_defaults(run=tune)
    sub = commands.add_parser(
        "evaluate",
        parents=[cell],
        help="stage: predict test and validation images from every exit",
        description="Predict the test and validation images with the runs of a variant, all seeds, and write the "
        "logits of every exit (features of test images, where persons are to be found again) to results/predictions. A "
        "seed that was evaluated before from equal inputs is not evaluated again; SELFDISTILL_FRESH=1 evaluates it all "
        "the same.",
    )
    sub.set_defaults(run=evaluate)
    sub = commands.add_parser(
        "measure",
        help="stage: carry out the analyses of stored predictions",
        description="Carry out every analysis of stored predictions on every run that has some, and write the runs' "
        "records to results/records/measured. What an equal analysis found before of equal predictions is not computed "
        "again; SELFDISTILL_FRESH=1 computes it all the same. `selfdistill analyses` lists what there is.",
    )
    sub.set_defaults(run=measure)
    sub = commands.add_parser(
        "probe",
        help="stage: carry out one of the study's probes on every network",
        description="Carry out an analysis of the networks themselves, one of the study's `probes`, on every run of "
        "this checkout with the weights that the study selects, and write its rows to results/records/probes. A run "
        "that was probed before from equal inputs is not probed again; SELFDISTILL_FRESH=1 probes it all the same.",
        epilog="Example: selfdistill probe cifar100-c",
    )
    sub.add_argument("name", metavar="NAME", help="one of the study's probes")
    sub.set_defaults(run=probe)


def train(options: Namespace) -> int | None:
    from selfdistill.config import seeds_of

    study = read_cell(options)
    block = next(block for block in study.blocks if str(block) == options.seeds)
    if (refused := prepared(study, options.model, options.variant, seeds_of(block))) is not None:
        return refused

    def work(interruption: "Interruption") -> None:
        from selfdistill.stages.train import train_block

        train_block(study, model=options.model, variant=options.variant, block=block, interruption=interruption)

    return until_interrupted("train", work)


def tune(options: Namespace) -> int | None:
    from selfdistill.search import TUNED

    study = read_cell(options, tuned=True)
    tuned = options.variant + TUNED
    if tuned not in study.all_variants:
        known = ", ".join(study.tuning.variants) or "none"
        raise UserError(f"--variant {options.variant} is not tuned in {STUDY}; allowed: one of tuning ({known})")
    if (refused := prepared(study, options.model, tuned, study.seeds_of(tuned))) is not None:
        return refused

    def work(interruption: "Interruption") -> None:
        from selfdistill.stages.tune import tune as search

        search(study, model=options.model, variant=options.variant, interruption=interruption)

    return until_interrupted("tune", work)


def prepared(study: "Study", model: str, variant: str, seeds: Iterable[int]) -> int | None:
    """Make this process ready to train; the exit status of the processes that do so in its place, if several do."""
    from selfdistill import checkout

    if links := list(checkout.links(STUDY.parent, study, data=False)):
        raise UserError(links[0])
    numerics(study, devices=study.recipe.processes)
    if study.recipe.processes > 1 and "WORLD_SIZE" not in os.environ:
        from selfdistill.training.distributed import launch

        return launch(study.recipe.processes, [sys.executable, *sys.argv])
    missing = [study.data_folder / "training" / "dataset.json"]
    teacher, network = study.teacher_of(variant)
    if teacher is not None:
        missing += [study.run_folder(network or model, teacher, seed) / "run.json" for seed in seeds]
    for path in missing:
        if not path.is_file():
            raise UserError(f"{path} is missing; `dvc repro` prepares the data and trains the teachers first")
    described(missing[0])
    return None


def described(file: Path) -> None:
    """OutsideError unless a data set's description gives each channel's mean and deviation, by which all images are
    normalised."""
    from selfdistill.evaluation.described import numbers
    from selfdistill.outside import OutsideError, json_object

    again = "prepare the data set again"
    told = json_object(file, again)
    for key, allowed in (("mean", "a number"), ("std", "a number above 0")):
        values = told.get(key)
        if not numbers(values, told.get("channels")) or (key == "std" and min(values or ()) <= 0):
            raise OutsideError(
                f"{file}: {key}: {values!r} is not allowed; allowed: {allowed} for each channel; {again}"
            )


def until_interrupted(stage: str, work: Callable[["Interruption"], None]) -> int:
    import signal

    from selfdistill.stages.interruption import Interruption
    from selfdistill.training.stopping import RESUME_ME, Interrupted

    with Interruption() as interruption:  # before torch is loaded, which takes seconds
        try:
            work(interruption)
        except Interrupted as error:
            print(f"selfdistill {stage}: {error}", file=sys.stderr)
            return RESUME_ME if error.signal == signal.SIGTERM else 130
    return 0


def evaluate(options: Namespace) -> None:
    study = read_cell(options)
    numerics(study, devices=1)
    from selfdistill.stages.evaluate_seeds import evaluate_variant

    evaluate_variant(study, model=options.model, variant=options.variant)


def measure(options: Namespace) -> None:
    study = read_study(STUDY)
    numerics(study, devices=1)
    from selfdistill.stages.measure import measure_study

    measure_study(study)


def probe(options: Namespace) -> None:
    study = read_study(STUDY)
    if options.name not in study.probes:
        known = ", ".join(study.probes) or "none"
        raise UserError(f"{options.name} is not in {STUDY}; allowed: one of probes ({known})")
    numerics(study, devices=1)
    from selfdistill.stages.measure import probe_study

    probe_study(study, options.name)


def read_cell(options: Namespace, tuned: bool = False) -> "Study":
    """The study, after making sure that the cells asked for are among its cells; tuned: or among those whose values
    are searched, which need not be listed as published, too."""
    study = read_study(STUDY)
    networks = [*study.models, *study.teacher_models]
    known = [study.teacher] if options.model in study.teacher_models else study.all_variants
    if tuned:
        known = [*known, *(name for name in study.tuning.variants if name not in known)]
    asked = [("model", networks), ("variant", known)]
    if hasattr(options, "seeds"):
        asked.append(("seeds", [str(block) for block in study.blocks]))
    for key, listed in asked:
        if getattr(options, key) not in listed:
            raise UserError(f"--{key} {getattr(options, key)} is not in {STUDY}; there are {', '.join(listed)}")
    return study
