"""What every entry point does: trace a model, choose, attribute, attach."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from odam_d2.core.cam import odam
from odam_d2.core.errors import InputError
from odam_d2.structures import OdamMaps

from .adapters.base import Adapter, build_adapter
from .adapters.head import HeadAdapter, head_adapter
from .adapters.outputs import OutputsTrace
from .adapters.trace import ROW, Decisions, Trace
from .attribution.gradients import GradientMethod
from .attribution.registry import Method
from .conditions import conditions_together
from .errors import unexplained
from .nms.choosing import Choice
from .precision import runs_in_half
from .settings import ExplainSettings
from .targets import Classes, ClassScore, Targets

__all__ = ["Explanation", "class_logit_maps"]


def class_logit_maps(adapter: HeadAdapter, settings: ExplainSettings, trace: Trace) -> OdamMaps:
    """
    The maps that are compared, by losses and by NMS: of the class logit, on what the head reads,
    group norm with constant statistics (the exact way costs a pass of the head for each map).
    """
    method = GradientMethod(odam, "", settings.smoothing_sigma, settings.max_bytes)
    targets = Targets([ClassScore("class", None, "logit")])
    return _attribute(method, adapter.with_constant_statistics(), trace, targets)


def _attribute(method: Method, adapter: Adapter, trace: Any, targets: Targets) -> OdamMaps:
    """The maps of a trace, in the order of its detections."""
    if isinstance(adapter, HeadAdapter):
        adapter.check_unchanged(trace)
        if not len(trace):
            like = trace.features[0]
            double = like.dtype == torch.float64
            return OdamMaps.empty(targets.names, like if double else like.float(), method.signed)
    return method(adapter, trace, targets)


@dataclass(frozen=True)
class Explanation:
    """
    Explains what a detector says, under :func:`odam_d2.modeling.state.preserved`.

    Attributes:
        adapter: of the detector.
        settings: how to explain.
        targets: what to explain; none where a model is run for its NMS alone.
        method: makes the maps.
    """

    adapter: Adapter
    settings: ExplainSettings
    targets: Targets
    method: Method

    @classmethod
    def of(cls, model: nn.Module, settings: ExplainSettings) -> Explanation:
        """
        Args:
            model: as ``preserved`` gives it.

        Raises:
            InputError: a target, layer or setting is wrong.
            UnsupportedModelError: a part of the model is not of a kind that can be explained.
        """
        adapter = build_adapter(model, settings.norm_statistics)
        targets = Targets([])
        if settings.targets or settings.nms is None:
            classes = Classes(adapter.num_classes, settings.class_names, settings.score)
            targets = Targets.named(settings.targets, classes)
        method = settings.build_method()
        method.check(adapter, targets)
        return cls(adapter, settings, targets, method)

    @property
    def algorithm(self) -> str:
        """How maps are computed, in a few words."""
        return self.method.algorithm(self.adapter)

    def run(
        self, batched_inputs: list[dict], call: Callable[[nn.Module], list]
    ) -> list[dict] | list[Instances]:
        """
        Run the model, and explain each of its detections.

        Args:
            call: gets a view of the model, runs it on these inputs, and returns its outputs.

        Returns:
            What the model returns, and each ``Instances`` in it has the field ``odam_maps``.
        """
        self.adapter.check_inputs(batched_inputs)
        choice = None
        if self.settings.nms is not None:
            choice = Choice(self.settings.nms, self._class_maps, self.settings.record)
        with conditions_together():
            run = self.adapter.run(batched_inputs, call, choice)
            outputs = run.outputs
            if self.targets:
                self.adapter.check_returned(run)
            self._attach(outputs, [self._maps(trace) for trace in run.traces if self.targets])
        if choice is not None:
            _attach_candidates(outputs, choice.records)
        return outputs

    def explain_boxes(
        self, batched_inputs: list[dict], boxes: Sequence[Boxes], classes: Sequence[Tensor]
    ) -> list[tuple[Tensor, OdamMaps]]:
        """
        Explain what the model says of given boxes and classes, one set for each image.

        Args:
            batched_inputs: as for the model.
            boxes: in pixels of the network's input image.
            classes: (n,) class ids.

        Returns:
            For each image, the model's scores (n,) for those classes there, and the maps.
        """
        like = next(self.adapter.model.parameters())
        if isinstance(self.adapter, HeadAdapter) and runs_in_half(like):
            precise = replace(self, adapter=self.adapter.in_full_precision())
            with torch.autocast(like.device.type, enabled=False):
                return precise.explain_boxes(batched_inputs, boxes, classes)
        if not self.targets:  # which a run of the model may do without
            raise InputError("no targets to explain; give at least one, such as 'class'")
        with conditions_together():
            trace = self.adapter.trace_boxes(batched_inputs, boxes, classes)
            maps = self._maps(trace)
            decided = self._decided(trace)
        scores = [of_part.scores.detach() for of_part in decided] or [maps.values.new_zeros(0)]
        counts = [len(of_image) for of_image in boxes]
        return list(zip(torch.cat(scores).split(counts), maps.split(counts), strict=True))

    def _decided(self, trace: Any) -> list[Decisions]:
        """What the model says of the detections of a trace of which maps have been made."""
        if isinstance(trace, OutputsTrace):
            return trace.decided or trace.decide(list(trace.inputs))
        return [head_adapter(self.adapter).decide(trace)] if len(trace) else []

    def _class_maps(self, trace: Trace) -> OdamMaps:
        return class_logit_maps(head_adapter(self.adapter), self.settings, trace)

    def _maps(self, trace: Any) -> OdamMaps:
        return _attribute(self.method, self.adapter, trace, self.targets)

    def _attach(self, outputs: list, maps: list[OdamMaps]) -> None:
        """Give detections the maps of their rows."""
        if self.targets and not maps:
            raise unexplained(f"{self.adapter.name} does not run its head, so there are no maps")
        together = OdamMaps.cat(maps) if self.targets else None
        for found in _detections(outputs):
            if found.has(ROW):
                rows = found.get(ROW)
                found.remove(ROW)
                if together is not None:
                    found.odam_maps = together[rows]
            elif together is not None:
                raise unexplained(
                    f"{self.adapter.name}: what it returns is made anew, so that it is not known "
                    "which detection each one was"
                )


def _detections(outputs: list | tuple) -> Iterator[Instances]:
    """Of each image, postprocessed or not; ``PanopticFPN`` has more beside those that are not."""
    for output in outputs[0] if isinstance(outputs, tuple) else outputs:
        yield output["instances"] if isinstance(output, dict) else output


def _attach_candidates(outputs: list[dict], records: list[Instances]) -> None:
    """What NMS was given, where that is recorded, in the frame of the outputs."""
    for output, candidates in zip(outputs, records, strict=False):
        height, width = output["instances"].image_size
        rows, columns = candidates.image_size
        boxes = candidates.pred_boxes.clone()
        boxes.scale(width / columns, height / rows)
        boxes.clip((height, width))
        fields = candidates.get_fields() | {"pred_boxes": boxes}
        output["candidates"] = Instances((height, width), **fields)
