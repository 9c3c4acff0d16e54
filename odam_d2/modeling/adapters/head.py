"""Detectors of a backbone and a head: what a family must say of its head, and the rest."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from odam_d2.core.gradients import precise
from odam_d2.modeling.conditions import conditions_together
from odam_d2.modeling.errors import unexplained
from odam_d2.modeling.layers import find_layer
from odam_d2.modeling.precision import full_precision_copy
from odam_d2.modeling.views import Call, own_parts, recorded, versions

from .base import Adapter, Chooser, Run
from .checks import check_backbone, check_images
from .decision_checks import BACKBONE_TOLERANCE, check_decisions, check_outputs, rounding
from .trace import FINAL_SCORES, ROW, Decisions, Trace

__all__ = ["HeadAdapter", "Recording", "head_adapter"]


@dataclass
class Recording:
    """
    What is seen of one run of a model, while it runs.

    Attributes:
        choose: what takes the place of its NMS, if anything does.
        inputs: what it was run on.
        detect: runs it in the same way on other inputs.
        backbone_calls: the last call of the backbone.
        traces: of the detections so far.
        returned: the detections of each image as they left the head.
    """

    choose: Chooser | None = None
    inputs: Sequence[dict] = ()
    detect: Callable[[list[dict]], Trace] | None = None
    backbone_calls: deque[Call] = field(default_factory=lambda: deque(maxlen=1))
    traces: list[Trace] = field(default_factory=list)
    returned: list[Instances] = field(default_factory=list)

    def add(self, trace: Trace, instances: list[Instances]) -> None:
        """Keep a trace, and give its detections, which leave the head now, their rows of it."""
        start = sum(map(len, self.traces))
        rows = torch.arange(start, start + len(trace), device=trace.image.device)
        of_images = rows.split([len(found) for found in instances])
        decided = [_copied(found) for found in instances]
        for found, before, of_image in zip(instances, decided, of_images, strict=True):
            found.set(ROW, of_image)
            fields = before.get_fields()
            if found.has(FINAL_SCORES):
                found.scores = found.get(FINAL_SCORES)
                found.remove(FINAL_SCORES)
                fields = fields | {"scores": found.scores.clone()}
            self.returned.append(Instances(found.image_size, **fields))
        nms = getattr(self.choose, "nms", None)
        of_run = replace(trace, inputs=self.inputs, detect=self.detect, nms=nms)
        self.traces.append(replace(of_run, instances=decided))


def _copied(found: Instances) -> Instances:
    """Boxes, scores and classes of detections, which their model may write to later on."""
    fields = {name: found.get(name).clone() for name in ("pred_boxes", "scores", "pred_classes")}
    return Instances(found.image_size, **fields)


class HeadAdapter(Adapter):
    """
    Detectors with Detectron2's ``backbone`` and ``preprocess_image``.

    A family provides :attr:`feature_names`, :attr:`strides`, :meth:`recorded_view` (the model,
    whose detections are handed to a :class:`Recording` with their trace), :meth:`trace_given` and
    :meth:`evaluate`. That makes it exact, by one backward pass of the head for each map. Faster
    ways are registered with :func:`odam_d2.modeling.attribution.head_maps`.
    """

    model: Any  # with the attributes of Detectron2's class, which has no types

    @property
    def name(self) -> str:
        """The model, and those of its parts that are the user's own, for messages."""
        return own_parts(self.model)

    @property
    @abstractmethod
    def feature_names(self) -> list[str]:
        """Names of the backbone's features that the head reads, the finest first."""

    @property
    @abstractmethod
    def strides(self) -> list[float]:
        """Network-input pixels per cell of each of them."""

    @abstractmethod
    def recorded_view(self, recording: Any) -> nn.Module:
        """
        The model; each time its head has run, the recording gets the detections' trace.

        Args:
            recording: of :meth:`new_recording`.
        """

    def new_recording(self, **fields: Any) -> Recording:
        """A family that records more than a :class:`Recording` has one of its own."""
        return Recording(**fields)

    @abstractmethod
    def trace_given(
        self,
        images: ImageList,
        features: list[Tensor],
        boxes: Sequence[Boxes],
        classes: Sequence[Tensor],
    ) -> Trace:
        """Where the head would read given boxes, see :meth:`trace_boxes`."""

    @abstractmethod
    def evaluate(self, features: list[Tensor], trace: Trace) -> Decisions:
        """
        The definition that fast ways are held to: run the head, with a graph to ``features``, which
        stand in for the trace's own.
        """

    def decide(self, trace: Trace) -> Decisions:
        """What the head says of N > 0 detections, in the precision in which it runs."""
        return self.evaluate(trace.features, trace)

    def check_layer(self, layer: str) -> None:
        find_layer(self.model.backbone, layer)

    def run(
        self,
        batched_inputs: list[dict],
        call: Callable[[nn.Module], list],
        choose: Chooser | None = None,
    ) -> Run:
        def detect(inputs: list[dict]) -> Trace:
            # forward: hooks on the model are for the user's images, not for changed ones.
            with conditions_together():
                again = self.run(inputs, lambda view: view.forward(inputs), choose)
                self.check_returned(again)
            (trace,) = again.traces
            return trace

        recording = self.new_recording(choose=choose, inputs=batched_inputs, detect=detect)
        outputs = call(self.recorded_view(recording))
        return Run(outputs, recording.traces, recording.returned)

    def check_returned(self, run: Run) -> None:
        if all(isinstance(output, dict) for output in run.outputs):  # postprocessed
            check_outputs(self.name, run.outputs, run.left_head)

    def trace_boxes(
        self, batched_inputs: list[dict], boxes: Sequence[Boxes], classes: Sequence[Tensor]
    ) -> Trace:
        """
        As the interface says, by what the head would read. A family that can run the model's own
        inference for that overrides it, and sees whether the model does more.
        """
        images = self.model.preprocess_image(batched_inputs)
        return self.trace_given(images, self.features(images.tensor), boxes, classes)

    def features(self, images: Tensor) -> list[Tensor]:
        """What the head reads of images (I, 3, H, W), one tensor for each level."""
        features = self.model.backbone(images)
        return [features[name] for name in self.feature_names]

    def retrace(self, trace: Trace) -> Trace:
        """
        The same places in full precision, where the detector ran in half: what was read there is
        computed again.
        """
        self.check_rerun(trace)
        images = precise(trace.images)
        return self.read_again(replace(trace, images=images), self.features(images))

    def read_again(self, trace: Trace, features: list[Tensor]) -> Trace:
        """
        The same places in other features of the same shapes. A family that keeps more than features
        computes that again, too.
        """
        return replace(trace, features=features, instances=None)

    def take_over(self, trace: Trace, images: Tensor | None = None) -> Trace:
        """
        The places of a trace of another detector of the same architecture, as this one reads them.

        Args:
            images: in the place of the trace's, of the same shape; None for these.
        """
        images = trace.images if images is None else images
        features = self.features(images)
        there = self.read_again(replace(trace, images=images), features)
        return replace(there, backbone=None, versions=versions(features), detect=None)

    def in_full_precision(self) -> HeadAdapter:
        """An adapter of a copy of the model in full precision."""
        return type(self)(full_precision_copy(self.original), self.norm_statistics)

    def with_constant_statistics(self) -> HeadAdapter:
        """This adapter where the statistics of norms count as constants."""
        return type(self)(self.original, "constant")

    def recorded_backbone(self, recording: Recording) -> nn.Module:
        """The backbone, for a view of the model: what it reads and returns is recorded."""
        return recorded(self.model.backbone, recording.backbone_calls)

    def check_features(self, recording: Recording, features: dict[str, Tensor]) -> None:
        """Refuse to explain when these, of the head, are not what the backbone returned."""
        check_backbone(self.name, recording.backbone_calls, features)

    def check_rerun(self, trace: Trace) -> None:
        """Refuse to run the backbone once more where it read more than the images."""
        if trace.backbone is not None:
            check_images(self.name, trace.backbone, trace.images)

    def check_unchanged(self, trace: Trace) -> None:
        """Refuse to explain features that the model has written to since its head read them."""
        if trace.versions and trace.versions != versions(trace.features):
            raise unexplained(
                f"{self.name}: features are changed in place after its head has read them, so that "
                "there are no maps of what it read"
            )

    def check_same(self, trace: Trace, decisions: Decisions, *, rerun: bool = False) -> None:
        """
        Refuse to explain detections of which the explained head says something else.

        Args:
            decisions: what it says of the detections.
            rerun: whether the backbone ran once more for that.
        """
        if trace.instances is None:
            return
        tolerance = rounding(trace.features[0], *(found.scores for found in trace.instances))
        if rerun:
            tolerance *= BACKBONE_TOLERANCE
        by, counts = type(self).__name__, trace.counts()
        split = (x.detach().split(counts) for x in (decisions.scores, decisions.boxes))
        for found, s, b in zip(trace.instances, *split, strict=True):
            check_decisions(self.name, by, found, s, b, tolerance)


def head_adapter(adapter: Adapter) -> HeadAdapter:
    """
    An adapter that knows backbone and head.

    Raises:
        UnsupportedModelError: this one does not.
    """
    if isinstance(adapter, HeadAdapter):
        return adapter
    raise unexplained(
        f"{adapter.name} is explained by {type(adapter).__name__}, which tells nothing of its "
        "backbone and head"
    )
