"""Settings of the methods that need gradients, and something more."""

from __future__ import annotations

from dataclasses import dataclass

from odam_d2.core.ranges import check_number

from .node_settings import MAX_NUMBER, NodeSettings

__all__ = ["SmoothGradSettings"]

_MAX_NOISE = 1000  # standard deviation, in ranges of an image's values


@dataclass(frozen=True)
class SmoothGradSettings(NodeSettings):
    """
    Attributes:
        num_samples: noisy copies of each image.
        noise: standard deviation of the noise, as a share of the range of the image's values.
        seed: of the noise; the n-th copy of an image depends on nothing else.
    """

    NODE = "SMOOTH_GRAD"

    num_samples: int = 25
    noise: float = 0.15
    seed: int = 0

    def __post_init__(self) -> None:
        self._check("1 or more", 1, MAX_NUMBER, "num_samples")
        words = f"0 to {_MAX_NOISE}"
        check_number(self.argument("noise"), self.noise, words, 0, _MAX_NOISE)
        self._check_seed()
