"""
Odam-Train (Zhao and Chan, "ODAM", ICLR 2023, section 3.3): heat maps of detections of one object
should agree, and those of different objects should differ.

Everything here is about the positives of *one* image: pairs are never formed across images. Each
ground-truth object has a reference, its positive whose predicted box fits best, and

    consistency = -IoU[j] / IoU[reference] * log(correlation(reference, j)),  j of the same object
    separation  = -log(1 - correlation(reference, j)),  j of another object, boxes overlapping

Shape shorthand: N positives of an image, (h, w) the grid on which their maps are compared, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Pairs", "consistency", "object_pairs", "pair_auc", "references", "separation"]


@dataclass(frozen=True)
class Pairs:
    """
    Pairs of maps.

    Attributes:
        correlation: (P,), cosine of the two maps, in [0, 1]; zero where one of them is zero.
        weight: (P,), what the pair counts.
    """

    correlation: Tensor
    weight: Tensor

    def __len__(self) -> int:
        return len(self.correlation)

    @classmethod
    def cat(cls, pairs: Sequence[Pairs]) -> Pairs:
        """Pairs of several images, one or more."""
        return cls(torch.cat([p.correlation for p in pairs]), torch.cat([p.weight for p in pairs]))


def references(objects: Tensor, ious: Tensor) -> Tensor:
    """
    The positive of each object with the highest IoU, the first of equals.

    Args:
        objects: (N,) int64, which object each positive belongs to; M different numbers.
        ious: (N,), IoU of the predicted box and the object.

    Returns:
        (M,) indices of positives, by increasing number of their objects.
    """
    order = ious.argsort(stable=True, descending=True)
    objects = objects[order]
    first = torch.ones_like(objects, dtype=torch.bool)
    by_object = objects.argsort(stable=True)
    first[1:] = objects[by_object][1:] != objects[by_object][:-1]
    return order[by_object[first]]


def object_pairs(
    maps: Tensor, objects: Tensor, ious: Tensor, overlaps: Tensor, min_overlap: float = 0.0
) -> tuple[Pairs, Pairs]:
    """
    Every object's reference with its other positives, and with those of other objects.

    Args:
        maps: (N, h, w), not negative.
        objects: (N,) int64, as for :func:`references`.
        ious: (N,), IoU of the predicted box and the object.
        overlaps: (N, N), IoU of the predicted boxes.
        min_overlap: pairs of different objects count where this is less than their overlap.

    Returns:
        Pairs of the same object, with IoU relative to the reference's as weight, and pairs of
        different objects, with weight one.
    """
    best = references(objects, ious)
    flat = F.normalize(maps.flatten(1), dim=1)
    correlation = flat[best] @ flat.t()  # (M, N)
    same = objects == objects[best][:, None]
    other = ~same & (overlaps[best] > min_overlap)
    same = same.index_put((torch.arange(len(best), device=best.device), best), same.new_zeros(()))
    # No box on its object at all: nothing to be relative to, and nothing to learn from.
    weight = ious / ious[best].clamp(min=torch.finfo(ious.dtype).eps)[:, None]
    ones = torch.ones_like(correlation)
    return (
        Pairs(correlation[same], weight.expand_as(correlation)[same].to(correlation)),
        Pairs(correlation[other], ones[other]),
    )


def consistency(pairs: Pairs, clamp: float) -> Tensor:
    """
    Mean of ``-weight * log(correlation)``; zero, with a graph, without pairs.

    Args:
        pairs: of the same object.
        clamp: correlations are held within [clamp, 1 - clamp], where the loss is finite.
    """
    return _mean(-pairs.weight * pairs.correlation.clamp(clamp, 1 - clamp).log())


def separation(pairs: Pairs, clamp: float) -> Tensor:
    """
    Mean of ``-weight * log(1 - correlation)``, see :func:`consistency`.

    Args:
        pairs: of different objects.
    """
    return _mean(-pairs.weight * (1 - pairs.correlation.clamp(clamp, 1 - clamp)).log())


def _mean(values: Tensor) -> Tensor:
    return values.sum() / max(1, len(values))


def pair_auc(same: Tensor, different: Tensor) -> float:
    """
    Probability that two maps of the same object correlate more than two of different objects do,
    ties counting half: the area under the ROC curve (Mann and Whitney's U).

    Args:
        same: (P,) correlations.
        different: (Q,) correlations.

    Returns:
        In [0, 1]; nan without pairs of either kind.
    """
    if not len(same) or not len(different):
        return float("nan")
    ordered = different.detach().double().sort().values
    same = same.detach().double().contiguous()
    below = torch.searchsorted(ordered, same, side="left")
    up_to = torch.searchsorted(ordered, same, side="right")
    return float((below + up_to).double().mean() / (2 * len(ordered)))
