#!/usr/bin/env python
"""
Score the heat maps of a detector on a data set whose causes are known (CrowdShapes).

    tools/evaluate_explanations.py \\
        --config-file configs/CrowdShapes/faster_rcnn_R_50_FPN_slim.yaml \\
        --json output/known_causes.json
"""

import argparse
import json
import sys
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.modeling import build_model
from detectron2.utils.logger import setup_logger

import odam_d2.data  # noqa: F401 (registers the data sets)
from odam_d2.engine import load_weights, setup_cfg
from odam_d2.errors import UserError, run_tool
from odam_d2.evaluation import KnownCauseEvaluator


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="path to config file")
    parser.add_argument("--json", metavar="OUT", help="write the figures to this file")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE",
                        help="config overrides")  # fmt: skip
    return parser


def setup(args: argparse.Namespace) -> CfgNode:
    cfg = setup_cfg(args.config_file, args.opts)
    if not cfg.MODEL.ODAM.TARGETS:
        raise UserError("MODEL.ODAM.TARGETS is empty: there would be no maps to evaluate")
    if not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST is empty: name the data set to evaluate on")
    cfg.freeze()
    return cfg


def main(args: argparse.Namespace) -> None:
    setup_logger()
    setup_logger(name="odam_d2")
    cfg = setup(args)
    model = build_model(cfg)
    load_weights(model, cfg.MODEL.WEIGHTS)
    results = {}
    for name in cfg.DATASETS.TEST:
        try:
            evaluator = KnownCauseEvaluator(name)
        except ValueError as error:
            raise UserError(str(error)) from error
        loader = build_detection_test_loader(cfg, name)
        results[name] = inference_on_dataset(model, loader, evaluator)
        print_csv_format(results[name])
    text = json.dumps(results, indent=2)
    print(text)
    if args.json:
        Path(args.json).write_text(text + "\n")


if __name__ == "__main__":
    sys.exit(run_tool(lambda: main(get_parser().parse_args())))
