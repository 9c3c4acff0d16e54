"""
Full (window-growing) 2-D convolutions of many small windows with few multiplications.

Backpropagating through a stride-1 convolution takes a window of n x n cells to one of
(n + k - 1) x (n + k - 1): a polynomial product of window and kernel in two variables. Multiplying
polynomials of m and k coefficients takes m k products by the school's way, and m + k - 1 by Toom
and Cook's: evaluate both at m + k - 1 points, multiply the values, interpolate. Each "product" is
a matrix product over channels here, so fewer of them is less time: 575 instead of 1476 bring a
gradient through four 3x3 layers from 3x3 to 11x11 cells. Winograd's convolutions are the transpose
of the same idea (Lavin and Gray, CVPR 2016, arXiv 1509.09308).

The price is rounding: with tiles evaluated by A, kernels by B, and values interpolated by C, the
expected error of output v is ``sqrt(sum_p C[v, p]^2 |A[p]|^2 |B[p]|^2)`` times that of one product,
for data without structure. It depends on the points, which were searched for (others have done so
for Winograd's form: Barabasz et al. 2018, arXiv 1803.10986). TF32 has no digits to lose to this:
leave it off.

Shape shorthand:

    R: windows; h, w: cells of a window; Co, Ci: output and input channels of the convolution (a
    gradient goes from Co to Ci); k: kernel side; m: tile side; q = m + k - 1: points of an axis;
    a, b: tiles of a window along each axis.

Windows are stored cells first, channels last, (h, w, R, C), so that all of this is matrix products.
On other devices than the CPU, where a dispatched operation costs more than its multiplications, and
TF32 may be on, it is one plain convolution.
"""

from functools import cached_property, lru_cache
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["FullConvolution"]

# Points x/y as pairs (x, y) for each number of points: infinity (1, 0) needs no case of its own,
# and the evaluation matrices hold small integers. Expected error for k = 3 and 4, 5 points: 1.6 and
# 2.2 times that of one product, in each dimension; 5 of the customary 0, 1, -1, 1/2, -2 and
# infinity have 3.3. Six points would save a seventh of the products, and lose half a digit more.
_POINTS = {
    3: ((0, 1), (1, 0), (1, 1)),
    4: ((0, 1), (1, 0), (1, 1), (-1, 1)),
    5: ((0, 1), (3, 4), (-3, 4), (5, 2), (-5, 2)),
}


def _evaluation(num_points: int, length: int) -> Tensor:
    """Monomials ``x^j y^(length-1-j)`` at that many points, (num_points, length), float64."""
    rows = [[x**j * y ** (length - 1 - j) for j in range(length)] for x, y in _POINTS[num_points]]
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
        tiled: whether to multiply by Toom and Cook's way; None says so on the CPU.
    """

    def __init__(self, weight: Tensor, tiled: bool | None = None) -> None:
        if weight.shape[2] != weight.shape[3]:
            raise ValueError(f"square kernels only, not {tuple(weight.shape[2:])}")
        half = weight.dtype in (torch.float16, torch.bfloat16)
        self.weight = weight.detach().float() if half else weight.detach()
        self.kernel = weight.shape[2]
        self.tiled = weight.device.type == "cpu" if tiled is None else tiled
        self._values: dict[int, Tensor] = {}

    def tile_side(self, height: int, width: int) -> int:
        """Tile side m with the fewest matrix products for a window."""
        if self.kernel == 1:
            return 1
        grow = self.kernel - 1

        def cost(m: int) -> int:
            return -(-height // m) * -(-width // m) * (m + grow) ** 2

        return min((1, *(q - grow for q in _POINTS if q - grow > 1)), key=cost)

    def row_elements(self, height: int, width: int) -> int:
        """Elements of temporary memory that each window of (height, width) cells needs."""
        num_out, num_in = self.weight.shape[:2]
        if not self.tiled:
            grown = (height + self.kernel - 1) * (width + self.kernel - 1)
            return 2 * height * width * num_out + grown * num_in
        m = self.tile_side(height, width)
        tiles = -(-height // m) * -(-width // m)
        points = (m + self.kernel - 1) ** 2
        return tiles * ((m * m + points) * num_out + 3 * points * num_in)

    def __call__(self, windows: Tensor, factor: Tensor) -> Tensor:
        """
        Multiply windows by a factor, then take them through the full convolution.

        Args:
            windows: (h, w, R, Co); R may be several axes.
            factor: broadcast against ``windows``, but for h and w, which it has.

        Returns:
            (h + k - 1, w + k - 1, R, Ci).
        """
        if self.kernel == 1:
            return (windows * factor) @ self.weight[:, :, 0, 0]
        if not self.tiled:
            return self._plain(windows * factor)
        height, width, *rows, channels = windows.shape
        m = self.tile_side(height, width)
        q = m + self.kernel - 1
        grid = list(product(range(-(-height // m)), range(-(-width // m))))
        tiles = windows.new_empty(m, m, len(grid), *rows, channels)
        for i, (a, b) in enumerate(grid):
            here = slice(a * m, (a + 1) * m), slice(b * m, (b + 1) * m)
            part = windows[here]
            torch.mul(part, factor[here], out=tiles[: part.shape[0], : part.shape[1], i])
            # Cells that pad the last tiles are zero, and so is all they grow into.
            tiles[part.shape[0] :, :, i] = 0
            tiles[:, part.shape[1] :, i] = 0
        grown = self._grow(tiles.view(m * m, -1), m).view(q, q, len(grid), *rows, -1)
        if len(grid) == 1:
            return grown[: height + q - m, : width + q - m, 0]
        last_a, last_b = grid[-1]
        out = windows.new_zeros(last_a * m + q, last_b * m + q, *rows, grown.shape[-1])
        for i, (a, b) in enumerate(grid):
            out[a * m : a * m + q, b * m : b * m + q] += grown[:, :, i]
        return out[: height + q - m, : width + q - m]

    @cached_property
    def by_tap(self) -> Tensor:
        """The forward kernel as (k, k, Ci, Co)."""
        return self.weight.permute(2, 3, 1, 0).contiguous()

    def _plain(self, windows: Tensor) -> Tensor:
        """Full convolution of windows (h, w, R, Co), R may be several axes."""
        rows = windows.flatten(2, -2).permute(2, 3, 0, 1)
        rows = rows.contiguous(memory_format=torch.channels_last)
        grown = F.conv_transpose2d(rows, self.weight).permute(2, 3, 0, 1)
        return grown.unflatten(2, windows.shape[2:-1])

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
