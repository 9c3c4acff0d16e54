"""
Box heads that see one pooled feature for each proposal: what an R-CNN must provide to be explained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, NamedTuple

import torch
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, Res5ROIHeads, StandardROIHeads
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from odam_d2.core.roi_align import RoIAlignSpec
from odam_d2.modeling.errors import unexplained
from odam_d2.modeling.views import Viewed, class_name, recorded, with_overrides

from .pooled_calls import PooledCalls, pools_plainly

__all__ = [
    "PROPOSALS",
    "ROWS",
    "DecodedOnce",
    "PooledHead",
    "Stage",
    "finite_first",
    "pooled_head",
]

PROPOSALS = "odam_proposals"
"""Field of traced detections: (N, S, 4), the box that was pooled for each of the S stages."""

ROWS = "odam_rows"
"""Field of traced detections, where there is a :class:`PooledCalls`: (N,), their rows in it."""


class Stage(NamedTuple):
    """
    One prediction from pooled features; a cascade has several.

    Attributes:
        predict: (N, C, R, S) pooled features to the predictions of ``predictor``: logits, box
            deltas, and what else there is. Row i must depend on pooled feature i alone.
        predictor: turns predictions into probabilities and boxes.
    """

    predict: Callable[[Tensor], tuple[Tensor, ...]]
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
            with calls :data:`ROWS`.
        calls: what the view reads; None for nothing, so that everything is pooled again.
    """

    in_features: list[str]
    pooler: ROIPooler
    stages: Sequence[Stage]
    traced: nn.Module
    calls: PooledCalls | None = None

    def __post_init__(self) -> None:
        parts = [(self.pooler, ROIPooler)]
        parts += [(stage.predictor, FastRCNNOutputLayers) for stage in self.stages]
        for part, kind in parts:
            if not isinstance(part, kind):
                raise unexplained(
                    f"{class_name(part)} is not a {kind.__name__}, the only kind of its sort that "
                    "is explained by itself"
                )
        for layer in self.pooler.level_poolers:
            if type(layer) is not ROIAlign:
                raise unexplained(
                    f"the pooler uses {class_name(layer)}; only ROIAlign and ROIAlignV2 are "
                    "explained by themselves (MODEL.ROI_BOX_HEAD.POOLER_TYPE)"
                )

    @property
    def pools_plainly(self) -> bool:
        """Whether pooling is RoIAlign of one level and nothing else, whose adjoint is known."""
        return pools_plainly(self.pooler)

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

    Args:
        roi_heads: of a two-stage detector.

    Returns:
        What pools and decides, stage by stage.

    Raises:
        UnsupportedModelError: nobody registered this type of ROI heads.
    """
    raise unexplained(f"ROI heads of type {class_name(roi_heads)} are not explained by themselves")


@pooled_head.register
def _(roi_heads: StandardROIHeads) -> PooledHead:
    return _one_stage(
        roi_heads,
        roi_heads.box_in_features,
        "box_pooler",
        lambda pooled: roi_heads.box_predictor(roi_heads.box_head(pooled)),
        "box_head",
    )


@pooled_head.register
def _(roi_heads: Res5ROIHeads) -> PooledHead:
    return _one_stage(
        roi_heads,
        roi_heads.in_features,
        "pooler",
        lambda pooled: roi_heads.box_predictor(roi_heads.res5(pooled).mean(dim=[2, 3])),
        "res5",
    )


def _one_stage(
    roi_heads: StandardROIHeads,
    in_features: list[str],
    pooler: str,
    predict: Callable,
    reader: str,
) -> PooledHead:
    """
    Args:
        pooler, reader: names of the child that pools, and of the one that reads pooled features.
    """
    calls = PooledCalls([[]])
    head = recorded(getattr(roi_heads, reader), calls.calls[0])
    predictor = with_overrides(
        roi_heads.box_predictor,
        _TracedPredictor,
        odam_calls=calls,
        odam_decoded={},
        odam_heads=class_name(roi_heads),
    )
    pools = getattr(roi_heads, pooler)
    children = {pooler: calls.recorded_pooler(pools), reader: head, "box_predictor": predictor}
    traced = with_overrides(roi_heads, children=children)
    stages = [Stage(predict, roi_heads.box_predictor)]
    return PooledHead(in_features, pools, stages, traced, calls)


class DecodedOnce(Viewed):
    """
    Mixin for a box predictor: what its predictions say is computed once.

    Attributes:
        odam_decoded: by name, predictions and what they say, for each image.
    """

    odam_decoded: dict[str, tuple[object, Sequence[Tensor]]]

    def predict_boxes(
        self, predictions: tuple[Tensor, ...], proposals: list[Instances]
    ) -> Sequence[Tensor]:
        return self._seen("boxes", predictions, super().predict_boxes(predictions, proposals))

    def predict_probs(
        self, predictions: tuple[Tensor, ...], proposals: list[Instances]
    ) -> Sequence[Tensor]:
        return self._seen("scores", predictions, super().predict_probs(predictions, proposals))

    def _seen(self, name: str, predictions: object, result: Sequence[Tensor]) -> Sequence[Tensor]:
        self.odam_decoded[name] = predictions, result
        return result

    def odam_decode(
        self, predictions: tuple[Tensor, ...], proposals: list[Instances]
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Boxes and scores of each image, among which Detectron2 chooses."""
        for name, decode in (("boxes", self.predict_boxes), ("scores", self.predict_probs)):
            of, _ = self.odam_decoded.get(name, (None, None))
            if of is not predictions:
                decode(predictions, proposals)
        boxes, scores = (self.odam_decoded.pop(name)[1] for name in ("boxes", "scores"))
        return boxes, scores


class _TracedPredictor(DecodedOnce):
    """Mixin for a box predictor: its detections remember the proposal that they came from."""

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        if len(args) != 1 or kwargs:
            raise unexplained(f"{class_name(self)} reads more than the output of the box head")
        return super().forward(*args)

    def inference(
        self, predictions: tuple[Tensor, ...], proposals: list[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        instances, kept = super().inference(predictions, proposals)
        if not isinstance(predictions, (list, tuple)) or len(predictions) < 2:
            raise unexplained(
                f"the predictions of {class_name(self)} are not logits and box deltas, and perhaps "
                "more after them"
            )
        boxes = [given.proposal_boxes.tensor for given in proposals]
        start = self.odam_calls.add(self.odam_heads, [boxes])
        decoded = self.odam_decode(predictions, proposals)
        for found, index, given, *parts in zip(instances, kept, boxes, *decoded, strict=True):
            number = finite_first(*parts)[index]
            found.set(PROPOSALS, given[number, None])
            found.set(ROWS, start + number)
            start += len(given)
        return instances, kept


def finite_first(*parts: Tensor) -> Tensor:
    """
    (R,), the rows in whose parts, (R, n) each, there is no nan or inf, which
    ``fast_rcnn_inference`` counts, and then the others.
    """
    usable = torch.cat(parts, dim=1).abs().amax(dim=1) < torch.inf
    return usable.to(torch.uint8).argsort(descending=True, stable=True)
