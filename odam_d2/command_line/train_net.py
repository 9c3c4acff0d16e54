"""
Train or evaluate a detector by a config file, with Detectron2's own arguments.

    tools/train_net.py --config-file configs/BCCD/faster_rcnn_R_18_FPN.yaml
    tools/train_net.py --config-file FILE --eval-only MODEL.WEIGHTS CHECKPOINT
"""

import argparse

from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from odam_d2.data import register_datasets
from odam_d2.engine import Trainer, load_weights, setup_cfg
from odam_d2.engine.checks import check_class_ids, check_run
from odam_d2.engine.given_data import use_given_data
from odam_d2.engine.launching import launch_tool
from odam_d2.engine.weights import starting_weights
from odam_d2.errors import run_tool


def setup(args: argparse.Namespace) -> CfgNode:
    """Make the config of a run and set up logging to its ``OUTPUT_DIR``."""
    setup_logger(distributed_rank=comm.get_rank(), name="odam_d2")
    cfg = setup_cfg(args.config_file, args.opts, args.imports)
    register_datasets()
    use_given_data(cfg, args)
    cfg.freeze()
    check_run(cfg, args)
    default_setup(cfg, args)
    return cfg


def main(args: argparse.Namespace) -> dict | None:
    """Train or evaluate; runs once in each process."""
    cfg = setup(args)
    if not args.eval_only:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()
    model = Trainer.build_model(cfg)
    check_class_ids(model, (), cfg.DATASETS.TEST)
    load_weights(model, starting_weights(cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR, args.resume))
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results.update(Trainer.test_with_augmentation(cfg, model))
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def run(argv: list[str] | None = None) -> None:
    """Launch :func:`main` in a process for each GPU, or in a single one."""
    launch_tool(main, __doc__, argv)


def command() -> int:
    """The program; returns its exit status."""
    return run_tool(run)
