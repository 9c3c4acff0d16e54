"""Who turned gradients off: for a message that names the function and the way out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import nn

__all__ = ["why_no_gradients"]

_DECORATED = torch.no_grad()(lambda: None).__code__  # the same for every function and every mode
_MODES = (torch.no_grad, torch.inference_mode)
_ENTER = {mode.__enter__.__code__: mode for mode in _MODES}
_EXIT = {mode.__exit__.__code__ for mode in _MODES}
_INSIDE = {*_ENTER, *_EXIT}
_SWITCH = torch.set_grad_enabled.__init__.__code__
_MODULE = nn.Module._call_impl.__code__


def why_no_gradients(run: Callable[[], Any]) -> str:
    """
    Run a function once more and find what turns gradients off in it.

    Returns:
        A sentence that says which function that is, and how to call it with gradients; empty where
        nothing of the kind was seen.
    """
    watch = _Watch()
    before = sys.getprofile()
    try:
        with torch.enable_grad():
            sys.setprofile(watch)
            run()
    finally:
        sys.setprofile(before)
    # What surrounds a module is more likely meant than, say, the decoding of proposals.
    found = watch.around_modules or watch.seen
    return next(iter(found), "")


class _Watch:
    """
    For ``sys.setprofile``.

    Attributes:
        seen: sentences on all that turned gradients off, in order.
        around_modules: those among them under which a module ran.
    """

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.around_modules: list[str] = []
        self._open: list[str] = []

    def __call__(self, frame: FrameType, event: str, _arg: Any) -> None:
        caller = frame.f_back
        if event != "call" or caller is None:
            return
        code, names = frame.f_code, frame.f_locals
        if code in _INSIDE and not getattr(names["self"], "mode", True):
            return  # torch.inference_mode(False)
        if code in _ENTER:
            self._open.append(_sentence(_ENTER[code], caller))
            self.seen.append(self._open[-1])
        elif code in _EXIT and self._open:
            self._open.pop()
        elif code is _SWITCH and not names["mode"] and caller.f_code not in _INSIDE:
            self.seen.append(_sentence(torch.set_grad_enabled, caller))
        elif code is _MODULE and self._open and not torch.is_grad_enabled():
            self.around_modules.append(self._open[0])


def _sentence(mode: type, caller: FrameType) -> str:
    name = f"torch.{mode.__name__}"
    if caller.f_code is not _DECORATED:
        code = caller.f_code
        function = getattr(code, "co_qualname", code.co_name)  # Python 3.11 and later
        return (
            f"{function} turns gradients off by {name}: call what it calls without that, or "
            "override it in a subclass"
        )
    function = caller.f_locals["func"]
    if not hasattr(function, "__qualname__"):  # functools.partial, or an object with __call__
        return (
            f"what @{name} decorates, {type(function).__name__!r}, runs with gradients off: hand "
            "over what it decorates, its __wrapped__"
        )
    path = function.__qualname__
    return (
        f"{path} is decorated with @{name}: call {path}.__wrapped__, which is the same function "
        f"without that (for a method, with the model as its first argument), or override it in a "
        f"subclass by {function.__name__} = {path}.__wrapped__"
    )
