"""
Evaluate detections in CrowdHuman's public file formats, whoever made them:

    python -m odam_d2.evaluation.crowd_files --ground-truth annotation_val.odgt --detections FILE
"""

from __future__ import annotations

import argparse
import json
import sys

import numpy as np
from detectron2.structures import BoxMode

from odam_d2.core.errors import InputError
from odam_d2.data.crowdhuman import load_odgt
from odam_d2.data.json_lines import field, is_number, numbers, read_json_lines
from odam_d2.errors import run_tool

from .crowd import CrowdImage, crowd_metrics

__all__ = ["read_images"]


def read_images(ground_truth: str, detections: str) -> list[CrowdImage]:
    """
    Args:
        ground_truth: path of an ``.odgt`` file.
        detections: path of a file with a JSON object for each image in a line of its own: ``ID``,
            ``height``, ``width`` and ``dtboxes``, each with a ``box`` (XYWH in pixels) and a
            ``score``.

    Raises:
        InputError: a line is malformed, or the files are of different images; says which.
    """
    truth = {entry["image_id"]: entry for entry in load_odgt(ground_truth, "")}
    seen = set()

    def image(record: dict) -> CrowdImage:
        image_id = field(record, "ID", str)
        if image_id not in truth or image_id in seen:
            raise ValueError(f"image {image_id!r} is unknown, or there twice")
        seen.add(image_id)
        return _image(truth[image_id], record)

    images = list(read_json_lines(detections, image))
    if missing := truth.keys() - seen:
        raise InputError(
            f"{detections} lacks {len(missing)} of the {len(truth)} images of {ground_truth}, such "
            f"as {min(missing)!r}"
        )
    return images


def _image(entry: dict, record: dict) -> CrowdImage:
    found = field(record, "dtboxes", list)
    listed = [numbers(detection, "box", "x, y, width, height") for detection in found]
    boxes = np.array(listed, dtype=np.float64).reshape(-1, 4)
    scores = np.array([_number(detection, "score") for detection in found], dtype=np.float64)
    height, width = _number(record, "height"), _number(record, "width")
    if min(height, width) < 1 or height % 1 or width % 1:
        raise ValueError(f"height and width must be pixels, not {height} and {width}")
    boxes[:, 2:] += boxes[:, :2]
    annotations = entry["annotations"]
    objects = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    return CrowdImage(
        size=(int(height), int(width)),
        objects=np.array(objects, dtype=np.float64).reshape(-1, 4),
        categories=np.zeros(len(annotations), dtype=np.int64),
        ignore=np.array([a["iscrowd"] == 1 for a in annotations], dtype=bool),
        boxes=boxes,
        scores=scores,
        classes=np.zeros(len(scores), dtype=np.int64),
    )


def _number(record: dict, key: str) -> float:
    if not is_number(record[key]):
        raise ValueError(f"{key} must be a number, not {record[key]!r}")
    return record[key]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ground-truth", required=True, metavar="FILE", help=".odgt")
    parser.add_argument("--detections", required=True, metavar="FILE",
                        help="a JSON object for each image in a line of its own")  # fmt: skip
    args = parser.parse_args(argv)
    images = read_images(args.ground_truth, args.detections)
    print(json.dumps({"images": len(images), **crowd_metrics(images)}, indent=2))


if __name__ == "__main__":
    sys.exit(run_tool(main))
