"""
Gradients of what a head says of pooled features, for many outputs at little more than the price of
one: the first layer of a usual box head is a linear one, by far the largest, so autograd goes as
far as its output only, and one product with its weight takes the gradients of all outputs further.

Whether a head begins that way is read off the graph that autograd has of it, which knows all that
was computed, by whatever modules, hooks and functions.

Shape shorthand: N instances; T outputs of each; (C, R, S) pooled feature; F outputs of the first
linear layer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["StageGradient", "copied_gradients", "pooled_gradients", "reads"]

StageGradient = tuple[list[int], Tensor] | None
"""
Which of T outputs depend on what a stage pooled, and their derivatives (N, t, C, R, S) by that;
None where none does.
"""

# Nodes of autograd's graph that leave the values of a tensor, and their order, as they are.
_RESHAPING = {"CloneBackward0", "ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0"}

# Those of a matrix product, and where the left factor is among their inputs.
_PRODUCTS = {"AddmmBackward0": 1, "MmBackward0": 0}

_GradientEdge = getattr(torch.autograd.graph, "GradientEdge", None)  # since torch 2.1


def copied_gradients(
    outputs: Sequence[Tensor], pooled: Sequence[Tensor], count: int
) -> list[StageGradient]:
    """
    Derivatives by pooled features of which the head has read a copy for each output: one backward
    pass gives those of all outputs, in as many operations as for one of them.

    Args:
        outputs: T of (N T,); row i depends on copy i of the pooled features alone.
        pooled: of each stage (N, T, C, R, S), leaves.
        count: of how many instances, from the first on, outputs are differentiated.
    """
    like, copies = outputs[0], len(outputs)
    seeds = torch.eye(copies, dtype=like.dtype, device=like.device).repeat(len(pooled[0]), 1)
    seeds[count * copies :].zero_()
    found = torch.autograd.grad(outputs, pooled, seeds.unbind(dim=1), allow_unused=True)
    return [gradient if gradient is None else (list(range(copies)), gradient) for gradient in found]


def pooled_gradients(
    outputs: Sequence[Tensor], pooled: Sequence[Tensor], hooked: bool = False
) -> list[StageGradient]:
    """
    Derivatives of outputs by pooled features of one stage or several. The graph is retained.

    Args:
        outputs: T of (N,), or of the first rows; row i depends on row i of the pooled features
            alone.
        pooled: of each stage (N, C, R, S), leaves.
        hooked: whether a tensor between the two may have hooks, which the graph does not show.
    """
    consumers = _consumers(outputs)
    layers = [None if hooked else _FirstLayer.find(leaf, consumers) for leaf in pooled]
    ends: list[Any] = [
        leaf if layer is None else layer.edge for leaf, layer in zip(pooled, layers, strict=True)
    ]
    gradients = [
        torch.autograd.grad(output.sum(), ends, retain_graph=True, allow_unused=True)
        for output in outputs
    ]
    stages: list[StageGradient] = []
    for leaf, layer, of_stage in zip(pooled, layers, zip(*gradients, strict=True), strict=True):
        used = [number for number, gradient in enumerate(of_stage) if gradient is not None]
        if not used:
            stages.append(None)
            continue
        stacked = torch.stack([of_stage[number] for number in used], dim=1)
        carried = stacked if layer is None else layer.carry(stacked)
        stages.append((used, carried.view(len(leaf), len(used), *leaf.shape[1:])))
    return stages


def reads(outputs: Iterable[Tensor], ends: Iterable[Any]) -> list[list[bool]]:
    """For each output, whether it depends on each of some leaves, or edges of autograd's graph."""
    nodes = [_node(end) for end in ends]
    graphs = [_consumers([output]) for output in outputs]
    return [[node in graph for node in nodes] for graph in graphs]


def _node(end: Any) -> Any:
    """Of autograd's graph, where it differentiates by a leaf or a :class:`_FirstLayer`."""
    return torch.autograd.graph.get_gradient_edge(end).node if isinstance(end, Tensor) else end.node


def _consumers(outputs: Iterable[Tensor]) -> dict[Any, list[tuple[Any, int]]]:
    """For each node of autograd's graph, those that it feeds, and as which of their inputs."""
    consumers: dict[Any, list[tuple[Any, int]]] = defaultdict(list)
    seen = set()
    waiting = [output.grad_fn for output in outputs]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for position, (below, _) in enumerate(node.next_functions):
            consumers[below].append((node, position))
            waiting.append(below)
    return consumers


@dataclass(frozen=True)
class _FirstLayer:
    """
    The only layer that reads a pooled feature, as rows of C R S numbers, and is linear.

    Attributes:
        edge: of its output (N, F).
        weight: (F, C R S).
    """

    edge: Any
    weight: Tensor

    @classmethod
    def find(cls, leaf: Tensor, consumers: dict[Any, list]) -> _FirstLayer | None:
        """None where something else reads the leaf, or reads it as well."""
        if _GradientEdge is None:
            return None
        node = _node(leaf)
        while True:
            if len(consumers[node]) != 1:
                return None
            ((node, position),) = consumers[node]
            if node.name() not in _RESHAPING:
                break
        if _PRODUCTS.get(node.name()) != position or getattr(node, "_saved_alpha", 1) != 1:
            return None
        weight = node._saved_mat2.detach().t()
        if weight.dtype != leaf.dtype or weight.shape[1] != leaf[0].numel():
            return None
        return cls(_GradientEdge(node, 0), weight)

    def carry(self, gradients: Tensor) -> Tensor:
        """
        Args:
            gradients: (N, T, F).

        Returns:
            (N T, C R S).
        """
        rows = gradients.flatten(0, 1)
        # The same product as a convolution: oneDNN's is as fast as MKL's on Intel's processors,
        # and faster on others.
        return F.conv1d(self.weight[None], rows[:, :, None])[0]
