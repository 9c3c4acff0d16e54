"""
RetinaNet. An output reads a window of one level, so its gradient is pushed back through the head's
convolutions on that window alone (design: "dense heads"); towers that are not plain convolutions
and ReLUs are explained by autograd through the head.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from odam_d2.core.dense_windows import ConvLayer, DenseHead
from odam_d2.core.gradients import gradient_heat_maps
from odam_d2.core.targets import Target, outward
from odam_d2.modeling.settings import ExplainSettings
from odam_d2.modeling.views import view_of
from odam_d2.structures import OdamMaps

from .base import Explainer, register_explainer
from .dense import ORIGIN, Anchors, TracedDecoding, nearest_anchors
from .towers import TracedTower, is_plain_tower

__all__ = ["RetinaNetExplainer"]

_TOWERS = {"class": ("cls_subnet", "cls_score"), "side": ("bbox_subnet", "bbox_pred")}


class _ExplainingRetinaNet(TracedDecoding):
    """Mixin for ``RetinaNet``: detections get ``odam_maps`` on the way out."""

    def forward_inference(self, images, features, predictions):
        logits, deltas = predictions
        # Where transposing is not a copy, Detectron2's sigmoid_ would overwrite the logits.
        kept = [x.clone() if _transposes_in_place(x, self.num_classes) else x for x in logits]
        results = super().forward_inference(images, features, predictions)
        self.odam_explainer.explain_detections(features, [kept, deltas], results)
        return results


@register_explainer(RetinaNet)
class RetinaNetExplainer(Explainer):
    """
    Explains RetinaNet.

    Attributes:
        local: whether the head is made of plain convolutions and ReLUs, so that windows do.
    """

    def __init__(self, model: RetinaNet, settings: ExplainSettings):
        super().__init__(model, settings)
        self.local = _is_local(model.head)
        self.masks: dict[str, list[list[Tensor]]] = {kind: [] for kind in _TOWERS}

    @property
    def num_classes(self) -> int:
        return self.model.num_classes

    def view(self) -> nn.Module:
        return view_of(
            self.model,
            _ExplainingRetinaNet,
            children={"head": self._traced_head()},
            odam_explainer=self,
        )

    def explain_boxes(
        self, batched_inputs: list[dict], boxes: Sequence[Boxes], classes: Sequence[Tensor]
    ) -> list[Instances]:
        images = self.model.preprocess_image(batched_inputs)
        features = self.model.backbone(images.tensor)
        features = [features[name] for name in self.model.head_in_features]
        predictions = self._traced_head()(features)
        anchors = self.model.anchor_generator(features)
        results = [
            Instances(size, pred_boxes=box, pred_classes=label)
            for size, box, label in zip(images.image_sizes, boxes, classes, strict=True)
        ]
        origins = [nearest_anchors(box, anchors) for box in boxes]
        chosen = self._choose(origins, anchors, features)
        maps, scores, _ = self._maps(features, predictions, chosen, results)
        counts = [len(found) for found in results]
        for found, part, score in zip(results, _split(maps, counts), scores.split(counts)):  # noqa: B905
            found.odam_maps, found.scores = part, score
        return results

    def explain_detections(
        self, features: list[Tensor], predictions: list[list[Tensor]], results: list[Instances]
    ) -> None:
        """
        Args:
            features: what the head read, one for each level.
            predictions: logits and deltas that it gave, lists over levels.
            results: traced detections, one for each image.
        """
        anchors = self.model.anchor_generator(features)
        chosen = self._choose([found.get(ORIGIN) for found in results], anchors, features)
        maps, scores, boxes = self._maps(features, predictions, chosen, results)
        counts = [len(found) for found in results]
        parts = zip(
            results, _split(maps, counts), scores.split(counts), boxes.split(counts), strict=True
        )
        for found, part, score, box in parts:
            self.check_same(found, score, box)
            found.odam_maps = part
            found.remove(ORIGIN)

    @torch.enable_grad()
    def autograd_outputs(
        self, features: list[Tensor], predictions: list[list[Tensor]], results: list[Instances]
    ) -> tuple[list[Tensor], Tensor]:
        anchors = self.model.anchor_generator(features)
        chosen = self._choose([found.get(ORIGIN) for found in results], anchors, features)
        classes = torch.cat([found.pred_classes for found in results])
        return self._with_graph(features, chosen, classes)

    def _traced_head(self) -> nn.Module:
        if not self.local:
            return self.model.head
        self.masks = {kind: [] for kind in _TOWERS}
        towers = {
            tower: view_of(getattr(self.model.head, tower), TracedTower, odam_masks=masks)
            for (tower, _), masks in zip(_TOWERS.values(), self.masks.values(), strict=True)
        }
        return view_of(self.model.head, children=towers)

    def _choose(
        self, origins: list[Tensor], anchors: list[Boxes], features: list[Tensor]
    ) -> Anchors:
        per_cell = len(anchors[0]) // features[0].shape[-2:].numel()
        return Anchors.of_origins(origins, anchors, [f.shape[-1] for f in features], per_cell)

    def _maps(
        self,
        features: list[Tensor],
        predictions: list[list[Tensor]],
        chosen: Anchors,
        results: list[Instances],
    ) -> tuple[OdamMaps, Tensor, Tensor]:
        """Maps of N anchors, with probabilities (N,) of their classes and boxes (N, 4)."""
        classes = torch.cat([found.pred_classes for found in results])
        logits = chosen.read(predictions[0], self.num_classes)
        deltas = chosen.read(predictions[1], 4)
        boxes = self.model.box2box_transform.apply_deltas(deltas, chosen.boxes)
        rows = torch.arange(len(chosen), device=logits.device)
        scores = logits[rows, classes].sigmoid()
        if not len(chosen):
            return OdamMaps.empty([t.name for t in self.targets], features[0]), scores, boxes
        explain = self._by_windows if self.local else self._by_autograd
        values, origins = explain(features, logits, deltas, chosen, classes)
        level = chosen.cells.level
        grids = origins.new_tensor([f.shape[-2:] for f in features])
        sizes = origins.new_tensor([found.image_size for found in results])
        shape = self.model.backbone.output_shape()
        strides = values.new_tensor([shape[name].stride for name in self.model.head_in_features])
        maps = self.pack(
            values,
            origins=origins,
            strides=strides[level],
            grid_sizes=grids[level],
            image_sizes=sizes[chosen.cells.image],
            levels=level,
        )
        return maps, scores, boxes

    def _outputs(
        self, target: Target, logits: Tensor, deltas: Tensor, chosen: Anchors, classes: Tensor
    ) -> Tensor:
        """(N,) values of one target, from the head's outputs at the chosen anchors."""
        if target.kind == "side":
            boxes = self.model.box2box_transform.apply_deltas(deltas, chosen.boxes)
            return outward(boxes)[:, target.index]
        score = logits if self.settings.score == "logit" else logits.sigmoid()
        label = classes if target.index is None else torch.full_like(classes, target.index)
        return score.gather(1, label[:, None]).squeeze(1)

    def _by_windows(
        self,
        features: list[Tensor],
        logits: Tensor,
        deltas: Tensor,
        chosen: Anchors,
        classes: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Values (N, T, h, w) and origins (N, 2) of the windows; both towers have one radius."""
        head = self.model.head
        found: dict[Target, Tensor] = {}
        for kind, (tower, predictor) in _TOWERS.items():
            targets = [target for target in self.parts if target.kind == kind]
            if not targets:
                continue
            read = (logits if kind == "class" else deltas).detach()
            with torch.enable_grad():
                read.requires_grad_()
                args = (logits, read) if kind == "side" else (read, deltas)
                outputs = [self._outputs(t, *args, chosen, classes).sum() for t in targets]
                seeds = [torch.autograd.grad(output, read)[0] for output in outputs]
            per_cell = getattr(head, predictor).weight.shape[0] // read.shape[1]
            layers = [m for m in getattr(head, tower) if isinstance(m, nn.Conv2d)]
            dense = DenseHead(
                [ConvLayer(m.weight.detach()) for m in layers], getattr(head, predictor).weight
            )
            windows = dense.heat_maps(
                list(zip(*self.masks[kind], strict=True)),
                features,
                chosen.spread(torch.stack(seeds, dim=1), per_cell),
                chosen.cells,
                sigma=self.settings.smoothing_sigma,
                max_bytes=self.settings.max_bytes,
            )
            found |= {target: windows.values[:, i] for i, target in enumerate(targets)}
        values = torch.stack([found[target] for target in self.parts], dim=1)
        return values, torch.stack([windows.row, windows.column], dim=1)

    def _by_autograd(
        self,
        features: list[Tensor],
        logits: Tensor,
        deltas: Tensor,
        chosen: Anchors,
        classes: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Values (N, T, H, W) on whole levels, padded to the largest used, and origins of zero."""
        cells = chosen.cells
        used = cells.level.unique().tolist()
        height = max(features[level].shape[-2] for level in used)
        width = max(features[level].shape[-1] for level in used)
        values = logits.new_zeros((len(chosen), len(self.parts), height, width))
        with torch.enable_grad():
            leaves, outputs = self._with_graph(features, chosen, classes)
            for number in range(len(self.parts)):
                for level in used:
                    index = (cells.level == level).nonzero().squeeze(1)
                    maps = gradient_heat_maps(
                        outputs[index, number],
                        leaves[level],
                        cells.image[index],
                        sigma=self.settings.smoothing_sigma,
                        max_bytes=self.settings.max_bytes,
                    )
                    values[index, number, : maps.shape[-2], : maps.shape[-1]] = maps
        return values, cells.level.new_zeros((len(chosen), 2))

    def _with_graph(
        self, features: list[Tensor], chosen: Anchors, classes: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """The head once more, from leaves (one for each level) to the targets (N, T)."""
        leaves = [feature.detach().requires_grad_() for feature in features]
        predictions = self.model.head(leaves)
        logits = chosen.read(predictions[0], self.num_classes)
        deltas = chosen.read(predictions[1], 4)
        outputs = [self._outputs(t, logits, deltas, chosen, classes) for t in self.parts]
        return leaves, torch.stack(outputs, dim=1)


def _is_local(head: nn.Module) -> bool:
    """Whether a head is Detectron2's, of convolutions and ReLUs that windows can go through."""
    return type(head).forward is RetinaNetHead.forward and all(
        is_plain_tower([*getattr(head, tower), getattr(head, predictor)])
        for tower, predictor in _TOWERS.values()
    )


def _split(maps: OdamMaps, counts: list[int]) -> list[OdamMaps]:
    """One OdamMaps for each image."""
    ends = torch.tensor([0, *counts]).cumsum(0).tolist()
    return [maps[a:b] for a, b in itertools.pairwise(ends)]


def _transposes_in_place(outputs: Tensor, per_anchor: int) -> bool:
    """Whether (I, A K, H, W) to (I, H W A, K) is a view of the same memory."""
    by_anchor = outputs.unflatten(1, (-1, per_anchor))
    return by_anchor.permute(0, 3, 4, 1, 2).is_contiguous()
