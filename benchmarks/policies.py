"""Images a second that RandAugment and AutoAugment take, on made batches.

    python benchmarks/policies.py [--device cpu] [--batch 64] [--side 32] [--rounds 7]

Prints a Markdown table: median, least and most over rounds of 20 batches, one thread.
"""

import argparse
import datetime
import time
from statistics import median

import torch

from selfdistill.host import hardware
from selfdistill.training.policy import AutoAugment, RandAugment, apply_policy

BATCHES = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    shape = given.batch, 3, given.side, given.side
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8).to(given.device)
    print(f"{hardware(given.device)}, PyTorch {torch.__version__}, batches of {given.batch}, {given.side} px, ", end="")
    print(f"n = {given.rounds} rounds of {BATCHES} batches, {datetime.date.today()}\n")
    print("| policy | images/s |\n| --- | --- |")
    for name, policy in (("randaugment, 2 of magnitude 9", RandAugment(2, 9)), ("autoaugment", AutoAugment())):
        drawn = [policy.draw(given.batch, generator) for _ in range(BATCHES)]
        rates = []
        for _ in range(given.rounds + 1):
            started = time.perf_counter()
            for codes in drawn:
                made = apply_policy(policy, images, codes)
            made.sum().item()
            rates.append(given.batch * BATCHES / (time.perf_counter() - started))
        found = rates[1:]  # the first warms up
        print(f"| {name} | {median(found):,.0f} ({min(found):,.0f} to {max(found):,.0f}) |")


if __name__ == "__main__":
    main()
