"""
Dense heads: an output reads a window of one level, so its gradient is pushed back through the
head's convolutions on that window alone (design: "dense heads").
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odam_d2.core import cam
from odam_d2.core.dense_windows import ConvLayer, DenseHead
from odam_d2.core.heatmap import smoothing_radius
from odam_d2.core.pooled_gradients import reads
from odam_d2.core.window_cells import FeatureWindows
from odam_d2.modeling.adapters.dense import DenseAdapter
from odam_d2.modeling.adapters.towers import convolutions, level_scales
from odam_d2.modeling.adapters.trace import Decisions, Trace
from odam_d2.modeling.targets import Differentiable, Targets

from .head_maps import HeadMaps, algorithm, autograd_head_maps, head_maps

__all__: list[str] = []

Seeds = dict[int, Tensor]
"""Derivatives (N, size) of a target by each predictor that it reads, by its number."""


@algorithm.register
def _(adapter: DenseAdapter) -> str:
    if not adapter.local:
        return "autograd"
    norms = {type(m) for name in adapter.tower_names for m in adapter.tower(name)}
    return "window, constant statistics" if nn.GroupNorm in norms else "window"


@head_maps.register
def _(
    adapter: DenseAdapter,
    trace: Trace,
    targets: Targets,
    sigma: float,
    max_bytes: int,
    *,
    centred: bool = False,
) -> HeadMaps:
    if not adapter.local:
        rule = cam.centred if centred else cam.odam
        return autograd_head_maps(adapter, trace, targets, sigma, max_bytes, rule)
    scalars, decisions, seeds = _differentiated(adapter, trace, targets)
    features = [cam.centre(x) for x in trace.features] if centred else trace.features
    heads = {tower: _dense_head(adapter, tower, trace) for tower in adapter.tower_names}
    radius = max(head.radius for head in heads.values()) + smoothing_radius(sigma)
    cells = trace.places.anchors.cells
    shared = FeatureWindows.around(features, cells, radius)
    parts: list[list[Tensor]] = [[] for _ in targets]
    for tower, head in heads.items():
        numbers = [n for n, of in enumerate(adapter.towers.values()) if of == tower]
        used = [t for t, of_target in enumerate(seeds) if any(n in of_target for n in numbers)]
        if used:
            outputs = torch.cat([_at_cells(adapter, n, trace, seeds, used) for n in numbers], dim=2)
            of_layers = zip(*trace.places.masks[tower], strict=True)
            masks = [[of_level.active for of_level in levels] for levels in of_layers]
            inputs = masks, features, outputs, cells, sigma, True, max_bytes, shared
            maps = head.heat_maps(*inputs).values
            margin = radius - maps.shape[-1] // 2
            maps = F.pad(maps, (margin,) * 4) if margin else maps
            for target, of_target in zip(used, maps.unbind(dim=1), strict=True):
                parts[target].append(of_target)
    none = trace.features[0].new_zeros((len(trace), 2 * radius + 1, 2 * radius + 1))
    values = [reduce(torch.add, of_target) if of_target else none for of_target in parts]
    origins = torch.stack([cells.row, cells.column], dim=1) - radius
    of_rows = HeadMaps.of(torch.stack(values, dim=1), origins, scalars, decisions)
    return of_rows.first(len(trace))


def _differentiated(
    adapter: DenseAdapter, trace: Trace, targets: Targets
) -> tuple[list[Differentiable], Decisions, list[Seeds]]:
    """
    The scalars of N detections, the decisions that they are read off, and the derivatives of each
    target by the predictors that it reads.

    One backward pass gives all of them, of T N detections: each target has rows of its own.
    """
    num, count = len(trace), len(targets)
    rows = torch.arange(num, device=trace.image.device).repeat(count)
    outputs = adapter.outputs_at(trace.places.outputs, trace)
    leaves = [x.detach()[rows].requires_grad_() for x in outputs]
    with torch.enable_grad():
        decisions = adapter.decide_outputs(leaves, trace.select(rows))
        scalars = targets.of(decisions)
        values = torch.stack([scalar.values for scalar in scalars]).view(count, count, num)
        found = torch.autograd.grad(values.diagonal().sum(), leaves, allow_unused=True)
    of_targets = [None if x is None else x.view(count, num, -1).unbind() for x in found]
    seeds = [
        {n: of[t] for n, of in enumerate(of_targets) if of is not None and read[n]}
        for t, read in enumerate(reads([scalar.values for scalar in scalars], leaves))
    ]
    return scalars, decisions, seeds


def _dense_head(adapter: DenseAdapter, tower: str, trace: Trace) -> DenseHead:
    layers = []
    of_layers = zip(*trace.places.masks[tower], strict=True)
    for conv, levels in zip(convolutions(adapter.tower(tower)), of_layers, strict=True):
        layers.append(ConvLayer(conv.weight, level_scales(levels)))
    predictors = [predictor.weight for predictor in adapter.predictors(tower)]
    return DenseHead(layers, torch.cat(predictors))


def _at_cells(
    adapter: DenseAdapter, number: int, trace: Trace, seeds: Sequence[Seeds], used: Sequence[int]
) -> Tensor:
    """
    Derivatives (N, t, A * size) of some targets by all outputs of a predictor at the detections'
    cells.
    """
    name, size = list(adapter.towers)[number], adapter.output_sizes[number]
    none = trace.features[0].new_zeros((len(trace), size))
    chosen = torch.stack([seeds[t].get(number, none) for t in used], dim=1)
    per_cell = getattr(adapter.model.head, name).out_channels // size
    return trace.places.anchors.spread(chosen, per_cell)
