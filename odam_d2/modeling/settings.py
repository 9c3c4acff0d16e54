"""How to explain: the settings that every explainer shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from odam_d2.core.cam import CAMS
from odam_d2.core.errors import InputError
from odam_d2.core.nms import Suppression
from odam_d2.core.ranges import check_flag, check_number, check_one_of, check_text
from odam_d2.core.targets import DEFAULT_TARGETS

from .nms import Candidates, build_odam_nms

__all__ = ["METHODS", "NORM_STATISTICS", "SCORES", "DRiseSettings", "ExplainSettings"]

METHODS = ("odam", *CAMS, "input_gradient", "d_rise")
"""ODAM, and what it is compared with."""

SCORES = ("probability", "logit")
NORM_STATISTICS = ("constant", "exact")

# Far beyond what has a use, and still computed.
_MOST = 10**9
_FINEST = 1000  # cells along a side of a grid of masks
_WIDEST = 1000  # standard deviation of smoothing, in cells


@dataclass(frozen=True)
class DRiseSettings:
    """
    Attributes:
        num_masks: masks of each image, at most.
        grid: rows and columns of the coarse random grid.
        keep_prob: probability that a cell of it is seen.
        batch_size: masked images that the detector sees at once.
        seed: of the masks; the n-th mask of an image depends on nothing else.
        settled: stop once every map is as reliable as this, see
            :func:`odam_d2.core.rise.reliability`; 1 is never.
        check_every: masks between two looks whether maps have settled, and two saves.
        state_dir: folder where sums are kept, so that an interrupted run goes on; "" for none.
    """

    num_masks: int = 5000
    grid: int = 16
    keep_prob: float = 0.5
    batch_size: int = 8
    seed: int = 0
    settled: float = 0.99
    check_every: int = 200
    state_dir: str = ""

    def __post_init__(self):
        prefix = "MODEL.ODAM.D_RISE."
        for name in ("num_masks", "batch_size", "check_every"):
            value = getattr(self, name)
            check_number(prefix + name.upper(), value, "1 or more", 1, _MOST, whole=True)
        check_number(prefix + "GRID", self.grid, f"1 to {_FINEST}", 1, _FINEST, whole=True)
        words = f"a whole number of at most {_MOST} in size"
        check_number(prefix + "SEED", self.seed, words, -_MOST, _MOST, whole=True)
        words = "above 0 and below 1"
        check_number(prefix + "KEEP_PROB", self.keep_prob, words, 0, 1, above=True, below=True)
        words = "above 0, and 1 at most"
        check_number(prefix + "SETTLED", self.settled, words, 0, 1, above=True)
        check_text(prefix + "STATE_DIR", self.state_dir)

    @classmethod
    def from_config(cls, node: CfgNode) -> DRiseSettings:
        """The settings in ``cfg.MODEL.ODAM.D_RISE``."""
        return cls(**{field.name: node[field.name.upper()] for field in fields(cls)})


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
        norm_statistics: whether GroupNorm in the towers of a dense head is differentiated with its
            mean and variance held constant (``"constant"``), which makes such a head local and
            fast, or in full (``"exact"``).
        chunk_mb: bound on temporary tensors, in MB.
        class_names: names of the classes by id, where they are known.
        nms: what takes the place of Detectron2's NMS, see ``ODAM_NMS_REGISTRY``; None leaves it.
        record: whether outputs have all candidates and what became of them, too; needs ``nms``.
        method: how maps are made, one of :data:`METHODS`.
        d_rise: what the method ``"d_rise"`` does.
    """

    targets: tuple[str, ...] = DEFAULT_TARGETS
    score: str = "probability"
    smoothing_sigma: float = 0.0
    layer: str = ""
    norm_statistics: str = "constant"
    chunk_mb: float = 64
    class_names: Sequence[str] | None = None
    nms: Callable[[Candidates], Suppression] | None = None
    record: bool = False
    method: str = "odam"
    d_rise: DRiseSettings = DRiseSettings()

    def __post_init__(self):
        check_one_of("MODEL.ODAM.METHOD", self.method, METHODS)
        check_one_of("MODEL.ODAM.SCORE", self.score, SCORES)
        check_one_of("MODEL.ODAM.NORM_STATISTICS", self.norm_statistics, NORM_STATISTICS)
        if not all(isinstance(target, str) for target in self.targets):
            raise InputError(f"MODEL.ODAM.TARGETS is {self.targets!r}; it must be names")
        check_number(
            "MODEL.ODAM.SMOOTHING_SIGMA",
            self.smoothing_sigma,
            f"0 (no smoothing) or a positive number of feature cells, at most {_WIDEST}",
            *(0, _WIDEST),
        )
        check_text("MODEL.ODAM.LAYER", self.layer)
        words = f"above 0, and {_MOST} at most"
        check_number("MODEL.ODAM.CHUNK_MB", self.chunk_mb, words, 0, _MOST, above=True)
        check_flag("MODEL.ODAM.NMS.RECORD", self.record)
        self._check_objects()
        if self.record and self.nms is None:
            raise InputError("MODEL.ODAM.NMS.RECORD needs an NMS that is recorded; set its NAME")
        self._check_method()

    def _check_objects(self) -> None:
        """What no config says, and a caller may get wrong."""
        names = self.class_names
        listed = isinstance(names, Sequence) and not isinstance(names, str)
        if names is not None and not (listed and all(isinstance(name, str) for name in names)):
            raise InputError(f"class_names is {names!r}; it must be a list of names, or None")
        if not isinstance(self.d_rise, DRiseSettings):
            raise InputError(f"d_rise is {self.d_rise!r}; it must be DRiseSettings(...)")
        if self.nms is not None and not (callable(self.nms) and hasattr(self.nms, "needs_maps")):
            raise InputError(
                f"nms is {self.nms!r}; it must be what an entry of ODAM_NMS_REGISTRY returns, such "
                "as odam_d2.modeling.nms.OdamNms()"
            )

    def _check_method(self) -> None:
        if self.layer and self.method in ("input_gradient", "d_rise"):
            raise InputError(
                f"MODEL.ODAM.METHOD {self.method!r} makes maps on the image itself; leave "
                "MODEL.ODAM.LAYER empty"
            )
        if self.method != "d_rise":
            return
        for key, given, without in (
            ("SCORE", self.score, "probability"),
            ("SMOOTHING_SIGMA", self.smoothing_sigma, 0),
        ):
            if given != without:
                raise InputError(
                    f"MODEL.ODAM.{key} is {given!r}; D-RISE differentiates nothing, so it must be "
                    f"{without!r}"
                )
        wrong = sorted(set(self.targets) - {"class", "combined"})
        if wrong:
            raise InputError(
                f"D-RISE explains a detection as a whole, so MODEL.ODAM.TARGETS must be 'class' "
                f"(or 'combined', which is the same map), not {', '.join(map(repr, wrong))}"
            )

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
        changes |= {"norm_statistics": "constant", "record": False, "method": "odam"}
        return replace(self, **changes)

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
            targets=_targets(node.TARGETS),
            score=node.SCORE,
            smoothing_sigma=node.SMOOTHING_SIGMA,
            layer=node.LAYER,
            norm_statistics=node.NORM_STATISTICS,
            chunk_mb=node.CHUNK_MB,
            class_names=_class_names(cfg),
            nms=build_odam_nms(cfg),
            record=node.NMS.RECORD,
            method=node.METHOD,
            d_rise=DRiseSettings.from_config(node.D_RISE),
        )


def _targets(names: object) -> tuple:
    if not isinstance(names, (list, tuple)):
        raise InputError(f"MODEL.ODAM.TARGETS is {names!r}; it must be a list of names")
    return tuple(names)


def _class_names(cfg: CfgNode) -> Sequence[str] | None:
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        names = MetadataCatalog.get(name).get("thing_classes")
        if names is not None:
            return tuple(names)
    return None
