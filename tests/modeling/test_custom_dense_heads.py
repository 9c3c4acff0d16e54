"""
Dense detectors as third parties write them: each is explained exactly, as plain autograd of its own
inference says, or refused in one sentence that names its class.
"""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from custom_cases import BOXES, CLASSES, WEAK, assert_refused
from detectron2.modeling.meta_arch import FCOS, RetinaNet
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.structures import Boxes, Instances
from oracle import RETINANET, SLIM, detections_error, two_images, zoo_model
from torch import nn
from training_cases import labelled_images, losses_of, training_model

from odam_d2 import explain, explain_boxes
from odam_d2.modeling.explanation import Explanation
from odam_d2.modeling.meta_arch import OdamRetinaNet
from odam_d2.modeling.settings import ExplainSettings


class OwnForward(RetinaNet):
    """What Detectron2 does; a subclass says what else it does."""

    def forward(self, batched_inputs):
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        features = self.change([features[f] for f in self.head_in_features])
        results = self.decide(images, features, self.head(features))
        return [{"instances": found} for found in results]

    def change(self, features):
        return features

    def decide(self, images, features, predictions):
        return self.forward_inference(images, features, predictions)


class Neck(OwnForward):
    def change(self, features):
        return [x * (1 + WEAK * x.mean(1, keepdim=True).sigmoid()) for x in features]


class NeckInPlace(OwnForward):
    def change(self, features):
        return [x.mul_(1 + WEAK) for x in features]


class NeckForTheHeadOnly(OwnForward):
    """What is decoded has the backbone's features, and the head had others."""

    def forward(self, batched_inputs):
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        features = [features[f] for f in self.head_in_features]
        predictions = self.head([x * (1 + WEAK) for x in features])
        found = self.forward_inference(images, features, predictions)
        return [{"instances": x} for x in found]


class LevelsMixed(OwnForward):
    def change(self, features):
        finer, coarser = features[:-1], features[1:]
        up = [F.interpolate(c, f.shape[-2:]) for f, c in zip(finer, coarser, strict=True)]
        return [f + WEAK * u for f, u in zip(finer, up, strict=True)] + features[-1:]


class Context(OwnForward):
    def decide(self, images, features, predictions):
        logits, deltas = predictions
        logits = [x + WEAK * f.mean() for x, f in zip(logits, features, strict=True)]
        return super().decide(images, features, [logits, deltas])


class ContextInPlace(OwnForward):
    def decide(self, images, features, predictions):
        for x, f in zip(predictions[0], features, strict=True):
            x += WEAK * f.mean()
        return super().decide(images, features, predictions)


class Temperature(RetinaNet):
    def forward_inference(self, images, features, predictions):
        logits = [x * (1 - WEAK) for x in predictions[0]]
        return super().forward_inference(images, features, [logits, predictions[1]])


class Rescored(RetinaNet):
    def inference_single_image(self, *args):
        found = super().inference_single_image(*args)
        found.scores = found.scores * (1 - WEAK)
        return found


class MovedBoxes(RetinaNet):
    def inference_single_image(self, *args):
        found = super().inference_single_image(*args)
        found.pred_boxes = Boxes(found.pred_boxes.tensor * (1 - WEAK))
        return found


class RescoredAtTheEnd(RetinaNet):
    def forward(self, batched_inputs):
        outputs = super().forward(batched_inputs)
        for output in outputs:
            output["instances"].scores = output["instances"].scores * (1 - WEAK)
        return outputs


class OwnCandidates(RetinaNet):
    """Of each anchor the best class only: other candidates, whose anchors are seen all the same."""

    def _decode_per_level_predictions(self, anchors, scores, deltas, thresh, topk, size):
        best = torch.where(scores == scores.amax(1, keepdim=True), scores, -1.0)
        return super()._decode_per_level_predictions(anchors, best, deltas, 0.0, topk, size)


class DecodedByMask(RetinaNet):
    """Boxes are read from the anchors by a mask: no index tells which ones."""

    def _decode_per_level_predictions(self, anchors, scores, deltas, thresh, topk, size):
        best, label = scores.max(dim=1)
        kept = best >= best.topk(3).values[-1]
        boxes = self.box2box_transform.apply_deltas(deltas[kept], anchors.tensor[kept])
        return Instances(size, pred_boxes=Boxes(boxes), scores=best[kept], pred_classes=label[kept])


class OtherClasses(RetinaNet):
    """The candidates and their scores are Detectron2's, their classes are not."""

    def _decode_per_level_predictions(self, *args):
        found = super()._decode_per_level_predictions(*args)
        found.pred_classes = (found.pred_classes + 1) % self.num_classes
        return found


class OtherScores(RetinaNet):
    def _decode_per_level_predictions(self, *args):
        found = super()._decode_per_level_predictions(*args)
        found.scores = found.scores * (1 - WEAK)
        return found


