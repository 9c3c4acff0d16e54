"""
Odam-Train (Zhao and Chan, "ODAM", ICLR 2023, section 3.3): heat maps of detections of one object
should agree, and those of different objects should differ.

Pairs are never formed across images. Each ground-truth object has a reference, its positive whose
predicted box fits best, and

    consistency = -IoU[j] / IoU[reference] * log(correlation(reference, j)),  j of the same object
    separation  = -log(1 - correlation(reference, j)),  j of another object, boxes overlapping

Shape shorthand: N positives of a batch, M objects, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .boxes import box_iou

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
    maps: Tensor,
    image: Tensor,
    objects: Tensor,
    ious: Tensor,
    boxes: Tensor,
    min_overlap: float = 0.0,
) -> tuple[Pairs, Pairs]:
    """
    Every object's reference with its other positives, and with those of other objects in its image.

    All but the maps may lie on the host, where choosing pairs costs an accelerator nothing.

    Args:
        maps: (N, ...), not negative.
        image: (N,), which image each positive belongs to.
        objects: (N,) int64, as for :func:`references`.
        ious: (N,), IoU of the predicted box and the object.
        boxes: (N, 4), the predicted boxes, XYXY.
        min_overlap: pairs of different objects count where this is less than the IoU of their
            boxes.

    Returns:
        Pairs of the same object, with IoU relative to the reference's as weight, and pairs of
        different objects, with weight one.
    """
    best = references(objects, ious)
    same = objects[best][:, None] == objects
    other = (box_iou(boxes[best], boxes) > min_overlap) & ~same & (image[best][:, None] == image)
    same &= best[:, None] != torch.arange(len(objects), device=best.device)
    kinds = [kind.nonzero() for kind in (same, other)]
    # No box on its object at all: nothing to be relative to, and nothing to learn from.
    relative = ious / ious[best].clamp(min=torch.finfo(ious.dtype).eps)[:, None]
    weight = torch.cat([relative[same], torch.ones_like(relative[other])])
    row, column = torch.cat(kinds).to(maps.device).unbind(1)
    flat = F.normalize(maps.flatten(1), dim=1)
    correlation = (flat[best.to(maps.device)] @ flat.t())[row, column]
    counts = [len(kind) for kind in kinds]
    of_kinds = zip(correlation.split(counts), weight.to(correlation).split(counts), strict=True)
    of_same, of_other = (Pairs(*of_kind) for of_kind in of_kinds)
    return of_same, of_other


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
