"""The promises of the pipeline, kept by the real DVC, Snakemake and Git in temporary repositories."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import present, wait_until

from selfdistill.params import read_study
from selfdistill.pipeline import needs

ROOT = Path(__file__).parents[1]
METHODS = "src/selfdistill/methods"


def lock(project, path: str = "dvc.lock") -> dict:
    return yaml.safe_load((project / path).read_text())


def jobs(output: str) -> set[str]:
    """The rules that a `snakemake -n` would run, without `all`."""
    table = re.search(r"^job +count\n[- ]+\n(.*?)^total", output, re.M | re.S)
    return {line.split()[0] for line in table.group(1).splitlines()} - {"all"} if table else set()


def nothing_to_do(project) -> bool:
    done = project.run("snakemake", "-n")
    return "Nothing to be done" in done.stdout + done.stderr


def rendered(project) -> dict[str, bytes]:
    files = [*(project / "results/tables").iterdir(), *(project / "results/figures").iterdir()]
    files += [project / "results/metrics.json", project / "results/index.html"]
    return {p.name: p.read_bytes() for p in files if not p.name.startswith(".")}


def test_after_dvc_nothing_is_stale_for_either_engine(tiny_study):
    assert tiny_study.changed() == set()
    assert nothing_to_do(tiny_study)


@pytest.mark.nightly  # the next test computes everything again, too, with the other engine
def test_forced_again_every_output_is_equal_to_the_byte(project):
    project.fresh("dvc", "repro", "--quiet", "--force")
    assert project.run("git", "status", "--porcelain").stdout == ""


def test_snakemake_gives_the_results_and_the_lock_of_dvc(project):
    before = lock(project), lock(project, "data/sets/digits/dvc.lock"), rendered(project)
    for path in ("dvc.lock", "data/sets/digits/dvc.lock"):
        (project / path).unlink()
    for path in ("results", ".dvc/cache", ".work", "data/raw", "data/prepared"):
        shutil.rmtree(project / path)
    project.run("git", "checkout", "--", "results/hosts")  # who measured it first is no output
    project.run("snakemake", "--cores", "2")
    assert (lock(project), lock(project, "data/sets/digits/dvc.lock"), rendered(project)) == before
    assert project.changed() == set()
    assert nothing_to_do(project)
    report = project / "report.html"
    project.run("snakemake", "--report", str(report))
    text = report.read_text()
    assert "accuracy.png" in text
    assert "accuracy.csv" in text
    assert "paired by" in text
    assert "Self-distillation methods side by side: the default study" in text


def trained(project) -> dict[str, int]:
    """When each run was last written: a training that runs again writes new files."""
    return {p.parent.as_posix(): p.stat().st_mtime_ns for p in (project / "results/runs").rglob("run.json")}


def test_adding_a_method_makes_nothing_stale(project):
    for form in ("py", "md"):
        source = (project / METHODS / f"plain.{form}").read_text()
        (project / METHODS / f"mine.{form}").write_text(source.replace("Plain", "Mine"))
    content = yaml.safe_load((project / "params.yaml").read_text())
    content["methods"].append("mine")
    content["hyper"]["mine"] = {}
    (project / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    project.run("dvc", "repro", "--quiet", "check")
    assert project.changed() == {
        "train@resnet10-slim-mine-0-1",
        "evaluate@resnet10-slim-mine",
        "measure",
        "tables",
        "figures",
        "page",
    }  # tests/test_docs.py runs these


PROSE = {
    "a card": (f"{METHODS}/byot.md", "\n# BYOT", "\n# BYOT, with a word more"),
    "a card's head": (f"{METHODS}/byot.md", "source: ", "source: it is said, "),
    "a docstring of the engine": ("src/selfdistill/training/engine.py", '"""', '"""Rewritten. '),
    "a comment": ("src/selfdistill/training/engine.py", "\nimport ", "\n# a comment\nimport "),
    "a new network": ("src/selfdistill/models/mine.py", "", "NETWORKS = {}\n"),
    "a new analysis": ("src/selfdistill/evaluation/mine.py", "", "import math\n"),
    "a comment of params.yaml": ("params.yaml", "recipe:", "# my recipe\nrecipe:"),
}


def test_what_is_not_executed_trains_nothing_again(project):
    before = trained(project)
    for path, old, new in PROSE.values():
        file = project / path
        text = file.read_text() if file.exists() else ""
        assert old in text
        file.write_text(text.replace(old, new, 1))
    project.run("dvc", "repro", "--quiet")
    assert trained(project) == before
    assert project.changed() == set()


def test_executed_code_makes_exactly_the_trainings_stale_that_import_it(project):
    plain, byot, drkd = (
        f"{name}-0-1"
        for name in ("train@resnet10-slim-plain", "train@resnet10-slim-byot", "distill@resnet10-slim-drkd")
    )
    edits = {
        (f"{METHODS}/byot.py", f"{METHODS}/sd.py", "src/selfdistill/models/vgg.py"): {byot},  # only the first is used
        (f"{METHODS}/drkd.py",): {drkd},
        ("src/selfdistill/training/schedule.py",): {plain, byot, drkd},
        (): set(),
    }
    for paths, stale in edits.items():
        before = {path: (project / path).read_text() for path in paths}
        for path, text in before.items():
            (project / path).write_text(text + "\nEDITED = True\n")
        project.run("dvc", "repro", "--quiet", "check")
        assert {stage for stage in project.changed() if stage.startswith(("train", "distill"))} == stale, paths
        for path, text in before.items():
            (project / path).write_text(text)
    assert project.changed() == set()


def test_a_method_taken_out_leaves_the_tables(project):
    content = yaml.safe_load((project / "params.yaml").read_text())
    content["methods"].remove("byot")
    (project / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    project.run("snakemake", "--cores", "2")
    assert "BYOT" not in (project / "results/tables/accuracy.md").read_text()
    assert not (project / "results/runs/resnet10-slim/byot").exists()
    assert project.changed() == set()


def test_a_clone_that_pulled_and_edited_runs_exactly_what_is_stale(project, tmp_path):
    """The worst failures of two engines: 'nothing to be done' though stale, or everything again."""
    remote = tmp_path / "remote"
    project.run("dvc", "remote", "add", "--default", "store", str(remote))
    project.run("dvc", "push", "--quiet")
    project.commit("a remote")
    clone = type(project)(tmp_path / "clone")
    subprocess.run(["git", "clone", "--quiet", str(project.folder), str(clone.folder)], check=True)
    clone.run("dvc", "pull", "--quiet", "--allow-missing")
    assert nothing_to_do(clone)
    clone.params(**{"hyper.byot": {"alpha": 0.5}})
    byot = {"train_resnet10_slim_byot_0_1", "evaluate_resnet10_slim_byot"}
    assert jobs(clone.run("snakemake", "-n").stdout) == byot | {"measure", "tables", "figures", "page"}
    before = lock(clone)["stages"]
    clone.run("snakemake", "--cores", "2")
    after = lock(clone)["stages"]
    changed = {re.sub(r"\W", "_", name) for name in after if after[name] != before[name]}
    assert byot <= changed <= byot | {"check", "measure", "tables", "figures", "page"}
    assert clone.changed() == set()
    assert nothing_to_do(clone)


def test_training_does_not_depend_on_the_test_images():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for stage in ("train", "distill", "train_teachers", "distill_from"):
        assert not any("test" in dep for dep in stages[stage]["deps"])


BROKEN = {
    "recipe.epochs": 0,
    "recipe.batch_size": -1,
    "recipe.learning_rate": "fast",
    "recipe": None,
    "hyper": {"Srdl": {}},
    "hyper.byot": {"alpha": 7},
    "seeds": ["1-0"],
    "seeds ": ["0-5", 3],
    "split": "random",
    "training_images": 10_000,
    "methods": ["plain", "byot", "byot"],
    "models": ["resnet10-slimm"],
    "variants": {"late": {"method": "byot"}},
    "variants ": {"plain": {"method": "byot"}},
    "control": "nobody",
    "selection": "test",
    "dataset ": None,
    "own": "nowhere",
    "recipe.keep_epochs": [99],
    "unknown": {f"key {i}": i for i in range(3000)},
}


# a fault of each kind; tests/test_config.py holds that every one is refused, and this test's nightly case the rest
KINDS = ("recipe", "recipe.epochs", "seeds", "methods", "dataset ", "unknown")


@pytest.mark.parametrize("keys", [KINDS, pytest.param(tuple(BROKEN), marks=pytest.mark.nightly)], ids=["kinds", "all"])
def test_a_broken_study_stops_every_engine_before_anything_is_deleted(project, keys):
    good = (project / "params.yaml").read_text()
    before, runs = lock(project), trained(project)
    for key in keys:
        value = BROKEN[key]
        (project / "params.yaml").write_text(good)
        content = yaml.safe_load(good)
        place = content
        *parents, last = key.strip().split(".")
        for parent in parents:
            place = place[parent]
        place[last] = value
        (project / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        done = project.run("dvc", "repro", ok=False)
        assert done.returncode != 0, key
        assert trained(project) == runs, key
        assert (project / "results/tables/accuracy.csv").is_file(), key
    assert lock(project) == before
    (project / "params.yaml").write_text(good)
    project.params(**{"recipe.epochs": 0})
    for command in (["snakemake", "--cores", "2"], ["make", "repro", "-o", "install"]):
        done = project.run(*command, ok=False)
        assert done.returncode == 2
        assert "recipe.epochs: 0 is not allowed" in done.stderr
    assert lock(project) == before
    assert trained(project) == runs


def weights(project) -> dict[str, bytes]:
    """The weights of every run, by model, variant and seed, whatever the block."""
    files = (project / "results/runs").rglob("weights.safetensors")
    return {"/".join((*path.parts[-5:-3], path.parts[-2])): path.read_bytes() for path in files}


def test_a_seed_has_the_same_bits_alone_and_in_any_block_and_an_added_one_is_the_only_one_trained(project):
    before = {path.split("/")[1] + path[-1]: content for path, content in weights(project).items()}
    assert set(before) == {"plain0", "plain1", "byot0", "byot1", "drkd0", "drkd1"}
    project.params(seeds=["0-2"])
    said = project.run("dvc", "repro", "train@resnet10-slim-byot-0-2")
    for seed in (0, 1):
        assert f"byot/{seed}: finished before" in said.stdout + said.stderr
    block = project / "results/runs/resnet10-slim/byot/0-2"
    assert {p.name for p in block.iterdir()} == {"0", "1", "2"}
    fresh = {seed: (block / str(seed) / "weights.safetensors").read_bytes() for seed in range(3)}
    assert [fresh[0], fresh[1]] == [before["byot0"], before["byot1"]]
    project.params(seeds=[2, 1])
    project.fresh("dvc", "repro", "--quiet", "train@resnet10-slim-byot-2", "train@resnet10-slim-byot-1")
    for seed in (1, 2):
        alone = project / f"results/runs/resnet10-slim/byot/{seed}/weights.safetensors"
        assert alone.read_bytes() == fresh[seed]


def test_seeds_draw_their_own_images_the_same_for_all_variants(tiny_study):
    records = [json.loads(p.read_text()) for p in (tiny_study / "results/runs").rglob("run.json")]
    rows = {(r["seed"], r["split"]["training_rows_sha256"], r["split"]["validation_rows_sha256"]) for r in records}
    assert len(records) == 6
    assert len(rows) == 2
    assert {seed for seed, *_ in rows} == {0, 1}
    assert all(r["split"]["training"] == 100 and r["protocol"] == 2 for r in records)


def killed_while(project, command: list[str], when, seconds: float) -> None:
    """Start a command and kill it and its children some time after `when()` is true."""
    with subprocess.Popen(
        command,
        cwd=project.folder,
        env=project.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        wait_until(when, process)
        time.sleep(seconds)
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)


def test_a_killed_run_leaves_nothing_that_looks_whole(project):
    project.params(**{"recipe.epochs": 4000})
    folder = project / "results/runs/resnet10-slim/plain/0-1"
    # DVC removes the outputs of a stage it starts
    killed_while(project, ["dvc", "repro", "train@resnet10-slim-plain-0-1"], lambda: not folder.exists(), 4)
    assert not list(folder.rglob("run.json"))
    project.params(**{"recipe.epochs": 2})
    assert "train@resnet10-slim-plain-0-1" in project.changed()
    project.run("dvc", "repro", "--quiet")
    assert project.run("git", "diff", "--stat", "--", "results", "dvc.lock").stdout == ""


@pytest.mark.nightly  # 21 s; tests/test_chaos.py kills, too
def test_a_block_killed_in_its_second_run_does_not_train_the_first_again(project):
    project.params(**{"recipe.epochs": 60})
    finished = project / ".work/finished"
    stage = "train@resnet10-slim-plain-0-1"

    def first_is_over() -> bool:
        return any(p.suffix != ".partial" for p in present(finished, "resnet10-slim-plain-0-*"))

    shutil.rmtree(finished, ignore_errors=True)
    killed_while(project, ["dvc", "repro", stage], first_is_over, 0.1)
    said = project.run("dvc", "repro", stage)
    assert "plain/0: finished before" in said.stdout + said.stderr
    block = {p.parent.name: p.read_bytes() for p in (project / "results/runs/resnet10-slim/plain").rglob("weights.*")}
    project.fresh("dvc", "repro", "--force", "--single-item", "--quiet", stage)
    again = {p.parent.name: p.read_bytes() for p in (project / "results/runs/resnet10-slim/plain").rglob("weights.*")}
    assert again == block


def test_a_variant_is_a_method_a_second_time(project):
    content = yaml.safe_load((project / "params.yaml").read_text())
    content["variants"] = {
        "gentle": {"method": "byot", "title": "BYOT, gentle", "hyper": {"alpha": 0.1}},
        "short": {"method": "plain", "recipe": {"epochs": 1}},
    }
    content["methods"] += ["gentle", "short"]
    (project / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    before = trained(project)
    project.run("dvc", "repro", "--quiet")
    assert before.items() <= trained(project).items()
    run = json.loads((project / "results/runs/resnet10-slim/gentle/0-1/0/run.json").read_text())
    assert (run["variant"], run["method"], run["hyper"]["alpha"]) == ("gentle", "byot", 0.1)
    short = json.loads((project / "results/runs/resnet10-slim/short/0-1/0/run.json").read_text())
    assert short["recipe"]["epochs"] == 1
    page = (project / "results/index.html").read_text()
    assert "<strong>BYOT, gentle</strong> (<code>gentle</code>): byot, with hyper.alpha: 0.1</li>" in page
    assert "100 training and 100 validation images" in page
    accuracy = (project / "results/tables/accuracy.md").read_text()
    assert "BYOT, gentle" in accuracy
    assert "| short " in accuracy
    metrics = json.loads((project / "results/metrics.json").read_text())
    assert set(metrics) == {"plain", "byot", "drkd", "gentle", "short", "training_gflops"}


def experiments(project, *methods: str) -> dict[str, dict]:
    """What DVC shows of each experiment, which has these methods."""
    shown = json.loads(project.run("dvc", "exp", "show", "--json").stdout)
    found = {e["name"]: e["revs"][0]["data"] for e in shown[1]["experiments"]}
    for data in found.values():
        values = data["metrics"]["results/metrics.json"]["data"]
        assert set(values) == {*methods, "training_gflops"}
    return found


def test_experiments_show_a_column_a_method_and_the_cost(project):
    project.run("dvc", "exp", "run", "--name", "alone", "-S", "methods=[plain]")
    assert set(experiments(project, "plain", "drkd")) == {"alone"}
    diff = json.loads(project.run("dvc", "metrics", "diff", "--json", "HEAD", "alone").stdout)
    assert diff["results/metrics.json"]["training_gflops"]["diff"] < 0
    project.run("dvc", "plots", "show", "--out", "plots")
    text = (project / "plots/index.html").read_text()
    assert "test_accuracy" in text
    assert "validation_accuracy" in text


@pytest.mark.nightly  # the test before shows one that runs at once
def test_a_queued_experiment_is_shown_like_the_others(project):
    project.run("dvc", "exp", "run", "--queue", "--name", "queued", "-S", "hyper.byot.reading=journal")
    run_queue(project)
    assert set(experiments(project, "plain", "byot", "drkd")) == {"queued"}


@pytest.mark.nightly  # 35 s on two busy cores, nearly all of it DVC's worker
def test_an_experiment_on_a_study_of_studies_is_queued_as_the_guide_says(project):
    study = "studies/digits-all"
    options = ["--copy-paths", f"{study}/.dvcignore", "-S", f"{study}/params.yaml:recipe.epochs=6"]
    assert "dvc exp run --queue --copy-paths $study/.dvcignore" in (ROOT / "docs/engines.md").read_text()
    project.run("selfdistill", "study", "use", "digits-all")
    project.run("dvc", "exp", "run", "--queue", "--name", "queued", *options, f"{study}/dvc.yaml:check")
    run_queue(project)
    (experiment,) = project.run("git", "for-each-ref", "--format=%(refname)", "refs/exps/*/*/queued").stdout.split()
    done = yaml.safe_load(project.run("git", "show", f"{experiment}:{study}/dvc.lock").stdout)["stages"]["check"]
    assert done["params"]["params.yaml"]["recipe"]["epochs"] == 6


def run_queue(project) -> None:
    """Start DVC's worker, and wait until it has run the experiment `queued`."""
    project.run("dvc", "queue", "start")
    deadline = time.time() + 600
    while "Success" not in (status := project.run("dvc", "queue", "status").stdout) and time.time() < deadline:
        assert "Failed" not in status, project.run("dvc", "queue", "logs", "queued", ok=False).stdout
        time.sleep(2)


