"""Data sets with odd entries, through the tools: told at once, or figures are right."""

import copy
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from .case import RIGHT, Case, expect, put
from .material import NAMES, SMALL, coco, config_file, entries, register
from .tools import Ran, judge, tool

__all__ = ["cases"]

_ODD = {
    "none": None, "string": "7", "list": [1], "object": {"a": 1}, "true": True, "nan": float("nan"),
    "inf": float("inf"), "1e308": 1e308, "huge": 10**30, "negative": -5, "zero": 0, "empty": [],
}  # fmt: skip
TOOLS = ("analyse", "evaluate", "train", "eval-only")


def run(name: str, folder: Path, before: Callable[[], object]) -> Ran:
    data = ["DATASETS.TEST", f"('{NAMES[0]}',)", "DATASETS.TRAIN", f"('{NAMES[0]}',)"]
    base = ["--config-file", config_file()]
    if name in ("analyse", "evaluate"):
        program = {"analyse": "analyze_errors", "evaluate": "evaluate_explanations"}[name]
        more = ["--most", "1"] if name == "analyse" else []
        return tool(
            program, *base, "--output", "out", *more, *SMALL, *data, before=before, cwd=folder
        )
    tiny = ["OUTPUT_DIR", "out", "INPUT.MIN_SIZE_TRAIN", "(96,)", "SOLVER.IMS_PER_BATCH", "1",
            "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()", "SOLVER.BASE_LR", "1e-6", "SEED",
            "1"]  # fmt: skip
    head = ["--eval-only"] if name == "eval-only" else []
    return tool("train_net", *head, *base, *SMALL, *data, *tiny, before=before, cwd=folder)


def figures(name: str, folder: Path, ran: Ran) -> object:
    """What a tool found out about the data set, for comparison."""
    if name == "evaluate":
        (path,) = (folder / "out").rglob("methods.json")
        return json.loads(path.read_text())
    if name == "analyse":
        return [line for line in ran.out.splitlines() if line.startswith(("AP at", "| "))]
    return [
        line.split("copypaste:")[1]
        for line in (ran.out + ran.err).splitlines()
        if "copypaste:" in line
    ]


def _judge(
    name: str, ran: Ran, folder: Path, expected: str, plain: Callable[[], object] | None = None
) -> str:
    """
    Args:
        expected: ``"refuse"``, ``"right"``, ``"either"``, or ``"same"``: with the figures of the
            data set that ``plain`` registers.
    """

    def right():
        expect(expected != "refuse", "was to be refused, and passes")
        found = figures(name, folder, ran)
        if expected == "same":
            (folder / "plain").mkdir()
            true = figures(name, folder / "plain", run(name, folder / "plain", plain))
            expect(
                found == true,
                f"figures {str(found)[:150]}, of the plain data set {str(true)[:150]}",
            )

    found = judge(ran, folder / "out", right)
    good = expected in ("same", "right")
    expect(not good or found == RIGHT, f"a good data set is refused: {found}")
    return found


def _file(name: str, change: Callable[[dict], object], expected: str, folder: Path) -> str:
    """A COCO file with something else in it."""
    path = coco(folder / "data", 2, change)
    return _judge(name, run(name, folder, lambda: register(path)), folder, expected)


def _put(part: str, index: int, path: tuple, value: object, content: dict) -> None:
    put(content[part][index], path, value)


def _whole_value(part: str, value: object, content: dict) -> None:
    content[part] = value


def _same_ids(content: dict) -> None:
    for image in content["images"]:
        image["id"] = 1
    for annotation in content["annotations"]:
        annotation["image_id"] = 1


def _dicts(name: str, change: Callable[[list], object], expected: str, folder: Path) -> str:
    """Entries as a function of the user's own returns them."""
    plain = copy.deepcopy(entries()[:2])
    for number, entry in enumerate(plain, start=1):
        entry["image_id"] = number
    found = copy.deepcopy(plain)
    found = change(found) or found
    ran = run(name, folder, partial(_register, found))
    return _judge(name, ran, folder, expected, partial(_register, plain))


