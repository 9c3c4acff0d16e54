"""From ``MODEL.ODAM.NMS`` to what it names."""

from __future__ import annotations

from detectron2.config import CfgNode

from odam_d2.core.errors import InputError
from odam_d2.core.ranges import check_text

from .postprocessors import OdamNms, SoftNms
from .registry import ODAM_NMS_REGISTRY, Postprocessor

__all__ = ["build_odam_nms"]


def build_odam_nms(cfg: CfgNode) -> Postprocessor | None:
    """
    The NMS that a config asks for.

    Args:
        cfg: with ``MODEL.ODAM.NMS``.

    Returns:
        What it says; None where its ``NAME`` is empty, which leaves Detectron2's own.

    Raises:
        InputError: the name is not registered (the message lists those that are), or a value is
            out of its range, be it of an entry of ours that is not chosen.
    """
    for entry in (SoftNms, OdamNms):
        entry(cfg)
    name = cfg.MODEL.ODAM.NMS.NAME
    if not name:
        return None
    check_text("MODEL.ODAM.NMS.NAME", name)
    known = sorted(entry for entry, _ in ODAM_NMS_REGISTRY)
    if name not in known:
        raise InputError(
            f"MODEL.ODAM.NMS.NAME is {name!r}; the registered ones are {', '.join(known)}, and '' "
            "is Detectron2's own"
        )
    return ODAM_NMS_REGISTRY.get(name)(cfg)
