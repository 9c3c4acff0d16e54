"""Norms in the towers of dense heads: which way is used, and that it is exact."""

import pytest
import torch
from detectron2.layers import CycleBatchNormList
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch import FCOS
from detectron2.structures import Boxes
from oracle import (
    RETINANET,
    SLIM,
    detections_error,
    two_images,
    with_constant_statistics,
    zoo_model,
)
from torch import nn

from benchmarks.untrained import scale_random_weights
from odam_d2 import explain, explain_boxes
from odam_d2.engine import setup_cfg
from odam_d2.modeling.adapters import build_adapter
from odam_d2.modeling.explanation import Explanation
from odam_d2.modeling.settings import ExplainSettings

WIDE = [*SLIM, "MODEL.FPN.OUT_CHANNELS", 32]  # group norm has 32 groups


def fcos(norm):
    """Plain FCOS with running statistics and affine parameters as training leaves them."""
    cfg = setup_cfg(
        "configs/COCO-Detection/fcos_R_50_FPN_1x.yaml",
        [*WIDE, "MODEL.FCOS.NORM", norm, "MODEL.FCOS.SCORE_THRESH_TEST", 0.0, "MODEL.WEIGHTS", ""],
    )
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    scale_random_weights(model)
    settle(model.head)
    return model


def settle(head):
    """Give norms statistics and parameters that are not the identity."""
    generator = torch.Generator().manual_seed(1)
    for module in head.modules():
        for name in ("weight", "running_var", "bias", "running_mean"):
            tensor = getattr(module, name, None)
            if isinstance(module, (nn.Conv2d, nn.ReLU)) or tensor is None:
                continue
            random = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            shift = 0.5 if name in ("weight", "running_var") else -0.5
            tensor.data.copy_(random + shift)


def way(model, **settings):
    return Explanation.of(model, ExplainSettings(**settings)).algorithm


def check(model, bound, oracle=None, **settings):
    for image, signed in zip(two_images(), (False, True), strict=True):
        assert detections_error(model, image, oracle, signed=signed, **settings) <= bound


@pytest.mark.parametrize(
    ("norm", "expected"),
    [("", "window"), ("BN", "window"), ("FrozenBN", "window"), ("GN", "autograd")],
)
def test_fcos(norm, expected):
    model = fcos(norm)
    assert isinstance(model, FCOS)
    assert way(model, norm_statistics="exact") == expected
    check(model, 1e-5, norm_statistics="exact")


def test_constant_statistics_of_group_norm_are_the_default():
    model = fcos("GN")
    assert way(model) == "window, constant statistics"
    check(model, 1e-5, with_constant_statistics(model))
    # The two must differ, or the setting does nothing.
    image = two_images()[0]
    exact, constant = (
        explain(model, [image], norm_statistics=n)[0]["instances"].odam_maps.dense(32, 32)
        for n in ("exact", "constant")
    )
    assert (exact - constant).abs().max() > 1e-2 * exact.max()


@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
def test_retinanet_with_batch_norm(norm):
    model = zoo_model(RETINANET, opts=[*SLIM, "MODEL.RETINANET.NORM", norm])
    settle(model.head)
    assert way(model) == "window"
    check(model, 1e-5)


def test_batch_norm_of_levels_stays_at_its_level_after_an_error(monkeypatch):
    """CycleBatchNormList counts calls: an error between levels must not shift the next image."""
    model = fcos("BN")
    image = two_images()[0]
    before = model([image])[0]["instances"].scores
    calls = iter(range(100))
    original = nn.Conv2d.forward

    def failing(self, x):
        if self.weight is model.head.cls_score.weight and next(calls) == 2:
            raise RuntimeError("out of memory")
        return original(self, x)

    monkeypatch.setattr(nn.Conv2d, "forward", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        explain(model, [image])
    monkeypatch.undo()
    assert {m._pos for m in model.modules() if isinstance(m, CycleBatchNormList)} == {0}
    assert torch.equal(model([image])[0]["instances"].scores, before)


def test_given_boxes_are_read_where_fcos_is_trained_to_find_them():
    """Detectron2's own matching says that the chosen anchor is a positive of that very box."""
    model = fcos("BN")
    boxes = torch.tensor(
        [[10.0, 12, 50, 60], [40, 20, 180, 110], [3, 30, 21, 44], [60, 5, 160, 125]]
    )  # 48, 140, 18 and 120 pixels: reach 24, 70, 9 and 60, on p3, p4, p3 and p3
    inputs = [{"image": two_images()[0]["image"]}]
    found = explain_boxes(model, inputs, [boxes], [torch.tensor([1, 2, 3, 4])])[0]["instances"]
    assert found.odam_maps.levels.tolist() == [0, 1, 0, 0]
    with torch.no_grad():
        features = model.backbone(model.preprocess_image(inputs).tensor)
    anchors = model.anchor_generator([features[name] for name in model.head_in_features])
    level, index = build_adapter(model).nearest(Boxes(boxes), anchors).unbind(1)
    starts = torch.tensor([0, *(len(a) for a in anchors)]).cumsum(0)
    quality = model._match_anchors(Boxes(boxes), anchors)
    assert (quality[torch.arange(4), starts[level] + index] > 0).all()
    # What is said there is what the head says there.
    scores = _probabilities(model, features)[starts[level] + index, torch.tensor([1, 2, 3, 4])]
    assert torch.allclose(found.scores, scores)


def _probabilities(model, features):
    """(R, K) over all levels, as Detectron2 ranks by."""
    with torch.no_grad():
        predictions = list(model.head([features[name] for name in model.head_in_features]))
    sizes = [model.num_classes, 4, 1]
    logits, _, centerness = model._transpose_dense_predictions(predictions, sizes)
    return (torch.cat(logits, 1)[0].sigmoid() * torch.cat(centerness, 1)[0].sigmoid()).sqrt()
