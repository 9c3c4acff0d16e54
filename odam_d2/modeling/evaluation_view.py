"""A model in evaluation mode, while the model itself stays in the mode that it is in."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from logging import Logger
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
_MOST_OBJECTS = 10_000


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
        if kind in (list, tuple, set, frozenset):
            items = list(value)
            return self._unless_same(value, items, [self._value(x) for x in items], kind)
        if kind in (dict, OrderedDict):
            items = list(value.items())
            copies = [(self._value(k), self._value(v)) for k, v in items]
            same = all(a is c and b is d for (a, b), (c, d) in zip(items, copies, strict=True))
            return value if same else kind(copies)
        if kind is MethodType:
            owner = self._value(value.__self__)
            return value if owner is value.__self__ else MethodType(value.__func__, owner)
        if kind is partial:
            parts = [value.func, value.args, value.keywords]
            copies = [self._value(part) for part in parts]
            make = lambda x: partial(x[0], *x[1], **x[2])  # noqa: E731
            return self._unless_same(value, parts, copies, make)
        if self._refers(value):
            raise _Unsafe
        return value

    @staticmethod
    def _unless_same(value: Any, parts: list, copies: list, make: Callable) -> Any:
        return value if all(map(lambda a, b: a is b, parts, copies)) else make(copies)

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
            if len(self.searched) > _MOST_OBJECTS:
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
    """What an object refers to, its class and the globals of functions aside."""
    found = []
    if isinstance(value, dict):
        found += [*value.keys(), *value.values()]
    elif isinstance(value, (list, tuple, set, frozenset)):
        found += value
    elif isinstance(value, MethodType):
        found += [value.__self__, value.__func__]
    elif isinstance(value, partial):
        found += [value.func, value.args, value.keywords]
    elif isinstance(value, ReferenceType):
        found.append(value())
    elif isinstance(value, FunctionType):
        cells = [cell for cell in value.__closure__ or () if _is_filled(cell)]
        found += [cell.cell_contents for cell in cells]
        found += [value.__defaults__, value.__kwdefaults__]
    found.append(getattr(value, "__dict__", None))
    slots = (getattr(base, "__slots__", ()) for base in type(value).__mro__)
    for names in slots:
        names = (names,) if isinstance(names, str) else names
        found += [getattr(value, name, None) for name in names if name != "__dict__"]
    return found


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
