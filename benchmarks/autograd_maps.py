"""Heat maps by plain autograd, one backward pass for each: what ours are measured against."""

from __future__ import annotations

import itertools
import statistics
import time

import torch
from torch import Tensor
from tqdm import tqdm

from odam_d2.core.windows import paste_window
from odam_d2.modeling.adapters import HeadAdapter, Trace, build_adapter
from odam_d2.modeling.adapters.head import head_adapter
from odam_d2.modeling.explanation import Explanation
from odam_d2.modeling.targets import Targets
from odam_d2.structures import OdamMaps

__all__ = ["compare_with_autograd"]


def compare_with_autograd(
    explanation: Explanation, trace: Trace, maps: OdamMaps, references: int
) -> dict:
    """
    The maps of one image by plain autograd, for some instances of each level.

    Args:
        explanation: that made the maps of this trace.
        references: instances of each level to compute by autograd.

    Returns:
        Figures: seconds for each map by autograd (median and range of each level, weighted by its
        instances), and how the maps compare, see :func:`benchmarks.explaining.measure`.
    """
    adapter, targets = head_adapter(explanation.adapter), explanation.targets
    leaves, outputs = _graph(adapter, targets, trace)
    exact_leaves, exact_outputs = leaves, outputs
    if "constant statistics" in explanation.algorithm:
        exact = head_adapter(build_adapter(adapter.original, "exact"))
        exact_leaves, exact_outputs = _graph(exact, targets, trace)
    weighted, errors, differences = [], [], []
    for level in tqdm(maps.levels.unique().tolist(), desc="per-map autograd", unit="level"):
        members = (maps.levels == level).nonzero().squeeze(1).tolist()
        spent = []
        for i, t in itertools.product(members[:references], range(len(maps.targets))):
            levels = [(n, adapter.strides[n]) for n in trace.levels[i].unique().tolist()]
            elapsed, reference = _one_map(_chosen(outputs[t], i), leaves, levels)
            spent.append(elapsed)
            errors.append(_relative_error(maps, i, t, reference))
            if exact_outputs is not outputs:
                _, reference = _one_map(_chosen(exact_outputs[t], i), exact_leaves, levels)
                differences.append(_relative_error(maps, i, t, reference))
        weighted += [[len(members) * of(spent) for of in (statistics.median, min, max)]]
    median, least, most = (sum(of_levels) / len(maps) for of_levels in zip(*weighted, strict=True))
    compared = {
        "autograd_s_per_map": median,
        "autograd_s_per_map_range": [least, most],
        "max_relative_error": max(errors),
        "autograd_maps": len(errors),
    }
    if differences:
        compared["median_difference_to_exact"] = statistics.median(differences)
    return compared


def _graph(
    adapter: HeadAdapter, targets: Targets, trace: Trace
) -> tuple[list[Tensor], list[Tensor]]:
    """
    Leaves in the place of what the head read, and each target (N,) computed from them. They are not
    stacked: a pass for one map should not compute zeros of what its target does not read.
    """
    with torch.enable_grad():
        leaves = [feature.detach().requires_grad_() for feature in trace.features]
        scalars = targets.of(adapter.evaluate(leaves, trace))
        return leaves, [s.values * s.exponents.exp2().to(s.values.dtype) for s in scalars]


def _chosen(column: Tensor, i: int) -> Tensor:
    with torch.enable_grad():
        return column[i]


def _one_map(
    output: Tensor,
    leaves: list[Tensor],
    levels: list[tuple[int, float]],
) -> tuple[float, Tensor]:
    """
    Seconds and heat map (H, W) of one output, by one backward pass.

    Args:
        output: a scalar.
        levels: number and stride of each level that the output depends on, the finest first.
    """
    start = time.perf_counter()
    leaves = [leaves[number] for number, _ in levels]
    with torch.enable_grad():
        gradients = torch.autograd.grad(output, leaves, retain_graph=True, allow_unused=True)
    height, width = leaves[0].shape[-2:]
    total = leaves[0].new_zeros(height, width)
    for leaf, (_, stride), gradient in zip(leaves, levels, gradients, strict=True):
        if gradient is not None:
            ratio = round(stride / levels[0][1])
            product = (gradient[0] * leaf[0].detach()).sum(dim=0) / ratio**2
            product = product.repeat_interleave(ratio, 0).repeat_interleave(ratio, 1)
            total += product[:height, :width]
    reference = total.relu()
    if reference.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start, reference


def _relative_error(maps: OdamMaps, i: int, t: int, reference: Tensor) -> float:
    window = (*maps.origins[i].tolist(), *maps.values.shape[-2:])
    full = paste_window(maps.positive().values[i, t], window, tuple(reference.shape))
    peak = float(reference.max())
    return float((full - reference).abs().max()) / peak if peak else float(full.max())
