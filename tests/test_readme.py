"""Every number in the README, and what it says of the default study's result, is held against where it comes from."""

import re

import pandas as pd
import yaml
from conftest import ROOT

from selfdistill import methods
from selfdistill.params import read_study
from selfdistill.summary import LEVEL

TEXT = (ROOT / "README.md").read_text()
# commands, code, addresses, papers, names of data sets
NOT_PROSE = re.compile(r"^    .*$|`[^`]*`|\]\([^)]*\)|Python \d\.\d+|\d{4}\.\d{5}|CIFAR-\d+|Market-1501", re.M)
STUDY = read_study(ROOT / "params.yaml")
FOUR = "byot", "srdl", "drkd", "sd"
WORDS = {"two": 2, "three": 3, "four": 4, "five": 5, "seven": 7, "eight": 8, "ten": 10}


def contrasts() -> pd.DataFrame:
    return pd.read_csv(ROOT / "results/tables/contrasts.csv").set_index("contrast")


def digits_all(variant: str) -> int:
    """Its accuracy of all methods on the digits, in percent."""
    table = "accuracy_tuned" if variant.endswith("-tuned") else "accuracy"
    found = pd.read_csv(ROOT / f"studies/digits-all/results/tables/{table}.csv").set_index("variant")
    return round(found.accuracy[variant])


def facts() -> dict[str, object]:
    """What stands around each number, and what the number must be."""
    digits = yaml.safe_load((ROOT / "data/params.yaml").read_text())["datasets"]["digits"]
    listing, makefile = (ROOT / "pyproject.toml").read_text(), (ROOT / "Makefile").read_text()
    download, disk = re.search(r"About ([\d.]+) GB to download and\"\n.*?([\d.]+) GB on disk", makefile).groups()
    cuda = re.search(r"is some ([\d.]+) GB more", makefile)[1]
    found = contrasts().difference
    return {
        r"same recipe, (\d+) rivals": len(methods.names()) - len(FOUR),
        r"study: (\d+) training digits a class": STUDY.training_images // len(digits["classes"] or range(10)),
        r"(\d+) to validate": STUDY.validation_images,
        r"([\d,]+) test images": f"{digits['split']['test']:,}",
        r"(\d+) seeds a method": len(STUDY.seeds),
        r"(\d+) epochs; beside": STUDY.recipe.epochs,
        r"(\d+) trials in each": STUDY.tuning.trials,
        r"in each of (\d+) searches": STUDY.tuning.replicates,
        r"DR-KD's (\d+) points": round(-found["drkd_plain"]),
        r"training become ([\d.]+), and": f"{-found['drkd_plain_tuned']:.1f}",
        r"Of all (\d+) methods": len(methods.names()),
        r"AT's (\d+) % become": digits_all("attention_transfer"),
        r"% become (\d+) and": digits_all("attention_transfer-tuned"),
        r"FRSKD's (\d+) become": digits_all("frskd"),
        r"become (\d+), and \[costs": digits_all("frskd-tuned"),
        r"network \(([\d.]+) GB": download,
        r"GB, (\d) GB on disk": disk,
        r"disk; ([\d.]+) GB more with CUDA": cuda,
        r"at (\d) %": round(100 * (1 - LEVEL)),
        r"beside PyTorch \((\d\.\d) or newer": re.search(r'"torch>=([\d.]+)"', listing)[1],
        r"all (\d+) methods on the digits": len(methods.names()),
    }


def test_each_number_is_what_it_is_a_number_of():
    for around, number in facts().items():
        found = re.findall(around, TEXT.replace("\n", " "))
        assert found == [str(number)], around


def test_no_number_stands_there_that_nothing_is_held_against():
    prose = NOT_PROSE.sub(lambda found: "_" * len(found[0]), TEXT).replace("\n", " ")
    held = {match.start(1) for around in facts() for match in re.finditer(around, TEXT.replace("\n", " "))}
    left = [match for match in re.finditer(r"\d[\d.,]*", prose) if match.start() not in held]
    assert not [prose[match.start() - 30 : match.end() + 10] for match in left]


def test_what_it_says_of_the_default_study_is_what_the_contrasts_say():
    verdicts = contrasts().verdict
    said = {"srdl_plain": "worse", "drkd_plain": "worse", "byot_plain": "undecided"}
    said |= {
        "byot_deep_supervision": "undecided",
        **dict.fromkeys([n for n in verdicts.index if "tuned" in n], "undecided"),
    }
    assert verdicts.to_dict() == said
    for words in ("SRDL and DR-KD are worse than plain training", "no comparison is decided: five searches"):
        assert words in TEXT.replace("\n", " ")
    assert WORDS["five"] == STUDY.tuning.replicates


def test_it_is_short():
    assert len(TEXT.splitlines()) <= 110
