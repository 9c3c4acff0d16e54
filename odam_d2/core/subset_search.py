"""
Visual Precision Search: in which order do regions of an image bring a decision back, when they are
seen alone, and take it away, when they are not? (Chen et al., "Interpreting Object-level Foundation
Models via Visual Precision Search", CVPR 2025.)
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Search", "greedy_search", "passes_of"]


class Search(NamedTuple):
    """
    What was found out about R regions.

    Attributes:
        order: of those that were chosen, the first one first.
        scores: float64, of no region, of each that was chosen and those before it, and of all.
    """

    order: list[int]
    scores: list[float]

    def heat(self, regions: int) -> Tensor:
        """
        (R,) float64: how far the scores still go after each region, in the sum of the sizes of
        their steps; 0 for the last one, and for all that were not chosen.
        """
        steps = torch.tensor(self.scores, dtype=torch.float64).diff().abs()
        left = steps.flip(0).cumsum(0).flip(0)[1:]  # after each of the chosen ones
        found = torch.zeros(regions, dtype=torch.float64)
        found[self.order] = left[: len(self.order)]
        return found


def passes_of(regions: int, max_passes: int) -> int:
    """Passes that a search takes, without the two of all and of no region."""
    used = 0
    for left in range(regions, 0, -1):
        if used + 2 * left > max_passes:
            break
        used += 2 * left
    return used


def greedy_search(value: Callable[[Tensor], Tensor], regions: int, max_passes: int) -> Search:
    """
    Choose regions one by one, each time the one with the largest score of itself and those before
    it: the value when they are seen alone (the clue), plus 1 less the value when they are not seen
    (the collaboration).

    Args:
        value: gets subsets (B, R) bool, those that are seen; returns (B,).
        regions: R.
        max_passes: subsets that may be looked at; what is left then is chosen all at once.
    """
    chosen = torch.zeros(regions, dtype=torch.bool)

    def scores_of(subsets: Tensor) -> Tensor:
        clue, without = value(torch.cat([subsets, ~subsets])).double().chunk(2)
        return clue + 1 - without

    order: list[int] = []
    none, whole = scores_of(torch.stack([chosen, ~chosen])).tolist()
    scores, left = [none], passes_of(regions, max_passes)
    while left:
        rest = (~chosen).nonzero().squeeze(1)
        subsets = chosen.repeat(len(rest), 1)
        subsets[torch.arange(len(rest)), rest] = True
        found = scores_of(subsets)
        best = int(found.argmax())
        order.append(int(rest[best]))
        scores.append(float(found[best]))
        chosen[rest[best]] = True
        left -= 2 * len(rest)
    return Search(order, [*scores, whole])