def test_the_page_of_a_rerun_is_the_same_page(project):
    before = (project / "results/index.html").read_bytes()
    project.run("dvc", "repro", "--quiet", "--force", "--single-item", "page")
    assert (project / "results/index.html").read_bytes() == before


def test_a_study_of_studies_resolves_through_the_shared_file(project):
    """Its data would be downloaded; here every cell is resolved and nothing is run."""
    link = project / "studies/fashion-mnist/dvc.yaml"
    assert link.is_symlink()
    assert link.resolve() == (project / "dvc.yaml").resolve()
    assert "studies/" not in project.run("dvc", "stage", "list", "--all", "--name-only").stdout
    said = project.run("snakemake", "-n", "--config", "study=fashion-mnist", "runtime=777", "mem_mb=3210").stdout
    asked = dict(re.findall(r"^rule (\w+):.*?resources: .*?(runtime=\d+, gpu=\d+, mem_mb=\d+)", said, re.DOTALL | re.M))
    for rule, resources in asked.items():
        trains = any(f"_{kind}_" in rule for kind in ("train", "distill", "tune"))
        assert (resources == "runtime=777, gpu=0, mem_mb=3210") == trains, rule
    planned = jobs(said)
    content = yaml.safe_load((project / "studies/fashion-mnist/params.yaml").read_text())
    assert len([j for j in planned if "_train_" in j]) == len(content["methods"]) * len(content["seeds"])
    assert "check" not in planned or "studies_fashion_mnist_dvc_yaml_check" in planned
    assert {f"data_sets_fashion_mnist_dvc_yaml_{stage}" for stage in ("fetch", "prepare")} <= planned
    dry = project.run("dvc", "repro", "--dry", "studies/fashion-mnist/dvc.yaml", ok=False).stdout
    assert "run fetch fashion-mnist" in dry


