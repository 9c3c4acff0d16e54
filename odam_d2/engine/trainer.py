"""Detectron2's default trainer with COCO evaluation, and nothing lost on Ctrl-C."""

import os

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from torch import nn

__all__ = ["Trainer"]


class Trainer(DefaultTrainer):
    """
    Trains what the config names and evaluates it by Detectron2's :class:`COCOEvaluator`.

    Its models do not explain: evaluation only needs boxes, so ``MODEL.ODAM.TARGETS`` is empty
    while they are built. The config that is logged and saved keeps the user's targets.
    """

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build the model of ``cfg`` with explaining turned off."""
        if "ODAM" in cfg.MODEL:
            cfg = cfg.clone()
            cfg.defrost()
            cfg.MODEL.ODAM.TARGETS = []
        return super().build_model(cfg)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """COCO evaluation of one data set; predictions are kept in ``OUTPUT_DIR/inference``."""
        output_dir = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
        return COCOEvaluator(dataset_name, output_dir=output_dir)

    def train(self):
        """
        Train from ``start_iter`` to ``max_iter``. On Ctrl-C, what was trained so far is saved
        first, so that ``--resume`` continues from the last finished iteration.
        """
        try:
            return super().train()
        except KeyboardInterrupt:
            self.iter -= 1  # the iteration under way is repeated when resuming
            if self.iter < self.start_iter:
                raise
            self.checkpointer.save(f"model_{self.iter:07d}", iteration=self.iter)
            raise KeyboardInterrupt(
                f"after iteration {self.iter}; go on with --resume (OUTPUT_DIR {self.cfg.OUTPUT_DIR})"
            ) from None
