"""CrowdShapes: generated crowds of robots in which the right explanation is known.

All classes share one body and differ only in the glyph on the badge. Every object carries, beside
box and mask, the mask of that badge and of the part that ends each side of its box.
"""

from .annotations import SIDES, annotate
from .badge import CLASSES
from .character import PARTS, Character, draw_character, sample_character
from .dataset import (
    GENERATOR_VERSION,
    SPLITS,
    Split,
    build_split,
    generate,
    load_crowdshapes,
    register_crowdshapes,
)
from .scene import PRESETS, Placement, Scene, SceneConfig, layout_of, render_scene, sample_scene

__all__ = [
    "CLASSES",
    "GENERATOR_VERSION",
    "PARTS",
    "PRESETS",
    "SIDES",
    "SPLITS",
    "Character",
    "Placement",
    "Scene",
    "SceneConfig",
    "Split",
    "annotate",
    "build_split",
    "draw_character",
    "generate",
    "layout_of",
    "load_crowdshapes",
    "register_crowdshapes",
    "render_scene",
    "sample_character",
    "sample_scene",
]
