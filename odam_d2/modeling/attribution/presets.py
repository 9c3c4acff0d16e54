"""What a user picks by name who does not want to choose method and layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.modeling import Backbone

from odam_d2.core import cam
from odam_d2.core.errors import InputError
from odam_d2.modeling.adapters.base import Adapter
from odam_d2.modeling.adapters.head import HeadAdapter
from odam_d2.modeling.adapters.outputs import OutputsTrace
from odam_d2.modeling.layers import finest_layer
from odam_d2.modeling.settings import ExplainSettings
from odam_d2.modeling.targets import Side, Target, Targets
from odam_d2.structures import OdamMaps

from .geometry import image_geometry
from .gradients import GradientMethod
from .integrated_gradients import IntegratedGradients
from .registry import ODAM_PRESET_REGISTRY, Method
from .rise import Rise, rise

__all__ = ["ByTarget", "faithful", "gradient"]

_SIDES_SIGMA = 1.5
"""Of the Gaussian that smooths maps of sides, in cells of the layer."""


@dataclass(frozen=True)
class ByTarget(Method):
    """
    Maps of sides where the backbone has not carried evidence away from where it is yet, on its
    finest layer; all others on what the head reads, where they are sharper. Both on one grid.

    Attributes:
        max_bytes: bound on temporary tensors.
        signed: whether maps keep their sign.
    """

    max_bytes: int = 2**26
    signed: bool = False

    def algorithm(self, adapter: Adapter) -> str:
        methods = self._others(adapter), self._sides(adapter)
        return " and ".join(method.algorithm(adapter) for method in methods)

    def check(self, adapter: Adapter, targets: Targets) -> None:
        self._others(adapter).check(adapter, targets)

    def _others(self, adapter: Adapter) -> Method:
        if isinstance(adapter, HeadAdapter):
            return IntegratedGradients(max_bytes=self.max_bytes, signed=self.signed)
        return GradientMethod(cam.centred, max_bytes=self.max_bytes, signed=self.signed)

    def _sides(self, adapter: Adapter) -> Method:
        layer = ""
        if isinstance(adapter, HeadAdapter) and isinstance(adapter.model.backbone, Backbone):
            layer = finest_layer(adapter.model.backbone)
        return GradientMethod(cam.centred, layer, _SIDES_SIGMA, self.max_bytes, self.signed)

    def __call__(self, adapter: Adapter, trace: Any, targets: Targets) -> OdamMaps:
        sides = [target for target in targets if isinstance(target, Side)]
        others = [target for target in targets if not isinstance(target, Side)]
        found = [
            (chosen, method(adapter, trace, Targets(chosen)))
            for chosen, method in ((sides, self._sides(adapter)), (others, self._others(adapter)))
            if chosen
        ]
        stride = min(float(maps.strides.min()) for _, maps in found)
        if isinstance(trace, OutputsTrace):
            sizes = [tuple(given["image"].shape[-2:]) for given in trace.inputs]
        else:
            sizes = trace.image_sizes
        counts = trace.counts()
        parts = zip(*(maps.split(counts) for _, maps in found), strict=True)
        order = [target for chosen, _ in found for target in chosen]
        of_images = [
            _on_one_grid(targets, order, of_image, size, stride)
            for of_image, size in zip(parts, sizes, strict=True)
            if len(of_image[0])
        ]
        return OdamMaps.cat(of_images)


def _on_one_grid(
    targets: Targets,
    order: Sequence[Target],
    parts: Sequence[OdamMaps],
    size: tuple[int, int],
    stride: float,
) -> OdamMaps:
    """
    Args:
        order: whose maps the parts have, one part after the other.
        parts: of the same detections of one image.
        size: its (height, width).
        stride: pixels per cell of the grid.
    """
    columns = [order.index(target) for target in targets]
    values, saturated = (
        torch.stack([x[:, column] for column in columns], dim=1)  # no list is copied to the device
        for x in (
            torch.cat([maps.on_grid(stride) for maps in parts], dim=1),
            torch.cat([maps.saturated for maps in parts], dim=1),
        )
    )
    image = torch.zeros(len(values), dtype=torch.int64, device=values.device)
    geometry = image_geometry(image, [size], values, stride)
    signed = parts[0].signed
    return targets.maps(values, saturated=saturated, signed=signed, **geometry)


@ODAM_PRESET_REGISTRY.register()
def faithful(settings: ExplainSettings) -> Rise:
    """What shows causes best for some two hundred passes of the network for each image."""
    return rise(settings)


@ODAM_PRESET_REGISTRY.register()
def gradient(settings: ExplainSettings) -> ByTarget:
    """What shows causes best for a few backward passes of the head, and one more of a side."""
    if settings.smoothing_sigma:
        raise InputError(
            f"{settings.argument('preset')} 'gradient' smooths its maps by itself; leave "
            f"{settings.argument('smoothing_sigma')} at 0"
        )
    return ByTarget(settings.max_bytes, settings.signed)
