"""When a loss on heat maps is applied, how much it counts, and on which positives."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from odam_d2.core.errors import InputError
from odam_d2.core.ranges import check_flag, check_number

from .positives import Positives
from .registry import ODAM_LOSS_REGISTRY

__all__ = ["LOSS", "OdamTraining", "build_odam_training"]

LOSS = "loss_odam"
"""Name of the loss among those of the model."""

_MOST = 10**9
# What numbers of MODEL.ODAM.LOSS must be: in words, least, greatest, and whether they are whole.
_RANGES = {
    "weight": ("0 or more, and 1e9 at most", 0, _MOST, False),
    "start_iter": ("0 or more iterations", 0, _MOST, True),
    "warmup_iters": ("0 or more iterations", 0, _MOST, True),
    "max_samples": ("1 or more", 1, _MOST, True),
    "grid_stride": ("1 or more pixels", 1, _MOST, False),
}


class OdamTraining(nn.Module):
    """
    A registered loss with its schedule. It adds no parameter of its own.

    Attributes:
        loss: see ``ODAM_LOSS_REGISTRY``.
        max_samples: positives of an image that get a map.
        grid_stride: pixels of the network's input per cell of the grid on which maps are compared.
        second_order: whether the gradients that maps are made of are differentiated as well.
    """

    @configurable
    def __init__(
        self,
        *,
        loss: nn.Module,
        weight: float = 0.2,
        start_iter: int = 0,
        warmup_iters: int = 0,
        max_samples: int = 300,
        grid_stride: float = 16,
        second_order: bool = True,
    ):
        """
        Args:
            weight: of the loss among those of the detector. With 0 it is measured, for its
                scalars, and not trained on.
            start_iter: iteration from which on the loss is computed.
            warmup_iters: iterations from there until the weight is reached, linearly.
            loss, max_samples, grid_stride, second_order: see the class.
        """
        super().__init__()
        self.loss = loss
        self.weight = weight
        self.start_iter = start_iter
        self.warmup_iters = warmup_iters
        self.max_samples = max_samples
        self.grid_stride = grid_stride
        self.second_order = second_order
        for name, (words, low, high, whole) in _RANGES.items():
            key, value = f"MODEL.ODAM.LOSS.{name.upper()}", getattr(self, name)
            check_number(key, value, words, low, high, whole=whole)
        check_flag("MODEL.ODAM.LOSS.SECOND_ORDER", second_order)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        node = cfg.MODEL.ODAM.LOSS
        words = "0 (never) or a number of iterations"
        check_number("MODEL.ODAM.LOSS.VIS_PERIOD", node.VIS_PERIOD, words, 0, _MOST, whole=True)
        known = sorted(name for name, _ in ODAM_LOSS_REGISTRY)
        if node.NAME not in known:
            raise InputError(
                f"MODEL.ODAM.LOSS.NAME is {node.NAME!r}; the registered losses are "
                f"{', '.join(known)}, and '' is none"
            )
        return {
            "loss": ODAM_LOSS_REGISTRY.get(node.NAME)(cfg),
            "weight": node.WEIGHT,
            "start_iter": node.START_ITER,
            "warmup_iters": node.WARMUP_ITERS,
            "max_samples": node.MAX_SAMPLES,
            "grid_stride": node.GRID_STRIDE,
            "second_order": node.SECOND_ORDER,
        }

    def weight_at(self, iteration: int) -> float:
        """Weight in one iteration; the first one with the loss already has a share of it."""
        done = iteration - self.start_iter + 1
        return self.weight * min(max(done / max(1, self.warmup_iters), 0.0), 1.0)

    @property
    def is_active(self) -> bool:
        """Whether maps are needed in the current iteration of the event storage."""
        return get_event_storage().iter >= self.start_iter

    @property
    def trains(self) -> bool:
        """Whether the loss is trained on in the current iteration, and not only measured."""
        return self.weight_at(get_event_storage().iter) > 0

    def forward(self, stages: Sequence[Sequence[Positives]], graph: Tensor) -> Tensor:
        """
        Args:
            stages: the positives of each image, for each stage of a cascade; else one stage.
            graph: a tensor of the network, for batches without any positive.

        Returns:
            The weighted scalar, mean over stages. It always has a graph.
        """
        storage, losses = get_event_storage(), []
        for number, batch in enumerate(stages):
            scope = storage.name_scope(f"stage{number}")  # as Detectron2's cascade does
            with (
                scope if len(stages) > 1 else contextlib.nullcontext(),
                torch.autocast(graph.device.type, enabled=False),
            ):
                losses.append(self.loss(batch))
        total = torch.stack(losses).mean() * self.weight_at(storage.iter)
        return total if total.requires_grad else total + graph.float().sum() * 0


def build_odam_training(cfg: CfgNode) -> OdamTraining | None:
    """
    The training of heat maps that a config asks for.

    Args:
        cfg: with ``MODEL.ODAM.LOSS``.

    Returns:
        What it says; None where its ``NAME`` is empty.

    Raises:
        InputError: the name is not registered (the message lists those that are), or a value is
            out of its range.
    """
    return OdamTraining(cfg) if cfg.MODEL.ODAM.LOSS.NAME else None
