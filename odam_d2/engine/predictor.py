"""A detector that explains single pictures, made like Detectron2's ``DefaultPredictor``."""

import copy
import dataclasses
import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.structures import Instances

from odam_d2.core.errors import InputError
from odam_d2.data.mapper import told_if_too_thin
from odam_d2.errors import UserError
from odam_d2.modeling import ExplainSettings, UnsupportedModelError, explain
from odam_d2.modeling.explanation import Explanation
from odam_d2.modeling.nms import Nms
from odam_d2.modeling.state import preserved

from .detector import Detector, build_detector

__all__ = ["ExplainingPredictor"]

logger = logging.getLogger(__name__)


class ExplainingPredictor:
    """
    Detects and explains in one picture at a time: ``ExplainingPredictor(cfg)(image)``, where the
    image is BGR, as ``cv2.imread`` reads it. It is resized, and its channels are ordered, as the
    config says.

    Attributes:
        class_names (tuple[str]): by class id; "class K" where the config's data set
            has no names, or not as many as the detector has classes.
        targets (tuple[str]): what is explained.
        weights (str): path or address of the checkpoint.
    """

    def __init__(
        self,
        cfg: CfgNode | Mapping,
        targets: Sequence[str] | None = None,
        score_threshold: float | None = None,
        *,
        preset: str | None = None,
        signed: bool | None = None,
    ):
        """
        Build the model, load its weights, and check that it can be explained.

        Args:
            cfg: config with ``MODEL.ODAM``, or a LazyConfig. It is not changed.
            targets: as for :func:`odam_d2.explain`; by default ``MODEL.ODAM.TARGETS`` of the
                config, or for a LazyConfig those of its model, if it has any.
            score_threshold: least score of a detection, in [0, 1]; by default what the config says.
            preset, signed: of :class:`odam_d2.ExplainSettings`; by default what the config says.

        Raises:
            UserError: a part of the config cannot be built, the weights do not fit, a target or
                class is unknown, the image format is not RGB or BGR, or the model is of no kind
                that can be explained.
        """
        try:
            detector = build_detector(cfg, score_threshold)
            self.settings, num_classes = _checked_settings(
                detector, _changes(targets, preset, signed)
            )
        except (InputError, UnsupportedModelError) as error:
            raise UserError(str(error)) from error
        detector.load()
        self.detector = detector
        self.weights = detector.weights
        names = self.settings.class_names
        if names is not None and len(names) != num_classes:
            logger.warning(
                "the data set of the config has %d classes and the detector %d: its names are not "
                "used", len(names), num_classes,
            )  # fmt: skip
            names = None
        self.class_names = tuple(names or [f"class {k}" for k in range(num_classes)])
        self.targets = self.settings.targets

    @property
    def method(self) -> str:
        """What makes the maps, by its name."""
        how = self.settings.preset or self.settings.method
        return how if isinstance(how, str) else type(how).__name__

    def by_preset(self, preset: str) -> "ExplainingPredictor":
        """
        The same detector, explained by a preset.

        Raises:
            UserError: there is no such preset, or it cannot explain this detector.
        """
        other = copy.copy(self)
        try:
            changes = _changes(None, preset, None)
            other.settings, _ = _checked_settings(self.detector, changes, self.settings)
        except (InputError, UnsupportedModelError) as error:
            raise UserError(str(error)) from error
        return other

    def __call__(self, image: np.ndarray) -> dict:
        """
        Detect and explain.

        Args:
            image: (H, W, 3) uint8 BGR. It is not changed.

        Returns:
            Detectron2's output of one image, ``{"instances": Instances}``, boxes in pixels of
            ``image``, with the field ``odam_maps``.
        """
        return self._explain(image, self.settings)

    def candidates(self, image: np.ndarray) -> Instances:
        """
        What NMS was given, and what became of it: that of ``MODEL.ODAM.NMS``, else Detectron2's.

        Args:
            image: (H, W, 3) uint8 BGR. It is not changed.

        Returns:
            Instances, boxes in pixels of ``image``, with the fields that ``MODEL.ODAM.NMS.RECORD``
            gives and their class maps ``odam_maps``.
        """
        nms = self.settings.nms or Nms()
        settings = dataclasses.replace(self.settings, targets=(), nms=nms, record=True)
        return self._explain(image, settings)["candidates"]

    def _explain(self, image: np.ndarray, settings: ExplainSettings) -> dict:
        height, width = image.shape[:2]
        picture = T.AugInput(image if self.detector.input_format == "BGR" else image[:, :, ::-1])
        with told_if_too_thin():
            self.detector.resize(picture)
        tensor = torch.as_tensor(picture.image.astype("float32").transpose(2, 0, 1))
        inputs = [{"image": tensor, "height": height, "width": width}]
        fields = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}
        if settings.preset:  # which chooses them, and is refused beside them
            del fields["method"], fields["layer"]
        return explain(self.detector.model, inputs, **fields)[0]


def _changes(targets: Sequence[str] | None, preset: str | None, signed: bool | None) -> dict:
    """Fields of settings that are asked for in the place of a config's."""
    changes: dict = {} if targets is None else {"targets": tuple(targets)}
    if preset:
        changes |= {"method": "odam", "layer": "", "smoothing_sigma": 0.0}
    changes |= {} if preset is None else {"preset": preset}
    return changes | ({} if signed is None else {"signed": signed})


def _checked_settings(
    detector: Detector, changes: Mapping, base: ExplainSettings | None = None
) -> tuple[ExplainSettings, int]:
    """How to explain, and the number of classes; fails where the detector cannot be explained."""
    settings = dataclasses.replace(base or detector.settings, **changes)
    with preserved(detector.model):
        return settings, Explanation.of(detector.model, settings).adapter.num_classes