@pytest.mark.nightly  # 5 s; the stages' own lines are held by tests/test_resume.py and test_outside.py
def test_snakemake_says_in_a_line_where_it_cannot_write(project):
    (project / ".work").rename(project / "work")
    (project / ".work").symlink_to("/sys")  # read-only for everyone, root included
    done = project.run("snakemake", "-n", ok=False)
    assert done.returncode == 2
    assert re.search(r"^\.work/stale: .*; make room or make it writable$", done.stderr, re.M)
    assert "stages.smk" not in done.stderr


def test_snakemake_finds_nothing_to_object_to(tiny_study):
    assert "good condition" in (done := tiny_study.run("snakemake", "--lint")).stdout + done.stderr


def test_the_conda_environment_holds_the_versions_of_the_lock():
    pinned = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().split())
    environment = yaml.safe_load((ROOT / "workflow/envs/selfdistill.yaml").read_text())
    listed = dict(line.split("==") for line in environment["dependencies"][-1]["pip"])
    assert all(pinned[package] == version for package, version in listed.items())
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["pipeline"]]
    assert {re.split("[<>=]", d)[0].replace(".", "-") for d in declared} == set(listed)


def test_a_stage_takes_the_first_python_that_it_is_offered(tmp_path):
    run = tmp_path / "checkout/workflow/run"
    run.parent.mkdir(parents=True)
    shutil.copy2(ROOT / "workflow/run", run)
    for name in ("conda", "image", "active", "checkout/.venv"):
        for python in ("python", "python3"):
            (tmp_path / name / "bin").mkdir(parents=True, exist_ok=True)
            (tmp_path / name / "bin" / python).write_text(f"#!/bin/sh\necho {name}\n")
            (tmp_path / name / "bin" / python).chmod(0o755)
    (tmp_path / "conda.env_setup_done").touch()  # Snakemake's flag; an environment of the user's own has none
    offers = {
        "CONDA_PREFIX": str(tmp_path / "conda"),
        "SELFDISTILL_IMAGE": "1",
        "VIRTUAL_ENV": str(tmp_path / "active"),
        "PATH": f"{tmp_path}/image/bin:/usr/bin:/bin",
    }
    for expected, withdrawn in (
        ("conda", "CONDA_PREFIX"),
        ("image", "SELFDISTILL_IMAGE"),
        ("active", "VIRTUAL_ENV"),
        ("checkout/.venv", None),
    ):
        found = subprocess.run([run], env=offers, capture_output=True, text=True, check=True).stdout.strip()
        assert found == expected
        offers.pop(withdrawn, None)


