"""
A device that is not there: its tensors say that they lie on ``pretend:0``, and are computed on the
CPU, so that results are the CPU's to the last bit.

With it, what is meant for an accelerator is tested where there is none: a tensor of the host that
meets one of the device raises, as on a GPU, and dispatched operations and the times that the host
has to wait for the device are counted.

    with pretend():
        model.to(DEVICE)
        with counted() as counts:
            model(inputs)
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import detectron2
import torch
import torchvision  # noqa: F401 -- registers its operations
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

import odam_d2

__all__ = ["DEVICE", "Counts", "PretendTensor", "counted", "pretend"]

_HOST = torch.device("cpu")
_PACKAGES = [Path(package.__file__).parent for package in (odam_d2, detectron2)]

# The host waits for a number that these return, or for the size of what they return.
_WAITS = {
    "aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero",
    "aten::bincount", "aten::_unique", "aten::_unique2", "aten::unique_dim",
    "aten::unique_consecutive", "aten::unique_dim_consecutive", "aten::masked_select",
    "torchvision::nms",
}  # fmt: skip
_INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


class _Module(_DummyBackendModule):
    """
    What is ``torch.pretend``.

    Attributes:
        there: how often :func:`pretend` is entered. Outside of it there is no device, lest torch
            puts something on it by itself.
    """

    there = 0

    def is_available(self) -> bool:
        return self.there > 0

    def device_count(self) -> int:
        return int(self.is_available())

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


_MODULE = _Module()
_setup_privateuseone_for_python_backend("pretend", _MODULE)
DEVICE = torch.device("pretend", 0)

_AUTOCAST = torch.library.Library("_", "IMPL")
_AUTOCAST.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
_LOWERED = torch.library.Library("aten", "IMPL")
_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)


def _lowered(operation):
    """An operation as autocast runs it."""

    def run(*args, **kwargs):
        dtype = torch.get_autocast_dtype("pretend")
        args, kwargs = tree_map_only(
            Tensor, lambda x: x.to(dtype) if x.dtype == torch.float32 else x, (args, kwargs)
        )
        with torch._C._ExcludeDispatchKeyGuard(_KEYS):
            return operation(*args, **kwargs)

    return run


for _name in ("conv2d", "conv_transpose2d.input", "linear", "matmul", "mm", "addmm", "bmm"):
    _packet, _, _overload = _name.partition(".")
    _operation = getattr(getattr(torch.ops.aten, _packet), _overload or "default")
    _LOWERED.impl(_name, _lowered(_operation), "AutocastPrivateUse1")


def _in_full(operation):
    """As autocast runs what it computes in float32, and returns in the dtype that it was given."""

    def run(first, *args):
        full = [x.float() if isinstance(x, Tensor) else x for x in (first, *args)]
        with torch._C._ExcludeDispatchKeyGuard(_KEYS):
            result = operation(*full)
        return result.to(first.dtype) if result.is_floating_point() else result

    return run


_FULL = torch.library.Library("torchvision", "IMPL")
for _operation in (torch.ops.torchvision.nms.default, torch.ops.torchvision.roi_align.default):
    _FULL.impl(_operation._schema.name, _in_full(_operation), "AutocastPrivateUse1")


@dataclass
class Counts:
    """
    Attributes:
        operations: dispatched ones, views included.
        kernels: those that compute something.
        waits: of the host for the device, by what waits: a number that is read, a size that depends
            on values, a copy in either direction.
        places: the same by the line of odam_d2 or Detectron2 that asked for it.
    """

    operations: int = 0
    kernels: int = 0
    waits: Counter[str] = field(default_factory=Counter)
    places: Counter[str] = field(default_factory=Counter)

    @property
    def syncs(self) -> int:
        return self.waits.total()

    def __sub__(self, other: Counts) -> Counts:
        """What this one has more than another."""
        return Counts(
            self.operations - other.operations,
            self.kernels - other.kernels,
            self.waits - other.waits,
            self.places - other.places,
        )

    def wait(self, what: str) -> None:
        self.waits[what] += 1
        self.places[_place()] += 1


def _place() -> str:
    """The innermost line of odam_d2 or Detectron2 that is running."""
    frame = sys._getframe(1)
    while frame is not None:
        path, mode = Path(frame.f_code.co_filename), frame.f_code.co_name == "__torch_function__"
        for package in _PACKAGES:
            if path.is_relative_to(package) and not mode:
                return f"{path.relative_to(package.parent)}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


_COUNTING: list[Counts] = []


@contextmanager
def counted() -> Iterator[Counts]:
    """What the device does while inside, of all threads."""
    counts = Counts()
    _COUNTING.append(counts)
    try:
        yield counts
    finally:
        _COUNTING.remove(counts)


def _wait(what: str) -> None:
    for counts in _COUNTING:
        counts.wait(what)


class PretendTensor(torch.Tensor):
    """
    A tensor of the device.

    Attributes:
        held: the same on the CPU.
    """

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> PretendTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    def __repr__(self) -> str:
        return f"PretendTensor({self.held!r})"

    # What is not dispatched.
    def tolist(self):
        _wait("tolist")
        return self.held.tolist()

    def numpy(self, *_args, **_kwargs):
        raise TypeError("can't convert pretend:0 device type tensor to numpy; copy it to the host")

    def __array__(self, *_args, **_kwargs):
        return self.numpy()


class _Mode(TorchDispatchMode):
    """Sees what has no tensor of the device among its arguments, and makes one."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        ours = kwargs.get("device") == DEVICE or any(issubclass(t, PretendTensor) for t in types)
        return _run(func, args, kwargs) if ours else func(*args, **kwargs)