def _register(content: object) -> None:
    DatasetCatalog.register(NAMES[0], lambda: copy.deepcopy(content))
    MetadataCatalog.get(NAMES[0]).set(
        thing_classes=[f"robot {k}" for k in range(6)], evaluator_type="coco"
    )


def _each(key: str, value: object, found: list) -> None:
    for entry in found:
        if value is KeyError:
            entry.pop(key, None)
        else:
            entry[key] = value(entry) if callable(value) else value


def _annotation(key: str, value: object, found: list) -> None:
    annotation = found[0]["annotations"][0]
    if value is KeyError:
        annotation.pop(key, None)
    else:
        annotation[key] = value


def _no_objects(content: dict) -> None:
    content["annotations"] = []


def _without_names(name: str, folder: Path) -> str:
    """Metadata without names, as those of `register_coco_instances` are until it is read."""
    path = coco(folder / "data", 2)
    return _judge(name, run(name, folder, lambda: register(path, note="no names")), folder, "right")


def _nothing_found(folder: Path) -> str:
    """No detection is good enough to be evaluated, in any image, with several methods."""
    path = coco(folder / "data", 2)
    ran = tool("evaluate_explanations", "--config-file", config_file(), "--methods", "odam",
        "grad_cam",
               "--output", "out", *SMALL, "DATASETS.TEST", f"('{NAMES[0]}',)",
               "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.99999",
               before=lambda: register(path), cwd=folder)  # fmt: skip
    return judge(ran, folder / "out")


_DICTS = {  # change, what is expected, fault
    "no-image_id": (partial(_each, "image_id", KeyError), "either", "1.8 entries without image_id"),
    "no-annotations": (partial(_each, "annotations", KeyError), "either",
        "1.8 entries without annotations"),
    "numpy-ids": (partial(_each, "image_id", lambda e: np.int64(e["image_id"])), "same",
        "1.8 numpy ids"),
    "numpy32-ids": (partial(_each, "image_id", lambda e: np.int32(e["image_id"])), "same",
        "1.8 numpy ids"),
    "string-ids": (partial(_each, "image_id", lambda e: f"no {e['image_id']}"), "same", ""),
    "equal-ids": (partial(_each, "image_id", 1), "refuse", "1.8 equal image ids"),
    "equal-string-ids": (partial(_each, "image_id", "a"), "refuse", "1.8 equal image ids"),
    "no-size": (lambda found: [{k: v for k, v in e.items() if k not in ("height", "width")}
        for e in found], "either", ""),
    "no-file_name": (partial(_each, "file_name", KeyError), "refuse", ""),
    "lost-file": (partial(_each, "file_name", "/nowhere/1.png"), "refuse", ""),
    "file_name-none": (partial(_each, "file_name", None), "refuse", ""),
    "wrong-size": (partial(_each, "height", 100), "refuse", ""),
    "tuple": (tuple, "same", ""),
    "empty": (lambda found: found.clear(), "refuse", ""),
    "one-none": (lambda found: [*found, None], "refuse", ""),
    "numpy-box": (partial(_annotation, "bbox", np.array([10.0, 20, 60, 90])), "either",
        "1.8 numpy boxes"),
    "float-class": (partial(_annotation, "category_id", 1.0), "either", ""),
    "numpy-class": (partial(_annotation, "category_id", np.int64(2)), "either", ""),
    "class-too-large": (partial(_annotation, "category_id", 6), "refuse", ""),
    "class-negative": (partial(_annotation, "category_id", -1), "refuse", ""),
    "no-bbox": (partial(_annotation, "bbox", KeyError), "refuse", ""),
    "no-bbox_mode": (partial(_annotation, "bbox_mode", KeyError), "refuse", ""),
    "no-category_id": (partial(_annotation, "category_id", KeyError), "refuse", ""),
    "box-1e9": (partial(_annotation, "bbox", [0, 0, 1e9, 1e9]), "refuse",
        "1.8 boxes of 1e9 pixels"),
    "box-1e30": (partial(_annotation, "bbox", [0, 0, 1e30, 1e30]), "refuse",
        "1.8 boxes of 1e30 pixels"),
    "box-nan": (partial(_annotation, "bbox", [0, 0, float("nan"), 9]), "refuse", ""),
    "polygon-nan": (partial(_annotation, "segmentation", [[0, 0, float("nan"), 9, 9, 9]]), "refuse",
        "1.8 a NaN in a polygon"),
    "polygon-1e9": (partial(_annotation, "segmentation", [[0, 0, 1e9, 0, 1e9, 1e9]]), "refuse",
        "1.8 polygons of 1e9 pixels"),
    "polygon-short": (partial(_annotation, "segmentation", [[0, 0, 9, 9]]), "either", ""),
    "segmentation-text": (partial(_annotation, "segmentation", "rle"), "refuse", ""),
    "rle-wrong-size": (partial(_annotation, "segmentation", {"size": [3, 5], "counts": b"12"}),
        "either", ""),
    "iscrowd-all": (lambda found: [e | {"annotations": [a | {"iscrowd": 1}
        for a in e["annotations"]]} for e in found], "refuse", ""),
}  # fmt: skip


