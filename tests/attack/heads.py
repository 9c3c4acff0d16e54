"""Heads as third parties write them: a map is that of the model's own decision, or refused."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random

import torch
from detectron2.modeling import ROI_HEADS_REGISTRY, RetinaNet, StandardROIHeads
from detectron2.modeling.meta_arch import META_ARCH_REGISTRY
from detectron2.modeling.roi_heads import CascadeROIHeads, Res5ROIHeads
from detectron2.structures import Boxes
from torch import nn

from .case import RIGHT, Case, Refused, attempt, expect
from .material import slim

__all__ = ["cases"]


def _wider(proposals, factor=4):
    out = []
    for given in proposals:
        low, high = given.proposal_boxes.tensor.split(2, dim=1)
        out.append(
            Boxes(torch.cat([low - (high - low) / factor, high + (high - low) / factor], dim=1))
        )
    return out


class _Standard(StandardROIHeads):
    """The box branch in pieces, each to be overridden."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.added = nn.Conv2d(16, 16, 3, padding=1)
        self.gate = nn.Linear(16, 16)

    def prepare(self, features):
        return features

    def boxes(self, proposals):
        return [x.proposal_boxes for x in proposals]

    def pool(self, features, proposals):
        return self.box_pooler([features[f] for f in self.box_in_features], self.boxes(proposals))

    def mix(self, pooled, features, proposals):
        return pooled

    def decide(self, hidden):
        return hidden

    def _forward_box(self, features, proposals):
        features = self.prepare(features)
        pooled = self.mix(self.pool(features, proposals), features, proposals)
        predictions = self.box_predictor(self.decide(self.box_head(pooled)))
        return self.box_predictor.inference(predictions, proposals)[0]


def _neck(self, features):
    return {
        k: self.added(v).relu() if k in self.box_in_features else v for k, v in features.items()
    }


def _scaled(factor):
    return lambda self, features: {k: v * factor for k, v in features.items()}


def _levels_mixed(self, features):
    p3 = nn.functional.interpolate(features["p3"], features["p2"].shape[-2:])
    return features | {"p2": features["p2"] + p3}


def _gate(self, pooled, features, proposals):
    return pooled * self.gate(pooled.mean((2, 3))).sigmoid()[:, :, None, None]


def _context(self, pooled, features, proposals):
    return (
        pooled
        + features["p5"]
        .mean((2, 3))
        .repeat_interleave(torch.tensor([len(x) for x in proposals]), 0)[:, :, None, None]
    )


def _wide_pool(self, pooled, features, proposals):
    return pooled + self.box_pooler([features[f] for f in self.box_in_features], _wider(proposals))


def _relation(self, hidden):
    weights = (hidden @ hidden.t() / hidden.shape[1] ** 0.5).softmax(1)
    return hidden + 0.5 * weights @ hidden


def _weak_relation(self, hidden):
    return hidden + 0.01 * hidden.mean(0, keepdim=True)


def _other_weights(self, pooled, features, proposals):
    return nn.functional.relu(self.added(pooled))


def _twice(self, hidden):
    return hidden * 2 + 0.1


# what is overridden, how, and whether it is one of the patterns that were explained wrongly
_ROI = {
    "plain": ({}, False),
    "neck": ({"prepare": _neck}, True),
    "scaled": ({"prepare": _scaled(1.5)}, True),
    "scaled-little": ({"prepare": _scaled(1.01)}, True),
    "levels-mixed": ({"prepare": _levels_mixed}, True),
    "wider-boxes": ({"boxes": lambda self, p: _wider(p)}, True),
    "little-wider-boxes": ({"boxes": lambda self, p: _wider(p, 200)}, True),
    "gate": ({"mix": _gate}, True),
    "context": ({"mix": _context}, True),
    "two-poolers": ({"mix": _wide_pool}, True),
    "conv-on-pooled": ({"mix": _other_weights}, True),
    "relation": ({"decide": _relation}, True),
    "weak-relation": ({"decide": _weak_relation}, True),
    "twice": ({"decide": _twice}, False),
}  # fmt: skip


