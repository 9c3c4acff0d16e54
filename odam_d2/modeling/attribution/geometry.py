"""Where maps lie on their images."""

from __future__ import annotations

import torch
from torch import Tensor

from odam_d2.modeling.adapters.head import HeadAdapter
from odam_d2.modeling.adapters.trace import Trace

__all__ = ["level_geometry", "whole_geometry"]


def level_geometry(adapter: HeadAdapter, trace: Trace, origins: Tensor) -> dict[str, Tensor]:
    """
    What ``OdamMaps`` wants to know of windows of the features that the head read.

    Args:
        origins: (N, 2), the (row, column) of each window on the finest level that the detection was
            read from.
    """
    level = trace.levels.amin(dim=1)
    grids = origins.new_tensor([feature.shape[-2:] for feature in trace.features])
    return {
        "origins": origins,
        "strides": trace.features[0].new_tensor(adapter.strides)[level],
        "grid_sizes": grids[level],
        "image_sizes": origins.new_tensor(trace.image_sizes)[trace.image],
        "levels": level,
    }


def whole_geometry(trace: Trace, values: Tensor, stride: float) -> dict[str, Tensor]:
    """
    The same of maps of whole images.

    Args:
        values: (N, T, h, w).
        stride: pixels of the network's input per cell.
    """
    image_sizes = trace.image.new_tensor(trace.image_sizes)[trace.image]
    pair = torch.ones_like(image_sizes)
    return {
        "origins": torch.zeros_like(pair),
        "strides": values.new_full((len(values),), stride),
        "grid_sizes": pair * pair.new_tensor(values.shape[-2:]),
        "image_sizes": image_sizes,
        "levels": torch.zeros_like(trace.image),
    }
