"""
Gradients and heat maps of many scalar outputs by autograd: the way that asks nothing of the head.

For heads that are neither local nor applied to each instance alone (GroupNorm over a whole level,
attention). Exact, but each output costs a backward pass of the head: explain few outputs, or use
:mod:`odam_d2.core.dense_windows` where it applies.

Shape shorthand:

    M: outputs; C: channels; I: images; H, W: feature grid in cells.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from odam_d2.core.cam import odam
from odam_d2.core.errors import InputError
from odam_d2.core.heatmap import smooth

__all__ = ["Cut", "batched_gradients", "gradient_heat_maps", "precise"]

Cut = Sequence[tuple[Tensor, Tensor]]
"""
Where a graph was cut in two: what the lower part made of the inputs, and the leaf that the upper
part read in its place.
"""

# Bytes that a backward pass holds at once, in units of the input's size: the gradient that comes
# in, the one that goes out, a workspace of the convolution, and the result.
_COPIES = 4

# On the CPU a convolution of more cells than this is busy anyway. Measured with RetinaNet's tower
# of 256 channels, one thread, one by one / batched: 7x10 cells 6.6 / 5.6 ms an output, 13x19 cells
# 13.7 / 14.7 ms; with GroupNorm, which vmap takes apart, 25x38 cells 36 / 51 ms.
_CPU_BATCH_ELEMENTS = 2**15


def precise(x: Tensor) -> Tensor:
    """Half precision as float32, all else as it is: maps are sums of many small products."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def batched_gradients(
    outputs: Tensor, inputs: Tensor, max_bytes: int = 2**28, cut: Cut = ()
) -> Iterator[tuple[slice, Tensor]]:
    """
    Gradient of each output with respect to ``inputs``, in chunks.

    Outputs of a chunk share one vectorised backward pass where that pays (on a GPU, or for small
    inputs) and every operation supports it; otherwise they go one by one. The graph is retained,
    and no ``.grad`` is touched.

    Args:
        outputs: (M,), with a graph that reaches ``inputs``. An output that does not depend on
            ``inputs`` has gradient zero.
        inputs: any shape, requiring gradients.
        max_bytes: bound on temporary memory, reached by making chunks smaller, down to one output.
        cut: all ways from the inputs to the outputs lead through it; outputs go one by one.

    Yields:
        The slice of outputs and their gradients (m, *inputs.shape), from first to last.

    Raises:
        ValueError: ``outputs`` is not a vector.
        InputError: they have no graph.
    """
    if outputs.dim() != 1:
        raise ValueError(f"outputs must be a vector, not {tuple(outputs.shape)}")
    if len(outputs) and not outputs.requires_grad:
        raise InputError(
            "outputs have no graph: the head runs under torch.no_grad or torch.inference_mode, or "
            "detaches what it computes"
        )
    small = inputs.is_cuda or inputs.numel() <= _CPU_BATCH_ELEMENTS
    together = small and not cut
    size = max_bytes // (_COPIES * max(1, inputs.numel()) * inputs.element_size())
    start, step = 0, max(1, min(size, len(outputs))) if together else 1
    while start < len(outputs):
        index = slice(start, min(start + step, len(outputs)))
        gradients = _vectorised(outputs, inputs, index) if step > 1 else None
        if gradients is None:
            # What one chunk could not do, the others cannot either.
            step, index = 1, slice(start, start + 1)
            gradients = _single(outputs, inputs, start, cut)[None]
        yield index, gradients
        start = index.stop


def gradient_heat_maps(
    outputs: Tensor,
    features: Tensor,
    image: Tensor,
    sigma: float = 0.0,
    signed: bool = False,
    max_bytes: int = 2**28,
    rule: Callable[..., Tensor] = odam,
    scale: Tensor | None = None,
    cut: Cut = (),
) -> Tensor:
    """
    ``ReLU(rule(Phi(dY / dA), A))`` for each output; (M, C, H, W) is never held at once.

    Args:
        outputs: (M,), see :func:`batched_gradients`.
        features: A, (I, C, H, W), requiring gradients. Maps of half precision are float32.
        image: (M,) int64, the image that each output belongs to.
        sigma: standard deviation in cells of the Gaussian Phi; 0 is the identity.
        signed: leave out the ReLU, also for maps that are to be added up first.
        max_bytes: bound on temporary memory.
        rule: makes signed maps (m, H, W) of gradients (m, C, H, W), smoothed, and features; see
            :mod:`odam_d2.core.cam`.
        scale: (M,), what the derivative of each output was divided by; None for one.
        cut: see :func:`batched_gradients`.

    Returns:
        (M, H, W) without a graph.
    """
    values = precise(features.detach())
    maps = values.new_zeros(len(outputs), *features.shape[-2:])
    for index, gradients in batched_gradients(outputs, features, max_bytes, cut):
        chosen = image[index]
        gradients = gradients[torch.arange(len(chosen), device=chosen.device), chosen]
        gradients = precise(gradients)
        factor = () if scale is None else (scale[index].to(gradients)[:, None, None, None],)
        maps[index] = rule(smooth(gradients, sigma), values[chosen], *factor)
    return maps if signed else maps.relu_()


def _single(outputs: Tensor, inputs: Tensor, index: int, cut: Cut) -> Tensor:
    """Gradient of one output, of the shape of ``inputs``."""
    with torch.enable_grad():  # choosing an output is a part of the graph
        roots = [outputs[index]]
    seeds: list[Tensor | None] = [None]
    if cut:
        above = torch.autograd.grad(
            roots, [leaf for _, leaf in cut], retain_graph=True, allow_unused=True
        )
        below = [
            (made, gradient)
            for (made, _), gradient in zip(cut, above, strict=True)
            if made.requires_grad and gradient is not None
        ]
        roots, seeds = [made for made, _ in below], [gradient for _, gradient in below]
    gradient = None
    if roots:
        (gradient,) = torch.autograd.grad(
            roots, inputs, seeds, retain_graph=True, allow_unused=True
        )
    return torch.zeros_like(inputs) if gradient is None else gradient


def _vectorised(outputs: Tensor, inputs: Tensor, index: slice) -> Tensor | None:
    """Gradients of a slice of outputs at once, None where an operation does not support that."""
    rows = torch.eye(len(outputs), dtype=outputs.dtype, device=outputs.device)[index]
    try:
        (gradients,) = torch.autograd.grad(
            outputs, inputs, rows, retain_graph=True, allow_unused=True, is_grads_batched=True
        )
    except RuntimeError:  # vmap has no rule for the operation; also NotImplementedError.
        return None
    return inputs.new_zeros(len(rows), *inputs.shape) if gradients is None else gradients
