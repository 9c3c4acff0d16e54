"""
Meta-architectures that explain what they detect.

They add no parameter and rename none, so every checkpoint of the Detectron2 model that they derive
from loads unchanged, and training is that model's own.
"""

from __future__ import annotations

from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.modeling.meta_arch import RetinaNet

from .explainers import build_explainer
from .settings import ExplainSettings
from .state import borrowed

__all__ = ["OdamRCNN", "OdamRetinaNet"]


@META_ARCH_REGISTRY.register()
class OdamRCNN(GeneralizedRCNN):
    """
    ``GeneralizedRCNN`` whose detections carry a field ``odam_maps``: one heat map for each target
    in ``MODEL.ODAM.TARGETS``. Without targets it is ``GeneralizedRCNN``.
    """

    @configurable
    def __init__(self, *, odam: ExplainSettings | None = None, **kwargs):
        """
        Args:
            odam: what to explain, and how; None for nothing.
            **kwargs: as for ``GeneralizedRCNN``.
        """
        super().__init__(**kwargs)
        self.odam = odam

    @classmethod
    def from_config(cls, cfg):
        return {**super().from_config(cfg), "odam": ExplainSettings.from_config(cfg)}

    def inference(self, batched_inputs, detected_instances=None, do_postprocess=True):
        """As ``GeneralizedRCNN.inference``; boxes given by the caller are not explained."""
        if self.odam is None or not self.odam.targets or detected_instances is not None:
            return super().inference(batched_inputs, detected_instances, do_postprocess)
        with borrowed(self):
            view = build_explainer(self, self.odam).view()
            return view.inference(batched_inputs, do_postprocess=do_postprocess)


@META_ARCH_REGISTRY.register()
class OdamRetinaNet(RetinaNet):
    """
    ``RetinaNet`` whose detections carry a field ``odam_maps``, see :class:`OdamRCNN`.
    """

    @configurable
    def __init__(self, *, odam: ExplainSettings | None = None, **kwargs):
        """
        Args:
            odam: what to explain, and how; None for nothing.
            **kwargs: as for ``RetinaNet``.
        """
        super().__init__(**kwargs)
        self.odam = odam

    @classmethod
    def from_config(cls, cfg):
        return {**super().from_config(cfg), "odam": ExplainSettings.from_config(cfg)}

    def forward(self, batched_inputs):
        """As ``RetinaNet.forward``."""
        if self.training or self.odam is None or not self.odam.targets:
            return super().forward(batched_inputs)
        with borrowed(self):
            return build_explainer(self, self.odam).view()(batched_inputs)
