"""
What a detector says of its detections of an image when it sees a changed image: at the places where
they were read, and in its final detections. Knows no family of detectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor, nn

from odam_d2.core.errors import InputError

from .adapters.base import Adapter, build_adapter
from .adapters.head import HeadAdapter, head_adapter
from .adapters.trace import Decisions
from .conditions import conditions_together
from .explanation import class_logit_maps
from .nms.choosing import Choice
from .settings import ExplainSettings
from .state import preserved
from .targets import Classes, ClassScore, Target, Targets

__all__ = ["FOUND_AGAIN", "Reading", "Rereading", "rereading"]

FOUND_AGAIN = 0.5
"""IoU from which a detection counts as the same as another of its class, as ODAM's authors do."""

CONFIDENT, CHANGED = 0.5, 0.1
"""Score from which other detections are looked after, and the change of it that counts."""


class Reading(NamedTuple):
    """
    What B changed images do to one detection each. An effect is the scalar in the image as it was
    less that in the changed one: a drop of the probability, or pixels by which a side moves inward.

    Attributes:
        place: (B, T) effects at the same anchor or proposal; nan where the detector's head is not
            known.
        detection: (B, T) effects in the final detections: that of the class with the best IoU, if
            it is :data:`FOUND_AGAIN` or more. Where none is left, the probability is 0; how far its
            sides reach is not known, and counts as no effect.
        lost: (B,) bool, where none is left of the class of the detection.
        others: (B,) bool, where another detection with a score of :data:`CONFIDENT` or more has
            gone, has changed its score by more than :data:`CHANGED`, or has come; those that come
            in the place of the detection are not counted.
    """

    place: Tensor
    detection: Tensor
    lost: Tensor
    others: Tensor


@contextmanager
def rereading(
    model: nn.Module, given: dict, targets: Sequence[str], settings: ExplainSettings | None = None
) -> Iterator[Rereading]:
    """
    Run a detector on an image, to read it again in changed ones. The model is left as it was.

    Args:
        model: as for :func:`odam_d2.explain`.
        given: the image, in Detectron2's input format.
        targets: names; probabilities are read, whatever the settings say.
        settings: of the model, for its NMS and the names of classes.
    """
    settings = settings or ExplainSettings()
    with preserved(model) as view:
        adapter = build_adapter(view, settings.norm_statistics)
        choice = None
        if settings.nms is not None:
            class_maps = partial(class_logit_maps, head_adapter(adapter), settings)
            choice = Choice(settings.nms, class_maps, False)
        with conditions_together():
            run = adapter.run([given], lambda model: model.forward([given]), choice)
        (trace,) = run.traces
        classes = Classes(adapter.num_classes, settings.class_names)
        yield Rereading(adapter, trace, given, Targets.named(targets, classes))


