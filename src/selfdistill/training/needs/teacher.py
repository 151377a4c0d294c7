"""A trained network of the study, as `Step.teacher`."""

from typing import TYPE_CHECKING

from selfdistill.training.needs import Need

if TYPE_CHECKING:
    from selfdistill.training.engine import Run


class Teacher(Need):
    """The run forwards its teacher by itself, as it does in phases that learn from the previous one; this need checks
    that there is a teacher."""

    def misfit(self, run: "Run") -> str | None:
        return "it learns from a trained network, and there is none" if run.given_teacher is None else None
