"""
SmoothGrad (Smilkov et al., "SmoothGrad: removing noise by adding noise", 2017): the gradient by the
image, averaged over noisy copies of it, each read at the anchors or proposals of the detections.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from odam_d2.core.cam import largest_gradient
from odam_d2.core.errors import InputError
from odam_d2.core.gradients import Cut, batched_gradients
from odam_d2.core.heatmap import smooth
from odam_d2.core.windows import computes_together
from odam_d2.modeling.adapters.base import Adapter
from odam_d2.modeling.adapters.head import HeadAdapter, head_adapter
from odam_d2.modeling.adapters.outputs import OutputsAdapter
from odam_d2.modeling.adapters.trace import Trace
from odam_d2.modeling.settings import ExplainSettings, SmoothGradSettings
from odam_d2.modeling.targets import Targets
from odam_d2.structures import OdamMaps

from .geometry import whole_geometry
from .gradients import in_full_precision
from .output_maps import check_reached
from .registry import ODAM_METHOD_REGISTRY, Method

__all__ = ["SmoothGrad"]


@dataclass(frozen=True)
class SmoothGrad(Method):
    """
    A map is the largest absolute mean of the gradient by one of a pixel's channels.

    Attributes:
        settings: how many copies, and their noise.
        smoothing_sigma, max_bytes: as for :class:`GradientMethod`.
    """

    settings: SmoothGradSettings = field(default_factory=SmoothGradSettings)
    smoothing_sigma: float = 0.0
    max_bytes: int = 2**26

    def check(self, adapter: Adapter, targets: Targets) -> None:
        if isinstance(adapter, OutputsAdapter):
            raise InputError(
                "'smooth_grad' reads noisy images at the same anchors or proposals, of which "
                f"{type(adapter).__name__} tells nothing: use another method"
            )

    def algorithm(self, adapter: Adapter) -> str:
        return f"autograd at the image, {self.settings.num_samples} samples"

    def __call__(self, adapter: Adapter, trace: Any, targets: Targets) -> OdamMaps:
        with in_full_precision(head_adapter(adapter), trace) as (precise, again):
            return self._maps(precise, again, targets)

    def _maps(self, adapter: HeadAdapter, trace: Trace, targets: Targets) -> OdamMaps:
        adapter.check_rerun(trace)
        decisions = adapter.evaluate(adapter.features(trace.images), trace)
        adapter.check_same(trace, decisions, rerun=True)
        # The gradients of so many detections are summed up at a time.
        of_image = trace.images[0]
        bytes_of_one = len(targets) * of_image.numel() * of_image.element_size()
        step = max(1, self.max_bytes // bytes_of_one)
        found = []
        total = len(trace) * self.settings.num_samples
        with tqdm(total=total, desc="SmoothGrad", leave=False, disable=None) as bar:
            for number, count in enumerate(trace.counts()):
                rows = (trace.image == number).nonzero().squeeze(1)
                for chunk in rows.split(step) if count else ():
                    sums = self._sums(adapter, trace, chunk, targets, bar)
                    found.append((sums.maps(self.smoothing_sigma), sums.exponents, sums.saturated))
        values, exponents, saturated = (torch.cat(parts) for parts in zip(*found, strict=True))
        geometry = whole_geometry(trace, values, 1.0)
        return targets.maps(values, exponents, saturated, **geometry)

    def _sums(
        self, adapter: HeadAdapter, trace: Trace, rows: Tensor, targets: Targets, bar: tqdm
    ) -> _Sums:
        """Of some detections of one image."""
        number = int(trace.image[rows[0]])
        image, size = trace.images[number], trace.image_sizes[number]
        places = trace.on_images(rows, torch.zeros_like(rows), 1)
        sums = _Sums.of(len(rows), len(targets), image)
        for sample in range(self.settings.num_samples):
            noisy = (image + self._noise(image, size, sample))[None].requires_grad_()
            sums = self._added(adapter, places, noisy, targets, sums)
            bar.update(len(rows))
        return sums

    def _noise(self, image: Tensor, size: tuple[int, int], sample: int) -> Tensor:
        """(3, H, W), none where the image is padded."""
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + sample)
        shown = image[:, : size[0], : size[1]]
        noise = torch.randn(shown.shape, generator=generator).to(image)
        noise *= self.settings.noise * (shown.amax() - shown.amin())
        return torch.nn.functional.pad(
            noise, (0, image.shape[2] - size[1], 0, image.shape[1] - size[0])
        )

    @torch.enable_grad()
    def _added(
        self, adapter: HeadAdapter, places: Trace, noisy: Tensor, targets: Targets, sums: _Sums
    ) -> _Sums:
        features = adapter.features(noisy)
        read = features
        # Backwards from what a detection was read from only. A device would wait for each look.
        if not computes_together(noisy.device):
            read = [feature.detach().requires_grad_() for feature in features]
        scalars = targets.of(adapter.evaluate(read, places))
        reached = torch.tensor([x.requires_grad for x in features], device=places.levels.device)
        check_reached(
            reached[places.levels].any(dim=1, keepdim=True), places.image.tolist(), "the images"
        )
        cut: Cut = () if read is features else list(zip(features, read, strict=True))
        gradient = torch.stack(
            [
                torch.cat([g for _, g in batched_gradients(s.values, noisy, self.max_bytes, cut)])
                for s in scalars
            ],
            dim=1,
        )
        return sums.add(
            gradient[:, :, 0],
            torch.stack([scalar.exponents for scalar in scalars], dim=1),
            torch.stack([scalar.saturated for scalar in scalars], dim=1),
        )


@dataclass(frozen=True)
class _Sums:
    """
    Sums of gradients of N detections and T targets.

    Attributes:
        total: (N, T, 3, H, W), up to the factor ``2 ** exponents``.
        count: samples so far.
        exponents, saturated: (N, T); what was saturated in all samples is.
    """

    total: Tensor
    count: int
    exponents: Tensor
    saturated: Tensor

    @classmethod
    def of(cls, detections: int, targets: int, image: Tensor) -> _Sums:
        """Nothing yet of an image (3, H, W)."""
        total = image.new_zeros(detections, targets, *image.shape)
        exponents = total.new_full(total.shape[:2], -torch.inf, dtype=torch.float64)
        return cls(total, 0, exponents, torch.ones_like(exponents, dtype=torch.bool))

    def add(self, gradient: Tensor, exponents: Tensor, saturated: Tensor) -> _Sums:
        both = torch.maximum(self.exponents, exponents)
        before, now = (
            torch.exp2(x - both).to(gradient.dtype)[:, :, None, None, None]
            for x in (self.exponents, exponents)
        )
        total = self.total * before + gradient * now
        return _Sums(total, self.count + 1, both, self.saturated & saturated)

    def maps(self, sigma: float) -> Tensor:
        """(N, T, H, W), up to the same factor."""
        mean = smooth(self.total / self.count, sigma)
        return largest_gradient(mean, mean)


@ODAM_METHOD_REGISTRY.register()
def smooth_grad(settings: ExplainSettings) -> SmoothGrad:
    """SmoothGrad (Smilkov et al., 2017)."""
    if settings.layer:
        raise InputError(
            f"{settings.argument('method')} 'smooth_grad' makes maps on the image itself; leave "
            f"{settings.argument('layer')} empty"
        )
    return SmoothGrad(settings.smooth_grad, settings.smoothing_sigma, settings.max_bytes)
