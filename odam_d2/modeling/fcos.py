"""
Detectron2's FCOS, built from a YAML config.

Detectron2 has the model (Tian et al., "FCOS: A Simple and Strong Anchor-free Object Detector",
arXiv 2006.09214), for LazyConfig only: no config keys, and nothing in its registries.
"""

from __future__ import annotations

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, FPN, build_backbone, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead

from odam_d2.core.errors import InputError
from odam_d2.core.ranges import check_number

__all__ = ["ConfigurableFCOS", "build_odam_fcos_resnet_fpn_backbone"]

_ANY = float("inf")
_WHOLE = {"whole": True}
# Keys of MODEL.FCOS, what holds of their values in words, and the same for :func:`check_number`.
_RANGES = {
    "NUM_CLASSES": ("1 or more", 1, 10**6, _WHOLE),
    "NUM_CONVS": ("1 or more", 1, 1000, _WHOLE),
    "PRIOR_PROB": ("above 0 and below 1", 0, 1, {"above": True, "below": True}),
    "CENTER_SAMPLING_RADIUS": ("above 0", 0, _ANY, {"above": True, "below": True}),
    "FOCAL_LOSS_ALPHA": ("0 to 1, or negative for no weight", -_ANY, 1, {"above": True}),
    "FOCAL_LOSS_GAMMA": ("0 or more", 0, _ANY, {"below": True}),
    "SCORE_THRESH_TEST": ("0 to 1", 0, 1, {}),
    "TOPK_CANDIDATES_TEST": ("1 or more", 1, 10**9, _WHOLE),
    "NMS_THRESH_TEST": ("0 to 1", 0, 1, {}),
}


@BACKBONE_REGISTRY.register()
def build_odam_fcos_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """
    A ResNet with an FPN, p3 to p7, whose p6 and p7 are made of p5.

    ``build_retinanet_resnet_fpn_backbone`` makes them of res5, which has other channels; the FCOS
    of Detectron2's zoo has them from p5.
    """
    if "res5" not in cfg.MODEL.FPN.IN_FEATURES:
        raise InputError(
            f"MODEL.FPN.IN_FEATURES is {list(cfg.MODEL.FPN.IN_FEATURES)}; it must have 'res5', of "
            "which p5, and of that p6 and p7, are made"
        )
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    return FPN(
        bottom_up=build_resnet_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelP6P7(channels, channels, in_feature="p5"),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


class ConfigurableFCOS(FCOS):
    """
    ``FCOS`` that can also be built from a config with ``MODEL.FCOS``
    (:func:`odam_d2.add_odam_config`).
    """

    @configurable
    def __init__(self, **kwargs: object) -> None:
        """
        Args:
            **kwargs: as for ``FCOS``.
        """
        super().__init__(**kwargs)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """
        Raises:
            InputError: a value of ``MODEL.FCOS`` is out of its range; the message names the key.
        """
        node = cfg.MODEL.FCOS
        _check_ranges(node)
        backbone = build_backbone(cfg)
        shapes = _input_shapes(node, backbone.output_shape())
        channels = shapes[0].channels
        _check_norm(node.NORM, channels)
        head = FCOSHead(
            input_shape=shapes,
            num_classes=node.NUM_CLASSES,
            conv_dims=[channels] * node.NUM_CONVS,
            prior_prob=node.PRIOR_PROB,
            norm=node.NORM,
        )
        return {
            "backbone": backbone,
            "head": head,
            "head_in_features": list(node.IN_FEATURES),
            "num_classes": node.NUM_CLASSES,
            "center_sampling_radius": node.CENTER_SAMPLING_RADIUS,
            "focal_loss_alpha": node.FOCAL_LOSS_ALPHA,
            "focal_loss_gamma": node.FOCAL_LOSS_GAMMA,
            "test_score_thresh": node.SCORE_THRESH_TEST,
            "test_topk_candidates": node.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": node.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }


def _check_ranges(node: CfgNode) -> None:
    for key, (words, low, high, more) in _RANGES.items():
        check_number(f"MODEL.FCOS.{key}", node[key], words, low, high, **more)


def _input_shapes(node: CfgNode, shapes: dict[str, ShapeSpec]) -> list[ShapeSpec]:
    """Shapes of the feature maps that the head reads."""
    names = list(node.IN_FEATURES or ())
    missing = [name for name in names if name not in list(shapes)]
    if missing or not names:
        raise InputError(
            f"MODEL.FCOS.IN_FEATURES is {names}; it must name features of the backbone, which are "
            f"{', '.join(shapes)}"
        )
    found = [shapes[name] for name in names]
    strides = [shape.stride for shape in found]
    if strides != sorted(set(strides)):
        raise InputError(
            f"MODEL.FCOS.IN_FEATURES is {names}, of strides {strides}; it must go from fine to "
            "coarse"
        )
    return found


def _check_norm(norm: str, channels: int) -> None:
    try:
        get_norm(norm, channels)
    except KeyError as error:
        raise InputError(
            f"MODEL.FCOS.NORM is {norm!r}; it must be '', 'GN', 'BN', 'SyncBN' or 'FrozenBN'"
        ) from error
    except ValueError as error:  # GroupNorm, of 32 groups in Detectron2
        raise InputError(
            f"MODEL.FCOS.NORM {norm!r} does not fit the {channels} channels of the features "
            f"(MODEL.FPN.OUT_CHANNELS): {error}"
        ) from error
