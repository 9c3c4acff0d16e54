"""
What training heat maps costs: iterations with the loss and without, in turns, in one process.
"""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor

from odam_d2.errors import UserError
from odam_d2.modeling.losses import OdamTraining
from odam_d2.modeling.views import Viewed, with_overrides

from .timing import ratio_figures, time_figures, timed_in_turns
from .untrained import initialise

__all__ = ["measure_training"]


class _ProposalsNearObjects(Viewed):
    """
    Mixin for a proposal generator: it does its work, and then gives boxes around the objects, as a
    trained one would. So the heads get as many positives as they may sample.
    """

    def forward(
        self, images: ImageList, features: dict[str, Tensor], gt_instances: list[Instances]
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        proposals, losses = super().forward(images, features, gt_instances)
        for given, objects in zip(proposals, gt_instances, strict=True):
            boxes = objects.gt_boxes.tensor.repeat(500 // len(objects), 1)
            sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
            boxes = Boxes(boxes + 0.08 * torch.randn_like(boxes) * sides)
            boxes.clip(given.image_size)
            boxes = boxes[boxes.nonempty()]
            given._fields.clear()  # another number of boxes
            given.proposal_boxes = boxes
            given.objectness_logits = torch.zeros(len(boxes), device=boxes.device)
        return proposals, losses


def measure_training(
    cfg: CfgNode, size: tuple[int, int], objects: int, runs: int, images: int = 1
) -> dict:
    """
    Time training iterations of a detector: forward, backward and step of the optimizer.

    Args:
        cfg: config of the detector, with ``MODEL.ODAM.LOSS.NAME``.
        size: (height, width) of the images in pixels, as the network gets them.
        objects: ground-truth boxes of each image.
        runs: timed iterations of each kind; their medians count.
        images: in a batch.

    Returns:
        ``plain_iteration_s``, ``odam_iteration_s`` and ``training_ratio`` (theirs; also as
        ``training_ratio_median``), each with its range, and scalars of the loss:
        ``num_same_pairs`` and ``num_different_pairs``.
    """
    if not cfg.MODEL.ODAM.LOSS.NAME:
        raise UserError("--training measures a loss: name it, MODEL.ODAM.LOSS.NAME OdamTrainLoss")
    torch.manual_seed(0)
    model = build_model(cfg)
    initialise(model.eval(), cfg)
    model.train()
    training: OdamTraining = model.odam_training
    if getattr(model, "proposal_generator", None) is not None:
        model.proposal_generator = with_overrides(model.proposal_generator, _ProposalsNearObjects)
    optimizer = build_optimizer(cfg, model)
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # every iteration sees the same weights
    batch = [_image(size, objects, cfg) for _ in range(images)]

    def iteration(loss: OdamTraining | None) -> None:
        model.odam_training = loss
        optimizer.zero_grad()
        sum(model(batch).values()).backward()
        optimizer.step()

    ways = [lambda: iteration(None), lambda: iteration(training)]
    with EventStorage(training.start_iter + training.warmup_iters) as storage:
        plain, ours = timed_in_turns(ways, runs, "iterations, plain and ours")
        scalars = storage.latest()
    return {
        **time_figures("plain_iteration", plain),
        **time_figures("odam_iteration", ours),
        **ratio_figures("training", ours, plain),
        **{name: scalars[f"odam/{name}"][0] for name in ("num_same_pairs", "num_different_pairs")},
    }


def _image(size: tuple[int, int], objects: int, cfg: CfgNode) -> dict:
    """Noise, with objects of 48 to 400 pixels, log-uniform, anywhere in it."""
    height, width = size
    side, aspect, x, y = torch.rand(4, objects)
    side, aspect = 48 * (400 / 48) ** side, 2 ** (aspect - 0.5)
    half = torch.stack([side * aspect, side / aspect], dim=1) / 2
    centre = torch.stack([x * width, y * height], dim=1)
    boxes = Boxes(torch.cat([centre - half, centre + half], dim=1))
    boxes.clip(size)
    # All of one class: a class that every detector has.
    labels = torch.zeros(objects, dtype=torch.int64)
    instances = Instances(size, gt_boxes=boxes, gt_classes=labels)
    return {"image": torch.randint(0, 256, (3, *size)).float(), "instances": instances}
