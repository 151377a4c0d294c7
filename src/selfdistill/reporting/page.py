"""The page: tables, figures, parameters, hashes and hardware of a study in one file."""

import posixpath
import re
from collections.abc import Callable, Iterable
from functools import partial
from html import escape
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

import jinja2
import pandas as pd

from selfdistill import analyses, methods
from selfdistill.analyses import caption
from selfdistill.claims.declared import Cost, Paired, Trend, asked_of, read_claims, study_here
from selfdistill.claims.ledger import Found, judged, read_evidence
from selfdistill.config import Contrast, Study
from selfdistill.files import write_atomically
from selfdistill.params import purpose
from selfdistill.reporting import tables
from selfdistill.reporting.files import read_tables
from selfdistill.reporting.inline import inline_svg, run_id
from selfdistill.reporting.records import machine, read_records
from selfdistill.search import TUNED, untuned
from selfdistill.summary import AT_ERROR, AT_LEVEL
from selfdistill.summary.figure import figure_names
from selfdistill.summary.grouping import by_variant, headline_in, headline_of, headline_row
from selfdistill.summary.statistics import FEWEST, mean_ratio
from selfdistill.summary.table import scaled
from selfdistill.summary.text import exit_words, headline_number, readable, title

OVERVIEW = "results/studies.html"  # the page of all studies, at the repository's top
FOLDER = Path(__file__).parent  # of templates, style and script
BESIDE = "contrasts", "networks", "tuning"  # tables that are of no analysis
# columns that say what a row is, and stay in sight when a table scrolls
LEADING = "Method", "Contrast", "Claim", "Study"
OPERATIONS, SECONDS = "Operations, times the control's", "Seconds, times the control's"  # of the hardware table
FIGURES = {
    "contrasts": "The declared contrasts: difference in points with the interval that the verdict used; shaded is the "
    "margin within which two variants count as equivalent.",
    "differences": "Every method against the control, paired by seed and test image: exploratory, without a verdict. "
    f"Dots are seeds, bars {AT_LEVEL} intervals; what lies far out is cut off, with an arrow and its value.",
    "differences_tuned": "The same after an equal search for each method, the control included: every dot is a winner "
    "of its own search, with the training and validation images of its seed.",
    "tuning": "The validation accuracy that the best of so many trials is expected to have, mean over searches: a line "
    "that still rises belongs to a method that would gain from more.",
    "curves": "Validation accuracy while training, by the share of each method's own training. A method in several "
    "phases may start again in the middle.",
}


def write_page(study: Study, params: Path) -> None:
    """Write results/index.html from the study's records, tables and figures."""
    records = read_records(study)
    again = (f"{name}_tuned" for name in analyses.names())
    frames = read_tables(study.results / "tables", (*analyses.names(), *again, *BESIDE))
    main = headline_in(frames)
    _, _, words = headline_number(frames)
    used = list(dict.fromkeys(study.variant(name).method for name in study.all_variants))
    facts = {
        name: frames[name].assign(**methods_of(map(study.contrasts.__getitem__, frames[name].contrast), study))
        for name in ("contrasts", "networks")
        if name in frames
    }
    found = {
        name: sortable(to_read(frames[name], bold, " ± "), facts[name] if name in facts else frames[name])
        if name in frames
        else None
        for name, to_read in (
            ("contrasts", tables.readable_contrasts),
            ("networks", tables.readable_networks),
            ("tuning", tables.readable_winners),
        )
    }
    sections = [section(study, name, frames[name], name == main) for name in analyses.names() if name in frames]
    tuned = [
        {
            "name": name,
            "table": sortable(readable(name.removesuffix("_tuned"), frames[name], bold, " ± "), frames[name]),
        }
        for name in frames
        if name.endswith("_tuned")
    ]
    ledger = posixpath.normpath(f"../{study.root}/docs/claims.md")
    claims = claims_table(study, records, ledger)
    page = rendered(
        "page.html",
        study=study,
        purpose=purpose(params) or records[0]["dataset"]["name"],
        dataset=records[0]["dataset"],
        split=records[0].get("split"),
        headline=headline(frames.get("contrasts"), frames[main]),
        missing=len(study.cells()) - len(records),
        contents=contents(sections, bool(tuned), claims is not None),
        filtered={
            "network": list(dict.fromkeys(r["model"] for r in records)),
            "group": list(dict.fromkeys(methods.about(r["method"])["group"] for r in records)),
        },
        tables=found,
        tuned=tuned,
        sections=sections,
        words=words,
        fewest=FEWEST,
        figures={
            name: inlined(study.results / "figures" / f"{name}.svg", text)
            for name, text in FIGURES.items()
            if (study.results / "figures" / f"{name}.svg").is_file()
        },
        files=partial(files_of, study.results),
        claims=claims,
        ledger=ledger,
        overview=posixpath.normpath(f"../{study.root}/{OVERVIEW}"),
        methods=[{"file": n, "card": card_address(study.root, n), **methods.about(n)} for n in used],
        one_recipe=not any(variant.recipe for variant in study.variants.values()),
        variants=[differing(study, name) for name in study.variants],
        parameters=params.read_text(encoding="utf-8"),
        count=len(records),
        runs=runs_table(study, records),
        hardware=sortable(
            hardware_table(records, study.control), whose([group[0] for _, _, group in by_variant(records)])
        ),
        mixed=len({machine(r) for r in records if r["host"]}) > 1,
        hosts=machines(records),
    )
    write_atomically(study.results / "index.html", page.encode())


