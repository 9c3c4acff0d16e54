"""
Independent references: heat maps by plain autograd, one (instance, target) at a time, through
Detectron2's own modules and torchvision's own RoIAlign. Maps have their sign.
"""

from copy import deepcopy

import numpy as np
import torch
from detectron2 import model_zoo
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import Res5ROIHeads
from detectron2.structures import Boxes, Instances
from scipy.ndimage import gaussian_filter
from torch import nn

from benchmarks.untrained import scale_random_weights
from odam_d2 import OdamMaps, add_odam_config, explain
from odam_d2.core.windows import paste_window

# A tenth of the zoo's width: the same modules, quick enough for a suite.
SLIM = [
    "MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP", 4, "MODEL.FPN.OUT_CHANNELS", 16,
    "MODEL.ROI_BOX_HEAD.FC_DIM", 32, "MODEL.RPN.POST_NMS_TOPK_TEST", 40,
    "TEST.DETECTIONS_PER_IMAGE", 12,
]  # fmt: skip

FASTER_RCNN = "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"
RETINANET = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"

TARGETS = ("class", "class:3", "left", "top", "right", "bottom")


def zoo_model(name, *, dtype=torch.float32, opts=(), seed=0):
    """
    A model of Detectron2's zoo with random weights, scaled so that boxes do not explode.
    """
    cfg = model_zoo.get_config(name)
    add_odam_config(cfg)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0,
                         "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0, *opts])  # fmt: skip
    torch.manual_seed(seed)
    model = build_model(cfg).to(dtype).eval()
    scale_random_weights(model)
    return model


