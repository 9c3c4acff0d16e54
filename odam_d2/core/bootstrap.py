"""Ratios of means with bootstrap intervals (Efron and Tibshirani, 1993), paired where compared."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Interval", "bootstrap_weights", "difference", "group_numbers", "ratio"]

_TAIL = 0.025  # on each side of 95 %


class Interval(NamedTuple):
    """A statistic, and between which values 95 % of it lie when groups are drawn again."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: Tensor, drawn: Tensor) -> "Interval":
        """
        Args:
            value: a number.
            drawn: (D,); those that are not finite are left out.
        """
        drawn = drawn[drawn.isfinite()]
        if not len(drawn):
            return cls(float(value), torch.nan, torch.nan)
        tails = drawn.new_tensor([_TAIL, 1 - _TAIL])
        low, high = drawn.quantile(tails).tolist()
        return cls(float(value), low, high)


def bootstrap_weights(groups: int, draws: int, seed: int = 0) -> Tensor:
    """
    How often each of G groups is drawn when G are drawn with replacement: (draws, G) float64. Equal
    arguments give equal weights, so that statistics of several methods are paired.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(groups, (draws, groups), generator=generator)
    ones = torch.ones(draws, groups, dtype=torch.float64)
    return torch.zeros_like(ones).scatter_add_(1, chosen, ones)


def _ratios(above: Tensor, below: Tensor, group: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Of the sums over all rows, and over those of each draw (D,): nan where each is the same."""
    sums = torch.zeros(2, weights.shape[1], dtype=torch.float64)
    sums[0].index_add_(0, group, above.double())
    sums[1].index_add_(0, group, below.double())
    drawn = weights @ sums.T
    total = sums.sum(dim=1)
    if weights.shape[1] < 2:  # nothing varies, which says nothing of how much it would
        drawn = torch.full_like(drawn, torch.nan)
    return total[0] / total[1], drawn[:, 0] / drawn[:, 1]


def ratio(above: Tensor, below: Tensor, group: Tensor, weights: Tensor) -> Interval:
    """
    Ratio of the means of two columns of the same rows.

    Args:
        above, below: (n,).
        group: (n,) int64, rows of one group are drawn together, such as those of an image.
        weights: of :func:`bootstrap_weights`.
    """
    return Interval.of(*_ratios(above, below, group, weights))


def difference(
    first: Tensor, second: Tensor, below: Tensor, group: Tensor, weights: Tensor
) -> Interval:
    """
    First ratio less the second one, of the same rows with the same denominators.

    Args:
        first, second, below, group, weights: as for :func:`ratio`.
    """
    a, b = (_ratios(above, below, group, weights) for above in (first, second))
    return Interval.of(a[0] - b[0], a[1] - b[1])


def group_numbers(keys: Sequence) -> tuple[Tensor, int]:
    """(n,) the number of each key among the different ones in order, and how many these are."""
    known = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return torch.tensor([known[key] for key in keys], dtype=torch.int64), len(known)
