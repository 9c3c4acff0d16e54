"""
The general way: maps of whatever a function computes from a layer, by one backward pass for each
of its values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from odam_d2.core.errors import InputError
from odam_d2.core.gradients import gradient_heat_maps
from odam_d2.core.targets import SIDES
from odam_d2.modeling.gradient_modes import why_no_gradients
from odam_d2.modeling.layers import (
    CapturedLayer,
    LayerError,
    captured,
    captured_images,
    feature_maps,
    layer_names,
)

from .geometry import image_geometry
from .head_maps import Rule, rule_at

__all__ = ["OutputMaps", "check_reached", "output_maps"]

# A message names no more instances than so many.
_MAX_INSTANCES = 5


@dataclass(frozen=True)
class OutputMaps:
    """
    Maps of all values of a batch.

    Attributes:
        values: (N, T, h, w), on the whole layer, with their sign if that was asked for.
        fields: the other fields of ``OdamMaps``.
        counts: instances of each image, N in sum.
    """

    values: Tensor
    fields: dict[str, Tensor]
    counts: list[int]


def output_maps(
    model: nn.Module,
    batched_inputs: list[dict],
    outputs: Callable[[list[dict]], Sequence[Tensor]],
    layer: str | None,
    targets: Sequence[str],
    rule: Rule,
    sigma: float,
    max_bytes: int,
    *,
    signed: bool = False,
) -> OutputMaps:
    """
    Heat maps of what a function computes from a layer's output, or from the images.

    Args:
        model: the network that ``outputs`` runs.
        batched_inputs: Detectron2's input format.
        outputs: gets ``batched_inputs`` and returns for each image (n, T), or (n,) for one target,
            computed with gradients on from one pass of the network.
        layer: see :func:`odam_d2.modeling.layers.find_layer`; None for the images.
        targets: names of the T values.
        rule: from gradients and features to maps, see :mod:`odam_d2.core.cam`.
        sigma: standard deviation of the Gaussian Phi, in cells of the layer.
        max_bytes: bound on temporary tensors.
        signed: leave out the ReLU.

    Raises:
        InputError: the layer is wrong, ``outputs`` does not return what it should, or an instance
            does not depend on the layer.
    """

    device = batched_inputs[0]["image"].device if batched_inputs else torch.device("cpu")
    device = next((p.device for p in model.parameters()), device)

    def run() -> list[Tensor]:
        # Maps are made of what is computed in full precision, under somebody's autocast too.
        with torch.autocast(device.type, enabled=False):
            return _checked(outputs(batched_inputs), batched_inputs, targets)

    try:
        found, values = _captured(model, batched_inputs, run, layer)
    except LayerError as error:
        raise LayerError(error.problem, _layers(model, batched_inputs, run)) from None
    where = "the images" if layer is None else f"layer {layer!r}"
    counts = [len(value) for value in values]
    if any(len(value) and not value.requires_grad for value in values):
        why = why_no_gradients(run) or (
            "were they detached, made numbers or arrays of, or computed from something else?"
        )
        raise InputError(f"outputs returned values that do not depend on {where}: {why}")
    with torch.enable_grad():
        together = torch.cat(values)
    if found.feature is None:  # without an instance, nothing had to run
        found.feature = together.new_zeros(len(values), 1, 0, 0)
    image = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(together.device)
    sizes = [(int(h), int(w)) for h, w in (x["image"].shape[-2:] for x in batched_inputs)]
    rule = rule_at(rule, found.stride)
    with torch.autocast(device.type, enabled=False):
        maps, reached = _maps(together, found.feature, image, rule, sigma, max_bytes, signed)
    saturated = ~reached & _are_saturated(together.detach(), targets)
    check_reached(reached | saturated, image.tolist(), where)
    geometry = image_geometry(image, sizes, maps, found.stride)
    return OutputMaps(maps, geometry | {"saturated": saturated}, counts)


def _captured(
    model: nn.Module,
    batched_inputs: list[dict],
    run: Callable[[], list[Tensor]],
    layer: str | None,
) -> tuple[CapturedLayer, list[Tensor]]:
    """The layer, or the images without one, and what was computed from it."""
    with ExitStack() as stack:
        found = images = stack.enter_context(captured_images(model, leaf=layer is None))
        if layer is not None:
            size = _padded_size(batched_inputs, images)
            found = stack.enter_context(captured(model, layer, size))
        stack.enter_context(torch.enable_grad())
        values = run()
        found.needed = any(len(value) for value in values)
    return found, values


def _padded_size(
    batched_inputs: list[dict], images: CapturedLayer
) -> Callable[[], tuple[int, int]]:
    """(height, width) of the batch that the network gets, once it got it."""
    sizes = [x["image"].shape[-2:] for x in batched_inputs]
    largest = (max(h for h, _ in sizes), max(w for _, w in sizes))

    def size() -> tuple[int, int]:
        if images.feature is None:
            return largest
        height, width = images.feature.shape[-2:]
        return height, width

    return size


def _layers(
    model: nn.Module, batched_inputs: list[dict], run: Callable[[], list[Tensor]]
) -> list[str]:
    """The layers that would do, found by one more pass; those of the model where that fails."""
    with captured_images(model, leaf=False) as images:
        try:
            names = feature_maps(model, run, _padded_size(batched_inputs, images))
        except InputError:
            names = []
    return names or layer_names(model)


def _checked(returned: Any, batched_inputs: list[dict], targets: Sequence[str]) -> list[Tensor]:
    """The values as (n, T) for each image."""
    kind = type(returned).__name__
    one_number = isinstance(returned, Tensor) and not returned.dim()
    values = list(returned) if isinstance(returned, Iterable) and not one_number else [returned]
    if not all(isinstance(value, Tensor) for value in values):
        raise InputError(
            f"outputs returned {kind}; it must return a list of tensors (n, T), one for each image"
        )
    if len(values) != len(batched_inputs):
        raise InputError(
            f"outputs returned {len(values)} tensors for {len(batched_inputs)} images; it must "
            "return one for each image"
        )
    values = [value[:, None] if value.dim() == 1 else value for value in values]
    shapes = [tuple(value.shape) for value in values]
    if any(len(shape) != 2 or shape[1] != shapes[0][1] for shape in shapes):
        raise InputError(
            f"outputs returned tensors of shapes {shapes}; each must be (n, T): n instances of "
            "the image, and T targets, the same for all"
        )
    if any(shape[1] != len(targets) for shape in shapes):
        raise InputError(
            f"outputs returned {shapes[0][1]} values for each instance, and there are "
            f"{len(targets)} targets ({', '.join(targets)}); name each value"
        )
    if not all(value.detach().isfinite().all() for value in values):
        raise InputError("outputs returned values that are not finite, which have no maps")
    return values


def _maps(
    values: Tensor,
    feature: Tensor,
    image: Tensor,
    rule: Rule,
    sigma: float,
    max_bytes: int,
    signed: bool,
) -> tuple[Tensor, Tensor]:
    """
    Args:
        values: (N, T), with a graph.
        feature: (I, C, h, w), the leaf.
        image: (N,), of each instance.

    Returns:
        The maps (N, T, h, w), and whether each value has a gradient anywhere on the leaf (N, T).
    """
    with torch.enable_grad():
        columns = values.unbind(dim=1)
    reached = [torch.zeros(0, dtype=torch.bool, device=values.device)]

    def recorded(gradient: Tensor, of_feature: Tensor) -> Tensor:
        reached.append(gradient.flatten(1).any(dim=1))
        return rule(gradient, of_feature)

    maps = [
        gradient_heat_maps(column, feature, image, sigma, signed, max_bytes, recorded)
        for column in columns
    ]
    return torch.stack(maps, dim=1), torch.cat(reached).view(len(columns), -1).t()


def _are_saturated(values: Tensor, targets: Sequence[str]) -> Tensor:
    """(N, T): probabilities that are exactly 0 or 1 have no gradient anywhere any more."""
    no_side = torch.tensor([name not in SIDES for name in targets], device=values.device)
    return no_side & ((values == 0) | (values == 1))


def check_reached(reached: Tensor, image: list[int], where: str) -> None:
    """
    Refuse a layer that an instance does not read, such as one level of a pyramid: its map would be
    zero, and say nothing.

    Args:
        reached: (N, T), whether each value has a gradient there.
        image: of each instance.
        where: the layer, in words.
    """
    lost = (~reached.any(dim=1)).nonzero().squeeze(1).tolist()
    if not lost:
        return
    first = {number: image.index(number) for number in set(image)}
    places = [f"{row - first[image[row]]} of image {image[row]}" for row in lost]
    shown = ", ".join(places[:_MAX_INSTANCES]) + (", ..." if len(places) > _MAX_INSTANCES else "")
    raise InputError(
        f"{len(lost)} of {len(image)} instances do not depend on {where} ({shown}; gradients there "
        "are zero): name a layer that all of them read, or return those alone that read this one"
    )
