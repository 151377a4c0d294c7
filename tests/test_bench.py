"""Measuring: the bench command, and the run on a machine of its own, from end to end on the CPU."""

import gzip
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, Project

from selfdistill.config import Recipe
from selfdistill.data.catalogue import read_catalogue


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


# what a machine that only trains may lack
BANNED = ("dvc", "pydantic", "requests", "ruamel", "scipy", "sklearn", "snakemake", "tqdm")


def there(tmp_path: Path, command: list) -> subprocess.CompletedProcess:
    """Run a command with a Python that lacks what is BANNED."""
    banned = tmp_path / "banned"
    for name in BANNED:
        (banned / name).mkdir(parents=True, exist_ok=True)
        missing = f"raise ModuleNotFoundError('not on this machine', name={name!r})\n"
        (banned / name / "__init__.py").write_text(missing)
    environment = Project(ROOT).environment
    python = f"{environment['VIRTUAL_ENV']}/bin/python"
    return subprocess.run(
        [python if part == "python" else str(part) for part in command],
        env={**environment, "PYTHONPATH": str(banned), "PYTHON": python},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


LOST = f"""import os, sys
sys.path.insert(0, {str(ROOT / "benchmarks")!r})
import gpu_run
if gpu_run.BEGUN not in os.environ:
    def lost(*_): raise RuntimeError("CUDA error: an illegal memory access was encountered")
    gpu_run.train, gpu_run.device_works = lost, lambda study: False
sys.exit(gpu_run.main())
"""  # the first cell fails, and its process can compute nothing afterwards


def run_there(tmp_path: Path, out: str, seconds: int, *program) -> tuple[subprocess.CompletedProcess, list[dict]]:
    """gpu_run.sh in its CPU mode."""
    command = [*(program or [ROOT / "benchmarks/gpu_run.sh"]), "--cpu", "--seconds", seconds]
    started = time.monotonic()
    done = there(tmp_path, [*command, "--out", tmp_path / out, "--state", tmp_path / "state"])
    assert time.monotonic() - started < seconds + 60  # a run that did not stop would take many minutes
    packed = tmp_path / out / "records.jsonl.gz"
    lines = gzip.decompress(packed.read_bytes()).splitlines() if packed.is_file() else []
    return done, [json.loads(line) for line in lines]


def test_a_gpu_run_stops_in_time_is_continued_and_comes_home(tmp_path, project):
    half = tmp_path / "state/cpu-made/data/prepared/cifar100/test/test.safetensors"  # a preparation that failed
    half.parent.mkdir(parents=True)
    half.write_text("half")
    measured = tmp_path / "state/cpu-made/measured"  # the first run trains alone
    measured.touch()
    (tmp_path / "lost.py").write_text(LOST)
    done, first = run_there(tmp_path, "first", 30, "python", tmp_path / "lost.py")
    assert done.returncode == 1, done.stdout + done.stderr  # of the fault
    assert "begins again in another one" in done.stdout
    assert json.loads((tmp_path / "state/cpu-made/failed.json").read_text()) == {"plain/0": 1}
    assert "sd: left out, scipy is not installed here" in done.stdout or len(first) < 8
    assert done.stdout.count(", PyTorch ") == 2  # of each process, one
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert set(files) <= {"check.json", "log.txt", "records.jsonl.gz", "speed.json", "speed.md", "speed.png"}
    assert all(path.stat().st_size < 2**24 for path in (tmp_path / "first").iterdir())

    measured.unlink()
    done, entries = run_there(tmp_path, "second", 25)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WRONG" not in done.stdout
    cells = [(e["record"]["variant"], e["record"]["seed"]) for e in entries]
    assert len(cells) > len(first)
    assert len(set(cells)) == len(cells)
    seeds = {m: [s for name, s in cells if name == m] for m, _ in cells}
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
    home.run_all(["records", "import", str(tmp_path / "second/records.jsonl.gz")], ["tables"], ["figures"], ["page"])
    table = (study / "results/tables/accuracy.md").read_text()
    assert "Hardware" in table
    assert table.count("\n") == 2 + len(seeds)
    assert entries[0]["host"]["hardware"] in (study / "results/index.html").read_text()


MEASURE = ["python", ROOT / "benchmarks/gpu_measure.py"]


def test_a_method_is_checked_in_a_process_of_its_own(tmp_path):
    for method, said in (("byot", "right"), ("sd", "left_out")):
        done = there(tmp_path, [*MEASURE, "check", method, tmp_path / f"{method}.jsonl", "--cpu"])
        assert done.returncode == 0, done.stderr
        (entry,) = [json.loads(line) for line in (tmp_path / f"{method}.jsonl").read_text().splitlines()]
        assert entry[said]


@pytest.mark.nightly  # test_bench_compares_three_loops_and_draws_them measures and writes the same, of smaller shapes
def test_the_speed_is_measured_in_a_process_of_its_own(tmp_path):
    modes = json.dumps({"plain": {"compile": False, "cuda_graphs": False}, "byot": None})
    done = there(tmp_path, [*MEASURE, "speed", tmp_path, modes, "--cpu"])
    assert done.returncode == 0, done.stderr
    assert {"speed.json", "speed.md", "speed.png"} <= {path.name for path in tmp_path.iterdir()}


def test_what_gpu_run_reads_without_the_schema_is_what_the_schema_gives():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import gpu_data
    import gpu_run

    left_out = {k: f.default for k, f in Recipe.model_fields.items() if not f.is_required()}
    assert left_out == gpu_run.DEFAULTS
    content = yaml.safe_load((ROOT / "data/params.yaml").read_text())["datasets"]
    catalogue = read_catalogue(ROOT / "data/params.yaml").datasets

    def same(light, entry) -> bool:
        if isinstance(entry, list):
            return all(map(same, light, entry)) and len(light) == len(entry)
        if not hasattr(entry, "model_fields_set"):
            return light == entry
        derived = [name for name in ("fixed", "target") if hasattr(entry, name)]
        names = [*vars(entry), *derived]
        return vars(light).keys() == vars(entry).keys() and all(
            same(getattr(light, n), getattr(entry, n)) for n in names
        )

    for name, entry in catalogue.items():
        assert same(gpu_data.as_objects(content[name]), entry), name


def test_a_gpu_run_without_a_gpu_or_data_says_so(tmp_path):
    environment = {**Project(ROOT).environment, "CUDA_VISIBLE_DEVICES": ""}
    command = [
        ROOT / "benchmarks/gpu_run.sh",
        "--seconds",
        "60",
        "--out",
        tmp_path / "out",
        "--state",
        tmp_path / "state",
    ]
    for more, said in (([], "--data is needed"), (["--data", tmp_path], "no GPU that PyTorch can use")):
        done = subprocess.run([*command, *more], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert said in done.stderr


def test_speed_is_drawn_without_scipy():
    """As on a machine that only trains."""
    rates = {name: {"median": 1.0} for name in ("floor", "ours")}
    told = {"model": "m", "size": 8, "method": "plain", "recipe": {"precision": "float32"}, "hardware": "a CPU"}
    script = "import sys; sys.modules['scipy'] = None; from selfdistill.benchmark.measure import draw;"
    script += f"assert set(draw([{ {'images_per_second': rates, **told}!r}])) == {{'svg', 'png'}}"
    subprocess.run([sys.executable, "-c", script], check=True)
