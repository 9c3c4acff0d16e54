"""Dense detectors: how they are run, and what is kept of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from odam_d2.modeling.errors import GENERAL_WAY, UnsupportedModelError, unexplained
from odam_d2.modeling.views import recorded, versions, with_overrides

from .anchors import ORIGIN, Anchors, nearest_anchors
from .base import ALL, NO_NMS
from .checks import check_head
from .decision_checks import check_outputs
from .dense_decisions import DenseDecisions
from .dense_records import DensePlaces, DenseRecording
from .dense_view import RecordedDecoding, RecordedDetector, kept_outputs
from .towers import Derivative, TracedTower
from .trace import Trace

__all__ = ["DenseAdapter"]


class DenseAdapter(DenseDecisions):
    """
    Dense detectors whose head is made of towers of convolutions and predictors that read them. A
    family names these, in the order of the head's outputs, and says what scores are.
    """

    def new_recording(self, **fields: Any) -> DenseRecording:
        return DenseRecording(**fields)

    def recorded_view(self, recording: DenseRecording) -> nn.Module:
        state: dict[str, Any] = {}
        if recording.choose is not None:
            state = {"test_nms_thresh": NO_NMS, "max_detections_per_image": ALL}

        def inference(
            infer: Callable,
            images: ImageList,
            features: list[Tensor],
            predictions: list[list[Tensor]],
        ) -> list[Instances]:
            results, trace = self._detect(recording, infer, images, features, predictions)
            if recording.choose is not None:
                limits = (self.model.test_nms_thresh, self.model.max_detections_per_image)
                results, rows = recording.choose(trace, results, *limits)
                trace = trace.select(rows)
            for found in results:
                found.remove(ORIGIN)
            recording.add(trace, results)
            return results

        children = self._recorded_children(recording)
        state["odam_inference"] = inference
        return with_overrides(self.model, RecordedDetector, children=children, **state)

    def _recorded_children(self, recording: DenseRecording) -> dict[str, nn.Module]:
        """Parts for a view of the model: what they read and return is recorded."""
        return {
            "backbone": self.recorded_backbone(recording),
            "head": recorded(self.traced_head(recording.masks), recording.head_calls),
            "anchor_generator": recorded(self.model.anchor_generator, recording.anchor_calls),
        }

    def _detect(
        self,
        recording: DenseRecording,
        infer: Callable,
        images: ImageList,
        features: list[Tensor],
        predictions: Sequence[list[Tensor]],
    ) -> tuple[list[Instances], Trace[DensePlaces]]:
        """
        Detections with the field :data:`ORIGIN`, and where they were read.

        Args:
            infer: ``forward_inference`` of the detector, which gets the rest.
        """
        self.check_features(recording, dict(zip(self.feature_names, features, strict=False)))
        sizes = self.output_sizes
        chosen = check_head(self.name, recording.head_calls, features, predictions, sizes)
        outputs = kept_outputs(chosen, sizes)
        results = infer(images, features, predictions)
        if not all(found.has(ORIGIN) for found in results):
            raise unexplained(
                f"{self.name}: its detections are chosen in its own way, so that the anchors that "
                "they come from are not known"
            )
        origins = [found.get(ORIGIN) for found in results]
        classes = [found.pred_classes for found in results]
        trace = self.trace_anchors(recording, images, features, outputs, origins, classes)
        return results, trace

    def traced_head(
        self, masks: dict[str, list[list[Derivative]]], towers: Iterable[str] = ()
    ) -> nn.Module:
        """
        The head, which adds those of some towers, or of all, to ``masks`` when it runs. It does
        whenever windows can go through towers with constant statistics, in which maps are compared
        whatever is explained.
        """
        if not self._is_local(constant=True):
            return self.model.head
        masks.update({tower: [] for tower in towers or self.towers.values()})
        traced = {
            tower: with_overrides(self.tower(tower), TracedTower, odam_masks=of_tower)
            for tower, of_tower in masks.items()
        }
        return with_overrides(self.model.head, children=traced)

    def trace_boxes(
        self, batched_inputs: list[dict], boxes: Sequence[Boxes], classes: Sequence[Tensor]
    ) -> Trace[DensePlaces]:
        """By the model's own inference; what it decodes at the boxes' anchors is compared."""
        if not any(map(len, boxes)):  # nothing needs to be seen of the model
            return super().trace_boxes(batched_inputs, boxes, classes)
        recording = self.new_recording()
        given: list[Trace[DensePlaces]] = []

        def inference(
            infer: Callable,
            images: ImageList,
            features: list[Tensor],
            predictions: list[list[Tensor]],
        ) -> list[Instances]:
            view.odam_decoded.clear()
            results, trace = self._detect(recording, infer, images, features, predictions)
            recording.add(trace, results)
            if len(trace):
                self.check_same(recording.traces[-1], self.decide(trace))
            anchors = self.anchors_of(features, recording)
            origins = [self.nearest(of_image, anchors) for of_image in boxes]
            outputs = trace.places.outputs
            at = self.trace_anchors(recording, images, features, outputs, origins, classes)
            decoded = view.odam_at(origins, classes, images.image_sizes)
            self.check_same(replace(at, instances=decoded), self.decide(at))
            given.append(at)
            return results

        children = self._recorded_children(recording)
        view = with_overrides(
            self.model,
            RecordedDecoding,
            children=children,
            odam_inference=inference,
            odam_decoded=[],
        )
        outputs = view.forward(batched_inputs)
        if len(given) != 1:
            raise UnsupportedModelError(
                f"{self.name} does not decode all images at once, so that boxes cannot be given; "
                f"{GENERAL_WAY}"
            )
        check_outputs(self.name, outputs, recording.returned)
        return given[0]

    def trace_given(
        self,
        images: ImageList,
        features: list[Tensor],
        boxes: Sequence[Boxes],
        classes: Sequence[Tensor],
    ) -> Trace[DensePlaces]:
        recording = self.new_recording()
        outputs = list(self.traced_head(recording.masks)(features))
        anchors = self.model.anchor_generator(features)
        origins = [self.nearest(of_image, anchors) for of_image in boxes]
        return self.trace_anchors(recording, images, features, outputs, origins, classes)

    def trace_anchors(
        self,
        recording: DenseRecording,
        images: ImageList,
        features: list[Tensor],
        outputs: list[list[Tensor]],
        origins: Sequence[Tensor],
        classes: Sequence[Tensor],
    ) -> Trace[DensePlaces]:
        """
        Args:
            recording: of the run.
            outputs: of the head, for each predictor and level.
            origins: for each image (n, 2), see :data:`ORIGIN`.
            classes: for each image (n,).
        """
        chosen = self.anchors_at(features, origins, recording)
        return Trace(
            images=images.tensor,
            image_sizes=images.image_sizes,
            features=features,
            image=chosen.cells.image,
            classes=torch.cat(list(classes)),
            levels=chosen.cells.level[:, None],
            places=DensePlaces(chosen, outputs, dict(recording.masks)),
            backbone=recording.backbone_calls[-1] if recording.backbone_calls else None,
            versions=versions(features),
        )

    def nearest(self, boxes: Boxes, anchors: list[Boxes]) -> Tensor:
        """(N, 2) level and index of the anchor that would be trained to find each box."""
        return nearest_anchors(boxes, anchors)

    def anchors_of(
        self, features: list[Tensor], recording: DenseRecording | None = None
    ) -> list[Boxes]:
        """Of each level, as the model generated them in a run, or now."""
        if recording is not None and recording.anchor_calls:
            anchors: Any = recording.anchor_calls[-1].output
            return anchors
        return self.model.anchor_generator(features)

    def anchors_at(
        self,
        features: list[Tensor],
        origins: Sequence[Tensor],
        recording: DenseRecording | None = None,
    ) -> Anchors:
        """
        Args:
            features: what the head read, of each level.
            origins: for each image (n, 2), see :data:`ORIGIN`.
            recording: of the run.
        """
        anchors = self.anchors_of(features, recording)
        per_cell = len(anchors[0]) // features[0].shape[-2:].numel()
        sizes = [(feature.shape[-2], feature.shape[-1]) for feature in features]
        return Anchors.of_origins(list(origins), anchors, sizes, per_cell)

    def read_again(self, trace: Trace[DensePlaces], features: list[Tensor]) -> Trace[DensePlaces]:
        trace = super().read_again(trace, features)
        masks: dict[str, list[list[Derivative]]] = {}
        outputs = list(self.traced_head(masks)(trace.features))
        return replace(trace, places=replace(trace.places, outputs=outputs, masks=masks))
