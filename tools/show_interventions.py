#!/usr/bin/env python
"""
What do maps show? For some objects and methods: the map, what is removed at its peak, and what the
detector says then (docs/what_maps_show.md).

    tools/show_interventions.py --config-file configs/CrowdShapes/faster_rcnn_R_50_FPN_slim.yaml \\
        --output output/interventions.webp
"""

import argparse
import io
import runpy
import sys
from pathlib import Path

runpy.run_path(str(Path(__file__).with_name("enter_environment.py")))["enter_environment"]()
# experiments/ is a folder of this checkout, not of the package that is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.interventions import draw, interventions
from odam_d2.data import register_datasets
from odam_d2.engine import setup_cfg
from odam_d2.engine.detector import build_detector
from odam_d2.engine.overrides import parse_with_overrides
from odam_d2.errors import UserError, run_tool
from odam_d2.files import write_bytes
from odam_d2.modeling.attribution import method_names, preset_names

METHODS = {"odam": "ODAM", "gradient": "gradient", "faithful": "faithful",
           "side_middle": "middle of the box or side"}  # fmt: skip
QUALITY = 45  # of what is no PNG


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="path to config file")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="NAME",
                        help="methods and presets")  # fmt: skip
    parser.add_argument("--objects", type=int, default=2, metavar="N",
                        help="the best found one of each of the first images")  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, metavar="FILE",
                        help="a picture: .webp, .jpg or .png")  # fmt: skip
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE",
                        help="config overrides")  # fmt: skip
    return parser


def run(argv: list[str] | None = None) -> None:
    args = parse_with_overrides(get_parser(), ["--methods"], argv)
    if args.objects < 1:
        raise UserError("--objects must be 1 or more")
    known = [*method_names(), *preset_names()]
    for method in args.methods:
        if method not in known:
            raise UserError(f"unknown method {method!r}; there are {', '.join(known)}")
    kinds = {".webp": "WEBP", ".jpg": "JPEG", ".png": "PNG"}
    if args.output.suffix not in kinds:
        raise UserError(f"{str(args.output)!r} must end with one of {', '.join(kinds)}")
    register_datasets()
    cfg = setup_cfg(args.config_file, args.opts)
    detector = build_detector(cfg)
    detector.load()
    found = list(interventions(cfg, detector.model, args.methods, args.objects))
    content = io.BytesIO()
    draw(found, METHODS).save(content, kinds[args.output.suffix], quality=QUALITY)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(args.output, content.getvalue())
    for number, (_, by_method) in enumerate(found, 1):
        for method, shown in by_method.items():
            print(f"object {number}, {method}: {'; '.join(one.said for one in shown)}")


if __name__ == "__main__":
    sys.exit(run_tool(run))
