"""
Non-maximum suppression with a memory: which candidates stay, and who suppressed the others.

- ``nms``: a candidate goes that overlaps a kept one of its class by more than a threshold.
- ``soft_nms``: overlap lowers the score instead (Bodla et al., "Soft-NMS", ICCV 2017).
- ``odam_nms``: two candidates are the same object when their heat maps say so (Zhao and Chan,
  "ODAM", ICLR 2023, section 3.4).

Shape shorthand: N candidates of an image, n of one class. Boxes are XYXY in any one frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .boxes import box_iou
from .errors import InputError
from .ranges import check_number, check_one_of

__all__ = ["Suppression", "nms", "odam_nms", "soft_nms", "suppress"]

_UNIT = "in [0, 1]"

Correlation = Tensor | Callable[[Tensor], Tensor]
"""(N, N), or what gives the (n, n) of the candidates whose indices (n,) it gets."""


class Suppression(NamedTuple):
    """
    Attributes:
        keep: (K,) indices of the kept candidates, by decreasing score.
        scores: (K,), their scores; those of soft NMS are lowered.
        suppressor: (N,) index of the candidate that suppressed each one, -1 where it was kept, or
            where its own score was too low.
        iou: (N,), of the candidate and its suppressor; nan without one.
        correlation: (N,), likewise; nan also where no heat maps were asked for.
    """

    keep: Tensor
    scores: Tensor
    suppressor: Tensor
    iou: Tensor
    correlation: Tensor


def nms(boxes: Tensor, scores: Tensor, classes: Tensor, iou_thresh: float) -> Suppression:
    """
    Greedy NMS, each class by itself.

    Args:
        boxes: (N, 4).
        scores: (N,).
        classes: (N,).
        iou_thresh: what overlaps a kept candidate by more than this is suppressed; in [0, 1].
    """
    check_number("iou_thresh", iou_thresh, _UNIT, 0, 1)
    return suppress(boxes, scores, classes, lambda iou, _: iou > iou_thresh)


def odam_nms(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    correlation: Correlation,
    iou_thresh: float,
    sim_thresh_high: float,
    sim_thresh_low: float,
) -> Suppression:
    """
    NMS by boxes and heat maps, each class by itself.

    A candidate stays beside a kept one if the two boxes overlap by ``iou_thresh`` at most and the
    maps correlate by less than ``sim_thresh_high``, or if the boxes overlap by more and the maps
    correlate by less than ``sim_thresh_low``.

    Args:
        boxes, scores, classes: as for :func:`nms`.
        correlation: of the candidates' heat maps, in [0, 1].
    """
    limits = {"iou_thresh": iou_thresh, "sim_thresh_high": sim_thresh_high}
    for name, value in (limits | {"sim_thresh_low": sim_thresh_low}).items():
        check_number(name, value, _UNIT, 0, 1)
    if sim_thresh_high < sim_thresh_low:
        raise InputError(
            f"sim_thresh_high is {sim_thresh_high}, below sim_thresh_low, {sim_thresh_low}"
        )

    def rule(iou: Tensor, correlation: Tensor) -> Tensor:
        overlaps = iou > iou_thresh
        return (overlaps & (correlation >= sim_thresh_low)) | (correlation >= sim_thresh_high)

    return suppress(boxes, scores, classes, rule, correlation)


def suppress(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    rule: Callable[[Tensor, Any], Tensor],
    correlation: Correlation | None = None,
) -> Suppression:
    """
    Greedy suppression by any rule, each class by itself: from the highest score down, a candidate
    stays unless one that stays suppresses it. Of equal scores the first one comes first.

    Args:
        boxes: (N, 4).
        scores: (N,).
        classes: (N,).
        rule: gets the IoU (n, n) and the correlation (n, n), or None, of the candidates of a class
            and tells which candidate (row) suppresses which (column).
        correlation: of heat maps.
    """
    record = _Record(boxes)
    for index in _by_class(scores, classes):
        iou = box_iou(boxes[index], boxes[index])
        of_class = _of_class(correlation, index)
        suppresses = rule(iou, of_class).triu(diagonal=1)  # only better ones suppress
        kept = _greedy(suppresses)
        record.keep(index[kept], scores[index[kept]])
        lost = ~kept
        # The first of the kept ones that suppress it: booleans have no argmax.
        by = (suppresses[:, lost] & kept[:, None]).to(torch.uint8).argmax(dim=0)
        record.suppress(index, lost.nonzero()[:, 0], by, iou, of_class)
    return record.finish()


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    method: str = "linear",
    *,
    iou_thresh: float = 0.3,
    sigma: float = 0.5,
    score_thresh: float = 0.001,
) -> Suppression:
    """
    Soft-NMS, each class by itself: the best candidate lowers the scores of those that it overlaps,
    then the best of the others does, and so on.

    Args:
        boxes, scores, classes: as for :func:`nms`.
        method: ``"linear"``, factor ``1 - IoU`` where the IoU is ``iou_thresh`` or more;
            ``"gaussian"``, factor ``exp(-IoU^2 / sigma)`` everywhere.
        iou_thresh: in [0, 1].
        sigma: above 0.
        score_thresh: what falls to this or below goes. Its suppressor is the candidate that
            lowered its score most.
    """
    check_number("iou_thresh", iou_thresh, _UNIT, 0, 1)
    check_one_of("method", method, ("linear", "gaussian"))
    check_number("sigma", sigma, "above 0", 0, math.inf, above=True)
    record = _Record(boxes)
    for index in _by_class(scores, classes):
        iou = box_iou(boxes[index], boxes[index])
        if method == "linear":
            factor = torch.where(iou >= iou_thresh, 1 - iou, torch.ones_like(iou))
        else:
            factor = torch.exp(-(iou**2) / sigma)
        kept, lowered, by, lost = _decay(scores[index], factor, score_thresh)
        record.keep(index[kept], lowered[kept])
        record.suppress(index, lost, by[lost], iou, None)
    return record.finish()


def _decay(scores: Tensor, factor: Tensor, thresh: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """
    Args:
        scores: (n,).
        factor: (n, n), by which each candidate (row) lowers the others.

    Returns:
        Kept candidates, scores (n,), the candidate that lowered each one most (n,), and those that
        others have lowered to the threshold.
    """
    scores, kept = scores.clone(), []
    waiting = scores > thresh
    given = waiting.clone()
    lowest, by = torch.ones_like(scores), torch.zeros_like(scores, dtype=torch.int64)
    while waiting.any():
        best = int(torch.where(waiting, scores, -torch.inf).argmax())
        kept.append(best)
        waiting[best] = False
        row = torch.where(waiting, factor[best], 1)
        scores *= row
        stronger = row < lowest
        lowest, by = torch.where(stronger, row, lowest), torch.where(stronger, best, by)
        waiting &= scores > thresh
    chosen = torch.tensor(kept, dtype=torch.int64, device=scores.device)
    lost = given.clone()
    lost[chosen] = False
    return chosen, scores, by, lost.nonzero()[:, 0]


def _greedy(suppresses: Tensor) -> Tensor:
    """
    Which candidates (n,) stay, where ``suppresses`` (n, n) is strictly upper triangular.

    ``stays[j] = not any(stays[i] and suppresses[i, j])`` is asked again until nothing changes:
    every round settles at least one candidate more of each chain, so this is the greedy scan in as
    many rounds as the longest chain has links, few in practice, instead of one for each candidate.
    """
    weights = suppresses.float()
    stays = torch.ones(len(weights), dtype=torch.bool, device=weights.device)
    while True:
        again = stays.float() @ weights == 0
        if torch.equal(again, stays):
            return stays
        stays = again


def _by_class(scores: Tensor, classes: Tensor) -> list[Tensor]:
    """Indices of the candidates of each class, by decreasing score, first of equals first."""
    order = scores.argsort(descending=True, stable=True)
    order = order[classes[order].argsort(stable=True)]
    return list(order.split(classes.unique(return_counts=True)[1].tolist())) if len(order) else []


def _of_class(correlation: Correlation | None, index: Tensor) -> Tensor | None:
    if correlation is None or callable(correlation):
        return None if correlation is None else correlation(index)
    return correlation[index[:, None], index]


class _Record:
    """Collects a :class:`Suppression`, class by class."""

    def __init__(self, boxes: Tensor):
        count = len(boxes)
        self.kept = [torch.zeros(0, dtype=torch.int64, device=boxes.device)]
        self.scores: list[Tensor] = []
        self.suppressor = torch.full((count,), -1, dtype=torch.int64, device=boxes.device)
        self.iou = boxes.new_full((count,), torch.nan)
        self.correlation = boxes.new_full((count,), torch.nan)

    def keep(self, index: Tensor, scores: Tensor) -> None:
        self.kept.append(index)
        self.scores.append(scores)

    def suppress(
        self, index: Tensor, lost: Tensor, by: Tensor, iou: Tensor, correlation: Tensor | None
    ) -> None:
        """Candidates ``lost`` of a class, and by whom; numbers within that class."""
        self.suppressor[index[lost]] = index[by]
        self.iou[index[lost]] = iou[by, lost]
        if correlation is not None:
            self.correlation[index[lost]] = correlation[by, lost].to(self.correlation)

    def finish(self) -> Suppression:
        keep = torch.cat(self.kept)
        scores = torch.cat(self.scores) if self.scores else self.iou[:0]
        # Of equal scores the first candidate comes first.
        order = keep.argsort()
        order = order[scores[order].argsort(descending=True, stable=True)]
        record = (self.suppressor, self.iou, self.correlation)
        return Suppression(keep[order], scores[order], *record)
