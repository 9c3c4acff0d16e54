"""Leaving a user's model, and everybody's random numbers, as they were found."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from weakref import WeakKeyDictionary

import torch
from detectron2.layers import CycleBatchNormList
from torch import nn

from .evaluation_view import evaluation_view

__all__ = ["held_in_evaluation", "in_evaluation", "preserved"]


@contextmanager
def preserved(model: nn.Module) -> Iterator[nn.Module]:
    """
    The model to use for inference, see :func:`in_evaluation`, given back as it was.

    Inside, gradients are off (whoever needs them turns them on for tensors of its own), and
    ``torch.inference_mode`` is off, because its tensors can never be differentiated; both are of
    one thread. Nothing here, or under it, touches ``requires_grad``, ``.grad``, or hooks that it
    did not put there and takes off again. Weights are shared: they must not change meanwhile.

    Random numbers: what runs inside draws none of torch's global ones, unless the model, a hook or
    a function of the user's does. Then they come back as they were, but for when other threads
    run that may have drawn some as well: taking theirs back would be worse.
    """
    with (
        _random_numbers_kept(model),
        torch.inference_mode(False),
        torch.no_grad(),
        in_evaluation(model) as view,
    ):
        yield view


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[nn.Module]:
    """
    The model that is given where all of it is in evaluation mode, else a view of it that is, see
    :func:`evaluation_view`. So any number of threads may use one model, whatever mode it is in, and
    nobody sees a change. Where no view can be made, the model is used itself, as by
    :func:`held_in_evaluation`.
    """
    view = model if _is_in_evaluation(model) else evaluation_view(model)
    if view is not None:
        yield view
    else:
        with _held(model):
            yield model


@contextmanager
def held_in_evaluation(model: nn.Module) -> Iterator[None]:
    """
    As :func:`preserved` for code that has a model of its own in hand, and so cannot be given a
    view: the modules themselves are in evaluation mode inside, for everybody. Any number of threads
    may be inside; modes come back when the last one leaves. A thread that trains the same model at
    the same time would train in evaluation mode: it must wait.

    A ``CycleBatchNormList`` counts its calls, so one thread at a time gets a model that has one.
    """
    with _random_numbers_kept(model), torch.inference_mode(False), torch.no_grad(), _held(model):
        yield


# Modules that are held in evaluation mode: by how many, and the mode that they were in.
_HELD: WeakKeyDictionary[nn.Module, list] = WeakKeyDictionary()
_CYCLES: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_LOCK = threading.Lock()


def _is_in_evaluation(model: nn.Module) -> bool:
    """Whether a model is all in evaluation mode, has no state there, and will stay so."""
    with _LOCK:
        return not any(
            module.training
            or isinstance(module, CycleBatchNormList)
            or (len(_HELD) > 0 and module in _HELD)
            for module in model.modules()
        )


@contextmanager
def _held(model: nn.Module) -> Iterator[None]:
    modules = list(model.modules())
    cycles = sorted((m for m in modules if isinstance(m, CycleBatchNormList)), key=id)
    with ExitStack() as stack:
        for module in cycles:
            with _LOCK:
                lock = _CYCLES.setdefault(module, threading.RLock())
            stack.enter_context(lock)
            stack.callback(setattr, module, "_pos", module._pos)
        with _LOCK:
            for module in modules:
                _HELD.setdefault(module, [0, module.training])[0] += 1
                module.training = False
        try:
            yield
        finally:
            with _LOCK:
                for module in modules:
                    held = _HELD[module]
                    held[0] -= 1
                    if not held[0]:
                        module.training = held[1]
                        del _HELD[module]


# Threads of these packages draw no random numbers.
_QUIET = ("IPython", "ipykernel", "tensorboard", "torch", "tqdm", "wandb")


@contextmanager
def _random_numbers_kept(model: nn.Module) -> Iterator[None]:
    generators = _generators(model)
    before = [generator.get_state() for generator in generators]
    alone = _is_alone()
    try:
        yield
    finally:
        if alone and _is_alone():
            for generator, state in zip(generators, before, strict=True):
                if not torch.equal(generator.get_state(), state):
                    generator.set_state(state)


def _generators(model: nn.Module) -> list[torch.Generator]:
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    of_devices = [torch.cuda.default_generators[number] for number in sorted(devices)]
    return [torch.default_generator, *of_devices]


def _is_alone() -> bool:
    """Whether no other thread may draw random numbers."""
    return all(map(_draws_nothing, threading.enumerate()))


def _draws_nothing(thread: threading.Thread) -> bool:
    target = getattr(thread, "_target", None) or thread
    package = (getattr(target, "__module__", None) or type(thread).__module__).split(".")[0]
    return thread is threading.current_thread() or package in _QUIET
