"""A detector that explains single pictures, prepared as by Detectron2's ``DefaultPredictor``."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.structures import Instances

from odam_d2 import ExplainSettings, UnsupportedModelError, explain
from odam_d2.engine import load_weights
from odam_d2.errors import UserError
from odam_d2.modeling.explainers import build_explainer
from odam_d2.modeling.state import borrowed

__all__ = ["ExplainingPredictor", "set_score_threshold"]


def set_score_threshold(cfg: CfgNode, threshold: float) -> None:
    """
    Make every kind of detector in ``cfg`` drop detections below a score, in place.

    Raises:
        UserError: ``threshold`` is not in [0, 1].
    """
    if not 0 <= threshold <= 1:
        raise UserError(f"the confidence threshold must be in [0, 1], not {threshold:g}")
    for name in ("ROI_HEADS", "RETINANET", "FCOS"):
        if name in cfg.MODEL:
            cfg.MODEL[name].SCORE_THRESH_TEST = threshold


class ExplainingPredictor:
    """
    Detects and explains in one picture at a time.

    Attributes:
        class_names (tuple[str]): by class id; "class K" where the config's data set has no names.
        targets (tuple[str]): what is explained.
    """

    def __init__(self, cfg: CfgNode, targets: Sequence[str] | None = None):
        """
        Build the model, load its weights, and check that it can be explained.

        Args:
            cfg: config with ``MODEL.ODAM``. It is not changed.
            targets: as for :func:`odam_d2.explain`; ``cfg.MODEL.ODAM.TARGETS`` by default.

        Raises:
            UserError: the weights do not fit, a target or class is unknown, the image format is
                not RGB or BGR, or the model is of no kind that can be explained.
        """
        if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
            raise UserError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r}; pictures are RGB or BGR")
        targets = tuple(cfg.MODEL.ODAM.TARGETS if targets is None else targets)
        cfg = cfg.clone()
        self.input_format = cfg.INPUT.FORMAT
        self.resize = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
        self.model = build_model(cfg).eval()
        num_classes = self._check_targets(cfg, targets)
        load_weights(self.model, cfg.MODEL.WEIGHTS)
        names = self.settings.class_names or [f"class {k}" for k in range(num_classes)]
        self.class_names = tuple(names)
        self.targets = targets

    def _check_targets(self, cfg: CfgNode, targets: Sequence[str]) -> int:
        """Make ``self.settings``, and return the number of classes."""
        try:
            self.settings = dataclasses.replace(ExplainSettings.from_config(cfg), targets=targets)
            with borrowed(self.model):
                return build_explainer(self.model, self.settings).num_classes
        except (ValueError, UnsupportedModelError) as error:
            raise UserError(str(error)) from error

    def __call__(self, image: np.ndarray) -> Instances:
        """
        Detect and explain.

        Args:
            image: (H, W, 3) uint8 RGB. It is not changed.

        Returns:
            Instances on the CPU, boxes in pixels of ``image``, with the field ``odam_maps``, the
            highest score first.
        """
        height, width = image.shape[:2]
        picture = image if self.input_format == "RGB" else image[:, :, ::-1]
        picture = self.resize.get_transform(picture).apply_image(picture)
        tensor = torch.as_tensor(picture.astype("float32").transpose(2, 0, 1))
        inputs = [{"image": tensor, "height": height, "width": width}]
        settings = {
            f.name: getattr(self.settings, f.name) for f in dataclasses.fields(self.settings)
        }
        found = explain(self.model, inputs, **settings)[0]["instances"].to("cpu")
        return found[found.scores.argsort(descending=True, stable=True)]
