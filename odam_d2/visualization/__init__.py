"""Pictures and pages of heat maps."""

from odam_d2.structures.heat_colors import blend_heat

from .canvas import fit_canvas
from .contact_sheet import contact_sheet
from .drawing import draw
from .maps_file import load_maps
from .overlay import draw_box, draw_explanation
from .overview import draw_detections
from .report import write_report

__all__ = [
    "blend_heat",
    "contact_sheet",
    "draw",
    "draw_box",
    "draw_detections",
    "draw_explanation",
    "fit_canvas",
    "load_maps",
    "write_report",
]
