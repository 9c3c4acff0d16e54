"""Towers of dense heads: which can be explained on windows, and where their ReLUs were active."""

from collections.abc import Sequence

from torch import nn

__all__ = ["TracedTower", "is_plain_tower"]


class TracedTower:
    """
    Mixin for ``nn.Sequential``: remembers where each ReLU was active, in ``odam_masks``, a list to
    which every call (one for each level) appends its list of (I, C, H, W) masks.
    """

    def forward(self, x):
        masks = []
        for module in self:
            x = module(x)
            if isinstance(module, nn.ReLU):
                masks.append(x > 0)
        self.odam_masks.append(masks)
        return x


def is_plain_tower(modules: Sequence[nn.Module]) -> bool:
    """
    Whether modules alternate between "same" convolutions of stride one and ReLUs, beginning and
    ending with a convolution: what :class:`odam_d2.core.dense_windows.DenseHead` can go through.
    """
    alternate = all(
        type(module) is (nn.ReLU if number % 2 else nn.Conv2d)
        for number, module in enumerate(modules)
    )
    return alternate and all(
        m.kernel_size[0] == m.kernel_size[1]
        and m.kernel_size[0] % 2 == 1
        and m.padding == (m.kernel_size[0] // 2,) * 2
        and m.padding_mode == "zeros"
        and m.stride == (1, 1)
        and m.dilation == (1, 1)
        and m.groups == 1
        for m in modules[::2]
    )
