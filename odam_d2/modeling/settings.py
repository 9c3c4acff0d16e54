"""How to explain: the settings that every explainer shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from odam_d2.core.errors import InputError
from odam_d2.core.nms import Suppression
from odam_d2.core.targets import DEFAULT_TARGETS

from .nms import Candidates, build_odam_nms

__all__ = ["NORM_STATISTICS", "SCORES", "ExplainSettings"]

SCORES = ("probability", "logit")
NORM_STATISTICS = ("exact", "constant")


@dataclass(frozen=True)
class ExplainSettings:
    """
    Attributes:
        targets: what to explain, see :func:`odam_d2.core.targets.parse_targets`. None at all turns
            explaining off.
        score: the class score that is differentiated, one of :data:`SCORES`.
        smoothing_sigma: standard deviation of the Gaussian Phi, in feature cells; 0 is none.
        layer: the layer of the backbone on whose output maps are made, such as ``"res4"``; empty
            for the feature maps that the head reads.
        norm_statistics: whether GroupNorm in the towers of a dense head is differentiated in full
            (``"exact"``), or with its mean and variance held constant (``"constant"``), which
            makes such a head local and fast.
        chunk_mb: bound on temporary tensors, in MB.
        class_names: names of the classes by id, where they are known.
        nms: what takes the place of Detectron2's NMS, see ``ODAM_NMS_REGISTRY``; None leaves it.
        record: whether outputs have all candidates and what became of them, too; needs ``nms``.
    """

    targets: tuple[str, ...] = DEFAULT_TARGETS
    score: str = "probability"
    smoothing_sigma: float = 0.0
    layer: str = ""
    norm_statistics: str = "exact"
    chunk_mb: float = 64
    class_names: Sequence[str] | None = None
    nms: Callable[[Candidates], Suppression] | None = None
    record: bool = False

    def __post_init__(self):
        if self.score not in SCORES:
            raise InputError(f"MODEL.ODAM.SCORE is {self.score!r}; it must be one of {SCORES}")
        if self.norm_statistics not in NORM_STATISTICS:
            raise InputError(
                f"MODEL.ODAM.NORM_STATISTICS is {self.norm_statistics!r}; it must be one of "
                f"{NORM_STATISTICS}"
            )
        if not 0 <= self.smoothing_sigma < float("inf"):
            raise InputError(
                f"MODEL.ODAM.SMOOTHING_SIGMA is {self.smoothing_sigma}; it must be 0 (no "
                "smoothing) or a positive number of feature cells"
            )
        if not self.chunk_mb > 0:
            raise InputError(f"MODEL.ODAM.CHUNK_MB is {self.chunk_mb}; it must be positive")
        if self.record and self.nms is None:
            raise InputError("MODEL.ODAM.NMS.RECORD needs an NMS that is recorded; set its NAME")

    @property
    def max_bytes(self) -> int:
        return int(self.chunk_mb * 2**20)

    def of_class_logit(self) -> ExplainSettings:
        """
        The maps that are compared, by losses and by NMS: of the class logit, on what the head
        reads, group norm with constant statistics (the exact way costs a pass of the head for each
        map).
        """
        changes = {"targets": ("class",), "score": "logit", "layer": "", "nms": None}
        return replace(self, **changes, norm_statistics="constant", record=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> ExplainSettings:
        """The settings in ``cfg.MODEL.ODAM``; class names are those of the first data set."""
        if "ODAM" not in cfg.MODEL:
            raise KeyError(
                "the config has no MODEL.ODAM: call odam_d2.add_odam_config(cfg) right after "
                "get_cfg()"
            )
        node = cfg.MODEL.ODAM
        return cls(
            targets=tuple(node.TARGETS),
            score=node.SCORE,
            smoothing_sigma=node.SMOOTHING_SIGMA,
            layer=node.LAYER,
            norm_statistics=node.NORM_STATISTICS,
            chunk_mb=node.CHUNK_MB,
            class_names=_class_names(cfg),
            nms=build_odam_nms(cfg),
            record=node.NMS.RECORD,
        )


def _class_names(cfg: CfgNode) -> Sequence[str] | None:
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        names = MetadataCatalog.get(name).get("thing_classes")
        if names is not None:
            return tuple(names)
    return None
