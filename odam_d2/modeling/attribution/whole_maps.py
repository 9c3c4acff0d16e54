"""
Maps that are no windows: on a layer of the backbone, or on the image itself. The network above runs
once more, with a graph, and each map costs a backward pass of it.
"""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor

from odam_d2.core.gradients import Cut
from odam_d2.core.windows import computes_together
from odam_d2.modeling.adapters.gradient_checks import depend_on
from odam_d2.modeling.adapters.head import HeadAdapter
from odam_d2.modeling.adapters.trace import Trace
from odam_d2.modeling.layers import CapturedLayer, captured
from odam_d2.modeling.targets import Targets
from odam_d2.structures import OdamMaps

from .geometry import whole_geometry
from .head_maps import HeadMaps, Rule, gradient_maps, rule_at, scalars_of, without
from .output_maps import check_reached

__all__ = ["whole_maps"]


@torch.enable_grad()
def whole_maps(
    adapter: HeadAdapter,
    trace: Trace,
    targets: Targets,
    layer: str | None,
    sigma: float,
    max_bytes: int,
    rule: Rule,
    *,
    signed: bool = False,
) -> OdamMaps:
    """Maps on a layer of the backbone, or without one on the network's input."""
    adapter.check_rerun(trace)
    images, where, found = trace.images, f"layer {layer!r}", CapturedLayer()
    height, width = images.shape[-2:]
    with ExitStack() as stack:
        if layer is None:
            images, where = images.detach().requires_grad_(), "the images"
            found.feature, found.stride = images, 1.0
        else:
            found = stack.enter_context(captured(adapter.model.backbone, layer, (height, width)))
        features = adapter.features(images)
        read = features
        # On a device passes for several maps at once, which go through all levels, are quicker.
        if not computes_together(images.device):
            read = [feature.detach().requires_grad_() for feature in features]
        decisions = adapter.evaluate(read, trace)
    adapter.check_same(trace, decisions, rerun=True)
    scalars, rule = targets.of(decisions), rule_at(rule, found.stride)
    values = scalars[0].values.new_zeros(len(trace), len(scalars), *found.leaf.shape[-2:])
    cut: Cut = ()
    every = [(list(range(len(read))), torch.arange(len(trace), device=images.device))]
    for levels, index in every if read is features else trace.by_levels():
        if read is not features:
            # Backwards through the levels that these were read from, unless the head mixes levels.
            mixed = bool(depend_on(scalars_of(scalars, index), without(read, levels)))
            cut = [
                pair
                for number, pair in enumerate(zip(features, read, strict=True))
                if number in levels or mixed
            ]
        limits = (sigma, max_bytes, rule, cut)
        values[index] = gradient_maps(scalars, found.leaf, trace.image, index, *limits)
    _check_read(values, features, found.leaf, trace, where)
    values = values if signed else values.relu_()
    maps = HeadMaps.of(values, trace.image, scalars, decisions)
    geometry = whole_geometry(trace, values, found.stride)
    return targets.maps(values, maps.exponents, maps.saturated, signed=signed, **geometry)


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
