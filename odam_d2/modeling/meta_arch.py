"""
Meta-architectures that explain what they detect.

They add no parameter and rename none, so every checkpoint of the Detectron2 model that they derive
from loads unchanged. Training is that model's own, with one more loss where
``MODEL.ODAM.LOSS.NAME`` names one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, PanopticFPN
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.structures import Instances
from torch import nn

from .adapters import build_adapter
from .explanation import Explanation
from .fcos import ConfigurableFCOS
from .losses import OdamTraining, build_odam_training
from .settings import ExplainSettings
from .state import preserved
from .training import training_view
from .views import Viewed

__all__ = ["EXPLAINING", "OdamFCOS", "OdamPanopticFPN", "OdamRCNN", "OdamRetinaNet"]

EXPLAINING = {
    "GeneralizedRCNN": "OdamRCNN",
    "PanopticFPN": "OdamPanopticFPN",
    "RetinaNet": "OdamRetinaNet",
}
"""Of Detectron2's meta-architectures, ours of the same parameters that explain, by their names."""


class ExplainingModel(Viewed):
    """
    Mixin in front of a model of Detectron2: in evaluation, its detections carry a field
    ``odam_maps``, and in training its losses have one on heat maps, ``loss_odam``. Without targets,
    and without a loss, nothing is changed.
    """

    @configurable
    def __init__(
        self,
        *,
        odam: ExplainSettings | None = None,
        odam_training: OdamTraining | None = None,
        **kwargs: object,
    ):
        """
        Args:
            odam: what to explain, and how; None for nothing.
            odam_training: the loss on heat maps; None for none.
            **kwargs: as for the model of Detectron2.
        """
        super().__init__(**kwargs)
        self.odam = odam
        self.odam_training = odam_training
        if odam_training is not None:
            self._training_view(odam_training)  # what cannot be trained is refused at once

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {
            **super().from_config(cfg),
            "odam": ExplainSettings.from_config(cfg),
            "odam_training": build_odam_training(cfg),
        }

    def forward(self, batched_inputs: list[dict]) -> Any:
        """As the ``forward`` of the model of Detectron2."""
        training = self.odam_training
        if self.training and training is not None and training.is_active:
            return self._training_view(training).forward(batched_inputs)
        if self.training or not self._explains:
            return super().forward(batched_inputs)
        # Not view(...): it shares the hooks, which have run, or will, around this call.
        return self._explain(batched_inputs, lambda view: view.forward(batched_inputs))

    @property
    def _explains(self) -> bool:
        """Whether detections are explained, or chosen by another NMS."""
        return self.odam is not None and bool(self.odam.targets or self.odam.nms is not None)

    def _explain(self, batched_inputs: list[dict], call: Callable) -> Any:
        """What a call of a view of this model returns, explained."""
        with preserved(self) as model:
            return Explanation.of(model, self.odam or ExplainSettings()).run(batched_inputs, call)

    def _training_view(self, training: OdamTraining) -> nn.Module:
        """This model with one more loss."""
        return training_view(build_adapter(self), training, self.odam or ExplainSettings())


@META_ARCH_REGISTRY.register()
class OdamRCNN(ExplainingModel, GeneralizedRCNN):
    """
    ``GeneralizedRCNN`` whose detections carry a field ``odam_maps``: one heat map for each target
    in ``MODEL.ODAM.TARGETS``. Without targets it is ``GeneralizedRCNN``.
    """

    def inference(
        self,
        batched_inputs: list[dict],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> Any:
        """As ``GeneralizedRCNN.inference``; boxes given by the caller are not explained."""
        if not self._explains or detected_instances is not None:
            return super().inference(batched_inputs, detected_instances, do_postprocess)
        return self._explain(
            batched_inputs,
            lambda view: view.inference(batched_inputs, do_postprocess=do_postprocess),
        )


@META_ARCH_REGISTRY.register()
class OdamPanopticFPN(ExplainingModel, PanopticFPN):
    """
    ``PanopticFPN`` whose detections (``"instances"``) carry a field ``odam_maps``, see
    :class:`OdamRCNN`. What it says of stuff, and the panoptic result, are not explained.
    """

    def inference(self, batched_inputs: list[dict], do_postprocess: bool = True) -> Any:
        """As ``PanopticFPN.inference``."""
        if not self._explains:
            return super().inference(batched_inputs, do_postprocess)
        return self._explain(
            batched_inputs, lambda view: view.inference(batched_inputs, do_postprocess)
        )


@META_ARCH_REGISTRY.register()
class OdamRetinaNet(ExplainingModel, RetinaNet):
    """
    ``RetinaNet`` whose detections carry a field ``odam_maps``, see :class:`OdamRCNN`.
    """


@META_ARCH_REGISTRY.register()
class OdamFCOS(ExplainingModel, ConfigurableFCOS):
    """
    ``FCOS`` whose detections carry a field ``odam_maps``, see :class:`OdamRCNN`; built from
    ``MODEL.FCOS``, which Detectron2 itself does not have.
    """
