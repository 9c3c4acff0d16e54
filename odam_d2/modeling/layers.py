"""Layers of a network: finding one by name, and making its output the leaf of a graph."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import Any

import torch
from detectron2.modeling import Backbone
from torch import Tensor, nn

from odam_d2.core.errors import InputError

from .map_geometry import map_geometry

__all__ = [
    "CapturedLayer",
    "LayerError",
    "captured",
    "captured_images",
    "feature_maps",
    "find_layer",
    "finest_layer",
    "finest_layers",
    "layer_names",
]

# A message that lists layers says no more than so many.
_MAX_NAMES = 40

# Pixels per cell of the first stage of most backbones: a finer map sees edges only.
_FINEST_STRIDE = 4.0


class LayerError(InputError):
    """
    No map can be made on this layer; another one may do.

    Attributes:
        problem: what is wrong, without what there is instead.
    """

    def __init__(self, problem: str, names: Sequence[str] = ()):
        instead = f"there are {', '.join(names)}" if names else "name another one"
        super().__init__(f"{problem}; {instead}")
        self.problem = problem


class CapturedLayer:
    """
    The output of a layer during one pass of the network.

    Attributes:
        feature: (I, C, h, w), a leaf that requires a gradient, which the network above reads.
        stride: pixels of the network's input per cell.
        needed: whether it is an error if the layer does not run.
    """

    feature: Tensor | None = None
    stride: float = 0.0
    needed: bool = True

    @property
    def leaf(self) -> Tensor:
        """:attr:`feature`, of a layer that has run."""
        if self.feature is None:
            raise LayerError("the layer did not run")
        return self.feature


@contextmanager
def captured(
    network: nn.Module, name: str, size: tuple[int, int] | Callable[[], tuple[int, int]]
) -> Iterator[CapturedLayer]:
    """
    While inside, what runs through a layer once becomes a leaf. A forward hook does it, which is
    taken off again, also after errors; what other threads run meanwhile it leaves alone.

    Args:
        network: any module.
        name: of the layer, see :func:`find_layer`.
        size: (height, width) of the images, padding included, that the layer's output shows; or a
            function that tells it when the layer runs.

    Raises:
        LayerError: the name is wrong, the output is no feature map, or the layer does not run
            exactly once.
    """
    found, thread = CapturedLayer(), get_ident()

    def hook(_module: nn.Module, _args: tuple, output: Any) -> Tensor | None:
        if get_ident() != thread:
            return None
        if found.feature is not None:
            raise LayerError(f"layer {name!r} runs more than once for a batch")
        pixels = size() if callable(size) else size
        geometry = map_geometry(output, pixels) if isinstance(output, Tensor) else None
        if geometry is None:
            what = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise LayerError(
                f"the output of layer {name!r} ({what}) is no feature map of images of "
                f"{pixels[0]} x {pixels[1]} pixels, or can be read as one in several ways"
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
    if found.feature is None and found.needed:
        raise LayerError(f"layer {name!r} did not run")


@contextmanager
def captured_images(network: nn.Module, *, leaf: bool) -> Iterator[CapturedLayer]:
    """
    While inside, see the images that the network gets: the first four-dimensional floats that go
    into any of its modules, which in Detectron2 is what the backbone gets.

    Args:
        network: any module.
        leaf: make a leaf of them. They must go in once then.

    Raises:
        InputError: with ``leaf``, no module gets images, or one gets them more than once.
    """
    found, thread = CapturedLayer(), get_ident()
    found.stride, found.needed = 1.0, leaf
    reader: list[nn.Module] = []

    def see(value: Any) -> Any:
        images = isinstance(value, Tensor) and value.dim() == 4 and value.is_floating_point()
        if not images or found.feature is not None:
            return value
        found.feature = value.detach().requires_grad_() if leaf else value
        return found.feature

    def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if get_ident() != thread or (found.feature is not None and module not in reader):
            return None
        if leaf and found.feature is not None:
            raise InputError(
                f"{type(module).__name__} gets images more than once for a batch; 'input_gradient' "
                "needs one pass for all images"
            )
        seen = tuple(map(see, args)), {key: see(value) for key, value in kwargs.items()}
        if found.feature is None:
            return None
        reader.append(module)
        return seen if leaf else None

    with ExitStack() as stack:
        for module in network.modules():
            stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield found
    if found.feature is None and found.needed:
        raise InputError(
            f"no module of {type(network).__name__} got images (I, C, H, W) of floats, so "
            "'input_gradient' has nothing to differentiate by; use another method"
        )


def find_layer(network: nn.Module, name: str) -> nn.Module:
    """
    A module by its path in a network, or by the end of it where only one path ends so:
    ``"bottom_up.res4"`` or ``"res4"``.

    Raises:
        LayerError: there is none, or more than one; the message lists the layers to choose from.
    """
    paths = dict(network.named_modules())
    paths.pop("", None)
    name = name.removeprefix("backbone.") if name not in paths else name
    matches = [name] if name in paths else [p for p in paths if p.endswith(f".{name}")]
    if len(matches) == 1:
        return paths[matches[0]]
    problem = f"layer {name!r} could be {', '.join(matches)}"
    raise LayerError(problem if matches else f"there is no layer {name!r}", layer_names(network))


def layer_names(network: nn.Module) -> list[str]:
    """
    Paths of the stages and blocks of a backbone whose output is a feature map, found by running
    it. For a module that is not a ``Backbone``, of what it is made of: see :func:`feature_maps` for
    those that give maps.
    """
    if not isinstance(network, Backbone):
        return _shortened([name for name, _ in _by_depth(network)])
    stages = _stages(network)
    maps = _maps_of_backbone(network, stages)
    return [name for module, name in stages.items() if module in maps]


def finest_layer(backbone: Backbone) -> str:
    """
    Path of the last stage or block before the map gets coarser than four pixels a cell, or than the
    first one: ``"bottom_up.res2"`` of a ResNet with FPN.
    """
    return finest_layers(backbone, 1)[0]


def finest_layers(backbone: Backbone, count: int) -> list[str]:
    """
    The same for so many limits, each twice the one before it: ``"bottom_up.res2"`` and
    ``"bottom_up.res3"``. They are fewer where cells grow faster.
    """
    stages = _stages(backbone)
    maps = list(_maps_of_backbone(backbone, stages).items())
    if not maps:
        raise LayerError("no stage of the backbone gives a feature map")
    # A pyramid that is made of one map begins with finer ones.
    shrinking = itertools.takewhile(lambda x: x[0][1] <= x[1][1], itertools.pairwise(maps))
    maps = [maps[0], *(after for _, after in shrinking)]
    limits = [max(_FINEST_STRIDE, maps[0][1]) * 2**octave for octave in range(count)]
    last = [[module for module, stride in maps if stride <= limit][-1] for limit in limits]
    return list(dict.fromkeys(stages[module] for module in last))


def _stages(network: Backbone) -> dict[nn.Module, str]:
    """Paths of the stages and blocks of a backbone, whatever they give."""
    stages: dict[nn.Module, str] = {}
    for path, module in network.named_modules():
        if isinstance(module, Backbone):
            _add_stages(stages, path, module)
    return stages


def feature_maps(
    network: nn.Module, run: Callable[[], object], size: Callable[[], tuple[int, int]]
) -> list[str]:
    """
    Paths of the layers whose output is one feature map, the outermost first.

    Args:
        network: any module.
        run: a pass of it.
        size: (height, width) of the images, padding included, asked when a layer runs.
    """
    layers = {module: name for name, module in _by_depth(network, deepest=True)}
    maps = _maps_of(layers, run, size)
    return _shortened([name for module, name in layers.items() if module in maps])


def _shortened(names: list[str]) -> list[str]:
    more = len(names) - _MAX_NAMES
    return names if more <= 0 else [*names[:_MAX_NAMES], f"{more} more"]


def _by_depth(network: nn.Module, deepest: bool = False) -> Iterator[tuple[str, nn.Module]]:
    """
    The modules inside another one, those nearest to it first. Without ``deepest``, it goes no
    deeper once it has as many as a message lists.
    """
    count, level = 0, [("", network)]
    while level and (deepest or count < _MAX_NAMES):
        level = [(f"{p}.{n}".strip("."), m) for p, of in level for n, m in of.named_children()]
        # Lists do not run.
        runs = [x for x in level if not isinstance(x[1], (nn.ModuleList, nn.ModuleDict))]
        count += len(runs)
        yield from runs


def _add_stages(stages: dict[nn.Module, str], path: str, module: nn.Module) -> None:
    """The children of a module, and the blocks that a stage among them is made of."""
    for name, child in module.named_children():
        stages[child] = f"{path}.{name}".strip(".")
        blocks = getattr(child, "blocks", None)  # a stage of Swin
        if isinstance(child, (nn.Sequential, nn.ModuleList)):
            _add_stages(stages, stages[child], child)
        elif isinstance(blocks, nn.ModuleList):
            _add_stages(stages, f"{stages[child]}.blocks", blocks)


def _maps_of_backbone(backbone: Backbone, modules: Iterable[nn.Module]) -> dict[nn.Module, float]:
    """As :func:`_maps_of`, in a pass of the backbone."""
    unit = max(backbone.size_divisibility, 32)
    size = (2 * unit, 3 * unit)
    like = next(backbone.parameters())
    image = torch.zeros(1, 3, *size, dtype=like.dtype, device=like.device)
    return _maps_of(modules, lambda: backbone(image), lambda: size)


@torch.no_grad()
def _maps_of(
    modules: Iterable[nn.Module],
    run: Callable[[], object],
    size: Callable[[], tuple[int, int]],
) -> dict[nn.Module, float]:
    """Which modules give one feature map in a pass, in the order in which they ran: its stride."""
    calls: dict[nn.Module, list[float | None]] = {}
    thread = get_ident()

    def record(module: nn.Module, _args: tuple, output: object) -> None:
        if get_ident() == thread:
            geometry = map_geometry(output, size()) if isinstance(output, Tensor) else None
            calls.setdefault(module, []).append(None if geometry is None else geometry[2])

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(record).remove)
        run()
    once = {module: found[0] for module, found in calls.items() if len(found) == 1}
    return {module: stride for module, stride in once.items() if stride is not None}
