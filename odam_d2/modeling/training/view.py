"""The interface of what trains the heat maps of a family."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import singledispatch

from torch import Tensor, nn

from odam_d2.modeling.adapters.base import Adapter
from odam_d2.modeling.adapters.head import HeadAdapter
from odam_d2.modeling.adapters.trace import Trace
from odam_d2.modeling.attribution.geometry import level_geometry
from odam_d2.modeling.errors import UnsupportedModelError
from odam_d2.modeling.losses import Labels, OdamTraining, Positives
from odam_d2.modeling.settings import ExplainSettings
from odam_d2.modeling.targets import ClassScore, Targets
from odam_d2.modeling.views import class_name

__all__ = ["positives", "training_view"]


@singledispatch
def training_view(adapter: Adapter, training: OdamTraining, settings: ExplainSettings) -> nn.Module:
    """
    The model whose losses, in training, have one more: that on the heat maps of its positives, of
    their class logits on what the head reads.

    Args:
        adapter: of the model, with constant statistics.
        training: the loss.
        settings: smoothing and memory.

    Raises:
        UnsupportedModelError: the maps of this model cannot be trained.
    """
    raise UnsupportedModelError(
        f"{class_name(adapter.model)} is explained by {type(adapter).__name__}, which cannot "
        "train heat maps: leave MODEL.ODAM.LOSS.NAME empty"
    )


def positives(
    adapter: HeadAdapter,
    trace: Trace,
    windows: tuple[Tensor, Tensor],
    labels: Sequence[Labels],
    stride: float,
) -> list[Positives]:
    """
    What a loss sees of groups of positives, as many for each image.

    Args:
        trace: of the chosen positives of the batch, N > 0.
        windows: their maps (N, 1, h, w), with a graph, and origins (N, 2).
        labels: of each group, image by image.
        stride: pixels of the network's input per cell of the grid for all maps of an image.
    """
    values, origins = windows
    geometry = level_geometry(adapter, trace, origins)
    maps = Targets([ClassScore("class", None, "logit")]).maps(values, **geometry)
    sizes = [tuple(math.ceil(side / stride) for side in size) for size in trace.image_sizes]
    largest = tuple(map(max, zip(*sizes, strict=True)))
    of_groups = maps.resampled(stride, largest)[:, 0].split([len(x) for x in labels])
    each = len(labels) // len(sizes)
    grids = [size for size in sizes for _ in range(each)]
    return [
        Positives(of_group[:, :rows, :columns], of_labels)
        for of_group, of_labels, (rows, columns) in zip(of_groups, labels, grids, strict=True)
    ]
