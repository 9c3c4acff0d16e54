"""A model in evaluation mode, while the model itself stays in the mode that it is in."""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from itertools import chain
from logging import Logger
from operator import is_
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any
from weakref import ReferenceType

import torch
from torch import Tensor, nn

__all__ = ["evaluation_view"]

# What a module of torch itself keeps in dicts of its own: parameters, buffers, hooks.
_DICTS = frozenset(key for key, value in nn.Module().__dict__.items() if isinstance(value, dict))

# Nothing behind these refers to a module.
_PLAIN = (
    type(None), bool, int, float, complex, str, bytes, type, Tensor, torch.dtype, torch.device,
    torch.Size, BuiltinFunctionType, ModuleType, Logger,
)  # fmt: skip

# Objects that are searched for references to modules, at most.
_MAX_OBJECTS = 10_000


class _Unsafe(Exception):
    """A copy would not do what the module does."""


def evaluation_view(model: nn.Module) -> nn.Module | None:
    """
    A second object for each module of a model, over the same parameters and buffers, all in
    evaluation mode. What they set as attributes, and hooks that are put on them, are theirs alone;
    hooks that are on the model run, and get the second module.

    References among modules go to the second ones, also those in attributes: modules, methods and
    ``functools.partial``, and lists, tuples, sets and dicts of them. One module that is in two
    places stays one.

    Returns:
        None where that cannot be said of the copy: something else than the above refers to a
        module (a closure, an object of another kind, as in what ``torch.compile`` and ``torch.fx``
        make), or a module is scripted, distributed, or has ``__slots__``.
    """
    try:
        return _Copy(model).of(model)
    except _Unsafe:
        return None


class _Copy:
    def __init__(self, model: nn.Module):
        self.registered = {id(module): module for module in model.modules()}
        self.modules: dict[int, nn.Module] = {}
        self.clean: set[int] = set()  # objects that are known to refer to no module
        self.searched: list[Any] = []  # keeps them alive, so that no id is used again
        self.open: set[int] = set()

    def of(self, module: nn.Module) -> nn.Module:
        """The second module."""
        if id(module) in self.modules:
            return self.modules[id(module)]
        is_own = id(module) in self.registered
        if isinstance(module, torch.jit.ScriptModule) and not (is_own and module.training):
            return module
        _check(type(module))
        copy = object.__new__(type(module))
        self.modules[id(module)] = copy
        for key, value in list(module.__dict__.items()):
            copy.__dict__[key] = self._attribute(key, value)
        if is_own:  # others never followed model.eval()
            copy.__dict__["training"] = False
        return copy

    def _attribute(self, key: str, value: Any) -> Any:
        if key not in _DICTS:
            return self._value(value)
        if key == "_modules":
            return type(value)((name, self._value(child)) for name, child in list(value.items()))
        if value and key.endswith("_hooks"):
            # Of hooks, those of modules go along; others may know the model from outside.
            return type(value)((name, self._hook(hook)) for name, hook in list(value.items()))
        return value.copy()

    def _hook(self, hook: Any) -> Any:
        of_module = isinstance(getattr(hook, "__self__", None), nn.Module)
        return self._value(hook) if of_module else hook

    def _value(self, value: Any) -> Any:
        if isinstance(value, _PLAIN):
            return value
        if isinstance(value, nn.Module):
            return self.of(value)
        if id(value) in self.open:
            raise _Unsafe  # it contains itself
        self.open.add(id(value))
        try:
            return self._container(value)
        finally:
            self.open.discard(id(value))

    def _container(self, value: Any) -> Any:
        kind = type(value)
        make: Callable[[list], Any] = kind
        if kind in (list, tuple, set, frozenset):
            parts = list(value)
        elif kind in (dict, OrderedDict):
            parts = list(chain.from_iterable(value.items()))
            make = lambda x: kind(zip(x[::2], x[1::2], strict=True))  # noqa: E731
        elif kind is MethodType:
            parts = [value.__self__]
            make = lambda x: MethodType(value.__func__, *x)  # noqa: E731
        elif kind is partial:
            parts = [value.func, value.args, value.keywords]
            make = lambda x: partial(x[0], *x[1], **x[2])  # noqa: E731
        elif self._refers(value):
            raise _Unsafe
        else:
            return value
        copies = [self._value(part) for part in parts]
        return value if all(map(is_, parts, copies)) else make(copies)

    def _refers(self, value: Any) -> bool:
        """Whether a module of the model can be reached from an object."""
        seen, todo = set(), [value]
        while todo:
            one = todo.pop()
            if isinstance(one, _PLAIN) or id(one) in seen or id(one) in self.clean:
                continue
            if id(one) in self.registered:
                return True
            seen.add(id(one))
            self.searched.append(one)
            if len(self.searched) > _MAX_OBJECTS:
                raise _Unsafe
            todo += _references(one)
        self.clean |= seen
        return False


def _check(kind: type) -> None:
    distributed = kind.__module__.startswith("torch.distributed") or issubclass(
        kind, nn.parallel.DistributedDataParallel
    )
    slots = any(base.__dict__.get("__slots__") for base in kind.__mro__)
    if distributed or slots or issubclass(kind, torch.jit.ScriptModule):
        raise _Unsafe


def _references(value: Any) -> list:
    """What an object refers to, the globals of functions aside."""
    if isinstance(value, ReferenceType):
        return [value()]
    aside: tuple = ()
    if isinstance(value, FunctionType):
        aside = (value.__globals__, getattr(value, "__builtins__", None))
    return [found for found in gc.get_referents(value) if not any(found is x for x in aside)]