def test_the_image_takes_the_pipelines_packages():
    """Of the Dockerfile, which needs Docker, the line that lists them."""
    code = re.search(r'python -c "(.*)" > wanted.txt', (ROOT / "Dockerfile").read_text()).group(1)
    listed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    pinned = {line.split("==")[0] for line in (ROOT / "requirements.lock").read_text().split()}
    wanted = {re.split("[<>=]", line)[0].replace(".", "-") for line in listed.splitlines()}
    assert {"torch", "dvc", "snakemake"} <= wanted <= pinned


def test_the_lock_names_no_registry():
    assert "://" not in (ROOT / "requirements.lock").read_text()


@pytest.mark.parametrize(
    "command",
    [
        "",
        "fetch",
        "prepare",
        "train",
        "evaluate",
        "measure",
        "probe",
        "tables",
        "figures",
        "page",
        "methods",
        "analyses",
        "check",
        "prune",
        "predict",
        "study",
    ],
)
def test_every_command_explains_itself(tiny_study, command):
    text = tiny_study.run("selfdistill", *filter(None, [command]), "--help").stdout
    assert len(text.split()) > 25


def test_methods_are_listed_with_paper_and_card(tiny_study):
    listing = tiny_study.run("selfdistill", "methods").stdout
    assert re.search(r"byot +arXiv 1905.08094", listing)
    card = tiny_study.run("selfdistill", "methods", "byot").stdout
    assert "alpha KL" in card
    assert "the paper gives none" in card
    assert {m["method"] for m in json.loads(tiny_study.run("selfdistill", "methods", "--json").stdout)} >= {
        "byot",
        "sd",
    }


