"""What a head read for each detection, and what it made of it: all that explaining needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import torch
from detectron2.structures import Instances
from torch import Tensor

__all__ = ["Evaluation", "Reading", "split_by_image"]

T = TypeVar("T")


@dataclass(frozen=True)
class Reading:
    """
    N detections of a batch of I images, ordered by image, before they are explained.

    Attributes:
        images: (I, 3, H, W), what the backbone read.
        image_sizes: (height, width) of each image without padding.
        features: what the head read, one (I, C, H, W) for each level, the finest first.
        image: (N,) int64, the image of each detection.
        classes: (N,) int64.
        levels: (N, S) int64, indices into ``features`` of the levels that a detection was read
            from; S is one, unless the head has stages.
        origin: where each detection was read, in terms of its family; has a method ``select``.
    """

    images: Tensor
    image_sizes: list[tuple[int, int]]
    features: list[Tensor]
    image: Tensor
    classes: Tensor
    levels: Tensor
    origin: object

    def __len__(self) -> int:
        return len(self.image)

    def select(self, index: Tensor) -> Reading:
        """Some of the detections, in increasing order."""
        chosen = {name: getattr(self, name)[index] for name in ("image", "classes", "levels")}
        return replace(self, origin=self.origin.select(index), **chosen)

    def counts(self) -> list[int]:
        """Detections of each image."""
        return self.image.bincount(minlength=len(self.image_sizes)).tolist()

    @staticmethod
    def image_of(instances: list[Instances], device: torch.device) -> Tensor:
        """(N,) index of the image that each of the detections of all images belongs to."""
        counts = torch.tensor([len(found) for found in instances], device=device)
        return torch.repeat_interleave(torch.arange(len(instances), device=device), counts)


class Evaluation(NamedTuple):
    """
    What a head says of N detections.

    Attributes:
        columns: of each target (N,), what is differentiated: the target, or what ``exponents``
            says. Each has a graph of its own: in that of a stacked tensor, autograd would not see
            what a target does not read, and compute its zeros.
        scores: (N,), probability of each detection's class.
        boxes: (N, 4), XYXY in pixels of the network's input, not clipped.
        exponents: (N, T), where the derivative of a target is ``2 ** exponent`` times that of its
            value, see :mod:`odam_d2.core.probabilities`; None for zeros.
        saturated: (N, T) bool, targets whose derivative is lost in rounding; None for none.
    """

    columns: tuple[Tensor, ...]
    scores: Tensor
    boxes: Tensor
    exponents: Tensor | None = None
    saturated: Tensor | None = None

    @property
    def values(self) -> Tensor:
        """(N, T), the columns."""
        return torch.stack(self.columns, dim=1)

    def gradients(self, inputs: Sequence[Tensor]) -> list[tuple[Tensor | None, ...]]:
        """
        For each target, the derivative of the sum of its column by each input, None where it does
        not read that. The graph is retained.
        """
        return [
            torch.autograd.grad(column.sum(), inputs, retain_graph=True, allow_unused=True)
            for column in self.columns
        ]

    def detach(self) -> Evaluation:
        columns = tuple(column.detach() for column in self.columns)
        others = (None if part is None else part.detach() for part in self[1:])
        return Evaluation(columns, *others)

    @staticmethod
    def cat(parts: Sequence[Evaluation]) -> Evaluation:
        """Of several groups of detections by one head."""
        columns, *fields = zip(*parts, strict=True)
        columns = tuple(torch.cat(of_target) for of_target in zip(*columns, strict=True))
        return Evaluation(columns, *(None if of[0] is None else torch.cat(of) for of in fields))


def split_by_image(fields: T, counts: list[int]) -> list[T]:
    """Cut what can be sliced along N into one piece for each image."""
    pieces, start = [], 0
    for count in counts:
        pieces.append(fields[start : start + count])
        start += count
    return pieces
