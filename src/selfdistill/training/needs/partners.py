"""Images blended with others of their batch by the method's `mix`; `alpha` is that of the Beta distribution of shares.

The method gets `Step.partner_targets`, the labels that were mixed in, and `Step.share`, of each image's own label.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from selfdistill.seeds import derived_seed
from selfdistill.training.needs import Batch, Need
from selfdistill.training.plan import Draw, Rows, rows

if TYPE_CHECKING:
    from selfdistill.training.engine import Run


class Partners(Need):
    def streams(self, draw: Draw) -> dict[str, Rows]:
        """partner: the rows of main in another order within each batch, with share, N, and box, N x 2 in [0, 1),
        drawn once a batch."""
        seed = derived_seed(draw.seed, f"mixing/{draw.epoch}")
        partner, share, box = draw_mixing(len(draw.labels), draw.batch_size, self.method.alpha, seed)
        return {"partner": {**rows(draw.main, partner), "share": share, "box": box}}

    def blended(self, run: "Run", images: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        partners = run.normalise(batch["partner"])
        images, share = self.method.mix(images, partners, batch["partner/share"], batch["partner/box"])
        return images, {"share": share, "partner_targets": batch["partner/targets"]}


def draw_mixing(count: int, batch_size: int, alpha: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The row of each row's partner, int64 N, and share, N, and box, N x 2 in [0, 1), of its batch."""
    generator = np.random.Generator(np.random.PCG64(seed))
    starts = range(0, count, batch_size)
    sizes = [min(batch_size, count - start) for start in starts]
    partner = np.concatenate([start + generator.permutation(size) for start, size in zip(starts, sizes, strict=True)])
    share = np.repeat(generator.beta(alpha, alpha, len(sizes)), sizes)
    box = np.repeat(generator.random((len(sizes), 2)), sizes, axis=0)
    return torch.from_numpy(partner), torch.from_numpy(share).float(), torch.from_numpy(box).float()
