"""What is told while a training runs."""


class Progress:
    """Gets word from the loop, in the first process alone; this one passes nothing on."""

    def resumed(self, epoch: int, epochs: int, step: int) -> None:
        """The training goes on from a checkpoint: epochs that are over, of how many, and steps of the next one."""

    def epoch_over(self, row: dict[str, float], epochs: int) -> None:
        """row: the epoch's line of the history; epochs: of the whole training."""