class OwnLevels(RetinaNet):
    """From coarse to fine: what is counted as the first level is the last one."""

    def _decode_multi_level_predictions(self, anchors, scores, deltas, *args):
        return super()._decode_multi_level_predictions(
            anchors[::-1], scores[::-1], deltas[::-1], *args
        )


class LevelByLevel(RetinaNet):
    def inference_single_image(self, anchors, scores, deltas, size):
        found = [self._decode_per_level_predictions(*x, 0.0, 3, size)
                 for x in zip(anchors, scores, deltas, strict=True)]  # fmt: skip
        return Instances.cat(found)


class OwnDecoding(RetinaNet):
    def inference_single_image(self, anchors, scores, deltas, size):
        best, label = scores[0][:5].max(dim=1)
        boxes = self.box2box_transform.apply_deltas(deltas[0][:5], anchors[0].tensor[:5])
        return Instances(size, pred_boxes=Boxes(boxes), scores=best, pred_classes=label)


class NoInference(RetinaNet):
    def forward(self, batched_inputs):
        box = Boxes(torch.tensor([[1.0, 2, 30, 40]]))
        label, score = torch.tensor([1]), torch.tensor([0.5])
        return [
            {"instances": Instances((40, 50), pred_boxes=box, scores=score, pred_classes=label)}
            for _ in batched_inputs
        ]


class MixingHead(RetinaNetHead):
    def forward(self, features):
        mixed = LevelsMixed.change(None, features)
        return super().forward(mixed)


class OneListHead(RetinaNetHead):
    def forward(self, features):
        return super().forward(features)[:1]


