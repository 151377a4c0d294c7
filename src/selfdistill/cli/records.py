"""Records: pack, import and list runs."""

import sys
from argparse import Namespace
from functools import partial
from pathlib import Path

from selfdistill.cli.common import STUDY, Commands, add_command, read_study
from selfdistill.errors import printable


def add(commands: Commands) -> None:
    noun = add_command(
        commands,
        "records",
        None,
        "runs made on another machine: pack, import, list",
        "Carry runs between machines. `export` packs the records of this checkout's runs, with what each said of its "
        "machine, into one file; `import` checks such files and adds their runs to this study, so that tables, figures "
        "and page show them and name their hardware; `list` says what every cell rests on. A run of this checkout is "
        "always shown before an imported one of the same cell.",
        "Example: selfdistill records import runs.jsonl.gz && selfdistill tables && selfdistill figures && "
        "selfdistill page",
    )
    actions = noun.add_subparsers(dest="action", required=True, metavar="ACTION")
    action = partial(add_command, actions)
    sub = action(
        "export",
        export_records,
        "pack the runs of this checkout",
        "Pack every run of this checkout that is trained and evaluated into one file: its record, with all metrics "
        "and the history, what it says of each test image, and what it said of its machine. Weights and logits stay. "
        "Neither DVC nor Git is needed.",
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


def export_records(options: Namespace) -> None:
    from selfdistill.reporting import transfer

    count = transfer.export_records(read_study(STUDY), options.file)
    print(f"{options.file}: {count} runs")


def import_records(options: Namespace) -> int:
    from selfdistill.reporting import transfer

    outcomes = transfer.import_records(read_study(STUDY), options.files, options.replace)
    for outcome in outcomes:
        refused = outcome.state == "refused"
        print(printable(f"{outcome.state}: {outcome.text}"), file=sys.stderr if refused else sys.stdout)
    return int(any(outcome.state == "refused" for outcome in outcomes))


def list_records(options: Namespace) -> None:
    import json

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
