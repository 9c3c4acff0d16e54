"""Evaluating heat maps of several methods on the same detections."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    build_detection_test_loader,
)
from detectron2.evaluation import DatasetEvaluators, inference_on_dataset
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch import nn
from tqdm import tqdm

from odam_d2.data.checks import DatasetUse
from odam_d2.data.mapper import PictureMapper
from odam_d2.errors import UserError
from odam_d2.evaluation import (
    CausalRecoveryEvaluator,
    CausalRecoverySettings,
    ExplanationEvaluator,
    ExplanationProtocol,
    KnownCauseEvaluator,
    SanityCheckEvaluator,
    SanityCheckSettings,
)
from odam_d2.evaluation.explanation_files import compare_methods
from odam_d2.evaluation.known_causes import has_known_causes
from odam_d2.evaluation.recovery_files import compare_recovery
from odam_d2.evaluation.sanity_files import compare_sanity
from odam_d2.fingerprint import ONLY_FOR_TRAINING, of_detector
from odam_d2.modeling.attribution import method_names, preset_names
from odam_d2.modeling.mask_settings import StateSettings
from odam_d2.modeling.meta_arch import EXPLAINING
from odam_d2.modeling.settings import METHOD_SETTINGS, ExplainSettings, RiseSettings

from .building import building_errors
from .checks import check_classes, check_dataset
from .evaluators import check_evaluators, other_detectors
from .setup import merge_opts
from .weights import load_weights

__all__ = ["evaluate_methods"]

logger = logging.getLogger(__name__)

# Keys of MODEL.ODAM that say which maps are made, and nothing of what the detector says.
_OF_MAPS = tuple(
    f"MODEL.ODAM.{key}"
    for key in (
        "TARGETS",
        "METHOD",
        "PRESET",
        "SIGNED",
        "SCORE",
        "SMOOTHING_SIGMA",
        "LAYER",
        "NORM_STATISTICS",
        *(kind.NODE for kind in METHOD_SETTINGS.values()),
    )
)

# What evaluators of their own tell by themselves, the first of them aside.
_OF_EVALUATORS = tuple(
    f"TEST.ODAM.{node}" for node in ("EXPLANATION", "CAUSAL_RECOVERY", "SANITY_CHECKS")
)

# Settings of methods, and of presets that are such a method.
_SETTINGS = {**METHOD_SETTINGS, "faithful": RiseSettings}

# Methods that look for detections again, and read no logits.
_OF_DETECTIONS = ("d_close", "d_rise", "vps")


def evaluate_methods(
    cfg: CfgNode, methods: Sequence[str], output: Path, num_images: int | None = None
) -> dict[str, dict[str, dict]]:
    """
    Evaluate the maps of every method on every data set of ``DATASETS.TEST``. Figures of an image
    are kept as soon as they are there: after an interruption, the same call goes on.

    Args:
        cfg: of the detector, with ``MODEL.ODAM`` and ``TEST.ODAM``. Of a plain meta-architecture of
            Detectron2, the one that explains is built.
        methods: of ``MODEL.ODAM.METHOD``, each with settings of its own behind it if need be:
            ``"odam:layer=res2,smoothing_sigma=1.5"``. D-RISE explains the class only.
        output: a folder for every data set and in it for every method.
        num_images: the first so many images of each data set; None for all.

    Returns:
        ``{dataset: {method: {task: {metric: value}}}}``.

    Raises:
        UserError: a method is unknown, a data set is missing or has other classes than the
            detector.
    """
    check_evaluators(cfg)
    cfg = cfg.clone()
    cfg.defrost()
    plain = cfg.MODEL.META_ARCHITECTURE
    cfg.MODEL.META_ARCHITECTURE = EXPLAINING.get(plain, plain)
    cfg.freeze()
    for name in cfg.DATASETS.TEST:
        check_dataset(name, DatasetUse(annotations=True, image_ids=True, masks=True))
    configs = {method: _config(cfg, method, output) for method in methods}
    settings = {method: ExplainSettings.from_config(configs[method]) for method in methods}
    with building_errors():
        model = build_model(cfg)
    for name in cfg.DATASETS.TEST:
        for of_method in settings.values():
            check_classes(model, name, of_method)
    load_weights(model, cfg.MODEL.WEIGHTS)
    others = other_detectors(cfg, model) if "sanity_checks" in cfg.TEST.ODAM.EVALUATORS else {}
    results: dict[str, dict[str, dict]] = {}
    for name in cfg.DATASETS.TEST:
        results[name], rows, effects, similarities = {}, {}, {}, {}
        for method in methods:
            model.odam = settings[method]
            images = [entry["image_id"] for entry in DatasetCatalog.get(name)[:num_images]]
            folder = output / name / method
            evaluators = _evaluators(configs[method], name, folder, model, images)
            if "causal_recovery" in cfg.TEST.ODAM.EVALUATORS:
                evaluators.append(_recovery(cfg, configs[method], name, folder, model, images))
            if "sanity_checks" in cfg.TEST.ODAM.EVALUATORS:
                evaluators.append(_sanity(configs[method], name, folder, model, images, others))
            results[name][method] = _evaluate(cfg, name, method, model, evaluators, num_images)
            rows[method] = evaluators[0].rows
            for evaluator in evaluators:  # of the process that has them all
                if getattr(evaluator, "effects", None):
                    effects[method] = evaluator.effects
                if getattr(evaluator, "similarities", None):
                    similarities[method] = evaluator.similarities
        if comm.is_main_process():
            compare_methods(output / name, results[name], rows)
            if effects:
                compare_recovery(output / name, effects)
            if similarities:
                compare_sanity(output / name, similarities)
    return results


def _config(cfg: CfgNode, method: str, output: Path) -> CfgNode:
    """That of one method."""
    method, _, settings = method.partition(":")
    if method not in (names := [*method_names(), *preset_names()]):
        raise UserError(f"unknown method {method!r}; there are {', '.join(names)}")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.ODAM.PRESET = method if method in preset_names() else ""
    cfg.MODEL.ODAM.METHOD = "odam" if cfg.MODEL.ODAM.PRESET else method
    if cfg.MODEL.ODAM.PRESET:
        cfg.MODEL.ODAM.SMOOTHING_SIGMA, cfg.MODEL.ODAM.LAYER = 0.0, ""
    if method == "d_rise":
        cfg.MODEL.ODAM.TARGETS = ["class"]
    if method in _OF_DETECTIONS:
        cfg.MODEL.ODAM.SCORE = "probability"
        if "sanity_checks" in cfg.TEST.ODAM.EVALUATORS:
            raise UserError(
                f"sanity checks read decisions in place, and {method!r} looks for final "
                "detections; leave it out"
            )
    own = _SETTINGS.get(method)
    if own is not None and issubclass(own, StateSettings):
        # Settings of the others that are compared: these differentiate nothing.
        cfg.MODEL.ODAM.SMOOTHING_SIGMA, cfg.MODEL.ODAM.LAYER = 0.0, ""
        node = cfg.MODEL.ODAM[own.NODE]
        node.STATE_DIR = node.STATE_DIR or str(output / own.NODE.lower())
    for setting in filter(None, settings.split(",")):
        key, _, value = setting.partition("=")
        merge_opts(cfg, [f"MODEL.ODAM.{key.strip().upper()}", value.strip()])
    cfg.freeze()
    return cfg


def _fingerprint(cfg: CfgNode, settings: ExplainSettings, *without: str) -> dict:
    """What figures depend on, beside the images, without some more keys."""
    left_out = ONLY_FOR_TRAINING | dict.fromkeys(without, "of another evaluator or method")
    left_out["TEST.ODAM.EVALUATORS"] = "which figures there are"
    own = _SETTINGS.get(settings.preset or str(settings.method))
    others = {kind for kind in METHOD_SETTINGS.values() if kind is not own}
    left_out |= {f"MODEL.ODAM.{kind.NODE}": "of another method" for kind in others}
    return {**of_detector(cfg, left_out), "class_names": settings.class_names}


def _recovery(
    base: CfgNode, cfg: CfgNode, name: str, folder: Path, model: nn.Module, images: list
) -> CausalRecoveryEvaluator:
    """Of one method; what does not depend on maps is shared by all, and depends on ``base``."""
    settings = ExplainSettings.from_config(cfg)
    others = _OF_EVALUATORS  # causal recovery tells by itself
    return CausalRecoveryEvaluator(
        name,
        str(folder / "causal_recovery"),
        CausalRecoverySettings.from_config(cfg),
        model=model,
        references=str(folder.parent / "causal_references"),
        targets=list(base.MODEL.ODAM.TARGETS),
        resume=True,
        fingerprint=_fingerprint(cfg, settings, *others),
        references_fingerprint=_fingerprint(base, settings, *others, *_OF_MAPS),
        images=images,
    )


def _sanity(
    cfg: CfgNode,
    name: str,
    folder: Path,
    model: nn.Module,
    images: list,
    others: dict[str, nn.Module],
) -> SanityCheckEvaluator:
    """Of one method."""
    return SanityCheckEvaluator(
        name,
        str(folder / "sanity_checks"),
        SanityCheckSettings.from_config(cfg),
        model=model,
        others=others,
        resume=True,
        fingerprint=_fingerprint(cfg, ExplainSettings.from_config(cfg), *_OF_EVALUATORS),
        images=images,
    )


def _evaluators(cfg: CfgNode, name: str, folder: Path, model: nn.Module, images: list) -> list:
    settings = ExplainSettings.from_config(cfg)
    fingerprint = _fingerprint(cfg, settings, *_OF_EVALUATORS[1:])
    found: list = [
        ExplanationEvaluator(
            name,
            str(folder),
            ExplanationProtocol.from_config(cfg),
            model=model,
            resume=True,
            settings={"method": settings.method, "weights": cfg.MODEL.WEIGHTS},
            fingerprint=fingerprint,
            images=images,
        )
    ]
    if has_known_causes(name):
        causes = str(folder / "known_causes")
        found.append(
            KnownCauseEvaluator(name, causes, resume=True, fingerprint=fingerprint, images=images)
        )
    return found


def _evaluate(
    cfg: CfgNode,
    name: str,
    method: str,
    model: nn.Module,
    evaluators: list,
    num_images: int | None,
) -> dict:
    entries = DatasetCatalog.get(name)[:num_images]
    done = set.intersection(*(evaluator.done for evaluator in evaluators))
    todo = [entry for entry in entries if entry["image_id"] not in done]
    if len(todo) < len(entries):
        logger.info("%s on %s: %d of %d images are done.",
                    method, name, len(entries) - len(todo), len(entries))  # fmt: skip
    evaluator = DatasetEvaluators(evaluators)
    if not todo:  # a loader of nothing cannot be built
        evaluator.reset()
        return evaluator.evaluate()
    # InferenceSampler gives each process its own part.
    loader = build_detection_test_loader(
        todo, mapper=PictureMapper(cfg, False), num_workers=cfg.DATALOADER.NUM_WORKERS
    )
    bar = tqdm(loader, f"{method} on {name}", unit="image", disable=not comm.is_main_process())
    try:
        return inference_on_dataset(model, bar, evaluator)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"after {len(evaluators[0].done)} images of {name}, which are kept: the same command "
            "goes on from there"
        ) from None
