"""
LayerCAM (Jiang et al., "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization",
TIP 2021): maps of several layers, put together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.modeling import Backbone

from odam_d2.core import cam
from odam_d2.core.errors import InputError
from odam_d2.core.heatmap import normalize
from odam_d2.modeling.adapters.base import Adapter
from odam_d2.modeling.adapters.head import HeadAdapter
from odam_d2.modeling.layers import finest_layer
from odam_d2.modeling.settings import ExplainSettings, LayerCamSettings
from odam_d2.modeling.targets import Targets
from odam_d2.structures import OdamMaps

from .geometry import image_geometry
from .gradients import GradientMethod
from .registry import ODAM_METHOD_REGISTRY, Method

__all__ = ["LayerCam"]


@dataclass(frozen=True)
class LayerCam(Method):
    """
    The maximum over the layers of maps that are scaled to a peak of one, those of all layers but
    the last by ``tanh(gamma x)``, which lifts what is faint in them.

    Attributes:
        settings: which layers, and gamma.
        smoothing_sigma, max_bytes: as for :class:`GradientMethod`.
    """

    settings: LayerCamSettings = field(default_factory=LayerCamSettings)
    smoothing_sigma: float = 0.0
    max_bytes: int = 2**26

    def algorithm(self, adapter: Adapter) -> str:
        return " and ".join(method.algorithm(adapter) for method in self._methods(adapter))

    def check(self, adapter: Adapter, targets: Targets) -> None:
        for method in self._methods(adapter):
            method.check(adapter, targets)

    def _methods(self, adapter: Adapter) -> list[GradientMethod]:
        """One for each layer, from the shallow to the deep."""
        layers = list(self.settings.layers)
        if not layers and isinstance(adapter, HeadAdapter):
            backbone = adapter.model.backbone
            layers = [finest_layer(backbone)] if isinstance(backbone, Backbone) else []
        limits = (self.smoothing_sigma, self.max_bytes)
        of_head = [] if self.settings.layers else [""]
        return [GradientMethod(cam.layer_cam, x, *limits) for x in (*layers, *of_head)]

    def __call__(self, adapter: Adapter, trace: Any, targets: Targets) -> OdamMaps:
        differentiated = Targets(list(targets))  # 'combined' is made at the end
        found = [method(adapter, trace, differentiated) for method in self._methods(adapter)]
        if not len(found[0]):
            return OdamMaps.empty(targets.names, found[0].values)
        stride = min(float(maps.strides.min()) for maps in found)
        of_images = zip(*(maps.split(trace.counts()) for maps in found), strict=True)
        return OdamMaps.cat(
            [self._fused(parts, stride, targets) for parts in of_images if len(parts[0])]
        )

    def _fused(self, parts: tuple[OdamMaps, ...], stride: float, targets: Targets) -> OdamMaps:
        """
        Args:
            parts: of the detections of one image, on each of the layers.
            stride: pixels per cell of the grid of the result.
        """
        *shallow, deep = (normalize(maps.on_grid(stride)) for maps in parts)
        lifted = [torch.tanh(self.settings.gamma * maps) for maps in shallow]
        values = torch.stack([*lifted, deep]).amax(dim=0)
        saturated = torch.stack([maps.saturated for maps in parts]).all(dim=0)
        image = torch.zeros(len(values), dtype=torch.int64, device=values.device)
        height, width = parts[0].image_sizes[0].tolist()
        geometry = image_geometry(image, [(height, width)], values, stride)
        return targets.maps(values, saturated=saturated, **geometry)


@ODAM_METHOD_REGISTRY.register()
def layer_cam(settings: ExplainSettings) -> LayerCam:
    """LayerCAM (Jiang et al., TIP 2021)."""
    if settings.layer:
        raise InputError(
            f"{settings.argument('method')} 'layer_cam' has layers of its own, in "
            f"{settings.layer_cam.argument('layers')}; leave {settings.argument('layer')} empty"
        )
    return LayerCam(settings.layer_cam, settings.smoothing_sigma, settings.max_bytes)
