"""What Odam-NMS costs: inference with it and without, in turns, in one process."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from odam_d2.engine.detector import set_score_threshold
from odam_d2.errors import UserError
from odam_d2.modeling.explanation import Explanation
from odam_d2.modeling.nms import Nms
from odam_d2.modeling.settings import ExplainSettings
from odam_d2.modeling.state import preserved

from .timing import ratio_figures, time_figures, timed_in_turns
from .untrained import build_for_timing

__all__ = ["measure_nms"]


def measure_nms(cfg: CfgNode, size: tuple[int, int], candidates: int, runs: int) -> dict:
    """
    Time inference of a detector on one image that has so many candidates above its score threshold.

    Args:
        cfg: config of the detector, with ``MODEL.ODAM.NMS.NAME``. The score threshold is set so
            that there are as many candidates as asked for.
        size: (height, width) of the image in pixels, as the network gets it.
        candidates: above the score threshold.
        runs: timed runs of each way; their medians count.

    Returns:
        ``plain_s``, ``nms_s`` and ``nms_ratio`` (theirs; also as ``nms_ratio_median``), each with
        its range, ``num_candidates``, ``num_kept`` and ``num_plain``, detections with and without.
    """
    settings = ExplainSettings.from_config(cfg)
    if settings.nms is None:
        raise UserError("--nms measures one: name it, MODEL.ODAM.NMS.NAME odam_nms")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.ODAM.TARGETS, cfg.MODEL.ODAM.NMS.NAME = [], ""
    set_score_threshold(cfg, 0.0)
    model = build_for_timing(cfg)
    inputs = [{"image": torch.randint(0, 256, (3, *size)).float()}]
    _limit_candidates(model, inputs, candidates)
    explanation = Explanation.of(model, ExplainSettings(targets=(), nms=settings.nms, record=True))
    plain = functools.partial(explanation.adapter.model, inputs)
    ways: list[Callable[[], Any]] = [
        plain,
        lambda: explanation.run(inputs, lambda view: view(inputs)),
    ]
    with preserved(model):
        found = [way()[0] for way in ways]
        plain_times, our_times = timed_in_turns(ways, runs, "inference, plain and ours")
    return {
        **time_figures("plain", plain_times),
        **time_figures("nms", our_times),
        **ratio_figures("nms", our_times, plain_times),
        "num_candidates": len(found[1]["candidates"]),
        "num_plain": len(found[0]["instances"]),
        "num_kept": len(found[1]["instances"]),
    }


def _limit_candidates(model: nn.Module, inputs: list[dict], candidates: int) -> None:
    """Set the score threshold below the candidates that are wanted."""
    explanation = Explanation.of(model, ExplainSettings(targets=(), nms=Nms(), record=True))
    with preserved(model):
        (found,) = explanation.run(inputs, lambda view: view(inputs))
    scores = found["candidates"].scores
    if len(scores) < candidates:
        raise UserError(f"the detector has {len(scores)} candidates only, not {candidates}")
    threshold = float(scores.sort(descending=True).values[candidates - 1 : candidates + 1].mean())
    owners: list[Any] = [m for m in model.modules() if hasattr(m, "test_score_thresh")]
    for module in owners:
        module.test_score_thresh = threshold
