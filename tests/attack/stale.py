"""The same output folder after a change: results are those of a fresh folder."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random

import torch
from PIL import Image

from .case import RIGHT, Case, expect
from .material import pixels
from .runs import CROWD, again, crowd_data, prepared, reference
from .tools import Ran, differences, refusal, tool, whole

__all__ = ["cases", "crowd_run", "prepare"]

_SETTINGS = {
    "TEST.DETECTIONS_PER_IMAGE": ["1", "2"],
    "MODEL.PIXEL_MEAN": ["[0.0, 0.0, 0.0]", "[90.0, 130.0, 110.0]"],
    "MODEL.PIXEL_STD": ["[2.0, 2.0, 2.0]"],
    "INPUT.MAX_SIZE_TEST": ["150", "220"],
    "INPUT.MIN_SIZE_TEST": ["160", "288"],
    "INPUT.FORMAT": ["RGB"],
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": ["0.05", "0.95"],
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": ["0.7", "0.95"],
    "MODEL.RPN.NMS_THRESH": ["0.3"],
    "MODEL.RPN.POST_NMS_TOPK_TEST": ["5"],
    "MODEL.RPN.PRE_NMS_TOPK_TEST": ["3"],
    "MODEL.ANCHOR_GENERATOR.OFFSET": ["0.5"],
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": ["(5.0, 5.0, 5.0, 5.0)"],
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": ["1"],
    "MODEL.FPN.FUSE_TYPE": ["avg"],
    "MODEL.ODAM.SCORE": ["logit"],
    "MODEL.ODAM.SMOOTHING_SIGMA": ["1.5"],
    "MODEL.ODAM.METHOD": ["grad_cam"],
    "MODEL.ODAM.LAYER": ["res4"],
    "MODEL.ODAM.TARGETS": ["['left']", "['class', 'top']"],
    "MODEL.ODAM.NMS.NAME": ["soft_nms", "odam_nms"],
    "TEST.ODAM.EXPLANATION.SCORE_THRESH": ["0.97"],
    "TEST.ODAM.EXPLANATION.IOU_THRESH": ["0.85"],
    "TEST.ODAM.EXPLANATION.MASK_THRESHOLDS": ["[0.5]"],
    "TEST.ODAM.EXPLANATION.FAITHFULNESS.PER_IMAGE": ["1"],
}
_OF_MAPS = "ODAM"


def prepare() -> None:
    reference("evaluate"), reference("analyse")


def _stale(name: str, folder: Path, change: Callable[[Path], list] | list) -> str:
    """Run with the reference's results there, and in a fresh folder."""
    used, fresh = folder / "used", folder / "fresh"
    for place in (used, fresh):
        place.mkdir()
    run = again(name, used)
    again(name, fresh, finished=False)
    runs = [
        run(place, opts=change(place) if callable(change) else change) for place in (used, fresh)
    ]
    if all(ran.status for ran in runs):
        return refusal(runs[0])
    expect(
        not any(ran.status for ran in runs),
        f"only one fails: {runs[0].err[-200:]} {runs[1].err[-200:]}",
    )
    found = differences(used / "out", fresh / "out")
    if name == "evaluate":  # each method has a folder of its own, which may stay
        found = [x for x in found if (fresh / "out" / x).exists()]
    expect(not found, f"other results than in a fresh folder: {', '.join(found[:3])}")
    whole(used / "out")
    return RIGHT


def _other_annotations(place: Path) -> list:
    """Same size and time, other boxes."""
    path = place / "data" / "annotations.json"
    before, text = path.stat(), path.read_text()
    content = json.loads(text)
    for annotation in content["annotations"]:
        annotation["category_id"] = annotation["category_id"] % 6 + 1
    path.write_text(json.dumps(content))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1000))
    return []


def _other_image(place: Path) -> list:
    Image.fromarray(pixels(7)).save(place / "data" / "0.png")
    return []


def _other_weights(place: Path, same_time: bool) -> list:
    """A checkpoint of one path, whose content differs in the two runs that are made with it."""
    weights = torch.load(_weights(), weights_only=True)
    weights["model"]["roi_heads.box_predictor.cls_score.bias"][0] += 1.5
    path = place.parent / "weights.pth"
    torch.save(weights, path)
    if same_time:
        os.utime(path, ns=(10**18, 10**18))
    return ["MODEL.WEIGHTS", str(path)]


def _weights() -> str:
    from detectron2.utils.file_io import PathManager

    return PathManager.get_local_path("odam://CrowdShapes/faster_rcnn_R_50_FPN_slim.pth")


