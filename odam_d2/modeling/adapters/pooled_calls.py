"""What ROI heads read: the calls of the modules that read pooled features, and where from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler
from torch import Tensor

from odam_d2.modeling.errors import unexplained
from odam_d2.modeling.views import Call, is_plain, recorded

__all__ = ["PooledCalls", "Regions", "pools_plainly"]


@dataclass
class PooledCalls:
    """
    What ROI heads read of the batch at hand, as views of their parts tell.

    Attributes:
        calls: for each of the S stages, the calls of the module that reads pooled features. Calls
            that follow each other read the proposals in their order.
        boxes: (R, S, 4), the boxes of what was read, of all images, in pieces.
        proposals: of each piece, for each stage, the boxes (r, 4) of each image.
        pooler_calls: of the pooler.
    """

    calls: list[list[Call]]
    boxes: list[Tensor] = field(default_factory=list)
    proposals: list[list[list[Tensor]]] = field(default_factory=list)
    pooler_calls: list[Call] = field(default_factory=list)

    def recorded_pooler(self, pooler: ROIPooler) -> ROIPooler:
        """A view that tells what was pooled; one with code of a user's own is left as it is."""
        return recorded(pooler, self.pooler_calls) if pools_plainly(pooler) else pooler

    def is_pooled(self, features: Sequence[Tensor]) -> bool:
        """
        Whether it is known, by identity, that the tensors that were read are those that the pooler
        returned for these features and the proposals.
        """
        pooled = {id(call.output): call for call in self.pooler_calls}
        for stage, of_stage in enumerate(self.calls):
            if len(of_stage) != len(self.proposals):
                return False
            for call, proposals in zip(of_stage, self.proposals, strict=True):
                source = pooled.get(id(call.args[0]))
                if source is None or len(source.args) != 2 or source.kwargs:
                    return False
                maps, boxes = source.args
                given = [*maps, *(of_image.tensor for of_image in boxes)]
                expected = [*features, *proposals[stage]]
                if not (
                    len(given) == len(expected)
                    and all(a is b for a, b in zip(given, expected, strict=True))
                    and source.unchanged((given, source.output))
                ):
                    return False
        return True

    def add(self, name: str, proposals: list[list[Tensor]]) -> int:
        """
        The first row of proposals whose predictions are there now.

        Args:
            name: of the ROI heads.
            proposals: for each stage the boxes (r, 4) of each image.

        Raises:
            UnsupportedModelError: each stage should have read one pooled feature for each of them.
        """
        boxes = torch.stack([torch.cat(of_stage) for of_stage in proposals], dim=1)
        start = sum(len(piece) for piece in self.boxes)
        for of_stage in self.calls:
            reads = [call.args[0] for call in of_stage if len(call.args) == 1 and not call.kwargs]
            plain = len(reads) == len(of_stage) and all(isinstance(x, Tensor) for x in reads)
            if not plain or sum(len(x) for x in reads) != start + len(boxes):
                raise unexplained(
                    f"{name}: its box head does not read one pooled feature for each proposal, and "
                    "nothing else"
                )
        self.boxes.append(boxes)
        self.proposals.append(proposals)
        return start

    def pooled(self, stage: int, rows: Tensor) -> Tensor | None:
        """What a stage read in some rows, (n, C, R, S); None where it is not there any more."""
        if not self.calls[stage]:
            return None
        reads = [call.args[0] for call in self.calls[stage]]
        if not all(call.unchanged(x) for call, x in zip(self.calls[stage], reads, strict=True)):
            return None
        first, *more = [read for read in reads if len(read)] or reads[:1]
        out, start = first[rows.clamp(max=len(first) - 1)], len(first)
        for read in more:
            here = (rows >= start).view(-1, *[1] * (read.dim() - 1))
            out = torch.where(here, read[(rows - start).clamp(0, len(read) - 1)], out)
            start += len(read)
        return out


class Regions(NamedTuple):
    """
    What was pooled for each of N detections, by each of S stages.

    Attributes:
        boxes: (N, S, 4), XYXY in pixels of the network's input.
        rows: (N,), where it was read; None where that is not known.
        calls: that read it; None likewise.
    """

    boxes: Tensor
    rows: Tensor | None = None
    calls: PooledCalls | None = None

    def select(self, index: Tensor) -> Regions:
        rows = None if self.rows is None else self.rows[index]
        return Regions(self.boxes[index], rows, self.calls)

    def on_images(self, image: Tensor) -> Regions:
        return Regions(self.boxes)

    def pooled(self) -> list[Tensor] | None:
        """What each stage read, (N, C, R, S); None where it is to be pooled again."""
        if self.calls is None or self.rows is None:
            return None
        stages = range(self.boxes.shape[1])
        read = [self.calls.pooled(stage, self.rows) for stage in stages]
        found = [x for x in read if x is not None]
        return found if len(found) == len(stages) else None


def pools_plainly(pooler: ROIPooler) -> bool:
    """Whether pooling is RoIAlign of one level and nothing else, whose adjoint is known."""
    return is_plain(pooler, ROIPooler) and all(
        is_plain(layer, ROIAlign) for layer in pooler.level_poolers
    )
