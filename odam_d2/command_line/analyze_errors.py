"""
What does a detector get wrong, what does each kind of error cost, and why did it happen? Sorts the
detections on the first data set of DATASETS.TEST against its objects, and explains the confident
errors by heat maps, on a page to browse (docs/errors.md).

    tools/analyze_errors.py --config-file configs/CrowdShapes/faster_rcnn_R_50_FPN_slim.yaml
    tools/analyze_errors.py --config-file FILE --preset gradient
    tools/analyze_errors.py --config-file FILE --output DIR MODEL.WEIGHTS CHECKPOINT
"""

import argparse
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils.logger import setup_logger
from tabulate import tabulate

from odam_d2.analysis.run import analyse_errors
from odam_d2.data import register_datasets
from odam_d2.data.given import add_data_arguments
from odam_d2.engine import setup_cfg
from odam_d2.engine.augmentation import refuse_augmentation
from odam_d2.engine.checks import check_output_folder
from odam_d2.engine.given_data import use_given_data
from odam_d2.engine.project import add_import_argument
from odam_d2.errors import UserError, run_tool
from odam_d2.modeling.attribution import preset_names


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="path to config file")
    add_import_argument(parser)
    add_data_arguments(parser)
    parser.add_argument("--output", type=Path, metavar="DIR",
                        help="by default output/errors/CONFIG")  # fmt: skip
    parser.add_argument("--preset", metavar="NAME",
                        help=f"how maps are made: {' or '.join(preset_names())} (default: by "
                        "MODEL.ODAM of the config, as published)")  # fmt: skip
    parser.add_argument("--confidence", type=float, default=0.5, metavar="SCORE",
                        help="least score of explained errors (default: 0.5)")  # fmt: skip
    parser.add_argument("--most", type=int, default=8, metavar="N",
                        help="errors of each kind that are explained (default: 8)")  # fmt: skip
    parser.add_argument("--iou-thresh", type=float, default=0.5, metavar="IOU",
                        help="from which an object counts as found (default: 0.5)")  # fmt: skip
    parser.add_argument("--background-iou", type=float, default=0.1, metavar="IOU",
                        help="from which a detection is near an object (default: 0.1)")  # fmt: skip
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE",
                        help="config overrides")  # fmt: skip
    return parser


def setup(args: argparse.Namespace) -> CfgNode:
    """Check all that can be checked before anything is computed."""
    setup_logger(name="odam_d2")
    if not 0 <= args.confidence <= 1:
        raise UserError(f"--confidence is {args.confidence:g}; it must be in [0, 1]")
    if args.most < 1:
        raise UserError(f"--most is {args.most}; it must be 1 or more")
    if not 0 <= args.background_iou < args.iou_thresh <= 1:
        raise UserError(
            f"--background-iou is {args.background_iou:g} and --iou-thresh {args.iou_thresh:g}; "
            "they must be in [0, 1], the first one below the second"
        )
    cfg = setup_cfg(args.config_file, args.opts, args.imports)
    register_datasets()
    use_given_data(cfg, args)
    refuse_augmentation(cfg)
    if args.preset is not None:
        cfg.MODEL.ODAM.PRESET = args.preset
    if cfg.MODEL.ODAM.METHOD == "d_rise":
        raise UserError(
            "MODEL.ODAM.METHOD is 'd_rise', which explains a detection as a whole; errors are "
            "explained by their sides, and where nothing was detected: choose another method"
        )
    if not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST is empty: name the data set to analyse")
    cfg.freeze()
    return cfg


def run(argv: list[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    cfg = setup(args)
    output = args.output or Path("output/errors") / Path(args.config_file).stem
    check_output_folder(output)
    page, found = analyse_errors(
        cfg,
        Path(args.config_file).name,
        output,
        confidence=args.confidence,
        most=args.most,
        iou_thresh=args.iou_thresh,
        background_iou=args.background_iou,
    )
    rows = [
        (kind, cost, *found["counts"][kind].values())
        for kind, cost in sorted(found["costs"].items(), key=lambda item: -item[1])
    ]
    print(f"AP at IoU {args.iou_thresh:g}: {found['AP']:.1f}\n")
    print(tabulate(rows, ["error", "costs AP", "errors", "confident"], "pipe", floatfmt=".1f"))
    print(f"\n{page}")


def command() -> int:
    """The program; returns its exit status."""
    return run_tool(run)
