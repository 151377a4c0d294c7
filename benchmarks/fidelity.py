"""How exactly every loss computes its formula, in every reading: writes docs/fidelity.md.

    python benchmarks/fidelity.py

The other side is tests/literal_losses.py: each loss and reading once more, number by number in plain Python,
written from what papers and public codes say and not from the methods' files.
"""

import platform
import sys
from datetime import date
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from test_fidelity import CASES, SORTS, reference, terms_and_gradients, through_the_class  # noqa: E402

from selfdistill import methods  # noqa: E402
from selfdistill.stages.host import hardware  # noqa: E402

TEXT = """# How exactly the losses are computed

Every method and every reading of it, against an independent formulation of the same loss, number by number in float64
(`tests/literal_losses.py`), on {sorts} sorts of seeded tensors: one image of two classes, six of five and of a hundred,
logits of a thousand, equal logits. The worst of all is given: of the loss's terms, relative to their sum, and of the
gradients of every tensor that enters, relative to the steepest entry. What teaches must have no gradient.
`tests/test_fidelity.py` holds each of them to 1e-6 in float64.

Written by `python benchmarks/fidelity.py` on {machine}, PyTorch {torch}, {date}; n = {sorts} steps a row.

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
    head = "| method | arXiv | reading | terms, float64 | gradients, float64 | terms, float32 | gradients, float32 |\n"
    text = TEXT.format(
        sorts=len(SORTS),
        machine=f"{hardware('cpu')}, {platform.system()}",
        torch=torch.__version__,
        date=date.today().isoformat(),
    )
    rule = "| --- | --- | --- | --- | --- | --- | --- |\n"
    (ROOT / "docs" / "fidelity.md").write_text(text + head + rule + "\n".join(rows) + "\n")
    print(f"docs/fidelity.md: {len(rows)} readings of {len(methods.names())} methods")


if __name__ == "__main__":
    main()
