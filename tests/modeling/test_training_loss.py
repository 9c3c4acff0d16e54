"""Odam-Train in detectors: gradient, schedule, precision, processes, what it leaves alone."""

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn
from training_cases import labelled_images, losses_of, training_model

from odam_d2.modeling.losses import Positives


class FixedBoxes(nn.Module):
    """
    A loss whose view of predicted boxes does not change: those enter it without a graph, as
    weights, so finite differences must not see them move.
    """

    def __init__(self, loss):
        super().__init__()
        self.loss, self.labels = loss, None

    def forward(self, batch):
        self.labels = self.labels or [positives.labels for positives in batch]
        pairs = zip(batch, self.labels, strict=True)
        return self.loss([Positives(positives.maps, labels) for positives, labels in pairs])


def dense_problem(case):
    """Loss of a whole dense detector in float64, and the weights of its class tower."""
    model = training_model(case, dtype=torch.float64)
    inputs = labelled_images(torch.float64)
    model.odam_training.loss = FixedBoxes(model.odam_training.loss)
    # Biases only move ReLUs: the derivative by them is zero almost everywhere.
    tower = model.head.cls_subnet.named_parameters()
    weights = [parameter for name, parameter in tower if name.endswith("weight")]
    weights += [model.head.cls_score.weight, model.backbone.fpn_output3.weight]
    return lambda: losses_of(model, inputs)[0]["loss_odam"], weights


def two_stage_problem(case):
    """
    Loss of a two-stage detector's heads in float64 on proposals that are given: Detectron2's RPN
    works in float32.
    """
    model = training_model(case, dtype=torch.float64)
    inputs = labelled_images(torch.float64)
    model.odam_training.loss = FixedBoxes(model.odam_training.loss)
    heads = model._training_view().roi_heads
    images = model.preprocess_image(inputs)
    targets = [x["instances"] for x in inputs]
    proposals = [near(gt) for gt in targets]

    def loss():
        torch.manual_seed(0)
        with EventStorage():
            features = model.backbone(images.tensor)
            given = [Instances(p.image_size, **p.get_fields()) for p in proposals]
            return heads(images, features, given, targets)[1]["loss_odam"]

    predictor = heads.box_predictor
    head = heads.res5 if case == "c4" else heads.box_head
    weights = [p for p in head.parameters() if p.requires_grad and p.dim() > 1][:3]
    last = model.backbone.res4[0].conv1 if case == "c4" else model.backbone.fpn_output2
    return loss, [*weights, predictor.cls_score.weight, last.weight]


def near(gt):
    """Proposals close to the objects, the same ones every time."""
    generator = torch.Generator().manual_seed(1)
    boxes = gt.gt_boxes.tensor.repeat(6, 1)
    boxes = boxes + 6 * torch.randn(boxes.shape, generator=generator, dtype=boxes.dtype)
    boxes = Boxes(boxes)
    boxes.clip(gt.image_size)
    logits = torch.zeros(len(boxes), dtype=boxes.tensor.dtype)
    return Instances(gt.image_size, proposal_boxes=boxes, objectness_logits=logits)


@pytest.mark.parametrize("case", ["fpn", "conv_head", "c4", "retinanet", "retinanet_bn", "fcos"])
def test_gradient_is_that_of_finite_differences(case):
    """Second order: through the gradients that maps are made of, to every weight they depend on."""
    dense = case in ("retinanet", "retinanet_bn", "fcos")
    loss, weights = (dense_problem if dense else two_stage_problem)(case)
    gradients = torch.autograd.grad(loss(), weights)
    for weight, gradient in zip(weights, gradients, strict=True):
        direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)).double()
        direction /= direction.norm() / weight.detach().norm().clamp(min=1)
        step = 1e-6
        with torch.no_grad():
            weight += step * direction
            ahead = loss().item()
            weight -= 2 * step * direction
            behind = loss().item()
            weight += step * direction
        expected = (ahead - behind) / (2 * step)
        found = (gradient * direction).sum().item()
        assert found == pytest.approx(expected, rel=2e-3, abs=1e-7)
        assert abs(found) > 1e-8
