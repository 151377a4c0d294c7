"""A broken params.yaml is refused before any work, with the place, the value and what is allowed."""

import copy
import os
from pathlib import Path

import pytest
import yaml
from dvc.utils.serialize import dump_yaml, load_yaml

from selfdistill.cli import main
from selfdistill.params import read_study
from selfdistill.schema import ConfigError, as_yaml, read_yaml

ROOT = Path(__file__).parents[1]
SOUND = yaml.safe_load((ROOT / "params.yaml").read_text())
SOUND["root"] = str(ROOT)
MISSING = "(missing)"

# (key path, broken value, a part of the message beside the key path)
BROKEN = [
    ("epochs", 5, "unknown key"),
    ("recipe.epoch", 5, "did you mean 'epochs'"),
    ("recipe.epochs", 0, "greater than or equal to 1"),
    ("recipe.epochs", -3, "-3"),
    ("recipe.epochs", 2.5, "whole number"),
    ("recipe.epochs", "ten", '"ten"'),
    ("recipe.epochs", True, "true"),
    ("recipe.epochs", None, "null"),
    ("recipe.epochs", 10**9, "100000"),
    ("recipe.epochs", MISSING, "missing"),
    ("recipe.batch_size", 0, "2"),
    ("recipe.batch_size", 1, "2"),
    ("recipe.batch_size", 101, "at most the 100 training images"),
    ("recipe.batch_size", 33, "leaves one of the 100"),
    ("recipe.learning_rate", 0, "greater than 0"),
    ("recipe.learning_rate", -0.1, "-0.1"),
    ("recipe.learning_rate", float("nan"), "finite"),
    ("recipe.learning_rate", float("inf"), "Infinity"),
    ("recipe.learning_rate", [0.1], "number"),
    ("recipe.momentum", 1.0, "less than 1"),
    ("recipe.momentum", 0.0, "nesterov"),
    ("recipe.nesterov", "yes", "boolean"),
    ("recipe.nesterov", 1, "boolean"),
    ("recipe.weight_decay", -1.0, "0"),
    ("recipe.schedule", "cosin", "'cosine' or 'steps'"),
    ("recipe.milestones", [0.5], "has no effect with schedule cosine"),
    ("recipe.milestones", [1.5], "less than 1"),
    ("recipe.decay", 0, "greater than 0"),
    ("recipe.warmup_epochs", 40, "fewer than recipe.epochs"),
    ("recipe.warmup_epochs", -1, "0"),
    ("recipe.epochs", 1, "fewer than recipe.epochs (1), which is 0"),
    ("recipe.optimiser", "adam", "'sgd' or 'adamw'"),
    ("recipe.optimiser", "adamw", "recipe.nesterov: true has no effect"),
    ("recipe.beta1", 1.0, "less than 1"),
    ("recipe.policy", "trivial", "'none', 'randaugment' or 'autoaugment'"),
    ("recipe.policy_operations", 0, "1"),
    ("recipe.policy_magnitude", 31, "30"),
    ("recipe.label_noise", 1.5, "1"),
    ("recipe.keep_epochs", [3, 2], "rising"),
    ("recipe.keep_epochs", [31], "recipe.epochs (30)"),
    ("recipe.keep_epochs", [0], "1"),
    ("recipe.crop_padding", 1.0, "whole number"),
    ("recipe.device", "gpu", "'cpu', 'cuda' or 'auto'"),
    ("recipe.device", "cuda", "portable"),
    ("recipe.threads", 0, "1"),
    ("recipe.threads", 2, "portable"),
    ("recipe.determinism", "full", "'portable'"),
    ("recipe", [], "recipe"),
    ("recipe", MISSING, "missing"),
    ("root", "..", "top folder"),
    ("root", 3, "string"),
    ("dataset", "digit", "did you mean 'digits'"),
    ("dataset", None, "null"),
    ("models", [], "at least 1"),
    ("models", ["resnet81"], "is not a network"),
    ("models", "resnet10-slim", "list"),
    ("models", ["resnet10-slim", "resnet10-slim"], "twice"),
    ("methods", ["plain", "byott"], "did you mean 'byot'"),
    ("methods", ["plain", "plain"], "twice"),
    ("methods", ["plain", "drkd"], "list it under students"),
    ("methods", [], "at least 1"),
    ("methods", ["plain", 3], "string"),
    ("students", ["byot"], "needs no trained teacher"),
    ("students", MISSING, "missing"),
    ("teacher", "resnet", "is not in this study"),
    ("teacher", "drkd", "one of methods"),
    ("control", "plane", "is not in this study"),
    ("seeds", [0, 1, 0], "0 stands there twice"),
    ("seeds", [-1], "0"),
    ("seeds", [0.5], "seeds[0]: 0.5 is not allowed; allowed: a seed from 0"),
    ("seeds", [], "at least 1"),
    ("seeds", 5, "list"),
    ("selection", "test", "'last' or 'validation'"),
    ("hyper.byot.alpa", 0.3, "did you mean 'alpha'"),
    ("hyper.byot.alpha", 1.5, "from 0 to 1"),
    ("hyper.byot.alpha", "0.3", "number from 0 to 1"),
    ("hyper.byot.temperature", 0, "from 0.01"),
    ("hyper.byot.t_squared", 1, "true or false"),
    ("hyper.byot.alpha", float("nan"), "from 0 to 1"),
    ("hyper.drkd.reduction", "sum", "one of mean, batchmean"),
    ("hyper.byt", {}, "did you mean 'byot'"),
    ("hyper.byot", None, "null"),
    ("hyper.plain", MISSING, "write `plain: {}`"),
]


