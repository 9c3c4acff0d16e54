"""From entries of a data set to a model's input, with pictures as every tool reads them."""

import contextlib
import os
from collections.abc import Iterator

from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import SizeMismatchError

from odam_d2.core.errors import InputError
from odam_d2.errors import UserError, one_line

from .checks import plain_id
from .pictures import PictureHandler, read_picture

__all__ = ["PictureMapper", "told_if_too_thin"]


class PictureMapper(DatasetMapper):
    """
    Detectron2's mapper, made and called as ever, that reads pictures as :func:`read_picture`. What
    it gives for ordinary files is the same to the bit.

    Raises:
        UserError: when called: a picture cannot be read, or has another size than the entry says.
    """

    def __call__(self, dataset_dict: dict) -> dict:
        """Detectron2's input of an entry. An ``image_id`` of numpy becomes Python's."""
        name = os.fspath(dataset_dict["file_name"])
        try:
            with told_if_too_thin():
                mapped = super().__call__(
                    {**dataset_dict, "file_name": PictureHandler.PREFIX + name}
                )
        except UserError:
            raise
        except InputError as error:
            raise UserError(f"{name!r}: {error}") from error
        except SizeMismatchError as error:
            sentence = one_line(error).replace(PictureHandler.PREFIX, "")
            raise UserError(sentence) from error
        except Exception:
            read_picture(name)  # fails with a sentence if it is the picture that is broken
            raise
        mapped["file_name"] = dataset_dict["file_name"]
        if "image_id" in mapped:
            mapped["image_id"] = plain_id(mapped["image_id"])
        return mapped


@contextlib.contextmanager
def told_if_too_thin() -> Iterator[None]:
    """
    Around the resizing of a picture to the size of a model's input.

    Raises:
        InputError: the picture is so thin that its shorter side would be 0 pixels.
    """
    try:
        yield
    except ValueError as error:
        if "must be > 0" not in str(error):  # Pillow's words
            raise
        raise InputError(
            "the picture is too thin: resized for the model, nothing would be left of it"
        ) from error
