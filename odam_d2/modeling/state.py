"""Leaving a user's model as it was found."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from detectron2.layers import CycleBatchNormList
from torch import nn

__all__ = ["borrowed"]


@contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """
    Use a model for inference and give it back as it was, also when something raises.

    Inside, the model is in eval mode, gradients are off (whoever needs them turns them on for
    tensors of its own), and ``torch.inference_mode`` is off, because its tensors can never be
    differentiated. Training flags of every single module, the random number generators, and the
    level at which a ``CycleBatchNormList`` stands come back. Nothing here, or under it, touches
    ``requires_grad``, ``.grad``, or hooks that it did not put there and takes off again.
    """
    modes = [(module, module.training) for module in model.modules()]
    cycles = [(m, m._pos) for m in model.modules() if isinstance(m, CycleBatchNormList)]
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    try:
        with (
            torch.random.fork_rng(devices=sorted(devices)),
            torch.inference_mode(False),
            torch.no_grad(),
        ):
            model.eval()
            yield
    finally:
        for module, training in modes:
            module.training = training
        for module, position in cycles:
            module._pos = position
