"""Reports of a study: tables, figures and page."""

from argparse import Namespace
from functools import partial

from selfdistill.cli.common import STUDY, Commands, add_command, numerics, read_study


def add(commands: Commands) -> None:
    command = partial(add_command, commands)
    command(
        "tables",
        tables,
        "stage: summarise the records",
        "Write results/tables (CSV, Markdown, LaTeX) and results/metrics.json from the records of the study's "
        "cells: mean and 95 % interval over seeds, contrasts and their verdicts, difference to the control, cost.",
    )
    command(
        "figures",
        figures,
        "stage: draw the figures",
        "Draw results/figures (SVG and PNG) from results/tables: contrasts, accuracy by method, training "
        "curves, and accuracy against depth and against cost.",
    )
    command(
        "page",
        page,
        "stage: write the page",
        "Write results/index.html: tables, figures, parameters, hardware, versions and hashes, in one file that "
        "needs nothing else.",
    )


def tables(options: Namespace) -> None:
    study = read_study(STUDY)
    numerics(study)
    from selfdistill.reporting.tables import write_tables

    write_tables(study)


def figures(options: Namespace) -> None:
    study = read_study(STUDY)
    numerics(study)
    from selfdistill.reporting.figures import draw_figures

    draw_figures(study.results)


def page(options: Namespace) -> None:
    study = read_study(STUDY)
    numerics(study)
    from selfdistill.reporting.page import write_page

    write_page(study, STUDY)
    print(f"the page: {(study.results / 'index.html').resolve()}")
