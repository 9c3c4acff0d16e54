"""
Box heads that see one pooled feature for each proposal: what an R-CNN must provide to be explained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch

from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.modeling.roi_heads import (
    CascadeROIHeads,
    FastRCNNOutputLayers,
    Res5ROIHeads,
    StandardROIHeads,
)
from detectron2.structures import Boxes
from torch import Tensor, nn

from odam_d2.core.roi_align import RoIAlignSpec

from .base import UnsupportedModelError

__all__ = ["PooledHead", "pooled_head"]


@dataclass(frozen=True)
class PooledHead:
    """
    The box branch of ROI heads, in two steps: pool each proposal, predict from each pooled feature.

    Attributes:
        in_features: names of the backbone features that are pooled from.
        pooler: pools them.
        predict: (N, C, R, S) pooled features to the predictions of ``predictor``. Row i must
            depend on pooled feature i alone.
        predictor: turns predictions into probabilities and boxes.
    """

    in_features: list[str]
    pooler: ROIPooler
    predict: Callable[[Tensor], tuple[Tensor, Tensor]]
    predictor: FastRCNNOutputLayers

    def __post_init__(self):
        for part, kind in ((self.pooler, ROIPooler), (self.predictor, FastRCNNOutputLayers)):
            if not isinstance(part, kind):
                raise UnsupportedModelError(
                    f"{type(part).__name__} is not a {kind.__name__}, the only kind of its sort "
                    "that can be explained"
                )
        for layer in self.pooler.level_poolers:
            if type(layer) is not ROIAlign:
                raise UnsupportedModelError(
                    f"the pooler uses {type(layer).__name__}; only ROIAlign and ROIAlignV2 can "
                    "be explained (MODEL.ROI_BOX_HEAD.POOLER_TYPE)"
                )

    def levels(self, boxes: Boxes) -> Tensor:
        """(N,) index into :attr:`in_features` of the level that each box is pooled from."""
        pooler = self.pooler
        if len(pooler.level_poolers) == 1:
            return boxes.tensor.new_zeros((len(boxes),)).long()
        return assign_boxes_to_levels(
            [boxes],
            pooler.min_level,
            pooler.max_level,
            pooler.canonical_box_size,
            pooler.canonical_level,
        )

    def spec(self, level: int) -> RoIAlignSpec:
        """The parameters of one level's RoIAlign."""
        layer = self.pooler.level_poolers[level]
        size = layer.output_size
        return RoIAlignSpec(
            output_size=(size, size) if isinstance(size, int) else tuple(size),
            spatial_scale=layer.spatial_scale,
            sampling_ratio=layer.sampling_ratio,
            aligned=layer.aligned,
        )


@singledispatch
def pooled_head(roi_heads: nn.Module) -> PooledHead:
    """
    The box branch of ROI heads. Register another function here to explain ROI heads of your own.

    Raises:
        UnsupportedModelError: nobody registered this type of ROI heads.
    """
    raise UnsupportedModelError(f"ROI heads of type {type(roi_heads).__name__} cannot be explained")


@pooled_head.register
def _(roi_heads: StandardROIHeads) -> PooledHead:
    return PooledHead(
        in_features=roi_heads.box_in_features,
        pooler=roi_heads.box_pooler,
        predict=lambda pooled: roi_heads.box_predictor(roi_heads.box_head(pooled)),
        predictor=roi_heads.box_predictor,
    )


@pooled_head.register
def _(roi_heads: Res5ROIHeads) -> PooledHead:
    return PooledHead(
        in_features=roi_heads.in_features,
        pooler=roi_heads.pooler,
        predict=lambda pooled: roi_heads.box_predictor(roi_heads.res5(pooled).mean(dim=[2, 3])),
        predictor=roi_heads.box_predictor,
    )


@pooled_head.register
def _(roi_heads: CascadeROIHeads) -> PooledHead:
    # A StandardROIHeads by inheritance, but its scores are averaged over stages.
    raise UnsupportedModelError("CascadeROIHeads cannot be explained yet")
