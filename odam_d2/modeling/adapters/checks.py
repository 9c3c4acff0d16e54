"""
What must hold of a model so that its maps are those of its own decisions. What does not is refused.

Three things are compared: what a head read with what is explained (exactly), what it said of each
detection with what is said when it is explained (up to rounding), and whether a decision depends on
anything else (exactly, by its gradient). Each ``check`` raises an ``UnsupportedModelError`` that
begins with ``name``, that of the model and its own parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce
from itertools import chain

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from odam_d2.core.gradients import precise
from odam_d2.modeling.conditions import require
from odam_d2.modeling.errors import UnsupportedModelError, unexplained
from odam_d2.modeling.precision import product_dtype
from odam_d2.modeling.views import Call

__all__ = [
    "check_apart",
    "check_backbone",
    "check_decisions",
    "check_head",
    "check_images",
    "check_levels",
    "check_not_read",
    "check_outputs",
    "check_pooled",
    "depend_on",
    "no_gradients",
    "rounding",
]

# A decision is computed again on other rows, in another order of summation. In float32 and float64
# the digits kept are more than enough for that: sums of 10^4 products whose terms cancel, and
# logits up to 80, lose 2^10 units of the last place. Half precision and TF32 round what each layer
# returns, and sum up in float32, so that only their own last places are lost.
_TOLERANCE, _LOW_TOLERANCE = 2**10, 2**4
_TF32 = 2.0**-11

# What is pooled again is the same arithmetic.
_POOLED_TOLERANCE = 2

# Boxes are scaled once more to the size of the output.
_RESIZED_TOLERANCE = 2**6

# Through the backbone once more, with a graph, which lets frozen batch norms round otherwise.
BACKBONE_TOLERANCE = 2**4


def rounding(*values: Tensor) -> float:
    """The relative change of a decision that is computed twice, in the coarsest of these dtypes."""
    device = values[0].device
    dtypes = [x.dtype for x in values]
    lowered = product_dtype(device)
    if lowered != torch.float32:  # by autocast
        dtypes.append(lowered)
    dtype = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
    eps = torch.finfo(dtype).eps
    if dtype == torch.float32 and device.type == "cuda" and _tf32():
        return _LOW_TOLERANCE * _TF32
    return (_TOLERANCE if dtype in (torch.float32, torch.float64) else _LOW_TOLERANCE) * eps


def _tf32() -> bool:
    """Whether CUDA may round float32 to TF32; also where torch does not tell."""
    try:
        return torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32
    except RuntimeError:  # it was set by a newer interface than this one
        return True


def check_decisions(
    name: str, by: str, instances: Instances, scores: Tensor, boxes: Tensor, tolerance: float
) -> None:
    """
    Refuse to explain when running the head again does not give the detections' scores and boxes:
    the maps would be of something else.

    Args:
        by: what explains it.
        instances: N detections of an image.
        scores: (N,), of their classes.
        boxes: (N, 4), XYXY in pixels of the network's input, clipped or not.
        tolerance: relative, see :func:`rounding`.
    """
    if not len(instances):
        return
    pair = [x.tensor.double() for x in (Boxes(boxes), instances.pred_boxes)]
    both = torch.stack(pair, dim=1)
    # Digits are lost relative to the values before clipping, which not every detector has done.
    size = both.abs().amax(dim=(1, 2))
    again, found = _clipped(both, instances.image_size).unbind(dim=1)
    moved = (again - found).abs().amax(dim=1)
    expected = instances.scores.double()
    changed = (scores - expected).abs()
    allowed = tolerance * expected.abs() + torch.finfo(instances.scores.dtype).tiny
    require(
        ((moved <= tolerance * size) & (changed <= allowed)).all(),
        lambda: unexplained(
            f"{name}: its detections do not come from the head that {by} explains (scores differ "
            f"by {changed.max():.3g}, boxes by {moved.max():.3g} pixels): its own code changes "
            "them, so no map is given"
        ),
    )


def _clipped(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """As ``Boxes.clip``, which makes the host wait, of boxes (..., 4); to (height, width)."""
    x, y = boxes.unflatten(-1, (2, 2)).unbind(dim=-1)
    return torch.stack([x.clamp(0, size[1]), y.clamp(0, size[0])], dim=-1).flatten(-2)


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether they are the same values, perhaps of two dtypes."""
    return a is b or (a.shape == b.shape and a.device == b.device and bool((a == b).all()))


