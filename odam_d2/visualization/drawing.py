"""One picture of everything that was found and explained in an image, and notebooks."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.structures import Instances
from PIL import Image

from odam_d2.core.errors import InputError
from odam_d2.structures.display import as_html, as_rgb

from .contact_sheet import contact_sheet

__all__ = ["draw", "show_in_notebooks"]


def draw(
    image: np.ndarray,
    found: Instances | Mapping,
    class_names: Sequence[str] | None = None,
    *,
    rgb: bool = False,
    **options: Any,
) -> Image.Image:
    """
    A contact sheet: the image with numbered boxes and, for every detection, a row of crops, the
    picture itself and the map of each target.

    Args:
        image: (H, W, 3) uint8, BGR as ``cv2.imread`` returns it and Detectron2's predictor takes
            it. It is not changed.
        found: what :func:`odam_d2.explain` returns for that image, or the Instances in it.
        class_names: by class id; by default "class 3".
        rgb: whether ``image`` is RGB.
        **options: ``title``, ``max_rows``, ``cell`` of
            :func:`odam_d2.visualization.contact_sheet`.

    Returns:
        Pillow's image, which a notebook shows and ``save`` writes.

    Raises:
        InputError: ``image`` is none, or the detections have no maps or are of an image of another
            size.
    """
    instances = found["instances"] if isinstance(found, Mapping) else found
    picture = as_rgb(image, rgb)
    if not isinstance(instances, Instances) or not instances.has("odam_maps"):
        raise InputError(
            "found has no maps: give what explain returns for the image, or its Instances"
        )
    if tuple(instances.image_size) != picture.shape[:2]:
        raise InputError(
            f"the detections are of an image of {tuple(instances.image_size)}, and the image is "
            f"{picture.shape[:2]} (height, width)"
        )
    if class_names is None:
        count = int(instances.pred_classes.max()) + 1 if len(instances) else 0
        class_names = [f"class {k}" for k in range(count)]
    return Image.fromarray(contact_sheet(picture, instances.to("cpu"), class_names, **options))


def show_in_notebooks() -> None:
    """
    In IPython, show ``Instances`` that have maps with pictures of these; elsewhere, and for other
    Instances, nothing changes. Importing odam_d2 does it.
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is not None:
        shell.display_formatter.formatters["text/html"].for_type(Instances, _html)


def _html(instances: Instances) -> str | None:
    """None, for which IPython takes the text, where there are no maps."""
    if not instances.has("odam_maps"):
        return None
    fields, count = instances.get_fields(), len(instances)
    labels = [str(row) for row in range(count)]
    for name, form in (("pred_classes", " · class {:.0f}"), ("scores", " · {:.2f}")):
        if name in fields:
            values = fields[name].tolist()
            labels = [x + form.format(v) for x, v in zip(labels, values, strict=True)]
    boxes = fields["pred_boxes"].tensor.cpu().numpy() if "pred_boxes" in fields else None
    caption = f"{count} instances, fields {', '.join(fields)}"
    return as_html(fields["odam_maps"], caption, labels, boxes, instances.image_size)
