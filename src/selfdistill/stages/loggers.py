"""What tells of a training while it goes on: each class of LOGGERS is told of every one."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

from tqdm import tqdm

from selfdistill.training.progress import Progress


class Logger(Progress):
    """run: MODEL/VARIANT/SEED of the training, in a search with `/TRIAL` behind it.

    Nothing that it writes belongs into the run's folder, which must come out the same again.
    """

    def __init__(self, run: str) -> None:
        self.run = run

    def close(self) -> None:
        """The training is over, or broke off."""


class Bar(Logger):
    """A bar of epochs with the last loss and validation accuracy, on a terminal; what was resumed, everywhere."""

    def __init__(self, run: str) -> None:
        super().__init__(run)
        self.bar = tqdm(unit="epoch", disable=None, leave=False)

    def close(self) -> None:
        self.bar.close()

    def resumed(self, epoch: int, epochs: int, step: int) -> None:
        tqdm.write(f"resumed at epoch {epoch + 1} of {epochs}, step {step + 1}", file=sys.stdout)
        self.bar.total, self.bar.n = epochs, epoch

    def epoch_over(self, row: dict[str, float], epochs: int) -> None:
        self.bar.total = epochs
        self.bar.update()
        self.bar.set_postfix(loss=f"{row['loss']:.3f}", validation=f"{row['validation_accuracy']:.1%}")


LOGGERS: list[type[Logger]] = [Bar]


class Every(Progress):
    """Hands on to several."""

    def __init__(self, told: list[Logger]) -> None:
        self.told = told

    def resumed(self, epoch: int, epochs: int, step: int) -> None:
        for logger in self.told:
            logger.resumed(epoch, epochs, step)

    def epoch_over(self, row: dict[str, float], epochs: int) -> None:
        for logger in self.told:
            logger.epoch_over(row, epochs)


@contextmanager
def loggers(run: str, rank: int) -> Iterator[Progress]:
    """All of LOGGERS for one training; in the first process of several alone, which is the only one that is told."""
    with ExitStack() as stack:
        yield Every([stack.enter_context(closing(kind(run))) for kind in LOGGERS] if rank == 0 else [])
