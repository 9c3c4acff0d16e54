"""
What the box head of a two-stage detector decides of one pooled feature, which goes through the head
alone (design: "two-stage heads").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor

from odam_d2.core.probabilities import Probability, sigmoid, softmax
from odam_d2.core.probabilities import mean as mean_probability
from odam_d2.modeling.views import own_parts, versions

from .checks import check_pooled
from .gradient_checks import check_apart
from .head import HeadAdapter
from .pooled_calls import Regions
from .pooled_heads import pooled_head
from .trace import Decisions, Trace

__all__ = ["RCNNDecisions"]

# Of more detections than a few, each is pooled again in a third of the channels, the next one in
# another third: what changes a detection, or a channel, is seen at a third of the cost.
_FEW, _SHARES = 12, 3

# Bytes of pooled features that are compared at once.
_COMPARED_BYTES = 64 * 2**20


class RCNNDecisions(HeadAdapter):
    """
    The part of an adapter for ``GeneralizedRCNN`` that reads its box head, where that is one that
    :func:`pooled_head` knows. The places of a trace are :class:`Regions`.

    Attributes:
        roi_heads: those of the model, in evaluation mode.
        head: their box branch.
    """

    def __init__(self, model: GeneralizedRCNN, norm_statistics: str = "constant"):
        super().__init__(model, norm_statistics)
        self.roi_heads = model.roi_heads
        self.head = pooled_head(self.roi_heads)

    @property
    def name(self) -> str:
        return own_parts(self.model, self.model.roi_heads)

    @property
    def num_classes(self) -> int:
        return self.model.roi_heads.num_classes

    @property
    def feature_names(self) -> list[str]:
        return list(self.head.in_features)

    @property
    def strides(self) -> list[float]:
        count = len(self.head.pooler.level_poolers)
        return [1 / self.head.spec(level).spatial_scale for level in range(count)]

    def trace_regions(
        self,
        images: ImageList,
        features: list[Tensor],
        regions: Regions,
        classes: Sequence[Tensor],
    ) -> Trace[Regions]:
        """
        Args:
            features: what the head read, of each level.
            regions: of the detections of all images.
            classes: for each image (n,).
        """
        levels = self.head.levels(Boxes(regions.boxes.flatten(0, 1)))
        return Trace(
            images=images.tensor,
            image_sizes=images.image_sizes,
            features=features,
            image=Trace.image_of(classes, regions.boxes.device),
            classes=torch.cat(list(classes)),
            levels=levels.view(regions.boxes.shape[:2]),
            places=regions,
            versions=versions(features),
        )

    def check_pooled(self, trace: Trace[Regions]) -> None:
        """
        Raises:
            UnsupportedModelError: what was read is not what is explained, or not all of it.
        """
        if not len(trace):
            return
        calls = trace.places.calls
        if calls is None or not calls.is_pooled(trace.features):
            self._pool_again(trace, torch.arange(len(trace), device=trace.image.device))

    def check_apart(self, pooled: Sequence[Tensor]) -> None:
        """
        Args:
            pooled: of each stage, (N, C, R, S) of N > 0 proposals.

        Raises:
            UnsupportedModelError: what is said of proposals depends on other ones.
        """
        for stage, features in zip(self.head.stages, pooled, strict=True):
            check_apart(self.name, stage.predict, features)

    def _pool_again(self, trace: Trace, rows: Tensor) -> None:
        """Compare what was read in these rows with what is pooled now."""
        count = trace.features[0].shape[1]
        shares = _SHARES if len(rows) > _FEW and count >= _SHARES else 1
        channels = torch.arange(count).tensor_split(shares)
        size = max(1, _COMPARED_BYTES // self.pooled_bytes(trace))
        for share, of_share in enumerate(channels):
            first, end = int(of_share[0]), int(of_share[-1]) + 1
            for index in rows[share::shares].split(size):
                self._check_pooled(trace.select(index), slice(first, end))

    def _check_pooled(self, trace: Trace[Regions], channels: slice) -> None:
        kept = trace.places.pooled()
        if kept is not None:
            features = [feature[:, channels] for feature in trace.features]
            for read, again in zip(kept, self._pool(features, trace), strict=True):
                check_pooled(self.name, read[:, channels], again)

    def read_again(self, trace: Trace[Regions], features: list[Tensor]) -> Trace[Regions]:
        return replace(super().read_again(trace, features), places=Regions(trace.places.boxes))

    def evaluate(self, features: list[Tensor], trace: Trace[Regions]) -> Decisions:
        pooled = self._pool(features, trace)
        self.check_apart(pooled)
        return self.decide_pooled(pooled, trace)

    def decide(self, trace: Trace[Regions]) -> Decisions:
        return self.decide_pooled(self.pooled(trace), trace)

    def pooled_bytes(self, trace: Trace[Regions]) -> int:
        """Of what all stages pool for a detection."""
        rows, columns = self.head.spec(0).output_size
        feature = trace.features[0]
        cells = feature.shape[1] * rows * columns * len(self.head.stages)
        return cells * feature.element_size()

    def pooled(self, trace: Trace[Regions]) -> list[Tensor]:
        """What the head pooled for each stage, (N, C, R, S), kept or pooled again."""
        return trace.places.pooled() or self._pool(trace.features, trace)

    def _pool(self, features: list[Tensor], trace: Trace[Regions]) -> list[Tensor]:
        counts = trace.counts()
        return [
            self.head.pooler(features, [Boxes(part) for part in boxes.split(counts)])
            for boxes in trace.places.boxes.unbind(dim=1)
        ]

    def decide_pooled(self, pooled: list[Tensor], trace: Trace[Regions]) -> Decisions:
        """What the stages say together of their pooled features."""
        probabilities, logits = [], []
        stages = zip(self.head.stages, pooled, trace.places.boxes.unbind(dim=1), strict=True)
        for stage, features, proposals in stages:
            given = [Instances((0, 0), proposal_boxes=Boxes(proposals))]
            predictions = stage.predict(features)
            logits.append(predictions[0])
            probabilities += stage.predictor.predict_probs(predictions, given)
        # Boxes are those of the last stage.
        (boxes,) = stage.predictor.predict_boxes(predictions, given)
        # One box for each class, or one for all of them.
        row = torch.arange(len(trace), device=boxes.device)
        boxes = boxes.view(len(row), -1, 4)
        of_stages = torch.stack(logits, dim=1)
        return Decisions(
            classes=trace.classes,
            probabilities=torch.stack(probabilities).mean(dim=0),
            boxes=boxes[row, trace.classes if boxes.shape[1] > 1 else 0],
            logits=of_stages.mean(dim=1),
            closed_form=lambda labels: self._closed_form(of_stages, labels),
        )

    def _closed_form(
        self, logits: Tensor, labels: Tensor
    ) -> tuple[Probability, Sequence[Tensor]] | None:
        """
        See ``Decisions.closed_form``; None for a predictor with its own way from logits to scores,
        and for stages that differ in that.

        Args:
            logits: of each stage, (N, S, K + 1).
            labels: (N,).
        """
        predictors = [stage.predictor for stage in self.head.stages]
        # Not every Detectron2 knows sigmoids there.
        first, *others = {
            (getattr(p.predict_probs, "__func__", None), getattr(p, "use_sigmoid_ce", False))
            for p in predictors
        }
        if others or first[0] is not FastRCNNOutputLayers.predict_probs:
            return None
        probability = sigmoid if first[1] else softmax
        of_stages = probability(logits, labels[:, None].expand(logits.shape[:2]))
        return mean_probability(of_stages), [logits.flatten(1)]
