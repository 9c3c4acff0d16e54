"""
Full (window-growing) 2-D convolutions of many small windows with few multiplications.

Backpropagating through a stride-1 convolution takes a window of n x n cells to one of
(n + k - 1) x (n + k - 1): a polynomial product of window and kernel in two variables. Multiplying
polynomials of m and k coefficients takes m k products by the school's way, and m + k - 1 by Toom
and Cook's: evaluate both at m + k - 1 points, multiply the values, interpolate. Each "product" is
a matrix product over channels here, so fewer of them is less time: 494 instead of 1476 bring a
gradient through four 3x3 layers from 3x3 to 11x11 cells. Winograd's convolutions are the transpose
of the same idea (Lavin and Gray, CVPR 2016, arXiv 1509.09308). The points are among those that
Barabasz et al. (2018, arXiv 1803.10986) found to lose least in floating point.

Shape shorthand:

    R: windows; h, w: cells of a window; Co, Ci: output and input channels of the convolution (a
    gradient goes from Co to Ci); k: kernel side; m: tile side; q = m + k - 1: points of an axis;
    a, b: tiles of a window along each axis.

Windows are stored cells first, channels last, (h, w, R, C), so that all of this is matrix products.
"""

from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["FullConvolution"]

# Points x/y as pairs (x, y): infinity (1, 0) needs no case of its own, and the evaluation matrices
# hold small integers. More points mean larger tiles, but lose more digits.
_POINTS = ((0, 1), (1, 0), (1, 1), (-1, 1), (1, 2), (-2, 1))


def _evaluation(num_points: int, length: int) -> Tensor:
    """Monomials ``x^j y^(length-1-j)`` at the first points, (num_points, length), float64."""
    rows = [[x**j * y ** (length - 1 - j) for j in range(length)] for x, y in _POINTS[:num_points]]
    return torch.tensor(rows, dtype=torch.float64)


@lru_cache(maxsize=64)
def _matrices(tile: int, kernel: int) -> tuple[Tensor, Tensor, Tensor]:
    """
    The three matrices of a 1-D full convolution, ``out = C ((A tile) * (B kernel))``.

    Returns:
        A (q, m), B (q, k), C (q, q), float64. Exact up to rounding.
    """
    if tile == 1:  # Nothing to save; no evaluation loses no digits.
        identity = torch.eye(kernel, dtype=torch.float64)
        return torch.ones(kernel, 1, dtype=torch.float64), identity, identity
    points = tile + kernel - 1
    interpolation = torch.linalg.inv(_evaluation(points, points))
    return _evaluation(points, tile), _evaluation(points, kernel), interpolation


class FullConvolution:
    """
    Adjoint of a stride-1 convolution on windows: ``out[i + d] += weight[:, :, d]^T window[i]``.

    Args:
        weight: (Co, Ci, k, k) of the *forward* convolution (a cross-correlation, as in torch).
            Walking it backwards flips the kernel, which is what a full convolution does. Half
            precision becomes float32: evaluating at points costs about one digit.
    """

    def __init__(self, weight: Tensor) -> None:
        if weight.shape[2] != weight.shape[3]:
            raise ValueError(f"square kernels only, not {tuple(weight.shape[2:])}")
        half = weight.dtype in (torch.float16, torch.bfloat16)
        self.weight = weight.detach().float() if half else weight.detach()
        self.kernel = weight.shape[2]
        self._values: dict[int, Tensor] = {}

    def tile_side(self, height: int, width: int) -> int:
        """Tile side m with the fewest matrix products for a window."""
        if self.kernel == 1:
            return 1
        grow = self.kernel - 1

        def products(m: int) -> int:
            return -(-height // m) * -(-width // m) * (m + grow) ** 2

        return min(range(1, max(2, len(_POINTS) - grow + 1)), key=products)

    def row_elements(self, height: int, width: int) -> int:
        """Elements of temporary memory that each window of (height, width) cells needs."""
        m = self.tile_side(height, width)
        tiles = -(-height // m) * -(-width // m)
        num_out, num_in = self.weight.shape[:2]
        points = (m + self.kernel - 1) ** 2
        return tiles * ((m * m + points) * num_out + 3 * points * num_in)

    def __call__(self, windows: Tensor) -> Tensor:
        """Take windows (h, w, R, Co) to (h + k - 1, w + k - 1, R, Ci)."""
        height, width, rows, channels = windows.shape
        if self.kernel == 1:
            return windows @ self.weight[:, :, 0, 0]
        m = self.tile_side(height, width)
        down, across = -(-height // m), -(-width // m)
        if (down * m, across * m) != (height, width):
            padded = windows.new_zeros(down * m, across * m, rows, channels)
            padded[:height, :width] = windows
            windows = padded
        tiles = windows.view(down, m, across, m, rows, channels).permute(1, 3, 0, 2, 4, 5)
        grown = self._grow(tiles.reshape(m * m, -1), m)
        q = m + self.kernel - 1
        grown = grown.view(q, q, down, across, rows, -1)
        if down * across == 1:
            out = grown[:, :, 0, 0]
        else:
            out = windows.new_zeros(down * m + q - m, across * m + q - m, rows, grown.shape[-1])
            for a in range(down):
                for b in range(across):
                    out[a * m : a * m + q, b * m : b * m + q] += grown[:, :, a, b]
        # What the padding grew into is zero.
        return out[: height + q - m, : width + q - m]

    def _grow(self, tiles: Tensor, m: int) -> Tensor:
        """Take tiles (m m, X Co) to (q q, X Ci), X any number of tiles."""
        evaluate, _, interpolate = _matrices(m, self.kernel)
        points = len(evaluate) ** 2
        values = torch.kron(evaluate, evaluate).to(tiles) @ tiles
        values = values.view(points, -1, self.weight.shape[0])
        products = torch.bmm(values, self._kernel_values(m)).view(points, -1)
        return torch.kron(interpolate, interpolate).to(tiles) @ products

    def _kernel_values(self, m: int) -> Tensor:
        """The kernel at the points of tiles of side m, (q q, Co, Ci), computed once."""
        if m not in self._values:
            evaluate = _matrices(m, self.kernel)[1]
            by_tap = self.weight.permute(2, 3, 0, 1).flatten(2).flatten(0, 1)
            # In float64, because these errors would be the same for all windows.
            values = torch.kron(evaluate, evaluate).to(by_tap.device) @ by_tap.double()
            self._values[m] = values.to(by_tap.dtype).view(-1, *self.weight.shape[:2])
        return self._values[m]
