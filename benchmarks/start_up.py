"""Seconds from the command to the end of the first training step, digits, one process at a time.

    python benchmarks/start_up.py [ROUNDS]

Starts `selfdistill train` on a study of its own and stops the clock at the first checkpoint, which is
written after the first step.  The digits must be prepared: dvc repro data/sets/digits/dvc.yaml:prepare
"""

import datetime
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
CELL = ["--model", "resnet10-slim", "--variant", "byot", "--seeds", "0-4"]


def main(rounds: int) -> None:
    seconds = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            text = (ROOT / "params.yaml").read_text()
            (folder / "params.yaml").write_text(text.replace("root: . ", f"root: {ROOT} ", 1))
            started = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, ROOT / "src/selfdistill", "train", *CELL],
                cwd=folder,
                env={**os.environ, "SELFDISTILL_CHECKPOINTS": str(folder / "checkpoints"), "SELFDISTILL_FRESH": "1"},
            )
            while not list(folder.glob("checkpoints/*/*.safetensors")):
                if process.poll() is not None:
                    sys.exit(f"the run ended with {process.returncode} before its first checkpoint")
                time.sleep(0.005)
            seconds.append(time.perf_counter() - started)
            process.kill()
            process.wait()
    print(
        f"{median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f}), n = {rounds}, {datetime.date.today()}, "
        "first checkpoint included"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
