"""
Two-stage detectors: what their box head decides of one pooled feature, which goes through the head
alone (design: "two-stage heads").
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from odam_d2.core.errors import InputError
from odam_d2.core.probabilities import Probability, sigmoid, softmax
from odam_d2.core.probabilities import mean as mean_probability
from odam_d2.modeling.errors import GENERAL_WAY, UnsupportedModelError
from odam_d2.modeling.views import own_parts, versions, with_overrides

from .base import NO_NMS, register_adapter
from .checks import check_apart, check_outputs, check_pooled
from .head import HeadAdapter, Recording
from .pooled_calls import Regions
from .pooled_heads import PROPOSALS, ROWS, PooledHead, pooled_head
from .rcnn_view import GivenProposals, RecordedHeads, SingleScores, with_limits
from .trace import Decisions, Trace

__all__ = ["RCNNAdapter"]

# Of more detections than a few, each is pooled again in a third of the channels, the next one in
# another third: what changes a detection, or a channel, is seen at a third of the cost.
_FEW, _SHARES = 12, 3

# Detections among given boxes by which it is seen that the model decides as we think.
_COMPARED = 8

# Bytes of pooled features that are compared at once.
_COMPARED_BYTES = 64 * 2**20


@register_adapter(GeneralizedRCNN)
class RCNNAdapter(HeadAdapter):
    """
    Faster R-CNN and what is built like it: ``GeneralizedRCNN`` with ROI heads that
    :func:`pooled_head` knows. The places of a trace are :class:`Regions`.

    Attributes:
        roi_heads: those of the model, in evaluation mode.
        head: their box branch.
    """

    def __init__(self, model: GeneralizedRCNN, norm_statistics: str = "constant"):
        super().__init__(model, norm_statistics)
        self.roi_heads = model.roi_heads
        self.head = pooled_head(self.roi_heads)

    def with_heads(self, roi_heads: nn.Module) -> RCNNAdapter:
        """This adapter with ROI heads that compute the same in another way."""
        other = copy.copy(self)
        other.roi_heads, other.head = roi_heads, pooled_head(roi_heads)
        return other

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

    def check_inputs(self, batched_inputs: list[dict]) -> None:
        if self.model.proposal_generator is None and any(
            "proposals" not in x for x in batched_inputs
        ):
            raise InputError(
                "the model makes no proposals of its own (MODEL.PROPOSAL_GENERATOR.NAME), so each "
                "image needs them as 'proposals'; explain_boxes works without"
            )

    def recorded_view(self, recording: Recording) -> nn.Module:
        head = pooled_head(self.roi_heads)  # with calls of its own
        heads = head.traced
        read: dict[str, ImageList] = {}
        if recording.choose is not None:
            heads = with_limits(heads, test_nms_thresh=NO_NMS, test_topk_per_image=-1)

        def forward(
            forward: Callable,
            images: ImageList,
            features: dict[str, Tensor],
            proposals: list[Instances],
            targets: object,
        ) -> tuple[list[Instances], dict]:
            read["images"] = images
            instances, losses = forward(images, features, proposals, targets)
            trace = self._trace(recording, head, images, features, instances)
            self.check_pooled(trace)
            for found in instances:
                for name in (PROPOSALS, ROWS):
                    if found.has(name):
                        found.remove(name)
            recording.add(trace, instances)
            return instances, losses

        def choose(features: dict[str, Tensor], instances: list[Instances]) -> list[Instances]:
            if recording.choose is None:
                return instances
            trace = self._trace(recording, head, read["images"], features, instances)
            predictor = self.head.stages[-1].predictor
            limits = (predictor.test_nms_thresh, predictor.test_topk_per_image)
            return recording.choose(trace, instances, *limits)[0]

        view = with_overrides(heads, RecordedHeads, odam_forward=forward, odam_choose=choose)
        children = {"backbone": self.watched_backbone(recording), "roi_heads": view}
        return with_overrides(self.model, children=children)

    def _trace(
        self,
        recording: Recording,
        head: PooledHead,
        images: ImageList,
        features: dict[str, Tensor],
        instances: list[Instances],
    ) -> Trace[Regions]:
        """
        Where traced detections were read.

        Raises:
            UnsupportedModelError: it is not known, or not from the backbone's features.
        """
        if not all(found.has(PROPOSALS) for found in instances):
            raise UnsupportedModelError(
                f"{self.name}: its detections are chosen in its own way, so that the proposals "
                f"that they come from are not known; {GENERAL_WAY}"
            )
        features = {name: features[name] for name in self.feature_names}
        self.check_features(recording, features)
        boxes = torch.cat([found.get(PROPOSALS) for found in instances])
        known = head.calls is not None and all(found.has(ROWS) for found in instances)
        rows = torch.cat([found.get(ROWS) for found in instances]) if known else None
        regions = Regions(boxes, rows, head.calls if known else None)
        trace = self.trace_regions(
            images, list(features.values()), regions, [found.pred_classes for found in instances]
        )
        return replace(trace, backbone=recording.backbone_calls[-1])

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

    def trace_given(
        self,
        images: ImageList,
        features: list[Tensor],
        boxes: Sequence[Boxes],
        classes: Sequence[Tensor],
    ) -> Trace[Regions]:
        regions = Regions(self.head.refine(features, boxes, images.image_sizes))
        return self.trace_regions(images, features, regions, classes)

    def trace_boxes(
        self, batched_inputs: list[dict], boxes: Sequence[Boxes], classes: Sequence[Tensor]
    ) -> Trace[Regions]:
        """By the model's own inference, with the boxes as its proposals."""
        if not any(map(len, boxes)):  # nothing needs to be seen of the model
            return super().trace_boxes(batched_inputs, boxes, classes)
        sizes = [tuple(x["image"].shape[-2:]) for x in batched_inputs]
        proposals = [
            Instances(size, proposal_boxes=b, objectness_logits=b.tensor.new_zeros(len(b)))
            for size, b in zip(sizes, boxes, strict=True)
        ]
        recording = self.new_recording()
        given: list[Trace[Regions]] = []
        children = {
            "backbone": self.watched_backbone(recording),
            "roi_heads": self.reading_heads(recording, boxes, classes, given.append),
        }
        generator = self.model.proposal_generator
        if generator is None:
            pairs = zip(batched_inputs, proposals, strict=True)
            batched_inputs = [{**x, "proposals": of_image} for x, of_image in pairs]
        else:
            children["proposal_generator"] = with_overrides(
                generator, GivenProposals, odam_proposals=proposals
            )
        outputs = with_overrides(self.model, children=children).forward(batched_inputs)
        if not given:
            raise UnsupportedModelError(
                f"{self.name} does not run its ROI heads on its proposals; {GENERAL_WAY}"
            )
        check_outputs(self.name, outputs, recording.returned)
        return given[0]

    def reading_heads(
        self,
        recording: Recording,
        boxes: Sequence[Boxes],
        classes: Sequence[Tensor],
        see: Callable[[Trace[Regions]], None],
    ) -> nn.Module:
        """
        A view of the ROI heads whose proposals are given boxes. When it has run, and decided as
        is explained, ``see`` gets where it read them.
        """
        head = pooled_head(self.roi_heads)  # with calls of its own

        def forward(
            forward: Callable,
            images: ImageList,
            features: dict[str, Tensor],
            proposals: list[Instances],
            targets: object,
        ) -> tuple[list[Instances], dict]:
            instances, losses = forward(images, features, proposals, targets)
            detected = self._trace(recording, head, images, features, instances)
            for found in instances:
                found.remove(PROPOSALS)
            recording.add(detected, instances)
            if head.calls is None:
                regions = Regions(self.head.refine(detected.features, boxes, images.image_sizes))
            else:
                read = torch.cat(head.calls.boxes)
                rows = torch.arange(len(read), device=read.device)
                regions = Regions(read, rows, head.calls)
            if not torch.equal(regions.boxes[:, 0], Boxes.cat(list(boxes)).tensor):
                raise UnsupportedModelError(
                    f"{self.name}: proposals are changed before its ROI heads read them, so "
                    f"that boxes cannot be given; {GENERAL_WAY}"
                )
            trace = self.trace_regions(images, detected.features, regions, classes)
            trace = replace(trace, backbone=detected.backbone)
            self.check_pooled(trace)
            if len(detected):
                self.check_same(recording.traces[-1], self.decide(detected))
            see(trace)
            return instances, losses

        limits = {"test_score_thresh": -1.0, "test_nms_thresh": NO_NMS}
        limits["test_topk_per_image"] = _COMPARED
        heads = with_limits(head.traced, SingleScores, **limits)
        return with_overrides(
            heads,
            RecordedHeads,
            odam_forward=forward,
            odam_choose=lambda _features, instances: instances,
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
