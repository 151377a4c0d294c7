"""Loss terms that are computed partly on the CPU."""

from selfdistill.training.needs import Need


class Host(Need):
    graphable = False
