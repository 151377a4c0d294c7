"""The guides, followed word for word."""

import ast
import io
import json
import re
import tarfile
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from test_folder import UNUSABLE, mixed
from test_pipeline import trained

from selfdistill import __version__
from selfdistill.summary import AT_ERROR, AT_LEVEL, LEVEL

ROOT = Path(__file__).parents[1]


def blocks(guide: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "docs" / guide).read_text(), re.M | re.S)


def test_the_guide_to_adding_a_method(project):
    (code,) = blocks("adding-a-method.md", "python")
    (card,) = blocks("adding-a-method.md", "markdown")
    (hyper,) = blocks("adding-a-method.md", "yaml")
    (project / "src/selfdistill/methods/confidence_penalty.py").write_text(code)
    (project / "src/selfdistill/methods/confidence_penalty.md").write_text(card)
    content = yaml.safe_load((project / "params.yaml").read_text())
    content["methods"].append("confidence_penalty")
    content["hyper"] |= yaml.safe_load(hyper)
    (project / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    project.run("dvc", "repro", "--quiet", "check")
    reports = {"measure", "tables", "figures", "page"}  # which name every method
    assert all("confidence_penalty" in stage for stage in project.changed() - reports)
    before = trained(project)
    project.run("dvc", "repro", "--quiet")
    assert before.items() <= trained(project).items()
    assert "Confidence penalty" in (project / "results/tables/accuracy.md").read_text()
    assert "confidence" in (project / "results/runs/resnet10-slim/confidence_penalty/0-1/0/history.csv").read_text()


def test_the_guide_to_adding_an_analysis(project):
    (code,) = blocks("adding-an-analysis.md", "python")
    (card,) = blocks("adding-an-analysis.md", "markdown")
    (settings,) = blocks("adding-an-analysis.md", "yaml")
    before = {path.name: path.read_bytes() for path in (project / "results/tables").iterdir()}
    (project / "src/selfdistill/analyses/sureness.py").write_text(code)
    (project / "src/selfdistill/analyses/sureness.md").write_text(card)
    project.run("dvc", "repro", "--quiet", "check")
    reports = {"tables", "figures", "page"}  # which show every analysis
    assert project.changed() - reports == {"measure"}
    with open(project / "params.yaml", "a") as params:
        params.write(settings.replace("0.8", "0.1"))  # after two epochs no answer is sure
    project.run("dvc", "repro", "--quiet")
    after = {path.name: path.read_bytes() for path in (project / "results/tables").iterdir()}
    assert after.keys() - before.keys() == {f"sureness{end}" for end in (".csv", ".md", ".tex", "_all.csv")}
    assert all(after[name] == content for name, content in before.items() if name != "SHA256SUMS")
    assert b"Wrong among them (%)" in after["sureness.md"]
    record = json.loads((project / "results/records/measured/resnet10-slim/byot/0.json").read_text())
    rows = record["measures"]["sureness"]["rows"]["last"]
    logits = load_file(project / "results/predictions/resnet10-slim/byot/0.safetensors")["last"]
    sure = logits.double().softmax(dim=2).amax(dim=2) > 0.1
    assert [row["sure"] for row in rows] == sure.double().mean(dim=1).tolist()
    page = (project / "results/index.html").read_text()
    assert "<h2>Sure answers</h2>" in page
    assert "How many of the sure answers are wrong" in page
    assert "Wrong among them" in project.run("workflow/run", "analyses", "sureness").stdout
    assert (project / "results/figures/sureness.svg").is_file()


def test_the_guide_to_a_training_loop_of_ones_own(capsys):
    """As printed, block by block."""
    training, evaluating, by_name = blocks("own-training-loop.md", "python")
    scope: dict = {}
    exec(compile(training, "own-training-loop.md", "exec"), scope)
    epochs = [ast.literal_eval(line.partition(" ")[2]) for line in capsys.readouterr().out.splitlines()]
    assert len(epochs) == 5
    assert all(epochs[-1][term] < epochs[0][term] for term in ("deepest_cross_entropy", "shallow_cross_entropy"))
    network, images = scope["network"], scope["images"]
    assert network.exit_count == 4
    torch.testing.assert_close(scope["shallow"], network(images).logits[1])
    torch.testing.assert_close(network(images).logits[-1], scope["backbone"](images))
    exec(compile(evaluating, "own-training-loop.md", "exec"), scope)
    found = ast.literal_eval(capsys.readouterr().out)
    assert found["accuracy"] == (scope["logits"][-1].argmax(dim=1) == scope["targets"]).float().mean()
    exec(compile(by_name, "own-training-loop.md", "exec"), scope)
    methods, networks = map(ast.literal_eval, capsys.readouterr().out.splitlines())
    assert "byot" in methods
    assert "resnet18" in networks
    assert scope["network"].exit_count == 4
    assert scope["terms"]["cross_entropy"].isfinite()


def test_the_guide_to_adding_a_folder_of_images(project, tmp_path):
    """From mixed images to a trained network and a page, in two commands."""
    (commands,) = blocks("adding-a-data-set.md", "sh")
    assert textwrap.indent(commands, "    ") in (ROOT / "README.md").read_text()
    new, run = commands.splitlines()
    mixed(tmp_path / "photos")
    project.run("sh", "-c", new, HOME=str(tmp_path))
    project.params("studies/photos/params.yaml", **{"methods": ["plain", "byot"], "seeds": ["0-1"], "recipe.epochs": 2})
    project.run("sh", "-c", f"{run} -o install")
    assert "Plain" in (project / "studies/photos/results/tables/accuracy.md").read_text()
    assert (project / "studies/photos/results/index.html").is_file()
    assert len((project / "data/prepared/photos/report/quarantine.csv").read_text().splitlines()) == 1 + len(UNUSABLE)
    assert f"{len(UNUSABLE)} files could not be used, mostly" in project.run("selfdistill", "prepare", "photos").stdout
    image = next(p for p in sorted((tmp_path / "photos").glob("*/*.png")) if p.name not in UNUSABLE)
    run_folder = "studies/photos/results/runs/resnet10-slim/byot/0-1/0"
    assert "exit 4/4" in project.run("selfdistill", "predict", run_folder, str(image)).stdout


def study_of(project, dataset: str) -> None:
    """The study of Fashion-MNIST for another data set, made by the guide's command, of one short training."""
    guide = (ROOT / "docs/adding-a-data-set.md").read_text()
    command = next(line.strip() for line in guide.splitlines() if line.startswith("    mkdir studies/photos"))
    project.run("sh", "-c", command.replace("photos", dataset))
    project.params(
        f"studies/{dataset}/params.yaml",
        **{
            "dataset": dataset,
            "methods": ["plain"],
            "students": [],
            "tuning.methods": [],
            "tuning.students": [],
            "seeds": [0],
            "recipe.epochs": 2,
            "training_images": 120,
            "validation_images": 40,
        },
    )


def test_the_guide_to_adding_a_data_set(project, tmp_path):
    (reader,) = blocks("adding-a-data-set.md", "python")
    (entry,) = blocks("adding-a-data-set.md", "yaml")
    rng = np.random.default_rng(0)
    archive = tmp_path / "mirror" / "photos.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        for i in range(240):
            kind = ("cat", "dog")[i % 2]
            pixels = rng.integers(0, 120, (40, 30, 3), dtype=np.uint8) + np.uint8(100 * (i % 2))
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "JPEG")
            member = tarfile.TarInfo(f"photos/{kind}/{i}.jpg")
            member.size = buffer.tell()
            buffer.seek(0)
            tar.addfile(member, buffer)
    (project / "src/selfdistill/data/photos.py").write_text(reader)
    sums = project.run("sha256sum", str(archive)).stdout.split()[0], archive.stat().st_size
    text = entry.replace("0" * 64, sums[0]).replace("123456", str(sums[1]))
    with open(project / "data/params.yaml", "a") as catalogue:
        catalogue.write(text)
    study_of(project, "photos")
    study = project / "studies/photos"
    project.run("workflow/run", "check", "studies/photos/params.yaml")
    mirror = {"SELFDISTILL_MIRROR": str(archive.parent)}
    project.run("make", "study", "STUDY=photos", "-o", "install", **mirror)
    assert "Plain" in (study / "results/tables/accuracy.md").read_text()
    assert "get no verdict" in (study / "results/index.html").read_text()


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_commands_and_files_that_are_named_exist(name, tiny_study):
    text = (ROOT / name).read_text()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"(?:^ +|`)make ([a-z]+)", text, re.M)) <= targets
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("https:")]
    for path in [link.partition("#")[0] for link in links] + re.findall(r"tests/\w+\.py", text):
        assert (ROOT / path).exists(), path
    help_text = tiny_study.run("selfdistill", "--help").stdout
    for command in re.findall(r"(?:^ +|`|&& )selfdistill ([a-z]+)", text, re.M):
        assert command in help_text