class _NeckCascade(CascadeROIHeads):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.added = nn.Conv2d(16, 16, 3, padding=1)

    def _forward_box(self, features, proposals, targets=None):
        return super()._forward_box(_neck(self, features), proposals, targets)


class _StageCascade(CascadeROIHeads):
    """Each stage's pooled features pass a gate."""

    def _run_stage(self, features, proposals, stage):
        pooled = self.box_pooler(features, [x.proposal_boxes for x in proposals])
        pooled = pooled * (1 + pooled.mean((1, 2, 3), keepdim=True).tanh())
        return self.box_predictor[stage](self.box_head[stage](pooled))


class _PlainCascade(CascadeROIHeads):
    pass


class _C4Neck(Res5ROIHeads):
    def _shared_roi_transform(self, features, boxes):
        return super()._shared_roi_transform([f * f.mean().sigmoid() for f in features], boxes)


class _C4Wide(Res5ROIHeads):
    def _shared_roi_transform(self, features, boxes):
        wide = [Boxes(b.tensor + torch.tensor([-4.0, -4, 4, 4])) for b in boxes]
        return super()._shared_roi_transform(features, wide)


def _dense_head(head_forward):
    """A RetinaNet whose head does something before its towers."""

    class Changed(RetinaNet):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            inner = type(self.head)

            class Head(inner):
                def forward(self, features):
                    return super().forward(head_forward(features))

            self.head.__class__ = Head

    return Changed


def _dense_forward(change):
    """A RetinaNet that changes features in ``forward``, before its head."""

    class Changed(RetinaNet):
        def forward(self, batched_inputs):
            images = self.preprocess_image(batched_inputs)
            features = self.backbone(images.tensor)
            features = change([features[f] for f in self.head_in_features])
            results = self.forward_inference(images, features, self.head(features))
            from detectron2.modeling.postprocessing import detector_postprocess

            sizes = [(x.get("height"), x.get("width")) for x in batched_inputs]
            return [
                {"instances": detector_postprocess(r, *s)}
                for r, s in zip(results, sizes, strict=True)
            ]

    return Changed


def _mix(features):
    up = nn.functional.interpolate(features[1], features[0].shape[-2:])
    return [features[0] + up, *features[1:]]


def _context_of_level(features):
    return [f * (1 + f.mean((2, 3), keepdim=True).tanh()) for f in features]


def _shifted(features):
    return [torch.roll(f, 1, dims=3) for f in features]


_CHANGES = {
    "scaled": lambda fs: [f * 1.5 for f in fs], "mixed": _mix, "context": _context_of_level,
    "shifted": _shifted, "relu": lambda fs: [f.relu() for f in fs], "same": lambda fs: list(fs),
    "blurred": lambda fs: [nn.functional.avg_pool2d(f, 3, 1, 1) for f in fs],
}  # fmt: skip


def _reference(model, inputs) -> list:
    """By autograd through the model's own forward: score, and a map (H, W) on each level."""
    leaves = {}

    def leave(module, args, features):
        leaves.update({k: v.detach().requires_grad_() for k, v in features.items()})
        return dict(leaves)

    hook = model.backbone.register_forward_hook(leave)
    try:
        with torch.enable_grad():
            found = model(inputs)[0]["instances"]
            rows = []
            for score in found.scores:
                gradients = torch.autograd.grad(
                    score, list(leaves.values()), retain_graph=True, allow_unused=True
                )
                rows.append((float(score), {
                    k: None if g is None else (g * f.detach()).sum(1)[0].relu()
                    for (k, f), g in zip(leaves.items(), gradients, strict=True)
                }))  # fmt: skip
    finally:
        hook.remove()
    return rows


