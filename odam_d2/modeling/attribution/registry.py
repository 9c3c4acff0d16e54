"""The registry of methods that make heat maps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from fvcore.common.registry import Registry

from odam_d2.modeling.adapters.base import Adapter
from odam_d2.modeling.targets import Targets
from odam_d2.structures import OdamMaps

__all__ = [
    "ODAM_METHOD_REGISTRY",
    "ODAM_PRESET_REGISTRY",
    "Method",
    "method_names",
    "preset_names",
]

ODAM_METHOD_REGISTRY = Registry("ODAM_METHOD")
ODAM_METHOD_REGISTRY.__doc__ = """
Registry of methods that make heat maps, chosen by ``MODEL.ODAM.METHOD`` or ``explain(method=...)``.

Entries have the names that are written in YAML. One is called as ``obj(settings)`` with
:class:`odam_d2.ExplainSettings`, takes those settings that it uses, refuses those that it cannot
follow, and returns a :class:`Method`.
"""

ODAM_PRESET_REGISTRY = Registry("ODAM_PRESET")
ODAM_PRESET_REGISTRY.__doc__ = """
Registry of presets, chosen by ``MODEL.ODAM.PRESET`` or ``explain(preset=...)`` in the place of a
method and a layer. Entries are as those of :data:`ODAM_METHOD_REGISTRY`.
"""


class Method(ABC):
    """
    Makes the maps of detections. Methods are plain data: equal ones make equal maps.

    Attributes:
        signed: whether maps keep their sign, below zero for what speaks against a decision. A
            method that can have such a field; of all others, signed maps are refused.
        asks_detector: whether maps are of more than the detections' boxes.
    """

    signed: bool = False
    asks_detector: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, adapter: Adapter, trace: Any, targets: Targets) -> OdamMaps:
        """
        Args:
            adapter: knows the model; ``adapter.evaluate(features, trace)`` is what it decides.
            trace: of N > 0 detections, a :class:`Trace` or what the adapter has in its place.
            targets: ``targets.of(decisions)`` are the scalars, ``targets.maps(...)`` the result.
        """

    def algorithm(self, adapter: Adapter) -> str:
        """How maps are computed, in a few words: ``"pooled"``, ``"window"``, ``"autograd"``."""
        return type(self).__name__

    def check(self, adapter: Adapter, targets: Targets) -> None:  # noqa: B027 -- most need nothing
        """Raise an ``InputError`` where these maps cannot be made, before the model runs."""


def method_names() -> list[str]:
    """Of all methods, ODAM first."""
    return sorted(
        (name for name, _ in ODAM_METHOD_REGISTRY), key=lambda name: (name != "odam", name)
    )


def preset_names() -> list[str]:
    """Of all presets."""
    return sorted(name for name, _ in ODAM_PRESET_REGISTRY)
