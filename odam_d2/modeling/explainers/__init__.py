"""
Deprecated: names from before adapters and methods were told apart. What is registered here works as
it did, where it is built from the methods that :mod:`odam_d2.modeling.adapters` documents.
"""

import warnings
from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from odam_d2.modeling.adapters import (
    Adapter,
    Decisions,
    DenseAdapter,
    OutputsAdapter,
    PooledHead,
    Stage,
    pooled_head,
    register_adapter,
)
from odam_d2.modeling.errors import UnsupportedModelError

__all__ = [
    "DenseExplainer",
    "OutputsExplainer",
    "PooledHead",
    "Stage",
    "UnsupportedModelError",
    "pooled_head",
    "register_explainer",
]

A = TypeVar("A", bound=Adapter)


def _deprecated(name: str, instead: str) -> None:
    warnings.warn(f"{name} is deprecated; use {instead}", DeprecationWarning, stacklevel=3)


def register_explainer(model_type: type) -> Callable[[type[A]], type[A]]:
    """Deprecated: :func:`odam_d2.modeling.register_adapter`."""
    _deprecated("register_explainer", "odam_d2.modeling.register_adapter")
    return register_adapter(model_type)


class DenseExplainer(DenseAdapter):
    """Deprecated: :class:`odam_d2.modeling.adapters.DenseAdapter`."""

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        _deprecated("DenseExplainer", "odam_d2.modeling.adapters.DenseAdapter")


class OutputsExplainer(OutputsAdapter):
    """Deprecated: :class:`odam_d2.modeling.OutputsAdapter`, whose outputs are ``Decisions``."""

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        _deprecated("OutputsExplainer", "odam_d2.modeling.OutputsAdapter")

    def _checked(self, decisions: list, counts: list[int]) -> list[Decisions]:
        # Given boxes came with their scores; decisions know them.
        plain = [x[0] if isinstance(x, tuple) else x for x in decisions]
        return super()._checked(plain, counts)

    def select_values(self, scores: Tensor, boxes: Tensor, classes: Tensor) -> Decisions:
        """
        Args:
            scores: (N, K) probabilities.
            boxes: (N, 4), decoded.
            classes: (N,).
        """
        return Decisions(classes, scores, boxes)
