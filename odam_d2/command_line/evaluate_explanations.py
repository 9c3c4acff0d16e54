"""
How good are the heat maps of a detector? Evaluates those of one or more methods on the same
detections of every data set in DATASETS.TEST (docs/evaluation.md). On CrowdShapes, where causes are
known, it also tells whether the maps point at them. With the evaluator "causal_recovery" it removes
what they point at, and asks the detector again; with "sanity_checks" it explains copies of the
detector that have forgotten what they learned. Interrupt it whenever you like, the same command
goes on.

    tools/evaluate_explanations.py \\
        --config-file configs/CrowdShapes/faster_rcnn_R_50_FPN_slim.yaml
    tools/evaluate_explanations.py --config-file FILE --methods odam grad_cam d_rise \\
        --num-images 20 MODEL.ODAM.TARGETS "['class']" MODEL.ODAM.D_RISE.NUM_MASKS 1000
    tools/evaluate_explanations.py --config-file FILE --methods odam odam:layer=res2 side_middle \\
        TEST.ODAM.EVALUATORS "['causal_recovery']"
"""

import argparse
import json
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.engine import launch
from detectron2.evaluation import print_csv_format
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from odam_d2.data import register_datasets
from odam_d2.data.given import add_data_arguments
from odam_d2.engine import setup_cfg
from odam_d2.engine.augmentation import refuse_augmentation
from odam_d2.engine.checks import check_num_gpus
from odam_d2.engine.explanation_run import evaluate_methods
from odam_d2.engine.given_data import use_given_data
from odam_d2.engine.overrides import parse_with_overrides
from odam_d2.engine.project import add_import_argument
from odam_d2.errors import UserError, run_tool
from odam_d2.files import write_text
from odam_d2.modeling.attribution import method_names, preset_names

_TABLES = ("methods", "causal_recovery", "sanity_checks")


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="path to config file")
    add_import_argument(parser)
    add_data_arguments(parser)
    parser.add_argument("--methods", nargs="+", metavar="NAME",
                        help=f"of {', '.join(method_names())}, or presets: "
                        f"{', '.join(preset_names())} (the config's); settings of its own behind "
                        "it: odam:layer=res2,smoothing_sigma=1.5")  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="DIR",
                        help="by default output/explanations/CONFIG")  # fmt: skip
    parser.add_argument("--num-images", type=int, metavar="N",
                        help="the first N images of each data set only")  # fmt: skip
    parser.add_argument("--json", metavar="OUT", help="write the figures to this file")
    parser.add_argument("--num-gpus", type=int, default=0, metavar="N",
                        help="processes, one for each GPU; 0 is a single one anywhere")  # fmt: skip
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE",
                        help="config overrides")  # fmt: skip
    return parser


def setup(args: argparse.Namespace) -> CfgNode:
    cfg = setup_cfg(args.config_file, args.opts, args.imports)
    register_datasets()
    use_given_data(cfg, args)
    refuse_augmentation(cfg)
    if not cfg.MODEL.ODAM.TARGETS:
        raise UserError("MODEL.ODAM.TARGETS is empty: there would be no maps to evaluate")
    if not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST is empty: name the data set to evaluate on")
    if args.num_images is not None and args.num_images < 1:
        raise UserError("--num-images must be 1 or more")
    cfg.freeze()
    return cfg


def main(args: argparse.Namespace) -> None:
    """Evaluate; runs once in each process."""
    rank = comm.get_rank()
    setup_logger(distributed_rank=rank)
    setup_logger(distributed_rank=rank, name="odam_d2")
    cfg = setup(args)
    output = args.output or Path("output/explanations") / Path(args.config_file).stem
    methods = args.methods or [cfg.MODEL.ODAM.PRESET or cfg.MODEL.ODAM.METHOD]
    results = evaluate_methods(cfg, methods, output, args.num_images)
    if not comm.is_main_process():
        return
    for name, by_method in results.items():
        for found in by_method.values():
            print_csv_format(found)
        tables = [output / name / f"{kind}.md" for kind in _TABLES]
        print(f"\n{name}\n", *(path.read_text() for path in tables if path.exists()), sep="\n")
    # One method by itself as ever: {dataset: {task: {metric: value}}}.
    content = (
        results if args.methods else {name: found[methods[0]] for name, found in results.items()}
    )
    text = json.dumps(content, indent=2)
    print(text)
    if args.json:
        write_text(args.json, text + "\n")


def run(argv: list[str] | None = None) -> None:
    args = parse_with_overrides(get_parser(), ["--methods"], argv)
    check_num_gpus(args.num_gpus)
    launch(main, max(1, args.num_gpus), dist_url="auto", args=(args,))


def command() -> int:
    """The program; returns its exit status."""
    return run_tool(run)
