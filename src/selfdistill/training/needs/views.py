"""Every image twice, augmented differently, as `Step.views`."""

from typing import TYPE_CHECKING, Any

from selfdistill.training.needs import Batch, Need, Seen
from selfdistill.training.plan import Draw, Rows

if TYPE_CHECKING:
    from selfdistill.training.engine import Run

SECOND = "view 1"


class Views(Need):
    def streams(self, draw: Draw) -> dict[str, Rows]:
        return {SECOND: draw.stream(draw.images, "augmentation of view 1")}

    def forwarded(self, batch: Batch) -> list[str]:
        return [SECOND]

    def given(self, run: "Run", seen: Seen) -> dict[str, Any]:
        return {"views": [seen.outputs["main"], seen.outputs[SECOND]]}