@contextmanager
def pretend() -> Iterator[torch.device]:
    """While inside, the device is there, for this thread."""
    before = torch._C._only_lift_cpu_tensors()
    # torch.tensor(..., device) copies what it made on the host, where a mode sees it.
    torch._C._set_only_lift_cpu_tensors(True)
    _MODULE.there += 1
    try:
        with _Mode():
            yield DEVICE
    finally:
        _MODULE.there -= 1
        torch._C._set_only_lift_cpu_tensors(before)


def _run(func, args: tuple, kwargs: dict):
    """An operation that has to do with the device."""
    name = func._schema.name
    given, _ = tree_flatten((args, kwargs))
    ours = [x for x in given if isinstance(x, PretendTensor)]
    hosts = [x for x in given if isinstance(x, Tensor) and not isinstance(x, PretendTensor)]
    _check_devices(func, name, hosts, ours)
    to = kwargs.get("device") or (DEVICE if ours else _HOST)
    _count(func, name, args, kwargs, to)
    held = tree_map_only(PretendTensor, lambda x: x.held, (args, kwargs))
    if "device" in kwargs:
        held[1]["device"] = _HOST
    result = func(*held[0], **held[1])
    if torch.Tag.inplace_view in func.tags:
        with torch._C._DisableTorchDispatch():
            func(*args, **kwargs)  # the wrapper has a shape of its own
    if func._schema.is_mutable:
        return _returned(func, args, kwargs, result)
    if name == "aten::copy_" or to == _HOST:
        return result
    return tree_map_only(Tensor, PretendTensor, result)


def _returned(func, args: tuple, kwargs: dict, result):
    """What an operation returns that writes into its arguments: these."""
    schema = func._schema
    written = {}
    for number, argument in enumerate(schema.arguments):
        value = args[number] if number < len(args) else kwargs.get(argument.name)
        if argument.alias_info is not None and argument.alias_info.is_write:
            written[frozenset(argument.alias_info.before_set)] = value
    results = result if isinstance(result, tuple) else (result,)
    out = tuple(
        written[frozenset(of.alias_info.before_set)]
        if of.alias_info is not None
        else tree_map_only(Tensor, PretendTensor, found)
        for of, found in zip(schema.returns, results, strict=False)
    )  # nothing, where nothing is returned
    return out if len(out) > 1 else out[0] if out else None


def _check_devices(func, name: str, hosts: list[Tensor], ours: list[Tensor]) -> None:
    """As a GPU does: numbers may be of the host, and indices, and what is copied."""
    if not ours or name in ("aten::copy_", *_INDEXED):
        return
    for host in hosts:
        if host.dim():
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but {func} found pretend:0 and "
                f"cpu {tuple(host.shape)}"
            )


def _count(func, name: str, args: tuple, kwargs: dict, to: torch.device) -> None:
    for counts in _COUNTING:
        counts.operations += 1
        counts.kernels += not (func.is_view or name in ("aten::detach", "aten::alias"))
    sizes_itself = name == "aten::repeat_interleave" and kwargs.get("output_size") is None
    if name in _WAITS or sizes_itself:
        _wait(name)
    elif name in _INDEXED:
        _count_index(name, args)
    elif name in ("aten::_to_copy", "aten::copy_"):
        source = args[1] if name == "aten::copy_" else args[0]
        target = args[0].device if name == "aten::copy_" else kwargs.get("device") or source.device
        if source.device != target:
            _wait("to the host" if target == _HOST else "from the host")


def _count_index(name: str, args: tuple) -> None:
    indices = [x for x in args[1] if x is not None]
    # Filled where a mask says so, which needs no sizes.
    fills = name != "aten::index" and args[2].numel() == 1
    if not fills and any(x.dtype in (torch.bool, torch.uint8) for x in indices):
        _wait(f"{name} by a mask")
    for x in indices:
        if not isinstance(x, PretendTensor):
            _wait("from the host")
