"""
Heat maps on the features that a head read: by one backward pass of the head for each map, which
every head allows, or in a faster way that a family allows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial, singledispatch
from typing import NamedTuple

import torch
from torch import Tensor

from odam_d2.core import cam
from odam_d2.core.gradients import Cut, gradient_heat_maps
from odam_d2.core.windows import join_windows, refined
from odam_d2.modeling.adapters.gradient_checks import check_levels
from odam_d2.modeling.adapters.head import HeadAdapter
from odam_d2.modeling.adapters.trace import Decisions, Trace
from odam_d2.modeling.targets import Differentiable, Targets

__all__ = [
    "HeadMaps",
    "Rule",
    "StridedRule",
    "algorithm",
    "autograd_head_maps",
    "gradient_maps",
    "head_maps",
    "rule_at",
    "scalars_of",
    "without",
]

Rule = Callable[..., Tensor]
"""From a gradient and a feature map to a map with its sign, see :mod:`odam_d2.core.cam`."""


class StridedRule(ABC):
    """A rule that depends on the stride of the feature map, in pixels per cell."""

    @abstractmethod
    def __call__(
        self, gradient: Tensor, feature: Tensor, scale: Tensor | float = 1.0, *, stride: float
    ) -> Tensor:
        """As a :data:`Rule`."""


def rule_at(rule: Rule | StridedRule, stride: float) -> Rule:
    """The rule for a feature map of this stride."""
    return partial(rule, stride=stride) if isinstance(rule, StridedRule) else rule


class HeadMaps(NamedTuple):
    """
    Maps of N detections and T targets on windows.

    Attributes:
        values: (N, T, h, w), with their sign, up to the factor ``2 ** exponents``.
        origins: (N, 2), the (row, column) of each window on the finest level that the detection was
            read from.
        exponents, saturated: (N, T), of the scalars, see :class:`Differentiable`.
        decisions: of the detections, from which the maps were made, without a graph.
    """

    values: Tensor
    origins: Tensor
    exponents: Tensor
    saturated: Tensor
    decisions: Decisions

    @classmethod
    def of(
        cls,
        values: Tensor,
        origins: Tensor,
        scalars: Sequence[Differentiable],
        decisions: Decisions,
        rows: slice = slice(None),
    ) -> HeadMaps:
        """
        Args:
            rows: of scalars and decisions, those of the N detections.
        """
        exponents = torch.stack([scalar.exponents for scalar in scalars], dim=1)[rows]
        saturated = torch.stack([scalar.saturated for scalar in scalars], dim=1)[rows]
        return cls(values, origins, exponents, saturated, decisions.detach(rows))

    def first(self, count: int) -> HeadMaps:
        """The same of scalars and decisions of so many detections, which are the first of more."""
        return self._replace(
            exponents=self.exponents[:count],
            saturated=self.saturated[:count],
            decisions=self.decisions.first(count),
        )


@singledispatch
def head_maps(
    adapter: HeadAdapter,
    trace: Trace,
    targets: Targets,
    sigma: float,
    max_bytes: int,
    *,
    centred: bool = False,
) -> HeadMaps:
    """
    ODAM's maps of N > 0 detections. A faster way for a family of adapters is registered here.

    Args:
        adapter: of the model.
        trace: of the detections.
        targets: what is explained of each.
        sigma: standard deviation of the Gaussian Phi, in feature cells; 0 is none.
        max_bytes: bound on temporary tensors.
        centred: multiply gradients by what :func:`odam_d2.core.cam.centre` makes of the features.

    Returns:
        The maps before their ReLU, with what they are of.
    """
    rule = cam.centred if centred else cam.odam
    return autograd_head_maps(adapter, trace, targets, sigma, max_bytes, rule)


@singledispatch
def algorithm(adapter: HeadAdapter) -> str:
    """
    How :func:`head_maps` works for an adapter.

    Args:
        adapter: of the model.

    Returns:
        A word, such as ``"pooled"``, ``"window"`` or ``"autograd"``.
    """
    return "autograd"


@torch.enable_grad()
def autograd_head_maps(
    adapter: HeadAdapter,
    trace: Trace,
    targets: Targets,
    sigma: float,
    max_bytes: int,
    rule: Rule = cam.odam,
) -> HeadMaps:
    """As :func:`head_maps`, or by another rule, by one backward pass of the head for each map."""
    leaves = [feature.detach().requires_grad_() for feature in trace.features]
    decisions = adapter.evaluate(leaves, trace)
    scalars = targets.of(decisions)
    parts = []
    for levels, index in trace.by_levels():
        origins = trace.image.new_zeros((len(index), 2))
        finest = levels[0]
        height, width = leaves[finest].shape[-2:]
        total = scalars[0].values.new_zeros((len(index), len(scalars), height, width))
        check_levels(adapter.name, scalars_of(scalars, index), without(leaves, levels))
        for level in levels:
            of_level = rule_at(rule, adapter.strides[level])
            maps = gradient_maps(
                scalars, leaves[level], trace.image, index, sigma, max_bytes, of_level
            )
            ratio = round(adapter.strides[level] / adapter.strides[finest])
            maps = refined(maps, ratio)
            total += maps[..., :height, :width]
        parts.append((index, total, origins))
    return HeadMaps.of(*join_windows(parts, len(trace)), scalars, decisions)


def scalars_of(scalars: Sequence[Differentiable], index: Tensor) -> Tensor:
    """Those (n, T) of some of the detections."""
    return torch.stack([scalar.values[index] for scalar in scalars], dim=1)


def without(features: Sequence[Tensor], levels: Sequence[int]) -> list[Tensor]:
    """Of the other levels than these."""
    return [feature for number, feature in enumerate(features) if number not in levels]


def gradient_maps(
    scalars: Sequence[Differentiable],
    leaf: Tensor,
    image: Tensor,
    index: Tensor | slice,
    sigma: float,
    max_bytes: int,
    rule: Rule,
    cut: Cut = (),
) -> Tensor:
    """
    Signed maps (n, T, H, W) of some of N detections on one feature map.

    Args:
        scalars: of the T targets, with a graph.
        leaf: (I, C, H, W).
        image: (N,).
        index: which detections.
        cut: see :data:`odam_d2.core.gradients.Cut`.
    """
    maps = [
        gradient_heat_maps(
            scalar.values[index],
            leaf,
            image[index],
            sigma,
            signed=True,
            max_bytes=max_bytes,
            rule=rule,
            scale=torch.exp2(scalar.exponents[index]),
            cut=cut,
        )
        for scalar in scalars
    ]
    return torch.stack(maps, dim=1)
