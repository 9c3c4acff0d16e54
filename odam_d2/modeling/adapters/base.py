"""
The interface of what knows a family of detectors: run the user's model, tell what was read and
decided. :class:`HeadAdapter` (``head.py``) is for detectors of a backbone and a head,
:class:`OutputsAdapter` (``outputs.py``) for models of which nothing is known but their outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from odam_d2.modeling.errors import GENERAL_WAY, UnsupportedModelError
from odam_d2.modeling.views import class_name, with_overrides

from .trace import Trace

__all__ = ["ALL", "NO_NMS", "Adapter", "Chooser", "Run", "build_adapter", "register_adapter"]

NO_NMS = 2.0
"""A threshold of Detectron2's NMS that no IoU is above."""

ALL = 10**9
"""A number of detections that no image has."""

_ADAPTERS: dict[type, type[Adapter]] = {}

A = TypeVar("A", bound="Adapter")


class Chooser(Protocol):
    """Takes the place of a detector's own NMS, while the detector runs."""

    def __call__(
        self, trace: Trace, candidates: list[Instances], iou_thresh: float, max_detections: int
    ) -> tuple[list[Instances], Tensor]:
        """
        Args:
            trace: of all candidates.
            candidates: of each image, by decreasing score.
            iou_thresh, max_detections: of the detector's own NMS.

        Returns:
            The detections of each image, and their rows (n,) of the trace, in that order.
        """


class Run(NamedTuple):
    """
    One run of a model.

    Attributes:
        outputs: what it returned; its detections have the field :data:`ROW`.
        traces: of its detections, one after the other; one, unless the model runs its head more
            than once. Each is a :class:`Trace`, or what the kind of adapter has in its place.
        left_head: the detections of each image as they left the head, where that is known.
    """

    outputs: list
    traces: list[Any]
    left_head: Sequence[Instances] = ()


class Adapter(ABC):
    """
    Knows one family of detectors. It keeps nothing of a run, so that runs, also in several threads,
    share nothing. Use it under :func:`odam_d2.modeling.state.preserved`.

    Args:
        model: a detector of the family that the subclass was registered for, in evaluation mode.
        norm_statistics: ``"exact"`` or ``"constant"``, see ``MODEL.ODAM.NORM_STATISTICS``.
    """

    def __init__(self, model: nn.Module, norm_statistics: str = "constant"):
        self.original = model
        # Without its own settings, a model of ours does not explain once more by itself.
        self.model = with_overrides(model, odam=None, odam_training=None)
        self.norm_statistics = norm_statistics

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Classes of the detector, without background."""

    @property
    def name(self) -> str:
        """The model as its user knows it, for messages."""
        return class_name(self.model)

    def check_inputs(self, batched_inputs: list[dict]) -> None:  # noqa: B027 -- most need nothing
        """Raise an ``InputError`` where the model would fail for something that inputs lack."""

    def layer_or_default(self, layer: str) -> str:
        """The layer on whose output maps are made; empty for what the head reads."""
        return layer

    def check_layer(self, layer: str) -> None:  # noqa: B027 -- one that has layers looks
        """Raise a :class:`LayerError` where no maps can be made on a layer."""

    @abstractmethod
    def run(
        self,
        batched_inputs: list[dict],
        call: Callable[[nn.Module], list],
        choose: Chooser | None = None,
    ) -> Run:
        """
        Run the model once; what it returns is bit for bit its own, but for the rows.

        Args:
            batched_inputs: what it is run on.
            call: gets a view of the model, runs it on these inputs, and returns its outputs.
            choose: in the place of its NMS; None leaves that.

        Raises:
            UnsupportedModelError: it does more with its detections than what is explained.
        """

    def check_returned(self, run: Run) -> None:  # noqa: B027 -- one that knows a head looks
        """Raise where what the model returned is not what left its head, so that has no maps."""

    @abstractmethod
    def trace_boxes(
        self, batched_inputs: list[dict], boxes: Sequence[Boxes], classes: Sequence[Tensor]
    ) -> Any:
        """
        Where the model reads given boxes.

        Args:
            batched_inputs: as for the model.
            boxes: for each image, in pixels of the network's input image.
            classes: for each image (n,) class ids.
        """


def register_adapter(
    model_type: type,
) -> Callable[[type[A]], type[A]]:
    """
    Class decorator of an adapter.

    Args:
        model_type: the type of models that it knows, with its subclasses. An earlier adapter of
            that type is replaced.

    Returns:
        The decorator, which gives the adapter's class back.
    """

    def register(adapter: type[A]) -> type[A]:
        _ADAPTERS[model_type] = adapter
        return adapter

    return register


def build_adapter(model: nn.Module, norm_statistics: str = "constant") -> Adapter:
    """
    The adapter registered for the nearest base class of a model's type.

    Args:
        model: a detector in evaluation mode.
        norm_statistics: ``"exact"`` or ``"constant"``, see ``MODEL.ODAM.NORM_STATISTICS``.

    Returns:
        An adapter of that model.

    Raises:
        UnsupportedModelError: there is none; the message names the types that are known, and the
            general way.
    """
    for base in type(model).__mro__:
        if base in _ADAPTERS:
            return _ADAPTERS[base](model, norm_statistics)
    known = ", ".join(sorted(class_name(base) for base in _ADAPTERS))
    raise UnsupportedModelError(
        f"no explainer for the model type {class_name(model)}; there are explainers for "
        f"{known}, and any other model can be explained too: {GENERAL_WAY}"
    )
