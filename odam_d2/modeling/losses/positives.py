"""What a loss on heat maps sees of an image: its positives, their maps and their objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Boxes
from detectron2.structures.boxes import matched_pairwise_iou
from torch import Tensor

__all__ = ["Labels", "Positives", "choose", "limited"]


@dataclass(frozen=True)
class Labels:
    """
    What N positives of an image are trained to find, and where they place it.

    Attributes:
        objects: (N,) int64; positives of the same ground-truth object have the same number.
        classes: (N,) int64, the object's class.
        boxes: (N, 4), predicted boxes, XYXY in pixels of the network's input, no graph.
        ious: (N,), IoU of the predicted box and the object's.
    """

    objects: Tensor
    classes: Tensor
    boxes: Tensor
    ious: Tensor

    def __len__(self) -> int:
        return len(self.objects)

    @property
    def _fields(self) -> tuple[Tensor, ...]:
        return self.objects, self.classes, self.boxes, self.ious

    def __getitem__(self, index: Tensor) -> Labels:
        """Those of some of the positives, by indices or a mask."""
        return Labels(*(field[index] for field in self._fields))

    def split(self, counts: list[int]) -> list[Labels]:
        """Cut into groups of so many positives."""
        return [Labels(*x) for x in zip(*(f.split(counts) for f in self._fields), strict=True)]

    @classmethod
    def of_matches(cls, classes: Tensor, boxes: Tensor, gt_boxes: Tensor) -> Labels:
        """
        Args:
            classes: (N,) int64.
            boxes: (N, 4), predicted.
            gt_boxes: (N, 4), box of the object that each positive was matched with. It tells which
                object that is: of objects with the same box Detectron2 matches the first one only.
        """
        boxes, gt_boxes = boxes.detach().float(), gt_boxes.float()
        # The same object's box has the same bits; unique() of no rows is an error.
        objects = gt_boxes.unique(dim=0, return_inverse=True)[1] if len(gt_boxes) else classes
        ious = matched_pairwise_iou(Boxes(boxes), Boxes(gt_boxes))
        return cls(objects, classes, boxes, ious.nan_to_num(0))  # two boxes without an area: 0 / 0


@dataclass(frozen=True)
class Positives:
    """
    The positives of one image, or those of one stage of a cascade.

    Attributes:
        maps: (N, h, w), raw heat maps of the class logit on one grid, with a graph; see
            ``MODEL.ODAM.LOSS.GRID_STRIDE``.
        labels: of the same N.
    """

    maps: Tensor
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)


def limited(
    found: Sequence[Tensor], labels: Sequence[Labels], max_samples: int
) -> Iterator[tuple[Tensor, Labels]]:
    """
    Of each group of positives at most so many, see :func:`choose`.

    Args:
        found: of each group something else of its positives (n, ...), of which the same are kept.
        labels: of each group.
        max_samples: of each group, at most.

    Yields:
        Of each group the two, of those that are kept.
    """
    for of_group, of_labels in zip(found, labels, strict=True):
        if len(of_labels) <= max_samples:
            yield of_group, of_labels
        else:
            index = choose(of_labels, max_samples)
            yield of_group[index], of_labels[index]


def choose(labels: Labels, max_samples: int) -> Tensor:
    """
    At most so many positives, shared fairly by the objects: every object's best one, then every
    object's second, and so on. No random numbers are drawn, so that turning the loss on does not
    change which proposals are sampled.

    Args:
        labels: of N positives of an image.
        max_samples: how many are kept, at most.

    Returns:
        Indices in increasing order.
    """
    best = labels.ious.argsort(stable=True, descending=True)
    by_object = best[labels.objects[best].argsort(stable=True)]
    counts = labels.objects.unique(return_counts=True)[1]
    start = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    rank = torch.arange(len(by_object), device=start.device) - start
    return by_object[rank.argsort(stable=True)[:max_samples]].sort().values
