"""Kill training runs with signal 9 at random moments, resume each, compare every byte with an undisturbed run.

    python benchmarks/kill_resume.py [KILLS] [METHOD ...]

Digits, 150 epochs, two methods at a time; every method that needs no teacher, and DR-KD with its own.  The
moments are uniform over the time that an undisturbed run takes, loading of PyTorch included.  Prints a
Markdown table; exit code 1 if a byte differs.  The digits must be prepared: dvc repro data/sets/digits/dvc.yaml:prepare
"""

import datetime
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))
from selfdistill import methods  # noqa: E402  (the path to it is set above)

EPOCHS = 150


def main(kills: int, names: list[str]) -> int:
    print(f"n = {kills} kills a method, {EPOCHS} epochs of digits, {datetime.date.today()}\n")
    print("| method | equal to the byte | killed before the first checkpoint | median step resumed at, of 600 |")
    print("| --- | --- | --- | --- |")
    wrong = 0
    with tempfile.TemporaryDirectory() as base, ThreadPoolExecutor(max_workers=2) as pool:
        for name, equal, early, steps in pool.map(lambda name: one_method(Path(base), name, kills), names):
            print(f"| {name} | {equal} of {kills} | {early} | {median(steps) if steps else '-'} |", flush=True)
            wrong += equal != kills
    return int(wrong > 0)


def one_method(base: Path, name: str, kills: int) -> tuple[str, int, int, list[int]]:
    """Its name, the number of equal results, of kills before anything was saved, and the steps saved at each kill."""
    folder = make_study(base, name)
    command = [sys.executable, str(ROOT / "src/selfdistill"), "train", "--model", "resnet10-slim", "--seeds", "0"]
    cell = [*command, "--variant", name]
    if "teacher" in methods.about(name)["needs"]:
        subprocess.run([*command, "--variant", "plain"], cwd=folder, check=True)
    started = time.monotonic()
    subprocess.run(cell, cwd=folder, check=True)
    lasts, whole = time.monotonic() - started, outputs(folder, name)
    generator, equal, early, steps = random.Random(name), 0, 0, []
    for _ in range(kills):
        shutil.rmtree(folder / "results/runs/resnet10-slim" / name)
        process = subprocess.Popen(cell, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(generator.uniform(0, 0.95 * lasts))
        process.send_signal(signal.SIGKILL)
        process.wait()
        saved = sorted(int(p.name.split("-")[0]) for p in (folder / "checkpoints").glob(f"*-{name}-*/*.safetensors"))
        early += not saved
        steps += saved[-1:]
        subprocess.run(cell, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        equal += outputs(folder, name) == whole
    return name, equal, early, steps


def make_study(base: Path, name: str) -> Path:
    folder = base / name
    folder.mkdir()
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    taught = "teacher" in methods.about(name)["needs"]
    content |= {"root": str(ROOT), "methods": ["plain"] if taught or name == "plain" else ["plain", name]}
    content |= {"students": [name] if taught else [], "hyper": {"plain": {}, name: content["hyper"].get(name, {})}}
    content["seeds"], content["recipe"]["epochs"] = [0], EPOCHS
    (folder / "params.yaml").write_text(yaml.safe_dump(content))
    # each study's own folder; and nothing that was finished before
    os.environ |= {"SELFDISTILL_CHECKPOINTS": "checkpoints", "SELFDISTILL_FRESH": "1"}
    return folder


def outputs(folder: Path, name: str) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((folder / "results/runs/resnet10-slim" / name / "0").iterdir())}


if __name__ == "__main__":
    arguments = sys.argv[1:]
    sys.exit(main(int(arguments[0]) if arguments else 30, arguments[1:] or methods.names()))
