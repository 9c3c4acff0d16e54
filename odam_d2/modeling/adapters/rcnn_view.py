"""Views of two-stage detectors: what their ROI heads do is handed to whoever watches it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from odam_d2.modeling.views import Viewed, with_overrides, with_replaced

__all__ = ["GivenProposals", "RecordedHeads", "SingleScores", "with_limits"]

M = TypeVar("M", bound=nn.Module)


class RecordedHeads(Viewed):
    """
    Mixin for ROI heads.

    Attributes:
        odam_forward: takes the place of ``forward``, which is its first argument.
        odam_choose: gets features and detections where all ROI heads of Detectron2 have their
            boxes, and no masks yet; returns the detections to go on with.
    """

    odam_forward: Callable
    odam_choose: Callable

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict]:
        return self.odam_forward(super().forward, images, features, proposals, targets)

    def forward_with_given_boxes(
        self, features: dict[str, Tensor], instances: list[Instances]
    ) -> list[Instances]:
        chosen = self.odam_choose(features, instances)
        return super().forward_with_given_boxes(features, chosen)


class GivenProposals(Viewed):
    """Mixin for a proposal generator: it proposes what is given."""

    odam_proposals: list[Instances]

    def forward(self, *_args: object, **_kwargs: object) -> tuple[list[Instances], dict]:
        return self.odam_proposals, {}


class SingleScores(Viewed):
    """Mixin for a box predictor: Detectron2's NMS does not take scores in double precision."""

    def predict_probs(
        self, predictions: tuple[Tensor, ...], proposals: list[Instances]
    ) -> list[Tensor]:
        probabilities = super().predict_probs(predictions, proposals)
        return [p.float() if p.dtype == torch.float64 else p for p in probabilities]


def with_limits(roi_heads: M, mixin: type | None = None, /, **limits: Any) -> M:
    """A view with another threshold, or another number of detections."""
    predictors = (m for m in roi_heads.modules() if isinstance(m, FastRCNNOutputLayers))
    return with_replaced(roi_heads, {m: with_overrides(m, mixin, **limits) for m in predictors})
