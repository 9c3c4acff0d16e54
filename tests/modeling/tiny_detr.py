"""A DETR in miniature, whose head nobody has described, and its maps by plain autograd."""

import torch
from detectron2.structures import Boxes, Instances
from torch import nn

from odam_d2.core.targets import outward


class TinyDETR(nn.Module):
    """Carion et al., "End-to-End Object Detection with Transformers", ECCV 2020, very small."""

    device = torch.device("cpu")

    def __init__(self, queries=6, width=16, classes=3):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, width, 3, 4, 1), nn.ReLU()
        )
        self.transformer = nn.Transformer(width, 2, 1, 1, 32, dropout=0.1, batch_first=True)
        self.queries = nn.Parameter(torch.randn(queries, width))
        self.class_embed = nn.Linear(width, classes + 1)
        self.bbox_embed = nn.Linear(width, 4)

    def raw(self, batched_inputs):
        """Probabilities (I, Q, K) and boxes (I, Q, 4) in pixels."""
        sizes = torch.tensor([x["image"].shape[-2:] for x in batched_inputs])
        height, width = (sizes.amax(dim=0) + 31) // 32 * 32
        images = self.queries.new_zeros(len(sizes), 3, height, width)
        for image, x in zip(images, batched_inputs, strict=True):
            image[:, : x["image"].shape[1], : x["image"].shape[2]] = x["image"] / 255
        tokens = self.backbone(images).flatten(2).transpose(1, 2)
        queries = self.queries.expand(len(images), -1, -1)
        decoded = self.transformer(tokens, queries)
        centre, size = self.bbox_embed(decoded).sigmoid().chunk(2, dim=-1)
        boxes = torch.cat([centre - size / 2, centre + size / 2], dim=-1)
        boxes = boxes * sizes.flip(1).repeat(1, 2)[:, None].to(boxes.device)
        return self.class_embed(decoded).softmax(-1)[..., :-1], boxes

    def forward(self, batched_inputs):
        results = []
        for x, scores, boxes in zip(batched_inputs, *self.raw(batched_inputs), strict=True):
            best, label = scores.max(dim=1)
            found = Instances(
                tuple(x["image"].shape[-2:]),
                scores=best,
                pred_classes=label,
                pred_boxes=Boxes(boxes),
                class_probs=scores,
            )
            results.append({"instances": found[best.argsort(descending=True)[:4]]})
        return results


TARGETS = ("class", "left", "top", "right", "bottom")


def score_and_sides(detr):
    def outputs(batched_inputs):
        found = [r["instances"] for r in detr(batched_inputs)]
        return [torch.cat([f.scores[:, None], outward(f.pred_boxes.tensor)], 1) for f in found]

    return outputs


def gradient_and_feature(detr, inputs, image, instance, target, module=None):
    """Of one image: plain autograd from one output to what a module gives, and that, (C, h, w)."""
    detr = detr.eval()
    features = {}
    handle = (module or detr.backbone).register_forward_hook(
        lambda m, a, out: features.update(out=out)
    )
    values = score_and_sides(detr)(inputs)
    handle.remove()
    (gradient,) = torch.autograd.grad(values[image][instance, target], features["out"])
    return gradient[image], features["out"][image].detach()


def reference(detr, inputs, image, instance, target):
    """The map by its definition, on the backbone's output."""
    gradient, feature = gradient_and_feature(detr, inputs, image, instance, target)
    return (gradient * feature).sum(0).relu()
