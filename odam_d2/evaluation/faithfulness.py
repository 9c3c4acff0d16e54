"""
Deletion and insertion for detectors: how fast does a detection's score fall when the pixels that
its map calls important are replaced, and how fast does it come back when only they are shown?
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances, pairwise_iou
from torch import Tensor, nn

from odam_d2.core.perturbation import FILLS, filling, perturb, ranking
from odam_d2.core.ranges import check_number, check_one_of
from odam_d2.modeling.rereading import FOUND_AGAIN
from odam_d2.modeling.state import preserved
from odam_d2.modeling.views import with_overrides

__all__ = ["Faithfulness", "FaithfulnessSettings"]

_MOST = 10**9


@dataclass(frozen=True)
class FaithfulnessSettings:
    """
    Attributes:
        per_image: detections of each image, the best scores first; -1 is all, 0 none.
        steps: places of a curve after its start.
        fill: what takes the place of pixels, one of ``odam_d2.core.perturbation.FILLS``.
        batch_size: perturbed images that the detector sees at once.
        seed: of the random fill, and of the order of equal pixels.
    """

    per_image: int = 1
    steps: int = 10
    fill: str = "random"
    batch_size: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        prefix = "TEST.ODAM.EXPLANATION.FAITHFULNESS."
        check_one_of(prefix + "FILL", self.fill, FILLS)
        for name, least in (("per_image", -1), ("steps", 1), ("batch_size", 1), ("seed", -_MOST)):
            key, value = prefix + name.upper(), getattr(self, name)
            check_number(key, value, f"{least} or more", least, _MOST, whole=True)

    @classmethod
    def from_config(cls, node: CfgNode) -> FaithfulnessSettings:
        """Of ``cfg.TEST.ODAM.EXPLANATION.FAITHFULNESS``."""
        return cls(**{name.lower(): value for name, value in node.items()})


class Faithfulness:
    """
    Args:
        model: any detector in Detectron2's formats; left as it was.
        settings: how many pixels change how often, and to what.
    """

    def __init__(self, model: nn.Module, settings: FaithfulnessSettings):
        self.model = model
        self.settings = settings

    def curves(
        self, given: dict, detection: Instances, heat: Tensor, area: float, seed: int
    ) -> tuple[Tensor, Tensor]:
        """
        Deletion and insertion of one detection. As in the authors' protocol, as many pixels change
        as the object's box has, the same number at each step; the score is the best one of the same
        class whose box has an IoU of 0.5 or more with the detection's, and relative to its own.

        Args:
            given: the image, in Detectron2's input format.
            detection: one detection, boxes in the frame of the output.
            heat: (h, w), its map at the size of the network's input.
            area: of the object's box in pixels of the network's input.
            seed: of this object; the same for every map that is compared.

        Returns:
            Two curves (steps + 1,), from no pixel to all of them.
        """
        generator = torch.Generator().manual_seed(seed + 1_000_003 * self.settings.seed)
        image = given["image"]
        fill = filling(image, self.settings.fill, generator)
        order = ranking(heat.cpu(), generator)
        steps = self.settings.steps
        last = min(len(order), max(steps, round(area)))
        counts = [round(last * step / steps) for step in range(steps + 1)]
        both = [
            self._scores(given, detection, perturb(image, fill, order, counts, insertion))
            for insertion in (False, True)
        ]
        score = detection.scores.double().cpu()
        return both[0] / score, both[1] / score

    def _scores(self, given: dict, detection: Instances, images: Tensor) -> Tensor:
        scores = []
        with preserved(self.model) as model:
            # Without its own settings, a model of ours does not explain perturbed images.
            detector = with_overrides(model, odam=None, odam_training=None)
            for batch in images.split(self.settings.batch_size):
                # forward: the model's hooks are for the user's own images
                outputs = detector.forward([given | {"image": image} for image in batch])
                scores += [_best(detection, output["instances"]) for output in outputs]
        return torch.tensor(scores, dtype=torch.float64)


def _best(detection: Instances, now: Instances) -> float:
    iou = pairwise_iou(detection.pred_boxes, now.pred_boxes)[0]
    again = (iou >= FOUND_AGAIN) & (now.pred_classes == detection.pred_classes)
    return float(now.scores[again].max()) if again.any() else 0.0
