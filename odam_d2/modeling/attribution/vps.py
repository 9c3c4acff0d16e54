"""
Visual Precision Search (Chen et al., "Interpreting Object-level Foundation Models via Visual
Precision Search", CVPR 2025): superpixels are ordered by a greedy search, one for each map.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from detectron2.structures import Instances
from torch import Tensor
from tqdm import tqdm

from odam_d2.core.errors import InputError
from odam_d2.core.gradients import precise
from odam_d2.core.subset_search import greedy_search, passes_of
from odam_d2.modeling.adapters.base import Adapter
from odam_d2.modeling.settings import ExplainSettings, VpsSettings
from odam_d2.modeling.targets import ClassScore, Targets
from odam_d2.structures import OdamMaps

from .found_again import PROBABILITIES, MaskedImage, masked_maps
from .masked_runs import cell_means, refuse
from .registry import ODAM_METHOD_REGISTRY, Method
from .superpixels import superpixels

__all__ = ["Vps"]


@dataclass(frozen=True)
class Vps(Method):
    """The method."""

    settings: VpsSettings = field(default_factory=VpsSettings)

    def algorithm(self, adapter: Adapter) -> str:
        return "masked images"

    def __call__(self, adapter: Adapter, trace: Any, targets: Targets) -> OdamMaps:
        make = partial(_maps_of, settings=self.settings)
        return masked_maps("VPS", adapter, trace, targets, _similarity, make)


@ODAM_METHOD_REGISTRY.register()
def vps(settings: ExplainSettings) -> Vps:
    """Visual Precision Search (Chen et al., CVPR 2025)."""
    refuse(settings, "VPS", {"score": "probability", "smoothing_sigma": 0, "layer": ""})
    return Vps(settings.vps)


def _similarity(found: Instances, now: Instances, iou: Tensor, target: ClassScore) -> Tensor:
    """(N, M): IoU times the probability of the class that is explained."""
    classes = found.pred_classes
    if target.index is not None:
        classes = torch.full_like(classes, target.index)
    if now.has(PROBABILITIES):
        return iou * precise(now.get(PROBABILITIES))[:, classes].t()
    return iou * now.scores * (classes[:, None] == now.pred_classes)


def _maps_of(image: MaskedImage, settings: VpsSettings) -> OdamMaps:
    labels = superpixels(image.image, settings.regions, adaptive=True)
    count = int(labels.max()) + 1
    passes = passes_of(count, settings.max_passes)
    if not passes:
        raise InputError(
            f"{settings.argument('max_passes')} is {settings.max_passes}, and an image has {count} "
            f"regions, of which to choose the first one takes {2 * count} passes"
        )
    readings = _Readings(image, labels, settings)
    shape = len(image.found), len(image.targets)
    heat = torch.empty(*shape, count, dtype=torch.float64)
    total = shape[0] * shape[1] * (passes + 2)
    with tqdm(total=total, desc="VPS", unit="mask", leave=False, disable=None) as bar:
        try:
            for row, column in torch.cartesian_prod(*map(torch.arange, shape)).tolist():

                def value(subsets: Tensor, row: int = row, column: int = column) -> Tensor:
                    found = readings(subsets)[:, row, column]
                    bar.update(len(subsets))
                    return found

                heat[row, column] = greedy_search(value, count, settings.max_passes).heat(count)
        finally:
            readings.save()
    return image.maps(cell_means(heat[:, :, labels].flatten(0, 1)).unflatten(0, shape))


class _Readings:
    """
    What was read of subsets of regions, for all detections and targets at once: searches share it,
    and an interrupted run goes on from it.

    Args:
        labels: (h, w), numbers of regions.
    """

    def __init__(self, image: MaskedImage, labels: Tensor, settings: VpsSettings):
        self.image, self.labels, self.settings = image, labels, settings
        self.file = image.state_file(settings, [labels], max_passes=1)
        self.values: dict[tuple[int, ...], Tensor] = {}
        self.regions, self.unsaved = int(labels.max()) + 1, 0
        state = self.file.read(self._is_state)
        if state is not None:
            for subset, value in zip(state["subsets"], state["values"], strict=True):
                self.values[_key(subset)] = value

    def _is_state(self, state: dict) -> bool:
        subsets, values = state["subsets"], state["values"]
        return (subsets.dtype, values.dtype) == (torch.bool, torch.float64) and (
            subsets.shape == (len(values), self.regions)
            and values.shape[1:] == (len(self.image.found), len(self.image.targets))
        )

    def __call__(self, subsets: Tensor) -> Tensor:
        """(B, N, T) of subsets (B, R) that are seen."""
        keys = [_key(subset) for subset in subsets]
        missing = {key: row for row, key in enumerate(keys) if key not in self.values}
        rows = list(missing.values())
        for start in range(0, len(rows), self.settings.batch_size):
            self._read(subsets[rows[start : start + self.settings.batch_size]])
        return torch.stack([self.values[key] for key in keys])

    def _read(self, subsets: Tensor) -> None:
        found = self.image.read(subsets[:, self.labels].float())
        self.values.update(zip(map(_key, subsets), found, strict=True))
        self.unsaved += len(subsets)
        if self.unsaved >= self.settings.check_every:
            self.save()

    def save(self) -> None:
        subsets = torch.zeros(len(self.values), self.regions, dtype=torch.bool)
        for row, key in enumerate(self.values):
            subsets[row, list(key)] = True
        shape = len(self.image.found), len(self.image.targets)
        empty = torch.zeros(0, *shape, dtype=torch.float64)
        values = torch.stack(list(self.values.values())) if self.values else empty
        self.file.write({"subsets": subsets, "values": values})
        self.unsaved = 0


def _key(subset: Tensor) -> tuple[int, ...]:
    return tuple(subset.nonzero().squeeze(1).tolist())
