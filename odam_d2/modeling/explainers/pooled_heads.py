"""
Box heads that see one pooled feature for each proposal: what an R-CNN must provide to be explained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import NamedTuple

import torch
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, Res5ROIHeads, StandardROIHeads
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from odam_d2.core.roi_align import RoIAlignSpec
from odam_d2.modeling.views import view_of

from .base import GENERAL_WAY, UnsupportedModelError

__all__ = [
    "POOLED",
    "PROPOSALS",
    "PooledHead",
    "Regions",
    "Stage",
    "TracedHead",
    "finite_rows",
    "pooled_head",
]

PROPOSALS = "odam_proposals"
"""Field of traced detections: (N, S, 4), the box that was pooled for each of the S stages."""

POOLED = "odam_pooled"
"""Field of traced detections, where it was cheap to keep: (N, S, C, R, R), what was pooled."""


class Regions(NamedTuple):
    """
    What was pooled for each of N detections, by each of S stages.

    Attributes:
        boxes: (N, S, 4), XYXY in pixels of the network's input.
        pooled: (N, S, C, R, R), or None: to be pooled again.
    """

    boxes: Tensor
    pooled: Tensor | None = None

    def select(self, index: Tensor) -> Regions:
        return Regions(self.boxes[index], None if self.pooled is None else self.pooled[index])


class Stage(NamedTuple):
    """
    One prediction from pooled features; a cascade has several.

    Attributes:
        predict: (N, C, R, S) pooled features to the predictions of ``predictor``. Row i must
            depend on pooled feature i alone.
        predictor: turns predictions into probabilities and boxes.
    """

    predict: Callable[[Tensor], tuple[Tensor, Tensor]]
    predictor: FastRCNNOutputLayers


@dataclass(frozen=True)
class PooledHead:
    """
    The box branch of ROI heads: pool each box, predict from each pooled feature. Scores are the
    mean over the stages, boxes those of the last; each stage refines the boxes for the next.

    Attributes:
        in_features: names of the backbone features that are pooled from.
        pooler: pools them, for every stage.
        stages: from first to last.
        traced: a view of the ROI heads whose detections have the field :data:`PROPOSALS`, and
            perhaps :data:`POOLED`.
    """

    in_features: list[str]
    pooler: ROIPooler
    stages: Sequence[Stage]
    traced: nn.Module

    def __post_init__(self):
        parts = [(self.pooler, ROIPooler)]
        parts += [(stage.predictor, FastRCNNOutputLayers) for stage in self.stages]
        for part, kind in parts:
            if not isinstance(part, kind):
                raise UnsupportedModelError(
                    f"{type(part).__name__} is not a {kind.__name__}, the only kind of its sort "
                    f"that is explained by itself; {GENERAL_WAY}"
                )
        for layer in self.pooler.level_poolers:
            if type(layer) is not ROIAlign:
                raise UnsupportedModelError(
                    f"the pooler uses {type(layer).__name__}; only ROIAlign and ROIAlignV2 are "
                    f"explained by themselves (MODEL.ROI_BOX_HEAD.POOLER_TYPE); {GENERAL_WAY}"
                )

    def levels(self, boxes: Boxes) -> Tensor:
        """(N,) index into :attr:`in_features` of the level that each box is pooled from."""
        pooler = self.pooler
        if len(pooler.level_poolers) == 1:
            return torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
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

    def refine(
        self, features: list[Tensor], boxes: Sequence[Boxes], sizes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """
        The boxes that each stage pools when the first one gets ``boxes``, (N, S, 4).

        Args:
            features: of each level, (I, C, H, W).
            boxes: for each image.
            sizes: (height, width) of each image.
        """
        pooled_boxes = [Boxes.cat(list(boxes)).tensor]
        for stage in self.stages[:-1]:
            predictions = stage.predict(self.pooler(features, list(boxes)))
            given = [
                Instances(size, proposal_boxes=b) for size, b in zip(sizes, boxes, strict=True)
            ]
            boxes = [Boxes(b) for b in stage.predictor.predict_boxes(predictions, given)]
            for refined, size in zip(boxes, sizes, strict=True):
                refined.clip(size)
            pooled_boxes.append(Boxes.cat(boxes).tensor)
        return torch.stack(pooled_boxes, dim=1)


@singledispatch
def pooled_head(roi_heads: nn.Module) -> PooledHead:
    """
    The box branch of ROI heads. Register another function here to explain ROI heads of your own.

    Raises:
        UnsupportedModelError: nobody registered this type of ROI heads.
    """
    raise UnsupportedModelError(
        f"ROI heads of type {type(roi_heads).__name__} are not explained by themselves; "
        f"{GENERAL_WAY}"
    )


@pooled_head.register
def _(roi_heads: StandardROIHeads) -> PooledHead:
    return PooledHead(
        in_features=roi_heads.box_in_features,
        pooler=roi_heads.box_pooler,
        stages=[
            Stage(
                lambda pooled: roi_heads.box_predictor(roi_heads.box_head(pooled)),
                roi_heads.box_predictor,
            )
        ],
        traced=_with_traced_predictor(roi_heads, box_head=roi_heads.box_head),
    )


@pooled_head.register
def _(roi_heads: Res5ROIHeads) -> PooledHead:
    return PooledHead(
        in_features=roi_heads.in_features,
        pooler=roi_heads.pooler,
        stages=[
            Stage(
                lambda pooled: roi_heads.box_predictor(roi_heads.res5(pooled).mean(dim=[2, 3])),
                roi_heads.box_predictor,
            )
        ],
        traced=_with_traced_predictor(roi_heads),
    )


def _with_traced_predictor(roi_heads: nn.Module, **heads: nn.Module) -> nn.Module:
    """
    Args:
        **heads: the child that reads pooled features, by its name, where they are to be kept. What
            Res5ROIHeads pool is 16 times as much: that is pooled again for the survivors.
    """
    read: list[Tensor] = []
    children = {name: view_of(head, TracedHead, odam_read=read) for name, head in heads.items()}
    predictor = view_of(roi_heads.box_predictor, _TracedPredictor, odam_read=read)
    return view_of(roi_heads, children={**children, "box_predictor": predictor})


class TracedHead:
    """Mixin for a box head: the pooled features that it reads are added to ``odam_read``."""

    def forward(self, x):
        self.odam_read.append(x)
        return super().forward(x)


class _TracedPredictor:
    """Mixin for a box predictor: its detections remember the proposal that they came from."""

    def inference(self, predictions, proposals):
        instances, kept = super().inference(predictions, proposals)
        rows = _usable_rows(self, predictions, proposals)
        sizes = [len(given) for given in proposals]
        pooled = [x.split(sizes) for x in self.odam_read if len(x) == sum(sizes)]
        self.odam_read.clear()
        for number, (found, index, usable) in enumerate(zip(instances, kept, rows, strict=True)):
            boxes = proposals[number].proposal_boxes.tensor
            found.set(PROPOSALS, boxes[usable][index][:, None])
            if len(pooled) == 1:
                found.set(POOLED, pooled[0][number][usable][index][:, None])
        return instances, kept


def _usable_rows(predictor, predictions, proposals) -> list[Tensor | slice]:
    """The rows among which Detectron2 counts kept indices: those without nan or inf."""
    if all(p.isfinite().all() for p in predictions):
        return [slice(None)] * len(proposals)
    boxes = predictor.predict_boxes(predictions, proposals)
    scores = predictor.predict_probs(predictions, proposals)
    return [finite_rows(b, s) for b, s in zip(boxes, scores, strict=True)]


def finite_rows(boxes: Tensor, scores: Tensor) -> Tensor:
    """(R,) bool: ``fast_rcnn_inference`` leaves out the others before it counts."""
    return boxes.isfinite().all(dim=1) & scores.isfinite().all(dim=1)
