"""
D-CLOSE (Truong et al., "Towards Better Explanations for Object Detection", 2023): a detector is run
on images of which random superpixels are seen, of several levels of coarseness.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from detectron2.structures import Instances
from torch import Tensor

from odam_d2.core.d_close import cascade, segment_mask
from odam_d2.core.errors import InputError
from odam_d2.core.masks import STRIDE
from odam_d2.core.rise import similarities
from odam_d2.modeling.adapters.base import Adapter
from odam_d2.modeling.settings import DCloseSettings, ExplainSettings
from odam_d2.modeling.targets import ClassScore, Targets
from odam_d2.structures import OdamMaps

from .found_again import MaskedImage, class_probabilities, masked_maps
from .masked_runs import cell_means, in_batches, refuse
from .registry import ODAM_METHOD_REGISTRY, Method
from .superpixels import superpixels

__all__ = ["DClose"]


@dataclass(frozen=True)
class DClose(Method):
    """The method."""

    settings: DCloseSettings = field(default_factory=DCloseSettings)

    def algorithm(self, adapter: Adapter) -> str:
        return "masked images"

    def __call__(self, adapter: Adapter, trace: Any, targets: Targets) -> OdamMaps:
        make = partial(_maps_of, settings=self.settings)
        return masked_maps("D-CLOSE", adapter, trace, targets, _similarity, make)


@ODAM_METHOD_REGISTRY.register()
def d_close(settings: ExplainSettings) -> DClose:
    """D-CLOSE (Truong et al., 2023)."""
    refuse(settings, "D-CLOSE", {"score": "probability", "smoothing_sigma": 0, "layer": ""})
    wrong = [name for name in settings.targets if name.startswith("class:")]
    if wrong:
        raise InputError(
            f"D-CLOSE compares the probabilities of all classes, so {settings.argument('targets')} "
            f"may have 'class', and not {', '.join(map(repr, wrong))}"
        )
    return DClose(settings.d_close)


def _similarity(found: Instances, now: Instances, iou: Tensor, _target: ClassScore) -> Tensor:
    """(N, M): IoU times cosine of class probabilities times score, of the same class."""
    like = similarities(iou, class_probabilities(found, found), class_probabilities(now, found))
    same = found.pred_classes[:, None] == now.pred_classes
    return like * now.scores * same


def _maps_of(image: MaskedImage, settings: DCloseSettings) -> OdamMaps:
    segments = [
        superpixels(
            image.image,
            settings.segments * 2**level,
            compactness=settings.compactness,
            sigma=settings.sigma,
        )
        for level in range(settings.levels)
    ]
    values = _read(image, segments, settings)
    height, width = image.size
    grid = -(-height // STRIDE), -(-width // STRIDE)
    sums = torch.zeros(settings.levels, *values.shape[1:], *grid, dtype=torch.float64)
    densities = torch.zeros(settings.levels, *grid, dtype=torch.float64)
    for number, value in enumerate(values):
        cells = cell_means(_masks(segments, range(number, number + 1), settings))[0].double()
        sums[number % settings.levels] += value[:, :, None, None] * cells
        densities[number % settings.levels] += cells
    return image.maps(cascade(sums, densities))


def _masks(segments: list[Tensor], numbers: range, settings: DCloseSettings) -> Tensor:
    """
    (B, h, w). Each is of its number alone, so that batches, and where a run was interrupted, do not
    matter.
    """
    found = []
    for number in numbers:
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + number)
        labels = segments[number % settings.levels]
        found.append(segment_mask(labels, settings.keep_prob, settings.enlarge, generator))
    return torch.stack(found)


def _read(image: MaskedImage, segments: list[Tensor], settings: DCloseSettings) -> Tensor:
    """(K, N, T) of all masks; of what is no class, less what the whole image has."""
    whole = image.read(torch.ones(1, *image.size))[0]
    for number, target in enumerate(image.targets):
        if isinstance(target, ClassScore):
            whole[:, number] = 0

    def is_state(state: dict) -> bool:
        values = state["values"]
        return (values.shape[1:], values.dtype) == (whole.shape, whole.dtype)

    file = image.state_file(settings, segments, num_masks=1)
    state = file.read(is_state)
    values = [] if state is None else [state["values"]]

    def see(numbers: range) -> None:
        values.append(image.read(_masks(segments, numbers, settings)))

    def save() -> None:
        file.write({"values": torch.cat([whole.new_zeros(0, *whole.shape), *values])})

    in_batches("D-CLOSE", sum(map(len, values)), settings, see, save)
    return torch.cat(values)[: settings.num_masks] - whole
