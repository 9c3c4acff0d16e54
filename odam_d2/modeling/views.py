"""Views of modules: the same parameters and buffers, with a few methods overridden."""

import copy
from typing import TypeVar

from torch import nn

__all__ = ["view_of", "with_replaced"]

M = TypeVar("M", bound=nn.Module)


def view_of(
    module: M,
    mixin: type | None = None,
    /,
    *,
    children: dict | None = None,
    writes_to: nn.Module | None = None,
    **state,
) -> M:
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
        writes_to: a module on which attributes that the view's own methods set are set as well. In
            training, models keep a state that way (RetinaNet: the mean number of positives).
        **state: attributes of the view alone.
    """
    view = copy.copy(module)
    # The dict of children would be shared, and with it every replacement.
    view.__dict__["_modules"] = {**module._modules, **(children or {})}
    if mixin is not None:
        name = f"{mixin.__name__.lstrip('_')}{type(module).__name__}"
        view.__class__ = type(name, (mixin, type(module)), {"__module__": __name__})
    if writes_to is not None:
        view.__class__ = type(type(view).__name__, (_WritesThrough, type(view)), {})
        state["odam_writes_to"] = writes_to
    for key, value in state.items():
        object.__setattr__(view, key, value)
    return view


def with_replaced(module: M, replacements: dict[nn.Module, nn.Module]) -> M:
    """
    A view of a module with some of the modules in it, at any depth, replaced; the module itself
    where none of them is in it.
    """
    children = {}
    for name, child in module.named_children():
        new = replacements[child] if child in replacements else with_replaced(child, replacements)
        if new is not child:
            children[name] = new
    return view_of(module, children=children) if children else module


class _WritesThrough:
    """Mixin for views: attributes that are set on it are also set on the module behind it."""

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        setattr(self.odam_writes_to, name, value)
