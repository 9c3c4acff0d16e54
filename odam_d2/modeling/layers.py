"""Layers of a network: finding one by name, and making its output the leaf of a graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from detectron2.modeling import Backbone
from torch import Tensor, nn

from odam_d2.core.errors import InputError

__all__ = ["CapturedLayer", "captured", "find_layer", "layer_names", "map_geometry"]


class CapturedLayer:
    """
    The output of a layer during one pass of the network.

    Attributes:
        feature: (I, C, h, w), a leaf that requires a gradient, which the network above reads.
        stride: pixels of the network's input per cell.
    """

    feature: Tensor | None = None
    stride: float = 0.0


@contextmanager
def captured(
    network: nn.Module, name: str, size: tuple[int, int] | Callable[[], tuple[int, int]]
) -> Iterator[CapturedLayer]:
    """
    While inside, what runs through a layer once becomes a leaf. A forward hook does it, which is
    taken off again, also after errors.

    Args:
        network: any module.
        name: of the layer, see :func:`find_layer`.
        size: (height, width) of the images, padding included, that the layer's output shows; or a
            function that tells it when the layer runs.

    Raises:
        InputError: the name is wrong, the output is no feature map, or the layer does not run
            exactly once.
    """
    found = CapturedLayer()

    def hook(_module, _args, output):
        if found.feature is not None:
            raise InputError(f"layer {name!r} runs more than once for a batch; name another one")
        pixels = size() if callable(size) else size
        geometry = map_geometry(output, pixels) if isinstance(output, Tensor) else None
        if geometry is None:
            what = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise InputError(
                f"the output of layer {name!r} ({what}) is no feature map of images of "
                f"{pixels[0]} x {pixels[1]} pixels; name another one"
            )
        order, grid, found.stride = geometry
        maps = output.detach().permute(order)  # (I, C, h, w) or (I, C, h w)
        found.feature = maps.reshape(*maps.shape[:2], *grid).requires_grad_()
        back = [order.index(axis) for axis in range(len(order))]
        return found.feature.reshape(maps.shape).permute(back)

    handle = find_layer(network, name).register_forward_hook(hook)
    try:
        yield found
    finally:
        handle.remove()
    if found.feature is None:
        raise InputError(f"layer {name!r} did not run; name another one")


def find_layer(network: nn.Module, name: str) -> nn.Module:
    """
    A module by its path in a network, or by the end of it where only one path ends so:
    ``"bottom_up.res4"`` or ``"res4"``.

    Raises:
        InputError: there is none, or more than one; the message lists the layers to choose from.
    """
    paths = dict(network.named_modules())
    paths.pop("", None)
    name = name.removeprefix("backbone.") if name not in paths else name
    matches = [name] if name in paths else [p for p in paths if p.endswith(f".{name}")]
    if len(matches) == 1:
        return paths[matches[0]]
    names = ", ".join(layer_names(network))
    if matches:
        raise InputError(f"layer {name!r} could be {', '.join(matches)}; there are {names}")
    raise InputError(f"there is no layer {name!r}; there are {names}")


def layer_names(network: nn.Module) -> list[str]:
    """
    Paths of the stages and blocks of a backbone whose output is a feature map, found by running
    it. For a module that is not a ``Backbone``, its children and what they list.
    """
    stages: dict[nn.Module, str] = {}
    backbones = [(p, m) for p, m in network.named_modules() if isinstance(m, Backbone)]
    for path, module in backbones or [("", network)]:
        _add_stages(stages, path, module)
    if not isinstance(network, Backbone):
        return list(stages.values())
    maps = _maps_of(network, stages)
    return [name for module, name in stages.items() if module in maps]


def _add_stages(stages: dict[nn.Module, str], path: str, module: nn.Module) -> None:
    """The children of a module, and the blocks that a stage among them is made of."""
    for name, child in module.named_children():
        stages[child] = f"{path}.{name}".strip(".")
        blocks = getattr(child, "blocks", None)  # a stage of Swin
        if isinstance(child, (nn.Sequential, nn.ModuleList)):
            _add_stages(stages, stages[child], child)
        elif isinstance(blocks, nn.ModuleList):
            _add_stages(stages, f"{stages[child]}.blocks", blocks)


@torch.no_grad()
def _maps_of(backbone: Backbone, modules) -> set[nn.Module]:
    """Which modules give one feature map in a pass of the backbone."""
    unit = max(backbone.size_divisibility, 32)
    size = (2 * unit, 3 * unit)
    calls: dict[nn.Module, list[bool]] = {module: [] for module in modules}

    def record(module, _args, output):
        is_map = isinstance(output, Tensor) and map_geometry(output, size) is not None
        calls[module].append(is_map)

    like = next(backbone.parameters())
    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(record).remove)
        backbone(torch.zeros(1, 3, *size, dtype=like.dtype, device=like.device))
    return {module for module, found in calls.items() if found == [True]}


def map_geometry(
    output: Tensor, size: tuple[int, int]
) -> tuple[tuple[int, ...], tuple[int, int], float] | None:
    """
    How a tensor shows images: (I, C, h, w) as of convolutions, (I, h, w, C) as of ViT blocks, or
    (I, h w, C) as of Swin blocks.

    Args:
        output: of one layer.
        size: (height, width) of the images in pixels.

    Returns:
        The permutation that brings it to (I, C, h, w) or (I, C, h w), the grid (h, w), and the
        stride in pixels. Strides are powers of two rather than other numbers. None where no
        reading fits, or more than one.
    """
    found = []
    if output.dim() == 4:
        for order in ((0, 1, 2, 3), (0, 3, 1, 2)):
            grid = tuple(output.shape[axis] for axis in order[2:])
            found.append((order, grid, _stride(grid, size)))
    elif output.dim() == 3:
        stride = max(1, round(math.sqrt(size[0] * size[1] / output.shape[1])))
        grid = tuple(pixels // stride for pixels in size)
        # Other sequences, such as queries, hardly ever divide an image evenly.
        even = size == (grid[0] * stride, grid[1] * stride)
        if even and grid[0] * grid[1] == output.shape[1]:
            found.append(((0, 2, 1), grid, float(stride)))
    found = [reading for reading in found if reading[2] is not None]
    # (32, 20, 12) of 160 x 96 pixels could be 32 x 20 cells of stride 5, and is not.
    usual = [reading for reading in found if math.log2(reading[2]).is_integer()]
    return found[0] if len(found) == 1 else usual[0] if len(usual) == 1 else None


def _stride(grid: tuple[int, int], size: tuple[int, int]) -> float | None:
    """
    The one stride by which ``ceil(size / stride)`` is the grid on both axes, if there is any; of
    several, a power of two.
    """
    low = max(pixels / cells for pixels, cells in zip(size, grid, strict=True))
    high = min(
        pixels / (cells - 1) if cells > 1 else math.inf
        for pixels, cells in zip(size, grid, strict=True)
    )
    if not 1 <= low < high:
        return None
    power = 2.0 ** math.ceil(math.log2(low))
    return power if power < high else float(low)
