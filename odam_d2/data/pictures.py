"""
Reading pictures: one way for every tool, so that all of them see the same thing in a file.

A file that Detectron2's ``read_image`` reads rightly is read by it. The others are those with an
orientation tag in TIFF (Pillow and Detectron2 would both apply it), and those whose values are not
from 0 to 255. What is white in these is

- what the file states: 12 bits per sample of TIFF; a portable graymap and JPEG 2000 use all of
  their 16 bits, because Pillow scales them so;
- for integers else, also for floats above 255, the largest number of 8, 10, 12, 14, 16, 24 or 31
  bits, the fewest that hold the largest value in the file;
- for floats 1 or 255: 1 where no value is above it by more than :data:`OVERSHOOT`. Between that and
  :data:`LEAST_OF_255` it may be either, and the file is refused.

White that follows from the values is a guess, and a line in the log names the file and the rule.
Values that are negative (by more than :data:`OVERSHOOT` of white) or not finite are refused.

Of a file with several frames or pages the first one is read. Transparency is ignored, as in
Detectron2: the colour that a transparent pixel has is seen. Lines in the log say so, too.
"""

import contextlib
import io
import logging
import os
import stat
from collections.abc import Iterator

import cv2
import numpy as np
from detectron2.data.detection_utils import read_image
from detectron2.utils.file_io import PathHandler, PathManager
from detectron2.utils.logger import log_first_n
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from odam_d2.errors import UserError, one_line

__all__ = ["PictureHandler", "read_picture"]

OVERSHOOT = 0.05
"""What resampling may add beyond black and white, as a share of white; it is cut off."""

LEAST_OF_255 = 25.5
"""Floats up to less than this are not taken for values from 0 to 255: they would look black."""

_BITS = (8, 10, 12, 14, 16, 24, 31)  # of cameras, detectors and integer types
_BITS_TAG, _INTERPRETATION_TAG, _ORIENTATION_TAG = 258, 262, 274  # of TIFF, the last one of EXIF
_WHITE_IS_ZERO = 0  # an interpretation
_SCALED_BY_PILLOW = ("PPM", "JPEG2000")
_PROGRAMS = ("EPS", "WMF")  # drawn by running something; no pixels of their own
_WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")

# How an array (H, W, ...) is turned by each value of the orientation tag.
_TURNS = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


def read_picture(path: str | os.PathLike) -> np.ndarray:
    """
    Read an image file, upright and in 8 bits.

    Args:
        path: of a file, or an address that Detectron2's ``PathManager`` knows.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        UserError: the file cannot be read as an image, or what is white in it cannot be known; the
            message is one line that names the file.
    """
    name = os.fspath(path)
    with _told(name):
        file = _regular_file(name)
        shown = _unlike_detectron(file, name)
        if shown is None:
            shown = read_image(file, format="RGB")
        return np.ascontiguousarray(shown)


class PictureHandler(PathHandler):
    """
    ``odam_picture://FILE``: the image file in a form that Detectron2's ``read_image`` reads as
    :func:`read_picture` does. An ordinary file is opened as it is.
    """

    PREFIX = "odam_picture://"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: object) -> io.IOBase:
        if mode != "rb":
            raise ValueError(f"{path!r} can be opened for reading bytes only, not by {mode!r}")
        name = path.removeprefix(self.PREFIX)
        with _told(name):
            file = _regular_file(name)
            shown = _unlike_detectron(file, name)
            if shown is None:
                return open(file, "rb")
            content = io.BytesIO()
            Image.fromarray(np.ascontiguousarray(shown)).save(content, "PPM")
            content.seek(0)
            return content


