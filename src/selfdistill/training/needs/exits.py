"""A classifier after every section of the network."""

from typing import TYPE_CHECKING

from selfdistill.training.needs import Need

if TYPE_CHECKING:
    from selfdistill.training.engine import Run


class Exits(Need):
    """The code that builds the network adds the exits; this need checks that they are there."""

    def misfit(self, run: "Run") -> str | None:
        return "the network has 1 exit; allowed: 2 or more" if run.network.exit_count < 2 else None
