"""The registry of losses on heat maps."""

from fvcore.common.registry import Registry

__all__ = ["ODAM_LOSS_REGISTRY"]

ODAM_LOSS_REGISTRY = Registry("ODAM_LOSS")
ODAM_LOSS_REGISTRY.__doc__ = """
Registry of losses that train heat maps, chosen by ``MODEL.ODAM.LOSS.NAME``.

An entry is called as ``obj(cfg)`` and returns an ``nn.Module``, which is called in every training
iteration with the positives of the batch, ``loss(batch: list[Positives]) -> Tensor``: one
:class:`odam_d2.modeling.losses.Positives` for each image, in order. It returns a scalar, with a
graph to their ``maps`` where there are any. ``MODEL.ODAM.LOSS.WEIGHT`` and the warm-up are applied
to what it returns. Scalars of its own go to ``detectron2.utils.events.get_event_storage()``.
"""
