"""Detectron2's NMS, soft-NMS and Odam-NMS as entries of the registry."""

from __future__ import annotations

import math

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import batched_nms

from odam_d2.core import nms as core
from odam_d2.core.errors import InputError
from odam_d2.core.ranges import check_number, check_one_of

from .registry import ODAM_NMS_REGISTRY, Candidates

__all__ = ["Nms", "OdamNms", "SoftNms"]

_KEY = "MODEL.ODAM.NMS"


class Nms:
    """Detectron2's own NMS with the detector's own threshold, and a record of what it did."""

    needs_maps = False

    def __call__(self, candidates: Candidates) -> core.Suppression:
        """Choose among the candidates of one image."""
        boxes, scores, classes = candidates.boxes, candidates.scores, candidates.classes
        thresh = candidates.iou_thresh
        keep = batched_nms(boxes, scores, classes, thresh)
        found = core.nms(boxes, scores, classes, thresh)
        # Its arithmetic may differ from ours in the last digit: it decides, ours explains.
        found.suppressor[keep], found.iou[keep] = -1, torch.nan
        return found._replace(keep=keep, scores=scores[keep])


class SoftNms:
    """Soft-NMS (Bodla et al., ICCV 2017); detections have the lowered scores."""

    needs_maps = False

    @configurable
    def __init__(
        self,
        *,
        method: str = "linear",
        iou_thresh: float = 0.3,
        sigma: float = 0.5,
        score_thresh: float = 0.001,
    ):
        """
        Args:
            method, iou_thresh, sigma, score_thresh: as for :func:`odam_d2.core.nms.soft_nms`.
        """
        words = "in [0, 1]"
        check_number(f"{_KEY}.SOFT_IOU_THRESH", iou_thresh, words, 0, 1)
        check_number(f"{_KEY}.SOFT_SIGMA", sigma, "above 0", 0, math.inf, above=True, below=True)
        check_number(f"{_KEY}.SOFT_SCORE_THRESH", score_thresh, words, 0, 1)
        check_one_of(f"{_KEY}.SOFT_METHOD", method, ("linear", "gaussian"))
        self.options = {"iou_thresh": iou_thresh, "sigma": sigma, "score_thresh": score_thresh}
        self.method = method

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        node = cfg.MODEL.ODAM.NMS
        return {
            "method": node.SOFT_METHOD,
            "iou_thresh": node.SOFT_IOU_THRESH,
            "sigma": node.SOFT_SIGMA,
            "score_thresh": node.SOFT_SCORE_THRESH,
        }

    def __call__(self, candidates: Candidates) -> core.Suppression:
        """Choose among the candidates of one image."""
        return core.soft_nms(
            candidates.boxes, candidates.scores, candidates.classes, self.method, **self.options
        )


class OdamNms:
    """NMS by boxes and heat maps (Zhao and Chan, "ODAM", ICLR 2023, section 3.4)."""

    needs_maps = True

    @configurable
    def __init__(
        self,
        *,
        iou_thresh: float = 0.6,
        sim_thresh_high: float = 0.7,
        sim_thresh_low: float = 0.3,
        grid_stride: float = 16,
    ):
        """
        Args:
            iou_thresh, sim_thresh_high, sim_thresh_low: as for
                :func:`odam_d2.core.nms.odam_nms`.
            grid_stride: pixels of the network's input per cell of the grid on which maps are
                compared.
        """
        words = "in [0, 1]"
        check_number(f"{_KEY}.IOU_THRESH", iou_thresh, words, 0, 1)
        check_number(f"{_KEY}.SIM_THRESH_HIGH", sim_thresh_high, words, 0, 1)
        check_number(f"{_KEY}.SIM_THRESH_LOW", sim_thresh_low, words, 0, 1)
        if sim_thresh_high < sim_thresh_low:
            raise InputError(
                f"{_KEY}.SIM_THRESH_HIGH is {sim_thresh_high}, below {_KEY}.SIM_THRESH_LOW, "
                f"{sim_thresh_low}"
            )
        check_number(f"{_KEY}.GRID_STRIDE", grid_stride, "1 or more pixels", 1, 10**9)
        self.thresholds = (iou_thresh, sim_thresh_high, sim_thresh_low)
        self.grid_stride = grid_stride

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        node = cfg.MODEL.ODAM.NMS
        return {
            "iou_thresh": node.IOU_THRESH,
            "sim_thresh_high": node.SIM_THRESH_HIGH,
            "sim_thresh_low": node.SIM_THRESH_LOW,
            "grid_stride": node.GRID_STRIDE,
        }

    def __call__(self, candidates: Candidates) -> core.Suppression:
        """Choose among the candidates of one image."""
        boxes, scores, classes = candidates.boxes, candidates.scores, candidates.classes
        of_maps = candidates.correlation
        if of_maps is None:
            raise InputError("Odam-NMS compares heat maps, and these candidates have none")

        def correlation(index: torch.Tensor) -> torch.Tensor:
            return of_maps(index, self.grid_stride)

        return core.odam_nms(boxes, scores, classes, correlation, *self.thresholds)


@ODAM_NMS_REGISTRY.register()
def nms(cfg: CfgNode) -> Nms:
    """Detectron2's own, recorded."""
    return Nms()


@ODAM_NMS_REGISTRY.register()
def soft_nms(cfg: CfgNode) -> SoftNms:
    """Lower scores instead of suppressing."""
    return SoftNms(cfg)


@ODAM_NMS_REGISTRY.register()
def odam_nms(cfg: CfgNode) -> OdamNms:
    """Suppress by boxes and heat maps."""
    return OdamNms(cfg)
