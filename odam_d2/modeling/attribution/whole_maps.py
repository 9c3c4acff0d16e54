"""
Maps that are no windows: on a layer of the backbone, or on the image itself. The network above runs
once more, with a graph, and each map costs a backward pass of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from odam_d2.core.gradients import gradient_heat_maps
from odam_d2.modeling.adapters.head import HeadAdapter
from odam_d2.modeling.adapters.trace import Trace
from odam_d2.modeling.layers import captured
from odam_d2.modeling.targets import Targets
from odam_d2.structures import OdamMaps

from .geometry import whole_geometry
from .head_maps import HeadMaps, Rule, gradient_maps
from .output_maps import check_reached

__all__ = ["image_maps", "layer_maps"]


@torch.enable_grad()
def layer_maps(
    adapter: HeadAdapter,
    trace: Trace,
    targets: Targets,
    layer: str,
    sigma: float,
    max_bytes: int,
    rule: Rule,
) -> OdamMaps:
    """Maps on a layer of the backbone."""
    adapter.check_rerun(trace)
    height, width = trace.images.shape[-2:]
    with captured(adapter.model.backbone, layer, (height, width)) as found:
        features = adapter.features(trace.images)
        decisions = adapter.evaluate(features, trace)
    adapter.check_same(trace, decisions, rerun=True)
    scalars, every = targets.of(decisions), slice(None)
    values = gradient_maps(scalars, found.leaf, trace.image, every, sigma, max_bytes, rule)
    _check_read(values, features, found.leaf, trace, f"layer {layer!r}")
    maps = HeadMaps.of(values.relu_(), trace.image, scalars, decisions)
    geometry = whole_geometry(trace, values, found.stride)
    return targets.maps(maps.values, maps.exponents, maps.saturated, **geometry)


@torch.enable_grad()
def image_maps(
    adapter: HeadAdapter, trace: Trace, targets: Targets, sigma: float, max_bytes: int, rule: Rule
) -> OdamMaps:
    """Maps on the network's input, by a rule that gives no negative values."""
    adapter.check_rerun(trace)
    images = trace.images.detach().requires_grad_()
    features = adapter.features(images)
    decisions = adapter.evaluate(features, trace)
    adapter.check_same(trace, decisions, rerun=True)
    scalars = targets.of(decisions)
    of_targets = [
        gradient_heat_maps(
            scalar.values, images, trace.image, sigma, max_bytes=max_bytes, rule=rule
        )
        for scalar in scalars
    ]
    values = torch.stack(of_targets, dim=1)
    _check_read(values, features, images, trace, "the images")
    maps = HeadMaps.of(values, trace.image, scalars, decisions)
    geometry = whole_geometry(trace, values, 1.0)
    return targets.maps(maps.values, maps.exponents, maps.saturated, **geometry)


def _check_read(
    values: Tensor, features: list[Tensor], leaf: Tensor, trace: Trace, where: str
) -> None:
    """
    Tell where maps (N, T, h, w) are zero because what a detection was read from does not come from
    the leaf: another level of a pyramid, or a backbone that runs without gradients.
    """
    reached = values.flatten(2).any(dim=2)
    empty = ~reached.any(dim=1)
    for level in trace.levels[empty].unique().tolist():
        feature = features[level]
        if feature.requires_grad:
            (gradient,) = torch.autograd.grad(
                feature.sum(), leaf, retain_graph=True, allow_unused=True
            )
            if gradient is not None:  # a map that is zero for another reason
                reached |= (trace.levels == level).any(dim=1, keepdim=True)
    check_reached(reached, trace.image.tolist(), where)
