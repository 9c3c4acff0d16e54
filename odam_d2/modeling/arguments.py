"""What the entry points are given, checked before a model runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import torch
from detectron2.structures import Boxes
from torch import Tensor, nn

from odam_d2.core.errors import InputError

__all__ = ["checked_boxes", "checked_inputs", "checked_targets"]

# Boxes may reach beyond an image, as of a person who is partly out of view; farther away than this
# many times the image's size nothing is left of a feature map, and windows would fill the memory.
_MAX_REACH = 10


def checked_targets(targets: Sequence[str] | str) -> tuple[str, ...]:
    """
    Names of targets as a tuple.

    Raises:
        InputError: they are no names.
    """
    targets = (targets,) if isinstance(targets, str) else targets
    try:
        found: tuple[str, ...] | None = tuple(targets)
    except TypeError:
        found = None
    if found is None or not all(isinstance(name, str) for name in found):
        raise InputError(f"targets are {targets!r}; they must be names, such as ['class', 'left']")
    return found


def checked_inputs(model: nn.Module, batched_inputs: Sequence[dict]) -> list[dict]:
    """
    The batch as a list.

    Args:
        model: that gets it; its parameters say what images it can take.
        batched_inputs: Detectron2's input format.

    Raises:
        InputError: the batch, an image or a size is not in that format.
    """
    if not isinstance(batched_inputs, (list, tuple)):
        raise InputError(
            f"batched_inputs is a {type(batched_inputs).__name__}; it must be a list with a dict "
            "for each image, such as [{'image': tensor, 'height': 480, 'width': 640}]"
        )
    parameter, mean = next(model.parameters(), None), getattr(model, "pixel_mean", None)
    for number, given in enumerate(batched_inputs):
        if not isinstance(given, dict) or "image" not in given:
            raise InputError(f"input {number} must be a dict with the key 'image'")
        _check_image(f"the image of input {number}", given["image"], parameter, mean)
        for key in ("height", "width"):
            if key in given and not _is_extent(given[key]):
                raise InputError(
                    f"{key} of input {number} is {given[key]!r}; it must be a number of pixels"
                )
    return list(batched_inputs)


def _check_image(what: str, image: object, parameter: Tensor | None, mean: Tensor | None) -> None:
    if not isinstance(image, Tensor):
        raise InputError(f"{what} is a {type(image).__name__}; it must be a tensor (C, H, W)")
    if image.dim() != 3 or not image.numel():
        raise InputError(f"{what} has the shape {tuple(image.shape)}; it must be (C, H, W)")
    # One channel is stretched to all by subtracting the mean, in Detectron2.
    if isinstance(mean, Tensor) and image.shape[0] not in (1, mean.numel()):
        raise InputError(
            f"{what} has the shape {tuple(image.shape)}; the model takes {mean.numel()} channels, "
            "which come first"
        )
    if image.dtype == torch.bool or image.is_complex():
        raise InputError(f"{what} is of {image.dtype}; it must be of numbers, such as 0 to 255")
    double = image.dtype == torch.float64
    if parameter is not None and double and parameter.dtype != torch.float64:
        raise InputError(f"{what} is of {image.dtype}, and the model of {parameter.dtype}")


def _is_extent(value: object) -> bool:
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    return isinstance(number, Real) and math.isfinite(number) and float(number) > 0


def checked_boxes(
    batched_inputs: list[dict],
    boxes: Sequence[Boxes | Tensor],
    classes: Sequence[Tensor],
    num_classes: int,
    dtype: torch.dtype,
) -> tuple[list[Tensor], list[Tensor]]:
    """
    Given boxes (N, 4) of ``dtype`` and classes (N,) int64 of each image.

    Raises:
        InputError: there is not one set for each image, shapes do not fit, a box is not finite or
            far outside, or a class does not exist.
    """
    for name, sets in (("boxes", boxes), ("classes", classes)):
        if not isinstance(sets, (list, tuple)):
            raise InputError(
                f"{name} is a {type(sets).__name__}; it must be a list with one set for each image"
            )
    if not len(batched_inputs) == len(boxes) == len(classes):
        raise InputError(
            f"{len(batched_inputs)} images, but {len(boxes)} sets of boxes and {len(classes)} of "
            "classes; give one set for each image"
        )
    found_boxes, found_classes = [], []
    for number, (given, box, label) in enumerate(zip(batched_inputs, boxes, classes, strict=True)):
        box = _tensor(box.tensor if isinstance(box, Boxes) else box, f"boxes of image {number}")
        label = _tensor(label, f"classes of image {number}")
        box = box.reshape(-1, 4) if box.numel() == 0 else box
        if box.dim() != 2 or box.shape[1] != 4 or label.shape != box.shape[:1]:
            raise InputError(
                f"image {number}: boxes {tuple(box.shape)} and classes {tuple(label.shape)} must "
                "have the shapes (N, 4) and (N,)"
            )
        _check_extents(box, given, f"image {number}")
        _check_labels(label, num_classes, f"image {number}")
        found_boxes.append(box.to(dtype))
        found_classes.append(label.long())
    return found_boxes, found_classes


def _tensor(values: object, what: str) -> Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{what} must be numbers, not {type(values).__name__}") from error


def _check_extents(boxes: Tensor, given: dict, what: str) -> None:
    if not boxes.isfinite().all() or (boxes[:, 2:] < boxes[:, :2]).any():
        raise InputError(f"{what}: boxes must be finite XYXY with x1 <= x2, y1 <= y2")
    height, width = given["image"].shape[-2:]
    limit = _MAX_REACH * max(float(given.get("height", height)), float(given.get("width", width)))
    if len(boxes) and float(boxes.abs().max()) > limit:
        raise InputError(
            f"{what}: a box reaches {float(boxes.abs().max()):g} pixels; boxes must be within "
            f"{_MAX_REACH} times the size of the image, {limit:g}"
        )


def _check_labels(labels: Tensor, num_classes: int, what: str) -> None:
    whole = labels.isfinite().all() and bool((labels == labels.long()).all())
    if not whole or ((labels < 0) | (labels >= num_classes)).any():
        raise InputError(
            f"{what}: class ids must be 0 to {num_classes - 1}, not "
            f"{labels.min().item():g} to {labels.max().item():g}"
        )
