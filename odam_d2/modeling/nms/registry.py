"""The registry of postprocessors that choose among candidates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from fvcore.common.registry import Registry
from torch import Tensor

from odam_d2.core.nms import Suppression

__all__ = ["ODAM_NMS_REGISTRY", "Candidates", "Postprocessor"]

ODAM_NMS_REGISTRY = Registry("ODAM_NMS")
ODAM_NMS_REGISTRY.__doc__ = """
Registry of what takes the place of Detectron2's NMS at inference, chosen by
``MODEL.ODAM.NMS.NAME``.

Entries have the names that are written in YAML. One is called as ``obj(cfg)`` and returns a
callable, which gets the :class:`Candidates` of one image and returns a
:class:`odam_d2.core.nms.Suppression`: what stays, by decreasing score, and who suppressed the
others. Its attribute ``needs_maps`` (bool) says whether it uses ``candidates.correlation``; where
it is false, no heat map is computed for it.
"""


@dataclass(frozen=True)
class Candidates:
    """
    What a detector would say of an image if it had no NMS.

    Attributes:
        boxes: (N, 4), XYXY in pixels of the network's input.
        scores: (N,), all above the detector's score threshold, in decreasing order.
        classes: (N,) int64.
        iou_thresh: of the detector's own NMS.
        correlation: gets indices (n,) of candidates and the cell of a grid in pixels of the
            network's input, and returns the (n, n) correlations in [0, 1] of the heat maps of their
            class logits on that grid; None where ``needs_maps`` is false.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    iou_thresh: float
    correlation: Callable[[Tensor, float], Tensor] | None = None


class Postprocessor(Protocol):
    """
    What an entry of the registry returns.

    Attributes:
        needs_maps: whether it uses ``candidates.correlation``.
    """

    needs_maps: bool

    def __call__(self, candidates: Candidates) -> Suppression:
        """Choose among the candidates of one image."""
