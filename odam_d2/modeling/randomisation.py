"""
A detector whose layers are randomised one after the other, from what decides down to what reads the
image (Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018). Always a copy.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from detectron2.modeling import Backbone
from detectron2.structures import Boxes, ImageList
from torch import Tensor, nn

from .adapters.base import build_adapter
from .adapters.head import HeadAdapter, head_adapter
from .precision import full_precision_dtype

__all__ = ["Layer", "layers_top_down", "own_copy", "randomised", "write_parameters"]

_BOX_SIDES = [2.0**n for n in range(3, 12)]
"""Pixels; some box is read from each level of a pyramid."""

_COARSEST = 128
"""Pixels per cell of the coarsest map that a head reads; group norm of a single cell is refused."""


class Layer(NamedTuple):
    """
    What is randomised in one step.

    Attributes:
        name: paths of its modules that have weights.
        parameters: names of all of its parameters.
    """

    name: str
    parameters: tuple[str, ...]


def own_copy(model: nn.Module) -> nn.Module:
    """
    A second detector in evaluation mode that shares nothing with the first: parameters and buffers
    in full precision, none that requires a gradient, and the same hooks in dicts of its own.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for name, value in vars(module).items():
            if "_hooks" in name and isinstance(value, dict):
                memo[id(value)] = copy.copy(value)
    copied = copy.deepcopy(model, memo).to(full_precision_dtype(model))
    return copied.eval().requires_grad_(False)


def randomised(
    parameters: Mapping[str, Tensor], layers: Iterable[Layer], seed: int
) -> dict[str, Tensor]:
    """
    The parameters of some layers, the values of each of them in random order: what was learned is
    gone, and activations keep their scale, also where the statistics of norms are constants.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for layer in layers:
        for name in layer.parameters:
            value = parameters[name]
            order = torch.randperm(value.numel(), generator=generator).to(value.device)
            drawn[name] = value.flatten()[order].view_as(value)
    return drawn


@torch.no_grad()
def write_parameters(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Give some parameters of a model other values."""
    for name, parameter in model.named_parameters():
        if name in values:
            parameter.copy_(values[name])


def layers_top_down(model: nn.Module, norm_statistics: str = "constant") -> list[Layer]:
    """
    The layers that decisions depend on, those that decide first: of the head the modules that
    have as many others with weights between them and a decision (towers that are read side by side
    go together, norms with the convolution before them), of the backbone its stages.

    Raises:
        UnsupportedModelError: nothing is known of the model's head.
    """
    probe = own_copy(model).requires_grad_(True)
    adapter = head_adapter(build_adapter(probe, norm_statistics))
    names = {id(value): name for name, value in probe.named_parameters()}
    depths = _depths(_decided(adapter), names)
    modules = dict(probe.named_modules())
    groups: dict[str, list[str]] = {}
    for name in depths:
        groups.setdefault(_stage(name.rpartition(".")[0], modules), []).append(name)
    by_depth: dict[int, list[str]] = {}
    for of_group in groups.values():
        by_depth.setdefault(min(depths[name] for name in of_group), []).extend(of_group)
    order = {name: number for number, name in enumerate(names.values())}
    layers = []
    for depth in sorted(by_depth):
        inside = sorted(by_depth[depth], key=order.__getitem__)
        weights = [name for name in inside if probe.get_parameter(name).dim() > 1] or inside
        stages = dict.fromkeys(_stage(name.rpartition(".")[0], modules) for name in weights)
        layers.append(Layer(", ".join(stages), tuple(inside)))
    return layers


def _stage(owner: str, modules: Mapping[str, nn.Module]) -> str:
    """
    Of a module in a backbone the path of the stage that it belongs to, of one that lies directly in
    a backbone that of the backbone; of any other its own.
    """
    parts = owner.split(".")
    for count in range(len(parts), 0, -1):
        path = ".".join(parts[:count])
        if isinstance(modules[path], Backbone) or path == "backbone":
            return path if len(parts) - count < 2 else ".".join(parts[: count + 1])
    return owner


@torch.enable_grad()
def _decided(adapter: HeadAdapter) -> Tensor:
    """All decisions on boxes of all sizes in an empty image, as one number."""
    unit = max(adapter.model.backbone.size_divisibility, _COARSEST)
    size = (2 * unit, 3 * unit)
    like = next(adapter.model.parameters())
    images = like.new_zeros(1, 3, *size).requires_grad_()
    sides = like.new_tensor(_BOX_SIDES)[:, None]
    centre = like.new_tensor([size[1], size[0]]) / 2
    boxes = Boxes(torch.cat([centre - sides / 2, centre + sides / 2], dim=1).detach())
    classes = torch.zeros(len(boxes), dtype=torch.int64, device=like.device)
    features = adapter.features(images)
    trace = adapter.trace_given(ImageList(images, [size]), features, [boxes], [classes])
    decisions = adapter.evaluate(features, trace)
    return decisions.probabilities.sum() + decisions.boxes.sum()


def _depths(total: Tensor, names: Mapping[int, str]) -> dict[str, int]:
    """
    By name of each parameter that a number is computed of: how many operations with weights lie
    between the two, on the longest way.

    Args:
        names: of parameters, by their ids.
    """
    order = _top_down(total.grad_fn)
    depth = dict.fromkeys(order, 0)
    found: dict[str, int] = {}
    for node in order:
        read = {below: _parameter(below) for below in _below(node)}
        of_model = {k: p for k, p in read.items() if p is not None and id(p) in names}
        weighted = any(parameter.dim() > 1 for parameter in of_model.values())
        for below in read:
            if below in of_model:
                name = names[id(of_model[below])]
                found[name] = max(found.get(name, 0), depth[node])
            else:
                depth[below] = max(depth[below], depth[node] + weighted)
    return found


def _below(node: Any) -> list:
    """What a node of autograd's graph was computed of."""
    return [below for below, _ in node.next_functions if below is not None]


def _parameter(node: Any) -> Tensor | None:
    """The leaf of which, and of nothing else, a node was made, as a transposed weight is."""
    while not hasattr(node, "variable"):
        below = _below(node)
        if len(below) != 1:
            return None
        (node,) = below
    return node.variable


def _top_down(root: Any) -> list:
    """The nodes of a graph, each before all that it was computed of."""
    finished: dict[Any, None] = {}
    stack: list[tuple[Any, Iterator]] = [(root, iter(_below(root)))]
    entered = {root}
    while stack:
        node, more = stack[-1]
        below = next(more, None)
        if below is None:
            finished[node] = None
            stack.pop()
        elif below not in entered:
            entered.add(below)
            stack.append((below, iter(_below(below))))
    return list(reversed(finished))
