"""How long a network takes to classify, up to each exit, on the machine at hand."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfdistill.evaluation.probed import Probed

ABOUT = {
    "title": "Latency",
    "needs": ["network"],
    "settings": {"repeats": {"default": 30, "allowed": [5, 1000]}},
    "keys": {"exit": "Exit", "batch": "Batch", "host": "On"},
    "numbers": {
        "median": {"title": "Median", "unit": "ms", "better": None, "judged": False},
        "first_quartile": {"title": "First quartile", "unit": "ms", "better": None, "judged": False},
        "third_quartile": {"title": "Third quartile", "unit": "ms", "better": None, "judged": False},
    },
}
BATCHES = (1, 64)
WARM_UP = 3  # rounds that are not counted


def analyse(inputs: "Probed", repeats: int) -> list[dict[str, Any]]:
    """One row an exit and batch: quartiles of the milliseconds of one pass, of so many, with one thread.

    Every round takes each exit and batch once, so that a machine whose speed drifts favours none.
    """
    import torch

    from selfdistill.host import hardware

    data, network = inputs.dataset, inputs.network.eval()
    images = {
        batch: data.normalise(torch.zeros(batch, data.channels, *data.size, dtype=torch.uint8, device=inputs.device))
        for batch in BATCHES
    }
    exits = [network.exit_module(i) for i in range(network.exit_count)]
    seconds: dict[tuple[str, int], list[float]] = {(name, batch): [] for name in inputs.exits for batch in BATCHES}
    wait: Callable[[], object] = torch.cuda.synchronize if inputs.device.startswith("cuda") else lambda: None
    with one_thread(), torch.inference_mode():
        for turn in range(WARM_UP + repeats):
            for name, module in zip(inputs.exits, exits, strict=True):
                for batch in BATCHES:
                    start = time.perf_counter()
                    module(images[batch])
                    wait()
                    if turn >= WARM_UP:
                        seconds[name, batch].append(time.perf_counter() - start)
    rows = []
    for (name, batch), taken in seconds.items():
        low, median, high = (1000 * value for value in statistics.quantiles(taken, n=4, method="inclusive"))
        row = {"median": median, "first_quartile": low, "third_quartile": high}
        rows.append({"exit": name, "batch": batch, "host": hardware(inputs.device), **row})
    return rows


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch computes with one thread."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
