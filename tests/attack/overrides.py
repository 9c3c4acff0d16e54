"""Every key of MODEL.ODAM, TEST.ODAM and MODEL.FCOS with values of every kind, through a tool."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
from detectron2.config import CfgNode, get_cfg
from PIL import Image

from odam_d2 import add_odam_config

from .case import Case, expect
from .material import NAMES, SMALL, coco, config_file, crop, register
from .tools import judge, tool

__all__ = ["cases"]

_VALUES = {
    "none": "None", "text": "some words", "empty": "''", "list": "[]", "strings": "['a', 'b']",
    "nested": "[[1, None]]", "object": "{'a': 1}", "nan": "float('nan')", "yaml-nan": ".nan",
    "1e308": "1e308", "inf": "1e400", "negative": "-3", "zero": "0", "tiny": "1e-320",
    "huge": "9" * 30, "int64": "9223372036854775808", "true": "True", "quote": "'\n'",
}  # fmt: skip
# A lot of work that was asked for, and is no fault.
_LONG = {
    "MODEL.ODAM.D_RISE.NUM_MASKS", "TEST.ODAM.EXPLANATION.FAITHFULNESS.STEPS",
    "MODEL.FCOS.NUM_CONVS", "MODEL.FCOS.NUM_CLASSES",
}  # fmt: skip


def _leaves(node: CfgNode, prefix: str) -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from _leaves(value, f"{prefix}.{key}")
        else:
            yield f"{prefix}.{key}"


def _demo(opts: list[str], kind: str, folder: Path) -> str:
    Image.fromarray(crop(1)).save(folder / "0.png")
    size = ["INPUT.MIN_SIZE_TEST", "144", "MODEL.DEVICE", "cpu"]
    ran = tool("demo", "--config-file", config_file(kind), "--input", "0.png", "--output", "out",
               "--max-detections", "2", "--opts", *size, *opts, cwd=folder)  # fmt: skip

    def right():
        for path in (folder / "out").rglob("maps.npz"):
            with np.load(path) as arrays:
                expect(np.isfinite(arrays["values"]).all(), "maps that are not finite")
                # Few masks, or masks that hide all, may leave nothing.
                few = len(arrays["values"]) == 0 or "d_rise" in opts
                expect(few or arrays["values"].any(), "all maps are zero")

    return judge(ran, folder / "out", right)


def _evaluate(opts: list[str], folder: Path) -> str:
    path = coco(folder / "data", 1)
    ran = tool("evaluate_explanations", "--config-file", config_file(), "--output", "out", *SMALL,
               "DATASETS.TEST", f"('{NAMES[0]}',)", *opts, before=lambda: register(path),
               cwd=folder)  # fmt: skip

    def right():
        (figures,) = (folder / "out").rglob("methods.json")
        expect("NaN" not in figures.read_text() and "Infinity" not in figures.read_text(),
               "figures that are not finite")  # fmt: skip

    return judge(ran, folder / "out", right)


def _train(opts: list[str], folder: Path) -> str:
    path, data = coco(folder / "data", 1), f"('{NAMES[0]}',)"
    tiny = ["DATASETS.TRAIN", data, "DATASETS.TEST", "()", "OUTPUT_DIR", "out", "SEED", "1",
            "INPUT.MIN_SIZE_TRAIN", "(96,)", "SOLVER.IMS_PER_BATCH", "1", "SOLVER.MAX_ITER", "2",
            "SOLVER.STEPS", "()", "SOLVER.BASE_LR", "0.001", "DATALOADER.NUM_WORKERS", "0",
            "MODEL.DEVICE", "cpu", "MODEL.ODAM.LOSS.NAME", "OdamTrainLoss"]  # fmt: skip
    ran = tool("train_net", "--config-file", config_file(), *tiny, *opts,
               before=lambda: register(path), cwd=folder)  # fmt: skip

    def right():
        last = json.loads((folder / "out" / "metrics.json").read_text().splitlines()[-1])
        losses = {k: v for k, v in last.items() if "loss" in k}
        expect(all(v == v and abs(v) < 1e30 for v in losses.values()), f"losses {losses}")

    return judge(ran, folder / "out", right)


def _tool_for(key: str):
    """What reads a key, and the settings that make it read it."""
    if key.startswith("TEST.ODAM"):
        if key == "TEST.ODAM.EVALUATORS":
            return partial(_train, ["DATASETS.TEST", f"('{NAMES[0]}',)"])
        more = ["TEST.ODAM.EXPLANATION.FAITHFULNESS.PER_IMAGE", "1"] if "FAITHFUL" in key else []
        if "CAUSAL" in key:
            more = ["TEST.ODAM.EVALUATORS", "['causal_recovery']",
                    "TEST.ODAM.CAUSAL_RECOVERY.FILLS", "['mean']"]  # fmt: skip
        return partial(_evaluate, more)
    if key.startswith("MODEL.ODAM.LOSS"):
        return partial(_train, [])
    if key.startswith("MODEL.FCOS"):
        return partial(_demo, [], "fcos")
    more = []
    if "D_RISE" in key:
        more = ["MODEL.ODAM.METHOD", "d_rise", "MODEL.ODAM.TARGETS", "['class']",
                "MODEL.ODAM.D_RISE.NUM_MASKS", "4"]  # fmt: skip
    if "NMS" in key:
        name = "soft_nms" if "SOFT" in key else "odam_nms"
        more = ["MODEL.ODAM.NMS.NAME", name, "MODEL.ODAM.TARGETS", "['class']"]
    if key.endswith("SOFT_SIGMA"):
        more += ["MODEL.ODAM.NMS.SOFT_METHOD", "gaussian"]
    return partial(_demo, more, "faster_rcnn")


def _override(key: str, value: str, folder: Path) -> str:
    run = _tool_for(key)
    return run.func([*run.args[0], key, value], *run.args[1:], folder)


def cases(rng: Random) -> Iterator[Case]:
    cfg = get_cfg()
    add_odam_config(cfg)
    keys = [*_leaves(cfg.MODEL.ODAM, "MODEL.ODAM"), *_leaves(cfg.TEST.ODAM, "TEST.ODAM"),
            *_leaves(cfg.MODEL.FCOS, "MODEL.FCOS")]  # fmt: skip
    for key in keys:
        for what, value in _VALUES.items():
            if key in _LONG and what in ("huge", "int64", "1e308"):
                continue
            if rng.random() < 0.62 or what in ("none", "nan", "1e308", "strings", "huge"):
                yield Case(f"{key}-{what}", partial(_override, key, value), seconds=40)