def rendered(template: str, **values: Any) -> str:
    """A page from a template of this folder, with the style and script that all pages share."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name, file in (("css", "page.css"), ("script", "page.js")):
        environment.globals[name] = (FOLDER / file).read_text(encoding="utf-8")
    environment.globals |= {"level": AT_LEVEL, "error": AT_ERROR}
    return environment.get_template(template).render(**values)


def contents(sections: list[dict], tuned: bool, claims: bool) -> list[tuple[str, str]]:
    """The parts of a page: the name of each, which links lead to, and its title."""
    parts = [("asked", "What was asked")]
    for part in sections:
        parts.append((part["name"], part["title"]))
        if part["headline"] and tuned:
            parts.append(("tuned", f"{part['title']}, equally tuned"))
    parts.append(("curves", "Training curves"))
    if claims:
        parts.append(("claims", "What the papers claim"))
    return [*parts, ("methods", "Methods"), ("made", "How these numbers were made")]


def files_of(results: Path, name: str) -> list[str]:
    """The files of a table, seen from the page."""
    names = (f"{name}.csv", f"{name}_all.csv", f"{name}.tex", f"{name}.md")
    return [f"tables/{file}" for file in names if (results / "tables" / file).is_file()]


def section(study: Study, name: str, table: pd.DataFrame, is_headline: bool) -> dict[str, Any]:
    """What the page shows of an analysis: its title, the first paragraph of its card, table and figures."""
    pictures = [
        inlined(study.results / "figures" / f"{figure}.svg", ": ".join([*map(str, kind.values()), caption(name)]))
        for figure, kind in figure_names(name, table).items()
    ]
    return {
        "name": name,
        "title": analyses.about(name)["title"],
        "lead": analyses.lead(name),
        "table": sortable(readable(name, table, bold, " ± "), table),
        "figures": pictures,
        "headline": is_headline,
    }


def inlined(path: Path, text: str) -> dict[str, Any]:
    """A figure for the template: its name, the picture and the caption that describes it."""
    name = re.sub(r"[^A-Za-z0-9_-]", "_", path.stem)
    drawn = inline_svg(path.read_text(encoding="utf-8"), name, f"figure-{name}")
    return {"name": name, "svg": drawn, "caption": text}


def claims_table(study: Study, records: list[dict], ledger: str) -> dict | None:
    """What this study says of the papers' claims; None where it tests none.  ledger: where all of them stand."""
    hosts = {(r["model"], r["variant"], r["seed"]): r["host"] for r in records if r["host"]}
    claims = read_claims()
    found = Found(read_evidence(study.results), hosts, dataset=study.dataset, models=tuple(study.models))
    rows, compared = [], []
    for name, place, asked in asked_of(claims, study_here(study.root)):
        claim = claims.claims[name]
        test = judged(name, place, asked, claims.papers[claim.paper], found)
        of = {"Claim": Link(name, f"{ledger}#{name}"), "Says": claim.claim, "Here": test.outcome}
        rows.append(of | {"Setting": test.setting, "Evidence": "; ".join(test.evidence), "Seeds": test.seeds})
        # a contrast that the study has no longer is of no methods; the evidence says that it has no result
        declared = [study.contrasts[contrast] for contrast in asked.contrasts or () if contrast in study.contrasts]
        compared.append(next((form for form in (*declared, asked.paired, asked.trend, asked.cost) if form), None))
    facts = pd.DataFrame(methods_of(compared, study))
    return sortable(pd.DataFrame(rows), facts, ("Says", "Setting", "Evidence")) if rows else None


