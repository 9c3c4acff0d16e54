"""
Whether a decision depends on nothing but what it is explained by: exactly, by its gradient. Each
check raises an ``UnsupportedModelError`` that begins with ``name``, see :mod:`.checks`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor

from odam_d2.modeling.conditions import require
from odam_d2.modeling.errors import UnsupportedModelError, unexplained

__all__ = [
    "check_apart",
    "check_levels",
    "check_not_read",
    "depend_on",
    "no_gradients",
]


def no_gradients(name: str) -> UnsupportedModelError:
    """The error for a model, given its name, whose box head does not know what it came from."""
    return unexplained(
        f"{name}: its box head computes without gradients (no_grad or detach), so it has no "
        "heat maps"
    )


@torch.enable_grad()
def check_apart(name: str, predict: Callable[[Tensor], tuple[Tensor, ...]], pooled: Tensor) -> None:
    """
    Refuse to explain when what is said of one proposal, by ``predict`` of a ``Stage``, depends on
    another one; there are N > 0 of (N, C, R, S).
    """
    one = pooled[:1]
    other = pooled[1:2] if len(pooled) > 1 else one.flip(-1)
    pair = torch.cat([one, other]).detach().requires_grad_()
    predictions = predict(pair.clone())[:2]
    value = reduce(torch.add, [_weighted_sum(p[0]) for p in predictions])
    gradient = None
    if value.requires_grad:
        (gradient,) = torch.autograd.grad(value, pair, allow_unused=True)
    if gradient is None:
        raise no_gradients(name)
    check_not_read(name, gradient[1])


def check_not_read(name: str, gradient: Tensor) -> None:
    """
    Refuse to explain when what is said of one proposal depends on another one.

    Args:
        name: of the model and its own parts.
        gradient: of what is said of some, with respect to what was pooled for another.
    """
    require(
        _is_zero(gradient),
        lambda: unexplained(
            f"{name}: what it says of one proposal depends on the other ones, so its heat map is "
            "not one of what was pooled for it alone"
        ),
    )


def check_levels(name: str, values: Tensor, others: Sequence[Tensor]) -> None:
    """
    Refuse to explain when values, of any shape and with a graph, that were read from some levels
    depend on others, leaves of the graph.
    """
    require(
        ~depend_on(values, others),
        lambda: unexplained(
            f"{name}: its head mixes the levels of the backbone's features, so that one detection "
            "has maps on several of them"
        ),
    )


def depend_on(values: Tensor, leaves: Sequence[Tensor]) -> Tensor:
    """Whether values, of any shape and with a graph, depend on some leaves of it: a bool."""
    gradients: Sequence[Tensor | None] = ()
    if leaves:
        gradients = torch.autograd.grad(
            _weighted_sum(values), leaves, retain_graph=True, allow_unused=True
        )
    nothing = [_is_zero(gradient) for gradient in gradients if gradient is not None]
    return ~torch.stack(nothing).all() if nothing else values.new_zeros((), dtype=torch.bool)


def _weighted_sum(values: Tensor) -> Tensor:
    """By different weights, lest what classes or sides owe to an input cancels."""
    count, dtype = values.numel(), values.dtype
    weights = torch.linspace(1, 2, count, dtype=dtype, device=values.device)
    return (values * weights.view(values.shape)).sum()


def _is_zero(gradient: Tensor) -> Tensor:
    return ~gradient.nan_to_num(0, 0, 0).any()
