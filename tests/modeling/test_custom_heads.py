"""
Two-stage detectors with heads as third parties write them: each is explained exactly, as plain
autograd of its own inference says, or refused in one sentence that names its class.
"""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from custom_cases import BOXES, CLASSES, WEAK, assert_refused
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import (
    CascadeROIHeads,
    FastRCNNOutputLayers,
    Res5ROIHeads,
    StandardROIHeads,
)
from detectron2.modeling.roi_heads.box_head import FastRCNNConvFCHead
from detectron2.structures import Boxes, Instances
from oracle import FASTER_RCNN, SLIM, detections_error, two_images, zoo_model
from torch import nn
from training_cases import labelled_images, losses_of, training_model

from odam_d2 import ExplainSettings, UnsupportedModelError, explain, explain_boxes
from odam_d2.modeling.adapters import build_adapter
from odam_d2.modeling.explanation import Explanation

C4 = "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml"
CASCADE = "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml"


def shifted(features, size=WEAK):
    """What a neck with a skip connection does to feature maps, or a gate to pooled ones."""
    return {k: v * (1 + size * v.mean(1, keepdim=True).sigmoid()) for k, v in features.items()}


class Neck(StandardROIHeads):
    def _forward_box(self, features, proposals):
        return super()._forward_box(shifted(features), proposals)


class CascadeNeck(CascadeROIHeads):
    def _forward_box(self, features, proposals, targets=None):
        return super()._forward_box(shifted(features), proposals, targets)


class C4Neck(Res5ROIHeads):
    def _shared_roi_transform(self, features, boxes):
        return super()._shared_roi_transform([shifted({0: x})[0] for x in features], boxes)


class NeckInPlace(StandardROIHeads):
    def _forward_box(self, features, proposals):
        for x in features.values():
            x.mul_(1 + WEAK)
        return super()._forward_box(features, proposals)


class NeckInTheModel(GeneralizedRCNN):
    def inference(self, batched_inputs, detected_instances=None, do_postprocess=True):
        images = self.preprocess_image(batched_inputs)
        features = shifted(self.backbone(images.tensor))
        proposals, _ = self.proposal_generator(images, features, None)
        results, _ = self.roi_heads(images, features, proposals, None)
        if not do_postprocess:
            return results
        return self._postprocess(results, batched_inputs, images.image_sizes)


class WiderBoxes(StandardROIHeads):
    def _forward_box(self, features, proposals):
        wide = []
        for given in proposals:
            low, high = given.proposal_boxes.tensor.split(2, dim=1)
            more = WEAK * (high - low)
            wide.append(
                Instances(
                    given.image_size, proposal_boxes=Boxes(torch.cat([low - more, high + more], 1))
                )
            )
        pooled = self.box_pooler(
            [features[f] for f in self.box_in_features], [x.proposal_boxes for x in wide]
        )
        return self.box_predictor.inference(self.box_predictor(self.box_head(pooled)), proposals)[0]


class OwnBoxBranch(StandardROIHeads):
    """Pools as Detectron2 does; a subclass says what else it does."""

    def _forward_box(self, features, proposals):
        maps = [features[f] for f in self.box_in_features]
        pooled = self.read(maps, [x.proposal_boxes for x in proposals])
        predictions = self.decide(pooled)
        return self.box_predictor.inference(predictions, proposals)[0]

    def read(self, maps, boxes):
        return self.box_pooler(maps, boxes)

    def decide(self, pooled):
        return self.box_predictor(self.box_head(pooled))


class Gate(OwnBoxBranch):
    def read(self, maps, boxes):
        return shifted({0: super().read(maps, boxes)})[0]


class GateInPlace(OwnBoxBranch):
    """The very tensor that was pooled, with other values."""

    def read(self, maps, boxes):
        return super().read(maps, boxes).mul_(1 + WEAK)


class MovedAfterwards(OwnBoxBranch):
    """The very boxes that were pooled at, when they have been."""

    def read(self, maps, boxes):
        pooled = super().read(maps, boxes)
        for of_image in boxes:
            of_image.tensor += 0.1
        return pooled


class Context(OwnBoxBranch):
    def read(self, maps, boxes):
        return super().read(maps, boxes) + WEAK * maps[0].mean()