def methods_of(compared: Iterable[Contrast | Paired | Trend | Cost | None], study: Study) -> dict[str, list[str]]:
    """Of rows that each compare two variants, or are of one or none, what a filter reads: the group is that of the
    first."""
    found: dict[str, list[str]] = {}
    for form in compared:
        for start in ("", "against_"):
            variant = form and study.variant(getattr(form, "against", form.of) if start else form.of)
            for key in ("title", "name", "method"):
                found.setdefault(f"{start}{key}", []).append(getattr(variant, key, ""))
    return found


def whose(records: list[dict]) -> pd.DataFrame:
    """Of rows of runs, what a filter reads."""
    return pd.DataFrame([{key: r[key] for key in ("model", "title", "variant", "method")} for r in records])


def runs_table(study: Study, records: list[dict]) -> dict:
    """One row a run, to which its dots in figures lead."""
    about = analyses.about(headline_of(records[0]))
    key, number = about["headline"], about["numbers"][about["headline"]]
    rows = []
    for r in records:
        host = r["host"] or {}
        cell = f"{r['model']}/{r['variant']}/{r['seed']}.json"
        of_host = study.host_file(r["model"], r["variant"], r["seed"])
        rows.append(
            {
                "Network": r["model"],
                "Method": r["title"],
                "Seed": r["seed"],
                title(number): f"{scaled(number, headline_row(r, study.selection)[key]):.2f}",
                "Seconds": f"{host['seconds']:.1f}" if host else "",
                "Hardware": machine(r) if host else "",
                "Date": host.get("date", ""),
                "Weights SHA-256": r["weights_sha256"][:16],
                "Code SHA-256": r["code_sha256"][:16],
                "Record": Link("record", f"records/{'imported' if r['imported'] else 'measured'}/{cell}"),
                "Host": Link("host", f"hosts/{cell}") if of_host.is_file() else "",
            }
        )
    ids = [run_id(r["model"], r["variant"], r["seed"]) for r in records]
    return sortable(pd.DataFrame(rows), whose(records).assign(id=ids))


def differing(study: Study, name: str) -> dict[str, str]:
    """A variant's name, title and method, and what it has other than the study, in words."""
    variant, declared = study.variant(name), study.variants[name]
    values = [
        f"{block}.{key}: {value}" for block in ("hyper", "recipe") for key, value in getattr(declared, block).items()
    ]
    return {"name": name, "title": variant.title, "method": variant.method, "differs": ", ".join(values)}


def card_address(root: str, method: str) -> str:
    """Where a method's card lies, seen from results/index.html; root: the repository's top, seen from the study."""
    return posixpath.normpath(f"../{root}/src/selfdistill/methods/{method}.md")


WORDS = {  # of verdicts; what stands between the two of a contrast
    "improves": "improves on",
    "worse": "is worse than",
    "equivalent": "is equivalent to",
}


def headline(contrasts: pd.DataFrame | None, accuracy: pd.DataFrame) -> str:
    """The result in a few sentences: what the declared contrasts say."""
    of_contrasts = [] if contrasts is None else [n for n in contrasts.n if n]
    counts, each = (of_contrasts, "contrast") if of_contrasts else (accuracy.n, "method")
    fewest, most = min(counts), max(counts)
    seeds = f"{most} seed{'s' if most != 1 else ''}" if fewest == most else f"{fewest} to {most} seeds"
    missing = "" if accuracy.control.any() else "The control has not run yet. "
    if contrasts is None:
        return f"{missing}No contrast is declared: every number below is exploratory. {seeds.capitalize()} a method."
    several = contrasts.model.nunique() > 1

    def pairs(rows: pd.DataFrame, words: str) -> str:
        """`BYOT improves on Plain`, for each row."""
        return "; ".join(
            f"{r.title} {words} {r.against_title}" + exit_words(r.exit) + (f" ({r.model})" if several else "")
            for r in rows.itertuples()
        )

    groups = [(words, contrasts[contrasts.verdict == verdict]) for verdict, words in WORDS.items()]
    found = [pairs(rows, words) for words, rows in groups if len(rows)]
    if len(open_ones := contrasts[contrasts.verdict == "undecided"]):
        found.append(f"Undecided, shown neither to differ nor to be equal: {pairs(open_ones, 'and')}")
    judged = contrasts.verdict.isin([*WORDS, "undecided"]).sum()
    if rest := len(contrasts) - judged:
        found.append(f"{rest} of {len(contrasts)} contrasts get no verdict (a verdict needs {FEWEST} seeds)")
    error = f", {AT_ERROR} error over all contrasts together (Holm)" if judged else ""
    return f"{missing}{'. '.join(found)}. {seeds.capitalize()} a {each}{error}."