def check_backbone(name: str, calls: Sequence[Call], features: dict[str, Tensor]) -> None:
    """
    Refuse to explain when what the heads were given, by the backbone's names, is not what the
    backbone returned in the last one of its calls.
    """
    output = calls[-1].output if calls else None
    if not (
        isinstance(output, dict)
        and output.keys() >= features.keys()
        and calls[-1].unchanged(output)
        and all(_equal(output[key], value) for key, value in features.items())
    ):
        raise unexplained(
            f"{name}: features are changed between its backbone and its head, so that maps of what "
            "the head reads would not be maps of the backbone's features"
        )


def check_images(name: str, call: Call, images: Tensor) -> None:
    """
    Refuse to run a backbone once more when this call of it read something else than the images
    (I, 3, H, W), or more.
    """
    (read, *more), named = call.args, call.kwargs
    if more or named or not (call.unchanged(read) and _equal(read, images)):
        raise unexplained(
            f"{name}: its backbone does not read the preprocessed images alone, so there are no "
            "maps on its layers or on the image"
        )


def check_pooled(name: str, kept: Tensor, again: Tensor) -> None:
    """
    Refuse to explain when what a box head read and kept, (N, C, R, S), is not what is pooled again
    from the backbone's features at the known boxes.
    """
    error = partial(
        unexplained,
        f"{name}: its box head does not read what is pooled from the backbone's features at the "
        "proposals: its own code changes features, boxes or what was pooled in between, so no map "
        "is given",
    )
    if kept.shape != again.shape:
        raise error()
    size = precise(kept).abs().flatten(1).amax(dim=1)
    off = (precise(kept) - precise(again)).abs_().flatten(1).amax(dim=1)
    require((off <= _POOLED_TOLERANCE * torch.finfo(kept.dtype).eps * size).all(), error)


def no_gradients(name: str) -> UnsupportedModelError:
    """The error for a model, given its name, whose box head does not know what it came from."""
    return unexplained(
        f"{name}: its box head computes without gradients (no_grad or detach), so it has no "
        "heat maps"
    )


@torch.enable_grad()
def check_apart(name: str, predict: Callable[[Tensor], tuple[Tensor, ...]], pooled: Tensor) -> None:
    """
    Refuse to explain when what is said of one proposal, by ``predict`` of a ``Stage``, depends on
    another one; there are N > 0 of (N, C, R, S).
    """
    one = pooled[:1]
    other = pooled[1:2] if len(pooled) > 1 else one.flip(-1)
    pair = torch.cat([one, other]).detach().requires_grad_()
    predictions = predict(pair.clone())[:2]
    value = reduce(torch.add, [_weighted_sum(p[0]) for p in predictions])
    gradient = None
    if value.requires_grad:
        (gradient,) = torch.autograd.grad(value, pair, allow_unused=True)
    if gradient is None:
        raise no_gradients(name)
    check_not_read(name, gradient[1])


def check_not_read(name: str, gradient: Tensor) -> None:
    """
    Refuse to explain when what is said of one proposal depends on another one.

    Args:
        name: of the model and its own parts.
        gradient: of what is said of some, with respect to what was pooled for another.
    """
    require(
        _is_zero(gradient),
        lambda: unexplained(
            f"{name}: what it says of one proposal depends on the other ones, so its heat map is "
            "not one of what was pooled for it alone"
        ),
    )


def _weighted_sum(values: Tensor) -> Tensor:
    """By different weights, lest what classes or sides owe to an input cancels."""
    count, dtype = values.numel(), values.dtype
    weights = torch.linspace(1, 2, count, dtype=dtype, device=values.device)
    return (values * weights.view(values.shape)).sum()


def _is_zero(gradient: Tensor) -> Tensor:
    return ~gradient.nan_to_num(0, 0, 0).any()


