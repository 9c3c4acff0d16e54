"""
Integrated gradients (Sundararajan et al., "Axiomatic Attribution for Deep Networks", ICML 2017) of
what the head reads, from features that are the same everywhere: the mean of each channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odam_d2.core.cam import centre
from odam_d2.core.errors import InputError
from odam_d2.modeling.adapters.base import Adapter
from odam_d2.modeling.adapters.head import HeadAdapter, head_adapter
from odam_d2.modeling.adapters.outputs import OutputsAdapter
from odam_d2.modeling.adapters.trace import Trace
from odam_d2.modeling.settings import ExplainSettings
from odam_d2.modeling.targets import Targets
from odam_d2.structures import OdamMaps

from .geometry import level_geometry
from .gradients import in_full_precision
from .head_maps import HeadMaps, algorithm, head_maps
from .registry import ODAM_METHOD_REGISTRY, Method

__all__ = ["IntegratedGradients"]


@dataclass(frozen=True)
class IntegratedGradients(Method):
    """
    The gradient, averaged over features between their mean and themselves, times how far they are
    from their mean. Each step costs as much as ODAM's maps, without the backbone.

    Attributes:
        steps: in the middle of as many equal parts of the way.
        smoothing_sigma, max_bytes, signed: as for :class:`GradientMethod`.
    """

    steps: int = 8
    smoothing_sigma: float = 0.0
    max_bytes: int = 2**26
    signed: bool = False

    def check(self, adapter: Adapter, targets: Targets) -> None:
        if isinstance(adapter, OutputsAdapter):
            raise InputError(
                f"'integrated_gradients' goes through the head alone, and {type(adapter).__name__} "
                "tells nothing of a head: use another method"
            )

    def algorithm(self, adapter: Adapter) -> str:
        return f"{algorithm(head_adapter(adapter))}, {self.steps} steps"

    def __call__(self, adapter: Adapter, trace: Any, targets: Targets) -> OdamMaps:
        with in_full_precision(head_adapter(adapter), trace) as (precise, again):
            precise.check_same(again, precise.decide(again))
            steps = [self._step(precise, again, targets, step) for step in range(self.steps)]
            geometry = level_geometry(precise, again, steps[0].origins)
        exponents = torch.stack([maps.exponents for maps in steps]).amax(dim=0)
        values = torch.stack([_at_exponents(maps, exponents) for maps in steps]).mean(dim=0)
        saturated = torch.stack([maps.saturated for maps in steps]).all(dim=0)
        values = values if self.signed else values.relu_()
        return targets.maps(values, exponents, saturated, signed=self.signed, **geometry)

    def _step(self, adapter: HeadAdapter, trace: Trace, targets: Targets, step: int) -> HeadMaps:
        share = (step + 0.5) / self.steps
        # Their own mean is that of the features, and how far they are from it the same share.
        features = [x - (1 - share) * centre(x) for x in trace.features]
        there = adapter.read_again(trace, features)
        limits = (self.smoothing_sigma, self.max_bytes)
        maps = head_maps(adapter, there, targets, *limits, centred=True)
        return maps._replace(values=maps.values / share)


def _at_exponents(maps: HeadMaps, exponents: Tensor) -> Tensor:
    """Values up to the factor ``2 ** exponents``, (N, T), no smaller than their own."""
    factor = torch.exp2(maps.exponents - exponents).to(maps.values.dtype)
    return maps.values * factor[:, :, None, None]


@ODAM_METHOD_REGISTRY.register()
def integrated_gradients(settings: ExplainSettings) -> IntegratedGradients:
    """Integrated gradients of the head."""
    if settings.layer:
        raise InputError(
            f"{settings.argument('method')} 'integrated_gradients' makes maps on what the head "
            f"reads; leave {settings.argument('layer')} empty"
        )
    return IntegratedGradients(
        smoothing_sigma=settings.smoothing_sigma,
        max_bytes=settings.max_bytes,
        signed=settings.signed,
    )