class TwoPoolers(OwnBoxBranch):
    def read(self, maps, boxes):
        sizes = [1 / level.spatial_scale for level in self.box_pooler.level_poolers]
        coarse = ROIPooler(7, [1 / sizes[-1]], 0, "ROIAlignV2")
        return super().read(maps, boxes) + WEAK * coarse(maps[-1:], boxes)


class GateAfterHead(OwnBoxBranch):
    def decide(self, pooled):
        return self.box_predictor(self.box_head(pooled) * (1 + 10 * WEAK * pooled.mean().sigmoid()))


class FlipAveraged(OwnBoxBranch):
    def decide(self, pooled):
        both = self.box_head(pooled), self.box_head(pooled.flip(-1))
        return self.box_predictor(sum(both) / 2)


class MoreForTheHead(OwnBoxBranch):
    def decide(self, pooled):
        return self.box_predictor(self.box_head(pooled, pooled.mean()))


class MoreForThePredictor(OwnBoxBranch):
    def decide(self, pooled):
        return self.box_predictor(self.box_head(pooled), pooled.mean())


class Relation(OwnBoxBranch):
    """Proposals look at each other between box head and predictor."""

    def decide(self, pooled):
        x = self.box_head(pooled)
        return self.box_predictor(x + 10 * WEAK * torch.softmax(x @ x.t(), dim=1) @ x)


class OwnChoice(StandardROIHeads):
    def _forward_box(self, features, proposals):
        found = super()._forward_box(features, proposals)
        keep = ("pred_boxes", "scores", "pred_classes")
        return [Instances(x.image_size, **{k: x.get(k) for k in keep}) for x in found]


class Rescored(StandardROIHeads):
    def _forward_box(self, features, proposals):
        found = super()._forward_box(features, proposals)
        for x in found:
            x.scores = x.scores * (1 - WEAK)
        return found


class MovedBoxes(StandardROIHeads):
    def _forward_box(self, features, proposals):
        found = super()._forward_box(features, proposals)
        for x in found:
            x.pred_boxes = Boxes(x.pred_boxes.tensor * (1 - WEAK))
        return found


class OwnStages(CascadeROIHeads):
    """One more look at the proposals."""

    def _forward_box(self, features, proposals, targets=None):
        self._run_stage([features[f] for f in self.box_in_features], proposals, 0)
        return super()._forward_box(features, proposals, targets)


class TwiceEach(CascadeROIHeads):
    def _run_stage(self, features, proposals, stage):
        super()._run_stage(features, proposals, stage)
        return super()._run_stage(features, proposals, stage)


class CascadeVotes(CascadeROIHeads):
    """Boxes after all stages are moved."""

    def _forward_box(self, features, proposals, targets=None):
        found = super()._forward_box(features, proposals, targets)
        for x in found:
            x.pred_boxes = Boxes(x.pred_boxes.tensor * (1 - WEAK))
        return found


class CascadeRescored(CascadeROIHeads):
    def _forward_box(self, features, proposals, targets=None):
        found = super()._forward_box(features, proposals, targets)
        for x in found:
            x.scores = x.scores * (1 - WEAK)
        return found


class RescoredAtTheEnd(GeneralizedRCNN):
    def inference(self, *args, **kwargs):
        results = super().inference(*args, **kwargs)
        for x in results:
            x["instances"].scores = x["instances"].scores * (1 - WEAK)
        return results


class RelationHead(FastRCNNConvFCHead):
    """The weights of all others are small: scores move by less than 1e-4."""

    def forward(self, x):
        x = super().forward(x)
        return x + 1e-6 * x.mean(dim=0)


class MoreHead(FastRCNNConvFCHead):
    def forward(self, x, context):
        return super().forward(x) + context


class MorePredictor(FastRCNNOutputLayers):
    def forward(self, x, context):
        return super().forward(x + context)


class NoGradHead(FastRCNNConvFCHead):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


def with_class(name, path, cls, opts=()):
    """A slim model, one of whose parts is of another class."""
    model = zoo_model(name, opts=[*SLIM, *opts])
    part = model.get_submodule(path) if path else model
    assert issubclass(cls, type(part))
    part.__class__ = cls
    return model


OTHER_FEATURES = "features are changed between its backbone and its head"
POOLED = "does not read what is pooled"
OTHER_DECISIONS = "do not come from the head"
NOT_ONE_EACH = "does not read one pooled feature for each proposal"
NOT_APART = "depends on the other ones"

