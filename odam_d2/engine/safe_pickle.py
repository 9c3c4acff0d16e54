"""
Pickles that hold arrays, tensors and containers, as checkpoints and Detectron2's files of proposals
do. Nothing else in a pickle is looked up, so nothing is run.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import importlib
import io
import pickle
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np
import torch
from detectron2.structures import BoxMode

from odam_d2.errors import one_line

__all__ = ["load_arrays", "load_tensors"]


def _encode(text: str, codec: str = "latin1") -> bytes:
    """How Python 3 writes bytes where the protocol has none."""
    if codec != "latin1":
        raise pickle.UnpicklingError(f"it asks for the codec {codec!r}")
    return text.encode(codec)


def _storage(data: bytes) -> object:
    """A tensor's numbers. PyTorch's own function of this purpose unpickles anything."""
    return load_tensors(io.BytesIO(data))


def _mode(number: int) -> BoxMode:
    return BoxMode(number)


def _of_numpy(name: str) -> Callable:
    """An internal function of NumPy 1 or 2, whichever is installed."""
    package = "numpy.core" if np.__version__.startswith("1.") else "numpy._core"
    module = "numeric" if name == "_frombuffer" else "multiarray"
    return getattr(importlib.import_module(f"{package}.{module}"), name)


# By module and name. Types of C cannot be changed by what a pickle sets on them; functions are
# given out as objects of their own, so that they cannot either.
_TYPES: dict[tuple[str, str], type] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("collections", "OrderedDict"): collections.OrderedDict,
    **{(module, kind.__name__): kind for module in ("builtins", "__builtin__")
       for kind in (set, frozenset, complex)},
}  # fmt: skip
_FUNCTIONS: dict[tuple[str, str], Callable] = {
    ("_codecs", "encode"): _encode,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("detectron2.structures.boxes", "BoxMode"): _mode,
    **{(f"numpy.{core}.multiarray", name): _of_numpy(name) for core in ("core", "_core")
       for name in ("_reconstruct", "scalar")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _of_numpy("_frombuffer")
       for core in ("core", "_core")},
}  # fmt: skip


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable:
        if (module, name) in _TYPES:
            return _TYPES[module, name]
        if (module, name) in _FUNCTIONS:
            return functools.partial(_FUNCTIONS[module, name])
        raise _refusal(f"{module}.{name}")


def _refusal(name: str) -> pickle.UnpicklingError:
    return pickle.UnpicklingError(
        f"it asks for {name}, which is no array, tensor or container and is not loaded"
    )


def load_arrays(file: BinaryIO) -> Any:
    """
    What a pickle holds; text of Python 2 is read as Latin-1, as Detectron2 does.

    Raises:
        pickle.UnpicklingError: it asks for anything but arrays, tensors and containers, or is
            damaged.
    """
    with _damage():
        return _Unpickler(file, encoding="latin1").load()


def load_tensors(file: str | BinaryIO) -> Any:
    """
    What ``torch.save`` wrote, on the CPU. ``weights_only`` has another default in each version of
    PyTorch.

    Args:
        file: a path, or an open file.

    Raises:
        pickle.UnpicklingError: it asks for anything but tensors and containers, or is damaged.
    """
    with _damage():
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            # In the words of PyTorch's versions, in the midst of advice to trust the file.
            found = re.search(r"nsupported (?:class|(?:global: )?GLOBAL) ([\w.]+)", str(error))
            raise _refusal(found.group(1)) if found else error  # noqa: B904


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    """Whatever a damaged file makes of the machine that reads it becomes an UnpicklingError."""
    try:
        yield
    except (pickle.UnpicklingError, OSError):
        raise
    except Exception as error:
        raise pickle.UnpicklingError(
            f"it is damaged, or of another kind ({type(error).__name__}: {one_line(error)})"
        ) from error
