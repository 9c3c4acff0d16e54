"""Which evaluators a config asks for."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, DatasetEvaluators
from torch import nn

from odam_d2.core.ranges import check_text
from odam_d2.data.checks import DatasetUse
from odam_d2.errors import UserError, one_line
from odam_d2.evaluation import (
    CausalRecoveryEvaluator,
    CausalRecoverySettings,
    CrowdEvaluator,
    ExplanationEvaluator,
    ExplanationProtocol,
    KnownCauseEvaluator,
    SanityCheckEvaluator,
    SanityCheckSettings,
)
from odam_d2.modeling.randomisation import own_copy

from .weights import load_weights

__all__ = [
    "build_evaluator",
    "check_evaluators",
    "evaluated_use",
    "evaluates_maps",
    "evaluation_errors",
    "other_detectors",
]


def _coco(
    cfg: CfgNode, dataset_name: str, output_dir: str, model: nn.Module | None
) -> DatasetEvaluator:
    # Of a data set without a file, Detectron2 would keep one here, and take an old one for it.
    return COCOEvaluator(dataset_name, output_dir=output_dir, allow_cached_coco=False)


def _crowd(
    cfg: CfgNode, dataset_name: str, output_dir: str, model: nn.Module | None
) -> DatasetEvaluator:
    return CrowdEvaluator(dataset_name, output_dir=output_dir)


def _explanation(
    cfg: CfgNode, dataset_name: str, output_dir: str, model: nn.Module | None
) -> DatasetEvaluator:
    return ExplanationEvaluator(
        dataset_name,
        os.path.join(output_dir, "explanation"),
        ExplanationProtocol.from_config(cfg),
        model=model,
        settings={"method": cfg.MODEL.ODAM.METHOD},
    )


def _known_causes(
    cfg: CfgNode, dataset_name: str, output_dir: str, model: nn.Module | None
) -> DatasetEvaluator:
    return KnownCauseEvaluator(dataset_name, os.path.join(output_dir, "known_causes"))


def _causal_recovery(
    cfg: CfgNode, dataset_name: str, output_dir: str, model: nn.Module | None
) -> DatasetEvaluator:
    if model is None:
        raise UserError("the evaluator 'causal_recovery' asks the model again; give it one")
    return CausalRecoveryEvaluator(
        dataset_name,
        os.path.join(output_dir, "causal_recovery"),
        CausalRecoverySettings.from_config(cfg),
        model=model,
    )


_OTHERS = ("OTHER_WEIGHTS", "RANDOM_LABELS")  # keys of TEST.ODAM.SANITY_CHECKS


def _sanity_checks(
    cfg: CfgNode, dataset_name: str, output_dir: str, model: nn.Module | None
) -> DatasetEvaluator:
    if model is None:
        raise UserError("the evaluator 'sanity_checks' randomises a copy of the model; give it one")
    return SanityCheckEvaluator(
        dataset_name,
        os.path.join(output_dir, "sanity_checks"),
        SanityCheckSettings.from_config(cfg),
        model=model,
        others=other_detectors(cfg, model),
    )


def other_detectors(cfg: CfgNode, model: nn.Module) -> dict[str, nn.Module]:
    """Copies of a detector with the other weights that its maps are to be compared with."""
    found = {}
    for name in _OTHERS:
        if path := cfg.TEST.ODAM.SANITY_CHECKS[name]:
            other = own_copy(model)
            load_weights(other, path, f"TEST.ODAM.SANITY_CHECKS.{name}")
            found[name.lower()] = other
    return found


_MORE: dict[str, Callable[..., DatasetEvaluator]] = {
    "causal_recovery": _causal_recovery,
    "crowd": _crowd,
    "explanation": _explanation,
    "known_causes": _known_causes,
    "sanity_checks": _sanity_checks,
}
"""Evaluators by their names in ``TEST.ODAM.EVALUATORS``."""

_OF_MAPS = {"causal_recovery", "explanation", "known_causes", "sanity_checks"}


def evaluates_maps(cfg: CfgNode) -> bool:
    """Whether an evaluator asks for heat maps, which need not be made otherwise."""
    return "ODAM" in cfg.TEST and not _OF_MAPS.isdisjoint(cfg.TEST.ODAM.EVALUATORS)


@contextlib.contextmanager
def evaluation_errors() -> Iterator[None]:
    """Around an evaluation: Detectron2 sees at its end only that a class is none of the data's."""
    try:
        yield
    except AssertionError as error:
        if "A prediction has class" not in str(error):
            raise
        raise UserError(f"{one_line(error)} Does NUM_CLASSES fit the data set?") from error


def check_evaluators(cfg: CfgNode) -> None:
    """
    Raises:
        UserError: an evaluator is unknown; the message lists those that there are. Or a value of
            ``TEST.ODAM.EXPLANATION`` is out of its range.
    """
    names = cfg.TEST.ODAM.EVALUATORS
    if not isinstance(names, (list, tuple)):
        raise UserError(f"TEST.ODAM.EVALUATORS is {names!r}; it must be a list of names")
    for name in names:
        if not isinstance(name, str) or name not in _MORE:
            raise UserError(
                f"TEST.ODAM.EVALUATORS has {name!r}; there are {', '.join(sorted(_MORE))}"
            )
    if "explanation" in names:
        ExplanationProtocol.from_config(cfg)
    if "causal_recovery" in names:
        CausalRecoverySettings.from_config(cfg)
    if "sanity_checks" in names:
        SanityCheckSettings.from_config(cfg)
        for name in _OTHERS:
            key = f"TEST.ODAM.SANITY_CHECKS.{name}"
            check_text(key, cfg.TEST.ODAM.SANITY_CHECKS[name])
    if evaluates_maps(cfg) and not cfg.MODEL.ODAM.TARGETS:
        raise UserError("MODEL.ODAM.TARGETS is empty: there would be no maps to evaluate")


def _kinds(
    cfg: CfgNode, dataset_name: str, maps: bool = True
) -> list[Callable[..., DatasetEvaluator]]:
    crowds = MetadataCatalog.get(dataset_name).get("evaluator_type") == "crowdhuman"
    more = cfg.TEST.ODAM.EVALUATORS if "ODAM" in cfg.TEST else []
    more = [name for name in more if maps or name not in _OF_MAPS]
    return list(dict.fromkeys([_crowd if crowds else _coco, *(_MORE[name] for name in more)]))


def evaluated_use(cfg: CfgNode, dataset_name: str) -> DatasetUse:
    """What the evaluators of a data set look at in it."""
    kinds = _kinds(cfg, dataset_name)
    return DatasetUse(
        image_ids=True,
        coco=_coco in kinds,
        annotations=kinds != [_coco],
        masks=_explanation in kinds,
    )


def build_evaluator(
    cfg: CfgNode,
    dataset_name: str,
    model: nn.Module | None = None,
    folder: str = "inference",
    maps: bool = True,
) -> DatasetEvaluator:
    """
    The evaluator that a data set has by itself (``evaluator_type`` of its metadata), and those that
    ``TEST.ODAM.EVALUATORS`` names. They write to ``OUTPUT_DIR/FOLDER/DATASET``.

    Args:
        model: what is evaluated; without it, there is no deletion and insertion.
        folder: see above.
        maps: whether evaluators of heat maps are among them.
    """
    output_dir = os.path.join(cfg.OUTPUT_DIR, folder, dataset_name)
    kinds = _kinds(cfg, dataset_name, maps)
    evaluators = [kind(cfg, dataset_name, output_dir, model) for kind in kinds]
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)
