"""
Baselines that know where a detection's box is and nothing else of the image: a map that is not
better than these has not shown that it looks at anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from odam_d2.core.errors import InputError
from odam_d2.modeling.adapters.base import Adapter
from odam_d2.modeling.adapters.outputs import OutputsTrace
from odam_d2.modeling.settings import ExplainSettings
from odam_d2.modeling.targets import Side, Target, Targets
from odam_d2.structures import OdamMaps

from .geometry import predicted_boxes
from .registry import ODAM_METHOD_REGISTRY, Method

__all__ = ["PositionMethod"]

_CELLS = 32
"""Cells along the longer side of a box; a map is a square of twice that around its centre."""

# Standard deviations of the Gaussians, in shares of the box's width and height.
_BLOB, _POINT = 1 / 4, 1 / 16

# Just inside of the middle of each side, where what ends it lies more often than half outside of
# the box; in shares of width and height from the upper left corner.
_NEAR, _FAR = 1 / 16, 15 / 16
_MIDDLES = {"left": (_NEAR, 0.5), "top": (0.5, _NEAR), "right": (_FAR, 0.5), "bottom": (0.5, _FAR)}
_CENTRE = (0.5, 0.5)


@dataclass(frozen=True)
class PositionMethod(Method):
    """
    A Gaussian at a place of the predicted box.

    Attributes:
        spread: standard deviation, in shares of the box's width and height.
        at_sides: whether the map of a side is just inside of the middle of that side; all other
            maps are at the centre of the box.
    """

    spread: float
    at_sides: bool = False
    asks_detector: ClassVar[bool] = False

    def algorithm(self, adapter: Adapter) -> str:
        return "position"

    def __call__(self, adapter: Adapter, trace: Any, targets: Targets) -> OdamMaps:
        boxes = predicted_boxes(adapter, trace)
        if isinstance(trace, OutputsTrace):
            sizes = [tuple(given["image"].shape[-2:]) for given in trace.inputs]
        else:
            sizes = trace.image_sizes
        counts = torch.tensor(trace.counts(), device=boxes.device)
        image_sizes = torch.tensor(sizes, device=boxes.device)
        image_sizes = image_sizes.repeat_interleave(counts, dim=0, output_size=len(boxes))
        limits = image_sizes.flip(1).repeat(1, 2)  # of x, y, x, y
        boxes = boxes.clamp(min=0).minimum(limits)
        places = [_MIDDLES[t.name] if self._is_beside(t) else _CENTRE for t in targets]
        values, origins, strides = self._gaussians(boxes, boxes.new_tensor(places))
        grid_sizes = (image_sizes / strides[:, None]).ceil().to(image_sizes.dtype)
        return targets.maps(
            values,
            origins=origins,
            strides=strides,
            grid_sizes=grid_sizes,
            image_sizes=image_sizes,
            levels=counts.new_zeros(len(boxes)),
        )

    def _is_beside(self, target: Target) -> bool:
        return self.at_sides and isinstance(target, Side)

    def _gaussians(self, boxes: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            boxes: (N, 4), XYXY in pixels of the network's input.
            places: (T, 2), (x, y) in shares of the box.

        Returns:
            Values (N, T, h, w), first (row, column) of each window (N, 2), and strides (N,): a cell
            is a share of the box's longer side, but at least a pixel.
        """
        corner, extent = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
        strides = (extent.amax(dim=1) / _CELLS).clamp(min=1)
        sigma = (self.spread * extent).maximum(strides[:, None] / 2)
        peaks = corner[:, None] + places * extent[:, None]
        first = ((corner + extent / 2) / strides[:, None]).floor().long() - _CELLS
        cells = torch.arange(2 * _CELLS + 1, device=boxes.device)
        at = (first[..., None] + cells + 0.5) * strides[:, None, None]  # (N, 2, cells) pixels
        distance = (at[:, None] - peaks[..., None]) / sigma[:, None, :, None]
        columns, rows = torch.exp(-0.5 * distance**2).unbind(dim=2)
        return rows[..., :, None] * columns[..., None, :], first.flip(1), strides


def _method(name: str, settings: ExplainSettings, **arguments: Any) -> PositionMethod:
    for setting in ("layer", "smoothing_sigma"):
        if getattr(settings, setting):
            raise InputError(
                f"{settings.argument('method')} {name!r} reads no layer; leave "
                f"{settings.argument(setting)} at {type(getattr(settings, setting))()!r}"
            )
    return PositionMethod(**arguments)


@ODAM_METHOD_REGISTRY.register()
def box_blob(settings: ExplainSettings) -> PositionMethod:
    """A Gaussian as wide as the box, at its centre."""
    return _method("box_blob", settings, spread=_BLOB)


@ODAM_METHOD_REGISTRY.register()
def box_centre(settings: ExplainSettings) -> PositionMethod:
    """The centre of the box."""
    return _method("box_centre", settings, spread=_POINT)


@ODAM_METHOD_REGISTRY.register()
def side_middle(settings: ExplainSettings) -> PositionMethod:
    """Inside of the middle of the explained side; the centre of the box for any other target."""
    return _method("side_middle", settings, spread=_POINT, at_sides=True)
