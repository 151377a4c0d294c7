"""Every number in the README is held against what it is a number of."""

import csv
import re

import pytest
import yaml
from conftest import ROOT

from selfdistill import methods
from selfdistill.config import read_study
from selfdistill.reporting.page import WORDS
from selfdistill.reporting.statistics import LEVEL

TEXT = (ROOT / "README.md").read_text()
STUDY = read_study(ROOT / "params.yaml")
FOUR = "byot", "srdl", "drkd", "sd"


def facts() -> dict[str, object]:
    """What the README says in numbers, in the order in which it does, and where each is known from."""
    digits = yaml.safe_load((ROOT / "data/params.yaml").read_text())["datasets"]["digits"]
    listing = (ROOT / "pyproject.toml").read_text()
    return {
        r"Beside them, under the same recipe, (\d+) rivals and controls": len(methods.names()) - len(FOUR),
        r"default study: (\d+) training digits a class": STUDY.training_images // 10,
        r"(\d+) to validate": STUDY.validation_images,
        r"([\d,]+) test images": f"{digits['split']['test']:,}",
        r"(\d+) seeds a method": len(STUDY.seeds),
        r"(\d+) epochs\. ": STUDY.recipe.epochs,
        r"With ten seeds of (\d+) images": STUDY.training_images,
        r"Of all (\d+) methods on the\nsame images": len(methods.names()),
        r"With Python (\d\.\d+) or newer": re.search(r'requires-python = ">=([\d.]+)"', listing)[1],
        r"at (\d) %\nerror": round(100 * (1 - LEVEL)),
        r"beside PyTorch \((\d\.\d) or newer\)": re.search(r'"torch>=([\d.]+)"', listing)[1],
        r"all (\d+) methods on the digits": len(methods.names()),
    }
