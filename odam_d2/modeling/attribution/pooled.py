"""
Two-stage heads: a pooled feature goes through the head alone, so one backward pass of the sum over
all instances gives every instance's gradient (design: "two-stage heads").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from odam_d2.core import cam
from odam_d2.core import windows as core_windows
from odam_d2.core.pooled_gradients import StageGradient, copied_gradients, pooled_gradients
from odam_d2.core.pooled_windows import pooled_heat_maps
from odam_d2.core.windows import join_windows, temporary_bytes
from odam_d2.modeling.adapters.gradient_checks import check_not_read, no_gradients
from odam_d2.modeling.adapters.rcnn import RCNNAdapter
from odam_d2.modeling.adapters.trace import Decisions, Trace
from odam_d2.modeling.targets import Targets

from .head_maps import HeadMaps, algorithm, autograd_head_maps, head_maps

__all__ = ["pooled_windows"]


@algorithm.register
def _(adapter: RCNNAdapter) -> str:
    return "pooled" if adapter.head.pools_plainly else "autograd"


@head_maps.register
def _(
    adapter: RCNNAdapter,
    trace: Trace,
    targets: Targets,
    sigma: float,
    max_bytes: int,
    *,
    centred: bool = False,
) -> HeadMaps:
    if not adapter.head.pools_plainly:
        rule = cam.centred if centred else cam.odam
        return autograd_head_maps(adapter, trace, targets, sigma, max_bytes, rule)
    factors = [cam.centre(x) for x in trace.features] if centred else trace.features
    # Pooled features, and the gradient of each target by them.
    most = temporary_bytes(max_bytes, trace.image.device)
    size = max(1, most // (adapter.pooled_bytes(trace) * (len(targets) + 1)))
    if len(trace) <= size:
        return _maps(adapter, trace, factors, targets, sigma, most)
    rows = torch.arange(len(trace), device=trace.image.device)
    parts = [
        (index, _maps(adapter, trace.select(index), factors, targets, sigma, most, not number))
        for number, index in enumerate(rows.split(size))
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
    adapter: RCNNAdapter,
    trace: Trace,
    factors: list[Tensor],
    targets: Targets,
    sigma: float,
    max_bytes: int,
    check: bool = True,
) -> HeadMaps:
    """
    Of instances whose pooled gradients fit into memory together.

    Args:
        factors: what gradients are multiplied by, of the shapes of the features.
        check: whether what is said of one depends on others.
    """
    count, device = len(trace), trace.image.device
    copies = len(targets) if core_windows.computes_together(device) else 1
    # Always as Detectron2 pooled, though our own RoIAlign is faster on few boxes: where it
    # rounds otherwise, a ReLU of the head may open or close, and the gradient jumps.
    # To check, one more at the end, of which no target is read: nothing may depend on it.
    with torch.no_grad():
        pooled = [torch.cat([x, x[:1]]) if check else x.detach() for x in adapter.pooled(trace)]
    rows = torch.arange((count + check) * copies, device=device) // copies % count
    with torch.enable_grad():
        leaves = [x[:, None].expand(-1, copies, *x.shape[1:]) if copies > 1 else x for x in pooled]
        for leaf in leaves:
            leaf.requires_grad_()
        # Copies, since a head may begin with something in place.
        read = [leaf.clone(memory_format=torch.contiguous_format) for leaf in leaves]
        read = [x.view(-1, *x.shape[-3:]) for x in read]
        with _TensorHooks() as hooks:
            decisions = adapter.decide_pooled(read, trace.select(rows))
        scalars = targets.of(decisions)
        outputs = [scalar.values for scalar in scalars]
        if copies > 1:
            gradients = copied_gradients(outputs, leaves, count)
        else:
            outputs = [values[:count] for values in outputs]
            gradients = pooled_gradients(outputs, leaves, hooked=hooks.found)
    if gradients[-1] is None:
        raise no_gradients(adapter.name)
    for stage, of_stage in enumerate(gradients):
        if of_stage is not None:
            check_not_read(adapter.name, of_stage[1][count:])
            gradients[stage] = (of_stage[0], of_stage[1][:count])
    trace = replace(trace, features=factors)
    values, origins = pooled_windows(adapter, trace, gradients, len(targets), sigma, max_bytes)
    each = slice(0, count * copies, copies)
    return HeadMaps.of(values, origins, scalars, decisions, each)


def pooled_windows(
    adapter: RCNNAdapter,
    trace: Trace,
    gradients: Sequence[StageGradient],
    num_targets: int,
    sigma: float,
    max_bytes: int,
) -> tuple[Tensor, Tensor]:
    """
    Carry gradients of pooled features to the maps that these came from.

    Returns:
        Signed values (n, T, h, w) and origins (n, 2), on the finest of each instance's levels.
    """
    return pooled_heat_maps(
        trace.features,
        trace.places.boxes,
        trace.image,
        trace.levels,
        gradients,
        [adapter.head.spec(number) for number in range(len(trace.features))],
        num_targets=num_targets,
        sigma=sigma,
        max_bytes=max_bytes,
    )
