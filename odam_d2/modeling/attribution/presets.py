"""What a user picks by name who does not want to choose method and layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from detectron2.modeling import Backbone
from torch import Tensor

from odam_d2.core import cam
from odam_d2.core.errors import InputError
from odam_d2.core.heatmap import smooth
from odam_d2.core.masks import lengths_of
from odam_d2.modeling.adapters.base import Adapter
from odam_d2.modeling.adapters.head import HeadAdapter
from odam_d2.modeling.layers import finest_layers
from odam_d2.modeling.settings import ExplainSettings
from odam_d2.modeling.targets import Targets
from odam_d2.structures import OdamMaps

from .geometry import image_geometry, predicted_boxes
from .gradients import GradientMethod
from .masked_runs import refuse
from .registry import ODAM_PRESET_REGISTRY, Method
from .rise import Rise

__all__ = ["EarlyLayer", "faithful", "gradient"]


@dataclass(frozen=True)
class EarlyLayer(Method):
    """
    Centred maps where the backbone has not carried evidence away from where it is yet, and features
    are more than edges: on the last of its layers with half as many cells along a side as the
    finest, smoothed. A backward pass for each map.

    Attributes:
        smoothing: standard deviation of the Gaussian, in lengths of the box: geometric means of its
            width and height.
        max_bytes: bound on temporary tensors.
        signed: whether maps keep their sign.
    """

    smoothing: float = 0.08
    max_bytes: int = 2**26
    signed: bool = False

    def algorithm(self, adapter: Adapter) -> str:
        return self._centred(adapter).algorithm(adapter)

    def check(self, adapter: Adapter, targets: Targets) -> None:
        self._centred(adapter).check(adapter, targets)

    def _centred(self, adapter: Adapter) -> GradientMethod:
        layer = ""
        if isinstance(adapter, HeadAdapter) and isinstance(adapter.model.backbone, Backbone):
            layer = finest_layers(adapter.model.backbone, 2)[-1]
        return GradientMethod(cam.centred, layer, max_bytes=self.max_bytes, signed=True)

    def __call__(self, adapter: Adapter, trace: Any, targets: Targets) -> OdamMaps:
        differentiated = Targets(list(targets))  # 'combined' is made at the end
        found = self._centred(adapter)(adapter, trace, differentiated)
        if not len(found):
            return OdamMaps.empty(targets.names, found.values, self.signed)
        counts = trace.counts()
        boxes = predicted_boxes(adapter, trace).split(counts)
        return OdamMaps.cat(
            [
                self._smoothed(maps, of_image, targets)
                for maps, of_image in zip(found.split(counts), boxes, strict=True)
                if len(maps)
            ]
        )

    def _smoothed(self, maps: OdamMaps, boxes: Tensor, targets: Targets) -> OdamMaps:
        """
        Args:
            maps: of the detections of one image.
            boxes: of these detections.
        """
        height, width = maps.image_sizes[0].tolist()
        # Half a cell is no less smooth than a whole one, and shows a peak between two cells.
        stride = float(maps.strides.min()) / 2
        sigmas = (self.smoothing * lengths_of(boxes, (height, width)) / stride).tolist()
        on_grid = zip(maps.on_grid(stride), sigmas, strict=True)
        values = torch.stack([smooth(of_box, sigma) for of_box, sigma in on_grid])
        values = values if self.signed else values.relu_()
        image = torch.zeros(len(values), dtype=torch.int64, device=values.device)
        geometry = image_geometry(image, [(height, width)], values, stride)
        return targets.maps(values, saturated=maps.saturated, signed=self.signed, **geometry)


@ODAM_PRESET_REGISTRY.register()
def faithful(settings: ExplainSettings) -> Rise:
    """What shows causes best for some two hundred passes of the network for each image."""
    refuse(settings, "RISE", {"smoothing_sigma": 0, "layer": ""})
    return Rise(settings.rise, settings.signed, regressed=True)


@ODAM_PRESET_REGISTRY.register()
def gradient(settings: ExplainSettings) -> EarlyLayer:
    """What shows causes best for one backward pass of the network for each map."""
    if settings.smoothing_sigma:
        raise InputError(
            f"{settings.argument('preset')} 'gradient' smooths its maps by itself; leave "
            f"{settings.argument('smoothing_sigma')} at 0"
        )
    return EarlyLayer(max_bytes=settings.max_bytes, signed=settings.signed)
