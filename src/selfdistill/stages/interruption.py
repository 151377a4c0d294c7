"""SIGTERM and SIGINT, taken at the next step rather than in the middle of one."""

import os
import signal
from types import FrameType, TracebackType
from typing import Any


class Interruption:
    """While it is entered, the first SIGTERM or SIGINT is noted in `received`; a second one acts as usual,
    except under torchrun, which passes on what the whole group of processes has received already.

    Outside the main thread, where Python handles no signals, it does nothing.
    """

    def __init__(self) -> None:
        self.received = 0
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self.before[number] = signal.signal(number, self.note)
            except ValueError:
                break
        return self

    def note(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            self.restore()

    def restore(self) -> None:
        while self.before:
            signal.signal(*self.before.popitem())

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.restore()
