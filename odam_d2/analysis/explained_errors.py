"""Why a detector was wrong: for each kind of error, the two maps that tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor, nn

from odam_d2.core.targets import SIDES, outward
from odam_d2.modeling.explain import explain, explain_boxes
from odam_d2.modeling.nms import Nms
from odam_d2.modeling.settings import ExplainSettings

from .ap_costs import AnalysedImage
from .error_types import Finding

__all__ = ["ErrorMap", "ExplainedError", "explain_errors", "pick_errors", "worst_side"]


@dataclass(frozen=True)
class ErrorMap:
    """
    One map of an error.

    Attributes:
        caption: what it explains.
        box: (4,) XYXY in pixels of the image, of what it explains.
        heat: (H, W) over the image.
        of_truth: whether that box is the object's.
        side: the side of the box that it explains, if it does.
        signed: whether the map shows evidence against it as well.
    """

    caption: str
    box: Tensor
    heat: Tensor
    of_truth: bool = False
    side: str | None = None
    signed: bool = False


@dataclass(frozen=True)
class ExplainedError:
    """
    Attributes:
        finding: the error.
        maps: one or two, to be looked at side by side.
        facts: in words, what the maps and boxes come to.
        numbers: the same by name, for files.
    """

    finding: Finding
    maps: Sequence[ErrorMap]
    facts: Sequence[str]
    numbers: Mapping[str, float | str]


def pick_errors(
    images: dict[object, AnalysedImage], most: int, confidence: float
) -> dict[str, list[tuple[object, Finding]]]:
    """
    The errors of each kind that one would ask about: the highest scores first, and of missed
    objects the largest first. One of a kind in an image comes before a second one.

    Args:
        most: of each kind.
        confidence: least score; of a missed object nothing is asked.

    Returns:
        For each kind of error (image id, finding).
    """
    ranked: dict[str, list[tuple[int, float, object, Finding]]] = {}
    for image_id, image in images.items():
        places: dict[str, int] = {}
        for weight, finding in _weighted(image, confidence):
            place = places.setdefault(finding.kind, 0)
            places[finding.kind] += 1
            ranked.setdefault(finding.kind, []).append((place, -weight, image_id, finding))
    picked = {}
    for kind, found in ranked.items():
        found.sort(key=lambda item: item[:2])
        picked[kind] = [(image_id, finding) for _, _, image_id, finding in found[:most]]
    return picked


def _weighted(image: AnalysedImage, confidence: float) -> list[tuple[float, Finding]]:
    """The errors of an image, those to ask about first."""
    rows = []
    for finding in image.findings:
        if finding.kind == "missed":
            x1, y1, x2, y2 = image.objects[finding.object_row].tolist()
            rows.append(((x2 - x1) * (y2 - y1), finding))
        elif finding.kind != "correct":
            score = float(image.scores[finding.detection_row])
            if score >= confidence:
                rows.append((score, finding))
    return sorted(rows, key=lambda row: -row[0])


def worst_side(box: Tensor, truth: Tensor) -> tuple[str, float]:
    """
    The side of a box that is farthest from where the object ends, relative to the object's size.

    Args:
        box, truth: (4,) XYXY in pixels.

    Returns:
        The side, and by how many pixels it reaches too far out (negative: not far enough).
    """
    off = outward(box) - outward(truth)
    size = (truth[2:] - truth[:2]).clamp(min=1).repeat(2)
    number = int((off / size).abs().argmax())
    return SIDES[number], float(off[number])


def explain_errors(
    model: nn.Module,
    given: dict,
    image: AnalysedImage,
    findings: Sequence[Finding],
    class_names: Sequence[str],
) -> list[ExplainedError]:
    """
    Explain errors of one image.

    - localisation: the map of the worst side, beside the map of that side for the object's own box;
    - classification, both: the maps of the predicted and of the true class;
    - duplicate: its class map, beside that of the detection that was kept as correct;
    - missed: the class map of the best candidate at that place and what became of it, or where
      there is none, of the object's own box;
    - background: the class map.

    Args:
        model: the detector.
        given: the image in Detectron2's input format.
        image: of the same detections as the model gives now.
        findings: errors of the image.
        class_names: by class id.
    """
    true_classes = {int(image.labels[f.object]) for f in findings
                    if f.kind in ("classification", "both")}  # fmt: skip
    targets = ("class", *SIDES, *(f"class:{k}" for k in sorted(true_classes)))
    # Names may be numbers themselves: here numbers are ids.
    (output,) = explain(model, [given], targets, class_names=None)
    asked = [f.object_row for f in findings if f.kind in ("localisation", "missed")]
    (truth,) = explain_boxes(
        model, [given], [image.objects[asked]], [image.labels[asked]], ("class", *SIDES),
        class_names=None,
    )  # fmt: skip
    context = _Context(
        model, given, image, output["instances"].to("cpu"), truth["instances"].to("cpu"), asked,
        class_names,
    )  # fmt: skip
    return [getattr(context, f"_{finding.kind}")(finding) for finding in findings]


@dataclass(frozen=True)
class _Context:
    """
    Attributes:
        model, given: the detector and what it saw.
        image: what was found.
        found: the same with maps.
        truth: of the objects ``asked``, maps of their own boxes.
    """

    model: nn.Module
    given: dict
    image: AnalysedImage
    found: Instances
    truth: Instances
    asked: Sequence[int]
    class_names: Sequence[str]

    @cached_property
    def _candidates(self) -> Instances:
        """What NMS was given, and what became of it: that of the config, else Detectron2's."""
        settings = getattr(self.model, "odam", None) or ExplainSettings()
        nms = settings.nms or Nms()
        (output,) = explain(self.model, [self.given], (), nms=nms, record=True)
        return output["candidates"].to("cpu")

    def _heat(self, instances: Instances, row: int, target: str) -> Tensor:
        size = instances.image_size
        return instances.odam_maps[row].select(target).dense(*size)[0, 0]

    def _name(self, label: Tensor | int) -> str:
        return self.class_names[int(label)]

    def _of_detection(self, row: int, target: str, caption: str) -> ErrorMap:
        side = target if target in SIDES else None
        heat = self._heat(self.found, row, target)
        signed = self.found.odam_maps.signed
        return ErrorMap(caption, self.found.pred_boxes.tensor[row], heat, side=side, signed=signed)

    def _of_truth(self, number: int, target: str, caption: str) -> ErrorMap:
        heat = self._heat(self.truth, self.asked.index(number), target)
        side = target if target in SIDES else None
        box, signed = self.image.objects[number], self.truth.odam_maps.signed
        return ErrorMap(caption, box, heat, of_truth=True, side=side, signed=signed)

    def _localisation(self, finding: Finding) -> ExplainedError:
        row, number = finding.detection_row, finding.object_row
        side, off = worst_side(self.image.boxes[row], self.image.objects[number])
        maps = [
            self._of_detection(row, side, f"why the {side} side is here"),
            self._of_truth(number, side, f"{side} side of the true box"),
        ]
        where = "too far out" if off > 0 else "too far in"
        facts = [f"IoU with the object {finding.iou:.2f}", f"{side} side {abs(off):.0f} px {where}"]
        return ExplainedError(finding, maps, facts, {"side": side, "off_px": off})

    def _classification(self, finding: Finding) -> ExplainedError:
        row, label = finding.detection_row, int(self.image.labels[finding.object_row])
        predicted, true = self._name(self.image.classes[row]), self._name(label)
        maps = [
            self._of_detection(row, "class", f"why {predicted} (predicted)"),
            self._of_detection(row, f"class:{label}", f"what speaks for {true} (true)"),
        ]
        evidence = self.found.odam_maps[row].select(["class", f"class:{label}"]).positive()
        similarity = _cosine(*evidence.dense(*self.found.image_size)[0])
        facts = [f"it is {true}", f"IoU with the object {finding.iou:.2f}",
                 f"correlation of the maps {similarity:.2f}"]  # fmt: skip
        return ExplainedError(finding, maps, facts, {"true_class": true, "correlation": similarity})

    _both = _classification

    def _duplicate(self, finding: Finding) -> ExplainedError:
        kept = next(
            (f.detection for f in self.image.findings
             if f.kind == "correct" and f.object == finding.object), None,
        )  # fmt: skip
        maps = [self._of_detection(finding.detection_row, "class", "why the duplicate")]
        facts = [f"IoU with the object {finding.iou:.2f}"]
        numbers: dict[str, float] = {}
        if kept is not None:
            pair = [finding.detection_row, kept]
            similarity = float(self.found.odam_maps[pair].similarity("class")[0, 1])
            iou = float(pairwise_iou(*(Boxes(self.image.boxes[[row]]) for row in pair)))
            score = float(self.image.scores[kept])
            maps.append(self._of_detection(kept, "class", f"why the kept one, {score:.2f}"))
            facts += [
                f"IoU with the kept one {iou:.2f}",
                f"correlation of the maps {similarity:.2f}",
            ]
            numbers = {"iou_with_kept": iou, "correlation": similarity}
        return ExplainedError(finding, maps, facts, numbers)

    def _background(self, finding: Finding) -> ExplainedError:
        name = self._name(self.image.classes[finding.detection_row])
        maps = [self._of_detection(finding.detection_row, "class", f"why {name}")]
        return ExplainedError(finding, maps, ["no object there"], {})

    def _missed(self, finding: Finding) -> ExplainedError:
        number = finding.object_row
        name = self._name(self.image.labels[number])
        score = float(self.truth.scores[self.asked.index(number)])
        own = self._of_truth(number, "class", f"{name}, asked at the true box: {score:.2f}")
        candidates = self._candidates
        best = _best_candidate(candidates, self.image, number)
        if best is None:
            facts = ["no candidate of its class there", f"score at the true box {score:.2f}"]
            return ExplainedError(finding, [own], facts, {"score_at_object": score})
        given = float(candidates.scores[best])
        heat = self._heat(candidates, best, "class")
        box = candidates.pred_boxes.tensor[best]
        by = int(candidates.suppressed_by[best])
        fate = "kept, and counted for another object"
        if not bool(candidates.kept[best]):
            fate = "dropped"
        if by >= 0:
            fate = f"suppressed by one of {float(candidates.scores[by]):.2f}"
        maps = [ErrorMap(f"why the best candidate, {given:.2f}", box, heat), own]
        facts = [f"best candidate: {given:.2f}", fate, f"score at the true box {score:.2f}"]
        return ExplainedError(
            finding, maps, facts,
            {"score_at_object": score, "candidate_score": given, "candidate": fate},
        )  # fmt: skip


def _best_candidate(candidates: Instances, image: AnalysedImage, number: int) -> int | None:
    """Of the object's class and an IoU of 0.5 or more with it, the one of the best score."""
    iou = pairwise_iou(candidates.pred_boxes, Boxes(image.objects[[number]]))[:, 0]
    fits = (iou >= 0.5) & (candidates.pred_classes == image.labels[number])
    if not fits.any():
        return None
    return int(torch.where(fits, candidates.scores, -1.0).argmax())


def _cosine(first: Tensor, second: Tensor) -> float:
    return float(torch.cosine_similarity(first.flatten(), second.flatten(), dim=0))
