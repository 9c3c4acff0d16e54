"""How to explain: the settings that every explainer shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from odam_d2.core.errors import InputError
from odam_d2.core.ranges import check_flag, check_number, check_one_of, check_text
from odam_d2.core.targets import DEFAULT_TARGETS

from .attribution.registry import (
    ODAM_METHOD_REGISTRY,
    ODAM_PRESET_REGISTRY,
    Method,
    method_names,
    preset_names,
)
from .gradient_settings import GCameSettings, LayerCamSettings, SmoothGradSettings
from .mask_settings import DRiseSettings, RiseSettings
from .nms import Postprocessor, build_odam_nms
from .node_settings import MAX_NUMBER, NodeSettings
from .segment_settings import DCloseSettings, VpsSettings

__all__ = [
    "METHOD_SETTINGS",
    "NORM_STATISTICS",
    "SCORES",
    "DCloseSettings",
    "DRiseSettings",
    "ExplainSettings",
    "GCameSettings",
    "LayerCamSettings",
    "RiseSettings",
    "SmoothGradSettings",
    "VpsSettings",
]

SCORES = ("probability", "logit")
"""What the score of a class may be."""

NORM_STATISTICS = ("constant", "exact")
"""How GroupNorm may be differentiated."""

METHOD_SETTINGS: dict[str, type[NodeSettings]] = {
    "d_close": DCloseSettings,
    "d_rise": DRiseSettings,
    "g_came": GCameSettings,
    "layer_cam": LayerCamSettings,
    "rise": RiseSettings,
    "smooth_grad": SmoothGradSettings,
    "vps": VpsSettings,
}
"""The methods that have settings of their own, each under its name."""

# Far beyond what has a use, and still computed.
_MAX_SIGMA = 1000  # standard deviation of smoothing, in cells


@dataclass(frozen=True)
class ExplainSettings:
    """
    Attributes:
        targets: what to explain, see :meth:`odam_d2.modeling.targets.Targets.named`. None at
            all turns explaining off.
        score: the class score that is differentiated, one of :data:`SCORES`.
        smoothing_sigma: standard deviation of the Gaussian Phi, in feature cells; 0 is none.
        layer: the layer of the backbone on whose output maps are made, such as ``"res4"``; empty
            for the feature maps that the head reads.
        norm_statistics: whether GroupNorm in the towers of a dense head is differentiated with its
            mean and variance held constant (``"constant"``), which makes such a head local and
            fast, or in full (``"exact"``).
        chunk_mb: bound on temporary tensors, in MB; on other devices than the CPU eight times as
            much.
        class_names: names of the classes by id, where they are known.
        nms: what takes the place of Detectron2's NMS, see ``ODAM_NMS_REGISTRY``; None leaves it.
        record: whether outputs have all candidates and what became of them, too; needs ``nms``.
        method: how maps are made: a name in ``ODAM_METHOD_REGISTRY``, or a method of your own.
        preset: chooses method and layer: a name in ``ODAM_PRESET_REGISTRY``, such as ``"gradient"``
            or ``"faithful"``; empty for those above.
        signed: whether maps show what speaks against a decision as well, below zero.
        d_rise, rise, smooth_grad, layer_cam, g_came, d_close, vps: what the method of that name
            does.
        named_by_keys: whether messages name the keys of a config, or arguments.
    """

    targets: tuple[str, ...] = DEFAULT_TARGETS
    score: str = "probability"
    smoothing_sigma: float = 0.0
    layer: str = ""
    norm_statistics: str = "constant"
    chunk_mb: float = 64
    class_names: Sequence[str] | None = None
    nms: Postprocessor | None = None
    record: bool = False
    method: str | Method = "odam"
    preset: str = ""
    signed: bool = False
    d_rise: DRiseSettings = field(default_factory=DRiseSettings)
    rise: RiseSettings = field(default_factory=RiseSettings)
    smooth_grad: SmoothGradSettings = field(default_factory=SmoothGradSettings)
    layer_cam: LayerCamSettings = field(default_factory=LayerCamSettings)
    g_came: GCameSettings = field(default_factory=GCameSettings)
    d_close: DCloseSettings = field(default_factory=DCloseSettings)
    vps: VpsSettings = field(default_factory=VpsSettings)
    named_by_keys: bool = field(default=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        name = self.argument
        if not isinstance(self.method, Method):
            check_one_of(name("method"), self.method, method_names())
        if self.preset != "":
            check_one_of(name("preset"), self.preset, preset_names())
        for key, free in (("method", "odam"), ("layer", "")):
            if self.preset and getattr(self, key) != free:
                raise InputError(
                    f"{name('preset')} is {self.preset!r}, which chooses method and layer by "
                    f"itself, and {name(key)} is {getattr(self, key)!r}; leave one of them out"
                )
        check_one_of(name("score"), self.score, SCORES)
        check_one_of(name("norm_statistics"), self.norm_statistics, NORM_STATISTICS)
        if not all(isinstance(target, str) for target in self.targets):
            raise InputError(f"{name('targets')} is {self.targets!r}; it must be names")
        check_number(
            name("smoothing_sigma"),
            self.smoothing_sigma,
            f"0 (no smoothing) or a positive number of feature cells, at most {_MAX_SIGMA}",
            *(0, _MAX_SIGMA),
        )
        check_text(name("layer"), self.layer)
        words = f"above 0, and {MAX_NUMBER} at most"
        check_number(name("chunk_mb"), self.chunk_mb, words, 0, MAX_NUMBER, above=True)
        check_flag(name("record"), self.record)
        check_flag(name("signed"), self.signed)
        self._check_objects()
        if self.record and self.nms is None:
            raise InputError(f"{name('record')} needs an NMS that is recorded; set {name('nms')}")
        self._check_method()

    def argument(self, name: str) -> str:
        """
        How messages call a setting.

        Args:
            name: of the field.

        Returns:
            The name, or the key of a config where the settings come from one.
        """
        keys = {"record": "NMS.RECORD", "nms": "NMS.NAME"}
        return f"MODEL.ODAM.{keys.get(name, name.upper())}" if self.named_by_keys else name

    def _check_method(self) -> None:
        """Refuse what the method cannot follow."""
        method, name = self.build_method(), self.argument
        if self.signed and not method.signed:
            asked = "preset" if self.preset else "method"
            raise InputError(
                f"{name(asked)} {getattr(self, asked)!r} makes maps without a sign, and "
                f"{name('signed')} is True: set it to False, or choose a method that weighs "
                "evidence for and against, such as 'odam', 'integrated_gradients' or 'rise'"
            )
        if method.signed and "combined" in self.targets:
            raise InputError(
                f"{name('targets')} has 'combined', the maximum of maps without a sign, and "
                f"{name('signed')} is True: leave one of them out"
            )

    def _check_objects(self) -> None:
        """What no config says, and a caller may get wrong."""
        names = self.class_names
        listed = isinstance(names, Sequence) and not isinstance(names, str)
        if names is not None and not (listed and all(isinstance(name, str) for name in names)):
            raise InputError(f"class_names is {names!r}; it must be a list of names, or None")
        for name, kind in METHOD_SETTINGS.items():
            if not isinstance(getattr(self, name), kind):
                raise InputError(
                    f"{name} is {getattr(self, name)!r}; it must be {kind.__name__}(...)"
                )
        if self.nms is not None and not (callable(self.nms) and hasattr(self.nms, "needs_maps")):
            raise InputError(
                f"nms is {self.nms!r}; it must be what an entry of ODAM_NMS_REGISTRY returns, such "
                "as odam_d2.modeling.nms.OdamNms()"
            )

    def build_method(self) -> Method:
        """What makes the maps."""
        if not isinstance(self.method, str):
            return self.method
        if self.preset:
            return ODAM_PRESET_REGISTRY.get(self.preset)(self)
        return ODAM_METHOD_REGISTRY.get(self.method)(self)

    @property
    def max_bytes(self) -> int:
        return int(self.chunk_mb * 2**20)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> ExplainSettings:
        """
        The settings of a config.

        Args:
            cfg: with ``MODEL.ODAM``.

        Returns:
            Its settings; class names are those of its first data set that has any.

        Raises:
            KeyError: it has no ``MODEL.ODAM``.
            InputError: a value is none that the setting can have.
        """
        if "ODAM" not in cfg.MODEL:
            raise KeyError(
                "the config has no MODEL.ODAM: call odam_d2.add_odam_config(cfg) right after "
                "get_cfg()"
            )
        node = cfg.MODEL.ODAM
        of_methods: dict[str, Any] = {
            name: kind.from_config(node) for name, kind in METHOD_SETTINGS.items()
        }
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
            preset=node.PRESET,
            signed=node.SIGNED,
            named_by_keys=True,
            **of_methods,
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
