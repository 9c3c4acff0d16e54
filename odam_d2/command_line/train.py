"""
Train or evaluate a detector by a config, in YAML or a LazyConfig (.py), with Detectron2's own
arguments.

    odam-train --config-file my_config.yaml MODEL.WEIGHTS CHECKPOINT
    odam-train --config-file my_config.py train.init_checkpoint=CHECKPOINT
"""

import argparse

from odam_d2.engine.launching import launch_tool
from odam_d2.errors import run_tool

from . import lazyconfig_train_net, train_net


def main(args: argparse.Namespace) -> dict | None:
    """Train or evaluate; runs once in each process."""
    lazy = args.config_file.endswith(".py")
    return (lazyconfig_train_net if lazy else train_net).main(args)


def run(argv: list[str] | None = None) -> None:
    """Launch :func:`main` in a process for each GPU, or in a single one."""
    launch_tool(main, __doc__ or "", argv)


def command() -> int:
    """The program; returns its exit status."""
    return run_tool(run)
