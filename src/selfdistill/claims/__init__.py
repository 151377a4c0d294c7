"""What the papers claim, as data: `claims.yaml`, the figures that were verified, `published.csv`, and a ledger of both.

The ledger is a function of committed results: nothing that it says of a claim is typed in by hand.
"""
