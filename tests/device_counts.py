"""
What explaining dispatches to a device, and how often the host waits for it, by family of detectors:

    python tests/device_counts.py                     # a table
    python tests/device_counts.py faster --places     # and the lines that make the host wait

Detectors are slim and untrained, with as many layers as those of Detectron2's zoo, and memory for
temporary tensors is as slim as their channels, so that they dispatch as many operations.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # for benchmarks/, run as a program

from oracle import SLIM, zoo_model
from pretend_device import DEVICE, Counts, counted, pretend
from torch import nn

import odam_d2
from benchmarks.untrained import spread_proposals

NARROW_HEADS = ["MODEL.ROI_MASK_HEAD.CONV_DIM", 8, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32,
                 "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", (8, 8)]  # fmt: skip
_FCOS = ["MODEL.META_ARCHITECTURE", "OdamFCOS", "MODEL.ODAM.TARGETS", [],
         "MODEL.FCOS.SCORE_THRESH_TEST", 0.0, "MODEL.BACKBONE.NAME",
         "build_odam_fcos_resnet_fpn_backbone", "MODEL.FPN.OUT_CHANNELS", 32]  # fmt: skip

FAMILIES = {
    "faster": ("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml", []),
    "mask": ("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml", []),
    "keypoint": ("COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml", []),
    "panoptic": ("COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml", []),
    "cascade": ("Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml", []),
    "c4": ("COCO-Detection/faster_rcnn_R_50_C4_1x.yaml", []),
    "dc5": ("COCO-Detection/faster_rcnn_R_50_DC5_1x.yaml", []),
    "retinanet": ("COCO-Detection/retinanet_R_50_FPN_1x.yaml", []),
    "fcos": ("COCO-Detection/retinanet_R_50_FPN_1x.yaml", _FCOS),
}
"""By name, a config of Detectron2's zoo, and what is changed."""

_CHUNK_MB = 64 / 16  # of a sixteenth of the zoo's channels, for the default of 64

# Of two-stage heads a cell of a window takes memory for its channels, and for bins, which are as
# many as in the zoo: (16 + 7 * 49) / (256 + 7 * 49) as much with FPN, (64 + 7 * 196) / (1024 + 7 *
# 196) for C4, (128 + 7 * 49) / (2048 + 7 * 49) for DC5.
_POOLED_CHUNK_MB = 0.6 * 64

SETTINGS = {
    "dc5": {"chunk_mb": 0.2 * 64},
    "fcos": {"norm_statistics": "constant", "chunk_mb": 2 * _CHUNK_MB},
}
"""How a family is explained, where another way than the others."""

_LEVELS = 5  # of a dense detector
SIZE = (320, 480)


@dataclass(frozen=True)
class Cost:
    """
    Of one image.

    Attributes:
        plain: of inference.
        added: by explaining, in operations, kernels and waits of the host.
        instances: how many were explained.
    """

    plain: Counts
    added: Counts
    instances: int


def detector(family: str, instances: int, *opts) -> nn.Module:
    """A slim detector that finds ``instances`` objects, of all sizes, in any image."""
    name, changes = FAMILIES[family]
    of_level = -(-instances // _LEVELS)
    limits = [
        "TEST.DETECTIONS_PER_IMAGE", instances,
        "MODEL.ROI_HEADS.NMS_THRESH_TEST", 1.0,
        "MODEL.RETINANET.NMS_THRESH_TEST", 1.0, "MODEL.FCOS.NMS_THRESH_TEST", 1.0,
        "MODEL.RETINANET.TOPK_CANDIDATES_TEST", of_level,
        "MODEL.FCOS.TOPK_CANDIDATES_TEST", of_level,
    ]  # fmt: skip
    opts = [*SLIM, *NARROW_HEADS, *changes, *limits, *opts]
    return spread_proposals(zoo_model(name, opts=opts))


def cost(model: nn.Module, inputs: list[dict], **settings) -> Cost:
    """What explaining costs on a device, of which ``model`` is."""
    odam_d2.explain(model, inputs, **settings)  # what is made once is there from now on
    with torch.no_grad(), counted() as plain:
        model(inputs)
    with counted() as ours:
        outputs = odam_d2.explain(model, inputs, **settings)
    return Cost(plain, ours - plain, sum(len(output["instances"]) for output in outputs))


def cost_of(family: str, instances: int) -> Cost:
    """Of a family of :data:`FAMILIES`, in one image."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, *SIZE), generator=generator).float()
    chunk_mb = _CHUNK_MB if "retinanet" in FAMILIES[family][0] else _POOLED_CHUNK_MB
    settings = {"chunk_mb": chunk_mb} | SETTINGS.get(family, {})
    with pretend():
        return cost(detector(family, instances).to(DEVICE), [{"image": image}], **settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("families", nargs="*", default=list(FAMILIES), help="some of the families")
    parser.add_argument("--instances", type=int, nargs="+", default=[20, 100])
    parser.add_argument("--places", action="store_true", help="where the host waits")
    arguments = parser.parse_args()
    print(
        f"{'':<10} {'instances':>9} | {'plain: operations':>17} {'waits':>6} | "
        f"{'added: operations':>17} {'kernels':>8} {'waits':>6}"
    )
    for family in arguments.families:
        for instances in arguments.instances:
            found = cost_of(family, instances)
            plain, added = found.plain, found.added
            print(
                f"{family:<10} {found.instances:>9} | {plain.operations:>17} {plain.syncs:>6} | "
                f"{added.operations:>17} {added.kernels:>8} {added.syncs:>6}",
                flush=True,
            )
            if arguments.places:
                for place, count in added.places.most_common():
                    print(f"{count:>9}  {place}")


if __name__ == "__main__":
    main()