class Rereading:
    """
    Args:
        adapter: of the detector.
        trace: of the detections of one image.
        given: that image.
        targets: T scalars.

    Attributes:
        found (Instances): the detections, in pixels of the network's input.
    """

    def __init__(self, adapter: Adapter, trace: Any, given: dict, targets: Targets):
        self.adapter, self.trace, self.given, self.targets = adapter, trace, given, targets
        self.size = tuple(given["image"].shape[-2:])
        (found,) = trace.instances
        self.found = self._in_input(found)
        self._decided = None
        if isinstance(adapter, HeadAdapter) and len(trace):
            self._decided = self._scalars(adapter.decide(trace))

    def rows(self, boxes: Tensor, classes: Tensor) -> list[int]:
        """
        Which detections these are: of each class the one with the best IoU.

        Args:
            boxes: (n, 4) in pixels of the network's input.
            classes: (n,).

        Raises:
            InputError: one of them is not there: the detector does not say the same twice.
        """
        found = self.found
        best = [_best(found, box, label) for box, label in zip(boxes, classes, strict=True)]
        if None in best:
            raise InputError("a detection is not found again when the detector runs once more")
        return [row for row in best if row is not None]

    def read(self, images: Tensor, rows: Sequence[int]) -> Reading:
        """
        One pass of the detector for all, and one of its head for what is read in place.

        Args:
            images: (B, C, H, W), changed, of the size of the image.
            rows: B detections, one for each image.
        """
        with conditions_together():
            again = self.trace.detect([self.given | {"image": image} for image in images])
        now = [self._in_input(found) for found in again.instances]
        boxes, labels = self.found.pred_boxes.tensor, self.found.pred_classes
        pairs = list(zip(rows, now, strict=True))
        lost = [_best(found, boxes[row], labels[row]) is None for row, found in pairs]
        effects = [self._effect(row, found) for row, found in pairs]
        others = [self._others_changed(row, found) for row, found in pairs]
        return Reading(
            self._in_place(again, rows),
            torch.stack(effects).double().cpu(),
            torch.tensor(lost),
            torch.tensor(others),
        )

    def _in_input(self, found: Instances) -> Instances:
        """Detections in pixels of the network's input, clipped there."""
        height, width = found.image_size
        boxes = found.pred_boxes.clone()
        boxes.scale(self.size[1] / width, self.size[0] / height)
        boxes.clip(self.size)
        return Instances(
            self.size, pred_boxes=boxes, scores=found.scores, pred_classes=found.pred_classes
        )

    def _scalars(self, decisions: Decisions) -> Tensor:
        """(N, T)."""
        return torch.stack([scalar.values for scalar in self.targets.of(decisions)], dim=1)

    def _in_place(self, again: Any, rows: Sequence[int]) -> Tensor:
        if self._decided is None:
            return torch.full((len(rows), len(self.targets)), torch.nan, dtype=torch.float64)
        index = self.trace.image.new_tensor(list(rows))
        image = torch.arange(len(rows), device=index.device)
        places = self.trace.on_images(index, image, len(rows))
        now = self._scalars(head_adapter(self.adapter).evaluate(again.features, places))
        return (self._decided[index] - now).double().cpu()

    def _effect(self, row: int, now: Instances) -> Tensor:
        """(T,), of the final detections."""
        old = [self._scalar(target, row, self.found) for target in self.targets]
        new = [self._scalar(target, row, now) for target in self.targets]
        zero = self.found.scores.new_zeros(())
        return torch.stack(
            [zero if a is None or b is None else a - b for a, b in zip(old, new, strict=True)]
        )

    def _scalar(self, target: Target, row: int, found: Instances) -> Tensor | None:
        """What the detection that matches best says; None where there is none, and nothing else."""
        label = self.found.pred_classes[row]
        is_score = isinstance(target, ClassScore)
        if isinstance(target, ClassScore) and target.index is not None:
            label = torch.full_like(label, target.index)
        best = _best(found, self.found.pred_boxes.tensor[row], label)
        if best is None:
            return found.scores.new_zeros(()) if is_score else None
        scores = found.scores.new_zeros(1, self.adapter.num_classes)
        scores[0, label] = found.scores[best]
        boxes = found.pred_boxes.tensor[best][None]
        return target.of(Decisions(label[None], scores, boxes)).values[0]

    def _others_changed(self, row: int, now: Instances) -> bool:
        before, box = self.found, self.found.pred_boxes.tensor[row]
        for number in (before.scores >= CONFIDENT).nonzero().squeeze(1).tolist():
            again = _best(now, before.pred_boxes.tensor[number], before.pred_classes[number])
            if number != row and (
                again is None or abs(float(now.scores[again] - before.scores[number])) > CHANGED
            ):
                return True
        for number in (now.scores >= CONFIDENT).nonzero().squeeze(1).tolist():
            at, label = now.pred_boxes.tensor[number], now.pred_classes[number]
            in_its_place = pairwise_iou(Boxes(at[None]), Boxes(box[None])) >= FOUND_AGAIN
            if not in_its_place and _best(before, at, label) is None:
                return True
        return False


def _best(found: Instances, box: Tensor, label: Tensor) -> int | None:
    """The detection of a class with the best IoU with a box; None where none has enough."""
    if not len(found):
        return None
    iou = pairwise_iou(Boxes(box[None].to(found.scores.device)), found.pred_boxes)[0]
    iou[found.pred_classes != label.to(iou.device)] = 0
    best, number = iou.max(dim=0)
    return int(number) if best >= FOUND_AGAIN else None