def check_head(
    name: str,
    calls: Sequence[Call],
    features: Sequence[Tensor],
    predictions: object,
    sizes: Sequence[int],
) -> list[list[Tensor]]:
    """
    Refuse to explain when a dense head was given other features than what is explained, or what is
    decoded is not what it returned.

    Args:
        calls: of the head; the last one counts.
        features: of each level, (I, C, H, W).
        predictions: what is decoded.
        sizes: outputs for each anchor of each predictor.

    Returns:
        The predictions of these predictors: for each, and each level, (I, A * size, H, W).
    """
    call = calls[-1] if calls else Call((), {})
    given = list(call.args[0]) if len(call.args) == 1 and not call.kwargs else []
    same = len(given) == len(features) and all(map(_equal, given, features))
    if not (same and call.unchanged(given)):
        raise unexplained(
            f"{name}: its head does not read the features of the backbone that it is said to read, "
            "and nothing else"
        )
    chosen, returned = (_maps(x, features, sizes) for x in (predictions, call.output))
    if not chosen or not returned:
        raise unexplained(
            f"{name}: what its head returns is not {len(sizes)} lists with a map for each "
            f"level, of {', '.join(map(str, sizes))} channels for each anchor"
        )
    if not (all(map(_equal, chain(*returned), chain(*chosen))) and call.unchanged(returned)):
        raise unexplained(
            f"{name}: what its head returned is changed before it is decoded, so that maps of the "
            "head would not be maps of its detections"
        )
    return chosen


def _maps(
    predictions: object, features: Sequence[Tensor], sizes: Sequence[int]
) -> list[list[Tensor]]:
    """Of each predictor, for each level, (I, A * size, H, W); empty where they are not so."""
    kinds = (list, tuple)
    chosen = predictions[: len(sizes)] if isinstance(predictions, kinds) else []
    found = [list(levels) if isinstance(levels, kinds) else [] for levels in chosen]
    if [len(levels) for levels in found] != [len(features)] * len(sizes):
        return []
    for levels, size in zip(found, sizes, strict=True):
        for x, f in zip(levels, features, strict=True):
            if not isinstance(x, Tensor) or x.dim() != 4 or x.shape[1] % size:
                return []
            if (len(x), *x.shape[2:]) != (len(f), *f.shape[2:]):
                return []
    return found


def check_levels(name: str, values: Tensor, others: Sequence[Tensor]) -> None:
    """
    Refuse to explain when values, of any shape and with a graph, that were read from some levels
    depend on others, leaves of the graph.
    """
    require(
        ~depend_on(values, others),
        lambda: unexplained(
            f"{name}: its head mixes the levels of the backbone's features, so that one detection "
            "has maps on several of them"
        ),
    )


def depend_on(values: Tensor, leaves: Sequence[Tensor]) -> Tensor:
    """Whether values, of any shape and with a graph, depend on some leaves of it: a bool."""
    gradients: Sequence[Tensor | None] = ()
    if leaves:
        gradients = torch.autograd.grad(
            _weighted_sum(values), leaves, retain_graph=True, allow_unused=True
        )
    nothing = [_is_zero(gradient) for gradient in gradients if gradient is not None]
    return ~torch.stack(nothing).all() if nothing else values.new_zeros((), dtype=torch.bool)


def check_outputs(name: str, outputs: Sequence[dict], said: Sequence[Instances]) -> None:
    """
    Refuse to explain when a model changes detections after its head, beside resizing them and
    leaving some out. For each image: what it returns, and the detections as they left the head.
    """
    error = partial(
        unexplained, f"{name}: what it returns is not what leaves its head, so no map is given"
    )
    instances = [output.get("instances") for output in outputs]
    if len(instances) != len(said) or None in instances:
        raise error()
    for found, before in zip(instances, said, strict=True):
        require(_subset(found, before), error)


def _subset(found: Instances, before: Instances) -> Tensor:
    """Whether each detection is one of those before, in another frame."""
    (height, width), (rows, columns) = found.image_size, before.image_size
    boxes = before.pred_boxes.clone()
    boxes.scale(width / columns, height / rows)
    # Not every model has clipped them.
    both = torch.cat([boxes.tensor, found.pred_boxes.tensor])
    boxes, returned = _clipped(both, found.image_size).split([len(before), len(found)])
    moved = (returned[:, None] - boxes).abs().amax(dim=2)
    eps = torch.finfo(moved.dtype).eps
    same = moved <= _RESIZED_TOLERANCE * eps * max(height, width, rows, columns)
    same &= found.scores[:, None] == before.scores
    same &= found.pred_classes[:, None] == before.pred_classes
    return same.any(dim=1).all()
