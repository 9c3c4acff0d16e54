"""
Masks of the whole image, each decision read in place: what RISE (Petsiuk et al., BMVC 2018) does
for classifiers, at the anchor or proposal that a detection came from. All maps of an image share
the masked passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from odam_d2.core.gradients import precise
from odam_d2.core.heatmap import smooth
from odam_d2.core.masks import (
    STRIDE,
    Region,
    blurred_regions,
    lengths_of,
    part_masks,
    regions,
    slopes,
)
from odam_d2.fingerprint import describe, digest, versions
from odam_d2.modeling.adapters.base import Adapter
from odam_d2.modeling.adapters.head import HeadAdapter, head_adapter
from odam_d2.modeling.adapters.outputs import OutputsTrace
from odam_d2.modeling.adapters.trace import Decisions, Trace
from odam_d2.modeling.settings import ExplainSettings, RiseSettings
from odam_d2.modeling.targets import Side, Targets
from odam_d2.structures import OdamMaps

from .geometry import image_geometry
from .gradients import in_full_precision
from .masked_runs import StateFile, in_batches, refuse
from .registry import ODAM_METHOD_REGISTRY, Method

__all__ = ["Rise"]


@dataclass(frozen=True)
class Rise(Method):
    """The method."""

    settings: RiseSettings = field(default_factory=RiseSettings)

    def algorithm(self, adapter: Adapter) -> str:
        return "masked images"

    def __call__(self, adapter: Adapter, trace: Any, targets: Targets) -> OdamMaps:
        if isinstance(trace, OutputsTrace):
            return self._maps(adapter, [_by_outputs(trace, targets)], targets)
        with in_full_precision(head_adapter(adapter), trace) as (precise, again):
            return self._maps(adapter, _by_head(precise, again, targets), targets)

    def _maps(self, adapter: Adapter, readers: list[_Reader], targets: Targets) -> OdamMaps:
        detector = {"model": adapter.model, "norm_statistics": adapter.norm_statistics}
        found = [_maps_of(reader, targets, self.settings, detector) for reader in readers]
        return OdamMaps.cat([maps for of_reader in found for maps in of_reader])


@ODAM_METHOD_REGISTRY.register()
def rise(settings: ExplainSettings) -> Rise:
    """RISE (Petsiuk et al., BMVC 2018), read where each detection was."""
    refuse(settings, "RISE", {"smoothing_sigma": 0, "layer": ""})
    return Rise(settings.rise)


@dataclass(frozen=True)
class _Reader:
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


def _by_head(adapter: HeadAdapter, trace: Trace, targets: Targets) -> list[_Reader]:
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
        found.append(_Reader([shown], [boxes[rows]], values[rows], read))
    return found


def _by_outputs(trace: OutputsTrace, targets: Targets) -> _Reader:
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
    return _Reader(images, boxes, values(decided), read)


@dataclass(frozen=True)
class _Picture:
    """
    An image and its masks.

    Attributes:
        image, hidden: (C, h, w), as it is and what is seen of it where it is hidden.
        of: the regions that its boxes make, see :func:`odam_d2.core.masks.regions`.
    """

    image: Tensor
    hidden: Tensor
    of: list[Region]
    settings: RiseSettings

    @classmethod
    def of_boxes(cls, image: Tensor, boxes: Tensor, settings: RiseSettings) -> _Picture:
        height, width = image.shape[-2:]
        of = regions(boxes, (height, width))
        return cls(image, blurred_regions(image, of, settings.blur), of, settings)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        height, width = self.image.shape[-2:]
        return height, width

    def masks(self, numbers: range, stride: int = 1) -> Tensor:
        """
        (B, h, w), of pixels or of the cells of maps. Each is of its number alone, so that batches,
        and where a run was interrupted, do not matter.
        """
        parts, found = self.settings.parts, []
        for group in range(numbers.start // parts, (numbers.stop - 1) // parts + 1):
            generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + group)
            cell = self.settings.cell
            found.append(part_masks(self.size, self.of, cell, parts, generator, stride))
        start = numbers.start % parts
        return torch.cat(found)[start : start + len(numbers)]

    def masked(self, numbers: range) -> Iterator[Tensor]:
        for mask in self.masks(numbers):
            yield torch.lerp(self.hidden, self.image, mask.to(self.image))

    def maps(self, values: Tensor, boxes: Tensor, targets: Targets) -> Tensor:
        """
        Args:
            values: (K, N, T), of each masked image.
            boxes: (N, 4).
            targets: the T.

        Returns:
            (N, T, h, w), on cells of :data:`STRIDE` pixels.
        """
        count, size = len(values), self.settings.batch_size
        batches = (range(start, min(start + size, count)) for start in range(0, count, size))
        found = slopes(values.flatten(1), (self.masks(batch, STRIDE) for batch in batches))
        found = found.unflatten(0, values.shape[1:])
        lengths = (lengths_of(boxes, self.size) / STRIDE).tolist()
        sides = torch.tensor([isinstance(target, Side) for target in targets], device=found.device)
        for maps, length in zip(found, lengths, strict=True):
            for chosen, sigma in (
                (sides, self.settings.side_smoothing),
                (~sides, self.settings.smoothing),
            ):
                maps[chosen] = smooth(maps[chosen], sigma * length)
        return found.relu_()


def _maps_of(
    reader: _Reader, targets: Targets, settings: RiseSettings, detector: object
) -> list[OdamMaps]:
    """The maps of each image's detections."""
    pictures = [
        _Picture.of_boxes(image, boxes, settings)
        for image, boxes in zip(reader.images, reader.boxes, strict=True)
    ]
    counts = [len(boxes) for boxes in reader.boxes]
    values = _read(reader, pictures, settings, _state_file(reader, targets, settings, detector))
    found = []
    of_images = zip(pictures, values.split(counts, dim=1), reader.boxes, strict=True)
    for picture, of_image, boxes in of_images:
        if len(boxes):
            maps = picture.maps(of_image, boxes, targets)
            of_image = torch.zeros(len(maps), dtype=torch.int64, device=maps.device)
            geometry = image_geometry(of_image, [picture.size], maps, STRIDE)
            found.append(targets.maps(maps, **geometry))
    return found


def _read(
    reader: _Reader, pictures: list[_Picture], settings: RiseSettings, file: StateFile
) -> Tensor:
    """The values (K, N, T) of all masks, those from a file first."""
    whole = reader.values

    def is_state(state: dict) -> bool:
        values = state["values"]
        return (values.shape[1:], values.dtype) == (whole.shape, whole.dtype)

    state = file.read(is_state)
    values = [] if state is None else [state["values"].to(whole)]

    def see(numbers: range) -> None:
        masked = [picture.masked(numbers) for picture in pictures]
        values.append(reader.read([list(copy) for copy in zip(*masked, strict=True)]))

    def save() -> None:
        file.write({"values": torch.cat([whole.new_zeros(0, *whole.shape), *values]).cpu()})

    in_batches("RISE", sum(map(len, values)), settings, see, save)
    # Small differences of large numbers keep their digits.
    return torch.cat(values)[: settings.num_masks] - whole


def _state_file(
    reader: _Reader, targets: Targets, settings: RiseSettings, detector: object
) -> StateFile:
    def fingerprint() -> dict:
        return {
            "settings": describe(replace(settings, state_dir="", num_masks=1)),
            "targets": describe(list(targets)),
            "detector": digest(detector),
            "versions": versions(),
        }

    return StateFile.of(settings, [list(reader.images), list(reader.boxes)], fingerprint)