def test_a_cell_that_is_not_in_the_study_is_refused(tiny_study):
    cell = ["selfdistill", "train", "--model", "resnet10-slim"]
    done = tiny_study.run(*cell, "--variant", "byot", "--seeds", "9", ok=False)
    assert done.returncode == 1
    assert "there are 0-1" in done.stderr
    done = tiny_study.run(*cell, "--variant", "sd", "--seeds", "0-1", ok=False)
    assert "there are plain, byot, drkd" in done.stderr


def test_a_run_of_several_processes_asks_snakemake_for_as_many_of_everything():
    study = read_study(ROOT / "params.yaml")
    recipe = study.recipe.model_copy(update={"device": "auto", "processes": 4, "threads": 2})
    several = study.model_copy(update={"recipe": recipe})
    asked = needs({"threads": 1, "gpu": 1, "mem_mb": 2000, "each": ["process", "seed"]}, several, seeds=5)
    assert asked == {"threads": 8, "resources": {"mem_mb": 8000, "runtime": 50, "gpu": 4}}
    assert needs({"gpu": 1}, several)["resources"]["gpu"] == 1
    assert needs({"gpu": 1}, study)["resources"]["gpu"] == 0
    searches = needs({"runtime": 10, "each": ["trial"]}, study)["resources"]["runtime"]
    assert searches == 10 * study.tuning.replicates * (study.tuning.trials + 1), "each winner once more"


def test_what_the_page_reads_beside_code_makes_it_stale(project):
    with open(project / "src/selfdistill/reporting/page.html", "a") as file:
        file.write("<!-- edited -->\n")
    project.run("dvc", "repro", "--quiet", "check")
    assert project.changed() == {"page"}
