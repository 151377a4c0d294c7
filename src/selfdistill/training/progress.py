"""What a training reports while it runs."""


class Progress:
    """Is told by the loop, in the first process only; this class does nothing with it."""

    def resumed(self, epoch: int, epochs: int, step: int) -> None:
        """The training goes on from a checkpoint: epochs that are over, of how many, and steps of the next one."""

    def epoch_over(self, row: dict[str, float], epochs: int) -> None:
        """row: the epoch's line of the history; epochs: of the whole training."""
