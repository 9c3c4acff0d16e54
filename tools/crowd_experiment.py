#!/usr/bin/env python
"""
Does it help in crowds? Train detectors with and without Odam-Train, and compare NMS, soft-NMS and
Odam-NMS on them (docs/crowds.md). Interrupt it whenever you like, the same command goes on.

    tools/crowd_experiment.py --output output/crowd_experiment
    tools/crowd_experiment.py --datasets crowdshapes --detectors retinanet --seeds 1
"""

import argparse
import runpy
import sys
from pathlib import Path

runpy.run_path(str(Path(__file__).with_name("enter_environment.py")))["enter_environment"]()
# experiments/ is a folder of this checkout, not of the package that is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.crowds.experiment import Experiment, run_all
from experiments.crowds.plan import DATASETS, DETECTORS, plan
from experiments.crowds.report import write_report
from odam_d2.data import register_datasets
from odam_d2.engine.overrides import parse_with_overrides
from odam_d2.errors import UserError, run_tool


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output/crowd_experiment"),
                        metavar="DIR", help="a folder for every run, and the report")  # fmt: skip
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), metavar="NAME",
                        help=f"of {', '.join(DATASETS)}")  # fmt: skip
    parser.add_argument("--detectors", nargs="+", default=list(DETECTORS), metavar="NAME",
                        help=f"of {', '.join(DETECTORS)}")  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="N")
    parser.add_argument("--tuning-images", type=int, default=100, metavar="N",
                        help="training images on which thresholds are chosen")  # fmt: skip
    parser.add_argument("--overlap", type=float, default=0.3,
                        help="IoU above which objects count as overlapping")  # fmt: skip
    parser.add_argument("--precision", type=float, default=0.8,
                        help="at which recalls are compared")  # fmt: skip
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE",
                        help="overrides of every config")  # fmt: skip
    return parser


def run(argv: list[str] | None = None) -> None:
    lists = ["--datasets", "--detectors", "--seeds"]
    args = parse_with_overrides(get_parser(), lists, argv)
    if not 0 < args.overlap < 1 or not 0 < args.precision <= 1:
        raise UserError("--overlap must be above 0 and below 1, --precision above 0 and at most 1")
    if args.tuning_images < 1:
        raise UserError("--tuning-images must be 1 or more")
    register_datasets()
    runs = list(plan(args.datasets, args.detectors, args.seeds))
    args.output.mkdir(parents=True, exist_ok=True)
    configs = Path(__file__).resolve().parents[1] / "configs"
    experiment = Experiment(
        configs, args.output, args.tuning_images, args.overlap, args.precision, tuple(args.opts)
    )
    results = []
    for result in run_all(experiment, runs):
        results.append(result)
        path = write_report(results, args.output)  # what there is, after every run
    print(path.read_text())


if __name__ == "__main__":
    sys.exit(run_tool(run))
