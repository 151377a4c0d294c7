"""The ledger: what the committed results of each study say of each claim.

Pure from `Found` on: what is read of a study, its tables and what its runs said of their machines, decides every
outcome.

- A test is confirmed where every part of it is found as the claim has it, each at the error of its Holm family;
  contradicted where any part is found the other way; undecided otherwise.
- A gain whose difference is shown to lie within the study's margin contradicts a test of which the paper states a
  larger one, and leaves any other undecided.
- A claim is confirmed or contradicted where at least one study says so and none the contrary; elsewhere where none of
  these has a data set and network that are known to be the paper's.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from selfdistill import analyses
from selfdistill.claims.declared import Asked, Claim, Claims, Cost, Paired, Paper, Trend, published
from selfdistill.claims.evidence import described, row_words
from selfdistill.errors import UserError
from selfdistill.reporting.entries import Host
from selfdistill.reporting.files import read_tables
from selfdistill.reporting.records import imported_entry, told
from selfdistill.schema import CATALOGUE, read_yaml
from selfdistill.summary import AT_LEVEL
from selfdistill.summary.statistics import FEWEST, mean_ratio
from selfdistill.summary.text import exit_words, small

CONFIRMED, CONTRADICTED, UNDECIDED = "confirmed", "contradicted", "undecided"
ILL_POSED, UNTESTED = "ill-posed", "not tested here"
ELSEWHERE = " elsewhere"  # of what is confirmed or contradicted, but in no setting of the paper
OUTCOMES = (
    *(CONFIRMED, CONFIRMED + ELSEWHERE),
    *(CONTRADICTED, CONTRADICTED + ELSEWHERE),
    *(UNDECIDED, ILL_POSED, UNTESTED),
)
OWN_SETTING = "the paper's data set and network"
OF_CONTRAST = {"improves": CONFIRMED, "worse": CONTRADICTED}
COMMIT = re.compile(r"^# Commit:\s+([0-9a-f]{7,40})\b", re.MULTILINE)


@dataclass(frozen=True)
class Found:
    """What is read of a study: its committed tables by name, of each run what it said of its machine, and on what data
    and networks it rests."""

    tables: dict[str, pd.DataFrame]
    hosts: dict[tuple[str, str, int], dict] = field(default_factory=dict)  # by network, variant and seed
    commit: str = ""
    dataset: str = ""
    models: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tested:
    """What one test found.  evidence: a sentence each part; seeds: as `5` or `5 to 10`; statistic: in words; setting:
    what of the study's is the paper's, in words."""

    study: str
    statistic: str
    outcome: str
    setting: str
    evidence: tuple[str, ...]
    seeds: str = ""
    hardware: str = ""
    commit: str = ""


@dataclass(frozen=True)
class Entry:
    """A claim with its outcome, why it has none, and its tests."""

    name: str
    claim: Claim
    outcome: str
    reason: str
    tests: tuple[Tested, ...]
    published: tuple[str, ...]


def ledger_of(places: dict[str, Path], claims: Claims) -> list[Entry]:
    """The ledger of a checkout; places: each study's folder by its name.  UserError: a test names another study."""
    asked = {test.study for claim in claims.claims.values() for test in claim.tests}
    if unknown := sorted(asked - set(places)):
        raise UserError(f"claims.yaml: studies {', '.join(unknown)} are not here; allowed: {', '.join(places)}")
    found = {name: read_found(places[name]) for name in sorted(asked)}
    return [entry_of(name, claim, claims.papers[claim.paper], found) for name, claim in claims.claims.items()]


def read_found(folder: Path) -> Found:
    """What a study's folder holds in Git."""
    hosts, results = {}, folder / "results"
    for path in sorted((results / "records" / "imported").glob("*/*/*.json")):
        if (host := imported_entry(path)["host"]) is not None:
            hosts[cell_of(path)] = host
    for path in sorted((results / "hosts").glob("*/*/*.json")):
        hosts[cell_of(path)] = told(path, lambda _: Host, "bring it back from Git, or remove it")
    params = folder / "params.yaml"
    named, content = COMMIT.search(params.read_text(encoding="utf-8")), read_yaml(params, CATALOGUE)
    commit = named[1] if named else ""
    return Found(read_evidence(results), hosts, commit, content.get("dataset", ""), tuple(content.get("models", ())))


def cell_of(path: Path) -> tuple[str, str, int]:
    """Network, variant and seed of a run's file."""
    return path.parts[-3], path.parts[-2], int(path.stem)


def read_evidence(results: Path) -> dict[str, pd.DataFrame]:
    """The tables that claims rest on, those of all analyses among them; none of a study that has not run."""
    return read_tables(results / "tables", ("contrasts", "claims", *analyses.names()))