def cases(rng: Random) -> Iterator[Case]:
    for name in TOOLS:
        for what, (change, expected, fault) in _DICTS.items():
            asked = "right" if name == "train" and expected == "same" else expected
            if name != "evaluate" and what.startswith(
                ("polygon", "segmentation", "rle", "iscrowd")
            ):
                asked = "either"  # only evaluating maps looks at masks, and needs objects
            if name in ("train", "eval-only") and what.startswith("numpy"):
                asked = "either"  # Detectron2 writes them to JSON, and cannot
            yield Case(
                f"{name}-dict-{what}", partial(_dicts, name, change, asked), fault, memory=2500
            )
        yield Case(
            f"{name}-without-names", partial(_without_names, name), "1.8 names not yet known"
        )
        # Detectron2's evaluator says nan of nothing.
        expected = "either" if name == "eval-only" else "refuse"
        yield Case(f"{name}-no-objects", partial(_file, name, _no_objects, expected))
        yield Case(
            f"{name}-equal-ids", partial(_file, name, _same_ids, "either"), "1.8 equal image ids"
        )
    yield Case("nothing-to-evaluate", _nothing_found, "5 nothing to evaluate: ZeroDivisionError")
    places = [("annotations", 0, ("bbox",)), ("annotations", 1, ("bbox", 2)),
        ("annotations", 0, ("category_id",)),
              ("annotations", 0, ("image_id",)), ("annotations", 0, ("segmentation",)),
              ("annotations", 0, ("segmentation", 0, 3)),
              ("annotations", 0, ("iscrowd",)), ("annotations", 0, ("area",)),
              ("images", 0, ("height",)),
              ("images", 0, ("id",)), ("images", 1, ("file_name",)),
              ("categories", 0, ("id",))]  # fmt: skip
    for part, index, path in places:
        for what, value in {**_ODD, "missing": KeyError}.items():
            if rng.random() > 0.75:
                continue
            name = rng.choice(TOOLS[:2] if path[0] != "bbox" else TOOLS)
            where = f"{part}-{'-'.join(map(str, path))}"
            if value is KeyError and isinstance(path[-1], int):
                continue
            yield Case(f"{name}-{where}-{what}",
                       partial(_file, name, partial(_put, part, index, path, value), "either"),
                       memory=2500)  # fmt: skip
    for part in ("images", "annotations", "categories"):
        for what in ("none", "string", "object", "empty"):
            yield Case(f"analyse-all-{part}-{what}",
                       partial(_file, "analyse", partial(_whole_value, part, _ODD[what]),
                           "either"))  # fmt: skip
    for what, text in {
        "empty": "",
        "half": '{"images": [',
        "list": "[]",
        "number": "3",
        "zero": "\0",
    }.items():
        yield Case(
            f"analyse-text-{what}", partial(_file, "analyse", lambda c, t=text: t or " ", "refuse")
        )
