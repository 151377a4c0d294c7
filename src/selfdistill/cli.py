"""The command line.  Each command is a stage of the pipeline or a question about it.

Commands import what they need when they run: a check or a table does not wait for torch, and what a light
installation can do works without the packages of the extra `pipeline`.
"""

import argparse
import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from selfdistill import __version__
from selfdistill.errors import ConfigError, UserError, asking_for_packages

if TYPE_CHECKING:
    from selfdistill.config import Study

STUDY = Path("params.yaml")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 for a failure, 2 for a faulty configuration."""
    try:
        try:
            options = parser().parse_args(arguments)
        finally:
            sys.stdout.flush()  # --help and --version leave from here
        code = carried_out(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read the output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes what is left when it ends
        return 1


def carried_out(options: argparse.Namespace) -> int:
    """The exit code of one command, after a line of what it could not do."""
    try:
        with asking_for_packages():
            return options.run(options) or 0
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except UserError as error:
        print(f"selfdistill {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            f"selfdistill {options.command}: interrupted; run the same command to begin it again",
            file=sys.stderr,
        )
        return 130


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="selfdistill",
        description="Self-distillation papers, reproduced side by side. Run inside a study's folder (the one "
        "with params.yaml). `dvc repro` or `snakemake --cores all` run the stages in order; each is also a "
        "command of its own.",
        epilog="Example: selfdistill check && dvc repro && xdg-open results/index.html",
    )
    top.add_argument("--version", action="version", version=f"selfdistill {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

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
    sub.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="of the prepared images, 4 to 4096 (default: by them)"
    )
    sub.add_argument("--seed", type=int, default=0, help="of the splits (default: %(default)s)")

    cell = argparse.ArgumentParser(add_help=False)
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
        epilog="Example: selfdistill train --model resnet10-slim --variant byot --seeds 0-4. A run that was killed "
        "goes on from its last checkpoint (in .work/checkpoints, or where SELFDISTILL_CHECKPOINTS says) when the "
        "same command is given again; after SIGTERM it saves and exits with 75: run me again.",
    )
    sub.add_argument("--seeds", required=True, help="one entry of the study's seeds: a number, or a block such as 0-4")
    sub.set_defaults(run=train)
    sub = commands.add_parser(
        "evaluate",
        parents=[cell],
        help="stage: predict the test split from every exit",
        description="Predict the test split with the runs of a variant, all seeds, write the logits of every exit "
        "(features, where persons are to be found again) to results/predictions and each run's record, with all "
        "metrics, to results/records. A seed that was evaluated before from equal inputs is not evaluated again; "
        "SELFDISTILL_FRESH=1 evaluates it all the same.",
    )
    sub.set_defaults(run=evaluate)
    sub = commands.add_parser(
        "robustness",
        parents=[cell],
        help="stage: test on other images, new or corrupted ones",
        description="Test the runs of a variant, all seeds, on a data set of test images alone, one of the study's "
        "`robustness`, with the weights that the study selects, and write the metrics of every exit, set and severity "
        "to results/records/robustness. A seed that was tested before from equal inputs is not tested again; "
        "SELFDISTILL_FRESH=1 tests it all the same.",
        epilog="Example: selfdistill robustness --model resnet18 --variant byot --data cifar100-c",
    )
    sub.add_argument("--data", required=True, metavar="NAME", help="data set, one of the study's robustness")
    sub.set_defaults(run=robustness)
    command(
        "tables",
        tables,
        "stage: summarise the records",
        "Write results/tables (CSV, Markdown, LaTeX) and results/metrics.json from the records of the study's "
        "cells: mean and 95 % interval over seeds, paired difference to the control, verdict, cost.",
    )
    command(
        "figures",
        figures,
        "stage: draw the figures",
        "Draw results/figures (SVG and PNG) from results/tables: accuracy by method, training curves, accuracy "
        "against depth and against cost.",
    )
    command(
        "page",
        page,
        "stage: write the page",
        "Write results/index.html: tables, figures, parameters, hardware, versions and hashes, in one file that "
        "needs nothing else.",
    )

    add_records(command("records", None, *RECORDS))
    add_studies(command("study", None, *STUDIES))

    sub = command(
        "methods",
        show_methods,
        "what methods exist, with paper and card",
        "List the methods, or print one method's card and its hyper-parameters with their sources.",
        "Example: selfdistill methods byot",
    )
    sub.add_argument("name", nargs="?", help="a method, to print its card")
    sub.add_argument("--json", action="store_true", help="machine-readable")
    sub = command(
        "check",
        check,
        "stage: validate a params.yaml",
        "Validate a study before any work. Every fault is told at once: key path, value, what is allowed. Exit "
        "code 2 if there is one; nothing is written then. With --write, as the pipeline's first stage, also write "
        "results/plan: the parameters of each training and a hash of the code that it executes.",
    )
    sub.add_argument("file", nargs="?", type=Path, default=STUDY, help="a study's params.yaml (default: %(default)s)")
    sub.add_argument("--write", action="store_true", help="write results/plan beside the file")
    sub = command(
        "prune",
        prune,
        "drop results of cells that the study no longer lists",
        "Remove runs, predictions and records of models, methods and seeds that params.yaml no longer lists, so "
        "that the tables forget them. What DVC has cached stays in its cache. make repro and Snakemake do this "
        "by themselves; before a bare `dvc repro` it is yours to do.",
    )
    sub = command(
        "bench",
        bench,
        "how fast training is, against a bare loop and the ordinary one",
        "Train on made images and compare, in turns within one run: this project's loop, a bare loop of the same "
        "network on resident tensors (the floor), and PIL images through torchvision's transforms and a DataLoader. "
        "Prints images a second, the share of a step beside forward, backward and update, achieved FLOP/s against "
        "a measured matrix product, and peak memory.",
        "Example: selfdistill bench --model resnet20 --batch 64 --switches --out docs/bench --name cpu",
    )
    add_bench_options(sub)
    sub = command(
        "predict",
        predict,
        "classify image files with a trained network",
        "Classify image files with a trained run, from its deepest exit or any other. Images are converted to the "
        "channels and size that the network was trained on. Prints file, class, probability and exit.",
        "Example: selfdistill predict results/runs/resnet10-slim/byot/0-4/0 photo.png --exit 2",
    )
    sub.add_argument(
        "folder", type=Path, metavar="RUN", help="folder of a trained run, results/runs/MODEL/VARIANT/BLOCK/SEED"
    )
    sub.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="image files")
    sub.add_argument("--exit", type=int, metavar="N", help="exit to read, 1 the shallowest (default: the deepest)")
    sub.add_argument(
        "--invert", action="store_true", help="for dark strokes on white, where training had white on dark"
    )
    sub.add_argument("--json", action="store_true", help="machine-readable, with the probabilities of all classes")
    return top


def add_command(commands, name: str, run, help: str, description: str, epilog: str | None = None):
    """A sub-command that `run` carries out; returns its parser."""
    sub = commands.add_parser(name, help=help, description=description, epilog=epilog)
    sub.set_defaults(run=run)
    return sub


RECORDS = (
    "runs made on another machine: pack, import, list",
    "Carry runs between machines. `export` packs the records of this checkout's runs, with what each said of its "
    "machine, into one file; `import` checks such files and adds their runs to this study, so that tables, figures "
    "and page show them and name their hardware; `list` says what every cell rests on. A run of this checkout is "
    "always shown before an imported one of the same cell.",
    "Example: selfdistill records import runs.jsonl.gz && selfdistill tables && selfdistill figures && "
    "selfdistill page",
)


def add_records(records: argparse.ArgumentParser) -> None:
    """The sub-commands of `records`."""
    actions = records.add_subparsers(dest="action", required=True, metavar="ACTION")

    action = partial(add_command, actions)
    sub = action(
        "export",
        export_records,
        "pack the runs of this checkout",
        "Pack every run of this checkout that is trained and evaluated into one file: its record, with all metrics "
        "and the history, and what it said of its machine. Weights and predictions stay. Neither DVC nor Git is "
        "needed.",
        "Example: selfdistill records export runs.jsonl.gz",
    )
    sub.add_argument("file", type=Path, metavar="FILE", help="file to write, named .jsonl.gz")
    sub = action(
        "import",
        import_records,
        "check packed files and add their runs to this study",
        "Check every entry of packed files against the study: cell, data set, hyper-parameters, recipe (but for the "
        "keys that say where and how it is computed), metrics and hashes. A file with a fault is refused as a whole; "
        "the others go to results/records/imported, which is kept in Git. Exit code 1 if one was refused.",
        "Example: selfdistill records import gpu-1.jsonl.gz gpu-2.jsonl.gz",
    )
    sub.add_argument("files", type=Path, nargs="+", metavar="FILE", help="files of `selfdistill records export`")
    sub.add_argument("--replace", action="store_true", help="take the place of another imported run of the same cell")
    sub = action(
        "list",
        list_records,
        "what every cell of the study rests on",
        "List the study's cells: whether the run shown is of this checkout (local) or imported, its hardware and "
        "precision, its seconds and its weights' hash. `left out` is an imported run that no longer fits params.yaml.",
    )
    sub.add_argument("--json", action="store_true", help="machine-readable, with whole hashes")


STUDIES = (
    "the studies: list, cost, a new one of your own images",
    "What studies there are, what one of them would cost and what of it has run, and a new study of a folder of "
    "images. Run at the repository's top or in a study's folder.",
    "Example: selfdistill study new photos --data ~/photos && make study STUDY=photos",
)


def add_studies(studies: argparse.ArgumentParser) -> None:
    """The sub-commands of `study`."""
    actions = studies.add_subparsers(dest="action", required=True, metavar="ACTION")

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
        "new",
        new_study,
        "a study of your own images",
        "Describe a folder of images, CLASS/image.jpg or train/CLASS/image.jpg beside test/CLASS/image.jpg, in "
        "data/params.yaml and make studies/NAME, ready for `make study STUDY=NAME`. The images stay where they are.",
        "Example: selfdistill study new photos --data ~/photos && make study STUDY=photos",
    )
    sub.add_argument("name", help="of the data set and of the study")
    sub.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="that holds the images")
    sub.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="of the prepared images, 4 to 4096 (default: by them)"
    )
    sub.add_argument("--seed", type=int, default=0, help="of the splits (default: %(default)s)")


def add_bench_options(sub) -> None:
    sub.add_argument(
        "--model", nargs="+", default=["resnet20", "resnet10-slim"], help="networks (default: %(default)s)"
    )
    sub.add_argument("--method", default="plain", help="method (default: %(default)s)")
    sub.add_argument("--size", type=int, default=32, help="height and width of the images (default: %(default)s)")
    sub.add_argument("--channels", type=int, default=3, help="of the images (default: %(default)s)")
    sub.add_argument("--classes", type=int, default=100, help="(default: %(default)s)")
    sub.add_argument("--batch", type=int, default=64, help="images a step (default: %(default)s)")
    sub.add_argument("--steps", type=int, default=30, help="steps a round (default: %(default)s)")
    sub.add_argument("--rounds", type=int, default=7, help="rounds, each loop once in each (default: %(default)s)")
    sub.add_argument("--workers", type=int, default=0, help="of the ordinary loop's DataLoader (default: %(default)s)")
    sub.add_argument("--device", choices=["cpu", "cuda", "auto"], default="auto", help="(default: %(default)s)")
    sub.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    sub.add_argument("--precision", choices=["float32", "bfloat16"], default="float32", help="(default: %(default)s)")
    sub.add_argument("--compile", action="store_true", help="with torch.compile")
    sub.add_argument("--cuda-graphs", action="store_true", help="with CUDA graphs")
    sub.add_argument("--switches", action="store_true", help="also measure each speed switch alone (first network)")
    sub.add_argument("--out", type=Path, metavar="FOLDER", help="also write NAME.json, .md, .svg and .png there")
    sub.add_argument("--name", default="bench", help="of those files (default: %(default)s)")


def read_study(file: Path) -> "Study":
    from selfdistill import config

    return config.read_study(file)


def catalogue_folder() -> Path:
    """The repository's `data/`, from its top, from inside it, or from a study's folder."""
    from selfdistill.schema import read_yaml

    for folder in (Path("data"), Path("."), Path("../../data")):
        path = folder / "params.yaml"
        if path.is_file() and "datasets" in read_yaml(path):
            return folder
    raise UserError("no catalogue here; run this at the repository's top, in data/ or in a study's folder")


def read_entry(folder: Path, name: str):
    """A data set of the catalogue in `folder`."""
    from selfdistill.data.catalogue import read_catalogue

    catalogue = read_catalogue(folder / "params.yaml")
    if name not in catalogue.datasets:
        raise UserError(f"{name!r} is not in {folder / 'params.yaml'}; there are {', '.join(catalogue.datasets)}")
    return catalogue.datasets[name]


def fetch(options) -> None:
    from selfdistill.data.fetch import FetchError
    from selfdistill.data.fetch import fetch as fetch_files

    folder = catalogue_folder()
    try:
        fetch_files(options.name, read_entry(folder, options.name), folder / "raw")
    except (FetchError, OSError) as error:  # a full disk, too
        raise UserError(error) from None


def describe(options) -> None:
    from selfdistill.data.describe import describe_folder
    from selfdistill.studies import as_entry

    size = tuple(options.size) if options.size else None
    try:
        entry = describe_folder(options.folder, size=size, seed=options.seed)
    except (OSError, ValueError) as error:
        raise UserError(error) from None
    print(as_entry(options.name, entry), end="")


def prepare(options) -> None:
    from selfdistill.data.fetch import FetchError
    from selfdistill.data.prepare import prepare as prepare_splits

    folder = catalogue_folder()
    entry = read_entry(folder, options.name)
    try:
        report = prepare_splits(options.name, entry, folder / "raw", folder / "prepared")
    except (OSError, ValueError, FetchError) as error:
        raise UserError(error) from None
    counts = ", ".join(f"{part} {count:,}" for part, count in report["counts"].items())
    lists = (folder / "prepared" / options.name / "report").resolve()  # DVC prints this from data/
    bad, twice = report["quarantined"], sum(report["duplicates"].values())
    mostly = next(iter(report["reasons"]), "")  # sorted by how many files have it
    notes = f"; {bad:,} files could not be used, mostly: {mostly}; see {lists / 'quarantine.csv'}" if bad else ""
    notes += f"; {twice:,} images stand in two splits, see {lists / 'duplicates.csv'}" if twice else ""
    print(f"{options.name}: {counts}{notes}")


def read_cell(options) -> "Study":
    """The study, after making sure that the cells asked for are among its cells."""
    study = read_study(STUDY)
    networks = [*study.models, *study.teacher_models]
    known = [study.teacher] if options.model in study.teacher_models else study.all_variants
    asked = [("model", networks), ("variant", known)]
    if hasattr(options, "seeds"):
        asked.append(("seeds", [str(block) for block in study.blocks]))
    for key, listed in asked:
        if getattr(options, key) not in listed:
            raise UserError(f"--{key} {getattr(options, key)} is not in {STUDY}; there are {', '.join(listed)}")
    return study


def train(options) -> int | None:
    from selfdistill.config import seeds_of
    from selfdistill.stages.interruption import Interruption
    from selfdistill.training.stopping import RESUME_ME, Interrupted

    study = read_cell(options)
    block = next(block for block in study.blocks if str(block) == options.seeds)
    numerics(study, devices=study.recipe.processes)
    if study.recipe.processes > 1 and "WORLD_SIZE" not in os.environ:
        from selfdistill.training.distributed import launch

        return launch(study.recipe.processes, [sys.executable, *sys.argv])
    missing = [study.data_folder / "training" / "dataset.json"]
    teacher, network = study.teacher_of(options.variant)
    if teacher is not None:
        runs = (study.run_folder(network or options.model, teacher, seed) for seed in seeds_of(block))
        missing += [folder / "run.json" for folder in runs]
    for path in missing:
        if not path.is_file():
            raise UserError(f"{path} is missing; `dvc repro` prepares the data and trains the teachers first")
    with Interruption() as interruption:  # before torch is loaded, which takes seconds
        from selfdistill.stages.train import train_block

        try:
            train_block(study, model=options.model, variant=options.variant, block=block, interruption=interruption)
        except Interrupted as error:
            print(f"selfdistill train: {error}", file=sys.stderr)
            return RESUME_ME if error.signal == signal.SIGTERM else 130
    return 0


def evaluate(options) -> None:
    study = read_cell(options)
    numerics(study, devices=1)
    from selfdistill.stages.evaluate_seeds import evaluate_variant

    evaluate_variant(study, model=options.model, variant=options.variant)


def robustness(options) -> None:
    study = read_cell(options)
    if options.data not in study.robustness:
        known = ", ".join(study.robustness) or "none"
        raise UserError(f"--data {options.data} is not in {STUDY}; allowed: one of robustness ({known})")
    numerics(study, devices=1)
    from selfdistill.stages.evaluate_seeds import robustness_of_variant

    robustness_of_variant(study, model=options.model, variant=options.variant, name=options.data)


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


def tables(options) -> None:
    study = read_study(STUDY)
    numerics(study)
    from selfdistill.reporting.tables import write_tables

    write_tables(study)


def figures(options) -> None:
    study = read_study(STUDY)
    numerics(study)
    from selfdistill.reporting.figures import draw_figures

    draw_figures(study.results)


def page(options) -> None:
    study = read_study(STUDY)
    numerics(study)
    from selfdistill.reporting.page import write_page

    write_page(study, STUDY)
    print(f"the page: {(study.results / 'index.html').resolve()}")


def export_records(options) -> None:
    from selfdistill.reporting import transfer

    count = transfer.export_records(read_study(STUDY), options.file)
    print(f"{options.file}: {count} runs")


def import_records(options) -> int:
    from selfdistill.reporting import transfer

    outcomes = transfer.import_records(read_study(STUDY), options.files, options.replace)
    for outcome in outcomes:
        refused = outcome.state == "refused"
        print(f"{outcome.state}: {outcome.text}", file=sys.stderr if refused else sys.stdout)
    return int(any(outcome.state == "refused" for outcome in outcomes))


def list_records(options) -> None:
    from selfdistill.reporting.transfer import listing

    rows = listing(read_study(STUDY))
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        seconds = f"{row['seconds']:.1f} s" if "seconds" in row else ""
        facts = (row.get("machine", ""), seconds, row.get("weights_sha256", "")[:16], row.get("misfit", ""))
        cell = f"{row['model']}/{row['variant']}/{row['seed']}"
        print("\t".join([cell, row["state"], *facts]).rstrip())


def show_methods(options) -> None:
    from selfdistill import methods

    known = {name: methods.about(name) for name in methods.names()}
    if options.name is not None and options.name not in known:
        raise UserError(f"no method {options.name!r}; there are {', '.join(known)}")
    if options.json:
        chosen = known if options.name is None else {options.name: known[options.name]}
        print(json.dumps([{"method": name, **about} for name, about in chosen.items()], indent=1))
    elif options.name is not None:
        print(methods.card(options.name).rstrip())
        hyper = known[options.name]["hyper"]
        print("\n## Hyper-parameters\n" + ("" if hyper else "\nNone."))
        for key, spec in hyper.items():
            allowed = spec.get("choices") or spec.get("allowed") or [True, False]
            print(f"- `{key}` = {spec['default']} (allowed {allowed}): {spec['meaning']}. Source: {spec['source']}.")
    else:
        width = max(map(len, known))
        for name, about in known.items():
            paper = f"arXiv {about['paper']}" if about["paper"] else "-"
            print(f"{name:{width}}  {paper:16}  {about['group']:19}  x{about['cost']:<4}  {about['name']}")
        print(
            "\nx: operations of training relative to plain, a teacher's training included (on the default network).\n"
            "`selfdistill methods NAME` prints a method's card."
        )


def check(options) -> None:
    if options.write:
        from selfdistill.stages.plan import write_plan

        study = write_plan(options.file)
    else:
        study = read_study(options.file)
    print(f"{options.file}: in order; {len(study.cells())} cells on {study.dataset}")


def prune(options) -> None:
    from selfdistill.reporting.records import prune as prune_results

    study = read_study(STUDY)
    for path in prune_results(study, study.results):
        print(f"removed {path}")


def list_studies(options) -> None:
    from selfdistill.studies import listing

    rows = listing(repository())
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        if "fault" in row:
            print(f"{row['name']:{width}}  not in order: {row['fault']}")
            continue
        numbers = f"{len(row['models'])} networks x {len(row['methods'])} methods x {row['seeds']} seeds"
        print(f"{row['name']:{width}}  {row['dataset']:14} {row['cells']:4} cells  {numbers}\n  {row['purpose']}")


def show_study(options) -> None:
    from selfdistill import studies

    root = repository()
    known = studies.folders(root)
    if options.name not in known:
        raise UserError(f"no study {options.name!r}; there are {', '.join(known)}")
    if options.tflops is not None and not 0 < options.tflops < 1e6:
        raise UserError(f"--tflops {options.tflops} is not allowed; allowed: above 0 and below 1000000")
    folder = known[options.name]
    study = read_study(folder / "params.yaml")
    found, ran = studies.estimate(root, study, options.tflops), studies.has_run(folder, study)
    print(f"{options.name}: {studies.purpose(folder / 'params.yaml')}\n")
    pixels = " x ".join(map(str, found["shape"]))
    classes = found["classes"] or f"{studies.CLASSES} assumed"
    print(f"data set   {study.dataset}: {found['train_images']:,} training images of {pixels}, classes: {classes}")
    print(f"methods    {', '.join(study.methods)}")
    for key in ("students", "taught"):
        if names := getattr(study, key):
            network = study.teacher_of(names[0])[1] or "the same network"
            print(f"{key:10} {', '.join(names)}; their teacher: {study.teacher} of {network}")
    if study.robustness:
        print(f"robustness {', '.join(study.robustness)}, on which every network is tested too")
    print(f"cells      {len(study.cells())}, seeds {', '.join(map(str, study.seeds))}, {study.recipe.epochs} epochs\n")
    unit = "CPU-hours" if study.recipe.device == "cpu" else "GPU-hours"
    print(f"{'network':20} {'parameters':>12} {'million MACs':>13} {'10^15 FLOPs':>13} {unit:>10}")
    for model, size in found["sizes"].items():
        numbers = f"{size.parameters:12,} {size.macs / 1e6:13,.1f} {found['flops'][model] / 1e15:13,.3f}"
        print(f"{model:20} {numbers} {found['hours'][model]:10,.2f}")
    print(f"{'all cells':20} {'':40} {sum(found['hours'].values()):10,.2f}")
    measured = "measured, docs/performance.md" if unit[0] == "C" else "assumed, none was measured"
    rate = f"{found['tflops']:g} TFLOP/s ({'given' if options.tflops else measured}; --tflops changes it)"
    print(
        "\nAn estimate: cells x epochs x images x 6 FLOPs a multiply-add x the method's passes, at "
        f"{rate}.\nNot in it: evaluation, decoding of large images, start-up."
    )
    print(
        f"disk       {found['bytes'] / 1e9:.2f} GB of weights and predictions, up to twice that with DVC's cache; "
        "prepared data comes on top"
    )
    print(
        f"has run    {ran['local']} records of this checkout, {ran['imported']} imported; weights of {ran['weights']} "
        f"cells in place, of {ran['cached']} in DVC's cache"
    )


def new_study(options) -> None:
    from selfdistill import studies

    size = tuple(options.size) if options.size else None
    try:
        folder = studies.new_study(repository(), options.name, options.data, size, options.seed)
    except OSError as error:
        raise UserError(error) from None
    print(f"{folder / 'params.yaml'}: yours to edit; run it with   make study STUDY={options.name}")


def repository() -> Path:
    """The repository's top, from anywhere where there is a catalogue."""
    return Path(os.path.relpath((catalogue_folder() / "..").resolve()))


