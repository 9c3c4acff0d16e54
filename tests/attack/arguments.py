"""Arguments of the API of all kinds: refused in a sentence, or the result is right."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import torch
from detectron2.structures import Boxes

from odam_d2 import OdamMaps, explain, explain_boxes

from .case import RIGHT, Case, Refused, attempt, expect
from .material import picture, shipped

__all__ = ["cases"]

_NAN = float("nan")
_MORE = {"fcos": {"norm_statistics": "constant"}}
# name, what an input of the model is made into, whether it has to be refused
_INPUTS: dict[str, tuple[Callable[[dict], object], bool]] = {
    "none": (lambda x: None, True), "dict": (lambda x: x, True), "empty": (lambda x: [], False),
    "tensor": (lambda x: x["image"], True), "list-of-tensors": (lambda x: [x["image"]], True),
    "strings": (lambda x: ["a.png"], True),
    "tuple": (lambda x: (x,), False), "no-image": (lambda x: [{"height": 9, "width": 9}], True),
    "image-none": (lambda x: [x | {"image": None}], True),
    "image-numpy": (lambda x: [x | {"image": x["image"].numpy()}], True),
    "uint8": (lambda x: [x | {"image": x["image"].byte()}], False),
    "int32": (lambda x: [x | {"image": x["image"].int()}], False),
    "double": (lambda x: [x | {"image": x["image"].double()}], False),
    "bool": (lambda x: [x | {"image": x["image"] > 9}], False),
    "two-axes": (lambda x: [x | {"image": x["image"][0]}], False),
    "four-axes": (lambda x: [x | {"image": x["image"][None]}], True),
    "one-channel": (lambda x: [x | {"image": x["image"][:1]}], False),
    "four-channels": (lambda x: [x | {"image": x["image"][[0, 1, 2, 0]]}], True),
    "channels-last": (lambda x: [x | {"image": x["image"].permute(1, 2, 0)}], True),
    "no-rows": (lambda x: [x | {"image": x["image"][:, :0]}], True),
    "one-pixel": (lambda x: [x | {"image": x["image"][:, :1, :1], "height": 1, "width": 1}], False),
    "one-row": (lambda x: [x | {"image": x["image"][:, :1]}], False),
    "nan": (lambda x: [x | {"image": x["image"] * _NAN}], False),
    "one-nan": (lambda x: [x | {"image": x["image"].clone().index_fill_(1, torch.tensor([3]),
    _NAN)}], False),
    "inf": (lambda x: [x | {"image": x["image"] / 0}], False),
    "huge": (lambda x: [x | {"image": x["image"] * 1e30}], False),
    "not-contiguous": (lambda x: [x | {"image": x["image"].transpose(1, 2)}], False),
    "requires-grad": (lambda x: [x | {"image": x["image"].clone().requires_grad_()}], False),
    "no-size": (lambda x: [{"image": x["image"]}], False),
    "height-none": (lambda x: [x | {"height": None}], True),
    "height-0": (lambda x: [x | {"height": 0}], False),
    "height-negative": (lambda x: [x | {"height": -5}], True),
    "height-float": (lambda x: [x | {"height": 100.5}], False),
    "height-string": (lambda x: [x | {"height": "144"}], True),
    "height-huge": (lambda x: [x | {"height": 10**9, "width": 10**9}], False),
    "height-nan": (lambda x: [x | {"height": _NAN}], True),
    "height-numpy": (lambda x: [x | {"height": np.int64(144)}], False),
    "height-tensor": (lambda x: [x | {"height": torch.tensor(144)}], False),
    "twice": (lambda x: [x, x], False), "two-sizes": (lambda x: [x, picture(2, 96)], False),
    "generator": (lambda x: (y for y in [x]), True),
    "more-keys": (lambda x: [x | {"file_name": "a", "nothing": 3}], False),
    "flipped": (lambda x: [x | {"image": x["image"].flip(2)}], False),
}  # fmt: skip
_TARGETS: dict[str, tuple[object, bool]] = {
    "none": (None, True), "empty-string": ("", True), "unknown": (["clas"], True),
    "number": (3, True), "list-none": ([None], True),
    "list-number": ([1], True), "empty": ([], False), "tuple": (("class", "left"), False),
    "string": ("class", False), "twice": (["class", "class"], False),
    "class-99": (["class:99"], True), "class-negative": (["class:-1"], True),
    "class-name": (["class:robot"], True), "class-empty": (["class:"], True),
    "class-float": (["class:1.5"], True), "class-3": (["class:3"], False),
    "class-big": (["class:" + "9" * 40], True), "upper": (["CLASS"], True),
    "spaces": ([" class "], True), "dict": ({"class": 1}, False), "set": ({"class"}, False),
    "bytes": ([b"class"], True), "nested": ([["class"]], True),
    "numpy": (np.array(["class", "left"]), False), "combined": (["combined"], False),
    "combined-all": (["class", "left", "combined"], False),
    "all": (["class", "left", "top", "right", "bottom", "combined"], False),
    "unicode": (["class:\u0661"], False), "line": (["class\n"], True),
}  # fmt: skip
_SETTINGS: dict[str, list] = {
    "score": [None, "", "probabilty", 3, ["logit"], "logit"],
    "smoothing_sigma": [None, "2", _NAN, float("inf"), -1, 1e308, 1e9, 1e-320, [1.0], True, 2,
        np.float64(1.5), 10**30, torch.tensor(1.5)],
    "layer": [None, "nothing", 3, ["res4"], "res4", "bottom_up.res3", ".", "re", b"res4", "res4\n"],
    "norm_statistics": [None, "none", 3, "constant", ["exact"]],
    "chunk_mb": [None, "64", _NAN, float("inf"), -1, 0, 1e-12, 1e308, 10**30, [64], True],
    "class_names": [None, [], ["a"], "names", 3, ["a"] * 6, ["a", "b", "c", "d", "e", "f", "g"],
        [1, 2, 3, 4, 5, 6]],
    "nms": [None, "odam_nms", 3, lambda c: None, []], "record": [True, None, "yes", 1],
    "method": [None, "", "gradcam", 3, "grad_cam", "grad_cam_pp", "input_gradient", ["odam"]],
    "d_rise": [None, {}, 3, "d_rise"], "rise": [None, {}, 3, "rise"],
    "smooth_grad": [None, {}, 3, "smooth_grad"], "layer_cam": [None, {}, 3, "layer_cam"],
    "g_came": [None, {}, 3, "g_came"], "d_close": [None, {}, 3, "d_close"],
    "vps": [None, {}, 3, "vps"],
    "preset": [None, "gradiant", 3, ["gradient"], "gradient"],
    "unknown_setting": [1], "targest": [["class"]],
}  # fmt: skip
_BOX = [20.0, 15.0, 110.0, 120.0]
_BOXES: dict[str, tuple[object, object, bool]] = {  # boxes, classes, whether to be refused
    "none": (None, None, True), "no-list": (torch.tensor([_BOX]), torch.tensor([1]), True),
    "too-few": ([], [], True),
    "too-many": ([[_BOX]] * 2, [[1]] * 2, True), "flat": ([_BOX], [[1]], True),
    "list": ([[_BOX]], [[1]], False), "numpy": ([np.array([_BOX])], [np.array([1])], False),
    "boxes": ([Boxes(torch.tensor([_BOX]))], [torch.tensor([1])], False),
    "integers": ([torch.tensor([_BOX]).long()], [torch.tensor([1])], False),
    "double": ([torch.tensor([_BOX]).double()], [torch.tensor([1]).int()], False),
    "half": ([torch.tensor([_BOX]).half()], [torch.tensor([1])], False),
    "five": ([[[*_BOX, 1.0]]], [[1]], True), "three": ([[_BOX[:3]]], [[1]], True),
    "nan": ([[[_NAN, 1, 2, 3]]], [[1]], True), "inf": ([[[0, 0, float("inf"), 3]]], [[1]], True),
    "reversed": ([[[110.0, 15, 20, 120]]], [[1]], True),
    "empty": ([torch.zeros(0, 4)], [torch.zeros(0).long()], False),
    "empty-list": ([[]], [[]], False),
    "point": ([[[50.0, 50, 50, 50]]], [[1]], False), "line": ([[[50.0, 20, 50, 90]]], [[1]], False),
    "whole": ([[[0.0, 0, 144, 144]]], [[1]], False),
    "outside": ([[[500.0, 500, 600, 600]]], [[1]], False),
    "negative": ([[[-60.0, -60, -10, -10]]], [[1]], False),
    "beyond": ([[[-50.0, -50, 300, 300]]], [[1]], False),
    "1e6": ([[[0.0, 0, 1e6, 1e6]]], [[1]], False), "1e30": ([[[0.0, 0, 1e30, 1e30]]], [[1]], True),
    "1e308": ([torch.tensor([[0.0, 0, 1e308, 1e308]]).double()], [[1]], True),
    "tiny": ([[[50.0, 50, 50 + 1e-6, 50 + 1e-6]]], [[1]], False),
    "strings": ([[["a", "b", "c", "d"]]], [[1]], True), "box-none": ([None], [[1]], True),
    "class-none": ([[_BOX]], [None], True), "class-6": ([[_BOX]], [[6]], True),
    "class-negative": ([[_BOX]], [[-1]], True), "class-float": ([[_BOX]], [[1.0]], False),
    "class-half": ([[_BOX]], [[1.7]], True), "class-nan": ([[_BOX]], [[_NAN]], True),
    "class-string": ([[_BOX]], [["robot"]], True), "class-scalar": ([[_BOX]], [1], True),
    "class-huge": ([[_BOX]], [[2**62]], True), "classes-too-many": ([[_BOX]], [[1, 2]], True),
    "class-2d": ([[_BOX]], [[[1]]], True), "class-bool": ([[_BOX]], [torch.tensor([True])], False),
    "hundred": ([[_BOX] * 100], [[1] * 100], False), "same": ([[_BOX, _BOX]], [[1, 1]], False),
    "requires-grad": ([torch.tensor([_BOX]).requires_grad_()], [[1]], False),
}  # fmt: skip


def _check(found: list, plain: list | None, targets: int | None) -> None:
    for number, output in enumerate(found):
        instances = output["instances"]
        if plain is not None:
            true = plain[number]["instances"]
            expect(torch.equal(instances.pred_boxes.tensor, true.pred_boxes.tensor)
                   and torch.equal(instances.scores, true.scores),
                   "other detections than Detectron2's")  # fmt: skip
        if not instances.has("odam_maps"):
            expect(targets == 0, "no maps")
            continue
        maps = instances.odam_maps
        expect(len(maps) == len(instances), "another number of maps")
        expect(maps.values.isfinite().all(), "maps are not finite")
        expect((maps.values >= 0).all(), "maps are negative")
        expect(instances.scores.isfinite().all(), "scores are not finite")


def _explain(kind: str, change: Callable, must: bool, folder: Path) -> str:
    model, inputs = shipped(kind), change(picture(1))
    given = attempt(lambda: explain(model, inputs, ["class", "left"], **_MORE.get(kind, {})))
    if isinstance(given, Refused):
        return given
    expect(not must, "was to be refused")
    with torch.no_grad():
        settings = getattr(model, "odam", None)
        plain = None if settings is not None else model(list(inputs)) if inputs else []
    _check(given, plain, 2)
    return RIGHT


def _targets(kind: str, targets: object, must: bool, folder: Path) -> str:
    model, inputs = shipped(kind), [picture(1)]
    found = attempt(lambda: explain(model, inputs, targets, **_MORE.get(kind, {})))
    if isinstance(found, Refused):
        return found
    expect(not must, f"was to be refused: {found[0]['instances'].odam_maps}")
    _check(found, None, len(targets))
    if "class" in targets:  # as by itself
        alone = explain(model, inputs, ["class"], **_MORE.get(kind, {}))[0]["instances"].odam_maps
        mine = (
            found[0]["instances"].odam_maps.select("class")
            if "class:" not in str(targets)
            else alone
        )
        expect(
            torch.allclose(mine.dense(48, 48), alone.dense(48, 48), atol=1e-6),
            "another map than by itself",
        )
    return RIGHT


def _setting(kind: str, key: str, value: object, boxes: bool, folder: Path) -> str:
    settings = _MORE.get(kind, {}) | {key: value}
    model, inputs = shipped(kind), [picture(1)]
    if boxes:
        call = partial(
            explain_boxes, model, inputs, [torch.tensor([_BOX])], [torch.tensor([1])], ["class"]
        )
    else:
        call = partial(explain, model, inputs, ["class"])
    found = attempt(lambda: call(**settings))
    if isinstance(found, Refused):
        return found
    _check(found, None, 1)
    return RIGHT


def _boxes(kind: str, boxes: object, classes: object, must: bool, folder: Path) -> str:
    model, inputs = shipped(kind), [picture(1)]
    found = attempt(
        lambda: explain_boxes(
            model, inputs, boxes, classes, ["class", "top"], **_MORE.get(kind, {})
        )
    )
    if isinstance(found, Refused):
        return found
    expect(not must, "was to be refused")
    _check(found, None, 2)
    instances, given = found[0]["instances"], boxes[0]
    given = given.tensor if isinstance(given, Boxes) else torch.as_tensor(given)
    expect(
        torch.allclose(
            instances.pred_boxes.tensor.detach().float(),
            given.detach().float().reshape(-1, 4),
            atol=0.5,
        ),
        "other boxes than given",
    )
    expect(not instances.odam_maps.values.requires_grad, "maps with a graph")
    return RIGHT


def _model(make: Callable, folder: Path) -> str:
    return _must(attempt(lambda: explain(make(), [picture(1)])))


def _must(found: object) -> str:
    expect(isinstance(found, Refused), f"was to be refused, and returned {str(found)[:100]}")
    return found


def _maps() -> OdamMaps:
    return explain(shipped(), [picture(1)], ["class", "left"])[0]["instances"].odam_maps


def _structure(call: Callable[[OdamMaps], object], must: bool, folder: Path) -> str:
    maps = _maps()
    try:
        found = attempt(lambda: call(maps))
    except (IndexError, KeyError) as error:  # as of a tensor or a dict
        expect("\n" not in str(error), "not one line")
        return Refused(str(error))
    if isinstance(found, Refused):
        return found
    expect(not must, f"was to be refused, and returned {str(found)[:100]}")
    if isinstance(found, torch.Tensor):
        expect(found.isfinite().all(), "not finite")
    return RIGHT


_STRUCTURE: dict[str, tuple[Callable[[OdamMaps], object], bool]] = {
    "index-99": (lambda m: m[99], True), "index-negative": (lambda m: m[-1], False),
    "index-slice": (lambda m: m[::2], False), "index-list": (lambda m: m[[0]], False),
    "index-numpy": (lambda m: m[np.int64(0)], False),
    "index-bool": (lambda m: m[torch.ones(len(m)).bool()], False),
    "index-empty": (lambda m: m[[]], False), "index-none": (lambda m: m[None], True),
    "index-float": (lambda m: m[1.5], True), "index-true": (lambda m: m[True], True),
    "index-long-mask": (lambda m: m[torch.ones(len(m) + 1).bool()], True),
    "dense-0": (lambda m: m.dense(0, 0), True), "dense-negative": (lambda m: m.dense(-5, 5), True),

    "dense-float": (lambda m: m.dense(10.5, 9), True),
    "dense-none": (lambda m: m.dense(None, 9), True), "dense-1": (lambda m: m.dense(1, 1), False),
    "dense-thin": (lambda m: m.dense(1, 2000), False),
    "dense-numpy": (lambda m: m.dense(np.int64(20), np.int64(30)), False),
    "select-none": (lambda m: m.select(None), True),
    "select-unknown": (lambda m: m.select("nothing"), True),
    "select-empty": (lambda m: m.select([]), False),
    "select-twice": (lambda m: m.select(["left", "left"]), False),
    "select-number": (lambda m: m.select(0), True),
    "grid-0": (lambda m: m.on_grid(0), True), "grid-nan": (lambda m: m.on_grid(_NAN), True),
    "grid-negative": (lambda m: m.on_grid(-4), True),

    "grid-huge": (lambda m: m.on_grid(1e9), False),
    "similarity-unknown": (lambda m: m.similarity("top"), True),
    "similarity": (lambda m: m.similarity("left"), False),
    "similarity-0": (lambda m: m.similarity("class", 0), True),
    "cat-none": (lambda m: OdamMaps.cat([]), True),
    "cat-other": (lambda m: OdamMaps.cat([m, m.select("left")]), True),
    "cat-number": (lambda m: OdamMaps.cat([m, 3]), True),
    "cat": (lambda m: OdamMaps.cat([m, m[[]], m]), False),
    "to-double": (lambda m: m.to(torch.float64), False),

    "normalized-empty": (lambda m: m[[]].normalized(), False),
    "dense-empty": (lambda m: m[[]].dense(5, 5), False),
    "init-targets": (lambda m: m._replace(targets=("a",)), True),
    "init-values": (lambda m: m._replace(values=m.values[0]), True),
    "init-origins": (lambda m: m._replace(origins=m.origins[:1, :1]), True),
}  # fmt: skip


def cases(rng: Random) -> Iterator[Case]:
    kinds = ("faster_rcnn", "retinanet", "fcos")
    for what, (change, must) in _INPUTS.items():
        for kind in kinds[:2] if rng.random() < 0.5 else kinds[::2]:
            yield Case(f"input-{what}-{kind}", partial(_explain, kind, change, must), seconds=30)
    for what, (targets, must) in _TARGETS.items():
        for kind in rng.sample(kinds, 2):
            yield Case(f"targets-{what}-{kind}", partial(_targets, kind, targets, must), seconds=30)
    for key, values in _SETTINGS.items():
        for number, value in enumerate(values):
            kind, boxes = rng.choice(kinds), rng.random() < 0.4
            said = (
                "function"
                if callable(value)
                else f"{value}"[:30].replace("/", ":").replace("\n", " ")
            )
            yield Case(f"{key}-{number}-{said}-{kind}-{'boxes' if boxes else 'found'}",
                       partial(_setting, kind, key, value, boxes), seconds=40)  # fmt: skip
    for what, (boxes, classes, must) in _BOXES.items():
        for kind in kinds:
            yield Case(
                f"boxes-{what}-{kind}", partial(_boxes, kind, boxes, classes, must), seconds=30
            )
    for what, make in {"none": lambda: None, "string": lambda: "model",
        "linear": lambda: torch.nn.Linear(3, 3), "class": lambda: type(shipped()),
                       "sequential": lambda: torch.nn.Sequential(),
                       "backbone": lambda: shipped().backbone, "dict": dict}.items():  # fmt: skip
        yield Case(f"model-{what}", partial(_model, make))
    for what, (call, must) in _STRUCTURE.items():
        yield Case(f"maps-{what}", partial(_structure, call, must), seconds=20, memory=1500)
