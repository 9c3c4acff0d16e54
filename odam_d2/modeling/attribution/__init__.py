"""
Methods that make heat maps of what an adapter knows of a detector, one file each, and their
registry. Importing this package registers them.
"""

from . import (  # noqa: F401  -- register
    d_close,
    g_came,
    integrated_gradients,
    layer_cam,
    pooled,
    position,
    presets,
    smooth_grad,
    vps,
    windows,
)
from .d_rise import DRise
from .gradients import GradientMethod
from .head_maps import algorithm, head_maps
from .registry import (
    ODAM_METHOD_REGISTRY,
    ODAM_PRESET_REGISTRY,
    Method,
    method_names,
    preset_names,
)
from .rise import Rise

__all__ = [
    "ODAM_METHOD_REGISTRY",
    "ODAM_PRESET_REGISTRY",
    "DRise",
    "GradientMethod",
    "Method",
    "Rise",
    "algorithm",
    "head_maps",
    "method_names",
    "preset_names",
]