def bold(text: str, is_best: bool) -> tuple[str, bool]:
    return text, is_best


class Link(str):
    """The text of a cell that leads somewhere."""

    href: str

    def __new__(cls, text: str, href: str) -> "Link":
        link = super().__new__(cls, text)
        link.href = href
        return link


def sortable(table: pd.DataFrame, frame: pd.DataFrame | None = None, prose: tuple[str, ...] = ()) -> dict:
    """Columns and body for the template.

    frame: what the table was made from, a row each: methods, networks and groups by which rows are filtered, and `id`.
    prose: columns of whole sentences.
    """
    columns = [[cell_of(cell) for cell in table.iloc[:, i]] for i in range(len(table.columns))]
    lead = next((name for name in LEADING if name in table), table.columns[0])
    heads = []
    for name, cells in zip(table.columns, columns, strict=True):
        numeric = all(isinstance(cell["value"], float) or not cell["text"] for cell in cells)
        looks = "lead" if name == lead else "number" if numeric else "prose" if name in prose else ""
        heads.append({"title": name, "looks": looks, "tag": "th" if name == lead else "td"})
    of = facts_of(frame) if frame is not None else [{}] * len(table)
    body = [row_html(heads, row, o) for *row, o in zip(*columns, of, strict=True)]
    return {"columns": heads, "body": "".join(body)}


def row_html(heads: list[dict], cells: list[dict], of: dict[str, str]) -> str:
    """A row: in a template of its own a thousand of them would take a second."""
    parts = ["".join(f' {key}="{escape(value)}"' for key, value in of.items())]
    for head, cell in zip(heads, cells, strict=True):
        text, value = cell["text"], cell["value"]
        shown = f"<strong>{escape(text)}</strong>" if cell["best"] else escape(text)
        shown = f'<a href="{escape(cell["href"])}">{shown}</a>' if cell["href"] else shown
        start = ' scope="row"' if head["tag"] == "th" else ""
        start += f' class="{head["looks"]}"' if head["looks"] else ""
        # without it the text itself is what a script sorts by
        start += f' data-value="{value:g}"' if isinstance(value, float) and text != f"{value:g}" else ""
        parts.append(f"<{head['tag']}{start}>{shown}</{head['tag']}>")
    return f"<tr{parts[0]}>{''.join(parts[1:])}</tr>\n"


def cell_of(cell: Any) -> dict[str, Any]:
    """cell: its text, or that and whether it is best."""
    text, best = cell if isinstance(cell, tuple) else (cell if isinstance(cell, str) else str(cell), False)
    return {"text": text, "best": best, "value": sort_value(text), "href": getattr(text, "href", None)}


# of methods in a row, by which it is found: titles, variants, and files of methods
NAMES = "title", "against_title", "variant", "name", "against_name", "method", "against_method"


def facts_of(frame: pd.DataFrame) -> list[dict[str, str]]:
    """The attributes of each row: what a filter reads, and a name to lead to."""
    rows = []
    for row in frame.to_dict("records"):
        found = {"id": row["id"]} if "id" in row else {}
        if "title" in row:
            found["data-method"] = ", ".join(dict.fromkeys(str(row[key]) for key in NAMES if key in row))
        if "model" in row:
            found["data-network"] = row["model"]
        if row.get("method"):
            found["data-group"] = methods.about(row["method"])["group"]
        rows.append(found)
    return rows


