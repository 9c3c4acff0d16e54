"""
The general way, for heads that nobody has described: whatever a function computes, by one backward
pass from each output to a layer that the user names.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from odam_d2.core.cam import CAMS
from odam_d2.core.errors import InputError
from odam_d2.core.gradients import gradient_heat_maps
from odam_d2.modeling.layers import CapturedLayer, captured, find_layer
from odam_d2.modeling.settings import ExplainSettings
from odam_d2.modeling.views import view_of

from .base import Explainer, UnsupportedModelError
from .reading import split_by_image

__all__ = ["OutputsExplainer", "output_maps"]


def output_maps(
    model: nn.Module,
    batched_inputs: list[dict],
    outputs: Callable[[list[dict]], Sequence[Tensor]],
    layer: str,
    settings: ExplainSettings,
) -> tuple[Tensor, CapturedLayer, list[int]]:
    """
    Heat maps of what a function computes from a layer's output.

    Args:
        model: the network that ``outputs`` runs.
        batched_inputs: Detectron2's input format.
        outputs: gets ``batched_inputs`` and returns for each image (n, T), computed with gradients
            on from one pass of the layer.
        layer: see :func:`odam_d2.modeling.layers.find_layer`.
        settings: smoothing and memory.

    Returns:
        Maps (N, T, h, w) of all images, the layer, and the number of outputs of each image.

    Raises:
        InputError: the layer is wrong, or ``outputs`` does not return what it should.
    """
    size = _InputSize(model, batched_inputs)
    with size, captured(model, layer, size) as found, torch.enable_grad():
        values = list(outputs(batched_inputs))
    counts = _check(values, batched_inputs, layer)
    with torch.enable_grad():
        targets = torch.cat(values).unbind(dim=1)
    image = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    columns = [
        gradient_heat_maps(
            value,
            found.feature,
            image.to(value.device),
            settings.smoothing_sigma,
            max_bytes=settings.max_bytes,
            weigh=CAMS.get(settings.method),
        )
        for value in targets
    ]
    return torch.stack(columns, dim=1), found, counts


class OutputsExplainer(Explainer):
    """
    Base class for the explainer of a model that is in no family: register a subclass by
    :func:`register_explainer`, and :func:`odam_d2.explain` and the tools work with the model.

    Attributes:
        layer: the layer on whose output maps are made, unless ``settings.layer`` names another.
    """

    layer: str

    def __init__(self, model: nn.Module, settings: ExplainSettings):
        super().__init__(model, settings)
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

    @property
    def way(self) -> str:
        return f"autograd at {self._layer}"

    @property
    def _layer(self) -> str:
        return self.settings.layer or self.layer

    def view(self) -> nn.Module:
        return view_of(self.model, _Explaining, odam_explainer=self)

    def explain_results(self, batched_inputs: list[dict], results: list[dict]) -> None:
        """Set the field ``odam_maps`` of what the model returned."""
        if self.settings.method == "d_rise":
            return  # the maps come last, see :meth:`finish`
        if self.settings.method == "input_gradient":
            raise UnsupportedModelError(
                f"{type(self.model).__name__} is explained by its outputs from a layer on, so the "
                "method 'input_gradient' is not possible"
            )
        values, layer, counts = output_maps(
            self.model,
            batched_inputs,
            lambda inputs: self.outputs(inputs, results),
            self._layer,
            self.settings,
        )
        maps = self.pack(values, **layer_geometry(layer, batched_inputs, counts))
        for result, part in zip(results, split_by_image(maps, counts), strict=True):
            if len(part) != len(result["instances"]):
                raise InputError(
                    f"{type(self).__name__}.outputs returned values of {len(part)} detections, and "
                    f"the model found {len(result['instances'])}"
                )
            result["instances"].odam_maps = part

    def explain_boxes(
        self, batched_inputs: list[dict], boxes: Sequence[Boxes], classes: Sequence[Tensor]
    ) -> list[Instances]:
        raise UnsupportedModelError(
            f"{type(self.model).__name__} is explained by its outputs, so boxes cannot be given"
        )


class _Explaining:
    """Mixin for a model whose ``forward`` takes and returns Detectron2's formats."""

    def forward(self, batched_inputs):
        results = super().forward(batched_inputs)
        self.odam_explainer.explain_results(batched_inputs, results)
        return results


def layer_geometry(
    layer: CapturedLayer, batched_inputs: list[dict], counts: list[int]
) -> dict[str, Tensor]:
    """The fields of ``OdamMaps`` for maps on whole layers."""
    feature = layer.feature
    sizes = [x["image"].shape[-2:] for x in batched_inputs]
    image_sizes = torch.tensor(
        [size for size, count in zip(sizes, counts, strict=True) for _ in range(count)],
        dtype=torch.int64,
        device=feature.device,
    ).view(-1, 2)
    pair = torch.ones_like(image_sizes)
    return {
        "origins": torch.zeros_like(pair),
        "strides": feature.new_full((len(pair),), layer.stride).detach(),
        "grid_sizes": pair * pair.new_tensor(feature.shape[-2:]),
        "image_sizes": image_sizes,
        "levels": torch.zeros_like(pair[:, 0]),
    }


class _InputSize:
    """
    (height, width) of the padded images: those of the first four-dimensional tensor that goes into
    a child of the model, which in Detectron2 is what the backbone gets.
    """

    def __init__(self, model: nn.Module, batched_inputs: list[dict]):
        self.children = list(model.children())
        sizes = [x["image"].shape[-2:] for x in batched_inputs]
        self.of_images = (max(h for h, _ in sizes), max(w for _, w in sizes))
        self.padded: tuple[int, int] | None = None

    def __call__(self) -> tuple[int, int]:
        return self.padded or self.of_images

    def __enter__(self):
        self.handles = [m.register_forward_pre_hook(self._see) for m in self.children]
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()

    def _see(self, _module, args):
        for value in args:
            if self.padded is None and isinstance(value, Tensor) and value.dim() == 4:
                self.padded = tuple(value.shape[-2:])


def _check(values: Sequence[Tensor], batched_inputs: list[dict], layer: str) -> list[int]:
    """Number of outputs of each image."""
    if len(values) != len(batched_inputs):
        raise InputError(
            f"outputs returned {len(values)} tensors for {len(batched_inputs)} images; it must "
            "return one for each image"
        )
    shapes = [tuple(value.shape) for value in values]
    if any(len(shape) != 2 or shape[1] != shapes[0][1] for shape in shapes):
        raise InputError(
            f"outputs returned tensors of shapes {shapes}; each must be (n, T): n instances of "
            "the image, and T targets, the same for all"
        )
    if any(len(value) and not value.requires_grad for value in values):
        raise InputError(
            f"outputs returned values that do not depend on layer {layer!r}: were they computed "
            "under no_grad, detached, or from another layer?"
        )
    return [shape[0] for shape in shapes]