def entry_of(name: str, claim: Claim, paper: Paper, found: dict[str, Found]) -> Entry:
    tests = tuple(judged(name, place, asked, paper, found[asked.study]) for place, asked in enumerate(claim.tests))
    rows = tuple(
        f"{row['network']}, {row['dataset']}: {row['method']}, {row['metric']} {row['value']} {row['unit']}"
        for row in published()
        if row["paper"] == claim.paper and row["table"] in claim.published and row["table"] == "abstract"
    )
    decisive = [test for test, asked in zip(tests, claim.tests, strict=True) if asked.decides]
    outcome = ILL_POSED if claim.ill_posed else UNTESTED if claim.untested else together(t.outcome for t in decisive)
    of_paper = {test.outcome for test in decisive if test.setting == OWN_SETTING}
    if outcome in (CONFIRMED, CONTRADICTED) and outcome not in of_paper:
        outcome += ELSEWHERE
    return Entry(name, claim, outcome, claim.ill_posed or claim.untested or "", tests, rows)


def together(outcomes: Iterable[str]) -> str:
    """Of a claim, from those of its tests."""
    seen = set(outcomes) - {UNTESTED}
    if not seen:
        return UNTESTED
    decided = seen & {CONFIRMED, CONTRADICTED}
    return decided.pop() if len(decided) == 1 else UNDECIDED


def every(outcomes: Iterable[str]) -> str:
    """Of a test, from those of its parts."""
    seen = set(outcomes)
    if CONTRADICTED in seen:
        return CONTRADICTED
    return CONFIRMED if seen == {CONFIRMED} else UNTESTED if seen <= {UNTESTED} else UNDECIDED


def judged(name: str, place: int, asked: Asked, paper: Paper, found: Found) -> Tested:
    """What a study's results say of one test of a claim."""
    if not found.tables:
        setting, why = setting_of(paper, found.dataset, found.models), f"the study {asked.study} has no results yet"
        return Tested(asked.study, statistic_of(asked), UNTESTED, setting, (why,))
    if asked.contrasts:
        parts, rows = of_contrasts(asked, found)
    elif asked.cost:
        parts, rows = of_cost(asked.cost, found)
    else:
        parts, rows = of_evidence(name, place, asked.paired or asked.trend, found)
    variants = {(row["model"], variant) for row in rows for variant in (row["of"], row["against"]) if variant}
    return Tested(
        asked.study,
        statistic_of(asked),
        every(outcome for outcome, _ in parts),
        setting_of(paper, found.dataset, [row["model"] for row in rows] or found.models),
        tuple(text for _, text in parts),
        between([int(row["n"]) for row in rows if row["n"]]),
        machines(found, variants),
        found.commit,
    )


def setting_of(paper: Paper, dataset: str, models: Iterable[str]) -> str:
    """What of a data set and of networks is the paper's, in words."""
    if dataset not in paper.settings:
        return "data not known to be the paper's"
    networks = paper.settings[dataset]
    if networks is None:
        return "the paper's data set; its networks are not known"
    return OWN_SETTING if set(models) <= set(networks) else "the paper's data set, another network"


def statistic_of(asked: Asked) -> str:
    if asked.contrasts:
        family = "declared contrast" if len(asked.contrasts) == 1 else f"{len(asked.contrasts)} declared contrasts"
        words = f"{family}, paired by seed and test image, Holm over the study"
    elif asked.cost:
        words = "ratio of counted training operations, teachers' included; seconds beside, without teachers'"
    elif asked.trend:
        rows = row_words(asked.trend.where)
        words = f"Page's trend test over {asked.trend.along} within seed, {asked.trend.analysis}: {asked.trend.number}"
        words += f", {rows}" if rows else ""
    else:
        form = asked.paired
        assert form is not None
        family = f", Holm over {form.each}" if form.each else ""
        rows = described(form, None)
        words = f"difference paired by seed{family}, {form.analysis}: {form.number}{f', {rows}' if rows else ''}"
    return words if asked.decides else f"{words}; does not decide"


Parts = tuple[list[tuple[str, str]], list[dict]]  # outcome and sentence of each part, and its rows


def of_contrasts(asked: Asked, found: Found) -> Parts:
    table = found.tables.get("contrasts")
    rows = [] if table is None else table[table.contrast.isin(asked.contrasts)].to_dict("records")
    if missing := sorted(set(asked.contrasts or ()) - {row["contrast"] for row in rows}):
        return [(UNTESTED, f"no result of the contrasts {', '.join(missing)} of {asked.study}")], []
    several = len({row["model"] for row in rows}) > 1
    parts = []
    for row in rows:
        outcome = OF_CONTRAST.get(row["verdict"], UNDECIDED)
        if row["verdict"] == "equivalent":
            if asked.expects == "equivalent":
                outcome = CONFIRMED
            elif asked.size is not None and asked.size > row["margin"]:
                outcome = CONTRADICTED
        pair = f"{row['title']} against {row['against_title']}{exit_words(row['exit'])}"
        parts.append((outcome, f"{pair}{of_network(row, several)}: {difference(row, 'points')}{row['verdict']}"))
    return parts, rows


def of_network(row: dict, several: bool) -> str:
    return f" ({row['model']})" if several else ""


