"""Other images of each label, as `Step.positives`; how many is the hyper-parameter `positives`."""

from typing import TYPE_CHECKING, Any

from selfdistill.training.needs import Batch, Need, Seen
from selfdistill.training.plan import Draw, Rows, same_class

if TYPE_CHECKING:
    from selfdistill.training.engine import Run


class Positives(Need):
    def __init__(self, method: Any) -> None:
        super().__init__(method)
        self.names = [f"positive {i}" for i in range(1, method.positives + 1)]

    def streams(self, draw: Draw) -> dict[str, Rows]:
        streams = {}
        for i, name in enumerate(self.names, start=1):
            # "mate": what seeds derive from keeps its old word, or the bits of every run would change
            others = same_class(draw.labels, draw.images, draw.generator(f"mate {i}"))
            streams[name] = draw.stream(others, f"augmentation of mate {i}")
        return streams

    def forwarded(self, batch: Batch) -> list[str]:
        return self.names

    def given(self, run: "Run", seen: Seen) -> dict[str, Any]:
        return {"positives": [seen.outputs[name] for name in self.names]}
