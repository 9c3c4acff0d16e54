"""
Do maps show causes? What a map points at is removed from the image, and the detector is asked
again: it should change its mind as much as when the true cause is removed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pycocotools.mask as mask_utils
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from torch import Tensor, nn

from odam_d2.core.errors import InputError
from odam_d2.digests import describe
from odam_d2.fingerprint import entry_key
from odam_d2.modeling.rereading import Rereading, rereading

from .causal_effects import CausalEffects, CausalRecoverySettings, ExplainedObject
from .found_objects import found_objects, next_entries, picture_at
from .known_causes import has_known_causes
from .recovery import Effects, summarize
from .recovery_files import write_recovery
from .regions import object_boxes, true_objects
from .removal import Patch, Removal
from .rows import RowFiles

__all__ = ["CausalRecoveryEvaluator"]

SHARE = 0.25
"""Side of a patch, of the box's, where no part is annotated: a 16th of the box, as a badge has."""


class CausalRecoveryEvaluator(DatasetEvaluator):
    """
    Effects of removing what maps point at, and of removing the true causes, see
    :mod:`odam_d2.evaluation.recovery`.

    Objects are those that are wholly visible, where that is annotated, and found with the right
    class. Where ``part_segmentations`` tell the true cause of a target, a patch of its shape is
    removed; elsewhere a rectangle of a 16th of the box, and the best place of a grid takes the
    place of the truth. What does not depend on maps is kept in ``references`` for all methods.

    Args:
        dataset_name: a registered data set with boxes.
        output_dir: where figures go; None for nowhere.
        settings: which objects, and how.
        model: the detector.
        references: folder of the effects that do not depend on maps; None for nowhere.
        targets: those of the references; None for those of the maps.
        resume, images: as for ``ExplanationEvaluator``.
        fingerprint: what else figures depend on.
        references_fingerprint: the same of references.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        settings: CausalRecoverySettings | None = None,
        *,
        model: nn.Module,
        references: str | None = None,
        targets: Sequence[str] | None = None,
        resume: bool = False,
        fingerprint: Mapping | None = None,
        references_fingerprint: Mapping | None = None,
        images: Sequence[object] | None = None,
    ):
        self.settings = settings or CausalRecoverySettings()
        self._model, self._targets, self._asked = model, targets, images
        self._output_dir = output_dir
        entries = DatasetCatalog.get(dataset_name)
        self._images = {x["image_id"]: x for x in entries}
        self._next = next_entries(self._images)
        self._numbers = {image_id: number for number, image_id in enumerate(self._images)}
        self._parts_known = has_known_causes(dataset_name)
        if "other" in self.settings.fills and len(entries) < 2:
            raise InputError(
                f"data set {dataset_name!r} has one image; TEST.ODAM.CAUSAL_RECOVERY.FILLS 'other' "
                "needs two"
            )
        keys = {
            image_id: f"{self._numbers[image_id]} {entry_key(entry)} "
            f"{entry_key(self._next[image_id])}"
            for image_id, entry in self._images.items()
        }
        asked = {"dataset": dataset_name, "causal_recovery": describe(asdict(self.settings))}
        self._rows, self._references = (
            RowFiles(folder, {**asked, **(more or {})}, keys, resume=resume)
            for folder, more in (
                (output_dir, fingerprint),
                (references, {"targets": targets, **(references_fingerprint or {})}),
            )
        )
        self.effects: Effects | None = None

    @property
    def done(self) -> set:
        """Ids of the images that are done."""
        return self._rows.by_image.keys() & self._references.by_image.keys()

    def reset(self) -> None:
        self._rows.open()
        self._references.open()
        self.effects = None

    def process(self, inputs: Sequence[dict], outputs: Sequence[dict]) -> None:
        for given, output in zip(inputs, outputs, strict=True):
            if given["image_id"] not in self.done:
                self._process(given, output["instances"])

    def evaluate(self) -> dict:
        """
        Returns:
            Under ``"causal_recovery"``, recovery with the first fill in percent for each target,
            and for all sides, in both readings; with ``num_objects``.
        """
        rows, references = (files.gather(self._asked) for files in (self._rows, self._references))
        if rows is None or references is None:  # another process has them all
            return {}
        self.effects = Effects.of(
            rows, references, self.settings.fills, self.settings.areas, self._parts_known
        )
        if self._output_dir:
            write_recovery(Path(self._output_dir), self.effects)
        return {"causal_recovery": summarize(self.effects)}

    def _process(self, given: dict, found: Instances) -> None:
        image_id = given["image_id"]
        mine = [name for name in found.odam_maps.targets if name != "combined"]
        for_all = mine if self._targets is None else [t for t in self._targets if t != "combined"]
        names = list(dict.fromkeys([*mine, *for_all]))
        rows: list[dict] = []
        references: list[dict] = []
        which = self.settings
        limits = (which.score_thresh, which.iou_thresh, which.per_image)
        pairs = found_objects(self._images[image_id], found, *limits)
        if pairs:
            removal = Removal(given["image"], self._other(given))
            how = getattr(self._model, "odam", None)
            with rereading(self._model, given, names, how) as again:
                effects = CausalEffects(again, removal, names, self.settings)
                objects = self._objects(given, found, pairs, again, names)
                if image_id not in self._rows.by_image:
                    rows = effects.of_maps(objects, found.odam_maps)
                if image_id not in self._references.by_image:
                    references = effects.of_references(objects, for_all, self._parts_known)
        for files, content in ((self._rows, rows), (self._references, references)):
            if image_id not in files.by_image:
                files.add(image_id, content)

    def _objects(
        self,
        given: dict,
        found: Instances,
        pairs: Sequence[tuple[int, int]],
        again: Rereading,
        names: Sequence[str],
    ) -> list[ExplainedObject]:
        annotations = true_objects(self._images[given["image_id"]])
        height, width = size = tuple(given["image"].shape[-2:])
        rows, columns = found.image_size
        scale = torch.tensor([width / columns, height / rows] * 2)
        detections = torch.tensor([detection for detection, _ in pairs])
        boxes = found.pred_boxes.tensor.cpu()[detections] * scale
        in_trace = again.rows(boxes, found.pred_classes.cpu()[detections])
        first = 1000 * self._numbers[given["image_id"]] + 1_000_003 * self.settings.seed
        objects = []
        for (detection, number), row in zip(pairs, in_trace, strict=True):
            box = object_boxes([annotations[number]])[0] * scale
            patches = self._patches(annotations[number], box, size, names)
            objects.append(ExplainedObject(number, detection, row, box, patches, first + number))
        return objects

    def _patches(
        self, annotation: dict, box: Tensor, size: tuple[int, int], names: Sequence[str]
    ) -> dict[str, Patch]:
        if not self._parts_known:
            return dict.fromkeys(names, Patch.of_box(box, SHARE))
        parts = annotation["part_segmentations"]
        known = (name for name in names if name in parts)
        patches = {name: Patch.of_part(mask_utils.decode(parts[name]), size) for name in known}
        return {name: patch for name, patch in patches.items() if patch is not None}

    def _other(self, given: dict) -> Tensor | None:
        """The next image of the data set, at the size of this one."""
        if "other" not in self.settings.fills:
            return None
        size = tuple(given["image"].shape[-2:])
        return picture_at(self._next[given["image_id"]], size, self._model)
