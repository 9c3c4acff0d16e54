"""
Conditions that are looked at together. To look at a tensor of a GPU is to wait until the GPU has
computed it, so a run of a model collects what must hold of it, and looks once, at its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

__all__ = ["conditions_together", "require"]

Condition = tuple[Tensor, Callable[[], Exception]]

# Of this thread; None where each condition is looked at by itself.
_COLLECTED: ContextVar[list[Condition] | None] = ContextVar("odam_conditions", default=None)


def require(holds: Tensor, error: Callable[[], Exception]) -> None:
    """
    Raise an error unless a condition holds: at once, or at the end of the innermost
    :func:`conditions_together`.

    Args:
        holds: a bool, without dimensions.
        error: makes the error.
    """
    collected = _COLLECTED.get()
    if collected is not None:
        collected.append((holds, error))
    elif not holds:
        raise error()


@contextmanager
def conditions_together() -> Iterator[None]:
    """
    While inside, conditions are collected, and at the end the first one that does not hold raises
    its error. Where something else raises, a condition that does not hold is why.
    """
    collected: list[Condition] = []
    token = _COLLECTED.set(collected)
    try:
        yield
    except Exception as error:
        _look(collected, error)
        raise
    finally:
        _COLLECTED.reset(token)
    _look(collected)


def _look(collected: list[Condition], because: Exception | None = None) -> None:
    """Of one device, as a rule; else once a device."""
    for device in {holds.device: None for holds, _ in collected}:
        here = [(holds, error) for holds, error in collected if holds.device == device]
        for held, (_, error) in zip(torch.stack([x for x, _ in here]).tolist(), here, strict=True):
            if not held:
                raise error() from because
