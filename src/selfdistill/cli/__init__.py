"""The command line.  Each command is a stage of the pipeline or a question about it; each noun has a file here.

Commands import what they need when they run: a check or a table does not wait for torch, and what a light
installation can do works without the packages of the extra `pipeline`.
"""

import argparse
import io
import os
import sys
from pathlib import Path

from selfdistill import __version__
from selfdistill.cli import bench, cells, data_sets, export, methods, params, predict, records, reports, studies
from selfdistill.errors import ConfigError, UserError, asking_for_packages, lacking, printable

NOUNS = (data_sets, cells, reports, records, studies, methods, params, bench, predict, export)  # in the order of --help


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 for a failure, 2 for a faulty configuration."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started this
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  (open as long as this process)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files and classes that it could not write
    code = 0
    try:
        try:
            code = carried_out(parser().parse_args(arguments))
        finally:
            sys.stdout.flush()  # --help and --version leave from here
        return code
    except OSError as error:
        if not isinstance(error, BrokenPipeError) and code == 0:  # else a line is written
            print(f"selfdistill: standard output: {error.strerror or error}", file=sys.stderr)
        # whoever read the output has gone, as `head` does, or its disk is full; Python writes what is left when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def carried_out(options: argparse.Namespace) -> int:
    """The exit code of one command, after a line of what it could not do."""
    try:
        with asking_for_packages():
            # a stage, which DVC ends by rewriting its lock; one of torchrun's processes is a part of one
            if (root := os.environ.get("DVC_ROOT")) and "LOCAL_RANK" not in os.environ:
                from selfdistill import locks

                with locks.guarded(Path(root), os.environ.get("DVC_STAGE", options.command)):
                    return options.run(options) or 0
            return options.run(options) or 0
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except UserError as error:
        print(f"selfdistill {options.command}: {printable(str(error))}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        raise
    except (OSError, MemoryError, RuntimeError, SyntaxError) as error:
        from selfdistill.closure import invalid

        # the latter in the file of a method, say, that is being written
        said = invalid(error) if isinstance(error, SyntaxError) else lacking(error)
        if said is None:
            raise
        print(f"selfdistill {options.command}: {said}", file=sys.stderr)
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
    for noun in NOUNS:
        noun.add(commands)
    return top
