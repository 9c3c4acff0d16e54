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

from odam_d2.core.dense_windows import ConvLayer, DenseHead
from odam_d2.core.heatmap import smoothing_radius
from odam_d2.core.window_cells import Windows
from odam_d2.modeling.adapters.dense import DenseAdapter
from odam_d2.modeling.adapters.towers import convolutions, level_scales
from odam_d2.modeling.adapters.trace import Trace
from odam_d2.modeling.targets import Differentiable, Targets

from .head_maps import HeadMaps, algorithm, autograd_head_maps, head_maps

__all__: list[str] = []

Seeds = tuple[Tensor | None, ...]
"""Derivatives (N, size), None for none: of a target by each predictor, or of each by one."""


@algorithm.register
def _(adapter: DenseAdapter) -> str:
    if not adapter.local:
        return "autograd"
    norms = {type(m) for name in adapter.tower_names for m in adapter.tower(name)}
    return "window, constant statistics" if nn.GroupNorm in norms else "window"


@head_maps.register
def _(
    adapter: DenseAdapter, trace: Trace, targets: Targets, sigma: float, max_bytes: int
) -> HeadMaps:
    if not adapter.local:
        return autograd_head_maps(adapter, trace, targets, sigma, max_bytes)
    outputs = [x.detach() for x in adapter.outputs_at(trace.places.outputs, trace)]
    with torch.enable_grad():
        for of_predictor in outputs:
            of_predictor.requires_grad_()
        decisions = adapter.decide_outputs(outputs, trace)
        scalars = targets.of(decisions)
        seeds = scalar_gradients(scalars, outputs)
    of_predictors = dict(zip(adapter.towers, zip(*seeds, strict=True), strict=True))
    heads = {tower: _dense_head(adapter, tower, trace) for tower in adapter.tower_names}
    radius = max(head.radius for head in heads.values())
    parts = []
    for tower, head in heads.items():
        windows = _tower_maps(adapter, tower, head, of_predictors, trace, sigma, max_bytes)
        margin = radius - head.radius
        parts.append(F.pad(windows.values, (margin,) * 4))
        origins = torch.stack([windows.row - margin, windows.column - margin], dim=1)
    return HeadMaps.of(reduce(Tensor.add_, parts).relu_(), origins, scalars, decisions)


def scalar_gradients(scalars: Sequence[Differentiable], inputs: Sequence[Tensor]) -> list[Seeds]:
    """
    For each target, the derivative of the sum of its scalars by each input, None where it does not
    read that. The graph is retained.
    """
    return [
        torch.autograd.grad(scalar.values.sum(), inputs, retain_graph=True, allow_unused=True)
        for scalar in scalars
    ]


def _dense_head(adapter: DenseAdapter, tower: str, trace: Trace) -> DenseHead:
    layers = []
    of_layers = zip(*trace.places.masks[tower], strict=True)
    for conv, levels in zip(convolutions(adapter.tower(tower)), of_layers, strict=True):
        layers.append(ConvLayer(conv.weight.detach(), level_scales(levels)))
    predictors = [predictor.weight.detach() for predictor in adapter.predictors(tower)]
    return DenseHead(layers, torch.cat(predictors))


def _tower_maps(
    adapter: DenseAdapter,
    tower: str,
    head: DenseHead,
    seeds: dict[str, Seeds],
    trace: Trace,
    sigma: float,
    max_bytes: int,
) -> Windows:
    """
    Signed maps of what the targets owe to one tower.

    Args:
        seeds: of each predictor.

    Returns:
        Windows of values (N, T, h, h).
    """
    anchors = trace.places.anchors
    names = [name for name, of in adapter.towers.items() if of == tower]
    num_targets = len(seeds[names[0]])
    used = [t for t in range(num_targets) if any(seeds[n][t] is not None for n in names)]
    side = 2 * (head.radius + smoothing_radius(sigma)) + 1
    values = trace.features[0].new_zeros((len(trace), num_targets, side, side))
    row, column = (x - side // 2 for x in (anchors.cells.row, anchors.cells.column))
    if not used:
        return Windows(values, row, column)
    spread = []
    for name in names:
        size = adapter.output_sizes[list(adapter.towers).index(name)]
        none = values.new_zeros(len(trace), size)
        of_targets = [seeds[name][t] for t in used]
        chosen = [none if seed is None else seed for seed in of_targets]
        per_cell = getattr(adapter.model.head, name).out_channels // size
        spread.append(anchors.spread(torch.stack(chosen, dim=1), per_cell))
    of_layers = zip(*trace.places.masks[tower], strict=True)
    windows = head.heat_maps(
        [[of_level.active for of_level in levels] for levels in of_layers],
        trace.features,
        torch.cat(spread, dim=2),
        anchors.cells,
        sigma=sigma,
        signed=True,
        max_bytes=max_bytes,
    )
    for column, target in enumerate(used):  # not by a list, which is copied to the device
        values[:, target] = windows.values[:, column]
    return windows._replace(values=values)
