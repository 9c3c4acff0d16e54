"""Build splits of CrowdShapes: `python -m odam_d2.data.crowdshapes --split crowdshapes_val`."""

import argparse
import json
from itertools import groupby

from .dataset import SPLITS, build_split
from .statistics import crowding_statistics, position_statistics


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m odam_d2.data.crowdshapes",
        description="Build splits of CrowdShapes and print where they are.",
    )
    parser.add_argument(
        "--split", nargs="+", choices=SPLITS, default=list(SPLITS), help="default: all of them"
    )
    parser.add_argument(
        "--out", help="data folder (default: $ODAM_DATASETS, $DETECTRON2_DATASETS or datasets)"
    )
    parser.add_argument(
        "--stats",
        action="store_true",
        help="also print how crowded they are and what the position in the box says",
    )
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = get_parser().parse_args(arguments)
    for name in args.split:
        folder = build_split(name, args.out)
        print(folder)
        if args.stats:
            objects = json.loads((folder / "annotations.json").read_text("utf-8"))["annotations"]
            images = [list(group) for _, group in groupby(objects, lambda a: a["image_id"])]
            print(json.dumps(crowding_statistics(images) | position_statistics(images)))


if __name__ == "__main__":
    main()
