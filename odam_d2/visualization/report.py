"""A plain web page to browse explanations: no script, no network, relative links."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from odam_d2.core.targets import SIDES
from odam_d2.files import write_text

from .text import printable

__all__ = [
    "GENERATOR",
    "DetectionEntry",
    "ImageEntry",
    "OverlayEntry",
    "write_page",
    "write_report",
]

GENERATOR = '<meta name="generator" content="odam_d2">'
"""A line of every page, by which our own pages are told from others'."""


@dataclass(frozen=True)
class OverlayEntry:
    """
    One picture: ``file`` in the folder of its image, what it shows, whether that is lost (see
    :class:`odam_d2.OdamMaps`), and the method that made it, where several are compared.
    """

    target: str
    caption: str
    file: str
    saturated: bool = False
    method: str = ""


@dataclass(frozen=True)
class DetectionEntry:
    """One detection; ``box`` is (x1, y1, x2, y2) in pixels of the original image."""

    class_name: str
    score: float
    box: tuple[float, float, float, float]
    overlays: Sequence[OverlayEntry]


@dataclass(frozen=True)
class ImageEntry:
    """
    What was written for one image.

    Attributes:
        source: path of the image as the user gave it.
        folder: name of its folder, beside the page; it holds all the files named here.
        size: (height, width) of the original image in pixels.
        overlay_size: (height, width) of the overlays in pixels.
        found: number of detections, of which ``detections`` may be the first few.
        contact_sheet, maps, listing: names of files.
        compared: file of the maps of each other method that was compared, by its name.
        signed: whether maps show evidence against as well.
        suppressed: name of the picture of what NMS suppressed; empty for none.
        groups: name of the picture of overlapping detections; empty for none.
    """

    source: str
    folder: str
    size: tuple[int, int]
    overlay_size: tuple[int, int]
    found: int
    detections: Sequence[DetectionEntry]
    contact_sheet: str = "contact_sheet.png"
    maps: str = "maps.npz"
    listing: str = "maps.json"
    suppressed: str = ""
    groups: str = ""
    compared: Mapping[str, str] = field(default_factory=dict)
    signed: bool = False


def write_report(
    path: str, images: Sequence[ImageEntry], *, subtitle: str = "", notes: Sequence[str] = ()
) -> None:
    """
    Write the page, see :func:`write_page`.

    Args:
        path: of the page, in the folder that holds the images' folders.
        images: in the order of the page.
        subtitle: a line under the heading, such as the model's name.
        notes: lines for what the reader must know, such as images that could not be read.
    """
    explained = {o.target for image in images for d in image.detections for o in d.overlays}
    sides = not explained.isdisjoint(SIDES)
    write_page(path, "index.html.j2", images=images, subtitle=subtitle, notes=notes, sides=sides)


def write_page(path: str, template: str, **values: object) -> None:
    """
    Fill in one of the project's templates. The page appears at once or not at all: one of an
    earlier run stays until then.

    Args:
        path: of the page.
        template: name of a file in ``templates``; it may use the filters ``url``, ``printable`` and
            ``basename``.
        **values: what it asks for, besides ``generator``.
    """
    folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "templates")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "url": _url,
        "printable": printable,
        "basename": os.path.basename,
    }
    page = environment.get_template(template).render(generator=Markup(GENERATOR), **values)
    write_text(path, page, errors="replace")


def _url(*parts: str) -> str:
    """A relative link to a file, given the folders on the way and its name."""
    return "/".join(quote(os.fsencode(part), safe="") for part in parts)
