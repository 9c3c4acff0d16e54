"""What is kept of one run of a detector: all that explaining its detections needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, TypeVar

import torch
from detectron2.structures import Instances
from torch import Tensor

from odam_d2.core.probabilities import Probability
from odam_d2.modeling.views import Call

__all__ = ["FINAL_SCORES", "ROW", "ClosedForm", "Decisions", "Places", "Trace"]

P = TypeVar("P", bound="Places")

ROW = "odam_row"
"""Field of detections on their way out of a model: (N,), their rows of all traces of the run."""

FINAL_SCORES = "odam_final_scores"
"""Field of detections that leave the head with other scores than their own, as by soft NMS."""

ClosedForm = Callable[[Tensor], tuple[Probability, Sequence[Tensor]] | None]
"""
Gets class ids (N,); returns the probabilities of these classes in a form whose derivative is right
near 0 and 1 too, and the logits that they are functions of; None where there is no such form.
"""


class Places(Protocol):
    """Where N detections were read, in terms of their family, and what was read there."""

    def select(self: P, index: Tensor) -> P:
        """Those of some of the detections, (n,) int64."""

    def on_images(self: P, image: Tensor) -> P:
        """The same places in other images of a batch, (N,) int64; what was read is forgotten."""


@dataclass(frozen=True)
class Trace(Generic[P]):
    """
    N detections of a batch of I images, ordered by image, as one run of a model read them. Plain
    data: whoever has it needs nothing else of the run.

    Attributes:
        images: (I, 3, H, W), what the backbone read.
        image_sizes: (height, width) of each image without padding.
        features: what the head read, one (I, C, H, W) for each level, the finest first.
        image: (N,) int64, the image of each detection.
        classes: (N,) int64.
        levels: (N, S) int64, indices into ``features`` of the levels that a detection was read
            from; S is one, unless the head has stages.
        places: where each detection was read, and what was kept there.
        backbone: the call of the backbone that gave the features; None where that is not known.
        versions: of the features, by which it is seen whether they were written to since.
        instances: the detections of each image as they left the head, boxes in pixels of the
            network's input; None for boxes that somebody gave.
        inputs: what the model got, in Detectron2's input format.
        detect: runs the model in the same way on other inputs; None for given boxes.
        nms: what chose the detections in the place of the model's own NMS, if anything did.
    """

    images: Tensor
    image_sizes: list[tuple[int, int]]
    features: list[Tensor]
    image: Tensor
    classes: Tensor
    levels: Tensor
    places: P
    backbone: Call | None = field(default=None, repr=False)
    versions: tuple[int, ...] = ()
    instances: Sequence[Instances] | None = None
    inputs: Sequence[dict] = ()
    detect: Callable[[list[dict]], Trace[P]] | None = field(default=None, repr=False)
    nms: object = None

    def __len__(self) -> int:
        return len(self.image)

    def select(self, index: Tensor) -> Trace[P]:
        """Some of the detections, in increasing order; they are given places from then on."""
        chosen = {name: getattr(self, name)[index] for name in ("image", "classes", "levels")}
        return replace(self, places=self.places.select(index), instances=None, **chosen)

    def on_images(self, index: Tensor, image: Tensor, count: int) -> Trace[P]:
        """
        Where some detections of one image were read, in other images of its size:
        ``adapter.evaluate(features, ...)`` reads those there.

        Args:
            index: (n,), the detections; one may come several times.
            image: (n,), not decreasing, the image in which each is read.
            count: of the images.
        """
        chosen = self.select(index)
        sizes, places = self.image_sizes[:1] * count, chosen.places.on_images(image)
        return replace(chosen, image_sizes=sizes, image=image, places=places)

    def counts(self) -> list[int]:
        """Detections of each image."""
        if self.instances is not None:
            return [len(found) for found in self.instances]
        return self.image.bincount(minlength=len(self.image_sizes)).tolist()

    def by_levels(self) -> Iterator[tuple[list[int], Tensor]]:
        """Detections (n,) that were read from the same levels, and these, the finest first."""
        read = self.levels.sort(dim=1).values
        for levels in read.unique(dim=0):
            yield levels.unique().tolist(), (read == levels).all(dim=1).nonzero().squeeze(1)

    @staticmethod
    def image_of(instances: Sequence[Sized], device: torch.device) -> Tensor:
        """(N,) index of the image that each of the detections of all images belongs to."""
        of_images = [
            torch.full((len(found),), number, dtype=torch.int64, device=device)
            for number, found in enumerate(instances)
        ]
        return torch.cat(of_images)


@dataclass(frozen=True)
class Decisions:
    """
    What a head says of N detections, with a graph to what it read.

    Attributes:
        classes: (N,) int64, of the detections.
        probabilities: (N, K) or more columns, by which detections are scored.
        boxes: (N, 4), XYXY in pixels of the network's input, not clipped.
        logits: (N, K) or more columns, before any softmax or sigmoid; None where there are none.
        closed_form: of the probabilities, where it is known.
    """

    classes: Tensor
    probabilities: Tensor
    boxes: Tensor
    logits: Tensor | None = None
    closed_form: ClosedForm | None = field(default=None, repr=False)

    @property
    def scores(self) -> Tensor:
        """(N,), probability of each detection's class."""
        return self.probabilities.gather(1, self.classes[:, None]).squeeze(1)

    def detach(self, rows: slice = slice(None)) -> Decisions:
        """Some of them, without the graph, and without what needs it."""
        return Decisions(
            self.classes[rows],
            self.probabilities.detach()[rows],
            self.boxes.detach()[rows],
            None if self.logits is None else self.logits.detach()[rows],
        )

    def first(self, count: int) -> Decisions:
        """Of so many detections, without the closed form."""
        logits = None if self.logits is None else self.logits[:count]
        probabilities, boxes = self.probabilities[:count], self.boxes[:count]
        return Decisions(self.classes[:count], probabilities, boxes, logits)

    @staticmethod
    def cat(parts: Sequence[Decisions]) -> Decisions:
        """Of several groups of detections by one head, without a graph."""
        logits = [part.logits for part in parts if part.logits is not None]
        return Decisions(
            torch.cat([part.classes for part in parts]),
            torch.cat([part.probabilities for part in parts]),
            torch.cat([part.boxes for part in parts]),
            torch.cat(logits) if len(logits) == len(parts) else None,
        )