def broken(key: str, value) -> dict:
    content = copy.deepcopy(SOUND)
    *parents, last = key.split(".")
    block = content
    for parent in parents:
        block = block[parent]
    if value is MISSING:
        del block[last]
    else:
        block[last] = value
    return content


def refusal(path: Path, capsys) -> str:
    before = sorted(path.parent.rglob("*"))
    assert main(["check", str(path)]) == 2
    assert sorted(path.parent.rglob("*")) == before, "a check writes nothing"
    return capsys.readouterr().err


FOREIGN = "0o17 017 1_000 yes No on OFF 08 010 1:30 1:30.5 2020-01-01 0b11 1_0.5 0_8 1_e5 !!int 2020-01-01t21:59:43Z"


@pytest.mark.parametrize("text", FOREIGN.split())
def test_what_versions_of_yaml_read_differently_is_refused_with_its_place(text, tmp_path):
    (tmp_path / "params.yaml").write_text(f"a: 1\nb: [x, {text.replace('!!int', '!!int 08')}]\n")
    with pytest.raises(ConfigError, match=r"params.yaml: line 2, column 8: ") as error:
        read_yaml(tmp_path / "params.yaml")
    assert len(str(error.value).splitlines()) == 1


def test_numbers_that_dvc_writes_are_numbers(tmp_path):
    path = tmp_path / "params.yaml"
    written = [5e-05, 1e3, 1e22, 0.1, -3e-10, 0, 12, 1.5, True, None, "0-4", "x y", "", "08", "1e3"]
    dump_yaml(path, {"values": written})
    assert "5e-05" in path.read_text()
    assert read_yaml(path)["values"] == written
    assert [type(v) for v in read_yaml(path)["values"]] == [type(v) for v in written]
    path.write_text("values: [5e-05, 1e3, +.5, 2.E+4, .inf, 0x1F, +1, ~, y, 3f]\n")
    assert read_yaml(path)["values"] == [5e-05, 1000.0, 0.5, 20000.0, float("inf"), 31, 1, None, "y", "3f"]


def test_text_that_is_written_is_text_for_dvc_and_for_us(tmp_path):
    texts = ["08", "010", "5e-05", "1e3", "no", "On", "0o17", "1:30", "2020-01-01", "1_000", "<<", "=", "~", "", "a: b"]
    texts += ["null", "0x1F", ".5", "plain", "zwei Wörter", "#1", "two\nlines", "-", "0b1", "'"]
    content = {text: [text] for text in texts}
    (tmp_path / "a.yaml").write_text(as_yaml(content))
    assert read_yaml(tmp_path / "a.yaml") == load_yaml(tmp_path / "a.yaml") == content


def test_a_name_that_is_too_long_is_one_line(tmp_path):
    for key in ("root", "own"):
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(broken(key, "x" * 256)))
        with pytest.raises(ConfigError, match=rf'params.yaml: {key}: "x+\.\.\. is not'):
            read_study(path)


def test_the_shipped_studies_are_in_order(capsys):
    for path in [ROOT / "params.yaml", *ROOT.glob("studies/*/params.yaml")]:
        assert main(["check", str(path)]) == 0
    assert "105 cells on digits" in capsys.readouterr().out


@pytest.mark.parametrize(("key", "value", "part"), BROKEN, ids=[f"{k}={v}"[:40] for k, v, _ in BROKEN])
def test_a_broken_study_is_refused_with_the_place_named(key, value, part, tmp_path, capsys):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(broken(key, value)))
    message = refusal(path, capsys)
    lines = [line for line in message.splitlines() if part in line]
    assert lines, message
    assert any(key.split(".")[-1] in line or key.split(".")[0] in line for line in lines)
    assert all(line.startswith(f"{path}: ") for line in message.splitlines())


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "null at the top"),
        ("- a\n- b\n", "at the top"),
        ("recipe: {epochs: 5\n", "line 2"),
        ("root: .\nroot: ..\n", "'root' stands here a second time"),
        ("recipe:\n\tepochs: 5\n", "line 2"),
        ("a: &x [*x]\nb: !!python/object:os.system {}\n", "not valid YAML"),
        ("a: *unknown\n", "not valid YAML"),
        ("? [a, b]\n: c\n", "not valid YAML"),
        ("a: !!int ''\n", 'line 1, column 4: tag:yaml.org,2002:int "": write it without the tag'),
        ("a: !!float 'nan'\n", "write it without the tag"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(text, part, tmp_path, capsys):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    assert part in refusal(path, capsys)


def test_a_file_that_cannot_be_read_is_refused(tmp_path, capsys):
    assert "cannot be read" in refusal(tmp_path / "params.yaml", capsys)
    (tmp_path / "params.yaml").write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in refusal(tmp_path / "params.yaml", capsys)


def test_all_faults_are_told_at_once(tmp_path):
    content = broken("recipe.epochs", 0)
    content["seeds"] = [1, 1]
    content["methods"].append("byott")
    content["hyper"]["byot"]["alpha"] = 7
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError) as error:
        read_study(path)
    for place in ("recipe.epochs", "seeds", "methods[6]", "hyper.byot.alpha"):
        assert place in str(error.value)


def test_a_value_of_any_length_does_not_fill_the_screen(tmp_path, capsys):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(broken("dataset", "a" * 100_000)))
    lines = refusal(path, capsys).splitlines()
    assert any(": dataset: " in line for line in lines)
    assert max(map(len, lines)) < 2_000 + len(str(path)) + 10


def test_a_refusal_takes_less_than_two_seconds(tiny_study, tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(broken("recipe.epochs", 0)))
    before = os.times().children_user
    done = tiny_study.run("selfdistill", "check", str(path), ok=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert os.times().children_user - before < 2  # of a processor; on a busy machine the clock says more
