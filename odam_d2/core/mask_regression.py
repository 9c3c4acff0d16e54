"""
What depends on masks, by linear regression with a prior: fewer masks will do than where each place
is looked at by itself, since those at once hidden share what they explain.
"""

import torch
from torch import Tensor

from .heatmap import smooth
from .masks import STRIDE

__all__ = ["prior_deviation", "regressed_slopes"]

_WITHIN, _FALLS, _REACH = 0.1, 0.1, 0.4
"""
In lengths of a box, how far beyond it evidence is as likely as inside, the standard deviation of
the Gaussian by which it gets less likely from there on, and where there is none.
"""


def prior_deviation(
    box: Tensor, length: float, grid: tuple[int, int]
) -> tuple[slice, slice, Tensor]:
    """
    How large slopes are expected to be around a box, in units of those inside.

    Args:
        box: (4,), XYXY in pixels.
        length: geometric mean of its width and height, in pixels.
        grid: (h, w), of cells of :data:`STRIDE` pixels.

    Returns:
        Rows and columns outside of which it is zero, and (h', w') float64 inside of them.
    """
    left, top, right, bottom = box.detach().cpu().double().tolist()
    (rows, down), (columns, across) = (
        _beyond(start, stop, length, count)
        for (start, stop), count in zip(((top, bottom), (left, right)), grid, strict=True)
    )
    distance = down[:, None].square() + across.square()
    return rows, columns, torch.exp(-0.5 * distance / (_FALLS * length) ** 2)


def _beyond(start: float, stop: float, length: float, count: int) -> tuple[slice, Tensor]:
    """Cells near an interval of pixels, and how many pixels beyond it each lies."""
    reach = _REACH * length
    first = min(max(0, int((start - reach) / STRIDE)), count - 1)
    last = min(max(first, int((stop + reach) / STRIDE)), count - 1)
    cells = slice(first, last + 1)
    at = (torch.arange(first, last + 1, dtype=torch.float64) + 0.5) * STRIDE
    within = _WITHIN * length
    return cells, torch.maximum(start - within - at, at - stop - within).clamp(min=0)


def regressed_slopes(
    values: Tensor, masks: Tensor, box: Tensor, length: float, correlation: float, noise: float
) -> Tensor:
    """
    How much more values are where a cell is seen than where it is hidden: the posterior mean of s,
    where ``value = constant + sum_x mask(x) s(x) + noise``, and s is Gaussian with the covariance
    ``d(x) g(x - y) d(y)``: d of :func:`prior_deviation`, g a Gaussian.

    Args:
        values: (K, T), of each masked image.
        masks: (K, h, w), on cells of :data:`STRIDE` pixels.
        box: (4,), of the detection whose values they are, XYXY in pixels.
        length: geometric mean of its width and height, in pixels.
        correlation: standard deviation of g, in shares of that length.
        noise: variance of the noise, in units of the mean that values have by s.

    Returns:
        (T, h, w), zero far from the box.
    """
    rows, columns, deviation = prior_deviation(box, length, (masks.shape[1], masks.shape[2]))
    deviation = deviation.to(values)
    varied = (masks[:, rows, columns] - masks[:, rows, columns].mean(dim=0)).to(values)
    spread = deviation * smooth(deviation * varied, correlation * length / STRIDE)
    covariance = varied.flatten(1) @ spread.flatten(1).t()
    mean = covariance.diagonal().mean()
    mean = torch.where(mean > torch.finfo(values.dtype).eps, mean, 1.0)  # masks do not vary here
    unit = torch.eye(len(values), dtype=values.dtype, device=values.device)
    weights = torch.linalg.solve(covariance + noise * mean * unit, values - values.mean(dim=0))
    result = values.new_zeros(values.shape[1], *masks.shape[1:])
    result[:, rows, columns] = (weights.t() @ spread.flatten(1)).view(-1, *spread.shape[1:])
    return result
