"""
Masks of the whole image, each decision read in place: what RISE (Petsiuk et al., BMVC 2018) does
for classifiers, at the anchor or proposal that a detection came from. All maps of an image share
the masked passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from odam_d2.core.heatmap import smooth
from odam_d2.core.mask_regression import regressed_slopes
from odam_d2.core.masks import (
    STRIDE,
    Region,
    blurred_regions,
    lengths_of,
    part_masks,
    regions,
    slopes,
)
from odam_d2.digests import describe, digest
from odam_d2.fingerprint import versions
from odam_d2.modeling.adapters.base import Adapter
from odam_d2.modeling.adapters.head import head_adapter
from odam_d2.modeling.adapters.outputs import OutputsTrace
from odam_d2.modeling.settings import ExplainSettings, RiseSettings
from odam_d2.modeling.targets import Side, Targets
from odam_d2.structures import OdamMaps

from .geometry import image_geometry
from .gradients import in_full_precision
from .masked_runs import StateFile, in_batches, refuse
from .reading import Reader, by_head, by_outputs
from .registry import ODAM_METHOD_REGISTRY, Method

__all__ = ["Rise"]


@dataclass(frozen=True)
class Rise(Method):
    """
    The method.

    Attributes:
        settings: of ``MODEL.ODAM.RISE``.
        signed: keep what is higher where a place is hidden, too.
        regressed: make maps by :func:`odam_d2.core.mask_regression.regressed_slopes`, in the place
            of the slope at each place by itself, smoothed.
    """

    settings: RiseSettings = field(default_factory=RiseSettings)
    signed: bool = False
    regressed: bool = False

    def algorithm(self, adapter: Adapter) -> str:
        return "masked images"

    def __call__(self, adapter: Adapter, trace: Any, targets: Targets) -> OdamMaps:
        if isinstance(trace, OutputsTrace):
            return self._maps(adapter, [by_outputs(trace, targets)], targets)
        with in_full_precision(head_adapter(adapter), trace) as (precise, again):
            return self._maps(adapter, by_head(precise, again, targets), targets)

    def _maps(self, adapter: Adapter, readers: list[Reader], targets: Targets) -> OdamMaps:
        detector = {"model": adapter.model, "norm_statistics": adapter.norm_statistics}
        found = [self._maps_of(reader, targets, detector) for reader in readers]
        maps = [maps for of_reader in found for maps in of_reader]
        like = next(adapter.model.parameters()).float()
        return OdamMaps.cat(maps) if maps else OdamMaps.empty(targets.names, like, self.signed)

    def _maps_of(self, reader: Reader, targets: Targets, detector: object) -> list[OdamMaps]:
        """The maps of each image's detections."""
        settings = self.settings
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
                if self.regressed:
                    maps = picture.regressed(of_image, boxes)
                else:
                    maps = picture.maps(of_image, boxes, targets)
                maps = maps if self.signed else maps.relu_()
                of_image = torch.zeros(len(maps), dtype=torch.int64, device=maps.device)
                geometry = image_geometry(of_image, [picture.size], maps, STRIDE)
                found.append(targets.maps(maps, signed=self.signed, **geometry))
        return found


@ODAM_METHOD_REGISTRY.register()
def rise(settings: ExplainSettings) -> Rise:
    """RISE (Petsiuk et al., BMVC 2018), read where each detection was."""
    refuse(settings, "RISE", {"smoothing_sigma": 0, "layer": ""})
    return Rise(settings.rise, settings.signed)


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
            (N, T, h, w), on cells of :data:`STRIDE` pixels, with their sign.
        """
        found = slopes(values.flatten(1), self._cells(len(values)))
        found = found.unflatten(0, values.shape[1:])
        lengths = (lengths_of(boxes, self.size) / STRIDE).tolist()
        sides = torch.tensor([isinstance(target, Side) for target in targets], device=found.device)
        for maps, length in zip(found, lengths, strict=True):
            for chosen, sigma in (
                (sides, self.settings.side_smoothing),
                (~sides, self.settings.smoothing),
            ):
                maps[chosen] = smooth(maps[chosen], sigma * length)
        return found

    def _cells(self, count: int) -> Iterator[Tensor]:
        """So many masks, on cells of :data:`STRIDE` pixels, some at a time."""
        for start in range(0, count, self.settings.batch_size):
            yield self.masks(range(start, min(start + self.settings.batch_size, count)), STRIDE)

    def regressed(self, values: Tensor, boxes: Tensor) -> Tensor:
        """As :meth:`maps`, by regression."""
        masks = torch.cat(list(self._cells(len(values))))
        lengths = lengths_of(boxes, self.size).tolist()
        found = [
            regressed_slopes(
                of_box, masks, box, length, self.settings.correlation, self.settings.noise
            )
            for of_box, box, length in zip(values.unbind(1), boxes, lengths, strict=True)
        ]
        return torch.stack(found)


def _read(
    reader: Reader, pictures: list[_Picture], settings: RiseSettings, file: StateFile
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
    reader: Reader, targets: Targets, settings: RiseSettings, detector: object
) -> StateFile:
    def fingerprint() -> dict:
        return {  # not of how maps are made of values
            "settings": {
                name: getattr(settings, name) for name in ("cell", "parts", "blur", "seed")
            },
            "targets": describe(list(targets)),
            "detector": digest(detector),
            "versions": versions(),
        }

    return StateFile.of(settings, [list(reader.images), list(reader.boxes)], fingerprint)
