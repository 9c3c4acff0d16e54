"""Where maps lie on their images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from odam_d2.core.gradients import precise
from odam_d2.modeling.adapters.base import Adapter
from odam_d2.modeling.adapters.head import HeadAdapter, head_adapter
from odam_d2.modeling.adapters.outputs import OutputsTrace
from odam_d2.modeling.adapters.trace import Decisions, Trace

__all__ = ["image_geometry", "level_geometry", "predicted_boxes", "whole_geometry"]


def predicted_boxes(adapter: Adapter, trace: Any) -> Tensor:
    """(N, 4), XYXY in pixels of the network's input, not clipped."""
    if isinstance(trace, OutputsTrace):
        decisions = Decisions.cat(trace.decide(list(trace.inputs)))
    else:
        decisions = head_adapter(adapter).decide(trace)
    return precise(decisions.boxes.detach())


def level_geometry(adapter: HeadAdapter, trace: Trace, origins: Tensor) -> dict[str, Any]:
    """
    What ``OdamMaps`` wants to know of windows of the features that the head read.

    Args:
        origins: (N, 2), the (row, column) of each window on the finest level that the detection was
            read from.
    """
    level = trace.levels.amin(dim=1)
    grids = [
        (stride, *feature.shape[-2:])
        for stride, feature in zip(adapter.strides, trace.features, strict=True)
    ]
    # All numbers in one table: each copy from the host is waited for.
    sizes = [(0, *size) for size in trace.image_sizes]
    table = torch.tensor([*grids, *sizes], dtype=torch.float64, device=origins.device)
    of_level, of_image = table[level], table[len(grids) + trace.image, 1:]
    return {
        "origins": origins,
        "strides": of_level[:, 0].to(trace.features[0].dtype),
        "grid_sizes": of_level[:, 1:].to(origins.dtype),
        "image_sizes": of_image.to(origins.dtype),
        "levels": level,
    }


def whole_geometry(trace: Trace, values: Tensor, stride: float) -> dict[str, Any]:
    """
    The same of maps of whole images.

    Args:
        values: (N, T, h, w).
        stride: pixels of the network's input per cell.
    """
    return image_geometry(trace.image, trace.image_sizes, values, stride)


def image_geometry(
    image: Tensor, sizes: Sequence[tuple[int, int]], values: Tensor, stride: float
) -> dict[str, Any]:
    """As :func:`whole_geometry`, of the image (N,) of each instance and (height, width) of each."""
    image_sizes = image.new_tensor(sizes).view(-1, 2)[image]
    pair = torch.ones_like(image_sizes)
    return {
        "origins": torch.zeros_like(pair),
        "strides": values.new_full((len(values),), stride),
        "grid_sizes": pair * pair.new_tensor(values.shape[-2:]),
        "image_sizes": image_sizes,
        "levels": torch.zeros_like(image),
    }
