"""
Two-stage heads: a pooled feature goes through the head alone, so one backward pass of the sum over
all instances gives every instance's gradient (design: "two-stage heads").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from odam_d2.core.pooled_gradients import pooled_gradients
from odam_d2.core.pooled_windows import pooled_heat_maps
from odam_d2.core.windows import add_windows, join_windows
from odam_d2.modeling.adapters.rcnn import RCNNAdapter
from odam_d2.modeling.adapters.trace import Decisions, Trace
from odam_d2.modeling.targets import Targets

from .head_maps import HeadMaps, algorithm, autograd_head_maps, head_maps

__all__ = ["stage_windows"]


@algorithm.register
def _(adapter: RCNNAdapter) -> str:
    return "pooled" if adapter.head.pools_plainly else "autograd"


@head_maps.register
def _(
    adapter: RCNNAdapter, trace: Trace, targets: Targets, sigma: float, max_bytes: int
) -> HeadMaps:
    if not adapter.head.pools_plainly:
        return autograd_head_maps(adapter, trace, targets, sigma, max_bytes)
    rows = torch.arange(len(trace), device=trace.image.device)
    # Pooled features, and the gradient of each target by them.
    size = max(1, max_bytes // (adapter.pooled_bytes(trace) * (len(targets) + 1)))
    parts = [
        (index, _maps(adapter, trace.select(index), targets, sigma, max_bytes))
        for index in rows.split(size)
    ]
    joined = join_windows([(index, maps.values, maps.origins) for index, maps in parts], len(rows))
    found = [maps for _, maps in parts]
    return HeadMaps(
        *joined,
        torch.cat([maps.exponents for maps in found]),
        torch.cat([maps.saturated for maps in found]),
        Decisions.cat([maps.decisions for maps in found]),
    )


class _TensorHooks(TorchFunctionMode):
    """
    While inside, sees whether a head registers a hook on a tensor.

    Attributes:
        found: whether it did.
    """

    found = False

    def __torch_function__(
        self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        self.found |= func is Tensor.register_hook
        return func(*args, **(kwargs or {}))


def _maps(
    adapter: RCNNAdapter, trace: Trace, targets: Targets, sigma: float, max_bytes: int
) -> HeadMaps:
    """Of instances whose pooled gradients fit into memory together."""
    # Always as Detectron2 pooled, though our own RoIAlign is faster on few boxes: where it
    # rounds otherwise, a ReLU of the head may open or close, and the gradient jumps.
    pooled = [features.detach() for features in adapter.pooled(trace)]
    with torch.enable_grad():
        for features in pooled:
            features.requires_grad_()
        # Copies, since a head may begin with something in place.
        with _TensorHooks() as hooks:
            decisions = adapter.decide_pooled([features.clone() for features in pooled], trace)
        scalars = targets.of(decisions)
        outputs = [scalar.values for scalar in scalars]
        gradients = pooled_gradients(outputs, pooled, hooked=hooks.found)
    windows = []
    for stage, of_stage in enumerate(gradients):
        # Sides of a cascade's boxes owe nothing to any stage but the last.
        if of_stage is not None:
            used, gradient = of_stage
            values, origins = stage_windows(adapter, trace, stage, gradient, sigma, max_bytes)
            windows.append((_among(values, used, len(scalars)), origins))
    values, origins = add_windows(windows)
    return HeadMaps.of(values.relu_(), origins, scalars, decisions)


def stage_windows(
    adapter: RCNNAdapter,
    trace: Trace,
    stage: int,
    gradient: Tensor,
    sigma: float,
    max_bytes: int,
) -> tuple[Tensor, Tensor]:
    """
    Carry gradients of one stage's pooled features to the maps that they came from.

    Args:
        gradient: of each target, (n, T, C, R, S).

    Returns:
        Signed values (n, T, h, w) and origins (n, 2), on the finest of each instance's levels.
    """
    level, ratio = trace.levels[:, stage], None
    if trace.levels.shape[1] > 1:
        strides = trace.features[0].new_tensor(adapter.strides)
        ratio = (strides[level] / strides[trace.levels.amin(dim=1)]).round().long()
    return pooled_heat_maps(
        trace.features,
        # Boxes are float32 in Detectron2; RoIAlign computes in the dtype of the features.
        trace.places.boxes[:, stage].to(trace.features[0].dtype),
        trace.image,
        level,
        gradient,
        [adapter.head.spec(number) for number in range(len(trace.features))],
        sigma=sigma,
        ratio=ratio,
        max_bytes=max_bytes,
    )


def _among(values: Tensor, used: list[int], count: int) -> Tensor:
    """Windows (n, T, h, w) of all of so many targets, zero but for those that are given."""
    if len(used) == count:
        return values
    total = values.new_zeros((len(values), count, *values.shape[-2:]))
    total[:, used] = values
    return total
