"""How a run is told to stop."""

from typing import Protocol

# the exit code of a run that was told to stop, saved its state and wants to be run again (EX_TEMPFAIL of sysexits.h)
RESUME_ME = 75


class Stop(Protocol):
    """Something that may ask a run to stop: `received` is 0, or the number of a signal."""

    received: int


class Interrupted(Exception):
    """The run was told to stop and did; the message says where, and how it goes on.  signal: which one."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal = signal_number
