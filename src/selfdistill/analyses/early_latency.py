"""Accuracy against measured time when an image leaves at the first exit that is sure of it."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from selfdistill.analyses.anytime import CONFIDENCE, EXIT, LEVELS, LOSSLESS, share
from selfdistill.analyses.latency import BATCHES, one_thread
from selfdistill.evaluation.exits import exit_names

if TYPE_CHECKING:
    from torch import Tensor

    from selfdistill.evaluation.probed import Probed

ABOUT = {
    "title": "Early exit, timed",
    "needs": ["network", "own"],
    "settings": {
        "images": {"default": 256, "allowed": [64, 10000]},
        "repeats": {"default": 3, "allowed": [1, 100]},
    },
    "keys": {"rule": "Images leave by", "at": "At", "batch": "Batch", "host": "On"},
    "numbers": {
        "accuracy": {"title": "Test accuracy", "unit": "%", "better": "higher", "judged": False},
        "milliseconds": {"title": "Time an image", "unit": "ms", "better": None, "judged": False, "digits": 3},
        "threshold": {"title": "Threshold", "unit": "", "better": None, "judged": False, "digits": 4, "shown": "csv"},
    },
}


def analyse(inputs: "Probed", images: int, repeats: int) -> list[dict[str, Any]]:
    """One row a batch size and fixed exit; with several exits, also one for each of LEVELS with the largest common
    threshold that keeps this budget on the validation images, and one with the smallest that loses none of the deepest
    exit's accuracy there.

    accuracy: of all test images.  milliseconds: the median of so many passes over the same `images` test images at
    most, with one thread.  Every pass takes each rule and batch size once, so that a machine whose speed drifts favours
    none.
    """
    import torch

    from selfdistill.evaluation import anytime
    from selfdistill.host import hardware

    network, data, names = inputs.network.eval(), inputs.dataset, inputs.exits
    whole = inputs.test(1_000_000)
    logits = inputs.logits(whole, "test")
    sure, correct = anytime.confidence(logits), logits.argmax(dim=2) == whole.labels.cpu()
    timed = data.normalise(whole.images[:images])
    rules: list[tuple[dict[str, Any], Callable[[Tensor], object]]] = [
        ({"rule": EXIT, "at": name, "accuracy": correct[k].double().mean().item()}, network.exit_module(k))
        for k, name in enumerate(names)
    ]
    for at, threshold in thresholds(inputs) if len(names) > 1 else ():
        each = [threshold] * (len(names) - 1)
        accuracy = share(correct, anytime.exits_taken(sure, each))
        row = {"rule": CONFIDENCE, "at": at, "accuracy": accuracy, "threshold": threshold}
        rules.append((row, leaving(inputs, each)))
    seconds: dict[tuple[int, int], list[float]] = {(k, b): [] for b in BATCHES for k in range(len(rules))}
    wait: Callable[[], object] = torch.cuda.synchronize if inputs.device.startswith("cuda") else lambda: None
    with one_thread(), torch.inference_mode():
        for turn in range(1 + repeats):
            for (k, batch), taken in seconds.items():
                start = time.perf_counter()
                for some in timed.split(batch):
                    rules[k][1](some)
                wait()
                if turn:  # the first warms up
                    taken.append((time.perf_counter() - start) / len(timed))
    host = hardware(inputs.device)
    return [
        {**rules[k][0], "batch": batch, "host": host, "milliseconds": 1000 * statistics.median(taken)}
        for (k, batch), taken in seconds.items()
    ]


def leaving(inputs: "Probed", each: Sequence[float]) -> "Callable[[Tensor], object]":
    """Runs a batch of which images leave by these thresholds."""
    from selfdistill.evaluation.anytime import leave_early

    return lambda images: leave_early(inputs.network, images, each)


def thresholds(inputs: "Probed") -> Iterator[tuple[str, float]]:
    """Common ones, chosen on the run's validation images as `anytime` does, and what each is for."""
    from selfdistill.evaluation import anytime
    from selfdistill.evaluation.splits import ClassImages

    macs = anytime.leaving_macs(inputs.network)
    images = ClassImages(*inputs.splits().validation)
    logits = inputs.logits(images, "validation")
    sure, right = anytime.confidence(logits), logits.argmax(dim=2) == images.labels.cpu()
    for level in LEVELS:
        yield f"{level} %", anytime.budget_threshold(sure, macs, macs[0] + level / 100 * (macs[-1] - macs[0]))
    yield LOSSLESS, anytime.lossless_threshold(sure, right)


def contradictions(run: dict[str, Any], rows: list[dict[str, Any]]) -> Iterator[str]:
    """In what rows do not fit the run that they are said to be of."""
    names = exit_names(run)
    levels = [*(f"{level} %" for level in LEVELS), LOSSLESS] if len(names) > 1 else []
    rules = [*((EXIT, name) for name in names), *((CONFIDENCE, at) for at in levels)]
    wanted = [(*rule, batch) for batch in BATCHES for rule in rules]
    if (found := [(row["rule"], row["at"], row["batch"]) for row in rows]) != wanted:
        yield f"rows {found} are not allowed; allowed: {wanted}"


def draw(ax, table, style) -> None:
    """A line a variant and batch size, of the thresholds that keep a budget; hollow points: fixed exits; a star: the
    threshold without loss on the validation images; the control, without exits, as a point."""
    for variant in style.with_exits(table[table.batch == BATCHES[0]]):
        look = style.looks[variant]
        for batch, line in zip(BATCHES, ("-", ":"), strict=True):
            rows = table[(table.variant == variant) & (table.batch == batch)]
            fixed, free = rows[rows.rule == EXIT], rows[rows["at"] == LOSSLESS]
            chosen = fixed if len(rows) == 1 else rows[(rows.rule == CONFIDENCE) & (rows["at"] != LOSSLESS)]
            named = {"label": rows.title.iloc[0]} if batch == BATCHES[0] else {}
            key = style.key
            ax.plot(chosen.milliseconds, chosen[key], look.marker + line, color=look.colour, markersize=5, **named)
            if len(rows) > 1:
                ax.plot(fixed.milliseconds, fixed[key], look.marker, color=look.colour, mfc="white", markersize=6)
                ax.plot(free.milliseconds, free[key], "*", color=look.colour, markersize=13, mec="white", zorder=4)
    ax.set_xscale("log")
    ax.set_xlabel("milliseconds an image, one thread; solid: one at a time, dotted: batches of 64")
    ax.set_ylabel(f"test {style.words} (%)")
    ax.set_title(f"{style.words.capitalize()} against measured time")
    style.legend(ax)
