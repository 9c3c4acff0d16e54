"""
What an explainer of a family of detectors provides.

An explainer runs a detector as Detectron2 does, keeps where each detection came from, and makes
heat maps of the survivors. It works on views of the modules (:mod:`odam_d2.modeling.views`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from odam_d2.core.errors import InputError
from odam_d2.core.heatmap import combine
from odam_d2.core.targets import DEFAULT_TARGETS, Target, parse_targets
from odam_d2.modeling.settings import ExplainSettings
from odam_d2.modeling.views import view_of
from odam_d2.structures import OdamMaps

__all__ = ["Explainer", "UnsupportedModelError", "build_explainer", "register_explainer"]

# How far a score or, relative to the image, a box may move when a head runs again on the detections
# alone. Rounding stays far below; a head that is not the one we think goes far beyond.
_SAME = 1e-2

_EXPLAINERS: dict[type, type[Explainer]] = {}


class UnsupportedModelError(InputError, TypeError):
    """No explainer knows this model, or a part of it; the message names the part."""


class Explainer(ABC):
    """
    Explains the detections of one model. Call it under :func:`odam_d2.modeling.state.borrowed`.

    Args:
        model: a detector of the family that the subclass was registered for.
        settings: what to explain, and how.

    Raises:
        ValueError: a target is unknown.
        UnsupportedModelError: a part of the model is not of a kind that can be explained.
    """

    def __init__(self, model: nn.Module, settings: ExplainSettings):
        # Without its own settings, a model of ours does not explain once more by itself.
        self.model = view_of(model, odam=None)
        self.settings = settings
        self.targets = parse_targets(settings.targets, self.num_classes, settings.class_names)
        parts = [target for target in self.targets if target.kind != "combined"]
        # "combined" alone is the maximum over the default targets.
        self.parts: tuple[Target, ...] = tuple(parts) or parse_targets(DEFAULT_TARGETS, 1)

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Classes of the detector, without background."""

    @abstractmethod
    def view(self) -> nn.Module:
        """
        The model with a field ``odam_maps`` in each ``Instances`` it returns; all else is the
        same, bit for bit.
        """

    @abstractmethod
    def explain_boxes(
        self, batched_inputs: list[dict], boxes: Sequence[Boxes], classes: Sequence[Tensor]
    ) -> list[Instances]:
        """
        Explain what the model says of given boxes and classes, one set for each image.

        Args:
            batched_inputs: as for the model.
            boxes: in pixels of the network's input image.
            classes: (N,) class ids.

        Returns:
            Instances in the frame of the network's input image, with ``pred_boxes`` and
            ``pred_classes`` as given, ``scores`` (the model's score for that class there) and
            ``odam_maps``.
        """

    @abstractmethod
    def explain_detections(self, *head_and_instances) -> None:
        """
        Called by the view with what the head read (and gave) and the traced detections of each
        image: sets their field ``odam_maps``.
        """

    @abstractmethod
    def autograd_outputs(self, *head_and_instances) -> tuple[list[Tensor], Tensor]:
        """
        The definition that fast ways are held to: the head's own graph, for plain autograd.

        Args:
            *head_and_instances: as for :meth:`explain_detections`, before it ran.

        Returns:
            Leaves, the feature maps (I, C, H, W) of each level, and the values (N, T) of
            :attr:`parts` for the detections of all images, computed from them.
        """

    def pack(self, values: Tensor, **geometry: Tensor) -> OdamMaps:
        """
        Name the maps, and add ``combined`` where it was asked for.

        Args:
            values: (N, T, h, w), maps of :attr:`parts`, in that order.
            **geometry: as for ``OdamMaps``.
        """
        if self.targets == self.parts:
            return OdamMaps([t.name for t in self.targets], values, **geometry)
        order = {target.name: number for number, target in enumerate(self.parts)}
        combined = combine(values)
        chosen = [
            combined[:, 0] if target.kind == "combined" else values[:, order[target.name]]
            for target in self.targets
        ]
        return OdamMaps([t.name for t in self.targets], torch.stack(chosen, dim=1), **geometry)

    def check_same(self, instances: Instances, scores: Tensor, boxes: Tensor) -> None:
        """
        Refuse to explain when running the head again does not give the detections' scores and
        boxes: the maps would be of something else.

        Args:
            instances: detections in the network's input frame.
            scores: (N,) probabilities, and boxes (N, 4), that the explained head gives.
        """
        if not len(instances):
            return
        again, found = Boxes(boxes.clone()), instances.pred_boxes.clone()
        # Not every detector has clipped its boxes at this point.
        again.clip(instances.image_size)
        found.clip(instances.image_size)
        size = max(instances.image_size)
        moved = (again.tensor - found.tensor).abs().max() / size
        changed = (scores - instances.scores).abs().max()
        if not (moved < _SAME and changed < _SAME):
            raise UnsupportedModelError(
                f"{type(self.model).__name__}'s detections do not come from the head that "
                f"{type(self).__name__} explains (scores differ by {changed:.3g}, boxes by "
                f"{moved * size:.3g} pixels): its own heads change them, so no map is given"
            )


def register_explainer(model_type: type):
    """Class decorator: the explainer of a model type and its subclasses."""

    def register(explainer: type[Explainer]) -> type[Explainer]:
        _EXPLAINERS[model_type] = explainer
        return explainer

    return register


def build_explainer(model: nn.Module, settings: ExplainSettings) -> Explainer:
    """The explainer registered for the nearest base class of ``model``'s type."""
    for base in type(model).__mro__:
        if base in _EXPLAINERS:
            return _EXPLAINERS[base](model, settings)
    known = ", ".join(sorted(base.__name__ for base in _EXPLAINERS))
    raise UnsupportedModelError(
        f"no explainer for the model type {type(model).__name__}; there are explainers for {known}"
    )
