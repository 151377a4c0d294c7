"""Measuring: the bench command, and the run on a machine of its own, from end to end on the CPU."""

import gzip
import json
import subprocess
from pathlib import Path

import yaml
from conftest import ROOT, Project

from selfdistill import methods


def test_bench_compares_three_loops_and_draws_them(tmp_path):
    project = Project(ROOT)
    shape = ["--size", "8", "--channels", "1", "--classes", "10", "--batch", "10", "--steps", "3", "--rounds", "2"]
    done = project.run(
        "selfdistill",
        "bench",
        "--model",
        "resnet10-slim",
        *shape,
        "--device",
        "cpu",
        "--out",
        str(tmp_path),
        "--name",
        "x",
    )
    assert "to DataLoader + PIL" in done.stdout
    (result,) = json.loads((tmp_path / "x.json").read_text())["results"]
    rates = {name: values["median"] for name, values in result["images_per_second"].items()}
    assert set(rates) == {"ours", "floor", "ordinary"}
    assert min(rates.values()) > 0
    assert (
        result["ours_to"]["floor"]["min"] <= result["ours_to"]["floor"]["median"] <= result["ours_to"]["floor"]["max"]
    )
    assert result["flops_per_second"]["median"] < 3 * result["ceiling_flops_per_second"]
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "x.svg").is_file()
    assert result["hardware"] in (tmp_path / "x.md").read_text()


def run_there(tmp_path: Path, out: str, seconds: int) -> tuple[subprocess.CompletedProcess, list[dict]]:
    """gpu_run.sh in its CPU mode, without DVC, Snakemake, pydantic and pooch to be imported."""
    banned = tmp_path / "banned"
    for name in ("dvc", "snakemake", "pydantic", "pooch"):
        (banned / name).mkdir(parents=True, exist_ok=True)
        (banned / name / "__init__.py").write_text("raise ImportError('not on this machine')\n")
    command = [ROOT / "benchmarks/gpu_run.sh", "--cpu", "--seconds", str(seconds)]
    project = Project(ROOT)
    done = subprocess.run(
        [*command, "--out", tmp_path / out, "--state", tmp_path / "state"],
        env={
            **project.environment,
            "PYTHONPATH": str(banned),
            "PYTHON": f"{project.environment['VIRTUAL_ENV']}/bin/python",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    packed = tmp_path / out / "records.jsonl.gz"
    lines = gzip.decompress(packed.read_bytes()).splitlines() if packed.is_file() else []
    return done, [json.loads(line) for line in lines]


def test_a_gpu_run_stops_in_time_is_continued_and_comes_home(tmp_path, project):
    done, first = run_there(tmp_path, "first", 25)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "right" in done.stdout
    assert "WRONG" not in done.stdout
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert len(files) <= 8
    assert {"check.json", "log.txt", "speed.json", "speed.md", "speed.png"} <= set(files)
    assert all(path.stat().st_size < 2**24 for path in (tmp_path / "first").iterdir())
    checks = json.loads((tmp_path / "first/check.json").read_text())["checks"]
    assert {check["method"] for check in checks} == set(methods.names())

    done, entries = run_there(tmp_path, "second", 45)
    assert done.returncode == 0, done.stdout + done.stderr
    cells = [(e["record"]["variant"], e["record"]["seed"]) for e in entries]
    assert len(cells) > len(first)
    assert len(set(cells)) == len(cells)
    seeds = {m: [s for name, s in cells if name == m] for m, _ in cells}
    assert len(seeds) == 25
    counts = sorted(len(s) for s in seeds.values())
    assert counts[-1] - counts[0] <= 1  # one seed of every method before the second of any

    # at home the records are rendered like runs of the study that they belong to
    study = project / "studies/cifar100-resnet18"
    params = yaml.safe_load((study / "params.yaml").read_text())
    params["models"] = ["resnet10-slim"]
    params["recipe"] = entries[0]["record"]["recipe"]
    for key in ("training_images", "validation_images"):
        params[key] = entries[0]["record"][key]
    (study / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    home = Project(study)
    home.run("selfdistill", "records", "import", str(tmp_path / "second/records.jsonl.gz"))
    for command in ("tables", "figures", "page"):
        home.run("selfdistill", command)
    table = (study / "results/tables/accuracy.md").read_text()
    assert "Hardware" in table
    assert table.count("\n") == 2 + 25
    assert entries[0]["host"]["hardware"] in (study / "results/index.html").read_text()


def test_a_gpu_run_without_a_gpu_or_data_says_so(tmp_path):
    environment = {**Project(ROOT).environment, "CUDA_VISIBLE_DEVICES": ""}
    command = [
        ROOT / "benchmarks/gpu_run.sh",
        "--seconds",
        "10",
        "--out",
        tmp_path / "out",
        "--state",
        tmp_path / "state",
    ]
    for more, said in (([], "--data is needed"), (["--data", tmp_path], "no GPU that PyTorch can use")):
        done = subprocess.run([*command, *more], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert said in done.stderr
