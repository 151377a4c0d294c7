"""The learning rate as a function of the share of a phase that is over."""

import math


def learning_rate(
    progress: float,
    *,
    peak: float,
    schedule: str,
    warmup: float,
    milestones: list[float],
    decay: float,
) -> float:
    """Linear warm-up from 0 to `peak`, then a half cosine to 0, or a factor `decay` at each milestone.

    progress: share of the phase's steps that are over, in [0, 1); warmup: share spent warming up;
    milestones: shares, for schedule "steps".
    """
    if progress < warmup:
        return peak * progress / warmup
    if schedule == "steps":
        return peak * decay ** sum(progress >= m for m in milestones)
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))
