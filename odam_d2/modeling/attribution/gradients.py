"""Methods that make maps of gradients: ODAM, Grad-CAM, Grad-CAM++ and the input gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from odam_d2.core import cam
from odam_d2.core.errors import InputError
from odam_d2.modeling.adapters.base import Adapter
from odam_d2.modeling.adapters.head import HeadAdapter, head_adapter
from odam_d2.modeling.adapters.outputs import OutputsAdapter, OutputsTrace
from odam_d2.modeling.adapters.trace import Trace
from odam_d2.modeling.precision import runs_in_half
from odam_d2.modeling.settings import ExplainSettings
from odam_d2.modeling.targets import Targets
from odam_d2.structures import OdamMaps

from .geometry import level_geometry
from .head_maps import Rule, algorithm, autograd_head_maps, head_maps
from .output_maps import output_maps
from .registry import ODAM_METHOD_REGISTRY, Method
from .whole_maps import whole_maps

__all__ = ["GradientMethod", "in_full_precision"]


_MORE_ON_DEVICES = 8
"""Fewer, larger operations are what other devices than the CPU are for."""


# Sums of gradient times something, which the faster ways rely on.
_LINEAR = (cam.odam, cam.centred)


@dataclass(frozen=True)
class GradientMethod(Method):
    """
    Makes maps of gradients by a feature map and of that map.

    Attributes:
        rule: from both to a map, see :mod:`odam_d2.core.cam`.
        layer: of the backbone, on whose output maps are made; empty for what the head reads, None
            for the images, by a rule that gives no negative values.
        smoothing_sigma: standard deviation of the Gaussian Phi, in feature cells; 0 is none.
        max_bytes: bound on temporary tensors on the CPU; other devices get eight times as much.
        signed: leave out the ReLU.
    """

    rule: Rule = cam.odam
    layer: str | None = ""
    smoothing_sigma: float = 0.0
    max_bytes: int = 2**26
    signed: bool = False

    @classmethod
    def of(cls, rule: Rule, settings: ExplainSettings, has_sign: bool = False) -> GradientMethod:
        """
        Args:
            has_sign: whether what the rule makes below zero is evidence against a decision.
        """
        signed = has_sign and settings.signed
        return cls(rule, settings.layer, settings.smoothing_sigma, settings.max_bytes, signed)

    def check(self, adapter: Adapter, targets: Targets) -> None:
        if self.layer or (self.layer == "" and isinstance(adapter, OutputsAdapter)):
            adapter.check_layer(self.layer)

    def algorithm(self, adapter: Adapter) -> str:
        if self.layer is None:
            return "autograd at the image"
        layer = adapter.layer_or_default(self.layer)
        if layer:
            return f"autograd at {layer}"
        return algorithm(head_adapter(adapter)) if self.rule in _LINEAR else "autograd"

    def __call__(self, adapter: Adapter, trace: Any, targets: Targets) -> OdamMaps:
        if isinstance(trace, OutputsTrace):
            return self._maps_of_outputs(adapter, trace, targets)
        with in_full_precision(head_adapter(adapter), trace) as (precise, again):
            more = 1 if trace.features[0].device.type == "cpu" else _MORE_ON_DEVICES
            limits = (self.smoothing_sigma, more * self.max_bytes)
            if self.layer != "":
                where = targets, self.layer
                return whole_maps(precise, again, *where, *limits, self.rule, signed=self.signed)
            if self.rule in _LINEAR:
                centred = self.rule is cam.centred
                maps = head_maps(precise, again, targets, *limits, centred=centred)
            else:
                maps = autograd_head_maps(precise, again, targets, *limits, self.rule)
            precise.check_same(again, maps.decisions)
            geometry = level_geometry(precise, again, maps.origins)
            values = maps.values if self.signed else maps.values.relu_()
            of_scalars = maps.exponents, maps.saturated
            return targets.maps(values, *of_scalars, signed=self.signed, **geometry)

    def _maps_of_outputs(self, adapter: Adapter, trace: OutputsTrace, targets: Targets) -> OdamMaps:
        def outputs(inputs: list[dict]) -> list[torch.Tensor]:
            # Nothing says how their probabilities come from logits.
            decided = [replace(x, closed_form=None) for x in trace.decide(inputs)]
            return [
                torch.stack([scalar.values for scalar in targets.of(of_image)], dim=1)
                for of_image in decided
            ]

        found = output_maps(
            adapter.model,
            list(trace.inputs),
            outputs,
            None if self.layer is None else adapter.layer_or_default(self.layer),
            [target.name for target in targets],
            self.rule,
            self.smoothing_sigma,
            self.max_bytes,
            signed=self.signed,
        )
        return targets.maps(found.values, signed=self.signed, **found.fields)


@contextmanager
def in_full_precision(adapter: HeadAdapter, trace: Trace) -> Iterator[tuple[HeadAdapter, Trace]]:
    """
    The same adapter and trace, or where the detector ran in half precision, those of a copy of it
    in full precision. Autocast is off inside.
    """
    if not runs_in_half(trace.features[0]):
        yield adapter, trace
        return
    # In full precision scores are others: what was detected is compared in its own.
    adapter.check_same(trace, adapter.decide(trace))
    with torch.autocast(trace.features[0].device.type, enabled=False):
        precise = adapter.in_full_precision()
        yield precise, precise.retrace(trace)


@ODAM_METHOD_REGISTRY.register()
def odam(settings: ExplainSettings) -> GradientMethod:
    """ODAM as published (Zhao and Chan, ICLR 2023)."""
    return GradientMethod.of(cam.odam, settings, has_sign=True)


@ODAM_METHOD_REGISTRY.register()
def centred(settings: ExplainSettings) -> GradientMethod:
    """As ODAM, of what features are more than their mean."""
    return GradientMethod.of(cam.centred, settings, has_sign=True)


@ODAM_METHOD_REGISTRY.register()
def gradient_norm(settings: ExplainSettings) -> GradientMethod:
    """The norm of the gradient."""
    return GradientMethod.of(cam.gradient_norm, settings)


@ODAM_METHOD_REGISTRY.register()
def grad_cam(settings: ExplainSettings) -> GradientMethod:
    """Grad-CAM (Selvaraju et al., ICCV 2017)."""
    return GradientMethod.of(cam.grad_cam, settings, has_sign=True)


@ODAM_METHOD_REGISTRY.register()
def grad_cam_pp(settings: ExplainSettings) -> GradientMethod:
    """Grad-CAM++ (Chattopadhay et al., WACV 2018)."""
    return GradientMethod.of(cam.grad_cam_pp, settings, has_sign=True)


@ODAM_METHOD_REGISTRY.register()
def ss_grad_cam_pp(settings: ExplainSettings) -> GradientMethod:
    """Spatial Sensitive Grad-CAM++ (Yamauchi, CVPR workshops 2024)."""
    return GradientMethod.of(cam.ss_grad_cam_pp, settings, has_sign=True)


@ODAM_METHOD_REGISTRY.register()
def input_gradient(settings: ExplainSettings) -> GradientMethod:
    """The gradient by the image (Simonyan et al., 2014)."""
    if settings.layer:
        raise InputError(
            f"{settings.argument('method')} 'input_gradient' makes maps on the image itself; leave "
            f"{settings.argument('layer')} empty"
        )
    return replace(GradientMethod.of(cam.largest_gradient, settings), layer=None)
