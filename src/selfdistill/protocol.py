"""The version of the protocol that numbers are made by: splits, selection, metrics.

Every run and record carries it, and those of different versions are never mixed.  2: every seed draws its own
training and validation images; weights are verified and metrics finite.  CHANGELOG.md says what changed.
"""

PROTOCOL = 2
