"""Feed every reader of bytes from outside what it does not expect (`tests/fuzzing.py` says what, and what is right).

    python benchmarks/fuzz.py --cases 100000 --seed 1

Prints a line a target.  Exit code 1 if one has a failure, whose smallest example is written to `fuzz-TARGET.txt`.
"""

import argparse
import os
import sys
import time
from pathlib import Path


def run() -> int:
    parser = argparse.ArgumentParser(description="Feed every reader of bytes from outside what it does not expect.")
    parser.add_argument("--cases", type=int, default=10_000, help="in all (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: %(default)s)")
    parser.add_argument("--only", metavar="TARGET", help="one target")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from fuzzing import targets, tried

    chosen = [target for target in targets() if options.only in (None, target.name)]
    shares, failed, total = sum(target.share for target in chosen), 0, 0
    for target in chosen:
        started = time.monotonic()
        count, failure = tried(target, max(1, round(options.cases * target.share / shares)), options.seed)
        total += count
        said = "right" if failure is None else f"FAILED: {failure.splitlines()[0]}"
        print(f"{target.name}: {count:,} cases, {time.monotonic() - started:.0f} s, {said}", flush=True)
        if failure is not None:
            failed += 1
            Path(f"fuzz-{target.name.replace(' ', '-')}.txt").write_text(failure, errors="backslashreplace")
    print(f"{total:,} cases, {failed} targets with a failure")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(run())
