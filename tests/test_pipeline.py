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

from selfdistill.config import read_study
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


def test_forced_again_every_output_is_equal_to_the_byte(project):
    project.run("dvc", "repro", "--quiet", "--force")
    assert project.run("git", "status", "--porcelain").stdout == ""


def test_snakemake_gives_the_results_and_the_lock_of_dvc(project):
    before = lock(project), lock(project, "data/dvc.lock"), rendered(project)
    for path in ("dvc.lock", "data/dvc.lock"):
        (project / path).unlink()
    for path in ("results", ".dvc/cache", "data/raw", "data/prepared"):
        shutil.rmtree(project / path)
    project.run("git", "checkout", "--", "results/hosts")  # who measured it first is no output
    project.run("snakemake", "--cores", "2")
    assert (lock(project), lock(project, "data/dvc.lock"), rendered(project)) == before
    assert project.changed() == set()
    assert nothing_to_do(project)
    report = project / "report.html"
    project.run("snakemake", "--report", str(report))
    text = report.read_text()
    assert "accuracy.png" in text
    assert "accuracy.csv" in text
    assert "paired by" in text


def test_adding_a_method_makes_nothing_stale(project):
    source = (project / METHODS / "plain.py").read_text().replace("Plain", "Mine").replace("class Mine", "class Mine")
    (project / METHODS / "mine.py").write_text(source)
    (project / METHODS / "mine.md").write_text("# Mine\n")
    content = yaml.safe_load((project / "params.yaml").read_text())
    content["methods"].append("mine")
    content["hyper"]["mine"] = {}
    (project / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    assert project.changed() == {
        "train@resnet10-slim-mine-0",
        "train@resnet10-slim-mine-1",
        "evaluate@resnet10-slim-mine",
    }
    project.run("dvc", "repro", "--quiet")
    assert "Mine" in (project / "results/tables/accuracy.md").read_text()


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
    byot = {"train_resnet10_slim_byot_0", "train_resnet10_slim_byot_1", "evaluate_resnet10_slim_byot"}
    assert jobs(clone.run("snakemake", "-n").stdout) == byot | {"tables", "figures", "page"}
    before = lock(clone)["stages"]
    clone.run("snakemake", "--cores", "2")
    after = lock(clone)["stages"]
    changed = {re.sub(r"\W", "_", name) for name in after if after[name] != before[name]}
    assert byot <= changed <= byot | {"tables", "figures", "page"}
    assert clone.changed() == set()
    assert nothing_to_do(clone)


def test_code_of_one_method_edited_makes_its_runs_stale_and_no_others(project):
    with open(project / METHODS / "byot.py", "a") as file:
        file.write("# edited\n")
    assert project.changed() == {"train@resnet10-slim-byot-0", "train@resnet10-slim-byot-1"}


def test_a_run_loads_no_code_that_its_stage_does_not_declare(project):
    """What DVC does not know of cannot make a run stale: the import closure must be declared."""
    declared = yaml.safe_load((project / "dvc.yaml").read_text())["stages"]
    script = (
        "import sys; sys.argv = {argv!r}; from selfdistill.cli import main; main(sys.argv[1:]);"
        "print('\\n'.join(m.__file__ for n, m in sys.modules.items() if n.startswith('selfdistill') and m.__file__))"
    )
    # the command line and the schema of params.yaml decide whether a run starts, not what comes out;
    # host facts are no output
    shell = {"__init__.py", "cli.py", "config.py", "files.py", "methods/__init__.py", "data/__init__.py"}
    for stage, extra in (
        ("train", ["--method", "byot", "--seed", "0"]),
        ("evaluate", ["--method", "byot"]),
        ("distill", ["--method", "drkd", "--seed", "0", "--teacher", "plain"]),
    ):
        command = stage.replace("distill", "train")
        argv = ["selfdistill", command, "--model", "resnet10-slim", *extra]
        printed = project.run(
            sys.executable, "-c", script.format(argv=argv), PYTHONPATH=str(project / "src")
        ).stdout.splitlines()
        package = project / "src/selfdistill"
        loaded = {Path(p).relative_to(package).as_posix() for p in printed if p.startswith(str(package))}
        assert any(p.startswith("models/") for p in loaded)
        deps = [
            d.replace("${root}/src/selfdistill/", "").replace("${item.method}", extra[1])
            for d in declared[stage]["deps"]
        ]
        undeclared = {p for p in loaded - shell if not any(p == d or p.startswith(d + "/") for d in deps)}
        # evaluate needs nothing else of training than its determinism; the package's own docstring is no code
        assert undeclared <= {"training/__init__.py"}, stage


def test_training_does_not_depend_on_the_test_images():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for stage in ("train", "distill"):
        assert not any("test" in dep for dep in stages[stage]["deps"])


def test_a_broken_study_stops_both_engines_before_any_work(project):
    project.params(**{"recipe.epochs": 0})
    before = lock(project)
    done = project.run("snakemake", "--cores", "2", ok=False)
    assert done.returncode == 2
    assert "recipe.epochs: 0 is not allowed" in done.stderr
    done = project.run("make", "repro", "-o", "install", ok=False)
    assert done.returncode == 2
    assert "recipe.epochs: 0 is not allowed" in done.stderr
    assert lock(project) == before
    assert (project / "results/runs/resnet10-slim/byot/0/run.json").is_file()


def test_a_killed_run_leaves_nothing_that_looks_whole(project):
    project.params(**{"recipe.epochs": 4000})
    command = ["dvc", "repro", "--single-item", "train@resnet10-slim-plain-0"]
    with subprocess.Popen(
        command,
        cwd=project.folder,
        env=project.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        folder = project / "results/runs/resnet10-slim/plain/0"
        deadline = time.time() + 60
        while folder.exists() and time.time() < deadline:  # DVC removes the outputs of a stage it starts
            time.sleep(0.2)
        time.sleep(3)
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
    assert not folder.exists()
    project.params(**{"recipe.epochs": 2})
    assert "train@resnet10-slim-plain-0" in project.changed()
    project.run("dvc", "repro", "--quiet")
    assert project.run("git", "diff", "--stat", "--", "results", "dvc.lock").stdout == ""


def test_experiments_show_a_column_a_method_and_the_cost(project):
    project.run("dvc", "exp", "run", "--name", "longer", "-S", "recipe.epochs=3")
    project.run("dvc", "exp", "run", "--queue", "--name", "queued", "-S", "hyper.byot.alpha=0.9")
    project.run("dvc", "queue", "start")
    deadline = time.time() + 240
    while "Success" not in (status := project.run("dvc", "queue", "status").stdout) and time.time() < deadline:
        assert "Failed" not in status, project.run("dvc", "queue", "logs", "queued", ok=False).stdout
        time.sleep(2)
    shown = json.loads(project.run("dvc", "exp", "show", "--json").stdout)
    experiments = {e["name"]: e["revs"][0]["data"] for e in shown[1]["experiments"]}
    assert set(experiments) == {"longer", "queued"}
    for data in experiments.values():
        values = data["metrics"]["results/metrics.json"]["data"]
        assert set(values) == {"plain", "byot", "drkd", "training_gflops"}
    diff = json.loads(project.run("dvc", "metrics", "diff", "--json", "HEAD", "longer").stdout)
    assert diff["results/metrics.json"]["training_gflops"]["diff"] > 0
    project.run("dvc", "plots", "show", "--out", "plots")
    text = (project / "plots/index.html").read_text()
    assert "test_accuracy" in text
    assert "validation_accuracy" in text


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
        assert (resources == "runtime=777, gpu=0, mem_mb=3210") == ("_train_" in rule or "_distill_" in rule), rule
    planned = jobs(said)
    content = yaml.safe_load((project / "studies/fashion-mnist/params.yaml").read_text())
    assert len([j for j in planned if "_train_" in j]) == len(content["methods"]) * len(content["seeds"])
    assert {"data_dvc_yaml_fetch_fashion_mnist", "data_dvc_yaml_prepare_fashion_mnist"} <= planned
    dry = project.run("dvc", "repro", "--dry", "studies/fashion-mnist/dvc.yaml", ok=False).stdout
    assert "run fetch fashion-mnist" in dry


def test_snakemake_finds_nothing_to_object_to(tiny_study):
    assert "good condition" in (done := tiny_study.run("snakemake", "--lint")).stdout + done.stderr


def test_the_conda_environment_holds_the_versions_of_the_lock():
    pinned = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().split())
    environment = yaml.safe_load((ROOT / "workflow/envs/selfdistill.yaml").read_text())
    listed = dict(line.split("==") for line in environment["dependencies"][-1]["pip"])
    assert all(pinned[package] == version for package, version in listed.items())
    import tomllib

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {re.split("[<>=]", d)[0].replace(".", "-") for d in declared} == set(listed)


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
        "tables",
        "figures",
        "page",
        "methods",
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
    assert "train.py @47ca93b" in card
    assert {m["method"] for m in json.loads(tiny_study.run("selfdistill", "methods", "--json").stdout)} >= {
        "byot",
        "sd",
    }


def test_a_cell_that_is_not_in_the_study_is_refused(tiny_study):
    done = tiny_study.run(
        "selfdistill", "train", "--model", "resnet10-slim", "--method", "byot", "--seed", "9", ok=False
    )
    assert done.returncode == 1
    assert "there are 0, 1" in done.stderr
    done = tiny_study.run(
        "selfdistill", "train", "--model", "resnet10-slim", "--method", "drkd", "--seed", "0", ok=False
    )
    assert "add --teacher plain" in done.stderr


def test_a_run_of_several_processes_asks_snakemake_for_as_many_of_everything():
    study = read_study(ROOT / "params.yaml")
    recipe = study.recipe.model_copy(update={"device": "auto", "processes": 4, "threads": 2})
    asked = needs({"threads": 1, "gpu": 1, "mem_mb": 2000, "each": "process"}, recipe)
    assert asked == {"threads": 8, "resources": {"mem_mb": 8000, "runtime": 10, "gpu": 4}}
    assert needs({"gpu": 1}, recipe)["resources"]["gpu"] == 1
    assert needs({"gpu": 1}, study.recipe)["resources"]["gpu"] == 0