def _compare(model, inputs, names: list[str]) -> str:
    from odam_d2 import explain

    found = attempt(lambda: explain(model, inputs, targets=["class"])[0]["instances"])
    if isinstance(found, Refused):
        return found
    expected, worst = _reference(model, inputs), 0.0
    for number in range(len(found)):
        _, levels = min(expected, key=lambda e: abs(e[0] - float(found.scores[number])))
        maps = found.odam_maps[number]
        # What was read on other levels is merged into the finest; compared is where it is.
        truth = levels[names[int(maps.levels)]]
        others = [v for k, v in levels.items() if v is not None and k != names[int(maps.levels)]]
        expect(truth is not None, "on a level that was not read")
        row, column = maps.origins[0].tolist()
        height, width = maps.values.shape[-2:]
        room = max(height, width) + 2
        mine = torch.zeros(truth.shape[0] + 2 * room, truth.shape[1] + 2 * room)
        mine[row + room : row + room + height, column + room : column + room + width] = maps.values[
            0, 0
        ]
        mine = mine[room : room + truth.shape[0], room : room + truth.shape[1]]
        if not any(bool(v.any()) for v in others):
            worst = max(worst, float((mine - truth).abs().max() / truth.max().clamp(min=1e-12)))
        elif not truth.any():
            worst = max(worst, float(mine.max()))
        else:
            error = (truth - mine).clamp(min=0).max() / truth.max().clamp(min=1e-12)
            worst = max(worst, float(error))
    expect(worst < 1e-3, f"explained with an error of {worst:.2g} of the peak, in silence")
    return RIGHT


_FASTER = "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"
_RETINA = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"


def _roi(heads: type, zoo: str, size: tuple, must: bool, folder: Path) -> str:
    ROI_HEADS_REGISTRY.register(heads)
    model, inputs = slim(zoo, "MODEL.ROI_HEADS.NAME", heads.__name__, size=size)
    names = getattr(model.roi_heads, "box_in_features", None) or model.roi_heads.in_features
    found = _compare(model, inputs, names)
    if isinstance(found, Refused):
        expect(not must, f"what is right is refused: {found}")
        expect(heads.__name__ in found or "box" in found, f"the class is not named: {found}")
    return found


def _dense(make, change, size: tuple, must: bool, folder: Path) -> str:
    model_class = type("ThirdPartyDetector", (make(change),), {})
    META_ARCH_REGISTRY.register(model_class)
    model, inputs = slim(_RETINA, "MODEL.META_ARCHITECTURE", "ThirdPartyDetector", size=size)
    found = _compare(model, inputs, model.head_in_features)
    if isinstance(found, Refused):
        expect(not must, f"what is right is refused: {found}")
        expect("view" not in found.lower().replace("views", ""), f"a view is named: {found}")
    return found


def cases(rng: Random) -> Iterator[Case]:
    sizes = [(96, 128), (192, 256), (130, 100)]
    for size in sizes:
        name = f"{size[0]}x{size[1]}"
        for what, (parts, wrong) in _ROI.items():
            heads = type(f"Attack{what.title().replace('-', '')}Heads", (_Standard,), dict(parts))
            yield Case(f"roi-{what}-{name}", partial(_roi, heads, _FASTER, size, False),
                       f"1.1 ROI heads: {what}" if wrong else "")  # fmt: skip
        for heads, wrong in ((_PlainCascade, False), (_NeckCascade, True), (_StageCascade, True)):
            named = type(f"Attack{heads.__name__[1:]}Heads", (heads,), {})
            yield Case(f"cascade-{heads.__name__[1:]}-{name}",
                       partial(_roi, named, "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml", size,
                           not wrong),
                       f"1.1 ROI heads: {heads.__name__[1:]}" if wrong else "")  # fmt: skip
        for heads in (_C4Neck, _C4Wide):
            named = type(f"Attack{heads.__name__[1:]}Heads", (heads,), {})
            yield Case(f"c4-{heads.__name__[1:]}-{name}",
                       partial(_roi, named, "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml", size,
                           False))  # fmt: skip
        for make in (_dense_head, _dense_forward):
            for what, change in _CHANGES.items():
                fault = (
                    f"1.1 dense{make.__name__.removeprefix('_dense')}: {what}"
                    if what != "same"
                    else ""
                )
                yield Case(f"dense{make.__name__.removeprefix('_dense')}-{what}-{name}",
                           partial(_dense, make, change, size, False), fault)  # fmt: skip
