"""
Derivatives of probabilities by logits, where plain arithmetic loses them.

A probability p near 1 has the derivative p (1 - p) by its logit. In float32, 1 - p has no digits
left below 1e-7, and a derivative of 1e-34 leaves the range on its way through a head. So the
derivative is computed as a logarithm in float64 and split in two: numbers of size one, which go
through the head, and a power of two, by which the finished map is multiplied.

Shape shorthand: N detections, M logits of each, T targets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "Probability",
    "geometric_mean",
    "linearised",
    "loses_digits",
    "mean",
    "rescaled",
    "sigmoid",
    "softmax",
]

# A derivative this close to the least number of its dtype (512 of it, 6e-36 in float32, which a
# sigmoid reaches at a logit of 81) is lost when it is multiplied by weights and features.
_RESERVE_BITS = 9

# A map of 1 - p, with this many roundings of 1 in it, is off by a thousandth.
_ROUNDINGS = 1000


class Slope(NamedTuple):
    """
    Derivative of probabilities by M logits each.

    Attributes:
        sign: (..., M), -1 or 1.
        log: (..., M) float64, natural logarithm of the size; -inf for zero.
    """

    sign: Tensor
    log: Tensor


class Probability(NamedTuple):
    """
    Probabilities, as functions of one tensor of logits or several.

    Attributes:
        log: (...) float64, natural logarithm.
        slopes: the derivative by each of the tensors.
    """

    log: Tensor
    slopes: list[Slope]


def softmax(logits: Tensor, labels: Tensor) -> Probability:
    """
    Of one class of a softmax.

    Args:
        logits: (..., M).
        labels: (...) int64, the class of each.
    """
    logs = logits.detach().double().log_softmax(dim=-1)
    labels = labels[..., None]
    own = logs.gather(-1, labels)
    # p (1 - p) by its own logit, 1 - p as the sum of the others, and -p q by another one's.
    others = logs.scatter(-1, labels, -torch.inf).logsumexp(dim=-1, keepdim=True)
    sign = torch.full_like(logs, -1).scatter(-1, labels, 1.0)
    return Probability(own[..., 0], [Slope(sign, own + logs.scatter(-1, labels, others))])


def sigmoid(logits: Tensor, labels: Tensor) -> Probability:
    """Of one class among sigmoids, see :func:`softmax`."""
    labels = labels[..., None]
    own = logits.detach().double().gather(-1, labels)
    log = F.logsigmoid(own)
    none = torch.full_like(logits, -torch.inf, dtype=torch.float64)
    slope = none.scatter(-1, labels, log + F.logsigmoid(-own))
    return Probability(log[..., 0], [Slope(torch.ones_like(none), slope)])


def mean(of_stages: Probability) -> Probability:
    """
    Arithmetic mean over S stages, of (N, S) probabilities by (N, S, M) logits; its slope is by
    (N, S M) of them.
    """
    share = math.log(of_stages.log.shape[1])
    slopes = [Slope(sign.flatten(1), (log - share).flatten(1)) for sign, log in of_stages.slopes]
    return Probability(of_stages.log.logsumexp(dim=1) - share, slopes)


def geometric_mean(parts: Sequence[Probability]) -> Probability:
    """Geometric mean; the slopes are those of all parts, one after the other."""
    log = torch.stack([part.log for part in parts]).mean(dim=0)
    # d p = p / count * (d part) / part
    shares = [(log - part.log - math.log(len(parts)))[:, None] for part in parts]
    slopes = [
        slope._replace(log=slope.log + share)
        for part, share in zip(parts, shares, strict=True)
        for slope in part.slopes
    ]
    return Probability(log, slopes)


def linearised(probability: Probability, logits: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """
    Something to differentiate in the place of probabilities.

    Args:
        probability: of N detections.
        logits: for each of its slopes the tensor (N, M), with a graph.

    Returns:
        values (N,), linear in the logits, and exponents (N,) float64: the derivative of a
        probability is ``2 ** exponent`` times that of its value, whose largest entry by the logits
        is 1 to 2 in size.
    """
    top = reduce(torch.maximum, [slope.log.amax(dim=1) for slope in probability.slopes])
    exponents = (top / math.log(2)).floor().nan_to_num(0, neginf=0)
    values = []
    for (sign, log), of_slope in zip(probability.slopes, logits, strict=True):
        seeds = sign * (log - exponents[:, None] * math.log(2)).exp()
        values.append((of_slope * seeds.to(of_slope.dtype)).sum(dim=1))
    return reduce(torch.add, values), exponents


def loses_digits(probabilities: Tensor) -> Tensor:
    """
    Which probabilities, any shape, are so near 0 or 1 that differentiating them as they were
    computed is wrong by a thousandth or more.
    """
    limits = torch.finfo(probabilities.dtype)
    high = 1 - probabilities < _ROUNDINGS * limits.eps
    return high | (probabilities < limits.tiny * 2**_RESERVE_BITS)


def rescaled(values: Tensor, exponents: Tensor) -> tuple[Tensor, Tensor]:
    """
    Finished maps of probabilities.

    Args:
        values: (N, T, h, w), maps of what :func:`linearised` gave; other maps with exponent 0.
        exponents: (N, T).

    Returns:
        The values times ``2 ** exponents``, and which maps (N, T) the dtype cannot hold.
    """
    limits = torch.finfo(values.dtype)
    lost = exponents < math.log2(limits.tiny) + _RESERVE_BITS
    if not values.numel():
        return values, lost
    # In two halves: a power of two below the range may still be that of a map within it.
    half = (exponents / 2).floor()
    halves = torch.stack([half, exponents - half])[..., None, None]
    first, second = halves.exp2().to(values.dtype)
    maps = (values * first).mul_(second)
    before, after = (x.abs().amax(dim=(-2, -1)) for x in (values, maps))
    return maps, lost | ((exponents < 0) & (before > 0) & (after < limits.tiny))
