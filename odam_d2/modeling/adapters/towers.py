"""Towers of dense heads: which can be explained on windows, and the derivatives of their layers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from typing import NamedTuple

import torch
from detectron2.layers import CycleBatchNormList, FrozenBatchNorm2d, NaiveSyncBatchNorm
from torch import Tensor, nn

from odam_d2.core.gradients import precise
from odam_d2.modeling.views import Viewed, is_plain, with_overrides

__all__ = [
    "Derivative",
    "TracedTower",
    "convolutions",
    "is_local",
    "level_scales",
    "norm_scale",
    "with_constant_statistics",
]


class Derivative(NamedTuple):
    """
    Of what follows a convolution.

    Attributes:
        active: (I, C, H, W) bool, where the ReLU was active.
        scale: (I or 1, G) of a norm before it, for G groups of channels, see :func:`norm_scale`.
        weight: (C,), by which the norm multiplies after that.
    """

    active: Tensor
    scale: Tensor | None = None
    weight: Tensor | None = None


def level_scales(levels: Sequence[Derivative]) -> Tensor | None:
    """(levels, I, C), the scales after one convolution on each level; None without norms."""
    scales = [of_level.scale for of_level in levels if of_level.scale is not None]
    if not scales:
        return None
    images, channels = levels[0].active.shape[:2]
    scale = _by_channel(torch.stack(scales), levels[0].weight, channels)
    return scale if scale.shape[1] == images else scale.expand(-1, images, -1)


def _by_channel(scale: Tensor, weight: Tensor | None, channels: int) -> Tensor:
    """(..., C), of scales (..., G)."""
    if scale.shape[-1] != channels:
        scale = scale.repeat_interleave(channels // scale.shape[-1], dim=-1)
    return scale if weight is None else scale * weight


class TracedTower(Viewed):
    """
    Mixin for ``nn.Sequential``: remembers the derivative of what follows each convolution, in
    ``odam_masks``, a list to which every call (one for each level) appends its list of
    :class:`Derivative`.
    """

    def forward(self, x: Tensor) -> Tensor:
        masks: list[Derivative] = []
        scale = weight = None
        for module in self:
            if isinstance(module, (nn.Conv2d, nn.ReLU)):
                x = module(x)
            else:
                x, scale = _normalised(module, x)
                weight = getattr(module, "weight", None)
            if isinstance(module, nn.ReLU):
                masks.append(Derivative(x > 0, scale, weight))
                scale = weight = None
        self.odam_masks.append(masks)
        return x


def _normalised(norm: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """What a norm returns, and its :func:`norm_scale`."""
    autocast = torch.is_autocast_enabled(x.device.type)
    if isinstance(norm, nn.GroupNorm) and not (torch.is_grad_enabled() or autocast):
        # What the module calls; it has the statistics, which take as long to compute again.
        x = x.contiguous()
        sizes = (*x.shape[:2], x.shape[2:].numel(), norm.num_groups, norm.eps)
        out, _, scale = torch.native_group_norm(x, norm.weight, norm.bias, *sizes)
        return out, scale
    scale = norm_scale(norm, precise(x))
    return norm(x), scale


@singledispatch
def norm_scale(norm: nn.Module, x: Tensor) -> Tensor:
    """
    Derivative of a normalisation by its input where mean and variance count as constants, but for
    its weight.

    A batch norm in training mode takes those of the batch.

    Args:
        norm: the layer, before it is called.
        x: (I, C, H, W), its input.

    Returns:
        (I or 1, G), one for each group of channels.
    """
    raise TypeError(f"no constant scale for {type(norm).__name__}")


@norm_scale.register
def _(norm: nn.modules.batchnorm._BatchNorm, x: Tensor) -> Tensor:
    variance = norm.running_var
    if norm.training or variance is None:
        variance = x.var(dim=(0, 2, 3), correction=0)
    return (variance + norm.eps).rsqrt()[None]


@norm_scale.register
def _(norm: FrozenBatchNorm2d, x: Tensor) -> Tensor:
    return (norm.running_var + norm.eps).rsqrt()[None]


@norm_scale.register
def _(norm: CycleBatchNormList, x: Tensor) -> Tensor:
    return norm_scale(norm[norm._pos], x)  # the one of this level; none has a weight


@norm_scale.register
def _(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    groups = x.reshape(len(x), norm.num_groups, -1)
    return (groups.var(dim=2, correction=0) + norm.eps).rsqrt()


class ConstantStatistics(Viewed):
    """Mixin for ``nn.GroupNorm``: the same values, and mean and variance count as constants."""

    def forward(self, x: Tensor) -> Tensor:
        values = super().forward(x.detach())
        scale = _by_channel(norm_scale(self, x.detach()), self.weight, x.shape[1])
        return values + (x - x.detach()) * scale[:, :, None, None]


def with_constant_statistics(tower: nn.Sequential) -> nn.Sequential:
    """A view of a tower whose group norms are differentiated with constant statistics."""
    norms = {
        name: with_overrides(module, ConstantStatistics)
        for name, module in tower.named_children()
        if type(module) is nn.GroupNorm
    }
    return with_overrides(tower, children=norms)


def convolutions(tower: nn.Sequential) -> list[nn.Conv2d]:
    return [module for module in tower if isinstance(module, nn.Conv2d)]


def is_local(tower: nn.Sequential, predictors: Sequence[nn.Module], *, constant: bool) -> bool:
    """
    Whether :class:`odam_d2.core.dense_windows.DenseHead` can go through a tower: "same"
    convolutions of stride one, each before a ReLU, with a batch norm between the two or not.

    Args:
        tower: the modules in forward order.
        predictors: what reads the tower.
        constant: whether a group norm's statistics count as constants, which makes it local too.
    """
    if not isinstance(tower, nn.Sequential) or not is_plain(tower, nn.Sequential):
        return False
    steps = "".join(_kind(module, constant) for module in tower)
    convs = [*convolutions(tower), *predictors]
    plain = steps.replace("cnr", "").replace("cr", "") == ""
    return plain and all(_kind(m, constant) == "c" and _keeps_size(m) for m in convs)


_NORMS = (
    nn.BatchNorm2d,
    nn.SyncBatchNorm,
    NaiveSyncBatchNorm,
    FrozenBatchNorm2d,
    CycleBatchNormList,
)


def _kind(module: nn.Module, constant: bool) -> str:
    norms = (*_NORMS, nn.GroupNorm) if constant else _NORMS
    parts = [module, *module.children()]  # those of a list of norms, one for each level
    if all(any(isinstance(m, kind) and is_plain(m, kind) for kind in norms) for m in parts):
        # Without running statistics a batch norm takes those of the image, like a group norm.
        return "n" if all(getattr(m, "running_var", 0) is not None for m in parts) else "?"
    kinds = {nn.Conv2d: "c", nn.ReLU: "r"}
    return kinds.get(type(module), "?") if is_plain(module, type(module)) else "?"


def _keeps_size(conv: nn.Module) -> bool:
    return (
        isinstance(conv, nn.Conv2d)
        and conv.kernel_size[0] == conv.kernel_size[1]
        and conv.kernel_size[0] % 2 == 1
        and conv.padding == (conv.kernel_size[0] // 2,) * 2
        and conv.padding_mode == "zeros"
        and conv.stride == (1, 1)
        and conv.dilation == (1, 1)
        and conv.groups == 1
    )
