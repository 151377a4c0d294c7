"""The page above all studies: what each study with a page found, and the ledger of the papers' claims.

Made from what is in Git: rendered tables and parameters, and no record.
"""

import os
import posixpath
from pathlib import Path
from typing import Any

import pandas as pd

from selfdistill import analyses
from selfdistill.claims import text
from selfdistill.claims.declared import Claims, published, read_claims
from selfdistill.claims.ledger import Entry, ledger_of
from selfdistill.files import write_atomically
from selfdistill.params import purpose
from selfdistill.reporting.files import read_tables
from selfdistill.reporting.page import OVERVIEW, Link, headline, rendered, sortable


def write_overview(root: Path, places: dict[str, Path]) -> Path:
    """Write results/studies.html at the repository's top; places: each study's folder by its name."""
    path = root / OVERVIEW
    write_atomically(path, overview_of(root, places).encode())
    return path


def overview_of(root: Path, places: dict[str, Path]) -> str:
    claims = read_claims()
    ledger = ledger_of(places, claims)
    told = [study_of(name, folder, root) for name, folder in places.items()]
    parts = [("studies", "Studies with results"), ("claims", "The papers' claims")]
    parts += [(name, paper.title) for name, paper in claims.papers.items()]
    return rendered(
        "studies.html",
        counted=text.counted(ledger),
        contents=[*parts, ("published", "Figures of the papers, as other sources quote them")],
        studies=[study for study in told if study["page"]],
        others=[study for study in told if not study["page"]],
        claims=overview_table(ledger, claims),
        papers=[paper_of(name, ledger, claims) for name in claims.papers],
        published=sortable(pd.DataFrame(published()).rename(columns=str.capitalize), prose=("Source",)),
    )


def study_of(name: str, folder: Path, root: Path) -> dict[str, Any]:
    """A study: what it is for and, where it has a page, what it found and the way there."""
    results = folder / "results"
    found = {"name": name, "purpose": purpose(folder / "params.yaml"), "page": "", "headline": ""}
    tables = read_tables(results / "tables", ("contrasts", *analyses.headlines()))
    numbers = next((tables[table] for table in analyses.headlines() if table in tables), None)
    if not (results / "index.html").is_file() or numbers is None:
        return found
    address = os.path.relpath(results / "index.html", (root / OVERVIEW).parent)
    return found | {
        "page": posixpath.join(*Path(address).parts),
        "headline": headline(tables.get("contrasts"), numbers),
    }


def overview_table(ledger: list[Entry], claims: Claims) -> dict[str, Any]:
    table = text.overview_table(ledger, claims, linked=False)
    table["Claim"] = [Link(name, f"#{name}") for name in table["Claim"]]
    return sortable(table, prose=("Says",))


def paper_of(name: str, ledger: list[Entry], claims: Claims) -> dict[str, Any]:
    """A paper with the claims that are its own, each with the table of its tests."""
    entries = [
        {**vars(entry), "table": sortable(text.tests_table(entry), prose=("Setting", "Evidence", "Statistic"))}
        for entry in ledger
        if entry.claim.paper == name
    ]
    return {"name": name, "title": claims.papers[name].title, "arxiv": claims.papers[name].arxiv, "entries": entries}
