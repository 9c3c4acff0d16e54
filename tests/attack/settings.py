"""Settings that are accepted act: with them, something that they are about is another."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from .annotations import figures, run
from .case import RIGHT, Case, expect
from .material import NAMES, SMALL, coco, config_file, crop, register
from .tools import refusal, tool, whole

__all__ = ["cases"]

_D_RISE = ["MODEL.ODAM.METHOD", "d_rise", "MODEL.ODAM.D_RISE.NUM_MASKS", "6",
           "MODEL.ODAM.D_RISE.SETTLED", "1.0", "MODEL.ODAM.TARGETS", "['class']"]  # fmt: skip
_SOFT = ["MODEL.ODAM.NMS.NAME", "soft_nms"]
_ODAM = ["MODEL.ODAM.NMS.NAME", "odam_nms"]
# Changes to a demo, and what they are changes of.
_DEMO: list[tuple[str, list[str], list[str]]] = [
    *[("faster_rcnn", base, ["MODEL.ODAM." + key, value]) for base, key, value in (
        ([], "SCORE", "logit"), ([], "SMOOTHING_SIGMA", "2.0"), ([], "LAYER", "res4"),
        ([], "METHOD", "grad_cam"), ([], "METHOD", "grad_cam_pp"), ([], "METHOD", "input_gradient"),
        ([], "TARGETS", "['left']"), ([], "NMS.NAME", "soft_nms"),
        ([], "SIGNED", "True"), ([], "PRESET", "gradient"), (_D_RISE, "SIGNED", "True"),
        (["MODEL.ODAM.LAYER", "res4"], "SIGNED", "True"),
        (["MODEL.ODAM.LAYER", "res4"], "SMOOTHING_SIGMA", "2.0"),
        (["MODEL.ODAM.LAYER", "res4"], "SCORE", "logit"),
        (["MODEL.ODAM.METHOD", "grad_cam"], "SMOOTHING_SIGMA", "2.0"),
        (["MODEL.ODAM.METHOD", "grad_cam"], "SCORE", "logit"),
        (["MODEL.ODAM.METHOD", "input_gradient"], "SCORE", "logit"),
        (["MODEL.ODAM.METHOD", "input_gradient"], "SMOOTHING_SIGMA", "2.0"),
        (["MODEL.ODAM.METHOD", "input_gradient"], "LAYER", "res4"),
        (_D_RISE, "D_RISE.GRID", "4"), (_D_RISE, "D_RISE.KEEP_PROB", "0.9"),
        (_D_RISE, "D_RISE.SEED", "3"),
        (_D_RISE, "D_RISE.NUM_MASKS", "4"), (_D_RISE, "SMOOTHING_SIGMA", "2.0"),
        (_D_RISE, "SCORE", "logit"),
        (_D_RISE, "LAYER", "res4"), ([], "NORM_STATISTICS", "exact"), ([], "NMS.RECORD", "True"),
    )],
    *[("fcos", base, ["MODEL.ODAM." + key, value]) for base, key, value in (
        ([], "NORM_STATISTICS", "exact"), ([], "SCORE", "logit"), ([], "SMOOTHING_SIGMA", "1.0"),
    )],
    ("retinanet", [], ["MODEL.ODAM.SCORE", "logit"]),
    ("retinanet", [], ["MODEL.ODAM.NORM_STATISTICS", "exact"]),
    ("fcos", [], ["MODEL.FCOS.TOPK_CANDIDATES_TEST", "1"]),
    ("faster_rcnn", [], ["INPUT.MIN_SIZE_TEST", "100"]),
    ("faster_rcnn", [], ["INPUT.FORMAT", "RGB"]),
    ("faster_rcnn", [], ["TEST.AUG.ENABLED", "True"]),
]  # fmt: skip
_HARMLESS = {"MODEL.ODAM.NMS.RECORD"}
"""Acts on what a program is given, not on these files."""

_NOT_THERE = {("faster_rcnn", "NORM_STATISTICS"), ("retinanet", "NORM_STATISTICS")}
"""About a part that this model has not; documented so."""


def _demo(kind: str, opts: list[str], name: str, folder: Path) -> tuple:
    size = ["INPUT.MIN_SIZE_TEST", "144", "MODEL.DEVICE", "cpu", "MODEL.ODAM.TARGETS", "['class']"]
    ran = tool("demo", "--config-file", config_file(kind), "--input", "0.png", "--output", name,
               "--max-detections", "3", "--confidence-threshold", "0.1", "--opts", *size, *opts,
               cwd=folder)  # fmt: skip
    if ran.status:
        return ran, None
    whole(folder / name)
    (listing,) = (folder / name).glob("*/maps.json")
    with np.load(listing.with_name("maps.npz")) as arrays:
        return ran, (
            json.loads(listing.read_text())["maps"],
            {k: arrays[k].tolist() for k in arrays.files},
        )


def _acts(kind: str, base: list[str], change: list[str], folder: Path) -> str:
    """The demo's maps are others with a setting, or it is refused."""
    Image.fromarray(crop(1)).save(folder / "0.png")
    ran, plain = _demo(kind, base, "plain", folder)
    expect(ran.status == 0, f"without the setting: {ran.err[-300:]}")
    ran, changed = _demo(kind, [*base, *change], "changed", folder)
    if ran.status:
        return refusal(ran)
    harmless = change[0] in _HARMLESS or (kind, change[0].split(".")[-1]) in _NOT_THERE
    expect(harmless or plain != changed, "it is accepted and has no effect")
    return RIGHT


