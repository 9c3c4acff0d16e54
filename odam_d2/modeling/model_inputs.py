"""What people have in hand, as a detector and a batch: wrapped models, predictors, one picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from detectron2.engine import DefaultPredictor
from detectron2.modeling import GeneralizedRCNNWithTTA
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from odam_d2.core.errors import InputError

from .arguments import checked_inputs

__all__ = ["Inputs", "ModelInputs", "ModelLike", "unwrapped"]

ModelLike: TypeAlias = "nn.Module | DefaultPredictor"
Inputs: TypeAlias = "list[dict] | list[np.ndarray] | dict | np.ndarray"

_BY_MODULE = (DataParallel, DistributedDataParallel, AveragedModel)


def unwrapped(model: ModelLike) -> nn.Module:
    """
    The detector itself, of a ``DefaultPredictor`` (or a predictor with the same attributes), of
    ``DataParallel``, ``DistributedDataParallel``, ``AveragedModel`` and ``torch.compile``.

    Raises:
        InputError: the model is none, or merges the detections of several passes.
    """
    if not isinstance(model, nn.Module):
        inside = getattr(model, "model", None)
        if not isinstance(inside, nn.Module):
            raise InputError(
                f"the model is a {type(model).__name__}; it must be a torch.nn.Module, such as "
                "detectron2.modeling.build_model returns, or a DefaultPredictor"
            )
        model = inside
    while True:
        inside = getattr(model, "_orig_mod", None)  # of what torch.compile returns
        if isinstance(model, GeneralizedRCNNWithTTA):
            raise InputError(
                "GeneralizedRCNNWithTTA merges the detections of several passes, so that no pass "
                "decides one of them: give the detector inside, its .model"
            )
        if isinstance(model, _BY_MODULE):
            model = model.module
        elif isinstance(inside, nn.Module):
            model = inside
        else:
            return model


@dataclass(frozen=True)
class ModelInputs:
    """
    A detector and its batch.

    Attributes:
        model: the detector, unwrapped.
        batch: Detectron2's input format.
        single: whether one input was given instead of a list of them.
        class_names: those of the predictor's data set; None where nothing is known of them.
    """

    model: nn.Module
    batch: list[dict]
    single: bool
    class_names: tuple[str, ...] | None = None

    @classmethod
    def of(cls, model: ModelLike, inputs: Inputs) -> ModelInputs:
        """
        Args:
            model: a detector, wrapped or not, or a predictor like Detectron2's.
            inputs: Detectron2's input format, or one dict of it. A predictor takes pictures too,
                (H, W, 3) BGR arrays as ``cv2.imread`` returns them, and resizes them as ever.

        Raises:
            InputError: the model is none, or an input is not in that format.
        """
        detector = unwrapped(model)
        single = isinstance(inputs, (dict, np.ndarray))
        given: Any = [inputs] if single else inputs
        names = None
        if not isinstance(model, nn.Module):
            if isinstance(given, (list, tuple)):
                given = [_prepared(model, x) if isinstance(x, np.ndarray) else x for x in given]
            names = getattr(getattr(model, "metadata", None), "thing_classes", None)
        elif single and isinstance(inputs, np.ndarray):
            raise InputError(
                "a picture as an array must be resized as the detector was trained for: give a "
                "DefaultPredictor instead of its model, or the picture as {'image': tensor}"
            )
        batch = checked_inputs(detector, given)
        return cls(detector, batch, single, None if names is None else tuple(names))


def _prepared(predictor: DefaultPredictor, image: np.ndarray) -> dict:
    """What a predictor hands to its model."""
    if image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InputError(f"the picture has the shape {image.shape}; it must be (H, W, 3), BGR")
    height, width = image.shape[:2]
    image = image[:, :, ::-1] if predictor.input_format == "RGB" else image
    resized = predictor.aug.get_transform(image).apply_image(image)
    tensor = torch.as_tensor(resized.astype("float32").transpose(2, 0, 1))
    return {"image": tensor, "height": height, "width": width}
