"""Settings of the methods that hide superpixels."""

from __future__ import annotations

from dataclasses import dataclass, field

from odam_d2.core.ranges import check_number

from .mask_settings import MaskSettings, StateSettings
from .node_settings import MAX_NUMBER

__all__ = ["DCloseSettings", "VpsSettings"]

# Far beyond what has a use, and still computed.
_MAX_LEVELS = 10
_MAX_SEGMENTS = 10**5
_MAX_ENLARGE = 100
_MAX_COMPACTNESS = 10**6
_MAX_SIGMA = 1000  # pixels


@dataclass(frozen=True)
class DCloseSettings(MaskSettings):
    """
    Attributes:
        levels: of coarseness, to which the masks are dealt out in turn.
        segments: about how many superpixels the coarsest level has; each has twice as many as the
            one before.
        keep_prob: probability that a superpixel is seen.
        enlarge: masks are enlarged by so much more than their size, and cut out at random.
        compactness: of superpixels, weight of place against colour.
        sigma: standard deviation, in pixels, of the Gaussian that smooths the image before.
    """

    NODE = "D_CLOSE"

    num_masks: int = 4000
    levels: int = field(default=5, kw_only=True)
    segments: int = field(default=150, kw_only=True)
    keep_prob: float = field(default=0.5, kw_only=True)
    enlarge: float = field(default=2.2, kw_only=True)
    compactness: float = field(default=10.0, kw_only=True)
    sigma: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(f"1 to {_MAX_LEVELS}", 1, _MAX_LEVELS, "levels")
        self._check(f"1 to {_MAX_SEGMENTS}", 1, _MAX_SEGMENTS, "segments")
        name, words = self.argument("keep_prob"), "above 0 and below 1"
        check_number(name, self.keep_prob, words, 0, 1, above=True, below=True)
        for name, most in (("enlarge", _MAX_ENLARGE), ("sigma", _MAX_SIGMA)):
            check_number(self.argument(name), getattr(self, name), f"0 to {most}", 0, most)
        words = f"above 0, and {_MAX_COMPACTNESS} at most"
        name, most = self.argument("compactness"), _MAX_COMPACTNESS
        check_number(name, self.compactness, words, 0, most, above=True)


@dataclass(frozen=True)
class VpsSettings(StateSettings):
    """
    Attributes:
        regions: about how many superpixels there are.
        max_passes: of the detector for each map, at most; regions that are not ordered by then
            count as the last one, all together. An order of R regions takes R (R + 1).
    """

    NODE = "VPS"

    regions: int = 64
    max_passes: int = 5000
    check_every: int = field(default=1000, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(f"1 to {_MAX_SEGMENTS}", 1, _MAX_SEGMENTS, "regions")
        self._check("1 or more", 1, MAX_NUMBER, "max_passes")
