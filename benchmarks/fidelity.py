"""How exactly every loss computes its formula, in every reading: writes docs/fidelity.md.

    python benchmarks/fidelity.py

The other sides are tests/literal_losses.py, each loss and reading once more, number by number in plain Python,
written from what papers and public codes say and not from the methods' files; and tests/public_values.json, what
public codes gave when their own lines ran on given numbers.  Those codes are not needed here.
"""

import platform
import sys
from datetime import date
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from test_fidelity import CASES, SORTS, reference, terms_and_gradients, through_the_class  # noqa: E402
from test_public_values import DATA, TOLERANCE, differences, ours, public  # noqa: E402

from selfdistill import methods  # noqa: E402
from selfdistill.host import hardware  # noqa: E402

TEXT = """# How exactly the losses are computed

Every method and every reading of it, against an independent formulation of the same loss, number by number in float64
(`tests/literal_losses.py`), on {sorts} sorts of seeded tensors: one image of two classes, six of five and of a hundred,
logits of a thousand, equal logits. The worst of all is given: of the loss's terms, relative to their sum, and of the
gradients of every tensor that enters, relative to the steepest entry. What teaches must have no gradient.
`tests/test_fidelity.py` holds each of them to 1e-6 in float64.

Written by `python benchmarks/fidelity.py` on {machine}, PyTorch {torch}, {date}; n = {sorts} steps a row.

"""

PUBLIC = """
## Against public codes

What {codes} public codes gave when their own lines ran on the inputs of `tests/public_values.json` in float64, and what
our methods give for the same inputs: n = {rows} values, each of one batch of 4 or 6 images and 5 classes. That file has
commits, lines, hyper-parameters, inputs and gradients, and says what was replaced to run the lines. It keeps 12 digits:
a difference of up to 5e-12 is rounding. A gradient is compared by its l2 norm and by one projection, as shares of the
norm. Where a code's terms have other factors, ours are multiplied by what the remark says. The images that Mixup and
CutMix mix are compared, too. `tests/test_public_values.py` holds each value to {tolerance:.0e}, or to what the remark
says, and needs none of the codes. Readings that no public code computes stand below the others, with where they come
from.

"""


def worst(case, dtype: torch.dtype) -> tuple[float, float]:
    """The largest errors of terms and of gradients over all sorts of numbers."""
    of_terms = of_gradients = 0.0
    for sort in SORTS:
        terms, gradients = reference(CASES.index(case), sort)
        step = case.step(sort, dtype)
        mine, my_gradients = terms_and_gradients(through_the_class(case, step), step)
        total = sum(map(abs, terms.values()))
        of_terms = max(of_terms, *(abs(mine[n] - terms[n]) / total for n in terms))
        steepest = max(g.abs().max().item() for g in gradients.values() if g is not None)
        for name, wanted in gradients.items():
            found = my_gradients[name]
            if wanted is not None and found is not None:
                of_gradients = max(of_gradients, (found.double() - wanted).abs().max().item() / steepest)
    return of_terms, of_gradients


def table(head: list[str], rows: list[str]) -> str:
    return "\n".join([f"| {' | '.join(head)} |", "| --- " * len(head) + "|", *rows]) + "\n"


def reading_of(hyper: dict) -> str:
    return ", ".join(f"`{name}` {value}".lower() for name, value in hyper.items()) or "default"


def of_public_codes() -> str:
    """The second table: values of public codes beside ours, then the readings that none of them computes."""
    rows = []
    for record in DATA["values"]:
        mine, theirs = ours(record), public(record)
        numbers = [f"{c.value:.12g}" for c in (theirs, mine)] + [f"{d:.0e}" for d in differences(mine, theirs)]
        code = f"{record['repository']} @{record['commit'][:7]}, {record['file']}: {record['code']}"
        remarks = [record["note"]] if "note" in record else []
        remarks += [f"our `{term}` x {factor:.4g}" for term, factor in record.get("factors", {}).items()]
        remarks += [f"held to {record['tolerance']:.0e}"] if "tolerance" in record else []
        cells = [title(record), reading_of(record["hyper"]), code, *numbers, "; ".join(remarks)]
        rows.append(f"| {' | '.join(cells)} |")
    for row in DATA["recalled"]:
        readings = "; ".join(map(reading_of, row["readings"]))
        rows.append(f"| {title(row)} | {readings} | {row['status']} | | | | | {row['why']} |")
    values = DATA["values"]
    text = PUBLIC.format(codes=len({r["repository"] for r in values}), rows=len(values), tolerance=TOLERANCE)
    head = ["method", "reading", "public code", "its value", "ours", "difference", "of gradients", "remark"]
    return text + table(head, rows)


def title(record: dict) -> str:
    return methods.about(record["method"])["title"]


def main() -> None:
    rows = []
    seen = set()
    for case in sorted(CASES, key=lambda c: (methods.about(c.method)["group"] != "the four papers", c.method)):
        switches = [f"`{k}` {v}".lower() for k, v in case.hyper.items() if isinstance(v, str | bool)]
        key = case.method, *sorted(switches), case.label
        if key in seen or case.label.startswith(("first_", "last_", "ramped")) or (case.hyper and not switches):
            continue
        seen.add(key)
        about = methods.about(case.method)
        exact, single = worst(case, torch.float64), worst(case, torch.float32)
        reading = ", ".join(switches + ([case.label + " stage"] if case.label else [])) or "default"
        numbers = " | ".join(f"{e:.0e}" for e in (*exact, *single))
        rows.append(f"| {about['title']} | {about['paper'] or ''} | {reading} | {numbers} |")
    errors = [f"{of}, {dtype}" for dtype in ("float64", "float32") for of in ("terms", "gradients")]
    head = ["method", "arXiv", "reading", *errors]
    text = TEXT.format(
        sorts=len(SORTS),
        machine=f"{hardware('cpu')}, {platform.system()}",
        torch=torch.__version__,
        date=date.today().isoformat(),
    )
    (ROOT / "docs" / "fidelity.md").write_text(text + table(head, rows) + of_public_codes())
    print(f"docs/fidelity.md: {len(rows)} readings of {len(methods.names())} methods")


if __name__ == "__main__":
    main()