ROI_HEADS = {
    Neck: POOLED,
    NeckInPlace: OTHER_FEATURES,
    WiderBoxes: POOLED,
    Gate: POOLED,
    GateInPlace: POOLED,
    MovedAfterwards: POOLED,
    Context: POOLED,
    TwoPoolers: POOLED,
    GateAfterHead: OTHER_DECISIONS,
    Relation: OTHER_DECISIONS,
    FlipAveraged: NOT_ONE_EACH,
    OwnChoice: "chosen in its own way",
    Rescored: OTHER_DECISIONS,
    MovedBoxes: OTHER_DECISIONS,
}
REFUSED = [(FASTER_RCNN, "roi_heads", cls, reason) for cls, reason in ROI_HEADS.items()] + [
    (FASTER_RCNN, "", NeckInTheModel, OTHER_FEATURES),
    (FASTER_RCNN, "", RescoredAtTheEnd, "what it returns is not what leaves its head"),
    (FASTER_RCNN, "roi_heads.box_head", RelationHead, NOT_APART),
    (FASTER_RCNN, "roi_heads.box_head", NoGradHead, "computes without gradients"),
    (CASCADE, "roi_heads", CascadeNeck, POOLED),
    (CASCADE, "roi_heads", TwiceEach, NOT_ONE_EACH),
    (CASCADE, "roi_heads", OwnStages, "runs its stages or chooses"),
    (CASCADE, "roi_heads", CascadeVotes, OTHER_DECISIONS),
    (CASCADE, "roi_heads", CascadeRescored, OTHER_DECISIONS),
    (CASCADE, "roi_heads.box_head.1", RelationHead, NOT_APART),
    (C4, "roi_heads", C4Neck, POOLED),
]


@pytest.mark.parametrize(
    ("name", "path", "cls", "reason"), REFUSED, ids=lambda x: getattr(x, "__name__", "")
)
def test_what_is_not_what_the_model_decides_is_refused(name, path, cls, reason):
    model = with_class(name, path, cls)
    assert_refused(lambda: explain(model, two_images()), cls, reason)
    assert_refused(lambda: explain_boxes(model, two_images(), BOXES, CLASSES), cls, reason)


@pytest.mark.parametrize(("heads", "part", "cls"), [
    (MoreForTheHead, "box_head", MoreHead), (MoreForThePredictor, "box_predictor", MorePredictor),
])  # fmt: skip
def test_parts_that_read_more_than_pooled_features(heads, part, cls):
    model = with_class(FASTER_RCNN, "roi_heads", heads)
    getattr(model.roi_heads, part).__class__ = cls
    named, reason = (heads, NOT_ONE_EACH) if part == "box_head" else (cls, "reads more than")
    assert_refused(lambda: explain(model, two_images()), named, reason)


@pytest.mark.parametrize(("name", "stages"), [(FASTER_RCNN, 1), (CASCADE, 3)])
def test_what_is_known_to_be_pooled_is_not_pooled_again(monkeypatch, name, stages):
    calls, forward = [], ROIPooler.forward

    def counted(self, maps, boxes):
        calls.append(self.output_size[0])
        return forward(self, maps, boxes)

    monkeypatch.setattr(ROIPooler, "forward", counted)
    explain(zoo_model(name, opts=SLIM), two_images())
    assert calls.count(7) == stages  # those of masks are larger


@pytest.mark.parametrize("method", ["d_rise", "grad_cam"])
@pytest.mark.parametrize("cls", [Neck, Rescored])
def test_whatever_the_method(cls, method):
    from odam_d2.modeling.settings import DRiseSettings

    model = with_class(FASTER_RCNN, "roi_heads", cls)
    settings = {"method": method, "d_rise": DRiseSettings(num_masks=2)}
    reason = ROI_HEADS[cls]
    assert_refused(lambda: explain(model, two_images(), ["class"], **settings), cls, reason)


class GatedChannel(OwnBoxBranch):
    """One of 16 channels of what is pooled."""

    channel = 0

    def read(self, maps, boxes):
        pooled = super().read(maps, boxes)
        pooled[:, self.channel] *= 1 + 0.5 * torch.sigmoid(pooled[:, self.channel])
        return pooled


