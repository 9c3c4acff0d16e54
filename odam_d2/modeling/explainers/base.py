"""
The interface of everything that can explain a detector, and the registry that finds it.

Two kinds fulfil it. :class:`HeadExplainer` (``head.py``) is for detectors of a backbone and a head:
each family says in a file of its own what its head reads and decides. :class:`OutputsExplainer`
(``outputs.py``) asks nothing but a function that computes the outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from odam_d2.core.errors import InputError
from odam_d2.core.heatmap import combine
from odam_d2.core.probabilities import Probability, linearised, loses_digits, rescaled
from odam_d2.core.targets import DEFAULT_TARGETS, Target, outward, parse_targets
from odam_d2.modeling.conditions import conditions_together
from odam_d2.modeling.d_rise import PROBABILITIES, d_rise_maps
from odam_d2.modeling.losses import OdamTraining
from odam_d2.modeling.settings import DRiseSettings, ExplainSettings
from odam_d2.modeling.views import class_name, view_of
from odam_d2.structures import OdamMaps

__all__ = [
    "GENERAL_WAY",
    "Explainer",
    "UnsupportedModelError",
    "build_explainer",
    "register_explainer",
]

GENERAL_WAY = "explain it by odam_d2.explain_outputs (docs/your_own_head.md)"
"""What to do about a head that no explainer knows, for error messages."""

_EXPLAINERS: dict[type, type[Explainer]] = {}


class UnsupportedModelError(InputError, TypeError):
    """No explainer knows this model, or a part of it; the message names the part."""


class Explainer(ABC):
    """
    Explains the detections of one model, in one thread: it keeps what a batch needs on the way.
    Call it under :func:`odam_d2.modeling.state.borrowed`.

    Args:
        model: a detector of the family that the subclass was registered for, as ``borrowed`` gives
            it.
        settings: what to explain, and how.

    Raises:
        ValueError: a target or layer is unknown.
        UnsupportedModelError: a part of the model is not of a kind that can be explained.
    """

    def __init__(self, model: nn.Module, settings: ExplainSettings):
        self.original = model
        # Without its own settings, a model of ours does not explain once more by itself.
        self.model = view_of(model, odam=None, odam_training=None)
        self.settings = settings
        # Where there is another NMS, a model may be run for it alone.
        asked = bool(settings.targets) or settings.nms is None
        self.targets = (
            parse_targets(settings.targets, self.num_classes, settings.class_names) if asked else ()
        )
        self.records: list[Instances] = []
        parts = [target for target in self.targets if target.kind != "combined"]
        # "combined" alone is the maximum over the default targets.
        self.parts: tuple[Target, ...] = tuple(parts)
        if self.targets and not parts:
            self.parts = parse_targets(DEFAULT_TARGETS, 1)

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Classes of the detector, without background."""

    @property
    @abstractmethod
    def way(self) -> str:
        """How maps are computed, in a few words: ``"pooled"``, ``"window"``, ``"autograd"``, ..."""

    def check_inputs(self, batched_inputs: list[dict]) -> None:  # noqa: B027 -- most need nothing
        """Raise an ``InputError`` where the model would fail for something that inputs lack."""

    @abstractmethod
    def view(self) -> nn.Module:
        """
        The model with a field ``odam_maps`` in each ``Instances`` it returns; all else is the
        same, bit for bit.
        """

    def finish(self, outputs: list[dict], batched_inputs: list[dict]) -> list[dict]:
        """
        Add to outputs of :meth:`view`, postprocessed, what only the whole model can tell: the maps
        of D-RISE, and what NMS was given, where that is recorded.

        Args:
            outputs: of ``batched_inputs``.
        """
        self._add_candidates(outputs)
        if self.settings.method == "d_rise" and self.parts:
            self._add_d_rise_maps(outputs, batched_inputs)
        return outputs

    def _add_d_rise_maps(self, outputs: list[dict], batched_inputs: list[dict]) -> None:
        # forward: hooks on the model are for the user's image, not for thousands of masked ones.
        explainer = type(self)(self.original, replace(self.settings, record=False))
        view = explainer.view()

        def detect(inputs: list[dict]) -> list[dict]:
            with conditions_together():
                outputs = view.forward(inputs)
            explainer.forget()
            return outputs

        names = tuple(target.name for target in self.targets)
        # How maps are made matters where the NMS goes by them, not which ones are asked for.
        settings = replace(
            self.settings, targets=(), class_names=None, record=False, d_rise=DRiseSettings()
        )
        detector = {"model": self.model, "settings": settings}
        for output, given in zip(outputs, batched_inputs, strict=True):
            found = output["instances"]
            maps = d_rise_maps(detect, given, found, names, self.settings.d_rise, detector)
            if found.has(PROBABILITIES):
                found.remove(PROBABILITIES)
            found.odam_maps = maps

    def _add_candidates(self, outputs: list[dict]) -> None:
        for output, candidates in zip(outputs, self.records, strict=False):
            height, width = output["instances"].image_size
            rows, columns = candidates.image_size
            boxes = candidates.pred_boxes.clone()
            boxes.scale(width / columns, height / rows)
            boxes.clip((height, width))
            fields = candidates.get_fields() | {"pred_boxes": boxes}
            output["candidates"] = Instances((height, width), **fields)
        self.records = []

    def forget(self) -> None:  # noqa: B027 -- most keep nothing
        """Drop what was kept of a batch, before the next one."""

    def training_view(self, training: OdamTraining) -> nn.Module:
        """
        The model whose losses, in training, have one more: that on the heat maps of its positives.
        Build the explainer with :meth:`ExplainSettings.of_class_logit`.

        Raises:
            UnsupportedModelError: the maps of this model cannot be trained.
        """
        raise UnsupportedModelError(
            f"{class_name(self.model)} is explained by {type(self).__name__}, which cannot "
            "train heat maps: leave MODEL.ODAM.LOSS.NAME empty"
        )

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

    def select_values(self, scores: Tensor, boxes: Tensor, classes: Tensor) -> Tensor:
        """
        The targets (N, T) among what a head decided.

        Args:
            scores: (N, K) or more columns, as ``settings.score`` says.
            boxes: (N, 4), decoded.
            classes: (N,).
        """
        return torch.stack(self.select_targets(scores, boxes, classes)[0], dim=1)

    def select_targets(
        self,
        scores: Tensor,
        boxes: Tensor,
        classes: Tensor,
        closed_form: Callable[[Tensor], tuple[Probability, Sequence[Tensor]]] | None = None,
    ) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """
        As :meth:`select_values`, in a form in which probabilities near 0 and 1 can be
        differentiated.

        Args:
            scores, boxes, classes: as for :meth:`select_values`.
            closed_form: gets class ids (N,); returns the probabilities of these classes in a form
                whose derivative is known, and the logits that they are functions of. Without it
                ``scores`` are differentiated as they were computed.

        Returns:
            ``columns``, ``exponents`` and ``saturated`` of an :class:`Evaluation`. Without a graph
            there is nothing to differentiate, and columns are the targets themselves.
        """
        sides, columns = outward(boxes), []
        for target in self.parts:
            if target.kind == "side":
                columns.append(_as_computed(sides[:, target.index]))
                continue
            label = classes if target.index is None else torch.full_like(classes, target.index)
            chosen = scores.gather(1, label[:, None]).squeeze(1)
            if self.settings.score == "logit":
                columns.append(_as_computed(chosen))
            else:
                columns.append(_of_probability(chosen, closed_form and closed_form(label)))
        columns, exponents, saturated = zip(*columns, strict=True)
        if not all(column.requires_grad for column in columns):
            # What a head detaches has the gradient zero, as a part of what has a graph.
            columns = torch.stack(columns, dim=1).unbind(dim=1)
        return columns, torch.stack(exponents, dim=1), torch.stack(saturated, dim=1)

    def pack(
        self,
        values: Tensor,
        exponents: Tensor | None = None,
        saturated: Tensor | None = None,
        **geometry: Tensor,
    ) -> OdamMaps:
        """
        Name the maps, and add ``combined`` where it was asked for.

        Args:
            values: (N, T, h, w), maps of :attr:`parts`, in that order.
            exponents, saturated: of the :class:`Evaluation` that they are maps of.
            **geometry: as for ``OdamMaps``.
        """
        maps = values
        if saturated is None:
            saturated = torch.zeros(values.shape[:2], dtype=torch.bool, device=values.device)
        if exponents is not None:
            maps, lost = rescaled(values, exponents)
            saturated = saturated | lost
        if self.targets != self.parts:
            order = {target.name: number for number, target in enumerate(self.parts)}
            combined = combine(values)[:, 0], saturated.any(dim=1)
            chosen = [
                combined if target.kind == "combined" else (maps[:, at], saturated[:, at])
                for target, at in ((target, order.get(target.name)) for target in self.targets)
            ]
            maps, saturated = (torch.stack(parts, dim=1) for parts in zip(*chosen, strict=True))
        names = [target.name for target in self.targets]
        return OdamMaps(names, maps, saturated=saturated, **geometry)


def _as_computed(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values (N,) that are differentiated as they are, with their exponents and flags."""
    zeros = torch.zeros(values.shape, dtype=torch.float64, device=values.device)
    return values, zeros, zeros.bool()


def _of_probability(
    chosen: Tensor, closed: tuple[Probability, Sequence[Tensor]] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """
    See :meth:`Explainer.select_targets`.

    Args:
        chosen: (N,) probabilities, as computed.
        closed: the same in closed form, and the logits; None where that is not known.
    """
    if closed is not None and chosen.requires_grad:
        probability, logits = closed
        values, exponents = linearised(probability, logits)
        return values, exponents, torch.zeros_like(exponents, dtype=torch.bool)
    values, exponents, _ = _as_computed(chosen)
    return values, exponents, loses_digits(chosen.detach())


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
    known = ", ".join(sorted(class_name(base) for base in _EXPLAINERS))
    raise UnsupportedModelError(
        f"no explainer for the model type {class_name(model)}; there are explainers for "
        f"{known}, and any other model can be explained too: {GENERAL_WAY}"
    )
