"""
What must hold of a model so that its maps are those of its own decisions. What does not is refused.

Three things are compared: what a head read with what is explained (here, exactly), what it said of
each detection with what is said when it is explained (``decision_checks.py``), and whether a
decision depends on anything else (``gradient_checks.py``). Each ``check`` raises an
``UnsupportedModelError`` that begins with ``name``, that of the model and its own parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from odam_d2.core.gradients import precise
from odam_d2.modeling.conditions import require
from odam_d2.modeling.errors import unexplained
from odam_d2.modeling.views import Call

__all__ = [
    "check_backbone",
    "check_head",
    "check_images",
    "check_pooled",
]

# What is pooled again is the same arithmetic.
_POOLED_TOLERANCE = 2


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


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether they are the same values, perhaps of two dtypes."""
    return a is b or (a.shape == b.shape and a.device == b.device and bool((a == b).all()))
