"""Settings of the methods that run a detector on masked images."""

from __future__ import annotations

from dataclasses import dataclass, field

from odam_d2.core.ranges import check_number, check_text

from .node_settings import MAX_NUMBER, NodeSettings

__all__ = ["DRiseSettings", "MaskSettings", "RiseSettings", "StateSettings"]

# Far beyond what has a use, and still computed.
_MAX_GRID = 1000  # cells along a side of a grid of masks
_MAX_PARTS = 1000
_MAX_LENGTH = 1000  # a length, in shares of a box


@dataclass(frozen=True)
class StateSettings(NodeSettings):
    """
    Attributes:
        batch_size: masked images that the detector sees at once.
        check_every: masks between two saves.
        state_dir: folder where results are kept, so that an interrupted run goes on; "" for none.
    """

    batch_size: int = field(default=8, kw_only=True)
    check_every: int = field(default=200, kw_only=True)
    state_dir: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        self._check("1 or more", 1, MAX_NUMBER, "batch_size", "check_every")
        check_text(self.argument("state_dir"), self.state_dir)


@dataclass(frozen=True)
class MaskSettings(StateSettings):
    """
    Of random masks.

    Attributes:
        num_masks: masks of each image, at most.
        seed: of the masks; the n-th mask of an image depends on nothing else.
    """

    num_masks: int
    seed: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("1 or more", 1, MAX_NUMBER, "num_masks")
        self._check_seed()


@dataclass(frozen=True)
class DRiseSettings(MaskSettings):
    """
    Attributes:
        grid: rows and columns of the coarse random grid.
        keep_prob: probability that a cell of it is seen.
        settled: stop once every map is as reliable as this, see
            :func:`odam_d2.core.rise.reliability`; 1 is never.
        check_every: masks between two looks whether maps have settled, and two saves.
    """

    NODE = "D_RISE"

    num_masks: int = 5000
    grid: int = 16
    keep_prob: float = 0.5
    settled: float = field(default=0.99, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(f"1 to {_MAX_GRID}", 1, _MAX_GRID, "grid")
        name, words = self.argument("keep_prob"), "above 0 and below 1"
        check_number(name, self.keep_prob, words, 0, 1, above=True, below=True)
        check_number(
            self.argument("settled"), self.settled, "above 0, and 1 at most", 0, 1, above=True
        )


@dataclass(frozen=True)
class RiseSettings(MaskSettings):
    """
    Lengths are shares of a box: of the geometric mean of its width and height.

    Attributes:
        cell: length of the cells of the random grid that becomes masks.
        parts: masks that share a grid: each cell is hidden in one of them, and seen in the others.
        blur: standard deviation of the Gaussian by which what is hidden is blurred.
        smoothing: standard deviation of the Gaussian that smooths the maps of classes, which owe
            their score to parts; 0 is none.
        side_smoothing: the same of the maps of sides, which end at edges.
        correlation, noise: of the regression that makes the maps of the preset ``"faithful"``, see
            :func:`odam_d2.core.mask_regression.regressed_slopes`.
    """

    NODE = "RISE"

    num_masks: int = 192
    cell: float = 1 / 8
    parts: int = 4
    blur: float = 1 / 7
    smoothing: float = 1 / 8
    side_smoothing: float = 1 / 28
    correlation: float = 1 / 10
    noise: float = 0.3
    check_every: int = field(default=64, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(f"2 to {_MAX_PARTS}", 2, _MAX_PARTS, "parts")
        for name in ("cell", "blur", "correlation", "noise"):
            words = f"above 0, and {_MAX_LENGTH} at most"
            check_number(
                self.argument(name), getattr(self, name), words, 0, _MAX_LENGTH, above=True
            )
        words = f"0 to {_MAX_LENGTH}"
        for name in ("smoothing", "side_smoothing"):
            check_number(self.argument(name), getattr(self, name), words, 0, _MAX_LENGTH)