def test_the_files_that_a_change_is_made_in_exist():
    _, _, rest = (ROOT / "CONTRIBUTING.md").read_text().partition("## Where a change is made\n")
    section = rest.partition("\n## ")[0]
    assert len(re.findall(r"^\| ", section, re.M)) == 2 + 10
    named = re.findall(r"`([\w/]+\.\w+)`", section)
    assert len(named) > 15
    for name in named:
        pattern = re.sub("NAME|FAMILY", "*", name)
        assert list((ROOT / "src/selfdistill").glob(pattern)) or (ROOT / name).is_file(), name


def test_the_confidence_level_is_set_in_one_place():
    """Texts of the package take it from there, and guides are held against it."""
    by_hand = re.compile(r"\d %\s+(?:t-)?interval")
    for path in (ROOT / "src/selfdistill").rglob("*"):
        if path.suffix in (".py", ".md", ".html"):
            assert not by_hand.search(path.read_text()), path
    guide = (ROOT / "docs/contrasts.md").read_text()
    assert re.findall(r"false verdict is (\d+ %) \(Holm\)", guide) == [AT_ERROR]
    assert re.findall(r"against ([\d.]+) / \(m - k \+ 1\)", guide) == [f"{1 - LEVEL:.2g}"]
    assert set(re.findall(r"plain (\d+ %)\s+interval", guide)) == {AT_LEVEL}


