"""How a dense detector runs when it explains: what its head gives is kept for the way out."""

from __future__ import annotations

from torch import Tensor

from .anchors import ORIGIN, TracedDecoding

__all__ = ["ExplainingDetector"]


class ExplainingDetector(TracedDecoding):
    """Mixin for a ``DenseDetector``: detections get ``odam_maps`` on the way out."""

    def forward_inference(self, images, features, predictions):
        explainer = self.odam_explainer
        # Where transposing is not a copy, Detectron2's sigmoid_ would overwrite what is kept.
        kept = [
            [x.clone() if _transposes_in_place(x, size) else x for x in levels]
            for levels, size in zip(predictions, explainer.output_sizes, strict=True)
        ]
        results = super().forward_inference(images, features, predictions)
        explainer.outputs = explainer.tracing.outputs = kept
        try:
            results = explainer.explain_traced(images, features, results)
        finally:
            explainer.forget()
        for found in results:
            found.remove(ORIGIN)
        return results


def _transposes_in_place(outputs: Tensor, per_anchor: int) -> bool:
    """Whether Detectron2's (I, A K, H, W) to (I, H W A, K) is a view of the same memory."""
    by_anchor = outputs.unflatten(1, (-1, per_anchor)).permute(0, 3, 4, 1, 2)
    try:
        by_anchor.view(len(outputs), -1, per_anchor)
    except RuntimeError:
        return False
    return True
