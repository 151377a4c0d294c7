"""`claims.yaml`: its schema, and figures of the papers as other sources quote them."""

import csv
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from selfdistill.schema import CATALOGUE, ConfigError, Name, Strict, all_faults, read_yaml, validate

CLAIMS = Path(__file__).with_name("claims.yaml")
PUBLISHED = Path(__file__).with_name("published.csv")

Values = dict[str, str | int | float]  # of a row's keys


class Paired(Strict):
    """The difference of a number of an analysis between two variants, paired by seed.

    where, where_against: the keys of the compared rows, the second where they differ; each: a key, for each of whose
    values the two are compared, as one Holm family.
    """

    analysis: Name
    number: Name
    of: Name
    against: Name
    where: Values = {}
    where_against: Values | None = None
    each: Name | None = None
    expects: Literal["higher", "lower"] = "higher"


class Trend(Strict):
    """Page's trend test of a number of an analysis along values of a key, within seed."""

    analysis: Name
    number: Name
    of: Name
    along: Name
    values: list[str | int | float] = Field(min_length=3)
    where: Values = {}
    expects: Literal["higher", "lower"] = "higher"


class Cost(Strict):
    """The ratio of two variants' counted training operations, teachers included, and what it may be at most."""

    of: Name
    against: Name
    at_most: float = Field(gt=0, le=100)


class Asked(Strict):
    """One test of a claim, in one study: exactly one of its four forms.  decides: whether the claim's outcome rests on
    it, or it stands beside; size: the gain that the paper states of just this, in points."""

    study: Name
    contrasts: list[Name] | None = Field(default=None, min_length=1)
    expects: Literal["improves", "equivalent"] = "improves"
    paired: Paired | None = None
    trend: Trend | None = None
    cost: Cost | None = None
    decides: bool = True
    size: float | None = None

    @model_validator(mode="after")
    def one_form(self) -> "Asked":
        if sum(form is not None for form in (self.contrasts, self.paired, self.trend, self.cost)) != 1:
            raise ValueError("exactly one of contrasts, paired, trend, cost")
        if self.size is not None and self.contrasts is None:
            raise ValueError("a size of contrasts alone, which have a margin")
        return self


class Claim(Strict):
    paper: Name
    place: str
    seen: str
    claim: str
    measurement: str
    control: str
    published: list[str] = []
    tests: list[Asked] = []
    ill_posed: str | None = None
    untested: str | None = None

    @model_validator(mode="after")
    def decided_one_way(self) -> "Claim":
        if self.tests and not any(test.decides for test in self.tests):
            raise ValueError("at least one test that decides")
        if sum(map(bool, (self.tests, self.ill_posed, self.untested))) != 1:
            raise ValueError("exactly one of tests, ill_posed, untested")
        return self


class Paper(Strict):
    """settings: the paper's data sets, each with its networks, by their names here; None where they are not known."""

    title: str
    arxiv: str
    settings: dict[str, list[str] | None] = {}


class Claims(Strict):
    papers: dict[Name, Paper]
    claims: dict[Name, Claim]

    @model_validator(mode="after")
    def of_known_papers(self) -> "Claims":
        if unknown := sorted({claim.paper for claim in self.claims.values()} - set(self.papers)):
            raise ValueError(f"claims of papers that stand under `papers`, not of {', '.join(unknown)}")
        return self


def read_claims(path: Path = CLAIMS) -> Claims:
    """ConfigError: every fault of the file, with key and what is allowed."""
    claims, faults = validate(Claims, read_yaml(path, CATALOGUE))
    if faults:
        raise ConfigError(all_faults(path, faults))
    return claims


def study_here(root: str) -> str:
    """The name of the study in the working folder; root: the repository's top, seen from there."""
    return "default" if root == "." else Path.cwd().name


def asked_of(claims: Claims, study: str) -> list[tuple[str, int, Asked]]:
    """The tests that a study makes: claim, place among its tests, test."""
    return [
        (name, place, asked)
        for name, claim in claims.claims.items()
        for place, asked in enumerate(claim.tests)
        if asked.study == study
    ]


@cache
def published() -> list[dict[str, str]]:
    """Figures of the papers, as `source` quotes them.  Beside it a row has paper, table, dataset, network, method,
    metric, value and unit."""
    with open(PUBLISHED, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
