"""
The entry points: explain what a detector found, what it says of given boxes, or whatever a function
of yours computes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, overload

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from odam_d2.core.errors import InputError
from odam_d2.core.targets import DEFAULT_TARGETS
from odam_d2.structures import OdamMaps

from .arguments import checked_boxes, checked_inputs, checked_targets
from .attribution.gradients import GradientMethod
from .attribution.output_maps import output_maps
from .explanation import Explanation
from .model_inputs import Inputs, ModelInputs, ModelLike, unwrapped
from .precision import full_precision_dtype
from .settings import ExplainSettings
from .state import held_in_evaluation, preserved

__all__ = ["explain", "explain_boxes", "explain_outputs"]

# Settings that apply to explain_outputs.
_OF_OUTPUTS = ("method", "smoothing_sigma", "signed", "chunk_mb")


@overload
def explain(
    model: ModelLike,
    batched_inputs: dict | np.ndarray,
    targets: Sequence[str] = ...,
    **settings: Any,
) -> dict: ...
@overload
def explain(
    model: ModelLike,
    batched_inputs: list[dict] | list[np.ndarray],
    targets: Sequence[str] = ...,
    **settings: Any,
) -> list[dict]: ...
def explain(
    model: ModelLike,
    batched_inputs: Inputs,
    targets: Sequence[str] = DEFAULT_TARGETS,
    **settings: Any,
) -> list[dict] | dict:
    """
    Run a detector and explain every detection (Zhao and Chan, "ODAM", ICLR 2023).

    Args:
        model: a detector of plain Detectron2, or one of ours; also within ``DataParallel``,
            ``DistributedDataParallel`` or ``torch.compile``, or Detectron2's ``DefaultPredictor``.
            It is given back as it was: modes, ``requires_grad``, ``.grad``, hooks and random
            numbers, also when something raises.
        batched_inputs: Detectron2's input format: a dict with ``image`` (C, H, W) for each image,
            and ``height``, ``width`` of the output; or one such dict. A ``DefaultPredictor`` takes
            what it is called with as well, a picture (H, W, 3) BGR, or a list of them.
        targets: what to explain of each detection: ``"class"`` (the score of the predicted class),
            ``"class:NAME"`` or ``"class:K"`` (the score of another class), ``"left"``, ``"top"``,
            ``"right"``, ``"bottom"`` (how far that side reaches outward), ``"combined"`` (the
            maximum of the others, each normalised).
        **settings: further fields of :class:`ExplainSettings` (``score``, ``smoothing_sigma``,
            ``layer``, ``norm_statistics``, ``chunk_mb``, ``class_names``, ``nms``, ``record``,
            ``method``, ``preset``, ``signed``, and the settings of methods, such as ``rise``); the
            default is what the model was configured with.

    Returns:
        Detectron2's output format, for each image a dict with ``instances``, the detections bit for
        bit those of the model, with one more field ``odam_maps`` (:class:`odam_d2.OdamMaps`); the
        one dict where one input was given.

    Raises:
        ValueError: a target or setting is unknown; the message lists what there is.
        UnsupportedModelError: the model, or a part of it that the message names, is of no kind
            that can be explained.
    """
    given = ModelInputs.of(model, batched_inputs)
    if not given.batch:
        return []
    with preserved(given.model) as model_view:
        explanation = _explanation(model_view, targets, settings, given.class_names)
        outputs = explanation.run(given.batch, lambda view: view(given.batch))
    return outputs[0] if given.single else outputs


@overload
def explain_boxes(
    model: ModelLike,
    batched_inputs: dict | np.ndarray,
    boxes: Boxes | Tensor,
    classes: Tensor,
    targets: Sequence[str] = ...,
    **settings: Any,
) -> dict: ...
@overload
def explain_boxes(
    model: ModelLike,
    batched_inputs: list[dict] | list[np.ndarray],
    boxes: Sequence[Boxes | Tensor],
    classes: Sequence[Tensor],
    targets: Sequence[str] = ...,
    **settings: Any,
) -> list[dict]: ...
def explain_boxes(
    model: ModelLike,
    batched_inputs: Inputs,
    boxes: Any,
    classes: Any,
    targets: Sequence[str] = DEFAULT_TARGETS,
    **settings: Any,
) -> list[dict] | dict:
    """
    Explain what a detector says of boxes and classes that you give: ground truth, a box of your
    own, "why is there no detection here?".

    A two-stage detector pools the box as if it were a proposal. A dense one is asked at the anchor
    with the highest IoU with the box, which is the one that would be trained to find it.

    Args:
        model, batched_inputs, targets, **settings: as for :func:`explain`.
        boxes: for each image (N, 4), XYXY in pixels of the output (``height``, ``width``). Where
            one input is given, its boxes and classes are, without a list around them.
        classes: for each image (N,), class ids.

    Returns:
        For each image a dict with ``instances`` in the frame of the output, boxes and classes as
        given and in the same order, with ``scores`` (the model's score for that class there) and
        ``odam_maps``; the one dict where one input was given.

    Raises:
        ValueError: as :func:`explain`; also when boxes and classes do not match the images, or a
            box is not finite, or a class does not exist.
    """
    given = ModelInputs.of(model, batched_inputs)
    if given.single:
        boxes, classes = [boxes], [classes]
    with preserved(given.model) as model_view:
        explanation = _explanation(model_view, targets, settings, given.class_names)
        adapter = explanation.adapter
        sizes = [_sizes(x) for x in given.batch]
        dtype = full_precision_dtype(adapter.model)
        boxes, classes = checked_boxes(given.batch, boxes, classes, adapter.num_classes, dtype)
        device = next(given.model.parameters()).device
        inputs = [Boxes((b * _scale(b, i, o)).to(device)) for b, (i, o) in zip(boxes, sizes)]  # noqa: B905
        classes = [label.to(device) for label in classes]
        found = explanation.explain_boxes(given.batch, inputs, classes)
    outputs = []
    of_images = zip(boxes, classes, found, sizes, strict=True)
    for box, label, (scores, maps), (_, output_size) in of_images:
        fields = {"pred_boxes": Boxes(box.to(device)), "pred_classes": label}
        instances = Instances(output_size, **fields, scores=scores, odam_maps=maps)
        outputs.append({"instances": instances})
    return outputs[0] if given.single else outputs


def explain_outputs(
    model: ModelLike,
    batched_inputs: list[dict],
    outputs: Callable[[list[dict]], Sequence[Tensor]],
    layer: str | None = None,
    targets: Sequence[str] = ("output",),
    **settings: Any,
) -> list[OdamMaps]:
    """
    Explain what a function computes: the general way, for heads of which nothing is known.

    The function runs once, with gradients on, from the output of ``layer``; then there is one
    backward pass for each of its values. How instances are chosen is up to it.

    Args:
        model: the network that the function runs, given back as it was; wrapped or not.
        batched_inputs: Detectron2's input format.
        outputs: gets ``batched_inputs`` and returns for each image (n, T) or (n,): T scalars of
            each of n instances, computed by ``model`` in one pass.
        layer: the layer of ``model`` on whose output maps are made, by its path or the end of it,
            such as ``"backbone.res5"``. Its output is a feature map: (I, C, h, w), (I, h, w, C), or
            (I, h w, C). Left out for the method ``"input_gradient"``, whose maps are of the images.
        targets: names of the T scalars.
        **settings: ``method`` (all but ``"d_rise"``), ``smoothing_sigma``, ``signed`` and
            ``chunk_mb`` of :class:`ExplainSettings`.

    Returns:
        The maps of each image's instances, on the whole layer.

    Raises:
        ValueError: the layer does not exist (the message lists those that do), its output is no
            feature map, an instance does not depend on it, ``outputs`` does not return what it
            should, or a setting cannot apply.
    """
    model = unwrapped(model)
    batched_inputs = checked_inputs(model, batched_inputs)
    targets = checked_targets(targets)
    _check_names(targets)
    of_outputs = _settings_of_outputs(layer, settings)
    with held_in_evaluation(model):
        method = of_outputs.build_method()
        if not isinstance(method, GradientMethod):
            raise InputError(
                f"explain_outputs makes maps of gradients, and {type(method).__name__} is no such "
                "method: use explain"
            )
        limits = (of_outputs.smoothing_sigma, of_outputs.max_bytes)
        layer, signed = None if method.layer is None else layer or "", method.signed
        found = output_maps(
            model, batched_inputs, outputs, layer, targets, method.rule, *limits, signed=signed
        )
        maps = OdamMaps(targets, found.values, signed=signed, **found.fields)
        return maps.split(found.counts)


def _check_names(targets: tuple[str, ...]) -> None:
    if not targets or not all(targets):
        raise InputError(f"targets are {targets}; they must be names, one for each value")
    if len(set(targets)) < len(targets):
        raise InputError(f"targets are {', '.join(targets)}; each value needs a name of its own")
    if "combined" in targets:
        raise InputError(
            "the target 'combined' is made of others; explain_outputs explains what outputs "
            "returns: give each of its values a name, and combine maps by odam_d2.core.heatmap"
        )


def _settings_of_outputs(layer: str | None, settings: dict) -> ExplainSettings:
    """The settings that apply to a function; others are refused."""
    wrong = sorted(set(settings) - set(_OF_OUTPUTS))
    if wrong:
        raise InputError(
            f"explain_outputs has no setting {', '.join(map(repr, wrong))}: what is explained is "
            f"up to outputs; there are {', '.join(_OF_OUTPUTS)}"
        )
    if settings.get("method") == "d_rise":
        raise InputError(
            "explain_outputs cannot make the maps of 'd_rise', which looks for detections in "
            "masked images, and outputs returns numbers: register an OutputsExplainer "
            "(docs/your_own_head.md), and use explain"
        )
    if settings.get("method") == "input_gradient" and layer:
        raise InputError(
            f"the method 'input_gradient' makes maps of the image itself; leave layer out, not "
            f"{layer!r}"
        )
    return ExplainSettings(**settings)


def _explanation(
    model: nn.Module,
    targets: Sequence[str],
    settings: dict,
    class_names: tuple[str, ...] | None,
) -> Explanation:
    configured = getattr(model, "odam", None) or ExplainSettings(class_names=class_names)
    given = settings | {"targets": checked_targets(targets), "named_by_keys": False}
    return Explanation.of(model, dataclasses.replace(configured, **_instead(settings) | given))


def _instead(settings: dict) -> dict:
    """What arguments replace of a model's own settings, beside those of the same name."""
    chosen = [name for name in ("method", "layer") if name in settings]
    if settings.get("preset") and chosen:
        raise InputError(
            f"preset is {settings['preset']!r}, which chooses method and layer by itself; leave "
            f"{' and '.join(chosen)} out"
        )
    if settings.get("preset"):
        return {"method": "odam", "layer": "", "smoothing_sigma": 0.0}
    return {"preset": ""} if chosen else {}


def _sizes(x: dict) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) of one image at the network's input and at its output."""
    size = tuple(x["image"].shape[-2:])
    return size, (x.get("height", size[0]), x.get("width", size[1]))


def _scale(boxes: Tensor, size: tuple[int, int], output_size: tuple[int, int]) -> Tensor:
    """Factors (4,) that take boxes from the output's frame to the network's."""
    y, x = size[0] / output_size[0], size[1] / output_size[1]
    return torch.tensor([x, y, x, y], dtype=boxes.dtype, device=boxes.device)
