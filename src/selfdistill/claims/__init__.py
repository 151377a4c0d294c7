"""What the papers claim, as data: `claims.yaml`, figures of theirs as others quote them, `published.csv`, and a ledger
of both.

The ledger is a function of committed results: nothing that it says of a claim is typed in by hand.
"""
