"""Looking at heat maps: as arrays, pictures, plots, and in a notebook."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from odam_d2.core.errors import InputError

from .heat_colors import as_array, blend_heat, has_evidence, no_evidence

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Display", "as_html", "as_rgb", "draw_figure"]

_ROWS = 10  # instances in a picture, unless more are asked for
_WIDTH, _DPI = 3.2, 100  # of a map, in inches
_PAPER = 190  # grey, where there is no image


class Display:
    """What :class:`odam_d2.OdamMaps` has for looking."""

    targets: tuple[str, ...]
    image_sizes: Tensor
    saturated: Tensor
    signed: bool

    if TYPE_CHECKING:

        def __len__(self) -> int: ...
        def __getitem__(self, item: Any) -> Display: ...
        def dense(self, height: int, width: int) -> Tensor: ...

    def numpy(self, height: int | None = None, width: int | None = None) -> np.ndarray:
        """
        The maps over the whole image, as an array.

        Args:
            height, width: pixels of the result; by default those of the network's input image.

        Returns:
            (N, T, height, width), as :meth:`dense` renders them.

        Raises:
            InputError: one of the two is missing, or there is no one input image.
        """
        if (height is None) != (width is None):
            raise InputError("give both height and width, or neither")
        size = _one_size(self.image_sizes) if height is None or width is None else (height, width)
        return as_array(self.dense(*size))

    def show(
        self, image: np.ndarray | None = None, *, rgb: bool = False, most: int = _ROWS
    ) -> Image.Image:
        """
        A picture of the maps, a row for each instance and a column for each target, each map scaled
        to its own maximum.

        Args:
            image: (H, W, 3) uint8, the image of the instances, BGR as ``cv2.imread`` returns it;
                without it maps lie on grey.
            rgb: whether ``image`` is RGB.
            most: instances that are shown; the picture says how many there are.

        Returns:
            Pillow's image, which a notebook shows and ``save`` writes.

        Raises:
            InputError: ``image`` is none, or there is none and the maps are of several.
        """
        figure = draw_figure(self, _optional(image, rgb), most)
        data = io.BytesIO()
        figure.savefig(data, format="png", dpi=_DPI)
        return Image.open(data).convert("RGB")

    def plot(
        self, ax: Axes | None = None, image: np.ndarray | None = None, *, rgb: bool = False
    ) -> Axes:
        """
        Draw one map with matplotlib.

        Args:
            ax: axes to draw on; by default those of a new figure of pyplot.
            image, rgb: as for :meth:`show`.

        Returns:
            The axes.

        Raises:
            InputError: there is not just one map: choose it as by ``maps[0]["left"]``.
        """
        if (len(self), len(self.targets)) != (1, 1):
            raise InputError(
                f"there are {len(self)} instances and the targets {', '.join(self.targets)}, and "
                'axes have room for one map: choose it, such as maps[0]["class"]'
            )
        if ax is None:
            from matplotlib import pyplot  # chooses a window system, which nothing else here needs

            ax = pyplot.subplots()[1]
        _draw_map(ax, self, 0, 0, _optional(image, rgb))
        return ax

    def _repr_html_(self) -> str:
        return as_html(self, repr(self))


def as_html(
    maps: Display,
    caption: str,
    labels: Sequence[str] = (),
    boxes: np.ndarray | None = None,
    size: tuple[int, int] | None = None,
) -> str:
    """What a notebook shows of maps: a caption and a picture; see :func:`draw_figure`."""
    if not len(maps) or not maps.targets:
        return f"<p>{html.escape(caption)}</p>"
    blank = None if size is None else np.full((*size, 3), _PAPER, np.uint8)
    data = io.BytesIO()
    draw_figure(maps, blank, _ROWS, labels, boxes).savefig(data, format="png", dpi=_DPI * 0.7)
    picture = base64.b64encode(data.getvalue()).decode()
    return (
        f'<p>{html.escape(caption)}</p><img alt="{html.escape(caption)}" '
        f'src="data:image/png;base64,{picture}">'
    )


def draw_figure(
    maps: Display,
    image: np.ndarray | None,
    most: int,
    labels: Sequence[str] = (),
    boxes: np.ndarray | None = None,
) -> Figure:
    """
    A row for each of the first ``most`` instances, a column for each target.

    Args:
        maps: at least one of them.
        image: (H, W, 3) uint8 RGB; None for grey.
        labels: of the instances; by default their numbers.
        boxes: (N, 4) XYXY in pixels of ``image``, to draw.
    """
    rows, columns = min(len(maps), most), len(maps.targets)
    if rows < 1 or columns < 1:
        raise InputError("there is no map to show")
    height, width = _one_size(maps.image_sizes) if image is None else image.shape[:2]
    cell = min(_WIDTH * height / width, 2 * _WIDTH)
    size = (columns * _WIDTH, rows * (cell + 0.35) + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for row in range(rows):
        for column in range(columns):
            ax = axes[row, column]
            _draw_map(ax, maps, row, column, image)
            if boxes is not None:
                x1, y1, x2, y2 = boxes[row].tolist()
                ax.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color="white"))
        axes[row, 0].set_ylabel(labels[row] if labels else str(row), fontsize="small")
    if rows < len(maps):
        figure.suptitle(f"{rows} of {len(maps)} instances", fontsize="small")
    return figure


def _draw_map(ax: Axes, maps: Display, row: int, column: int, image: np.ndarray | None) -> None:
    if image is None:
        image = np.full((*_one_size(maps.image_sizes), 3), _PAPER, np.uint8)
    heat = as_array(maps[row].dense(*image.shape[:2])[0, column])
    title = maps.targets[column]
    if maps.saturated[row, column]:
        title += " · score saturated"
    elif not has_evidence(heat, maps.signed):
        title += f" · {no_evidence(maps.signed)}"
    # Pixel (y, x) covers [x, x + 1) x [y, y + 1), as boxes have it.
    height, width = heat.shape
    ax.imshow(blend_heat(image, heat, signed=maps.signed), extent=(0, width, height, 0))
    ax.set_title(title, fontsize="small")
    ax.set_xticks([])
    ax.set_yticks([])


def _optional(image: np.ndarray | None, rgb: bool) -> np.ndarray | None:
    return None if image is None else as_rgb(image, rgb)


def as_rgb(image: np.ndarray, rgb: bool) -> np.ndarray:
    """
    An image as RGB.

    Args:
        image: (H, W, 3) uint8.
        rgb: whether it is RGB already; otherwise it is BGR.

    Raises:
        InputError: it is no such array.
    """
    good = isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] == 3
    if not good or image.dtype != np.uint8 or not image.size:
        what = type(image).__name__
        found = f"{image.shape} of {image.dtype}" if isinstance(image, np.ndarray) else f"a {what}"
        raise InputError(f"the image is {found}; it must be an array (H, W, 3) of uint8")
    return image if rgb else np.ascontiguousarray(image[:, :, ::-1])


def _one_size(image_sizes: Tensor) -> tuple[int, int]:
    """(height, width) of the input image of all instances."""
    sizes = sorted(set(map(tuple, image_sizes.tolist())))
    if len(sizes) != 1:
        raise InputError(
            f"the maps are of images of {len(sizes)} sizes: give the image, or its height and width"
        )
    return sizes[0]
