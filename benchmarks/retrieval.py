"""Time and peak memory of retrieval at Market-1501's size: 3,368 queries, a gallery of 15,913.

    python benchmarks/retrieval.py [--widths 512 2048] [--threads 2] [--rounds 3]

Features are made: a random centre an identity and noise of twice its length, 750 identities over 6 cameras
with 13,115 gallery images, and 2,798 distractors that are noise alone.  Euclidean distances.  Every
measurement is a process of its own, features made before the clock starts; its memory is the whole process'
largest resident set, PyTorch and the features included.  Prints a Markdown table of medians over rounds.

Measured on an AMD EPYC (family 25, model 17), 2 cores that other processes used as well (load about 3),
2 threads, n = 3, 2026-11-21; the bar is 60 s and 4 GB for distances and metrics:

| features | re-ranked | distances, s | re-ranking, s | metrics, s | all, s (min to max) | peak, GB |
| ---: | --- | ---: | ---: | ---: | ---: | ---: |
| 512 | no | 2.9 | 0.0 | 6.8 | 9.5 (9.2 to 13.7) | 0.74 |
| 512 | yes | 7.8 | 2.2 | 2.5 | 12.4 (12.3 to 13.9) | 2.08 |
| 2048 | no | 2.9 | 0.0 | 2.4 | 5.4 (5.3 to 5.4) | 1.07 |
| 2048 | yes | 23.0 | 5.0 | 5.8 | 34.7 (23.4 to 49.7) | 2.44 |
"""

import argparse
import datetime
import json
import os
import resource
import subprocess
import sys
import time
from itertools import pairwise
from statistics import median

import torch

from selfdistill.evaluation.retrieval import euclidean_distances, re_rank, retrieval_metrics
from selfdistill.host import hardware

QUERIES, IDENTITIES, CAMERAS, POSITIVES, DISTRACTORS = 3368, 750, 6, 13115, 2798


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.measure:
        print(json.dumps(measure(int(wanted.measure[0]), wanted.measure[1] == "yes")))
        return
    print(
        f"{hardware('cpu')}, {os.cpu_count()} cores, {wanted.threads} threads, n = {wanted.rounds}, "
        f"{datetime.date.today()}\n"
    )
    print("| features | re-ranked | distances, s | re-ranking, s | metrics, s | all, s (min to max) | peak, GB |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    for width in wanted.widths:
        for again in ("no", "yes"):
            command = [sys.executable, __file__, "--measure", str(width), again]
            environment = {**os.environ, "OMP_NUM_THREADS": str(wanted.threads)}
            found = [
                json.loads(subprocess.run(command, check=True, capture_output=True, env=environment).stdout)
                for _ in range(wanted.rounds)
            ]
            steps = [f"{median(f[step] for f in found):.1f}" for step in ("distances", "re_ranking", "metrics")]
            whole = [f["distances"] + f["re_ranking"] + f["metrics"] for f in found]
            print(
                f"| {width} | {again} | {' | '.join(steps)} | {median(whole):.1f} ({min(whole):.1f} to "
                f"{max(whole):.1f}) | {max(f['peak'] for f in found):.2f} |",
                flush=True,
            )


def measure(width: int, again: bool) -> dict[str, float]:
    """Seconds of each step, and the peak memory in GB."""
    features, identities, cameras = made(width)
    labels = identities[:QUERIES], cameras[:QUERIES], identities[QUERIES:], cameras[QUERIES:]
    clock = [time.perf_counter()]
    if again:
        distances = euclidean_distances(features, features)
        clock.append(time.perf_counter())
        distances = re_rank(distances, QUERIES)
    else:
        distances = euclidean_distances(features[:QUERIES], features[QUERIES:])
        clock.append(time.perf_counter())
    clock.append(time.perf_counter())
    metrics = retrieval_metrics(distances, *labels)
    clock.append(time.perf_counter())
    seconds = [after - before for before, after in pairwise(clock)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"distances": seconds[0], "re_ranking": seconds[1], "metrics": seconds[2], "peak": peak, **metrics}


def made(width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features N x width, identities and cameras N; queries, positives and distractors, in this order."""
    generator = torch.Generator().manual_seed(0)
    people = torch.arange(1, IDENTITIES + 1)
    identities = torch.cat(
        [
            people.repeat(QUERIES // IDENTITIES + 1)[:QUERIES],
            people.repeat(POSITIVES // IDENTITIES + 1)[:POSITIVES],
            torch.zeros(DISTRACTORS, dtype=torch.int64),
        ]
    )
    cameras = torch.randint(1, CAMERAS + 1, identities.shape, generator=generator)
    centres = torch.randn(IDENTITIES + 1, width, generator=generator)
    centres[0] = 0
    noise = torch.randn(len(identities), width, generator=generator)
    return noise.mul_(2).add_(centres[identities]), identities, cameras


if __name__ == "__main__":
    main()
