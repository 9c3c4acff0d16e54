"""
Explaining in full precision what ran in half: maps are sums of many small products, and detections
stay those of the model as its user runs it, under autocast or with parameters in half precision.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from odam_d2.core.gradients import precise

__all__ = ["full_precision_copy", "full_precision_dtype", "product_dtype", "runs_in_half"]

_HOOKS = [name for name in vars(nn.Module()) if "_hooks" in name]


def runs_in_half(features: Tensor) -> bool:
    """
    Whether what reads these features computes in half precision: they are of it, or autocast is on
    for their device.
    """
    return precise(features) is not features or product_dtype(features.device) != torch.float32


def product_dtype(device: torch.device) -> torch.dtype:
    """Of a matrix product in float32: half precision where autocast is on for this device."""
    # Computed, because how to ask is another in each version of torch.
    one = torch.ones(1, 1, dtype=torch.float32, device=device)
    return (one @ one).dtype


def full_precision_dtype(model: nn.Module) -> torch.dtype:
    """Of its maps: float64 for a model in float64, else float32."""
    first = next(model.parameters()).dtype
    return first if first == torch.float64 else torch.float32


def full_precision_copy(model: nn.Module) -> nn.Module:
    """
    A model whose parameters and buffers of half precision are float32; it shares the others, and
    the hooks. The model itself where it has none of half precision.
    """
    tensors = [*model.parameters(), *model.buffers()]
    if all(precise(tensor) is tensor for tensor in tensors):
        return model
    # What the memo holds is taken as the copy.
    memo = {id(buffer): precise(buffer) for buffer in model.buffers()}
    for parameter in model.parameters():
        cast = precise(parameter.detach())
        memo[id(parameter)] = nn.Parameter(cast, requires_grad=parameter.requires_grad)
    for module in model.modules():
        shared = (getattr(module, name, None) for name in _HOOKS)
        memo.update({id(hooks): hooks for hooks in shared if hooks is not None})
    return copy.deepcopy(model, memo)
