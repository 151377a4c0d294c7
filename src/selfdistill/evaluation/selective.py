"""Selective classification: how often a network is wrong on the images of which it is most sure."""

import math

import torch
from torch import Tensor

from selfdistill.evaluation.calibration import shared_by_ties


def risks(confidence: Tensor, wrong: Tensor) -> Tensor:
    """The share of wrong answers among the i most confident ones, for i from 1 to N; float64 N.

    confidence: N, any number that rises with it, such as `log_odds`; wrong: N, 0 or 1.  Images of equal confidence come
    in random order, and the share is the expected one.
    """
    confidence, order = confidence.double().sort(descending=True)
    return share_of_first(shared_by_ties(confidence, wrong[order]))


def share_of_first(wrong: Tensor) -> Tensor:
    return wrong.double().cumsum(0) / torch.arange(1, len(wrong) + 1)


def selective(confidence: Tensor, wrong: Tensor, risk: float, coverage: float) -> dict[str, float]:
    """Of confidences and wrong answers (0 or 1), N each:

    aurc: the mean of `risks` over all coverages i / N (Geifman and El-Yaniv, NeurIPS 2017); e_aurc: what it has more
    than with the same answers in the best order, all right ones first (Geifman et al., ICLR 2019, there by an
    integral); coverage_at_risk: the largest coverage whose risk is at most `risk`, 0 for none; risk_at_coverage: the
    risk at the smallest coverage that is at least `coverage`.  All are NaN where a confidence is.
    """
    if confidence.isnan().any():
        return dict.fromkeys(("aurc", "e_aurc", "coverage_at_risk", "risk_at_coverage"), math.nan)
    found, best = risks(confidence, wrong), share_of_first(wrong.sort().values)
    images, area = len(found), found.mean().item()
    allowed = (found <= risk + 1e-12).nonzero()  # a share such as 0.05 is no binary fraction
    place = max(1, math.ceil(coverage * images - 1e-9))
    return {
        "aurc": area,
        "e_aurc": max(area - best.mean().item(), 0.0),
        "coverage_at_risk": (allowed[-1].item() + 1) / images if len(allowed) else 0.0,
        "risk_at_coverage": found[place - 1].item(),
    }
