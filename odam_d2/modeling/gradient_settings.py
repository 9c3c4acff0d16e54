"""Settings of the methods that need gradients, and something more."""

from __future__ import annotations

from dataclasses import dataclass

from odam_d2.core.errors import InputError
from odam_d2.core.ranges import check_number

from .node_settings import MAX_NUMBER, NodeSettings

__all__ = ["GCameSettings", "LayerCamSettings", "SmoothGradSettings"]

_MAX_NOISE = 1000  # standard deviation, in ranges of an image's values
_MAX_SIGMA = 1000  # standard deviation, in cells
_MAX_GAMMA = 1000


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


@dataclass(frozen=True)
class LayerCamSettings(NodeSettings):
    """
    Attributes:
        layers: of the backbone, from the shallow to the deep, ``""`` for what the head reads. None
            at all are the finest layer that has a map of its own, and what the head reads.
        gamma: how much is lifted what is faint on all layers but the last.
    """

    NODE = "LAYER_CAM"

    layers: tuple[str, ...] = ()
    gamma: float = 2.0

    def __post_init__(self) -> None:
        layers = self.layers
        listed = isinstance(layers, (list, tuple))
        if not listed or not all(isinstance(layer, str) for layer in layers):
            raise InputError(f"{self.argument('layers')} is {layers!r}; it must be a list of names")
        object.__setattr__(self, "layers", tuple(layers))
        words = f"above 0, and {_MAX_GAMMA} at most"
        check_number(self.argument("gamma"), self.gamma, words, 0, _MAX_GAMMA, above=True)


@dataclass(frozen=True)
class GCameSettings(NodeSettings):
    """
    Attributes:
        min_sigma: the least standard deviation of a Gaussian, in cells.
    """

    NODE = "G_CAME"

    min_sigma: float = 1.0

    def __post_init__(self) -> None:
        words = f"above 0, and {_MAX_SIGMA} at most"
        check_number(self.argument("min_sigma"), self.min_sigma, words, 0, _MAX_SIGMA, above=True)