def _augmented(kind: str, name: str, folder: Path) -> str:
    """TEST.AUG.ENABLED, as Detectron2's own train_net.py does it; or a sentence."""
    path = coco(folder / "data", 1)
    data = ["DATASETS.TEST", f"('{NAMES[0]}',)", "OUTPUT_DIR", "out", "TEST.AUG.ENABLED", "True",
            "TEST.AUG.MIN_SIZES", "(160, 240)", "TEST.AUG.MAX_SIZE", "400"]  # fmt: skip
    head = {"train_net": ["--eval-only"], "analyze_errors": ["--output", "out"],
            "evaluate_explanations": ["--output", "out"]}[name]  # fmt: skip
    if name != "train_net":
        data = [x for k, x in enumerate(data) if k not in (2, 3)]
    ran = tool(name, *head, "--config-file", config_file(kind), *SMALL, *data,
               before=lambda: register(path), cwd=folder)  # fmt: skip
    if ran.status:
        return refusal(ran)
    said = "TTA" in ran.out + ran.err or any("TTA" in str(x) for x in (folder / "out").rglob("*"))
    expect(said, "it is accepted and has no effect")
    return RIGHT


def _figures_change(name: str, opts: list[str], folder: Path) -> str:
    """Figures of a tool with and without overrides."""
    path = coco(folder / "data", 2)
    found = []
    for number, more in enumerate(([], opts)):
        place = folder / str(number)
        place.mkdir()
        before = partial(_with, more, path)
        ran = run(name, place, before)
        if ran.status:
            return refusal(ran)
        found.append(figures(name, place, ran))
    expect(found[0] != found[1], "it is accepted and has no effect")
    return RIGHT


def _with(more: list[str], path: Path) -> None:
    import sys

    register(path)
    flags = [x for x in more if x.startswith("--")]
    if flags:
        sys.argv[3:3] = more
    else:
        sys.argv += more


def _loss(change: list[str], folder: Path) -> str:
    """What Odam-Train does to a training of three iterations."""
    path = coco(folder / "data", 1)
    base = ["DATASETS.TRAIN", f"('{NAMES[0]}',)", "DATASETS.TEST", "()", "SEED", "1",
        "INPUT.RANDOM_FLIP", "none",
            "INPUT.MIN_SIZE_TRAIN", "(200,)", "SOLVER.IMS_PER_BATCH", "1", "SOLVER.MAX_ITER", "3",
            "SOLVER.STEPS", "()",
            "DATALOADER.NUM_WORKERS", "0", "MODEL.DEVICE", "cpu", "MODEL.ODAM.LOSS.NAME",
            "OdamTrainLoss"]  # fmt: skip
    losses = []
    for number, more in enumerate(([], change)):
        ran = tool("train_net", "--config-file", config_file(), *base, "OUTPUT_DIR", str(number),
            *more,
                   before=lambda: register(path), cwd=folder)  # fmt: skip
        if ran.status:
            return refusal(ran)
        last = json.loads((folder / str(number) / "metrics.json").read_text().splitlines()[-1])
        losses.append({k: v for k, v in last.items() if "loss" in k})
    expect(losses[0] != losses[1], "it is accepted and has no effect")
    return RIGHT


def cases(rng: Random) -> Iterator[Case]:
    for kind, base, change in _DEMO:
        about = f"{base[1]}-" if base else ""
        yield Case(f"{kind}-{about}{change[0]}-{change[1]}", partial(_acts, kind, base, change))
    for name in ("train_net", "evaluate_explanations", "analyze_errors"):
        for kind in ("faster_rcnn", "retinanet"):
            fault = "1.6 TEST.AUG.ENABLED" if (name, kind) == ("train_net", "faster_rcnn") else ""
            yield Case(f"aug-{name}-{kind}", partial(_augmented, kind, name), fault)
    explanation = "TEST.ODAM.EXPLANATION."
    for opts in ([explanation + "SCORE_THRESH", "0.95"], [explanation + "IOU_THRESH", "0.9"],
                 [explanation + "MASK_THRESHOLDS", "[0.2]"],
                 [explanation + "FAITHFULNESS.PER_IMAGE", "1"],
                 ["--num-images", "1"]):  # fmt: skip
        yield Case(f"evaluate-{opts[0]}", partial(_figures_change, "evaluate", opts))
    faithful = [explanation + "FAITHFULNESS.PER_IMAGE", "1"]
    for key, value in (("STEPS", "3"), ("FILL", "mean"), ("SEED", "5")):
        opts = [*faithful, explanation + f"FAITHFULNESS.{key}", value]
        yield Case(f"evaluate-FAITHFULNESS.{key}", partial(_figures_change, "evaluate", opts))
    for opts in (["--iou-thresh", "0.9"], ["--background-iou", "0.45"], ["--confidence", "0.99"]):
        yield Case(f"analyse{opts[0]}", partial(_figures_change, "analyse", opts))
    for key, value in (("WEIGHT", "3.0"), ("START_ITER", "100"), ("WARMUP_ITERS", "100"),
        ("MAX_SAMPLES", "3"),
                       ("GRID_STRIDE", "64"), ("SECOND_ORDER", "False"), ("CLAMP", "0.3"),
                       ("MIN_OVERLAP", "0.9")):  # fmt: skip
        yield Case(f"loss-{key}", partial(_loss, [f"MODEL.ODAM.LOSS.{key}", value]))
