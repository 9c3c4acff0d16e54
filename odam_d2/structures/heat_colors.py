"""
The colours of heat maps.

Images are (H, W, 3) uint8 RGB arrays and are never changed in place.
"""

import functools

import cv2
import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from torch import Tensor

__all__ = ["as_array", "blend_heat", "colorize", "has_evidence", "no_evidence"]

_Color = tuple[int, int, int]

# Lightness of inferno rises with the value, also for colour-blind eyes and in greyscale print.
# Its darkest part is left out: on a photograph it would read as shadow.
_COLORMAP, _COLORMAP_START = "inferno", 0.25
# Of signed maps, from against to for: blue and orange are told apart by all colour-blind eyes, and
# both become lighter with their strength.
_AGAINST: tuple[_Color, ...] = ((170, 205, 255), (60, 120, 255), (30, 60, 190))
_FOR: tuple[_Color, ...] = ((170, 60, 0), (255, 130, 0), (255, 225, 110))
# At a map's maximum the picture still shines through.
_MAX_ALPHA = 0.8
# Under 1: weak evidence is lifted a little, so that it does not drown in the picture.
_ALPHA_POWER = 0.7
# The picture gives up this much of its colour, so that colour means evidence, and white this much
# of its light, so that yellow stands out on it.
_GREY, _DIM = 0.65, 0.2


@functools.cache
def _lookup_table(signed: bool) -> np.ndarray:
    """(256, 3) float32 RGB in 0-255."""
    if signed:
        ends = np.array([*_AGAINST, *_FOR]) / 255
        shades = LinearSegmentedColormap.from_list("evidence", ends)(np.linspace(0, 1, 256))
    else:
        shades = matplotlib.colormaps[_COLORMAP](np.linspace(_COLORMAP_START, 1, 256))
    return (255 * shades[:, :3]).astype(np.float32)


def colorize(values: np.ndarray, signed: bool = False) -> np.ndarray:
    """Colours (..., 3), float32 RGB in 0-255, of values in [0, 1], or signed ones in [-1, 1]."""
    shares = (values + 1) / 2 if signed else values
    return _lookup_table(signed)[np.rint(255 * np.clip(shares, 0, 1)).astype(np.intp)]


def blend_heat(
    image: np.ndarray,
    heat: np.ndarray | Tensor,
    peak: float | None = None,
    *,
    signed: bool = False,
) -> np.ndarray:
    """
    Lay a heat map over an image. Opacity follows the value: without evidence the picture stays.

    Args:
        image: (H, W, 3) uint8 RGB.
        heat: (H, W), not negative unless ``signed``. A map that is zero everywhere leaves the
            (greyed) picture.
        peak: the value that gets the strongest colour; by default the largest size in ``heat``.
        signed: two colours, orange for what is above zero, blue for what is below.

    Returns:
        A new (H, W, 3) uint8 image.

    Raises:
        ValueError: the sizes differ.
    """
    heat = as_array(heat)
    if heat.shape != image.shape[:2]:
        raise ValueError(f"a heat map of {heat.shape} over an image of {image.shape[:2]} pixels")
    heat = heat if signed else np.maximum(heat, 0)
    peak = abs(heat).max(initial=0) if peak is None else peak
    out = _mute(image)
    rows, columns = (np.flatnonzero(heat.any(axis=axis)) for axis in (1, 0))
    if not (peak > 0 and len(rows)):
        return out
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    value = np.clip(heat[window] / peak, -1, 1).astype(np.float32)
    alpha = _MAX_ALPHA * abs(value[..., None]) ** _ALPHA_POWER
    picture = out[window].astype(np.float32)
    out[window] = np.rint(picture + alpha * (colorize(value, signed) - picture)).astype(np.uint8)
    return out


def _mute(image: np.ndarray) -> np.ndarray:
    """A copy of the image with less colour and softer highlights."""
    mixed = cv2.transform(image, (1 - _GREY) * np.eye(3) + _GREY / 3)
    tone = np.linspace(0, 1, 256)
    return cv2.LUT(mixed, np.rint(255 * tone * (1 - _DIM * tone)).astype(np.uint8))


def as_array(heat: np.ndarray | Tensor) -> np.ndarray:
    """A map as an array on the CPU."""
    return heat.detach().cpu().float().numpy() if isinstance(heat, Tensor) else np.asarray(heat)


def has_evidence(heat: np.ndarray, signed: bool) -> bool:
    """Whether a map (H, W) shows anything."""
    return bool(heat.any() if signed else heat.max(initial=0) > 0)


def no_evidence(signed: bool) -> str:
    """What pictures say of a map that is empty."""
    return "no evidence" if signed else "no positive evidence"