PathManager.register_handler(PictureHandler(), allow_override=True)


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    """Turn what happens while a file is read into a sentence that names it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # decoders of broken files raise anything
        if isinstance(error, UnidentifiedImageError):
            reason = "its format is not known"
        else:
            reason = getattr(error, "strerror", None) or one_line(error) or type(error).__name__
        raise UserError(f"{name!r} cannot be read as an image: {reason}") from error


def _regular_file(name: str) -> str:
    """The local file; a pipe is refused before it is opened, which may wait for ever."""
    file = PathManager.get_local_path(name)
    mode = os.stat(file).st_mode
    if not stat.S_ISREG(mode):
        raise ValueError("it is a folder" if stat.S_ISDIR(mode) else "it is no regular file")
    return file


def _unlike_detectron(file: str, name: str) -> np.ndarray | None:
    """(H, W, 3) uint8 RGB of a file that Detectron2 would misread; None for all others."""
    # By a name, Pillow would map the file to memory, and forget that TIFF may be turned.
    with open(file, "rb") as content, Image.open(content) as picture:
        if picture.format in _PROGRAMS:
            raise ValueError(f"{picture.format} files are not made of pixels")
        _mention_what_is_ignored(picture, name)
        if picture.mode[0] in "IF":  # one value per pixel, of more than 8 bits
            shown = np.asarray(picture)
            return _turned(np.repeat(_grey(shown, picture, name)[..., None], 3, axis=2), picture)
        if _has_16_bit_colors(picture):
            return _deep_colors(file, picture, name)
        if picture.format == "TIFF" and _orientation(picture) != 1:
            return _turned(np.asarray(picture.convert("RGB")), picture)
    return None


def _mention_what_is_ignored(picture: Image.Image, name: str) -> None:
    # The further pictures of a photo from a telephone (MPO) are no frames.
    frames = getattr(picture, "n_frames", 1) if picture.format != "MPO" else 1
    if frames > 1:
        _mention(logging.INFO, f"{name!r}: the first of its {frames} frames or pages is read")
    if picture.mode in _WITH_ALPHA or "transparency" in picture.info:
        _mention(logging.INFO, f"{name!r}: its transparency is ignored")


def _mention(level: int, line: str) -> None:
    """Once in a process, however often a file is read."""
    log_first_n(level, line, key="message", name=__name__)


def _orientation(picture: Image.Image) -> int:
    """The tag as the file has it."""
    try:
        return picture.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # malformed in any way: the picture itself may be fine, so as in Detectron2
        return 1


def _turned(shown: np.ndarray, picture: Image.Image) -> np.ndarray:
    """An array (H, W, ...) of a loaded picture, upright."""
    if isinstance(picture, TiffImageFile):
        # Pillow turns it while loading, and then takes away the tag.
        tag = picture.tag_v2.get(_ORIENTATION_TAG, 1)
    else:
        tag = _orientation(picture)
    return _TURNS.get(tag, lambda array: array)(shown)


def _grey(values: np.ndarray, picture: Image.Image, name: str) -> np.ndarray:
    """(H, W) uint8 of a picture of one channel."""
    tags = getattr(picture, "tag_v2", {})
    bits = tags.get(_BITS_TAG, (16,))[0]
    if picture.format in _SCALED_BY_PILLOW:
        white = 2**16 - 1
    elif 8 < bits < 16:
        white = 2**bits - 1
    else:
        white = _white(values, name)
    scaled = _to_bytes(values, white)
    return 255 - scaled if tags.get(_INTERPRETATION_TAG) == _WHITE_IS_ZERO else scaled


def _to_bytes(values: np.ndarray, white: int) -> np.ndarray:
    return np.rint(values.astype(np.float64) * (255 / white)).clip(0, 255).astype(np.uint8)


def _white(values: np.ndarray, name: str) -> int:
    """
    Which value is white, by the rules of this module.

    Raises:
        ValueError: that cannot be known.
    """
    least, most = float(values.min()), float(values.max())
    if not np.isfinite([least, most]).all():  # also where one of many is nan
        raise ValueError("it has values that are not finite")
    integers = values.dtype.kind != "f"
    if integers or most > 255 * (1 + OVERSHOOT):
        white = next((2**bits - 1 for bits in _BITS if most <= 2**bits - 1), None)
        if white is None:
            raise ValueError(f"its values go up to {most:g}")
    elif most <= 1 + OVERSHOOT:
        white = 1
    elif most >= LEAST_OF_255:
        white = 255
    else:
        raise ValueError(
            f"its values go up to {most:g}, where 1 or 255 (at least {LEAST_OF_255}) is white"
        )
    if least < (0 if integers else -OVERSHOOT * white):
        raise ValueError(f"it has negative values, down to {least:g}")
    if white != 2**16 - 1:
        _mention(
            logging.WARNING,
            f"{name!r}: its values go from {least:g} to {most:g}; {white} is taken for white",
        )
    return white


def _has_16_bit_colors(picture: ImageFile) -> bool:
    """Whether Pillow keeps the higher half of each value only."""
    if picture.mode not in ("RGB", "RGBA", "LA") or not picture.tile:
        return False
    how = picture.tile[0][3]  # a raw mode of Pillow's, such as "RGB;16B", perhaps with more
    raw_mode = how[0] if isinstance(how, tuple) and how else how
    return isinstance(raw_mode, str) and ";16" in raw_mode


def _deep_colors(file: str, picture: Image.Image, name: str) -> np.ndarray | None:
    """
    (H, W, 3) uint8 where colours do not use their 16 bits; None where they do and Detectron2
    reads them rightly.

    Raises:
        ValueError: they cannot be read in full.
    """
    tag = _orientation(picture)
    shown = _turned(np.asarray(picture.convert("RGB")), picture)
    if shown.max() >= 2**6:  # the higher half: more than 14 bits
        return shown if picture.format == "TIFF" and tag != 1 else None
    # OpenCV turns TIFF itself, PNG not, and fails where the sides of a TIFF are swapped.
    values: np.ndarray | None = None
    if picture.format != "TIFF" or tag < 5:
        content = np.fromfile(file, dtype=np.uint8)
        values = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
    if values is not None and picture.format != "TIFF":
        values = _TURNS.get(tag, lambda array: array)(values)
    if values is None or values.dtype != np.uint16 or values.shape[:2] != shown.shape[:2]:
        raise ValueError("its colours use few of their 16 bits; save it with 8 bits")
    values = values[..., 2::-1] if values.ndim == 3 else np.stack([values] * 3, axis=2)
    if (values >> 8 != shown).any():
        raise ValueError("its colours use few of their 16 bits; save it with 8 bits")
    return _to_bytes(values, _white(values, name))
