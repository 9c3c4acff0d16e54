#!/usr/bin/env python
"""
Time a detector with and without explanations, and per-map autograd, in one process.

    tools/benchmark.py --config-file configs/COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml \\
        --json output/benchmark.json MODEL.WEIGHTS ""
    tools/benchmark.py --config-file configs/COCO-Detection/retinanet_R_50_FPN_1x.yaml \\
        --spread 60 20 12 5 3 --json output/benchmark.json MODEL.WEIGHTS ""

With --nms, what another NMS costs; with --training, what the loss on heat maps costs:

    tools/benchmark.py --config-file configs/COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml \\
        --nms 1000 MODEL.WEIGHTS "" MODEL.ODAM.NMS.NAME odam_nms
    tools/benchmark.py --config-file configs/COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml \\
        --training 8 MODEL.WEIGHTS "" MODEL.ODAM.LOSS.NAME OdamTrainLoss

With --methods, what ODAM, Grad-CAM and D-RISE cost (of D-RISE, so many masks are timed):

    tools/benchmark.py --config-file configs/COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml \\
        --methods 8 MODEL.WEIGHTS ""
"""

import argparse
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

runpy.run_path(str(Path(__file__).with_name("enter_environment.py")))["enter_environment"]()
# benchmarks/ is a folder of this checkout, not of the package that is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from detectron2.config import CfgNode

from benchmarks.explaining import BenchmarkCase, measure, peak_memory
from benchmarks.methods import measure_methods
from benchmarks.nms import measure_nms
from benchmarks.training import measure_training
from odam_d2.data import register_datasets
from odam_d2.engine import setup_cfg
from odam_d2.engine.augmentation import refuse_augmentation
from odam_d2.engine.overrides import parse_with_overrides
from odam_d2.errors import UserError, run_tool
from odam_d2.files import write_text


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="path to config file")
    parser.add_argument("--json", metavar="OUT", help="write the figures to this file")
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1216), metavar=("H", "W"),
                        help="pixels of the image that the network gets")  # fmt: skip
    parser.add_argument("--instances", type=int, default=100, help="detections to explain")
    parser.add_argument("--spread", type=int, nargs="+", metavar="N",
                        help="dense detectors: how many instances on each level")  # fmt: skip
    parser.add_argument("--runs", type=int, default=5,
                        help="timed runs; figures are their medians, with the range")  # fmt: skip
    parser.add_argument("--references", type=int, default=1,
                        help="instances of each level also explained by autograd")  # fmt: skip
    parser.add_argument("--memory", action="store_true",
                        help="also measure peak memory, in two processes of their own")  # fmt: skip
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--nms", type=int, metavar="N",
                      help="another NMS, with N candidates, against the detector's")  # fmt: skip
    kind.add_argument("--training", type=int, metavar="N",
                      help="training with the loss and without, N objects")  # fmt: skip
    kind.add_argument("--methods", type=int, metavar="N",
                      help="other methods than ODAM too, of D-RISE N masks")  # fmt: skip
    parser.add_argument("--threads", type=int, help="CPU threads of PyTorch (default: its own)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE",
                        help="config overrides")  # fmt: skip
    return parser


def setup(args: argparse.Namespace) -> BenchmarkCase:
    """Check the arguments, and fix what is measured."""
    numbers = [*args.size, args.instances, args.runs, args.references, *(args.spread or [])]
    numbers += [number for number in (args.nms, args.training, args.methods) if number is not None]
    numbers += [args.threads] if args.threads is not None else []
    if min(numbers) < 1:
        raise UserError(
            "sizes and numbers of instances, objects, runs and threads must be positive"
        )
    if args.json and not os.access(Path(args.json).resolve().parent, os.W_OK):
        raise UserError(f"cannot write {args.json!r}: its folder is missing or not writable")
    cfg = setup_cfg(args.config_file, args.opts)
    cfg.freeze()
    refuse_augmentation(cfg)
    refuse_unused(args, cfg)
    register_datasets()  # whose classes targets may name
    if args.threads:
        torch.set_num_threads(args.threads)
    return BenchmarkCase(
        cfg, tuple(args.size), args.instances, args.spread, args.runs, args.references
    )


def refuse_unused(args: argparse.Namespace, cfg: CfgNode) -> None:
    """
    Raise a :class:`UserError` for an argument or a key that what is measured does not use: plain
    autograd, which ours is compared with, makes ODAM's maps on what the head reads.
    """
    for key, without in (("METHOD", "odam"), ("LAYER", ""), ("SMOOTHING_SIGMA", 0.0)):
        if cfg.MODEL.ODAM[key] != without:
            raise UserError(
                f"MODEL.ODAM.{key} is {cfg.MODEL.ODAM[key]!r}; what is timed here is ODAM with "
                f"{without!r} (other methods: --methods)"
            )
    kinds = [kind for kind in ("nms", "training", "methods") if getattr(args, kind) is not None]
    if args.spread and kinds:
        raise UserError(f"--spread has no effect with --{kinds[0]}")


def about(case: BenchmarkCase, config_file: str) -> dict:
    """Where the figures come from."""
    cuda = case.cfg.MODEL.DEVICE.startswith("cuda")
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return {
        "config_file": config_file,
        "size": case.size,
        "spread": case.spread,
        "device": torch.cuda.get_device_name()
        if cuda
        else f"cpu, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "commit": git.stdout.strip() or None,
    }


def run(argv: list[str] | None = None) -> None:
    args = parse_with_overrides(get_parser(), ["--spread"], argv)
    case = setup(args)
    figures = about(case, args.config_file)
    if args.nms is not None:
        figures |= measure_nms(case.cfg, case.size, args.nms, case.runs)
    elif args.training is not None:
        figures |= measure_training(case.cfg, case.size, args.training, case.runs)
    elif args.methods is not None:
        limits = (case.size, case.instances, args.methods, case.runs)
        figures |= measure_methods(case.cfg, *limits)
    else:
        figures |= measure(case)
    if args.memory:
        figures |= peak_memory(case)
    text = json.dumps(figures, indent=2)
    print(text)
    if args.json:
        write_text(args.json, text + "\n")


if __name__ == "__main__":
    sys.exit(run_tool(run))
