"""What a value is, by its content: equal in every process, and in a few letters."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from types import FunctionType, MethodType

import numpy as np
import torch
from torch import nn

__all__ = ["describe", "digest"]


def digest(value: object) -> str:
    """A short name for a value: equal for equal :func:`describe`."""
    text = json.dumps(describe(value), sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]


def describe(value: object) -> object:
    """
    A value as JSON can keep it, by what it is made of: never by an address in memory, so that it is
    equal in the next process. Tensors, arrays and bytes are hashed, objects (modules too: their
    parameters, buffers and attributes) are their class and what they hold.
    """
    return _describe(value, ())


def _describe(value: object, above: tuple[int, ...]) -> object:
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int | str):  # not a subclass of them, such as an enumeration's
        return int(value) if isinstance(value, int) else str.__str__(value)
    if isinstance(value, float):
        return value if np.isfinite(value) else repr(value)
    if isinstance(value, np.generic):
        return _describe(value.item(), above)
    if isinstance(value, torch.Tensor | np.ndarray | bytes | bytearray):
        return _hashed(value)
    if id(value) in above:
        return f"{type(value).__qualname__}, as above"
    above = (*above, id(value))
    if isinstance(value, Mapping):
        return _describe_entries(value, above)
    if isinstance(value, set | frozenset):
        return sorted((_describe(item, above) for item in value), key=repr)
    if isinstance(value, Sequence):
        return [_describe(item, above) for item in value]
    if isinstance(value, type | FunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, MethodType):
        return {"method": value.__func__.__qualname__, "of": _describe(value.__self__, above)}
    if isinstance(value, functools.partial):
        return _describe({"partial": value.func, "args": value.args, "by": value.keywords}, above)
    return _describe_object(value, above)


def _describe_entries(value: Mapping, above: tuple[int, ...]) -> dict[str, object]:
    return {_name(key): _describe(of_key, above) for key, of_key in value.items()}


def _describe_object(value: object, above: tuple[int, ...]) -> object:
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if not hasattr(value, "__dict__"):  # a device, a dtype, a path; a lock says only where it is
        text = repr(value)
        return name if " at 0x" in text else f"{name} {text}"
    held = vars(value)
    if isinstance(value, nn.Module):
        held = {key: of_key for key, of_key in held.items() if key not in _OF_TORCH}
    return {"class": name, **_describe_entries(held, above)}


_OF_TORCH = frozenset(vars(nn.Module())) - {"_parameters", "_buffers", "_modules"}
"""Attributes by which torch runs a module (hooks, its mode), not what it computes."""


def _name(key: object) -> str:
    return key if isinstance(key, str) else repr(_describe(key, ()))


def _hashed(value: torch.Tensor | np.ndarray | bytes | bytearray) -> str:
    about: object
    if isinstance(value, torch.Tensor):
        about = (str(value.dtype), tuple(value.shape))
        plain = value.detach().cpu().contiguous().flatten()
        content = plain.view(torch.uint8).numpy().tobytes()
    elif isinstance(value, np.ndarray):
        about, content = (str(value.dtype), value.shape), np.ascontiguousarray(value).tobytes()
    else:
        about, content = "bytes", bytes(value)
    return f"{about} {hashlib.sha256(content).hexdigest()[:24]}"
