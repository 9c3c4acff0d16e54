"""
What a head says of two given boxes, by Detectron2's own functions one after the other: the
independent reading that methods which read detections again are compared with.
"""

from typing import NamedTuple

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from oracle import FASTER_RCNN, RETINANET, SLIM, side_value, zoo_model

CASCADE = "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml"
CASCADE_OPTS = ["MODEL.MASK_ON", False, "MODEL.ROI_BOX_CASCADE_HEAD.IOUS", (0.5, 0.6, 0.7)]
FCOS_OPTS = [
    "MODEL.META_ARCHITECTURE", "OdamFCOS", "MODEL.FPN.OUT_CHANNELS", 32,
    "MODEL.BACKBONE.NAME", "build_odam_fcos_resnet_fpn_backbone", "MODEL.FCOS.NUM_CONVS", 2,
    "MODEL.FCOS.NORM", "",
]  # fmt: skip

GIVEN = [torch.tensor([[20.0, 20, 90, 100], [60, 30, 180, 110]])]
CLASSES = [torch.tensor([3, 5])]
TARGETS = ("class", "left", "top", "right", "bottom")


class Family(NamedTuple):
    """
    A family of detectors.

    Attributes:
        name, opts: of the zoo, and what is changed.
        levels: names of the features that the head reads.
        decide: gets model, features and places; returns scores (2, K) and boxes (2, 4).
        places: gets model, features and the images' (height, width); returns where the head reads.
    """

    name: str
    opts: list
    levels: list[str]
    decide: object
    places: object

    def model(self, dtype=torch.float32):
        model = zoo_model(self.name, opts=[*SLIM, *self.opts], dtype=dtype)
        if "OdamFCOS" in self.opts:
            with torch.no_grad():
                model.head.bbox_pred.bias.fill_(2)  # untrained, boxes have no size
        return model

    def features(self, model, images):
        features = model.backbone(images)
        return [features[name] for name in self.levels]


def decide_rcnn(model, levels, places=None):
    heads, boxes = model.roi_heads, _given(levels)
    given = [Instances((1, 1), proposal_boxes=boxes)]
    pooled = heads.box_pooler(levels, [boxes])
    predictions = heads.box_predictor(heads.box_head(pooled))
    (scores,) = heads.box_predictor.predict_probs(predictions, given)
    (boxes,) = heads.box_predictor.predict_boxes(predictions, given)
    return scores, boxes.view(2, -1, 4)[torch.arange(2), CLASSES[0]]


def cascade_places(model, levels, size):
    """The boxes that each stage reads, as they are in the image that was detected in."""
    heads, found = model.roi_heads, [_given(levels)]
    for stage in range(heads.num_cascade_stages - 1):
        given = [Instances(size, proposal_boxes=found[-1])]
        pooled = heads.box_pooler(levels, [found[-1]])
        predictions = heads.box_predictor[stage](heads.box_head[stage](pooled))
        (boxes,) = heads.box_predictor[stage].predict_boxes(predictions, given)
        found.append(Boxes(boxes.detach()))
        found[-1].clip(size)
    return found


def decide_cascade(model, levels, places):
    heads, scores = model.roi_heads, []
    for stage, boxes in enumerate(places):
        given = [Instances((1, 1), proposal_boxes=boxes)]
        pooled = heads.box_pooler(levels, [boxes])
        predictions = heads.box_predictor[stage](heads.box_head[stage](pooled))
        (of_stage,) = heads.box_predictor[stage].predict_probs(predictions, given)
        scores.append(of_stage)
        (boxes,) = heads.box_predictor[stage].predict_boxes(predictions, given)
    return sum(scores) / len(scores), boxes.view(2, -1, 4)[:, 0]


def decide_retinanet(model, levels, places=None):
    """The anchors that overlap the boxes most."""
    logits, deltas = model._transpose_dense_predictions(
        list(model.head(levels)), [model.num_classes, 4]
    )
    anchors = torch.cat([x.tensor for x in model.anchor_generator(levels)])
    best = [best_anchor(anchors, box) for box in _given(levels).tensor]
    boxes = model.box2box_transform.apply_deltas(torch.cat(deltas, 1)[0, best], anchors[best])
    return torch.cat(logits, 1)[0, best].sigmoid(), boxes


def best_anchor(anchors, box):
    ious = []
    for anchor in anchors:
        shared = torch.minimum(anchor[2:], box[2:]) - torch.maximum(anchor[:2], box[:2])
        shared = float(shared.clamp(min=0).prod())
        areas = [float((x[2:] - x[:2]).prod()) for x in (anchor, box)]
        ious.append(shared / (sum(areas) - shared))
    return int(np.argmax(ious))


def decide_fcos(model, levels, places=None):
    """The points nearest to the boxes' centres, of the first level: both reach below 8 strides."""
    predictions = model._transpose_dense_predictions(
        list(model.head(levels)), [model.num_classes, 4, 1]
    )
    logits, deltas, centerness = (of_level[0][0] for of_level in predictions)
    points = model.anchor_generator(levels)[0].tensor
    centres = (points[:, :2] + points[:, 2:]) / 2
    best = []
    for box in _given(levels).tensor:
        assert float((box[2:] - box[:2]).max()) / 2 < 8 * 8
        best.append(int(((centres - (box[:2] + box[2:]) / 2) ** 2).sum(dim=1).argmin()))
    boxes = model.box2box_transform.apply_deltas(deltas[best], points[best])
    return (logits[best].sigmoid() * centerness[best].sigmoid()).sqrt(), boxes


def _given(levels):
    return Boxes(GIVEN[0].to(levels[0].dtype))


def _anywhere(model, levels, size):
    return None


_DENSE = ["p3", "p4", "p5", "p6", "p7"]
FAMILIES = {
    "faster_rcnn": Family(FASTER_RCNN, [], ["p2", "p3", "p4", "p5"], decide_rcnn,
                          _anywhere),
    "cascade": Family(CASCADE, CASCADE_OPTS, ["p2", "p3", "p4", "p5"], decide_cascade,
                      cascade_places),
    "retinanet": Family(RETINANET, [], _DENSE, decide_retinanet, _anywhere),
    "fcos": Family(RETINANET, FCOS_OPTS, _DENSE, decide_fcos, _anywhere),
}  # fmt: skip


def value_of(scores, boxes, number, target):
    """The scalar that is explained of one of the two boxes."""
    if target == "class":
        return scores[number, CLASSES[0][number]]
    return side_value(boxes[number], target)


def all_values(family, model, images, places):
    """(2, 5), the scalars of both boxes in images (1, 3, H, W) of the network."""
    scores, boxes = family.decide(model, family.features(model, images), places)
    return torch.stack(
        [torch.stack([value_of(scores, boxes, n, target) for target in TARGETS]) for n in range(2)]
    )
