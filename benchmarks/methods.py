"""What ODAM and the methods it is compared with cost, on one image, in one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode

from odam_d2.core.targets import DEFAULT_TARGETS
from odam_d2.engine.detector import set_score_threshold
from odam_d2.modeling.explain import explain
from odam_d2.modeling.settings import DRiseSettings
from odam_d2.modeling.state import preserved
from odam_d2.modeling.views import with_overrides

from .timing import seconds, time_figures, timed_in_turns
from .untrained import build_for_timing

__all__ = ["measure_methods"]


def measure_methods(
    cfg: CfgNode, size: tuple[int, int], instances: int, masks: int, runs: int
) -> dict:
    """
    Time plain inference, and inference with the class map of every detection by each method.

    Args:
        cfg: config of the detector. The score threshold is lowered to 0.
        size: (height, width) of the image in pixels, as the network gets it.
        instances: detections.
        masks: of D-RISE that are timed; its seconds are extrapolated to as many as
            ``MODEL.ODAM.D_RISE.NUM_MASKS`` says, since each one costs the same.
        runs: timed runs of inference and ODAM; their medians count. The others run once.

    Returns:
        Seconds per image, those of several runs with their range (``forward_s_range`` and so on):
        ``forward_s``, ``odam_s``, ``odam_all_targets_s`` (class and sides),
        ``grad_cam_s`` (Grad-CAM++ costs the same), ``d_rise_s`` (extrapolated from
        ``d_rise_timed_masks`` to ``d_rise_masks``), and ``d_rise_over_odam``.
    """
    cfg = cfg.clone()
    cfg.defrost()
    set_score_threshold(cfg, 0.0)
    cfg.TEST.DETECTIONS_PER_IMAGE = instances
    total = cfg.MODEL.ODAM.D_RISE.NUM_MASKS
    model = build_for_timing(cfg)
    inputs = [{"image": torch.randint(0, 256, (3, *size)).float()}]
    plain = with_overrides(model, odam=None, odam_training=None)
    few = DRiseSettings(num_masks=masks, batch_size=cfg.MODEL.ODAM.D_RISE.BATCH_SIZE)

    def by(method: str, targets: tuple[str, ...] = ("class",)) -> Callable[[], object]:
        # D-RISE differentiates nothing.
        own: dict = {"score": "probability", "smoothing_sigma": 0.0} if method == "d_rise" else {}
        return lambda: explain(model, inputs, targets, method=method, d_rise=few, **own)

    with preserved(model):
        found = len(plain(inputs)[0]["instances"])
        ways = [lambda: plain(inputs), by("odam"), by("odam", DEFAULT_TARGETS)]
        times = timed_in_turns(ways, runs, "inference and ODAM")
        names = ("forward", "odam", "odam_all_targets")
        figures: dict[str, Any] = {}
        for name, of_way in zip(names, times, strict=True):
            figures |= time_figures(name, of_way)
        slow = {method: seconds(by(method)) for method in ("grad_cam", "d_rise")}
    forward = figures["forward_s"]
    slow["d_rise"] = forward + (slow["d_rise"] - forward) * total / masks
    return {
        "num_instances": found,
        **figures,
        **{f"{method}_s": value for method, value in slow.items()},
        "d_rise_timed_masks": masks,
        "d_rise_masks": total,
        "d_rise_over_odam": slow["d_rise"] / figures["odam_s"],
    }
