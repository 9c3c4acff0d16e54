"""Two-stage detectors: how they are run, and what is kept of a run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from odam_d2.core.errors import InputError
from odam_d2.modeling.errors import unexplained
from odam_d2.modeling.views import with_overrides

from .base import NO_NMS, register_adapter
from .decision_checks import check_outputs
from .head import Recording
from .pooled_calls import Regions
from .pooled_heads import PROPOSALS, ROWS, PooledHead, pooled_head
from .rcnn_decisions import RCNNDecisions
from .rcnn_view import GivenProposals, RecordedHeads, SingleScores, with_limits
from .trace import Trace

__all__ = ["RCNNAdapter"]

# Detections among given boxes by which it is seen that the model decides as we think.
_COMPARED = 8


@register_adapter(GeneralizedRCNN)
class RCNNAdapter(RCNNDecisions):
    """
    Faster R-CNN and what is built like it: ``GeneralizedRCNN`` with ROI heads that
    :func:`pooled_head` knows.
    """

    def with_heads(self, roi_heads: nn.Module) -> RCNNAdapter:
        """This adapter with ROI heads that compute the same in another way."""
        other = copy.copy(self)
        other.roi_heads, other.head = roi_heads, pooled_head(roi_heads)
        return other

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
        children = {"backbone": self.recorded_backbone(recording), "roi_heads": view}
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
            raise unexplained(
                f"{self.name}: its detections are chosen in its own way, so that the proposals "
                "that they come from are not known"
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
            "backbone": self.recorded_backbone(recording),
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
            raise unexplained(f"{self.name} does not run its ROI heads on its proposals")
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
                raise unexplained(
                    f"{self.name}: proposals are changed before its ROI heads read them, so that "
                    "boxes cannot be given"
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
