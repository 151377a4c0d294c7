"""Another image of each label, seen by the network without gradient, as `Step.pair`."""

from typing import TYPE_CHECKING, Any

from selfdistill.training.needs import Need, Seen
from selfdistill.training.plan import Draw, Rows, same_class

if TYPE_CHECKING:
    from selfdistill.training.engine import Run


class Pairs(Need):
    def streams(self, draw: Draw) -> dict[str, Rows]:
        others = same_class(draw.labels, draw.images, draw.generator("pair"))
        return {"pair": draw.stream(others, "augmentation of pairs")}

    def given(self, run: "Run", seen: Seen) -> dict[str, Any]:
        return {"pair": seen.network(run.normalise(seen.batch["pair"]))}
