"""From entries of a data set to a model's input, with pictures as every tool reads them."""

import os

import numpy as np
from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import SizeMismatchError

from odam_d2.errors import UserError, one_line

from .pictures import PictureHandler, read_picture

__all__ = ["PictureMapper"]


class PictureMapper(DatasetMapper):
    """
    Detectron2's mapper, made and called as ever, that reads pictures as :func:`read_picture`. What
    it gives for ordinary files is the same to the bit.

    Raises:
        UserError: when called: a picture cannot be read, or has another size than the entry says.
    """

    def __call__(self, dataset_dict: dict) -> dict:
        name = os.fspath(dataset_dict["file_name"])
        try:
            mapped = super().__call__({**dataset_dict, "file_name": PictureHandler.PREFIX + name})
        except UserError:
            raise
        except SizeMismatchError as error:
            sentence = one_line(error).replace(PictureHandler.PREFIX, "")
            raise UserError(sentence) from error
        except Exception:
            read_picture(name)  # fails with a sentence if it is the picture that is broken
            raise
        mapped["file_name"] = dataset_dict["file_name"]
        if isinstance(mapped.get("image_id"), np.integer):
            mapped["image_id"] = mapped["image_id"].item()  # what evaluators write is JSON
        return mapped
