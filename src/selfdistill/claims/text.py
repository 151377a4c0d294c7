"""The ledger for readers: `docs/claims.md`, and cells for the pages."""

from collections import Counter

import pandas as pd

from selfdistill.claims.declared import Claims, published
from selfdistill.claims.ledger import OUTCOMES, OWN_SETTING, UNTESTED, Entry
from selfdistill.summary import AT_ERROR
from selfdistill.summary.text import markdown

HEAD = f"""# What the papers claim, and what is found here

Written by `selfdistill claims --write` from [`claims.yaml`](../src/selfdistill/claims/claims.yaml) and the committed
results of the studies; do not edit. A claim is

- **confirmed** or **contradicted** where at least one study's test says so and none says the contrary: on the data,
  network and recipe of that study. **Elsewhere** where none of these tests has a data set and network that are known
  to be the paper's: this says nothing of the paper's own numbers. A test in several parts, such as exits, confirms with
  all of them and contradicts with any. What only stands beside says so, and does not decide;
- **undecided** where the tests that have run show neither, or contradict each other. *Equivalent*, a difference that is
  shown to lie within the study's margin, is undecided as well, for a smaller gain may be there; it contradicts a test
  of whose very data set and network the paper states a larger gain;
- **ill-posed** where no result could confirm or contradict it, with the reason;
- **not tested here** where no study that tests it has results, or none does.

A study's declared contrasts share an error of {AT_ERROR}, \
any other test has {AT_ERROR} by itself: several tests of one claim have
more. None of the papers could be read in full; *seen* says where a claim was read, and *recalled* ones are known by
their subject alone. Figures of the papers stand in the last table, as the secondary sources beneath it quote them.
"""


def overview(ledger: list[Entry], claims: Claims) -> str:
    """One row a claim, and how many have each outcome, as Markdown."""
    return f"{counted(ledger)}\n\n{markdown(overview_table(ledger, claims, linked=False))}"


def counted(ledger: list[Entry]) -> str:
    counts = Counter(entry.outcome for entry in ledger)
    line = ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if counts[outcome])
    told = [test for entry in ledger for test in entry.tests if test.outcome != UNTESTED]
    own = sum(test.setting == OWN_SETTING for test in told)
    rest = f"Tests with results: {len(told)}; on a data set and network of their paper: {own or 'none'}."
    return f"{len(ledger)} claims: {line}. {rest}"


def overview_table(ledger: list[Entry], claims: Claims, linked: bool) -> pd.DataFrame:
    """linked: the names of claims as links to their sections."""
    return pd.DataFrame(
        {
            "Claim": [f"[{e.name}](#{e.name})" if linked else e.name for e in ledger],
            "Outcome": [e.outcome for e in ledger],
            "Says": [e.claim.claim for e in ledger],
            "Paper": [claims.papers[e.claim.paper].arxiv for e in ledger],
            "Tests with results": [with_results(e) for e in ledger],
        }
    )


def with_results(entry: Entry) -> str:
    if not entry.tests:
        return "none"
    told = [test for test in entry.tests if test.outcome != UNTESTED]
    return f"{len(told)} of {len(entry.tests)}"


def in_full(entry: Entry) -> str:
    """A section of Markdown."""
    claim = entry.claim
    lines = [
        f"### {entry.name}",
        "",
        f"{claim.claim} **{entry.outcome.capitalize()}**{': ' + entry.reason if entry.reason else ''}.",
        "",
        f"- place: {claim.place}",
        f"- seen: {claim.seen}",
        f"- measured: {claim.measurement}",
        f"- control: {claim.control}",
        *(f"- published: {row}" for row in entry.published),
        "",
    ]
    return "\n".join(lines) + (f"\n{markdown(tests_table(entry))}\n" if entry.tests else "")


def tests_table(entry: Entry) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "Study": [test.study for test in entry.tests],
            "Outcome": [test.outcome for test in entry.tests],
            "Setting": [test.setting for test in entry.tests],
            "Evidence": ["; ".join(test.evidence) for test in entry.tests],
            "Statistic": [test.statistic for test in entry.tests],
            "Seeds": [test.seeds for test in entry.tests],
            "Hardware": [test.hardware for test in entry.tests],
            "Commit": [test.commit for test in entry.tests],
        }
    ).loc[:, lambda table: [c for c in table if c not in ("Seeds", "Hardware", "Commit") or any(table[c])]]


def document(ledger: list[Entry], claims: Claims) -> str:
    """docs/claims.md."""
    parts = [HEAD, f"{counted(ledger)}\n\n{markdown(overview_table(ledger, claims, linked=True))}"]
    for name, paper in claims.papers.items():
        parts.append(f"## {paper.title}, arXiv {paper.arxiv}\n")
        parts += [in_full(entry).rstrip("\n") + "\n" for entry in ledger if entry.claim.paper == name]
    figures = pd.DataFrame(published()).drop(columns="source")
    figures.columns = [column.capitalize() for column in figures]
    sources = list(dict.fromkeys((row["paper"], row["table"], row["source"]) for row in published()))
    parts.append("## Figures of the papers, as other sources quote them\n\n" + markdown(figures))
    parts.append("\n".join(f"- {paper}, {table}: {source}" for paper, table, source in sources) + "\n")
    return "\n".join(parts)