def bench(options) -> None:
    from selfdistill.config import Recipe
    from selfdistill.training import determinism

    recipe = Recipe(
        **{"epochs": 100_000, "batch_size": options.batch, "learning_rate": 0.01, "momentum": 0.9, "nesterov": True},
        **{"weight_decay": 5e-4, "schedule": "cosine", "milestones": [], "decay": 0.1, "warmup_epochs": 0},
        **{"crop_padding": 4, "flip": True, "device": options.device, "threads": options.threads},
        **{"determinism": "off", "precision": options.precision, "compile": options.compile},
        cuda_graphs=options.cuda_graphs,
    )
    determinism.prepare_environment(recipe.determinism, recipe.threads)
    from selfdistill.benchmark import measure

    shape = {key: getattr(options, key) for key in ("method", "size", "channels", "classes", "steps", "rounds")}
    results = [measure.bench(recipe, model=model, workers=options.workers, **shape) for model in options.model]
    print(f"{measure.sentence(results[0])}\n\n{measure.table(results)}")
    found = measure.switches(recipe, model=options.model[0], **shape) if options.switches else []
    if found:
        print(measure.switch_table(found))
    if options.out:
        measure.write(options.out, options.name, results, found)


def predict(options) -> None:
    from selfdistill.evaluation.images import classify

    answers = classify(options.folder, options.images, options.exit, options.invert)
    if options.json:
        print(json.dumps(answers, indent=1, allow_nan=False))
        return
    for answer in answers:
        print(
            f"{answer['file']}\t{answer['class']}\t{answer['probability']:.3f}\texit {answer['exit']}/{answer['exits']}"
        )
