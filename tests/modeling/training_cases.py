"""Detectors in training for the tests of the loss on heat maps: slim, float64 where it is exact."""

import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from oracle import FASTER_RCNN, RETINANET, SLIM, two_images, zoo_model
from torch import nn

C4 = "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml"
CASCADE = "Misc/cascade_mask_rcnn_R_50_FPN_3x.yaml"
PANOPTIC = "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml"
MASK = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"

_FCOS = ["MODEL.BACKBONE.NAME", "build_odam_fcos_resnet_fpn_backbone",
         "MODEL.FPN.OUT_CHANNELS", 32, "MODEL.FCOS.NUM_CONVS", 2]  # fmt: skip

CASES = {
    "fpn": (FASTER_RCNN, ["MODEL.META_ARCHITECTURE", "OdamRCNN"]),
    "conv_head": (FASTER_RCNN, [
        "MODEL.META_ARCHITECTURE", "OdamRCNN", "MODEL.ROI_BOX_HEAD.NUM_CONV", 1,
        "MODEL.ROI_BOX_HEAD.CONV_DIM", 32, "MODEL.ROI_BOX_HEAD.NORM", "GN"]),
    "c4": (C4, ["MODEL.META_ARCHITECTURE", "OdamRCNN"]),
    "cascade": (CASCADE, ["MODEL.META_ARCHITECTURE", "OdamRCNN", "MODEL.MASK_ON", False]),
    "retinanet": (RETINANET, ["MODEL.META_ARCHITECTURE", "OdamRetinaNet",
                              "MODEL.RETINANET.NUM_CONVS", 2]),
    "retinanet_bn": (RETINANET, ["MODEL.META_ARCHITECTURE", "OdamRetinaNet",
                                 "MODEL.RETINANET.NUM_CONVS", 1, "MODEL.RETINANET.NORM", "BN"]),
    "fcos": (RETINANET, ["MODEL.META_ARCHITECTURE", "OdamFCOS", *_FCOS]),
}  # fmt: skip
"""By name, a config of the zoo and what is changed."""


def training_model(case, *opts, loss="OdamTrainLoss", dtype=torch.float32):
    """A model of :data:`CASES` in training mode."""
    name, changes = CASES[case]
    opts = [*SLIM, *changes, "MODEL.ODAM.LOSS.NAME", loss, *opts]
    return zoo_model(name, opts=opts, dtype=dtype).train()


def labelled_images(dtype=torch.float32):
    """Two images of different sizes: objects that overlap, one over the border, one class twice."""
    first, second = two_images(dtype)
    for image, boxes, classes in (
        (first, [[10, 10, 90, 100], [40, 20, 130, 110], [150, -10, 190, 60]], [3, 3, 5]),
        (second, [[0, 0, 70, 140], [20, 30, 90, 150]], [1, 2]),
    ):
        size = tuple(image["image"].shape[-2:])
        gt = Instances(size, gt_boxes=Boxes(torch.tensor(boxes, dtype=dtype)))
        gt.gt_classes = torch.tensor(classes)
        image["instances"] = gt
    return [first, second]


def crowded_images(objects=20):
    """Two images of different sizes with so many objects of all sizes."""
    generator, images = torch.Generator().manual_seed(3), []
    for height, width in ((160, 240), (224, 176)):
        centres = torch.rand(objects, 2, generator=generator) * torch.tensor([width, height])
        sides = torch.exp(torch.rand(objects, 2, generator=generator) * 2 + 2.5)
        boxes = Boxes(torch.cat([centres - sides / 2, centres + sides / 2], dim=1))
        boxes.clip((height, width))
        gt = Instances((height, width), gt_boxes=boxes)
        gt.gt_classes = torch.randint(0, 80, (objects,), generator=generator)
        image = torch.randint(0, 256, (3, height, width), generator=generator).float()
        images.append({"image": image, "height": height, "width": width, "instances": gt})
    return images


def image_without_objects():
    image = two_images()[1]
    image["instances"] = Instances(
        (160, 96), gt_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0, dtype=torch.int64)
    )
    return image


class Recorder(nn.Module):
    """In the place of a registered loss: remembers what it is called with."""

    def __init__(self, loss=None):
        super().__init__()
        self.loss = loss
        self.batches = []

    def forward(self, batch):
        self.batches.append(batch)
        if self.loss is not None:
            return self.loss(batch)
        return torch.stack([positives.maps.sum() for positives in batch]).sum()


def losses_of(model, inputs, iteration=0, seed=0):
    """The losses of one iteration, with the event storage's scalars."""
    torch.manual_seed(seed)  # proposals are sampled
    with EventStorage(iteration) as storage:
        losses = model(inputs)
        return losses, {name: value for name, (value, _) in storage.latest().items()}
