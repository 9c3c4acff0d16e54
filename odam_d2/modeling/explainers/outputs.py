"""The explainer of a model that is in no family: one that is explained by what it computes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import fields

from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from odam_d2.core.errors import InputError
from odam_d2.modeling.layers import find_layer
from odam_d2.modeling.settings import ExplainSettings
from odam_d2.modeling.views import view_of
from odam_d2.structures import OdamMaps

from .base import Explainer, UnsupportedModelError
from .output_maps import output_maps
from .reading import split_by_image

__all__ = ["OutputsExplainer"]

# Settings that only the subclass could follow.
_OF_OUTPUTS = ("score", "norm_statistics", "nms")


class OutputsExplainer(Explainer):
    """
    Base class for the explainer of a model that is in no family: register a subclass by
    :func:`register_explainer`, and :func:`odam_d2.explain` and the tools work with the model.

    Attributes:
        layer: the layer on whose output maps are made, unless ``settings.layer`` names another.
        follows: which of the settings ``"score"``, ``"norm_statistics"`` and ``"nms"`` the subclass
            follows; another value than the default of those that it does not is refused.
    """

    layer: str = ""
    follows: Sequence[str] = ()

    def __init__(self, model: nn.Module, settings: ExplainSettings):
        super().__init__(model, settings)
        defaults = {field.name: field.default for field in fields(settings)}
        for name in _OF_OUTPUTS:
            value = getattr(settings, name)
            if name not in self.follows and value != defaults[name]:
                raise UnsupportedModelError(
                    f"{type(model).__name__} is explained by what {type(self).__name__}.outputs "
                    f"returns, which does not follow the setting {name!r}: leave it at "
                    f"{defaults[name]!r}, or name it in the explainer's 'follows'"
                )
        if settings.method not in ("input_gradient", "d_rise"):
            find_layer(model, self._layer)

    @abstractmethod
    def outputs(self, batched_inputs: list[dict], results: list[dict]) -> list[Tensor]:
        """
        The values of :attr:`parts`, (n, T) for each image, with a graph: run ``self.model`` and
        read them off (:meth:`select_values` helps).

        Args:
            batched_inputs: as the model gets them.
            results: what the model returned for them: the n detections of each image.
        """

    def outputs_of_boxes(
        self, batched_inputs: list[dict], boxes: Sequence[Boxes], classes: Sequence[Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        """
        Optional, for :func:`odam_d2.explain_boxes`: what the model says of given boxes.

        Args:
            batched_inputs: as the model gets them.
            boxes: for each image (n, 4), in pixels of the network's input image.
            classes: for each image (n,).

        Returns:
            For each image the values of :attr:`parts` (n, T), with a graph, and the model's scores
            (n,) for these classes there.
        """
        raise UnsupportedModelError(
            f"{type(self.model).__name__} is explained by its outputs, so boxes cannot be given "
            f"unless {type(self).__name__} defines outputs_of_boxes (docs/your_own_head.md)"
        )

    @property
    def way(self) -> str:
        if self.settings.method == "d_rise":
            return "masked images"
        return f"autograd at {self._layer or 'the image'}"

    @property
    def _layer(self) -> str:
        at_image = self.settings.method == "input_gradient"
        return "" if at_image else self.settings.layer or self.layer

    def view(self) -> nn.Module:
        return view_of(self.model, _Explaining, odam_explainer=self)

    def explain_results(self, batched_inputs: list[dict], results: list[dict]) -> None:
        """Set the field ``odam_maps`` of what the model returned."""
        if self.settings.method == "d_rise":
            return  # the maps come last, see :meth:`finish`
        if not all(isinstance(result, dict) and "instances" in result for result in results):
            raise InputError(
                f"{type(self.model).__name__} must return Detectron2's output format, a list of "
                "dicts with 'instances', to be explained; explain_outputs asks nothing of the kind"
            )
        counts = [len(result["instances"]) for result in results]
        maps = self._maps(batched_inputs, lambda inputs: self.outputs(inputs, results), counts)
        for result, part in zip(results, maps, strict=True):
            result["instances"].odam_maps = part

    def explain_boxes(
        self, batched_inputs: list[dict], boxes: Sequence[Boxes], classes: Sequence[Tensor]
    ) -> list[Instances]:
        scores: list[Tensor] = []

        def outputs(inputs: list[dict]) -> list[Tensor]:
            found = self.outputs_of_boxes(inputs, boxes, classes)
            scores[:] = [of_image.detach() for _, of_image in found]
            return [values for values, _ in found]

        maps = self._maps(batched_inputs, outputs, [len(of_image) for of_image in boxes])
        return [
            Instances(
                tuple(given["image"].shape[-2:]),
                pred_boxes=boxes[number],
                pred_classes=classes[number],
                scores=scores[number],
                odam_maps=maps[number],
            )
            for number, given in enumerate(batched_inputs)
        ]

    def _maps(
        self,
        batched_inputs: list[dict],
        outputs: Callable[[list[dict]], list[Tensor]],
        counts: list[int],
    ) -> list[OdamMaps]:
        """The maps of each image, of ``counts`` instances."""

        def checked(inputs: list[dict]) -> list[Tensor]:
            values = outputs(inputs)
            given = [len(of_image) for of_image in values]
            if given != counts:
                raise InputError(
                    f"{type(self).__name__} returned values of {given} instances, one number for "
                    f"each image, and there are {counts}"
                )
            return values

        names = [target.name for target in self.parts]
        found = output_maps(self.model, batched_inputs, checked, self._layer, names, self.settings)
        return split_by_image(self.pack(found.values, **found.fields), found.counts)


class _Explaining:
    """Mixin for a model whose ``forward`` takes and returns Detectron2's formats."""

    def forward(self, batched_inputs):
        results = super().forward(batched_inputs)
        self.odam_explainer.explain_results(batched_inputs, results)
        return results
