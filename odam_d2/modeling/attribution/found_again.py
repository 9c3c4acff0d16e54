"""
What a detector says of its detections when parts of the image are black: how well each is found
again, and what is said at the place where it was read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from detectron2.structures import Instances, pairwise_iou
from torch import Tensor

from odam_d2.core.errors import InputError
from odam_d2.core.gradients import precise
from odam_d2.core.masks import STRIDE
from odam_d2.digests import describe, digest
from odam_d2.fingerprint import versions
from odam_d2.modeling.adapters.base import Adapter
from odam_d2.modeling.adapters.head import HeadAdapter, head_adapter
from odam_d2.modeling.adapters.outputs import OutputsTrace
from odam_d2.modeling.adapters.trace import Trace
from odam_d2.modeling.mask_settings import StateSettings
from odam_d2.modeling.targets import ClassScore, Targets
from odam_d2.structures import OdamMaps

from .geometry import image_geometry
from .gradients import in_full_precision
from .masked_runs import StateFile
from .reading import Reader, by_head, by_outputs

__all__ = [
    "PROBABILITIES",
    "MaskedImage",
    "Similarity",
    "class_probabilities",
    "detections_of",
    "masked_maps",
]

PROBABILITIES = "class_probabilities"
"""Field (N, K) of the detections, where their detector tells."""

Similarity = Callable[[Instances, Instances, Tensor, ClassScore], Tensor]
"""
Gets N detections, M that are found now, their IoU (N, M), and the class that is explained; returns
how well each is found again by each (N, M).
"""


def detections_of(adapter: Adapter, trace: Trace | OutputsTrace) -> list[Instances]:
    """The detections of each image, with the probabilities of all classes where they are known."""
    if not isinstance(trace, Trace):
        return list(trace.instances)
    found = [Instances(x.image_size, **x.get_fields()) for x in trace.instances or ()]
    for of_image in found:  # a dense detector clips boxes at the very end
        of_image.pred_boxes = of_image.pred_boxes.clone()
        of_image.pred_boxes.clip(of_image.image_size)
    if not len(trace):
        for of_image in found:
            of_image.set(PROBABILITIES, of_image.scores.new_zeros(0, adapter.num_classes))
        return found
    head = head_adapter(adapter)
    decisions = head.decide(trace)
    head.check_same(trace, decisions)
    probabilities = decisions.probabilities[:, : adapter.num_classes].split(trace.counts())
    for of_image, part in zip(found, probabilities, strict=True):
        of_image.set(PROBABILITIES, part)
    return found


def class_probabilities(found: Instances, like: Instances) -> Tensor:
    """(N, K), of the detector or certain ones."""
    if found.has(PROBABILITIES):
        return precise(found.get(PROBABILITIES))
    labels, known = found.pred_classes, like.pred_classes
    # Without knowing how many classes there are: those of the detections in question.
    return (labels[:, None] == known.unique()[None]).to(precise(found.scores))


InPlace = Callable[[Tensor], Tensor]
"""Gets masks (B, h, w); returns the values (B, N, S) of S targets where they were read."""


@dataclass(frozen=True)
class MaskedImage:
    """
    An image that has detections, seen through masks.

    Attributes:
        given: the image, in Detectron2's input format.
        found: its N detections.
        targets: the T of them.
        similarity: how well a detection is found again by another; the best one counts.
        detect: runs the detector on such images.
        in_place: for the targets that are no classes; None without any.
        detector: what is read depends on, beside the image.
    """

    given: dict
    found: Instances
    targets: Targets
    similarity: Similarity
    detect: Callable[[list[dict]], list[Instances]]
    in_place: InPlace | None
    detector: object

    @property
    def image(self) -> Tensor:
        """(C, h, w), as the detector gets it."""
        return self.given["image"]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        height, width = self.image.shape[-2:]
        return height, width

    def read(self, masks: Tensor) -> Tensor:
        """
        Args:
            masks: (B, h, w) in [0, 1], 0 for black.

        Returns:
            (B, N, T) float64, on the CPU: for a class how well each detection is found again, for
            any other target its value at the same anchor or proposal.
        """
        others = iter(() if self.in_place is None else self.in_place(masks).unbind(dim=2))
        of_classes = [isinstance(target, ClassScore) for target in self.targets]
        again = self._found(masks) if any(of_classes) else []
        columns = [
            torch.stack([self._best(now, target) for now in again])
            if isinstance(target, ClassScore)
            else next(others)
            for target in self.targets
        ]
        return torch.stack([column.double().cpu() for column in columns], dim=2)

    def maps(self, values: Tensor) -> OdamMaps:
        """Of values (N, T, h, w) on cells of :data:`STRIDE` pixels, on any device."""
        values = values.to(precise(self.found.scores))
        of_image = torch.zeros(len(values), dtype=torch.int64, device=values.device)
        return self.targets.maps(values, **image_geometry(of_image, [self.size], values, STRIDE))

    def state_file(
        self, settings: StateSettings, segments: Sequence[Tensor], **free: Any
    ) -> StateFile:
        """
        Where what was read of it is kept.

        Args:
            segments: that are seen or not.
            **free: settings that another run may have otherwise.
        """

        def fingerprint() -> dict:
            return {
                "settings": describe(replace(settings, state_dir="", **free)),
                "targets": describe(list(self.targets)),
                "segments": digest(list(segments)),
                "detector": digest(self.detector),
                "versions": versions(),
            }

        about = [self.image, self.found.pred_boxes.tensor, self.found.pred_classes]
        return StateFile.of(settings, about, fingerprint)

    def _found(self, masks: Tensor) -> list[Instances]:
        image = self.image
        return self.detect([self.given | {"image": image * x.to(image.device)} for x in masks])

    def _best(self, now: Instances, target: ClassScore) -> Tensor:
        """(N,), zero where nothing is found."""
        if not len(now):
            return self.found.scores.new_zeros(len(self.found))
        iou = pairwise_iou(self.found.pred_boxes, now.pred_boxes)
        return self.similarity(self.found, now, iou, target).amax(dim=1)


def masked_maps(
    name: str,
    adapter: Adapter,
    trace: Any,
    targets: Targets,
    similarity: Similarity,
    make: Callable[[MaskedImage], OdamMaps],
) -> OdamMaps:
    """
    The maps of all detections, image by image.

    Args:
        name: of the method, for messages.
        similarity: for the classes.
        make: the maps of an image that has detections.

    Raises:
        InputError: boxes were given, which nobody has detected.
    """
    again = trace.detect
    if again is None:
        raise InputError(f"{name} explains what was detected; boxes need another method")
    detector = {
        "model": adapter.model,
        "norm_statistics": adapter.norm_statistics,  # which an NMS on maps goes by
        "nms": trace.nms,
    }

    def detect(inputs: list[dict]) -> list[Instances]:
        return detections_of(adapter, again(inputs))

    found = detections_of(adapter, trace)
    with _places(adapter, trace, targets) as places:
        maps = [
            make(MaskedImage(given, x, targets, similarity, detect, places.get(number), detector))
            for number, (given, x) in enumerate(zip(trace.inputs, found, strict=True))
            if len(x)
        ]
    like = precise(next(adapter.model.parameters()))
    return OdamMaps.cat(maps) if maps else OdamMaps.empty(targets.names, like)


@contextmanager
def _places(adapter: Adapter, trace: Any, targets: Targets) -> Iterator[dict[int, InPlace]]:
    """Of targets that are no classes, by the number of the image, where it has detections."""
    targets = Targets([target for target in targets if not isinstance(target, ClassScore)])
    if not targets.requested:
        yield {}
    elif isinstance(trace, OutputsTrace):
        yield _of_outputs(trace, targets)
    else:
        with in_full_precision(head_adapter(adapter), trace) as (precise_adapter, again):
            yield _of_head(precise_adapter, again, targets)


def _of_head(adapter: HeadAdapter, trace: Trace, targets: Targets) -> dict[int, InPlace]:
    numbers = [number for number, count in enumerate(trace.counts()) if count]
    places: dict[int, InPlace] = {}
    for number, reader in zip(numbers, by_head(adapter, trace, targets), strict=True):
        shown, raw = reader.images[0], trace.inputs[number]["image"]
        black = adapter.model.preprocess_image([{"image": torch.zeros_like(raw)}]).tensor[0]
        black = precise(black[:, : shown.shape[1], : shown.shape[2]]).to(shown)

        def read(
            masks: Tensor, reader: Reader = reader, shown: Tensor = shown, black: Tensor = black
        ) -> Tensor:
            return reader.read([[torch.lerp(black, shown, mask.to(shown))] for mask in masks])

        places[number] = read
    return places


def _of_outputs(trace: OutputsTrace, targets: Targets) -> dict[int, InPlace]:
    """The other images are run with each as they are."""
    reader, counts = by_outputs(trace, targets), trace.counts()
    places: dict[int, InPlace] = {}
    for number, count in enumerate(counts):
        rows = slice(sum(counts[:number]), sum(counts[: number + 1]))

        def read(masks: Tensor, number: int = number, rows: slice = rows) -> Tensor:
            copies = []
            for mask in masks:
                copy = list(reader.images)
                copy[number] = copy[number] * mask.to(copy[number])
                copies.append(copy)
            return reader.read(copies)[:, rows]

        if count:
            places[number] = read
    return places
