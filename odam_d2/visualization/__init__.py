"""Pictures and pages of heat maps."""

from .canvas import fit_canvas
from .contact_sheet import contact_sheet
from .maps_file import load_maps, save_maps
from .overlay import blend_heat, draw_box, draw_explanation
from .overview import draw_detections
from .report import write_report

__all__ = [
    "blend_heat",
    "contact_sheet",
    "draw_box",
    "draw_detections",
    "draw_explanation",
    "fit_canvas",
    "load_maps",
    "save_maps",
    "write_report",
]
