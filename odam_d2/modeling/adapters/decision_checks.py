"""
Whether what is said of detections when they are explained is what was said when they were detected,
up to rounding. Each check raises an ``UnsupportedModelError`` that begins with ``name``, see
:mod:`.checks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from odam_d2.modeling.conditions import require
from odam_d2.modeling.errors import unexplained
from odam_d2.modeling.precision import product_dtype

__all__ = [
    "BACKBONE_TOLERANCE",
    "check_decisions",
    "check_outputs",
    "rounding",
]

# A decision is computed again on other rows, in another order of summation. In float32 and float64
# the digits kept are more than enough for that: sums of 10^4 products whose terms cancel, and
# logits up to 80, lose 2^10 units of the last place. Half precision and TF32 round what each layer
# returns, and sum up in float32, so that only their own last places are lost.
_TOLERANCE, _LOW_TOLERANCE = 2**10, 2**4
_TF32 = 2.0**-11

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
    x, y = before.pred_boxes.tensor.unflatten(1, (2, 2)).unbind(dim=2)
    boxes = torch.stack([x * (width / columns), y * (height / rows)], dim=2).flatten(1)
    # Not every model has clipped them.
    both = torch.cat([boxes, found.pred_boxes.tensor])
    boxes, returned = _clipped(both, found.image_size).split([len(before), len(found)])
    moved = (returned[:, None] - boxes).abs().amax(dim=2)
    eps = torch.finfo(moved.dtype).eps
    same = moved <= _RESIZED_TOLERANCE * eps * max(height, width, rows, columns)
    same &= found.scores[:, None] == before.scores
    same &= found.pred_classes[:, None] == before.pred_classes
    return same.any(dim=1).all()


def _clipped(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """As ``Boxes.clip``, which makes the host wait, of boxes (..., 4); to (height, width)."""
    x, y = boxes.unflatten(-1, (2, 2)).unbind(dim=-1)
    return torch.stack([x.clamp(0, size[1]), y.clamp(0, size[0])], dim=-1).flatten(-2)
