#!/usr/bin/env python
"""
Train a detector of CrowdShapes on for badges that may be anywhere, with Detectron2's own arguments
(docs/model_zoo.md).

    tools/train_scattered.py --config-file \
        configs/CrowdShapes/fcos_R_50_FPN_slim_scattered.yaml MODEL.WEIGHTS CHECKPOINT
    tools/train_scattered.py --config-file FILE --resume
"""

import argparse
import runpy
import sys
from pathlib import Path

runpy.run_path(str(Path(__file__).with_name("enter_environment.py")))["enter_environment"]()
# experiments/ is a folder of this checkout, not of the package that is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from detectron2.engine import default_setup

from experiments.scattered.trainer import ScatteredTrainer
from odam_d2.data import register_datasets
from odam_d2.engine import setup_cfg
from odam_d2.engine.checks import check_run
from odam_d2.engine.given_data import use_given_data
from odam_d2.engine.launching import launch_tool
from odam_d2.errors import UserError, run_tool


def main(args: argparse.Namespace) -> dict | None:
    """Train; runs once in each process."""
    if args.eval_only:
        raise UserError("--eval-only: tools/train_net.py evaluates what this tool trains")
    cfg = setup_cfg(args.config_file, args.opts, args.imports)
    register_datasets()
    use_given_data(cfg, args)
    cfg.freeze()
    check_run(cfg, args)
    default_setup(cfg, args)
    trainer = ScatteredTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def run(argv: list[str] | None = None) -> None:
    """Launch :func:`main` in a process for each GPU, or in a single one."""
    launch_tool(main, __doc__, argv)


if __name__ == "__main__":
    sys.exit(run_tool(run))