# quicker: the test above, of the texts alone
@pytest.mark.nightly
def test_every_text_follows_the_confidence_level(project):
    file = project / "src/selfdistill/summary/__init__.py"
    file.write_text(file.read_text().replace("LEVEL = 0.95", "LEVEL = 0.9"))
    project.run("dvc", "repro", "--quiet", "check")
    assert project.changed() == {"tables", "figures", "page"}
    project.run("dvc", "repro", "--quiet")
    shown = (".html", ".md", ".svg", ".tex")
    texts = {path.name: path.read_text() for path in (project / "results").rglob("*") if path.suffix in shown}
    for name, words in (
        ("index.html", "half of its 90 % t-interval"),
        ("index.html", "false verdict on this page is 10 %"),
        ("accuracy.svg", "bars 90 % intervals of the mean"),
    ):
        assert words in texts[name], (name, words)
    assert not [name for name, text in texts.items() if re.search(r"95 %|\b5 % error", text)]
    assert "mean and 90 % interval" in " ".join(project.run("workflow/run", "tables", "--help").stdout.split())


def test_the_hooks_run_what_make_lint_runs():
    (lint,) = re.findall(r"^lint: install\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = repository["hooks"]
    assert [hook["entry"] for hook in hooks] == [line.strip() for line in lint.splitlines()]
    assert repository["repo"] == "local"
    wanted = {"language": "system", "always_run": True, "pass_filenames": False}  # nothing is downloaded or left out
    assert all(hook | wanted == hook for hook in hooks)


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["title"], citation["version"]) == ("selfdistill", __version__)
