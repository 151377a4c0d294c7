"""Whether intervals and verdicts keep their promises, on made studies whose truth is known.

python benchmarks/coverage.py [--studies 2000]: minutes.  In each study seeds, their samples, and the test images are
drawn: whether a network is right about an image depends on how hard the image is, on what the method makes of it, on
the run, and on chance.  Prints Markdown; the exit status is 1 if a promise is not kept.

coverage      of the 95 % interval that no family of tests widens: 93 to 97 %
false         share of studies with a wrong "improves" or "worse" where nothing differs: at most 5 %
equivalent    share that says so of a difference at the margin: at most 5 %
"""

import argparse
import sys
from itertools import product

import numpy as np

from selfdistill.summary.statistics import Effect, family, paired_effect

IMAGES = 400
HARD, OF_METHOD, CHANCE = 1.5, 0.5, 1.0  # standard deviations of what makes an image hard, on the scale of a probit
EASY = 2.2  # its mean: an accuracy near 88 %
# of a run, on the same scale: the seeds' share of the variance of a difference, at ten seeds, is near 0, .5, .8 and .95
RUNS = (0.0, 0.1, 0.2, 0.4)


def right(generator: np.random.Generator, methods: int, seeds: int, run: float, shift: float = 0.0) -> np.ndarray:
    """Whether each run is right about each image: methods x seeds x images; shift: added to the last method."""
    z = EASY + HARD * generator.normal(size=(1, 1, IMAGES))
    z = z + OF_METHOD * generator.normal(size=(methods, 1, IMAGES))
    z = z + run * generator.normal(size=(methods, seeds, 1)) + CHANCE * generator.normal(size=(methods, seeds, IMAGES))
    z[-1] += shift
    return z > 0


def contrast(answers: np.ndarray, of: int, against: int = 0) -> Effect:
    return paired_effect(100.0 * (answers[of].astype(float) - answers[against]))


def truth(run: float, shift: float) -> float:
    """The true difference, in points, that a shift makes."""
    from scipy.stats import norm

    spread = np.sqrt(HARD**2 + OF_METHOD**2 + run**2 + CHANCE**2)
    return float(100 * (norm.cdf((EASY + shift) / spread) - norm.cdf(EASY / spread)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000, help="of each kind (default: %(default)s)")
    studies, kept = parser.parse_args().studies, True
    print("| seeds | sd of a run | coverage | false | equivalent |\n| --- | --- | --- | --- | --- |")
    for seeds, run in product((5, 10), RUNS):
        generator = np.random.default_rng([seeds, int(1000 * run)])
        margin = truth(run, 0.1)
        covered = false = equivalent = 0
        for _ in range(studies):
            low, high = contrast(right(generator, 2, seeds, run), 1).interval()
            covered += low <= 0 <= high
            # three networks, ten methods, four contrasts each: all in one family
            effects = []
            for _ in range(3):
                answers = right(generator, 10, seeds, run)
                effects += [contrast(answers, of) for of in range(1, 5)]
            false += any(f.verdict in ("improves", "worse") for f in family(effects, [margin] * len(effects)))
            (found,) = family([contrast(right(generator, 2, seeds, run, 0.1), 1)], [margin])
            equivalent += found.verdict == "equivalent"
        shares = covered / studies, false / studies, equivalent / studies
        kept &= 0.93 <= shares[0] <= 0.97 and shares[1] <= 0.05 and shares[2] <= 0.05
        print(f"| {seeds} | {run} | {shares[0]:.3f} | {shares[1]:.3f} | {shares[2]:.3f} |", flush=True)
    return int(not kept)


if __name__ == "__main__":
    sys.exit(main())
