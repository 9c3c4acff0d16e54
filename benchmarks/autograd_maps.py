"""Heat maps by plain autograd, one backward pass for each: what ours are measured against."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from odam_d2.core.windows import paste_window
from odam_d2.modeling.explainers import HeadExplainer, build_explainer
from odam_d2.modeling.explainers.reading import Reading
from odam_d2.structures import OdamMaps

__all__ = ["compare_with_autograd"]


def compare_with_autograd(
    explainer: HeadExplainer, run: Callable[[], object], references: int
) -> tuple[OdamMaps, float, dict]:
    """
    Maps of one image, and the same maps by plain autograd for some instances of each level.

    Args:
        explainer: of the model.
        run: detects and explains one image by the explainer's view.
        references: instances of each level to compute by autograd.

    Returns:
        Our maps, seconds for each map by autograd (the fastest of each level, weighted by its
        instances), and how the maps compare, see :func:`benchmarks.explaining.measure`.
    """
    read, found = [], []
    explain_detections = explainer.explain_detections

    def recorded(reading, instances):
        read.append(reading)
        explain_detections(reading, instances)
        found.extend(instances)

    explainer.explain_detections = recorded
    try:
        run()
    finally:
        del explainer.explain_detections
    (reading,), maps = read, found[0].odam_maps
    leaves, outputs = _graph(explainer, reading)
    settings = dataclasses.replace(explainer.settings, norm_statistics="exact")
    exact_leaves, exact_outputs = leaves, outputs
    if settings != explainer.settings:
        exact_leaves, exact_outputs = _graph(build_explainer(explainer.model, settings), reading)
    seconds, errors, differences = 0.0, [], []
    for level in tqdm(maps.levels.unique().tolist(), desc="per-map autograd", unit="level"):
        members = (maps.levels == level).nonzero().squeeze(1).tolist()
        spent = []
        for i, t in itertools.product(members[:references], range(len(maps.targets))):
            levels = [(n, explainer.strides[n]) for n in reading.levels[i].unique().tolist()]
            elapsed, reference = _one_map(outputs, (i, t), leaves, levels)
            spent.append(elapsed)
            errors.append(_relative_error(maps, i, t, reference))
            if exact_outputs is not outputs:
                _, reference = _one_map(exact_outputs, (i, t), exact_leaves, levels)
                differences.append(_relative_error(maps, i, t, reference))
        seconds += min(spent) * len(members)
    compared = {"max_relative_error": max(errors), "autograd_maps": len(errors)}
    if differences:
        compared["median_difference_to_exact"] = statistics.median(differences)
    return maps, seconds / max(len(maps), 1), compared


def _graph(explainer: HeadExplainer, reading: Reading) -> tuple[list[Tensor], Tensor]:
    """Leaves in the place of what the head read, and the targets (N, T) computed from them."""
    with torch.enable_grad():
        leaves = [feature.detach().requires_grad_() for feature in reading.features]
        evaluation = explainer.evaluate(leaves, reading)
        values, exponents = evaluation.values, evaluation.exponents
        return leaves, values if exponents is None else values * exponents.exp2().to(values.dtype)


def _one_map(
    outputs: Tensor,
    index: tuple[int, int],
    leaves: list[Tensor],
    levels: list[tuple[int, float]],
) -> tuple[float, Tensor]:
    """
    Seconds and heat map (H, W) of one output, by one backward pass.

    Args:
        levels: number and stride of each level that the output depends on, the finest first.
    """
    start = time.perf_counter()
    leaves = [leaves[number] for number, _ in levels]
    with torch.enable_grad():
        gradients = torch.autograd.grad(
            outputs[index], leaves, retain_graph=True, allow_unused=True
        )
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
    full = paste_window(maps.values[i, t], window, tuple(reference.shape))
    peak = float(reference.max())
    return float((full - reference).abs().max()) / peak if peak else float(full.max())
