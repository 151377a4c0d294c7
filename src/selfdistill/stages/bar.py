"""A training's progress on the screen."""

import sys

from tqdm import tqdm

from selfdistill.training.progress import Progress


class Bar(Progress):
    """A bar of epochs with the last loss and validation accuracy, on a terminal; what was resumed, everywhere."""

    def __init__(self, shown: bool) -> None:
        self.bar = tqdm(unit="epoch", disable=None if shown else True, leave=False)

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def resumed(self, epoch: int, epochs: int, step: int) -> None:
        tqdm.write(f"resumed at epoch {epoch + 1} of {epochs}, step {step + 1}", file=sys.stdout)
        self.bar.total, self.bar.n = epochs, epoch

    def epoch_over(self, row: dict[str, float], epochs: int) -> None:
        self.bar.total = epochs
        self.bar.update()
        self.bar.set_postfix(loss=f"{row['loss']:.3f}", validation=f"{row['validation_accuracy']:.1%}")
