"""CrowdShapes: generated crowds of robots in which the right explanation is known.

All classes share one body and differ only in the glyph on the badge. Every object carries, beside
box and mask, the mask of that badge and of the part that ends each side of its box. In the
scattered splits the badge may be anywhere and decoys are at other places, so that position says
nothing.
"""

from .annotations import SIDES, annotate
from .badge import CLASSES
from .character import PARTS, PLACES, Character, draw_character, sample_character
from .dataset import (
    GENERATOR_VERSION,
    SPLITS,
    Split,
    build_split,
    generate,
    load_crowdshapes,
    register_crowdshapes,
)
from .scattered import Decoy, ScatteredCharacter, sample_scattered
from .scene import (
    PRESETS,
    Placement,
    ScatteredConfig,
    Scene,
    SceneConfig,
    layout_of,
    render_scene,
    sample_scene,
)

__all__ = [
    "CLASSES",
    "GENERATOR_VERSION",
    "PARTS",
    "PLACES",
    "PRESETS",
    "SIDES",
    "SPLITS",
    "Character",
    "Decoy",
    "Placement",
    "ScatteredCharacter",
    "ScatteredConfig",
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
    "sample_scattered",
    "sample_scene",
]
