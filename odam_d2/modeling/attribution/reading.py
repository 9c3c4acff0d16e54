"""
Reading the decisions of detections again in changed images, at the anchors or proposals that they
came from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from odam_d2.core.gradients import precise
from odam_d2.modeling.adapters.head import HeadAdapter
from odam_d2.modeling.adapters.outputs import OutputsTrace
from odam_d2.modeling.adapters.trace import Decisions, Trace
from odam_d2.modeling.targets import Targets

__all__ = ["Reader", "by_head", "by_outputs"]


@dataclass(frozen=True)
class Reader:
    """
    Reads the decisions of some images' detections again.

    Attributes:
        images: (C, h, w) of each.
        boxes: (n, 4) of the detections of each, XYXY in its pixels.
        values: (N, T), of the images as they are.
        read: gets B copies of these images, each changed in its own way, and returns the targets'
            values of all detections (B, N, T).
    """

    images: Sequence[Tensor]
    boxes: Sequence[Tensor]
    values: Tensor
    read: Callable[[list[list[Tensor]]], Tensor]


def _values(targets: Targets, decisions: Decisions) -> Tensor:
    """(N, T), without a graph."""
    return torch.stack([scalar.values.detach() for scalar in targets.of(decisions)], dim=1)


def by_head(adapter: HeadAdapter, trace: Trace, targets: Targets) -> list[Reader]:
    """One for each image that has detections."""
    adapter.check_rerun(trace)
    decisions = adapter.evaluate(adapter.features(trace.images), trace)
    adapter.check_same(trace, decisions, rerun=True)
    boxes, values, found = decisions.boxes.detach(), _values(targets, decisions), []
    for number, (height, width) in enumerate(trace.image_sizes):
        rows = (trace.image == number).nonzero().squeeze(1)
        if not len(rows):
            continue
        image = trace.images[number]

        def read(copies: list[list[Tensor]], image: Tensor = image, rows: Tensor = rows) -> Tensor:
            images = image.repeat(len(copies), 1, 1, 1)
            for padded, (copy,) in zip(images, copies, strict=True):
                padded[:, : copy.shape[1], : copy.shape[2]] = copy
            of_copy = torch.arange(len(copies), device=rows.device).repeat_interleave(len(rows))
            again = trace.on_images(rows.repeat(len(copies)), of_copy, len(copies))
            decided = adapter.evaluate(adapter.features(images), again)
            return _values(targets, decided).view(len(copies), len(rows), -1)

        shown = image[:, :height, :width]
        found.append(Reader([shown], [boxes[rows]], values[rows], read))
    return found


def by_outputs(trace: OutputsTrace, targets: Targets) -> Reader:
    """One for all images, which are run together as they were."""
    images = [precise(given["image"] * 1.0) for given in trace.inputs]
    decided = trace.decide(list(trace.inputs))

    def values(decided: Sequence[Decisions]) -> Tensor:
        return torch.cat([_values(targets, of_image) for of_image in decided])

    def read(copies: list[list[Tensor]]) -> Tensor:
        inputs = [
            [given | {"image": image} for given, image in zip(trace.inputs, copy, strict=True)]
            for copy in copies
        ]
        return torch.stack([values(trace.compute(of_copy)) for of_copy in inputs])

    boxes = [of_image.boxes.detach() for of_image in decided]
    return Reader(images, boxes, values(decided), read)
