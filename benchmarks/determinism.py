"""What each level of determinism costs: seconds of one training run, levels in turn, as ratios.

    python benchmarks/determinism.py [ROUNDS]

Every run is a process of its own, because the levels act when PyTorch is loaded.  Prints a Markdown
table of the median over rounds of each level's time divided by that of level off in the same round.
"""

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
LEVELS = ("off", "seeded", "strict", "portable")
RUN = """
import json, sys, time
sys.path.insert(0, "src")
from pathlib import Path
from selfdistill.params import read_study
from selfdistill.training import determinism
study = read_study(Path("params.yaml"))
recipe = study.recipe.model_copy(update={"determinism": sys.argv[1], "epochs": 20})
determinism.prepare_environment(recipe.determinism, recipe.threads)
from selfdistill import host
from selfdistill.stages.cell import open_cell
from selfdistill.stages.plan import training_plan
from selfdistill.training import engine
determinism.apply(recipe)
cell = open_cell(study, training_plan(study, study.models[0], "byot"), 0, "cpu")
started = time.perf_counter()
engine.train(cell.rule, cell.build, cell.dataset, cell.training, cell.validation, recipe, seed=0)
print(json.dumps([time.perf_counter() - started, host.hardware("cpu")]))
"""


def main(rounds: int) -> None:
    ratios: dict[str, list[float]] = {level: [] for level in LEVELS}
    for turn in range(rounds):
        seconds = {}
        for level in LEVELS[turn % len(LEVELS) :] + LEVELS[: turn % len(LEVELS)]:  # no level is always first
            done = subprocess.run(
                [sys.executable, "-c", RUN, level], cwd=ROOT, capture_output=True, text=True, check=True, env=os.environ
            )
            seconds[level], hardware = json.loads(done.stdout)
        for level in LEVELS:
            ratios[level].append(seconds[level] / seconds["off"])
    print(f"{hardware}, one thread, BYOT on the default study, 20 epochs, n = {rounds}, {datetime.date.today()}\n")
    print("| level | time against off, median (min to max) |\n| --- | --- |")
    for level, values in ratios.items():
        print(f"| {level} | {median(values):.2f} ({min(values):.2f} to {max(values):.2f}) |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
