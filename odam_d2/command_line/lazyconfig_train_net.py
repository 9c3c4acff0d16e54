"""
Train or evaluate a detector by a LazyConfig, Detectron2's config in Python.

    tools/lazyconfig_train_net.py --config-file FILE.py train.output_dir=output/run
    tools/lazyconfig_train_net.py --config-file FILE.py --eval-only train.init_checkpoint=CHECKPOINT

A key that the config does not have is refused, unless it is an argument of what is called there;
+KEY=VALUE adds it all the same.
"""

import argparse

from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig

from odam_d2.data import register_datasets
from odam_d2.engine import setup_lazy
from odam_d2.engine.given_data import use_given_data
from odam_d2.engine.launching import launch_tool
from odam_d2.engine.lazy_trainer import check_lazy_run, evaluate_checkpoint, train_lazy
from odam_d2.errors import run_tool


def setup(args: argparse.Namespace) -> DictConfig:
    """Make the config of a run and set up logging to its ``train.output_dir``."""
    setup_logger(distributed_rank=comm.get_rank(), name="odam_d2")
    cfg = setup_lazy(args.config_file, args.opts, args.imports)
    register_datasets()  # after what the config imports
    use_given_data(cfg, args)
    check_lazy_run(cfg, args)
    default_setup(cfg, args)
    return cfg


def main(args: argparse.Namespace) -> dict | None:
    """Train or evaluate; runs once in each process."""
    cfg = setup(args)
    if args.eval_only:
        return evaluate_checkpoint(cfg, args.resume)
    train_lazy(cfg, args.resume)
    return None


def run(argv: list[str] | None = None) -> None:
    """Launch :func:`main` in a process for each GPU, or in a single one."""
    launch_tool(main, __doc__, argv)


def command() -> int:
    """The program; returns its exit status."""
    return run_tool(run)
