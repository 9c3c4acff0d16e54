"""The adapter of a model that is in no family: one that is explained by what it computes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from odam_d2.core.errors import InputError
from odam_d2.modeling.errors import UnsupportedModelError
from odam_d2.modeling.layers import find_layer

from .base import Adapter, Chooser, Run
from .trace import ROW, Decisions

__all__ = ["OutputsAdapter", "OutputsTrace"]


@dataclass(frozen=True)
class OutputsTrace:
    """
    N detections of a batch of which it is only known how to compute them again.

    Attributes:
        inputs: what the model got, in Detectron2's input format.
        compute: gets these inputs, runs the model with a graph, and returns what it decides of the
            detections of each image.
        instances: the detections of each image.
        detect: runs the model on other inputs; None for given boxes.
        nms: None: what chose the detections is the model's own.
        decided: what was computed last.
    """

    inputs: Sequence[dict]
    compute: Callable[[list[dict]], list[Decisions]] = field(repr=False)
    instances: Sequence[Instances]
    detect: Callable[[list[dict]], OutputsTrace] | None = field(default=None, repr=False)
    nms: None = None
    decided: list[Decisions] = field(default_factory=list, repr=False)

    def decide(self, inputs: list[dict]) -> list[Decisions]:
        """As ``compute``, and kept."""
        self.decided[:] = self.compute(inputs)
        return self.decided

    def __len__(self) -> int:
        return sum(self.counts())

    def counts(self) -> list[int]:
        """Detections of each image."""
        return [len(found) for found in self.instances]


class OutputsAdapter(Adapter):
    """
    Base class for the adapter of a model that is in no family: register a subclass by
    :func:`register_adapter`, and :func:`odam_d2.explain` and the tools work with the model.

    Attributes:
        layer: the layer on whose output maps are made, unless a method names another.
    """

    layer: str = ""

    @abstractmethod
    def outputs(self, batched_inputs: list[dict], results: list[dict]) -> list[Decisions]:
        """
        What the model decides of each image's detections, with a graph: run ``self.model`` and read
        it off.

        Args:
            batched_inputs: as the model gets them.
            results: what the model returned for them: the n detections of each image.
        """

    def outputs_of_boxes(
        self, batched_inputs: list[dict], boxes: Sequence[Boxes], classes: Sequence[Tensor]
    ) -> list[Decisions]:
        """
        Optional, for :func:`odam_d2.explain_boxes`: what the model says of given boxes.

        Args:
            batched_inputs: as the model gets them.
            boxes: for each image (n, 4), in pixels of the network's input image.
            classes: for each image (n,), which are those of the decisions as well.
        """
        raise UnsupportedModelError(
            f"{type(self.model).__name__} is explained by its outputs, so boxes cannot be given "
            f"unless {type(self).__name__} defines outputs_of_boxes (docs/your_own_head.md)"
        )

    def layer_or_default(self, layer: str) -> str:
        return layer or self.layer

    def check_layer(self, layer: str) -> None:
        find_layer(self.model, self.layer_or_default(layer))

    def run(
        self,
        batched_inputs: list[dict],
        call: Callable[[nn.Module], list],
        choose: Chooser | None = None,
    ) -> Run:
        if choose is not None:
            raise InputError(
                f"{type(self).__name__} explains what {type(self.model).__name__} returns, so its "
                "NMS cannot be replaced: leave nms at None"
            )

        def detect(inputs: list[dict]) -> OutputsTrace:
            return self.run(inputs, lambda model: model.forward(inputs)).traces[0]

        results = call(self.model)
        if not all(isinstance(result, dict) and "instances" in result for result in results):
            raise InputError(
                f"{type(self.model).__name__} must return Detectron2's output format, a list of "
                "dicts with 'instances', to be explained; explain_outputs asks nothing of the kind"
            )
        instances = [result["instances"] for result in results]
        counts = [len(found) for found in instances]
        device = next(self.model.parameters()).device
        rows = torch.arange(sum(counts), device=device).split(counts)
        for found, of_image in zip(instances, rows, strict=True):
            found.set(ROW, of_image)
        trace = OutputsTrace(
            batched_inputs,
            lambda inputs: self._checked(self.outputs(inputs, results), counts),
            instances,
            detect,
        )
        return Run(results, [trace])

    def trace_boxes(
        self, batched_inputs: list[dict], boxes: Sequence[Boxes], classes: Sequence[Tensor]
    ) -> OutputsTrace:
        counts = [len(of_image) for of_image in boxes]
        given = [
            Instances(tuple(x["image"].shape[-2:]), pred_boxes=b, pred_classes=c)
            for x, b, c in zip(batched_inputs, boxes, classes, strict=True)
        ]
        return OutputsTrace(
            batched_inputs,
            lambda inputs: self._checked(self.outputs_of_boxes(inputs, boxes, classes), counts),
            given,
        )

    def _checked(self, decisions: list[Decisions], counts: list[int]) -> list[Decisions]:
        if not all(isinstance(of_image, Decisions) for of_image in decisions):
            kinds = sorted({type(of_image).__name__ for of_image in decisions})
            raise InputError(
                f"{type(self).__name__} returned {', '.join(kinds)} for the images; it must return "
                "Decisions, one for each image"
            )
        given = [len(of_image.classes) for of_image in decisions]
        if given != counts:
            raise InputError(
                f"{type(self).__name__} returned decisions of {given} instances, one number for "
                f"each image, and there are {counts}"
            )
        return decisions
