"""Reports of a study: tables, figures and page; and of all studies: the ledger of claims."""

from argparse import Namespace
from functools import partial

from selfdistill.cli.common import STUDY, Commands, add_command, numerics, read_study
from selfdistill.errors import UserError
from selfdistill.summary import AT_LEVEL


def add(commands: Commands) -> None:
    command = partial(add_command, commands)
    command(
        "tables",
        tables,
        "stage: summarise the records",
        "Write results/tables (CSV, Markdown, LaTeX) and results/metrics.json from the records of the study's "
        f"cells: mean and {AT_LEVEL} interval over seeds, contrasts and their verdicts, difference to the control, "
        "cost.",
    )
    command(
        "figures",
        figures,
        "stage: draw the figures",
        "Draw results/figures (SVG and PNG) from results/tables: contrasts, accuracy by method, training "
        "curves, and accuracy against depth and against cost.",
    )
    sub = command(
        "page",
        page,
        "stage: write the page",
        "Write results/index.html: tables, figures, parameters, hardware, versions and hashes, in one file that "
        "needs nothing else.",
        "Example: selfdistill page --all --open",
    )
    sub.add_argument(
        "--all",
        action="store_true",
        help="write the page above all studies instead, results/studies.html at the repository's top",
    )
    sub.add_argument("--open", action="store_true", help="and show it in the browser")
    sub = command(
        "claims",
        claims,
        "what the papers claim, and what the studies say of it",
        "Print the ledger of the four papers' claims: confirmed, contradicted, undecided, ill-posed or not tested "
        "here, as the committed results of the studies have it. Run at the repository's top or in a study's folder.",
        "Example: selfdistill claims byot-gain",
    )
    sub.add_argument(
        "names", nargs="*", metavar="CLAIM", help="of a claim, for its evidence in full (default: all, in a table)"
    )
    sub.add_argument("--write", action="store_true", help="write docs/claims.md, which holds everything")


def claims(options: Namespace) -> None:
    from selfdistill.claims import text
    from selfdistill.claims.declared import read_claims
    from selfdistill.claims.ledger import ledger_of
    from selfdistill.cli.studies import repository
    from selfdistill.files import write_atomically
    from selfdistill.schema import nearest
    from selfdistill.studies import folders

    root, declared = repository(), read_claims()
    for name in options.names:
        if name not in declared.claims:
            raise UserError(f"no claim {name!r}; {nearest(name, list(declared.claims))}")
    ledger = ledger_of(folders(root), declared)
    if options.write:
        path = root / "docs" / "claims.md"
        write_atomically(path, text.document(ledger, declared).encode())
        print(path)
    elif options.names:
        print("\n".join(text.in_full(entry) for entry in ledger if entry.name in options.names), end="")
    else:
        print(text.overview(ledger, declared), end="")


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
    if options.all:
        from selfdistill.cli.studies import repository
        from selfdistill.reporting.overview import write_overview
        from selfdistill.studies import folders

        root = repository()
        path = write_overview(root, folders(root)).resolve()
    else:
        study = read_study(STUDY)
        numerics(study)
        from selfdistill.reporting.page import write_page

        write_page(study, STUDY)
        path = (study.results / "index.html").resolve()
    print(f"the page: {path}")
    if options.open:
        import webbrowser

        if not webbrowser.open(path.as_uri()):
            raise UserError(f"no browser could be started; open {path} in one, or name one in BROWSER")
