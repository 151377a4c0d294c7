"""A study that is killed at any moment goes on with the same command; benchmarks/chaos.py does the same many times."""

import random
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
from chaos import Chaos

SECONDS = 15.0  # that one method and the reports take on an idle core, about; a kill that comes too late is none


# one kill of each engine and kind; the others are of the same engines and kinds
NIGHTLY = [("make", "engine"), ("snakemake", "lock")]


@pytest.mark.parametrize(
    ("engine", "kind"),
    [
        *(("make", "lock"), ("snakemake", "engine"), ("dvc", "job")),
        *(pytest.param(*pair, marks=pytest.mark.nightly) for pair in NIGHTLY),
    ],
)
def test_the_same_command_goes_on(engine, kind, tiny_study, tmp_path):
    """From a state in which one of three methods has not run; lock: at the moment when DVC has emptied it."""
    chaos = Chaos(tiny_study.folder, tmp_path / "repo", engine)
    chaos.start(("drkd",), lock_in_git=engine == "make")
    assert chaos.round(random.Random(f"{engine} {kind}"), [kind], SECONDS, kills=1) == [], chaos.output
