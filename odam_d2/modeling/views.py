"""Views of modules: the same parameters and buffers, with a few methods overridden."""

import copy
from typing import TypeVar

from torch import nn

__all__ = ["view_of"]

M = TypeVar("M", bound=nn.Module)


def view_of(module: M, mixin: type | None = None, /, *, children: dict | None = None, **state) -> M:
    """
    A second module object over the same parameters, buffers, hooks and submodules.

    Detectron2 forgets what explaining needs (which proposal, which anchor a detection came from).
    Overriding a method on a view brings it back without a patch: the user's module is not
    touched, and a subclass of the user's keeps its own overrides, since the view's class derives
    from it.

    Args:
        module: the module to view. It must not be scripted.
        mixin: a class whose methods go in front of the module's own; they may call ``super()``.
        children: submodules that the view sees in the place of the module's.
        **state: attributes of the view alone.
    """
    view = copy.copy(module)
    # The dict of children would be shared, and with it every replacement.
    view.__dict__["_modules"] = {**module._modules, **(children or {})}
    if mixin is not None:
        name = f"{mixin.__name__.lstrip('_')}{type(module).__name__}"
        view.__class__ = type(name, (mixin, type(module)), {"__module__": __name__})
    for key, value in state.items():
        object.__setattr__(view, key, value)
    return view
