"""
D-RISE: the method that asks nothing of a detector but to run, thousands of times (Petsiuk et al.,
CVPR 2021). For comparison with the maps that gradients give.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from detectron2.structures import Instances, pairwise_iou
from torch import Tensor
from tqdm import tqdm

from odam_d2.core.rise import reliability, rise_mask, similarity
from odam_d2.structures import OdamMaps

from .settings import DRiseSettings

__all__ = ["PROBABILITIES", "STRIDE", "d_rise_maps"]

logger = logging.getLogger(__name__)

PROBABILITIES = "class_probabilities"
"""Field (N, K) of the detections, where their detector tells."""

STRIDE = 4
"""Pixels per cell of the maps: masks vary no faster, and a sum of 5,000 fits into memory."""


class _Sums:
    """
    Sums of masks weighted by similarity, of even and of odd ones apart, kept in a file.

    Attributes:
        halves: (2, N, h, w) float64.
        count: masks so far.
    """

    def __init__(self, shape: tuple[int, int, int], path: Path | None):
        self.path = path
        self.halves = torch.zeros(2, *shape, dtype=torch.float64)
        self.count = 0
        if path is not None and path.is_file():
            state = torch.load(path, weights_only=True)
            self.halves, self.count = state["halves"], state["count"]

    def add(self, weights: Tensor, cells: Tensor) -> None:
        """Add masks (B, h, w), by how much of each detection they left (B, N)."""
        for weight, mask in zip(weights.double(), cells.double(), strict=True):
            self.halves[self.count % 2] += weight[:, None, None] * mask
            self.count += 1

    def save(self) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_suffix(".tmp")
        torch.save({"halves": self.halves, "count": self.count}, unfinished)
        unfinished.replace(self.path)

    @property
    def mean(self) -> Tensor:
        return self.halves.sum(dim=0) / max(1, self.count)


def d_rise_maps(
    detect: Callable[[list[dict]], list[dict]],
    given: dict,
    found: Instances,
    targets: tuple[str, ...],
    settings: DRiseSettings,
) -> OdamMaps:
    """
    One map for each detection of an image, the same for every target.

    A map is the mean over masks of the mask times how much of the detection is found in the masked
    image, see :func:`odam_d2.core.rise.similarity`; its cells are means over 4 x 4 pixels. Memory
    does not depend on the number of masks. After Ctrl-C, what was summed is kept where
    ``settings.state_dir`` says.

    Args:
        detect: the detector, in Detectron2's formats.
        given: the image, in Detectron2's input format.
        found: its detections. Where ``detect`` gives no field ``class_probabilities``, a detection
            counts as certain of its class.
        targets: names for the maps.
        settings: how many masks, and of what kind.
    """
    image = given["image"]
    size = tuple(image.shape[-2:])
    grid = tuple(-(-side // STRIDE) for side in size)
    sums = _Sums((len(found), *grid), _state_file(given, found, settings))
    if len(found):
        _run(detect, given, found, settings, sums)
    pair = torch.ones(len(found), 2, dtype=torch.int64)
    maps = OdamMaps(
        targets,
        sums.mean[:, None].expand(-1, len(targets), -1, -1).to(found.scores),
        origins=torch.zeros_like(pair),
        strides=torch.full((len(found),), float(STRIDE)),
        grid_sizes=pair * torch.tensor(grid),
        image_sizes=pair * torch.tensor(size),
        levels=torch.zeros_like(pair[:, 0]),
    )
    return maps.to(found.scores.device)


def _run(
    detect: Callable, given: dict, found: Instances, settings: DRiseSettings, sums: _Sums
) -> None:
    wanted = _probabilities(found, found)
    bar = tqdm(total=settings.num_masks, initial=sums.count, desc="D-RISE", unit="mask",
               leave=False, disable=None)  # fmt: skip
    try:
        while sums.count < settings.num_masks:
            numbers = range(sums.count, min(sums.count + settings.batch_size, settings.num_masks))
            masks = torch.stack([_mask(given, number, settings) for number in numbers])
            outputs = detect([_masked(given, mask) for mask in masks])
            weights = torch.stack(
                [_similarity(found, wanted, output["instances"]) for output in outputs]
            )
            before = sums.count // settings.check_every
            sums.add(weights.cpu(), _cells(masks))
            bar.update(len(numbers))
            if sums.count // settings.check_every > before:
                sums.save()
                least = float(reliability(*sums.halves).min())
                bar.set_postfix_str(f"reliability {least:.3f}")
                if least >= settings.settled:
                    break
    finally:
        bar.close()
        sums.save()


def _mask(given: dict, number: int, settings: DRiseSettings) -> Tensor:
    """Of its number alone, so that batches, and where a run was interrupted, do not matter."""
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + number)
    size = tuple(given["image"].shape[-2:])
    return rise_mask(size, (settings.grid, settings.grid), settings.keep_prob, generator)


def _masked(given: dict, mask: Tensor) -> dict:
    image = given["image"]
    return given | {"image": image * mask.to(image.device)}


def _cells(masks: Tensor) -> Tensor:
    """Means (B, h, w) over cells; those at the border over what is inside."""
    return F.avg_pool2d(masks[:, None], STRIDE, ceil_mode=True)[:, 0]


def _similarity(found: Instances, wanted: Tensor, now: Instances) -> Tensor:
    iou = pairwise_iou(found.pred_boxes, now.pred_boxes)
    return similarity(iou, wanted, _probabilities(now, found))


def _probabilities(found: Instances, like: Instances) -> Tensor:
    """(N, K), of the detector or certain ones."""
    if found.has(PROBABILITIES):
        return found.get(PROBABILITIES)
    labels, known = found.pred_classes, like.pred_classes
    # Without knowing how many classes there are: those of the detections in question.
    return (labels[:, None] == known.unique()[None]).to(found.scores)


def _state_file(given: dict, found: Instances, settings: DRiseSettings) -> Path | None:
    """Named after all that the sums depend on."""
    if not settings.state_dir:
        return None
    parts = [given["image"], found.pred_boxes.tensor, found.pred_classes]
    digest = hashlib.sha1(repr((settings.grid, settings.keep_prob, settings.seed)).encode())
    for part in parts:
        digest.update(part.detach().cpu().contiguous().numpy().tobytes())
    return Path(settings.state_dir) / f"d_rise_{digest.hexdigest()[:20]}.pth"
