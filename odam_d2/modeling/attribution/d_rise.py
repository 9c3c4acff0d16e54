"""
D-RISE: the method that asks nothing of a detector but to run, thousands of times (Petsiuk et al.,
CVPR 2021). For comparison with the maps that gradients give.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from detectron2.structures import Instances, pairwise_iou
from torch import Tensor
from tqdm import tqdm

from odam_d2.core.errors import InputError
from odam_d2.core.gradients import precise
from odam_d2.core.masks import STRIDE
from odam_d2.core.rise import reliability, rise_mask, similarity
from odam_d2.digests import describe, digest
from odam_d2.fingerprint import versions
from odam_d2.modeling.adapters.base import Adapter
from odam_d2.modeling.adapters.outputs import OutputsTrace
from odam_d2.modeling.adapters.trace import Trace
from odam_d2.modeling.settings import DRiseSettings, ExplainSettings
from odam_d2.modeling.targets import Targets
from odam_d2.structures import OdamMaps

from .found_again import class_probabilities, detections_of
from .geometry import image_geometry
from .masked_runs import StateFile, cell_means, in_batches, refuse
from .registry import ODAM_METHOD_REGISTRY, Method

__all__ = ["DRise", "d_rise_maps"]


@dataclass(frozen=True)
class DRise(Method):
    """
    The method. It explains a detection as a whole, so all targets have the same map.

    Attributes:
        settings: of ``MODEL.ODAM.D_RISE``.
    """

    settings: DRiseSettings = field(default_factory=DRiseSettings)

    def algorithm(self, adapter: Adapter) -> str:
        return "masked images"

    def __call__(self, adapter: Adapter, trace: Trace | OutputsTrace, targets: Targets) -> OdamMaps:
        again = trace.detect
        if again is None:
            raise InputError("D-RISE explains what was detected; boxes need another method")
        detector = {
            "model": adapter.model,
            "norm_statistics": adapter.norm_statistics,  # which an NMS on maps goes by
            "nms": trace.nms,
        }
        found = detections_of(adapter, trace)

        def detect(inputs: list[dict]) -> list[dict]:
            return [{"instances": x} for x in detections_of(adapter, again(inputs))]

        return OdamMaps.cat(
            [
                d_rise_maps(detect, *of_image, tuple(targets.names), self.settings, detector)
                for of_image in zip(trace.inputs, found, strict=True)
            ]
        )


@ODAM_METHOD_REGISTRY.register()
def d_rise(settings: ExplainSettings) -> DRise:
    """D-RISE (Petsiuk et al., CVPR 2021)."""
    refuse(settings, "D-RISE", {"score": "probability", "smoothing_sigma": 0, "layer": ""})
    wrong = sorted(set(settings.targets) - {"class", "combined"})
    if wrong:
        raise InputError(
            f"D-RISE explains a detection as a whole, so {settings.argument('targets')} must be "
            f"'class' (or 'combined', which is the same map), not {', '.join(map(repr, wrong))}"
        )
    return DRise(settings.d_rise)


class _Sums:
    """
    Sums of masks weighted by similarity, of even and of odd ones apart, kept in a file.

    Attributes:
        halves: (2, N, h, w) float64.
        count: masks so far.
        settled: whether that is enough, whatever their number.

    Args:
        shape: (N, h, w).
        file: where they are kept.
    """

    def __init__(self, shape: tuple[int, int, int], file: StateFile):
        self.file = file
        self.halves, self.count = torch.zeros(2, *shape, dtype=torch.float64), 0
        self.settled = False
        state = file.read(self._is_state)
        if state is not None:
            self.halves, self.count = state["halves"], state["count"]
            self.settled = state["settled"]

    def _is_state(self, state: dict) -> bool:
        halves = state["halves"]
        return (
            (halves.shape, halves.dtype) == (self.halves.shape, self.halves.dtype)
            and bool(halves.isfinite().all())
            and state["count"] >= 0
            and isinstance(state["settled"], bool)
        )

    def add(self, weights: Tensor, cells: Tensor) -> None:
        """Add masks (B, h, w), by how much of each detection they left (B, N)."""
        halves, count = self.halves.clone(), self.count
        for weight, mask in zip(weights.double(), cells.double(), strict=True):
            halves[count % 2] += weight[:, None, None] * mask
            count += 1
        # At once, so that Ctrl-C finds all of the masks in the sums or none.
        self.halves, self.count = halves, count

    def save(self) -> None:
        self.file.write({"halves": self.halves, "count": self.count, "settled": self.settled})

    @property
    def mean(self) -> Tensor:
        return self.halves.sum(dim=0) / max(1, self.count)


def d_rise_maps(
    detect: Callable[[list[dict]], list[dict]],
    given: dict,
    found: Instances,
    targets: tuple[str, ...],
    settings: DRiseSettings,
    detector: object = None,
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
        detector: what ``detect`` depends on: sums of another one are not gone on with.
    """
    image = given["image"]
    size = tuple(image.shape[-2:])
    grid = tuple(-(-side // STRIDE) for side in size)
    about = [image, found.pred_boxes.tensor, found.pred_classes]
    file = StateFile.of(settings, about, lambda: _fingerprint(found, settings, detector))
    sums = _Sums((len(found), *grid), file)
    if len(found):
        _run(detect, given, found, settings, sums)
    values = sums.mean[:, None].expand(-1, len(targets), -1, -1).to(precise(found.scores))
    of_image = torch.zeros(len(found), dtype=torch.int64, device=values.device)
    return OdamMaps(targets, values, **image_geometry(of_image, [size], values, STRIDE))


def _run(
    detect: Callable, given: dict, found: Instances, settings: DRiseSettings, sums: _Sums
) -> None:
    wanted = class_probabilities(found, found)

    def see(numbers: range) -> None:
        masks = torch.stack([_mask(given, number, settings) for number in numbers])
        outputs = detect([_masked(given, mask) for mask in masks])
        weights = torch.stack(
            [_similarity(found, wanted, output["instances"]) for output in outputs]
        )
        sums.add(weights.cpu(), cell_means(masks))

    def settled(bar: tqdm) -> bool:
        least = float(reliability(*sums.halves).min())
        bar.set_postfix_str(f"reliability {least:.3f}")
        sums.settled = least >= settings.settled
        return sums.settled

    if not sums.settled:
        in_batches("D-RISE", sums.count, settings, see, sums.save, settled)


def _mask(given: dict, number: int, settings: DRiseSettings) -> Tensor:
    """Of its number alone, so that batches, and where a run was interrupted, do not matter."""
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + number)
    size = tuple(given["image"].shape[-2:])
    return rise_mask(size, (settings.grid, settings.grid), settings.keep_prob, generator)


def _masked(given: dict, mask: Tensor) -> dict:
    image = given["image"]
    return given | {"image": image * mask.to(image.device)}


def _similarity(found: Instances, wanted: Tensor, now: Instances) -> Tensor:
    iou = pairwise_iou(found.pred_boxes, now.pred_boxes)
    return similarity(iou, wanted, class_probabilities(now, found))


def _fingerprint(found: Instances, settings: DRiseSettings, detector: object) -> dict:
    """
    What else sums depend on. All settings: where they stop depends on how many masks there may be,
    when it is looked at, and in which batches they come.
    """
    return {
        "settings": describe(replace(settings, state_dir="", named_by_keys=False)),
        "detector": digest(detector),
        "probabilities": digest(class_probabilities(found, found)),
        "versions": versions(),
    }