def difference(row: dict, unit: str) -> str:
    """`+0.21 points (-2.12 to +2.54, 99.17 %), `, as far as it is known."""
    if math.isnan(row["difference"]):
        return ""
    text = f"{row['difference']:+.2f}{f' {unit}' if unit else ''}"
    if not math.isnan(row["low"]):
        text += f" ({row['low']:+.2f} to {row['high']:+.2f}, {100 * row['level']:.2f} %)"
    return f"{text}, "


def of_evidence(name: str, place: int, form: Paired | Trend | None, found: Found) -> Parts:
    assert form is not None
    table = found.tables.get("claims")
    rows = [] if table is None else table[(table.claim == name) & (table.test == place)].to_dict("records")
    if not rows:
        return [(UNTESTED, why_none(form, found))], []
    several, other = len({row["model"] for row in rows}) > 1, {"higher": "lower", "lower": "higher"}
    parts = []
    for row in rows:
        outcome = {form.expects: CONFIRMED, other[form.expects]: CONTRADICTED}.get(row["verdict"], UNDECIDED)
        row |= {key: "" for key in ("what", "against", "against_title", "unit") if pd.isna(row[key])}
        pair = f"{row['title']} against {row['against_title']}" if row["against"] else str(row["title"])
        what = f", {row['what']}" if row["what"] else ""
        p = "" if math.isnan(row["p_holm"]) else f"p {small(row['p_holm'])}, "
        parts.append(
            (outcome, f"{pair}{what}{of_network(row, several)}: {difference(row, row['unit'])}{p}{row['verdict']}")
        )
    return parts, rows


def why_none(form: Paired | Trend, found: Found) -> str:
    """Why no evidence of a test is there: its numbers were not found, or the tables are older than the test."""
    table = found.tables.get(form.analysis, pd.DataFrame({"variant": []}))
    there = set(table.variant[table[form.number].notna()]) if form.number in table else set()
    variants = dict.fromkeys([form.of, *([form.against] if isinstance(form, Paired) else [])])
    if missing := [variant for variant in variants if variant not in there]:
        return f"no result of {' and of '.join(missing)} has {form.number} of the analysis {form.analysis}"
    return "its tables were rendered before they had this; `selfdistill tables` in the study renders them again"


def of_cost(form: Cost, found: Found) -> Parts:
    """Operations, teachers' included, decide; the seconds of runs, whose machines did other work, stand beside.  What a
    teacher took is in no seconds of its student, so that beside them stand operations without it, too."""
    table = found.tables.get("cost", pd.DataFrame({"model": []}))
    parts, rows = [], []
    for model, runs in table.groupby("model", sort=False):
        by_variant = runs.set_index("variant")
        spent, own, titles = (by_variant[key].to_dict() for key in ("total_gflops", "training_gflops", "title"))
        if form.of in spent and spent.get(form.against):
            ratio = spent[form.of] / spent[form.against]
            n, text = seconds(form, str(model), found)
            outcome = CONFIRMED if ratio <= form.at_most else CONTRADICTED
            taught = [v for v in (form.of, form.against) if by_variant.teacher_gflops[v] > 0]
            whole = ", teachers' training included" if taught else ""
            words = f"{ratio:.2f} times the operations of {titles[form.against]}{whole}"
            words += f", where {form.at_most:g} would do"
            if taught:
                words += f"; without it {own[form.of] / own[form.against]:.2f} times the operations"
            words += (f"{' and' if taught else ';'} {text}") if text else ""
            parts.append(
                (outcome, f"{titles[form.of]}{of_network({'model': model}, table.model.nunique() > 1)}: {words}")
            )
            rows.append({"model": model, "of": form.of, "against": form.against, "n": n})
    return (parts, rows) if rows else ([(UNTESTED, f"no cost of {form.of} and {form.against}")], [])


def seconds(form: Cost, model: str, found: Found) -> tuple[int, str]:
    """How many seeds ran both on equal hardware, and, of as many as a verdict needs, the ratio of seconds in words: its
    geometric mean and t-interval."""
    pairs = []
    for (m, variant, seed), host in found.hosts.items():
        other = found.hosts.get((model, form.against, seed))
        if not other or (m, variant) != (model, form.of) or other["hardware"] != host["hardware"]:
            continue
        if host["seconds"] > 0 and other["seconds"] > 0:
            pairs.append((host["seconds"], other["seconds"]))
    if len(pairs) < FEWEST:
        return len(pairs), ""
    ratio, low, high = mean_ratio(pairs)
    words = f"{ratio:.2f} ({low:.2f} to {high:.2f}, {AT_LEVEL}) times the seconds, as the runs happened to be made"
    return len(pairs), words


def machines(found: Found, variants: set[tuple[str, str]]) -> str:
    """What the runs of some networks and variants were made on."""
    return ", ".join(sorted({h["hardware"] for (model, v, _), h in found.hosts.items() if (model, v) in variants}))


def between(numbers: list[int]) -> str:
    if not numbers:
        return ""
    return str(numbers[0]) if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"
