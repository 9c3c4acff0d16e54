"""Scores near 1, small ones, autocast and dtypes: maps in float32 near those of float64."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random

import torch

from odam_d2 import explain, explain_boxes

from .case import RIGHT, Case, expect
from .material import picture, shipped

__all__ = ["cases"]

_LAST = {
    "faster_rcnn": lambda m: [m.roi_heads.box_predictor.cls_score],
    "retinanet": lambda m: [m.head.cls_score],
    "fcos": lambda m: [m.head.cls_score, m.head.ctrness],
}
_MORE = {"fcos": {"norm_statistics": "constant"}}
_AS_FLOAT64 = 1e-3  # of the map's peak


def _found(model, given: dict):
    with torch.no_grad():
        found = model([given])[0]["instances"]
    return found[found.scores > 0.3]


def _scaled(kind: str, factor: float, targets: list[str], double: bool):
    """The last layer's weights times a factor: the same picture, a surer detector."""
    model = shipped(kind, own=True)
    with torch.no_grad():
        for layer in _LAST[kind](model):
            layer.weight *= factor
            layer.bias *= factor
    return model.double() if double else model


def _maps(model, kind: str, given: dict, boxes, classes, targets: list[str], dtype, **settings):
    given = given | {"image": given["image"].to(dtype)}
    found = explain_boxes(
        model, [given], [boxes.to(dtype)], [classes], targets, **_MORE.get(kind, {}), **settings
    )
    return found[0]["instances"]


def _confident(kind: str, factor: float, number: int, targets: list[str], folder: Path) -> str:
    """Against float64, relative to each map's peak, for logits up to 80 in size."""
    given, plain = picture(number), shipped(kind)
    found = _found(plain, given)
    expect(len(found) > 0, "nothing is found")
    boxes, classes = found.pred_boxes.tensor, found.pred_classes
    one, two = (
        _maps(_scaled(kind, factor, targets, double), kind, given, boxes, classes, targets, dtype)
        for double, dtype in ((False, torch.float32), (True, torch.float64))
    )
    a, b = (x.odam_maps.dense(72, 72).double().flatten(2) for x in (one, two))
    peak = b.amax(2).clamp(min=1e-300)
    error = ((a - b).abs().amax(2) / peak).amax(1)
    least = (1 - two.scores.double()).tolist()
    worst = int(error.argmax())
    # Beyond float64's own resolution of 1 - p no map can be compared, and it has to be flagged.
    sure = torch.tensor([x > 1e-15 for x in least])
    if sure.any():
        worst = int((error * sure).argmax())
        expect(float(error[worst]) < _AS_FLOAT64 * 3,
               f"1 - score {least[worst]:.0e}: error {float(error[worst]):.2g}")  # fmt: skip
    saturated = one.odam_maps.values.flatten(1).amax(1) == 0
    flagged = getattr(one.odam_maps, "saturated", None)
    if saturated.any():
        expect(flagged is not None, "a map is zero, and nothing says that the score is saturated")
    return RIGHT


def _autocast(kind: str, dtype: torch.dtype, how: str, number: int, folder: Path) -> str:
    model, given = shipped(kind), picture(number)
    found = _found(model, given)
    boxes, classes, targets = (
        found.pred_boxes.tensor,
        found.pred_classes,
        ["class", "left", "bottom"],
    )
    truth = _maps(model, kind, given, boxes, classes, targets, torch.float32).odam_maps
    with torch.autocast("cpu", dtype=dtype):
        if how == "explain":
            maps = explain(model, [given], targets, **_MORE.get(kind, {}))[0]["instances"].odam_maps
        else:
            maps = _maps(model, kind, given, boxes, classes, targets, torch.float32).odam_maps
    expect(maps.values.dtype == torch.float32, f"maps of {maps.values.dtype}")
    expect(maps.values.isfinite().all(), "maps are not finite")
    if how == "boxes":
        a, b = (x.dense(72, 72).flatten(2) for x in (maps, truth))
        same = torch.nn.functional.cosine_similarity(a, b, dim=2).min()
        expect(same > 0.9, f"cosine {float(same):.2f} with the maps without autocast")
    return RIGHT


def _dtype(kind: str, dtype: torch.dtype, default: torch.dtype, folder: Path) -> str:
    """A model of a dtype, under a default dtype: near float32's maps; float64 may stay."""
    given = picture(1)
    found = _found(shipped(kind), given)
    boxes, classes, targets = found.pred_boxes.tensor, found.pred_classes, ["class", "top"]
    truth = _maps(shipped(kind), kind, given, boxes, classes, targets, torch.float32).odam_maps
    model = shipped(kind, own=True).to(dtype)
    torch.set_default_dtype(default)
    try:
        with torch.no_grad():
            try:  # whether Detectron2 itself works with it
                model([given | {"image": given["image"].to(dtype)}])
                detects = True
            except RuntimeError:
                detects = False
        own = detects and explain(
            model, [given | {"image": given["image"].to(dtype)}], targets, **_MORE.get(kind, {})
        )
        maps = _maps(model, kind, given, boxes, classes, targets, dtype).odam_maps
    finally:
        torch.set_default_dtype(torch.float32)
    expect(not detects or own[0]["instances"].has("odam_maps"), "no maps")
    expect(maps.values.dtype in (torch.float32, dtype if dtype == torch.float64 else torch.float32),
           f"maps of {maps.values.dtype}")  # fmt: skip
    a, b = (x.dense(72, 72).float().flatten(2) for x in (maps, truth))
    same = torch.nn.functional.cosine_similarity(a, b, dim=2).min()
    expect(
        same > (0.9 if dtype in (torch.bfloat16, torch.float16) else 0.999),
        f"cosine {float(same):.3f}",
    )
    return RIGHT


def cases(rng: Random) -> Iterator[Case]:
    for kind in _LAST:
        for factor in (1, 2, 3, 4, 6, 8):
            for targets in (["class"], ["left", "bottom"]):
                if targets != ["class"] and factor not in (3, 8):
                    continue
                fault = "1.2 scores near 1" if factor >= 3 and targets == ["class"] else ""
                yield Case(f"{kind}-times-{factor}-{targets[0]}",
                           partial(_confident, kind, factor, rng.choice([1, 2, 3]), targets),
                           fault)  # fmt: skip
        for dtype in (torch.bfloat16, torch.float16):
            for how in ("explain", "boxes"):
                name = str(dtype).split(".")[1]
                yield Case(f"{kind}-autocast-{name}-{how}",
                           partial(_autocast, kind, dtype, how, 1), "1.3 autocast")  # fmt: skip
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            for default in (torch.float32, torch.float64):
                name = f"{kind}-{str(dtype).split('.')[1]}-default-{str(default).split('.')[1]}"
                fault = "1.3 a float64 default dtype" if default == torch.float64 else ""
                yield Case(name, partial(_dtype, kind, dtype, default), fault)
