"""
G-CAME (Nguyen et al., "G-CAME: Gaussian-Class Activation Mapping Explainer for Object Detectors",
2023): Grad-CAM whose channels count near the place where the detection depends on them most.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from odam_d2.core import cam
from odam_d2.modeling.settings import ExplainSettings

from .gradients import GradientMethod
from .head_maps import StridedRule
from .registry import ODAM_METHOD_REGISTRY

__all__ = ["GCameRule"]


@dataclass(frozen=True)
class GCameRule(StridedRule):
    """
    :func:`odam_d2.core.cam.g_came`.

    Attributes:
        min_sigma: the least standard deviation of a Gaussian, in cells.
    """

    min_sigma: float = 1.0

    def __call__(
        self, gradient: Tensor, feature: Tensor, scale: Tensor | float = 1.0, *, stride: float
    ) -> Tensor:
        return cam.g_came(gradient, feature, scale, stride=stride, min_sigma=self.min_sigma)


@ODAM_METHOD_REGISTRY.register()
def g_came(settings: ExplainSettings) -> GradientMethod:
    """G-CAME (Nguyen et al., 2023)."""
    rule = GCameRule(settings.g_came.min_sigma)
    return GradientMethod.of(rule, settings, has_sign=True)