def _weights_replaced(name: str, same_time: bool, folder: Path) -> str:
    """First the shipped weights at some path, then others at the same path."""
    path, used = folder / "weights.pth", folder / "first"
    used.mkdir()
    shutil.copy(_weights(), path)
    if same_time:
        os.utime(path, ns=(10**18, 10**18))
    run = again(name, used, finished=False)
    ran = run(used, opts=["MODEL.WEIGHTS", str(path)])
    expect(ran.status == 0, f"the first run failed: {ran.err[-300:]}")
    opts = _other_weights(used, same_time)
    fresh = folder / "fresh"
    fresh.mkdir()
    again(name, fresh, finished=False)
    for place in (used, fresh):
        ran = run(place, opts=opts)
        expect(ran.status == 0, f"the run with other weights failed: {ran.err[-300:]}")
    found = differences(used / "out", fresh / "out")
    expect(not found, f"other results than in a fresh folder: {', '.join(found[:3])}")
    return RIGHT


def _reused(opts: list, second: list, folder: Path) -> str:
    """The second run does not compute again what the first one did."""
    run = again("evaluate", folder, finished=False)
    for number, more in enumerate((opts, [*opts, *second])):
        seen = folder / f"passes{number}"
        ran = run(folder, opts=more, before=partial(_count_passes, seen))
        expect(ran.status == 0, f"run {number} failed: {ran.err[-300:]}")
    first, repeated = (len((folder / f"passes{n}").read_text()) for n in range(2))
    expect(first > 0 and repeated == 0, f"{first} passes of the detector, then {repeated} again")
    return RIGHT


def _count_passes(file: Path) -> None:
    from detectron2.modeling import FPN

    forward, seen = FPN.forward, file.open("w")

    def counted(self, x):
        seen.write("x"), seen.flush()
        return forward(self, x)

    FPN.forward = counted


def _crowd(first: list, second: list, folder: Path) -> str:
    """The experiment on crowds, on two pictures."""
    for place, options in (("used", first), ("used", second), ("fresh", second)):
        crowd_run(folder, place, options)
    found = differences(folder / "used", folder / "fresh")
    expect(not found, f"other results than in a fresh folder: {', '.join(found[:4])}")
    return RIGHT


def crowd_run(folder: Path, place: str, options: list = (), check: bool = True) -> Ran:
    """The experiment on crowds, on two pictures, with results in a folder ``place``."""
    if not (folder / "data").exists():
        prepared(folder, 2)
    tiny = ["SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "()", "INPUT.MIN_SIZE_TEST", "200",
            "INPUT.MIN_SIZE_TRAIN", "(96,)", "SOLVER.IMS_PER_BATCH", "1", "SOLVER.BASE_LR", "1e-9",
            "DATALOADER.NUM_WORKERS", "0", "MODEL.DEVICE", "cpu"]  # fmt: skip
    flags = options[:2] if options and options[0].startswith("--") else []
    opts = options[len(flags) :]
    data = partial(crowd_data, folder / "data" / "annotations.json")
    ran = tool("crowd_experiment", "--output", place, *CROWD, *flags, *tiny, *opts,
               before=data, cwd=folder)  # fmt: skip
    expect(not check or ran.status == 0, f"failed: {ran.err[-400:]}")
    return ran


def cases(rng: Random) -> Iterator[Case]:
    for key, values in _SETTINGS.items():
        for value in values:
            fault = "1.4 results of other settings (evaluate)"
            yield Case(f"evaluate-{key}-{value}", lambda f,
                o=(key, value): _stale("evaluate", f, list(o)),
                       fault)  # fmt: skip
        if _OF_MAPS not in key and rng.random() < 0.5:
            yield Case(f"analyse-{key}-{values[0]}",
                       lambda f, o=(key, values[0]): _stale("analyse", f, list(o)))  # fmt: skip
    for change in (_other_annotations, _other_image):
        for name in ("evaluate", "analyse"):
            yield Case(f"{name}{change.__name__}", lambda f, n=name, c=change: _stale(n, f, c),
                       f"1.4 images or labels changed ({name})")  # fmt: skip
    for name in ("evaluate", "analyse"):
        for same_time in (True, False):
            yield Case(f"{name}-other-weights-{'same' if same_time else 'later'}-time",
                       partial(_weights_replaced, name, same_time))  # fmt: skip
    yield Case("nms-is-reused", partial(_reused, ["MODEL.ODAM.NMS.NAME", "odam_nms"], []),
               "1.4 a key with <object at 0x...>")  # fmt: skip
    yield Case("workers-are-reused", partial(_reused, [], ["DATALOADER.NUM_WORKERS", "1"]))
    yield Case("output-dir-is-reused", partial(_reused, [], ["OUTPUT_DIR", "elsewhere"]))
    fault = "1.4 crowd_experiment's options"
    yield Case("crowd-tuning-images", partial(_crowd, ["--tuning-images", "1"],
        ["--tuning-images", "2"]),
               fault, seconds=200)  # fmt: skip
    yield Case(
        "crowd-min-size", partial(_crowd, [], ["INPUT.MIN_SIZE_TEST", "120"]), fault, seconds=200
    )
    yield Case(
        "crowd-topk", partial(_crowd, [], ["MODEL.RPN.POST_NMS_TOPK_TEST", "4"]), fault, seconds=200
    )