class OneList(RetinaNet):
    """A head that says less, and boxes that are the anchors."""

    def forward_inference(self, images, features, predictions):
        deltas = [x.new_zeros(len(x), 4 * x.shape[1] // 80, *x.shape[2:]) for x in predictions[0]]
        return super().forward_inference(images, features, [predictions[0], deltas])


OTHER_FEATURES = "features are changed between its backbone and its head"
OTHER_DECISIONS = "do not come from the head"

REFUSED = {
    Neck: OTHER_FEATURES,
    NeckInPlace: OTHER_FEATURES,
    LevelsMixed: OTHER_FEATURES,
    NeckForTheHeadOnly: "does not read the features",
    Context: "changed before it is decoded",
    ContextInPlace: "changed before it is decoded",
    Temperature: OTHER_DECISIONS,
    Rescored: OTHER_DECISIONS,
    MovedBoxes: OTHER_DECISIONS,
    RescoredAtTheEnd: "what it returns is not what leaves its head",
    NoInference: "what it returns is not what leaves its head",
    DecodedByMask: "chooses its candidates in its own way",
    OtherClasses: "chooses its candidates in its own way",
    OtherScores: "chooses its candidates in its own way",
    OwnLevels: "goes through the levels in its own way",
    LevelByLevel: "goes through the levels in its own way",
    OwnDecoding: "chosen in its own way",
}


@pytest.mark.parametrize(
    ("cls", "reason"), REFUSED.items(), ids=lambda x: getattr(x, "__name__", "")
)
def test_what_is_not_what_the_model_decides_is_refused(cls, reason):
    model = zoo_model(RETINANET, opts=SLIM)
    model.__class__ = cls
    assert_refused(lambda: explain(model, two_images()), cls, reason)
    if cls is NoInference:
        reason = "does not decode all images at once"
    assert_refused(lambda: explain_boxes(model, two_images(), BOXES, CLASSES), cls, reason)


@pytest.mark.parametrize("cls", [RetinaNet, OwnForward, OwnCandidates])
def test_what_decides_as_detectron2_does_is_explained(cls):
    model = zoo_model(RETINANET, opts=SLIM)
    model.__class__ = cls
    assert detections_error(model, two_images()[0], limit=3) <= 1e-5
    boxes = explain_boxes(model, two_images(), BOXES, CLASSES)
    assert [len(x["instances"].odam_maps) for x in boxes] == [2, 1]


@pytest.mark.parametrize("settings", [{"layer": "res4"}, {"method": "input_gradient"}])
@pytest.mark.parametrize("cls", [Neck, Temperature])
def test_whatever_the_maps_are_made_on(cls, settings):
    model = zoo_model(RETINANET, opts=SLIM)
    model.__class__ = cls
    reason = REFUSED[cls]
    assert_refused(lambda: explain(model, two_images(), ["class"], **settings), cls, reason)


class Again(RetinaNet):
    """The backbone sees an image of other values."""

    def forward(self, batched_inputs):
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor * (1 + WEAK))
        features = [features[f] for f in self.head_in_features]
        results = self.forward_inference(images, features, self.head(features))
        return [{"instances": found} for found in results]


def test_what_the_backbone_reads():
    model = zoo_model(RETINANET, opts=SLIM)
    model.__class__ = Again
    assert len(explain(model, two_images(), ["class"])[0]["instances"].odam_maps)
    for settings in ({"layer": "res4"}, {"method": "input_gradient"}):
        run = partial(explain, model, two_images(), ["class"], **settings)
        assert_refused(run, Again, "does not read the preprocessed images")


def test_a_head_that_mixes_levels():
    model = zoo_model(RETINANET, opts=SLIM)
    model.head.__class__ = MixingHead
    for run in (
        lambda: explain(model, two_images()),
        lambda: explain_boxes(model, two_images(), BOXES, CLASSES),
    ):
        assert_refused(run, MixingHead, "mixes the levels")


def test_a_head_that_returns_something_else():
    model = zoo_model(RETINANET, opts=SLIM)
    model.head.__class__, model.__class__ = OneListHead, OneList
    assert_refused(lambda: explain(model, two_images()), OneListHead, "is not 2 lists")


def test_fcos_with_another_score():
    class FCOSWithoutRoot(FCOS):
        def inference_single_image(self, anchors, scores, deltas, size):
            return super().inference_single_image(anchors, [x**2 for x in scores], deltas, size)

    model = training_model("fcos").eval()
    model.test_score_thresh = 0.0
    model.__class__ = FCOSWithoutRoot
    for run in (
        lambda: explain(model, two_images()),
        lambda: explain_boxes(model, two_images(), BOXES, CLASSES),
    ):
        assert_refused(run, FCOSWithoutRoot, OTHER_DECISIONS)


class TrainedNeck(OdamRetinaNet):
    def forward(self, batched_inputs):
        if self.odam_training is not None:
            return super().forward(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        features = [features[f] for f in self.head_in_features]
        predictions = self.head([x * (1 + WEAK) for x in features])
        objects = [x["instances"] for x in batched_inputs]
        return self.forward_training(images, features, predictions, objects)


def test_maps_that_are_trained():
    model = training_model("retinanet")
    model.__class__ = TrainedNeck
    run = partial(losses_of, model, labelled_images())
    assert_refused(run, TrainedNeck, "does not read the features")


class Residual(nn.Sequential):
    """Convolutions and ReLUs, and more than a chain of them."""

    def forward(self, x):
        for conv, relu in zip(self[::2], self[1::2], strict=True):
            x = x + relu(conv(x))
        return x


class ScaledNorm(nn.BatchNorm2d):
    def forward(self, x):
        return 3 * super().forward(x)


class NeckHead(RetinaNetHead):
    def forward(self, features):
        return super().forward([x * x.mean(1, keepdim=True).sigmoid() for x in features])


def residual(model):
    model.head.cls_subnet.__class__ = Residual


def own_norm(model):
    torch.manual_seed(2)
    norms = [m for m in model.head.bbox_subnet if isinstance(m, nn.BatchNorm2d)]
    assert norms
    for norm in norms:
        norm.__class__ = ScaledNorm


def hooked(model):
    model.head.cls_score.register_forward_hook(lambda _m, args, y: y * args[0].mean().sigmoid())


def hooked_head(model):
    model.head.register_forward_hook(lambda _m, _a, y: ([x * (1 + x.tanh()) for x in y[0]], y[1]))


def own_method(model):
    forward = model.head.bbox_subnet.forward
    model.head.bbox_subnet.forward = lambda x: forward(x) * 2


def neck(model):
    model.head.__class__ = NeckHead


def other_layers(model):
    torch.manual_seed(2)
    model.head.cls_subnet = nn.Sequential(
        nn.Conv2d(16, 16, 5, padding=2), nn.GroupNorm(4, 16), nn.SiLU(), nn.Dropout(0.5)
    ).eval()


@pytest.mark.parametrize("change", [
    residual, own_norm, hooked, hooked_head, own_method, neck, other_layers,
])  # fmt: skip
def test_other_heads_are_explained(change):
    opts = ["MODEL.RETINANET.NORM", "FrozenBN"] if change is own_norm else []
    model = zoo_model(RETINANET, opts=[*SLIM, *opts])
    if change is own_norm:
        for tower in (model.head.cls_subnet, model.head.bbox_subnet):
            for number, module in enumerate(tower):
                if "BatchNorm" in type(module).__name__:
                    tower[number] = nn.BatchNorm2d(16).eval()
    change(model)
    with torch.no_grad():
        plain = model(two_images())
    found = explain(model, two_images())
    for a, b in zip(plain, found, strict=True):
        assert torch.equal(a["instances"].scores, b["instances"].scores)
    assert Explanation.of(model, ExplainSettings()).algorithm == "autograd"
    image = two_images()[0]
    assert detections_error(model, image, limit=3, norm_statistics="exact") <= 1e-4
