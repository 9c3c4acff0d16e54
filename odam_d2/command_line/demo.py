"""
Explain what a detector finds in your pictures: one heat map for each detection and target.

    tools/demo.py --input street.jpg holiday/ 'frames/*.png' --output output/demo
    tools/demo.py --config-file FILE --input PICTURE --targets class left --opts MODEL.WEIGHTS FILE
    tools/demo.py --input PICTURE --signed --compare gradient
    tools/demo.py --config-file FILE.py --input PICTURE --opts train.init_checkpoint=FILE

For each image, OUTPUT gets a folder with an overlay for each map, a contact sheet, the raw maps
(maps.npz) and what each of them is (maps.json); OUTPUT/index.html is a page to browse them all.
An image that cannot be read is left out, named at the end, and makes the exit status 1. Ctrl-C
keeps the images that are finished.
"""

import argparse
import os

from detectron2.utils.logger import setup_logger

from odam_d2.data import register_datasets
from odam_d2.data.given import add_data_arguments, read_class_names
from odam_d2.demo import Demo, expand_inputs, plan_folders
from odam_d2.engine import ExplainingPredictor, setup_config
from odam_d2.engine.detector import check_score_threshold
from odam_d2.engine.given_data import use_given_data
from odam_d2.engine.project import add_import_argument
from odam_d2.errors import UserError, run_tool
from odam_d2.modeling.attribution import preset_names
from odam_d2.visualization.text import printable

DEFAULT_CONFIG = "CrowdShapes/faster_rcnn_R_50_FPN_slim.yaml"


def get_parser() -> argparse.ArgumentParser:
    """Detectron2's demo arguments, and which targets to explain."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file",
        default=DEFAULT_CONFIG,
        metavar="FILE",
        help="config of the detector, YAML or a LazyConfig (.py), or the name of one that comes "
        "with odam_d2 (default: %(default)s, whose weights come along)",
    )
    add_import_argument(parser)
    add_data_arguments(parser)
    parser.add_argument("--webcam", action="store_true", help="not available yet")
    parser.add_argument("--video-input", metavar="FILE", help="not available yet")
    parser.add_argument(
        "--input",
        nargs="+",
        metavar="PATH",
        help="images, folders (without their subfolders) and quoted patterns",
    )
    parser.add_argument(
        "--output",
        default=os.path.join("output", "demo"),
        metavar="FOLDER",
        help="folder of the results; those of an earlier run for an image of the same name are "
        "replaced (default: %(default)s)",
    )
    _add_choices(parser)
    return parser


def _add_choices(parser: argparse.ArgumentParser) -> None:
    """What is explained, and what is drawn."""
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        default=0.5,
        metavar="SCORE",
        help="least score of a detection, in [0, 1] (default: %(default)s)",
    )
    parser.add_argument(
        "--targets",
        nargs="+",
        metavar="TARGET",
        help="what to explain of each detection: class (its score), class:NAME or class:K (the "
        "score of another class), left, top, right, bottom (that side of the box), combined "
        "(default: MODEL.ODAM.TARGETS of the config; for a LazyConfig class and the four sides)",
    )
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help=f"how maps are made: {' or '.join(preset_names())} (default: by MODEL.ODAM of the "
        "config, as published)",
    )
    parser.add_argument(
        "--compare",
        nargs="+",
        default=[],
        metavar="PRESET",
        help="also make maps by these presets, and show them beside the others",
    )
    parser.add_argument(
        "--signed",
        action="store_true",
        default=None,
        help="also show what speaks against the score, or holds the side inward, in blue",
    )
    parser.add_argument(
        "--max-detections",
        type=int,
        default=20,
        metavar="N",
        help="draw only the best N detections of an image (default: %(default)s)",
    )
    parser.add_argument(
        "--suppressed",
        action="store_true",
        help="also draw what NMS suppressed, beside what it was suppressed by, and list all "
        "candidates: suppressed.png and suppressed.json",
    )
    parser.add_argument(
        "--discriminate",
        type=float,
        nargs="?",
        const=0.1,
        metavar="IOU",
        help="also draw the class maps of detections that overlap by more than this IoU together, "
        "each in a colour of its own: groups.png (without a number: 0.1)",
    )
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="changes to the config, KEY=VALUE for a LazyConfig; the last argument",
    )


def setup(args: argparse.Namespace) -> Demo:
    """Check all that can be checked before anything is computed, and load the detector."""
    setup_logger(name="odam_d2")
    if args.max_detections < 1:
        raise UserError(f"--max-detections must be at least 1, not {args.max_detections}")
    if args.discriminate is not None and not 0 <= args.discriminate < 1:
        raise UserError(f"--discriminate is {args.discriminate:g}; it must be in [0, 1)")
    cfg = setup_config(args.config_file, args.opts, args.imports)
    register_datasets()  # after what the config imports
    use_given_data(cfg, args, needs_data=False)
    check_score_threshold(args.confidence_threshold)
    plan_folders(args.input, args.output)
    how = {"preset": args.preset, "signed": args.signed}
    predictor = ExplainingPredictor(cfg, args.targets, args.confidence_threshold, **how)
    if args.class_names is not None:
        check_names(args.class_names, predictor)
    others = [name for name in dict.fromkeys(args.compare) if name != predictor.method]
    compared = {name: predictor.by_preset(name) for name in others}
    method = f" · {predictor.method}" + (f" beside {', '.join(others)}" if others else "")
    subtitle = (
        f"{os.path.basename(args.config_file)} · weights {predictor.weights} · "
        f"scores of at least {args.confidence_threshold:g}{method}"
    )
    return Demo(
        predictor,
        predictor.class_names,
        args.output,
        args.max_detections,
        printable(subtitle),
        predictor.candidates if args.suppressed else None,
        args.discriminate,
        predictor.method if compared else "",
        compared,
    )


def check_names(file: str, predictor: ExplainingPredictor) -> None:
    """Raise a :class:`UserError` where ``--class-names`` are not one for each class."""
    count = len(read_class_names(file))
    if count != len(predictor.class_names):
        raise UserError(
            f"{file!r} has {count} names, and the detector has {len(predictor.class_names)} classes"
        )


def run(argv: list[str] | None = None) -> None:
    """Explain the images that the arguments name."""
    parser = get_parser()
    args = parser.parse_args(argv)
    if args.webcam or args.video_input is not None:
        flag = "--webcam" if args.webcam else "--video-input"
        parser.exit(2, f"error: {flag} is not available yet; explain single frames by --input\n")
    if not args.input:
        parser.exit(2, "error: name the images to explain by --input\n")
    args.input = expand_inputs(args.input)
    demo = setup(args)
    page = demo.run(args.input)
    maps = sum(len(d.overlays) for image in demo.done for d in image.detections)
    print(f"{len(demo.done)} images, {maps} heat maps: {page}")


def command() -> int:
    """The program; returns its exit status."""
    return run_tool(run)