@pytest.mark.parametrize("channel", [0, 5, 6, 10, 11, 15])  # the ends of thirds
def test_every_channel_is_looked_at(channel):
    model = with_class(FASTER_RCNN, "roi_heads", GatedChannel)
    model.roi_heads.channel = channel
    assert_refused(lambda: explain(model, two_images()), GatedChannel, POOLED)


@pytest.mark.parametrize(("name", "stages"), [(FASTER_RCNN, 1), (CASCADE, 3), (C4, 1)])
def test_memory_of_what_is_pooled(name, stages):
    """By which detections are explained in pieces: what the stages read, in bytes."""
    adapter = build_adapter(zoo_model(name, opts=SLIM))
    run = adapter.run(two_images(), lambda view: view(two_images()))
    (trace,) = run.traces
    pooled = adapter.pooled(trace)
    assert len(pooled) == stages
    assert adapter.pooled_bytes(trace) * len(trace) == sum(x.nbytes for x in pooled)


def test_proposals_that_the_model_changes_are_no_given_boxes():
    """All but the first are left out: the others would be explained as if they were the first."""

    class Fewer(GeneralizedRCNN):
        def inference(self, batched_inputs, detected_instances=None, do_postprocess=True):
            images = self.preprocess_image(batched_inputs)
            features = self.backbone(images.tensor)
            proposals, _ = self.proposal_generator(images, features, None)
            results, _ = self.roi_heads(images, features, [x[:1] for x in proposals], None)
            return self._postprocess(results, batched_inputs, images.image_sizes)

    model = with_class(FASTER_RCNN, "", Fewer)
    run = partial(explain_boxes, model, two_images(), BOXES, CLASSES)
    assert_refused(run, Fewer, "proposals are changed")


def test_proposals_that_are_all_detected_and_look_at_each_other():
    """Then the detections together say what all proposals say, and each map would be of all."""
    given = torch.tensor([[10.0, 10, 90, 100], [120, 20, 190, 90]])
    opts = ["MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals",
            "MODEL.ROI_HEADS.NMS_THRESH_TEST", 1.0, "TEST.DETECTIONS_PER_IMAGE", 1000]  # fmt: skip
    model = with_class(FASTER_RCNN, "roi_heads.box_head", RelationHead, opts)
    image = two_images()[0]
    proposals = Instances((128, 200), proposal_boxes=Boxes(given))
    inputs = [{**image, "proposals": proposals}]
    assert_refused(lambda: explain(model, inputs), RelationHead, NOT_APART)


class DeepHead(nn.Sequential):
    """Other layers, the first one in place, norms, dropout, attention among a region's cells."""

    def __init__(self, channels, features):
        super().__init__(
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, 16, 3, padding=1),
            nn.GroupNorm(4, 16),
            nn.GELU(),
            nn.Dropout(),
            _Attention(16),
            nn.Flatten(),
            nn.Linear(16 * 49, features),
            nn.LayerNorm(features),
            nn.ReLU(),
        )


class _Attention(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, 4, batch_first=True)

    def forward(self, x):
        cells = x.flatten(2).transpose(1, 2)
        return x + self.attention(cells, cells, cells)[0].transpose(1, 2).reshape(x.shape)


class TwoMoreOutputs(FastRCNNOutputLayers):
    """Of which one is not even of each proposal."""

    def forward(self, x):
        return *super().forward(x), x.mean(dim=1), x.mean()

    def losses(self, predictions, proposals):
        return super().losses(predictions[:2], proposals)

    def predict_boxes(self, predictions, proposals):
        return super().predict_boxes(predictions[:2], proposals)

    def predict_probs(self, predictions, proposals):
        return super().predict_probs(predictions[:2], proposals)


class Cosine(FastRCNNOutputLayers):
    def forward(self, x):
        scores = F.linear(F.normalize(x, dim=1), F.normalize(self.cls_score.weight, dim=1))
        return 10 * scores, self.bbox_pred(x)


class InPieces(OwnBoxBranch):
    """A few proposals at a time, to save memory."""

    def decide(self, pooled):
        return self.box_predictor(torch.cat([self.box_head(x) for x in pooled.split(7)]))