class ConstantGroupNorm(nn.GroupNorm):
    """Group norm whose statistics are outside the graph: what "constant" means, by autograd."""

    def forward(self, x):
        groups = x.detach().unflatten(1, (self.num_groups, -1)).flatten(2)
        mean = groups.mean(2).repeat_interleave(x.shape[1] // self.num_groups, 1)
        var = groups.var(2, correction=0).repeat_interleave(x.shape[1] // self.num_groups, 1)
        y = (x - mean[:, :, None, None]) / (var + self.eps).sqrt()[:, :, None, None]
        return y * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)


def with_constant_statistics(model):
    """A copy of a dense detector whose head's group norms are :class:`ConstantGroupNorm`."""
    model = deepcopy(model)
    for module in model.head.modules():
        if type(module) is nn.GroupNorm:
            module.__class__ = ConstantGroupNorm
    return model


def two_images(dtype=torch.float32):
    """A batch of two sizes, H != W, the first one shown at another size."""
    generator = torch.Generator().manual_seed(3)
    first = torch.randint(0, 256, (3, 128, 200), generator=generator)
    second = torch.randint(0, 256, (3, 160, 96), generator=generator)
    return [{"image": first.to(dtype), "height": 256, "width": 384}, {"image": second.to(dtype)}]


def side_value(box, side):
    return {"left": -box[0], "top": -box[1], "right": box[2], "bottom": box[3]}[side]


def rcnn_maps(model, inputs, proposals, classes, targets, score="probability", sigma=0.0):
    """
    For each image and instance, a list over targets of (level, map (H, W)).

    Args:
        proposals: for each image (N, 4), XYXY at the network's input.
        classes: for each image (N,).
    """
    heads = model.roi_heads
    with torch.no_grad():
        features = model.backbone(model.preprocess_image(inputs).tensor)
    c4 = isinstance(heads, Res5ROIHeads)
    names = heads.in_features if c4 else heads.box_in_features
    levels = [features[name].detach().requires_grad_() for name in names]
    given = [Instances((1, 1), proposal_boxes=Boxes(p)) for p in proposals]
    boxes_in = [x.proposal_boxes for x in given]
    if c4:
        predictions = heads.box_predictor(
            heads._shared_roi_transform(levels, boxes_in).mean(dim=[2, 3])
        )
    else:
        predictions = heads.box_predictor(heads.box_head(heads.box_pooler(levels, boxes_in)))
    sizes = [len(p) for p in proposals]
    logits = predictions[0].split(sizes)
    scores = heads.box_predictor.predict_probs(predictions, given)
    boxes = heads.box_predictor.predict_boxes(predictions, given)
    out = []
    for b, labels in enumerate(classes):
        rows = []
        for i, label in enumerate(labels.tolist()):
            box = boxes[b][i].view(-1, 4)
            box = box[label if len(box) > 1 else 0]
            value = (scores if score == "probability" else logits)[b][i]
            rows.append(
                [_level_map(_scalar(t, value, box, label), levels, b, sigma) for t in targets]
            )
        out.append(rows)
    return out


def retinanet_maps(model, inputs, origins, classes, targets, score="probability", sigma=0.0):
    """
    As :func:`rcnn_maps`.

    Args:
        origins: for each image (N, 2), level and index of the anchor in Detectron2's order.
        classes: for each image (N,).
    """
    with torch.no_grad():
        features = model.backbone(model.preprocess_image(inputs).tensor)
    levels = [features[name].detach().requires_grad_() for name in model.head_in_features]
    logits, deltas = model._transpose_dense_predictions(
        list(model.head(levels)), [model.num_classes, 4]
    )
    anchors = model.anchor_generator(levels)
    out = []
    for b, labels in enumerate(classes):
        rows = []
        for (level, index), label in zip(origins[b].tolist(), labels.tolist(), strict=True):
            values = logits[level][b, index]
            values = values.sigmoid() if score == "probability" else values
            box = model.box2box_transform.apply_deltas(
                deltas[level][b, index][None], anchors[level].tensor[index][None]
            )[0]
            rows.append(
                [_level_map(_scalar(t, values, box, label), levels, b, sigma) for t in targets]
            )
        out.append(rows)
    return out


def _scalar(target, score, box, label):
    if target.startswith("class"):
        return score[int(target[6:]) if ":" in target else label]
    return side_value(box, target)


def _level_map(output, levels, image, sigma):
    """Gradient with respect to every level; exactly one may have been read."""
    gradients = torch.autograd.grad(output, levels, retain_graph=True, allow_unused=True)
    size = [0 if g is None else float(g.abs().sum()) for g in gradients]
    level = max(range(len(size)), key=size.__getitem__)
    assert sum(s > 0 for s in size) <= 1
    gradient = gradients[level][image]
    if sigma:  # scipy's Gaussian over the whole feature map, cut three deviations off, rounded up
        cut = np.ceil(3 * sigma) / sigma
        smooth = [gaussian_filter(g, sigma, mode="constant", truncate=cut) for g in gradient]
        gradient = torch.as_tensor(np.stack(smooth))
    product = gradient * levels[level][image].detach()
    return level, product.sum(0)


def full_map(maps: OdamMaps, i: int, t: int):
    """Map of instance i and target t on the whole feature map."""
    window = (*maps.origins[i].tolist(), *maps.values.shape[-2:])
    return paste_window(maps.values[i, t], window, tuple(maps.grid_sizes[i].tolist()))


def worst_error(maps: OdamMaps, references) -> float:
    """
    Largest relative error over all instances and targets; also checks levels. Maps without a sign
    are compared with what is above zero.
    """
    assert len(maps) == len(references)
    worst = 0.0
    for i, row in enumerate(references):
        for t, expected in enumerate(row):
            if expected is None:
                continue
            level, reference = expected
            if reference.any() and level != maps.levels[i]:
                # A cascade's sides are read by its last stage only, perhaps on a coarser level.
                assert level > maps.levels[i]
                ratio = 2 ** (level - int(maps.levels[i]))
                fine = torch.nn.functional.interpolate(
                    reference[None, None], scale_factor=float(ratio)
                )
                reference = fine[0, 0] / ratio**2
            reference = reference if maps.signed else reference.relu()
            peak = float(reference.abs().max())
            error = float((full_map(maps, i, t) - reference).abs().max())
            worst = max(worst, error / peak if peak else error)
    return worst


def detection_maps(
    model,
    inputs,
    targets=("class", "left", "top", "right", "bottom"),
    limit=None,
    layer=None,
    rule=None,
):
    """
    The very definition, end to end: Detectron2's own inference runs with leaves in the place of the
    backbone's features, and each score and side that it returns is differentiated by itself.

    Args:
        inputs: a batch; of one image for a dense detector, whose in-place operations make autograd
            give up on more.
        targets: "class" and sides, as returned.
        limit: maps of the best so many detections of each image only.
        layer: a module whose output is the leaf instead of the features, its stride, and the axis
            of its channels without the batch.
        rule: makes a signed map of a gradient and a feature map, (C, H, W), in the place of the sum
            over channels of their products.

    Returns:
        For each image the detections in the network's frame, and for each of them a list over
        targets of (level, map (H, W)), None for a side that was clipped at the border.
    """
    leaves = {}

    def make_leaves(module, args, features):
        if layer is not None:
            leaves["layer"] = features.detach().requires_grad_()
            return leaves["layer"]
        with torch.no_grad():  # frozen batch norm rounds differently with a graph
            features = module.forward(*args)
        leaves.update({name: x.detach().requires_grad_() for name, x in features.items()})
        return dict(leaves)

    hook = (layer[0] if layer else model.backbone).register_forward_hook(make_leaves)
    try:
        with torch.enable_grad():
            if hasattr(model, "roi_heads"):
                names = getattr(model.roi_heads, "box_in_features", None)
                names = names or model.roi_heads.in_features
                results = model.inference(inputs, do_postprocess=False)
                results = results[0] if isinstance(results, tuple) else results  # panoptic
            else:
                names = model.head_in_features
                images = model.preprocess_image(inputs)
                features = model.backbone(images.tensor)
                features = [features[name] for name in names]
                results = model.forward_inference(images, features, model.head(features))
                results = [found[_visible(found)] for found in results]
    finally:
        hook.remove()
    shape = model.backbone.output_shape()
    levels = [(leaves[name], shape[name].stride) for name in names if layer is None]
    levels += [(leaves["layer"], layer[1])] if layer else []
    return [
        (found, _rows(found[:limit], number, levels, targets, layer[2] if layer else 0, rule))
        for number, found in enumerate(results)
    ]


def _visible(found):
    """The boxes that Detectron2's postprocessing keeps."""
    boxes = found.pred_boxes.clone()
    boxes.clip(found.image_size)
    return boxes.nonempty()


def _rows(found, image, levels, targets, channels, rule=None):
    height, width = found.image_size
    limits = {"left": 0.0, "top": 0.0, "right": float(width), "bottom": float(height)}
    rows = []
    for score, box in zip(found.scores, found.pred_boxes.tensor, strict=True):
        row = []
        for target in targets:
            value = score if target == "class" else side_value(box, target)
            clipped = target in limits and abs(float(value.detach())) == limits[target]
            row.append(None if clipped else _merged_map(value, levels, image, channels, rule))
        rows.append(row)
    return rows


def _merged_map(output, levels, image, channels=0, rule=None):
    """
    As :func:`_level_map`, where several levels may have been read: on the finest of them.

    Args:
        levels: leaf and stride of each.
        channels: axis of the channels in a leaf of one image; the last in ViT.
    """
    gradients = torch.autograd.grad(
        output, [x for x, _ in levels], retain_graph=True, allow_unused=True
    )
    rule = rule or (lambda g, x: (g * x).sum(channels))
    product = [
        torch.zeros(1) if g is None else rule(g[image], x[image].detach())
        for g, (x, _) in zip(gradients, levels, strict=True)
    ]
    read = [n for n, p in enumerate(product) if p.any()]
    if not read:
        return 0, torch.zeros(levels[0][0].shape[-2:], dtype=output.dtype)
    total = torch.zeros_like(product[read[0]])
    for n in read:
        ratio = levels[n][1] // levels[read[0]][1]
        finer = torch.nn.functional.interpolate(product[n][None, None], scale_factor=float(ratio))
        total += finer[0, 0, : total.shape[0], : total.shape[1]] / ratio**2
    return read[0], total


def detections_error(model, image, oracle=None, limit=None, module=None, rule=None, **settings):
    """
    Largest relative error of the maps of one image's detections, against :func:`detection_maps`.

    Detections are matched by class and box: with and without a graph, Detectron2's frozen batch
    norm rounds differently, and untrained scores are so close that their order may change.

    Args:
        oracle: the model of the reference, if another one.
        module: with the setting ``layer``, the ``layer`` of :func:`detection_maps`.
        rule: see :func:`detection_maps`.
        **settings: as for ``explain``.
    """
    image = {key: image[key] for key in ("image", "proposals") if key in image}
    found = explain(model, [image], **settings)[0]["instances"][:limit]
    ((detections, rows),) = detection_maps(
        oracle or model, [image], limit=limit, layer=module, rule=rule
    )
    detections = detections[:limit]
    boxes = detections.pred_boxes.clone()
    boxes.clip(detections.image_size)  # a dense detector's are not yet
    distance = torch.cdist(found.pred_boxes.tensor, boxes.tensor.detach(), p=1)
    distance += 1e6 * (found.pred_classes[:, None] != detections.pred_classes)
    nearest, index = distance.min(dim=1)
    same = (nearest < 1e-2).nonzero().squeeze(1)
    assert len(same) >= max(1, 0.8 * len(detections))
    assert len(index[same].unique()) == len(same)
    return worst_error(found.odam_maps[same], [rows[i] for i in index[same].tolist()])