def sort_value(text: str) -> float | str:
    """A cell's leading number, or its text."""
    leading = re.match(r"(?:< )?([+-]?[\d,]*\.?\d+(?:e[+-]?\d+)?)(?=$| ±|/| to | of | together| \()", text)
    return float(leading[1].replace(",", "")) if leading else text


def hardware_table(records: list[dict], control: str) -> pd.DataFrame:
    """One row a model and variant: the hardware and precision of its runs, and what they took there; beside it, without
    a teacher's, counted operations and measured seconds as multiples of the control's, the seconds of runs of equal
    seed, hardware and precision."""
    rows = []
    runs = {(r["model"], r["variant"], r["seed"], machine(r)): r for r in records if r["host"]}
    for model, _, group in by_variant(records):
        by_machine: dict[str, list[dict]] = {}
        for record in sorted(group, key=machine):
            # a host file that does not say what its peak is of was written when it was the process's
            host = {"peak_memory_of": "process", **record["host"]} if record["host"] else {}
            by_machine.setdefault(machine(record), []).append(host)
        hosts = list(by_machine.values())
        row = {
            "model": model,
            "Method": group[0]["title"],
            "Hardware": tables.in_words(map(machine, group)),
            "Median seconds of a run": per_machine(hosts, "seconds", median, "{:.1f}"),
            **of_control(group, runs, control),
            "Peak memory (MB)": per_machine(hosts, "peak_memory_mb", max, "{:,}"),
            "Peak memory of": per_machine(hosts, "peak_memory_of", alternatives, "{}"),
            "Peak GPU memory (MB)": per_machine(hosts, "peak_device_memory_mb", max, "{:,}"),
        }
        rows.append(row)
    table = pd.DataFrame(rows)
    optional = ("Peak memory of", "Peak GPU memory (MB)", OPERATIONS, SECONDS)
    unknown = [name for name in optional if not any(table[name])]
    table = table.drop(columns=unknown)
    return table.rename(columns={"model": "Network"}) if table.model.nunique() > 1 else table.drop(columns="model")


def of_control(group: list[dict], runs: dict[tuple, dict], control: str) -> dict[str, str]:
    """Training operations of a variant's runs and, with their interval, their seconds, as multiples of the control's:
    of searched values, where the variant's are; runs: with a known machine, by model, variant, seed and machine."""
    against = control + TUNED if untuned(group[0]["variant"]) else control
    pairs = [(r, runs.get((r["model"], against, r["seed"], machine(r)))) for r in group if r["host"]]
    operations = [(r["cost"]["training_flops"], c["cost"]["training_flops"]) for r, c in pairs if c]
    seconds = [(r["host"].get("seconds", 0), c["host"].get("seconds", 0)) for r, c in pairs if c]
    return {OPERATIONS: multiple(operations), SECONDS: multiple(seconds)}


def multiple(pairs: list[tuple[float, float]]) -> str:
    """The mean ratio of positive pairs, with its interval where they differ; nothing where there are none."""
    if not (positive := [pair for pair in pairs if min(pair) > 0]):
        return ""
    ratio, low, high = mean_ratio(positive)
    return f"{ratio:.2f}" + (f" ({low:.2f} to {high:.2f})" if high - low > 1e-9 else "")


def alternatives(words: list[str]) -> str:
    """Each word once."""
    return " or ".join(sorted(set(words)))


def per_machine(hosts: list[list[dict]], key: str, summary: Callable[[list], Any], form: str) -> str:
    """A number, or a word, for each machine of a row, in the order in which the row names them."""
    values = [[h[key] for h in group if key in h] for group in hosts]
    return "; ".join(form.format(summary(v)) if v else "-" for v in values) if any(values) else ""


def machines(records: list[dict]) -> list[dict]:
    """The machines that the runs name, each with its runs' number and dates."""
    hosts = [r["host"] for r in records if r["host"]]

    def identity(host: dict) -> tuple:
        return host["hardware"], host["system"], host["threads"], tuple(host["versions"].items())

    result = []
    for (hardware, system, threads, versions), same in groupby(sorted(hosts, key=identity), key=identity):
        group = list(same)
        result.append(
            {
                "hardware": hardware,
                "system": system,
                "threads": threads,
                "versions": dict(versions),
                "runs": len(group),
                "dates": sorted({h["date"] for h in group}),
            }
        )
    return result