class Filtered(StandardROIHeads):
    def _forward_box(self, features, proposals):
        return [x[x.pred_boxes.area() > 50] for x in super()._forward_box(features, proposals)]


@pytest.mark.parametrize(("name", "path", "cls", "opts"), [
    (FASTER_RCNN, "roi_heads.box_predictor", TwoMoreOutputs, []),
    (FASTER_RCNN, "roi_heads.box_predictor", Cosine, []),
    (FASTER_RCNN, "roi_heads.box_predictor", FastRCNNOutputLayers,
     ["MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True]),
    (FASTER_RCNN, "roi_heads", OwnBoxBranch, []),
    (FASTER_RCNN, "roi_heads", InPieces, []),
    (FASTER_RCNN, "roi_heads", Filtered, []),
    (CASCADE, "roi_heads.box_predictor.2", Cosine, []),
    (C4, "roi_heads.box_predictor", Cosine, []),
])  # fmt: skip
def test_other_heads_are_explained(name, path, cls, opts):
    model = with_class(name, path, cls, opts)
    assert detections_error(model, two_images()[0], limit=4) <= 1e-4


@pytest.mark.parametrize("name", [FASTER_RCNN, CASCADE])
def test_a_box_head_of_other_layers_is_explained(name):
    model = zoo_model(name, opts=SLIM)
    heads = model.roi_heads
    torch.manual_seed(1)
    if name == CASCADE:
        for number in range(3):
            heads.box_head[number] = DeepHead(16, 32).eval()
    else:
        heads.box_head = DeepHead(16, 32).eval()
    assert detections_error(model, two_images()[0], limit=4) <= 1e-4


class GatedPooler(ROIPooler):
    """Pools features that it has changed."""

    def forward(self, x, box_lists):
        return super().forward([gated(level) for level in x], box_lists)


def gated(x):
    return x * (1 + 0.5 * torch.sigmoid(x))


def with_gated_class(pooler):
    pooler.__class__ = GatedPooler


def with_gated_output(pooler):
    pooler.register_forward_hook(lambda _module, _args, output: gated(output))


def with_gated_levels(pooler):
    for layer in pooler.level_poolers:
        layer.register_forward_hook(lambda _module, _args, output: gated(output))


@pytest.mark.parametrize("change", [with_gated_class, with_gated_output, with_gated_levels])
def test_a_pooler_that_does_more_is_explained_by_autograd(change):
    """RoIAlign's own adjoint would give maps of something else."""
    model = zoo_model(FASTER_RCNN, opts=SLIM)
    change(model.roi_heads.box_pooler)
    assert Explanation.of(model, ExplainSettings()).algorithm == "autograd"
    assert detections_error(model, two_images()[0], limit=4) <= 1e-4
    model = training_model("fpn")
    change(model.roi_heads.box_pooler)
    with pytest.raises(UnsupportedModelError, match="its pooler does more than RoIAlign"):
        losses_of(model, labelled_images())


def test_a_head_that_two_stages_share():
    """A module is listed once among the children, and runs twice."""
    model = zoo_model(CASCADE, opts=SLIM)
    model.roi_heads.box_head[1] = model.roi_heads.box_head[0]
    assert detections_error(model, two_images()[0], limit=4) <= 1e-4


@pytest.mark.parametrize(("path", "cls", "reason"), [
    ("roi_heads", Neck, POOLED), ("roi_heads.box_head", RelationHead, NOT_APART),
])  # fmt: skip
def test_maps_that_are_trained(path, cls, reason):
    model = training_model("fpn")
    model.get_submodule(path).__class__ = cls
    assert_refused(lambda: losses_of(model, labelled_images()), cls, reason)


def test_a_hook_on_a_tensor_before_the_first_linear_layer_is_obeyed():
    """It triples gradients, as autograd would."""
    model, image = zoo_model(FASTER_RCNN, opts=SLIM), two_images()[0]

    def hook(_module, _args, output):
        if output.requires_grad:
            output.register_hook(lambda gradient: 3 * gradient)

    plain, tripled = [], []
    for found in (plain, tripled):
        found.append(explain(model, [image], "class")[0]["instances"].odam_maps.values)
        model.roi_heads.box_head.flatten.register_forward_hook(hook)
    assert plain[0].any()
    assert torch.allclose(tripled[0], 3 * plain[0], rtol=1e-5)
