"""Which evaluators a config asks for."""

from __future__ import annotations

import os
from collections.abc import Callable

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, DatasetEvaluators

from odam_d2.errors import UserError
from odam_d2.evaluation import CrowdEvaluator

__all__ = ["build_evaluator", "check_evaluators"]

_MORE: dict[str, Callable[[str, str], DatasetEvaluator]] = {"crowd": CrowdEvaluator}
"""Evaluators by their names in ``TEST.ODAM.EVALUATORS``; built from data set and output folder."""


def check_evaluators(cfg: CfgNode) -> None:
    """
    Raises:
        UserError: an evaluator is unknown; the message lists those that there are.
    """
    for name in cfg.TEST.ODAM.EVALUATORS:
        if name not in _MORE:
            raise UserError(
                f"TEST.ODAM.EVALUATORS has {name!r}; there are {', '.join(sorted(_MORE))}"
            )


def build_evaluator(cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
    """
    The evaluator that a data set has by itself (``evaluator_type`` of its metadata), and those that
    ``TEST.ODAM.EVALUATORS`` names. They write to ``OUTPUT_DIR/inference/DATASET``.
    """
    output_dir = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
    crowds = MetadataCatalog.get(dataset_name).get("evaluator_type") == "crowdhuman"
    own = CrowdEvaluator if crowds else COCOEvaluator
    more = cfg.TEST.ODAM.EVALUATORS if "ODAM" in cfg.TEST else []
    kinds = [own, *(_MORE[name] for name in more)]
    evaluators = [kind(dataset_name, output_dir=output_dir) for kind in dict.fromkeys(kinds)]
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)
