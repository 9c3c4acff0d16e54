"""How good heat maps are, on any data set with boxes, and better with masks."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from odam_d2.core.errors import InputError
from odam_d2.core.perturbation import auc
from odam_d2.core.ranges import check_number
from odam_d2.digests import describe
from odam_d2.fingerprint import entry_key
from odam_d2.structures import OdamMaps

from .explanation_files import remove_results, summarize, write_results
from .explanation_scores import Objects, score_maps
from .faithfulness import Faithfulness, FaithfulnessSettings
from .known_causes import match_to_objects
from .regions import box_regions, object_boxes, object_masks, true_objects
from .rows import RowFiles

__all__ = ["ExplanationEvaluator", "ExplanationProtocol"]

logger = logging.getLogger(__name__)

_RENDERED = 16  # maps that are rendered over the image at once


@dataclass(frozen=True)
class ExplanationProtocol:
    """
    Which detections are evaluated, and how.

    Attributes:
        score_thresh, iou_thresh: of detections.
        mask_thresholds: of the maps, for their IoU with masks.
        faithfulness: of deletion and insertion.
    """

    score_thresh: float = 0.1
    iou_thresh: float = 0.9
    mask_thresholds: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    faithfulness: FaithfulnessSettings = field(default_factory=FaithfulnessSettings)

    def __post_init__(self) -> None:
        prefix = "TEST.ODAM.EXPLANATION."
        for name in ("score_thresh", "iou_thresh"):
            check_number(prefix + name.upper(), getattr(self, name), "in [0, 1]", 0, 1)
        if not isinstance(self.mask_thresholds, tuple) or not self.mask_thresholds:
            raise InputError(
                f"{prefix}MASK_THRESHOLDS is {self.mask_thresholds!r}; it must be numbers in "
                "[0, 1), at least one"
            )
        for thresh in self.mask_thresholds:
            words = "numbers in [0, 1)"
            check_number(prefix + "MASK_THRESHOLDS", thresh, words, 0, 1, below=True)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> ExplanationProtocol:
        """Of ``cfg.TEST.ODAM.EXPLANATION``."""
        node = cfg.TEST.ODAM.EXPLANATION
        return cls(
            node.SCORE_THRESH,
            node.IOU_THRESH,
            tuple(node.MASK_THRESHOLDS or ()),
            FaithfulnessSettings.from_config(node.FAITHFULNESS),
        )


class ExplanationEvaluator(DatasetEvaluator):
    """
    Scores the field ``odam_maps`` of well-detected objects, see
    :data:`odam_d2.evaluation.explanation_scores.METRICS`; of signed maps the evidence for.

    Figures of an image go to a file as soon as they are there. Those of several processes are
    merged by image, so that it does not matter how many there were; each image must come to one of
    them. Make it in all processes.

    Args:
        dataset_name: a registered data set with boxes.
        output_dir: where rows, results and plots go; None for nowhere.
        protocol: which detections, and how.
        model: the detector, for deletion and insertion; None leaves them out.
        resume: keep the figures of images that ``output_dir`` has from an earlier run of the same
            ``settings`` and ``fingerprint``, and skip these images. Images whose file or entry in
            the data set has changed are evaluated again.
        settings: what else is told beside the results, such as the method and the weights.
        fingerprint: what else figures depend on, see :mod:`odam_d2.fingerprint`.
        images: ids of the images to evaluate, each of which must come; None for those that come.
        distributed: gather from all processes.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        protocol: ExplanationProtocol | None = None,
        *,
        model: nn.Module | None = None,
        resume: bool = False,
        settings: Mapping | None = None,
        fingerprint: Mapping | None = None,
        images: Sequence[object] | None = None,
        distributed: bool = True,
    ):
        self.protocol = protocol or ExplanationProtocol()
        self._name = dataset_name
        self._output_dir = output_dir
        self._distributed = distributed
        self._images = {x["image_id"]: x for x in DatasetCatalog.get(dataset_name)}
        self._numbers = {image_id: number for number, image_id in enumerate(self._images)}
        self._num_classes = len(MetadataCatalog.get(dataset_name).thing_classes)
        objects = [a for x in self._images.values() for a in true_objects(x)]
        if not objects:
            raise InputError(f"data set {dataset_name!r} has no object in any image")
        self._has_masks = all(a.get("segmentation") for a in objects)
        self._faithfulness = None
        if model is not None and self.protocol.faithfulness.per_image:
            self._faithfulness = Faithfulness(model, self.protocol.faithfulness)
        self._evaluated: list[dict] = []
        requested = {"dataset": dataset_name, "protocol": asdict(self.protocol), **(settings or {})}
        self._asked = images
        self._settings = {key: describe(value) for key, value in requested.items()}
        requested |= {"masks": self._has_masks, "classes": self._num_classes}
        self._rows = RowFiles(
            output_dir,
            {**requested, **(fingerprint or {})},
            # Its place, too: what takes the place of deleted pixels is drawn by it.
            {k: f"{self._numbers[k]} {entry_key(entry)}" for k, entry in self._images.items()},
            resume=resume,
            distributed=distributed,
        )

    @property
    def done(self) -> set:
        """Ids of the images that are done."""
        return set(self._rows.by_image)

    @property
    def rows(self) -> list[dict]:
        """What :meth:`evaluate` took the means of, one for each detection and target."""
        return self._evaluated

    def reset(self) -> None:
        self._evaluated = []
        self._rows.open()
        if not self._has_masks:
            logger.warning(
                "%s has objects without masks: pointing_mask, energy_mask, odi_mask and mask_iou "
                "are left out.",
                self._name,
            )

    def process(self, inputs: Sequence[dict], outputs: Sequence[dict]) -> None:
        for given, output in zip(inputs, outputs, strict=True):
            if given["image_id"] in self._rows.by_image:
                continue
            self._rows.add(given["image_id"], self._score(given, output["instances"]))

    def evaluate(self) -> dict:
        """
        Returns:
            Under ``"explanation-TARGET"`` the value of each metric, shares in percent,
            ``compactness`` in half diagonals of the object's box, with ``num_detections`` and
            ``num_images``.
        """
        by_image = self._rows.gather(self._asked)
        if by_image is None:  # another process has them all
            return {}
        images = list(by_image.values())
        self._evaluated = rows = [row for image in images for row in image["rows"]]
        if not rows:
            detections = sum(image["detections"] for image in images)
            logger.warning(
                "None of the %d detections in %d images of %s has a score above %g, the right "
                "class and an IoU of %g with its object (TEST.ODAM.EXPLANATION.SCORE_THRESH and "
                "IOU_THRESH): there is nothing to evaluate.",
                detections, len(images), self._name,
                self.protocol.score_thresh, self.protocol.iou_thresh,
            )  # fmt: skip
            if self._output_dir:
                remove_results(Path(self._output_dir))
            return {}
        results = summarize(rows, len(images))
        if self._output_dir:
            write_results(Path(self._output_dir), self._settings, results, rows)
        return results

    def _score(self, given: dict, found: Instances) -> dict:
        """What the rows of one image are, and how many detections it had."""
        entry = self._images.get(given["image_id"])
        if entry is None:
            raise InputError(
                f"image {given['image_id']!r} is not in the data set {self._name!r}; is that the "
                "one that the detector was run on?"
            )
        self._check(found)
        objects = true_objects(entry)
        height, width = found.image_size
        maps = found.get("odam_maps").positive()
        confident = found.scores > self.protocol.score_thresh
        chosen = confident.nonzero().squeeze(1)
        fields = ("pred_boxes", "scores", "pred_classes")
        plain = Instances((height, width), **{f: found.get(f)[chosen].to("cpu") for f in fields})
        boxes = object_boxes(objects)
        labels = torch.tensor([a["category_id"] for a in objects], dtype=torch.int64)
        pairs = match_to_objects(plain, Boxes(boxes), labels, self.protocol.iou_thresh)
        rows: list[dict] = []
        if not pairs:
            return {"detections": len(found), "rows": rows}
        masks = object_masks(objects, height, width) if self._has_masks else None
        regions = Objects(boxes, box_regions(boxes, height, width), masks)
        pairs = [(int(chosen[detection]), number) for detection, number in pairs]
        for target in maps.targets:
            of_target = maps.select(target)
            for start in range(0, len(pairs), _RENDERED):
                part = pairs[start : start + _RENDERED]
                detections, numbers = (list(column) for column in zip(*part, strict=True))
                heat = of_target[detections].dense(height, width)[:, 0]
                scores = score_maps(heat, numbers, regions, self.protocol.mask_thresholds)
                rows += [
                    {"image_id": given["image_id"], "object": number, "target": target,
                     "score": float(found.scores[detection]), **figures}
                    for detection, number, figures in zip(detections, numbers, scores, strict=True)
                ]  # fmt: skip
        self._add_curves(rows, given, found, maps, pairs, boxes)
        return {"detections": len(found), "rows": rows}

    def _add_curves(
        self,
        rows: list[dict],
        given: dict,
        found: Instances,
        maps: OdamMaps,
        pairs: list[tuple[int, int]],
        boxes: Tensor,
    ) -> None:
        """Deletion and insertion of the image's best pairs."""
        if self._faithfulness is None:
            return
        count = self.protocol.faithfulness.per_image
        count = len(pairs) if count < 0 else count
        size = tuple(given["image"].shape[-2:])
        scale = size[0] * size[1] / (found.image_size[0] * found.image_size[1])
        by_target = [t for t in maps.targets if t == "combined" or "class" in t]
        for place, (detection, number) in enumerate(pairs[:count]):
            extent = boxes[number, 2:] - boxes[number, :2]
            for target in by_target:
                heat = maps[detection].select(target).dense(*size)[0, 0]
                deletion, insertion = self._faithfulness.curves(
                    given,
                    found[detection],
                    heat,
                    float(extent.prod()) * scale,
                    1000 * self._numbers[given["image_id"]] + number,
                )
                row = rows[maps.targets.index(target) * len(pairs) + place]
                row |= {"deletion": float(auc(deletion)), "insertion": float(auc(insertion)),
                        "deletion_curve": deletion.tolist(),
                        "insertion_curve": insertion.tolist()}  # fmt: skip

    def _check(self, found: Instances) -> None:
        if not found.has("odam_maps"):
            raise InputError(
                "the detections carry no heat maps: set MODEL.ODAM.TARGETS, and a "
                "MODEL.META_ARCHITECTURE that explains (OdamRCNN, OdamRetinaNet, OdamFCOS)"
            )
        if len(found) and int(found.pred_classes.max()) >= self._num_classes:
            raise InputError(
                f"the detector found class {int(found.pred_classes.max())}, and {self._name!r} has "
                f"{self._num_classes} classes: was the detector trained on other categories?"
            )
