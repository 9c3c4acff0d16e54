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

from odam_d2.core import windows

__all__ = ["pooled_gradients", "reads"]

# Nodes of autograd's graph that leave the values of a tensor, and their order, as they are.
_RESHAPING = {"CloneBackward0", "ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0"}

# Those of a matrix product, and where the left factor is among their inputs.
_PRODUCTS = {"AddmmBackward0": 1, "MmBackward0": 0}

_GradientEdge = getattr(torch.autograd.graph, "GradientEdge", None)  # since torch 2.1


def pooled_gradients(
    outputs: Sequence[Tensor], pooled: Sequence[Tensor], hooked: bool = False
) -> list[tuple[list[int], Tensor] | None]:
    """
    Derivatives of outputs by pooled features of one stage or several. The graph is retained.

    Args:
        outputs: T of (N,); row i depends on row i of the pooled features alone.
        pooled: of each stage (N, C, R, S), leaves.
        hooked: whether a tensor between the two may have hooks, which the graph does not show.

    Returns:
        For each stage, which outputs depend on it, and their derivatives (N, t, C, R, S); None
        where none does.
    """
    consumers = _consumers(outputs)
    layers = [None if hooked else _FirstLayer.find(leaf, consumers) for leaf in pooled]
    ends: list[Any] = [
        leaf if layer is None else layer.edge for leaf, layer in zip(pooled, layers, strict=True)
    ]
    gradients = _together(outputs, ends) if windows.computes_together(pooled[0].device) else None
    if gradients is None:
        gradients = [
            torch.autograd.grad(output.sum(), ends, retain_graph=True, allow_unused=True)
            for output in outputs
        ]
    stages: list[tuple[list[int], Tensor] | None] = []
    for leaf, layer, of_stage in zip(pooled, layers, zip(*gradients, strict=True), strict=True):
        used = [number for number, gradient in enumerate(of_stage) if gradient is not None]
        if not used:
            stages.append(None)
            continue
        stacked = torch.stack([of_stage[number] for number in used], dim=1)
        carried = stacked if layer is None else layer.carry(stacked)
        stages.append((used, carried.view(len(leaf), len(used), *leaf.shape[1:])))
    return stages


def _together(outputs: Sequence[Tensor], ends: list[Any]) -> list[tuple[Tensor | None, ...]] | None:
    """
    The gradients of each output, those of outputs that depend on the same ends by one vectorised
    backward pass; None where an operation does not support that.
    """
    groups = defaultdict(list)
    for number, read in enumerate(reads(outputs, ends)):
        groups[tuple(read)].append(number)
    gradients: list[list[Tensor | None]] = [[None] * len(ends) for _ in outputs]
    for which, numbers in groups.items():
        chosen = [number for number, read in enumerate(which) if read]
        if not chosen:
            continue
        sums = torch.stack([outputs[number].sum() for number in numbers])
        seeds = torch.eye(len(numbers), dtype=sums.dtype, device=sums.device)
        try:
            found = torch.autograd.grad(
                sums, [ends[n] for n in chosen], seeds, retain_graph=True, is_grads_batched=True
            )
        except RuntimeError:  # vmap has no rule for the operation; also NotImplementedError.
            return None
        for end, of_end in zip(chosen, found, strict=True):
            for number, gradient in zip(numbers, of_end.unbind(), strict=True):
                gradients[number][end] = gradient
    return [tuple(of_output) for of_output in gradients]


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
        if rows.device.type != "cpu":
            return rows @ self.weight
        # The same product as a convolution: oneDNN's is as fast as MKL's on Intel's processors,
        # and faster on others.
        return F.conv1d(self.weight[None], rows[:, :, None])[0]
