"""Anchors of dense detectors: detections that remember theirs, and what is read at them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor
from torch.overrides import TorchFunctionMode

from odam_d2.core.window_cells import OutputCells
from odam_d2.modeling.conditions import require
from odam_d2.modeling.errors import UnsupportedModelError, unexplained
from odam_d2.modeling.views import Viewed, class_name

__all__ = ["ORIGIN", "Anchors", "TracedDecoding", "nearest_anchors"]

ORIGIN = "odam_anchors"
"""Field of traced detections: (N, 2), level and index of the anchor within it."""


class _Rows(TorchFunctionMode):
    """
    While inside, sees by which indices a tensor is read.

    Attributes:
        indices: of each time.
    """

    def __init__(self, tensor: Tensor):
        super().__init__()
        self.tensor = tensor
        self.indices: list[object] = []

    def __torch_function__(
        self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is Tensor.__getitem__ and args[0] is self.tensor:
            self.indices.append(args[1])
        return func(*args, **(kwargs or {}))


class TracedDecoding(Viewed):
    """Mixin for a ``DenseDetector``: its detections remember level and anchor."""

    odam_levels: Iterator[tuple[int, Boxes]] = iter(())

    def _decode_multi_level_predictions(
        self, anchors: list[Boxes], *args: Any, **kwargs: Any
    ) -> Instances:
        object.__setattr__(self, "odam_levels", enumerate(anchors))
        return super()._decode_multi_level_predictions(anchors, *args, **kwargs)

    def _decode_per_level_predictions(
        self,
        anchors: Boxes,
        pred_scores: Tensor,
        pred_deltas: Tensor,
        score_thresh: float,
        topk_candidates: int,
        image_size: tuple[int, int],
    ) -> Instances:
        with _Rows(anchors.tensor) as rows:
            found = super()._decode_per_level_predictions(
                anchors, pred_scores, pred_deltas, score_thresh, topk_candidates, image_size
            )
        number, expected = next(self.odam_levels, (0, None))
        same_level = anchors is expected or (
            expected is not None and torch.equal(anchors.tensor, expected.tensor)
        )
        if not same_level:
            raise unexplained(
                f"{class_name(self)} goes through the levels in its own way, so the anchors of its "
                "detections are not known"
            )
        # Detectron2 decodes the boxes of its candidates from their anchors, and drops which.
        anchor = rows.indices[0] if len(rows.indices) == 1 else None
        if not isinstance(anchor, Tensor) or anchor.dtype != torch.int64:
            raise self._unknown()
        if anchor.shape != (len(found),):
            raise self._unknown()
        read = pred_scores[anchor, found.pred_classes]
        require((read == found.scores).all(), self._unknown)
        level = torch.full_like(anchor, number)
        found.set(ORIGIN, torch.stack([level, anchor], dim=1))
        return found

    def _unknown(self) -> UnsupportedModelError:
        return unexplained(
            f"{class_name(self)} chooses its candidates in its own way, so the anchors of its "
            "detections are not known"
        )


@dataclass(frozen=True)
class Anchors:
    """
    N anchors chosen on the levels of a batch.

    Attributes:
        cells: where their outputs are read.
        number: (N,), which of the A anchors of the cell.
        boxes: (N, 4), XYXY in input pixels.
        levels: how many there are.
    """

    cells: OutputCells
    number: Tensor
    boxes: Tensor
    levels: int

    def __len__(self) -> int:
        return len(self.number)

    def select(self, index: Tensor) -> Anchors:
        cells, number = self.cells.select(index), self.number[index]
        return Anchors(cells, number, self.boxes[index], self.levels)

    @classmethod
    def of_origins(
        cls,
        origins: list[Tensor],
        anchors: list[Boxes],
        sizes: Sequence[tuple[int, int]],
        per_cell: int,
    ) -> Anchors:
        """
        Args:
            origins: for each image (N, 2), as in :data:`ORIGIN`.
            anchors: of each level, in the order row, column, number.
            sizes: (height, width) of each level in cells.
            per_cell: A.
        """
        level, index = torch.cat(origins).unbind(1)
        image = torch.cat([torch.full_like(of[:, 0], n) for n, of in enumerate(origins)])
        cell, number = index // per_cell, index % per_cell
        extents = torch.tensor(OutputCells.extents_of(sizes), device=level.device)[level]
        _, width, first = extents.unbind(1)
        boxes = torch.cat([of_level.tensor for of_level in anchors])[first * per_cell + index]
        cells = OutputCells(level, image, cell // width, cell % width, extents)
        return cls(cells, number, boxes, len(anchors))

    @cached_property
    def _by_level(self) -> tuple[list[int], list[Sequence[Tensor]], Tensor, Tensor]:
        """
        How many anchors are on each level, of each level their images, rows and columns (n, 1),
        :attr:`number` (N, 1) in the order of levels, and that order's inverse. The host waits once
        for that, however often outputs are read.
        """
        cells, levels = self.cells, torch.arange(self.levels, device=self.number.device)
        counts = (cells.level == levels[:, None]).sum(dim=1).tolist()
        order = cells.level.argsort(stable=True)
        fields = torch.stack([cells.image, cells.row, cells.column, self.number])
        *places, number = fields[:, order, None].unbind()
        return counts, [x.split(counts) for x in places], number, order.argsort()

    def read(self, outputs: list[Tensor], per_anchor: int) -> Tensor:
        """
        Outputs of the chosen anchors, (N, per_anchor).

        Args:
            outputs: of each level, (I, A * per_anchor, H, W).
        """
        counts, (image, row, column), number, inverse = self._by_level
        channel = number * per_anchor + torch.arange(per_anchor, device=number.device)
        places = zip(outputs, image, channel.split(counts), row, column, strict=True)
        found = [values[i, c, y, x] for values, i, c, y, x in places if len(i)]
        none = outputs[0].new_zeros((0, per_anchor))
        return torch.cat(found)[inverse] if found else none

    def spread(self, values: Tensor, per_cell: int) -> Tensor:
        """
        Seeds of a predictor with A outputs for each entry: (N, T, K) values of the chosen anchors
        to (N, T, A * K), zero for the other anchors of the cell.
        """
        n, t, k = values.shape
        if per_cell == 1:
            return values
        out = values.new_zeros((n, per_cell, t, k))
        out[torch.arange(n, device=values.device), self.number] = values
        return out.transpose(1, 2).reshape(n, t, per_cell * k)


def nearest_anchors(boxes: Boxes, anchors: list[Boxes]) -> Tensor:
    """(N, 2) level and index of the anchor with the highest IoU with each box, first of equals."""
    best = [pairwise_iou(boxes, of_level).max(dim=1) for of_level in anchors]
    level = torch.stack([b.values for b in best]).argmax(dim=0)
    index = torch.stack([b.indices for b in best])
    return torch.stack([level, index[level, torch.arange(len(boxes), device=level.device)]], dim=1)
