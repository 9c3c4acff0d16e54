"""How to explain: the settings that every explainer shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from odam_d2.core.errors import InputError
from odam_d2.core.targets import DEFAULT_TARGETS

__all__ = ["SCORES", "ExplainSettings"]

SCORES = ("probability", "logit")


@dataclass(frozen=True)
class ExplainSettings:
    """
    Attributes:
        targets: what to explain, see :func:`odam_d2.core.targets.parse_targets`. None at all turns
            explaining off.
        score: the class score that is differentiated, one of :data:`SCORES`.
        smoothing_sigma: standard deviation of the Gaussian Phi, in feature cells; 0 is none.
        chunk_mb: bound on temporary tensors, in MB.
        class_names: names of the classes by id, where they are known.
    """

    targets: tuple[str, ...] = DEFAULT_TARGETS
    score: str = "probability"
    smoothing_sigma: float = 0.0
    chunk_mb: float = 64
    class_names: Sequence[str] | None = None

    def __post_init__(self):
        if self.score not in SCORES:
            raise InputError(f"MODEL.ODAM.SCORE is {self.score!r}; it must be one of {SCORES}")
        if not 0 <= self.smoothing_sigma < float("inf"):
            raise InputError(
                f"MODEL.ODAM.SMOOTHING_SIGMA is {self.smoothing_sigma}; it must be 0 (no "
                "smoothing) or a positive number of feature cells"
            )
        if not self.chunk_mb > 0:
            raise InputError(f"MODEL.ODAM.CHUNK_MB is {self.chunk_mb}; it must be positive")

    @property
    def max_bytes(self) -> int:
        return int(self.chunk_mb * 2**20)

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
            chunk_mb=node.CHUNK_MB,
            class_names=_class_names(cfg),
        )


def _class_names(cfg: CfgNode) -> Sequence[str] | None:
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        names = MetadataCatalog.get(name).get("thing_classes")
        if names is not None:
            return tuple(names)
    return None
