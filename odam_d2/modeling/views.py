"""Views of modules: the same parameters and buffers, with a few methods overridden."""

import copy
from collections import OrderedDict
from collections.abc import Iterable, Iterator, MutableSequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from detectron2.structures import Boxes
from torch import Tensor, nn

__all__ = [
    "Call",
    "Viewed",
    "class_name",
    "is_plain",
    "own_parts",
    "recorded",
    "versions",
    "with_overrides",
    "with_replaced",
]

M = TypeVar("M", bound=nn.Module)

if TYPE_CHECKING:
    Viewed: TypeAlias = Any
else:
    Viewed = object
"""
Base of mixins in front of a class that the user's model decides on: Detectron2's classes, to which
``self`` and ``super()`` belong then, have no types.
"""

_HOOKS = ("forward_", "forward_pre_", "backward_", "backward_pre_")
_KNOWN = ("detectron2", "odam_d2", "torch")


def with_overrides(
    module: M,
    mixin: type | None = None,
    /,
    *,
    children: dict | None = None,
    writes_to: nn.Module | None = None,
    **state: Any,
) -> M:
    """
    A second module object over the same parameters, buffers, hooks and submodules.

    Detectron2 forgets what explaining needs (which proposal, which anchor a detection came from).
    Overriding a method on a view brings it back without a patch: the user's module is not
    touched, and a subclass of the user's keeps its own overrides, since the view's class derives
    from it, and bears its name.

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
        view.__class__ = _derived(mixin, type(module))
    if writes_to is not None:
        view.__class__ = _derived(_WritesThrough, type(view))
        state["odam_writes_to"] = writes_to
    for key, value in state.items():
        object.__setattr__(view, key, value)
    return view


def _derived(mixin: type, base: type) -> type:
    """A class in front of a user's, under the name that the user knows."""
    names = {"__module__": base.__module__, "__qualname__": base.__qualname__}
    return type(base.__name__, (mixin, base), names)


def class_name(thing: nn.Module | type) -> str:
    """
    A class as the user knows it. Those of other projects have their module with them: theirs may
    have the name of one of Detectron2's, such as ``FCOS``.
    """
    cls = thing if isinstance(thing, type) else type(thing)
    known = cls.__module__.partition(".")[0] in _KNOWN
    return cls.__name__ if known else f"{cls.__module__}.{cls.__name__}"


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """
    Whether a module, of that kind or a subclass, computes what that kind does, and no more, also in
    its backward pass.
    """
    hooks = [vars(module)[f"_{kind}hooks"] for kind in _HOOKS]
    own = type(module).forward is not kind.forward or "forward" in vars(module)
    return not own and not any(hooks)


def own_parts(model: nn.Module, *heads: nn.Module) -> str:
    """The name of a model with those of the classes among its heads that are the user's own."""
    names: dict[str, None] = {}
    for head in heads:
        names[class_name(head)] = None
        for part in head.children():
            names |= dict.fromkeys(_outermost(part))
    own = [name for name in names if "." in name]
    return f"{class_name(model)} with {', '.join(own)}" if own else class_name(model)


def _outermost(part: nn.Module) -> list[str]:
    """A user's own class, or those that are in a part of another project."""
    name = class_name(part)
    return [name] if "." in name else [n for child in part.children() for n in _outermost(child)]


@dataclass
class Call:
    """
    One call of a recorded module.

    Attributes:
        args, kwargs: what it was given.
        output: what it returned.
        versions: for each tensor in them by its id, the tensor, and its version when it was seen.
    """

    args: tuple
    kwargs: dict
    output: object = None
    versions: dict[int, tuple[Tensor, int]] = field(default_factory=dict)

    def see(self, values: object) -> None:
        for tensor in _tensors(values):
            self.versions[id(tensor)] = (tensor, _version(tensor))

    def unchanged(self, values: object) -> bool:
        """Whether these tensors, of the call, have not been written to in place since."""
        return all(
            id(t) in self.versions and self.versions[id(t)][1] == _version(t)
            for t in _tensors(values)
        )


def recorded(module: M, calls: MutableSequence[Call], **options: Any) -> M:
    """
    A view of a module that adds a :class:`Call` to ``calls`` whenever it is called. Hooks do it,
    which only the view has, so that it works for every class, also for compiled modules.

    Args:
        **options: as for :func:`with_overrides`.
    """

    def before(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        call = Call(args, kwargs)
        call.see((args, kwargs))
        calls.append(call)

    def after(_module: nn.Module, _args: tuple, _kwargs: dict, output: object) -> None:
        calls[-1].output = output
        calls[-1].see(output)

    view = with_overrides(module, **options)
    for name in ("_forward_hooks", "_forward_pre_hooks"):
        for hooks in (name, f"{name}_with_kwargs"):
            view.__dict__[hooks] = OrderedDict(getattr(module, hooks))
    # The last of the user's hooks has its say before, and after.
    view.register_forward_pre_hook(before, with_kwargs=True)
    view.register_forward_hook(after, with_kwargs=True)
    return view


def _tensors(values: object) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Boxes):
        yield values.tensor
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)


def versions(tensors: Iterable[Tensor]) -> tuple[int, ...]:
    """How often each tensor has been written to in place."""
    return tuple(map(_version, tensors))


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


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
    return with_overrides(module, children=children) if children else module


class _WritesThrough(Viewed):
    """Mixin for views: attributes that are set on it are also set on the module behind it."""

    odam_writes_to: nn.Module

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        setattr(self.odam_writes_to, name, value)
