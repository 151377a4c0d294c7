"""docs/papers.md says of every claim what the ledger says."""

import re
from pathlib import Path

from selfdistill.claims.declared import read_claims
from selfdistill.claims.ledger import ledger_of
from selfdistill.studies import folders

ROOT = Path(__file__).parents[1]
LINE = re.compile(r"\(claims\.md#([\w-]+)\):?,?\s+\*\*([\w -]+)\*\*")


def test_each_claim_stands_once_with_the_ledgers_outcome():
    ledger = ledger_of(folders(ROOT), read_claims())
    said = LINE.findall((ROOT / "docs/papers.md").read_text(encoding="utf-8"))
    assert sorted(said) == sorted((entry.name, entry.outcome) for entry in ledger)
