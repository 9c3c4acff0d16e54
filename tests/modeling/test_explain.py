"""What explain() promises beside the maps: the same detections, and a model as it was."""

import copy

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from oracle import FASTER_RCNN, RETINANET, SLIM, two_images, zoo_model
from torch import nn

from odam_d2 import (
    ExplainSettings,
    OdamMaps,
    UnsupportedModelError,
    add_odam_config,
    explain,
    explain_boxes,
)
from odam_d2.core.errors import InputError
from odam_d2.modeling.targets import Targets

OURS = {FASTER_RCNN: "OdamRCNN", RETINANET: "OdamRetinaNet"}


def assert_same_detections(plain, ours):
    for a, b in zip(plain, ours, strict=True):
        a, b = a["instances"], b["instances"]
        assert a.image_size == b.image_size
        assert torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
        assert torch.equal(a.scores, b.scores)
        assert torch.equal(a.pred_classes, b.pred_classes)
        assert set(b.get_fields()) == set(a.get_fields()) | {"odam_maps"}
        assert len(b.odam_maps) == len(a)


def test_detections_are_those_of_the_model_bit_for_bit(slim_model):
    inputs = two_images()
    with torch.no_grad():
        plain = slim_model(inputs)
    assert sum(len(x["instances"]) for x in plain) > 10
    assert_same_detections(plain, explain(slim_model, inputs))


@pytest.mark.parametrize("name", [FASTER_RCNN, RETINANET])
def test_our_meta_architectures(name):
    """Same state dict, same detections; maps of the configured targets; none when turned off."""
    plain = zoo_model(name, opts=SLIM)
    targets = ["MODEL.ODAM.TARGETS", ["class", "top"]]
    ours = zoo_model(name, opts=[*SLIM, "MODEL.META_ARCHITECTURE", OURS[name], *targets])
    result = ours.load_state_dict(plain.state_dict(), strict=True)
    assert not result.missing_keys
    inputs = two_images()
    with torch.no_grad():
        expected, found = plain(inputs), ours(inputs)
    assert_same_detections(expected, found)
    assert found[0]["instances"].odam_maps.targets == ("class", "top")
    # explain() asks for its own targets, with the model's other settings.
    assert explain(ours, inputs, ["left"])[0]["instances"].odam_maps.targets == ("left",)

    off = zoo_model(
        name, opts=[*SLIM, "MODEL.META_ARCHITECTURE", OURS[name], "MODEL.ODAM.TARGETS", []]
    )
    assert not off(inputs)[0]["instances"].has("odam_maps")


def test_inference_without_postprocessing_and_with_given_instances():
    model = zoo_model(FASTER_RCNN, opts=[*SLIM, "MODEL.META_ARCHITECTURE", "OdamRCNN"])
    inputs = two_images()
    raw = model.inference(inputs, do_postprocess=False)
    assert raw[0].image_size == (128, 200)
    assert raw[0].has("odam_maps")
    again = model.inference(inputs, detected_instances=raw, do_postprocess=False)
    assert torch.equal(again[0].pred_boxes.tensor, raw[0].pred_boxes.tensor)


@pytest.mark.parametrize("name", [FASTER_RCNN, RETINANET])
def test_training_is_the_plain_models(name):
    """In training mode, our model gives the same losses as Detectron2's with the same weights."""
    from detectron2.structures import Instances
    from detectron2.utils.events import EventStorage

    gt = Instances((128, 200), gt_boxes=Boxes([[10.0, 10, 90, 100]]), gt_classes=torch.tensor([3]))
    inputs = [{**two_images()[0], "instances": gt}]
    losses = []
    for arch in ([], ["MODEL.META_ARCHITECTURE", OURS[name]]):
        model = zoo_model(name, opts=[*SLIM, *arch]).train()
        torch.manual_seed(7)
        with EventStorage():
            losses.append(model(inputs))
    assert losses[0].keys() == losses[1].keys()
    for key in losses[0]:
        assert torch.equal(losses[0][key], losses[1][key])


def snapshot(model):
    return {
        "modes": [m.training for m in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grad": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "values": copy.deepcopy(model.state_dict()),
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
                  for m in model.modules()],
        "children": [list(m._modules) for m in model.modules()],
        "types": [type(m) for m in model.modules()],
        "attributes": [sorted(m.__dict__) for m in model.modules()],
        "rng": torch.get_rng_state(),
        "grad_mode": torch.is_grad_enabled(),
    }  # fmt: skip


def assert_restored(before, model):
    after = snapshot(model)
    for key in ("modes", "requires_grad", "hooks", "children", "types", "attributes", "grad_mode"):
        assert after[key] == before[key], key
    for a, b in zip(before["grad"], after["grad"], strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
    assert all(torch.equal(v, after["values"][k]) for k, v in before["values"].items())
    assert torch.equal(before["rng"], after["rng"])


def unusual_state(model):
    """Modes mixed, one gradient present, one parameter trained, a hook of the user's."""
    model.train()
    model.backbone.eval()
    first, second = list(model.parameters())[:2]
    first.grad = torch.full_like(first, 3.0)
    second.requires_grad_(False)
    return model.backbone.register_forward_hook(lambda *_: None)


@pytest.mark.parametrize("name", [FASTER_RCNN, RETINANET])
def test_the_model_is_given_back_as_it_was(name):
    model = zoo_model(name, opts=SLIM)
    handle = unusual_state(model)
    before = snapshot(model)
    explain(model, two_images())
    assert_restored(before, model)
    handle.remove()


@pytest.mark.parametrize("name", [FASTER_RCNN, RETINANET])
def test_also_after_an_exception_in_the_middle(name, monkeypatch):
    model = zoo_model(name, opts=SLIM)
    unusual_state(model)
    before = snapshot(model)

    def fail(*args, **kwargs):
        torch.rand(3)  # moves the random numbers
        raise RuntimeError("in the middle")

    monkeypatch.setattr(Targets, "maps", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        explain(model, two_images())
    assert_restored(before, model)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_works_in_every_gradient_mode(slim_model, mode):
    """DefaultPredictor and inference_on_dataset run under no_grad, others in inference_mode."""
    expected = explain(slim_model, two_images())
    with mode():
        found = explain(slim_model, two_images())
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a["instances"].odam_maps.values, b["instances"].odam_maps.values)
        assert not b["instances"].odam_maps.values.requires_grad
        assert b["instances"].odam_maps.values.max() > 0


@pytest.mark.parametrize("name", [FASTER_RCNN, RETINANET])
def test_no_detections(name):
    key = "MODEL.ROI_HEADS" if name == FASTER_RCNN else "MODEL.RETINANET"
    model = zoo_model(name, opts=[*SLIM, f"{key}.SCORE_THRESH_TEST", 2.0])
    for result in explain(model, two_images()):
        maps = result["instances"].odam_maps
        assert isinstance(maps, OdamMaps)
        assert len(maps) == 0
        assert maps.dense(12, 20).shape == (0, 5, 12, 20)
    empty = [torch.zeros(0, 4)] * 2, [torch.zeros(0)] * 2
    assert len(explain_boxes(model, two_images(), *empty)[1]["instances"]) == 0


def test_some_images_without_detections(slim_model):
    """Explained with a full image, an empty one must not shift the maps of the other."""
    boxes = torch.tensor([[10.0, 10, 90, 100], [30, 20, 60, 90]])
    classes = torch.tensor([1, 2])
    none = torch.zeros(0, 4), torch.zeros(0)
    inputs = two_images()
    found = explain_boxes(slim_model, inputs, [none[0], boxes], [none[1], classes])
    both = explain_boxes(slim_model, inputs, [boxes, boxes], [classes, classes])
    assert len(found[0]["instances"]) == 0
    a, b = found[1]["instances"].odam_maps, both[1]["instances"].odam_maps
    assert torch.equal(a.image_sizes, torch.tensor([[160, 96]] * 2))
    torch.testing.assert_close(a.dense(160, 96), b.dense(160, 96), rtol=1e-3, atol=1e-7)


def test_one_pixel_levels_keep_their_logits():
    """
    On a level of one cell, Detectron2's sigmoid_ writes into the head's own output; the explained
    score would then be the sigmoid of a sigmoid.
    """
    every_level = ["MODEL.RETINANET.TOPK_CANDIDATES_TEST", 20, "TEST.DETECTIONS_PER_IMAGE", 200]
    model = zoo_model(RETINANET, opts=[*SLIM, *every_level])
    inputs = [{"image": torch.rand(3, 96, 120) * 255}]
    found = explain(model, inputs)[0]["instances"]  # compares scores with the detections'
    assert (found.odam_maps.grid_sizes.prod(dim=1) == 1).any()


def test_boxes_are_given_at_the_output_and_returned_unchanged(slim_model):
    """The network sees half of it: a box at the output is a box of half the size there."""
    image = two_images()[0]["image"]
    half = [{"image": image, "height": 256, "width": 400}]
    boxes = torch.tensor([[20.0, 30.0, 180.0, 210.0]])
    found = explain_boxes(slim_model, half, [boxes], [torch.tensor([4])])[0]["instances"]
    same = explain_boxes(slim_model, [{"image": image}], [boxes / 2], [torch.tensor([4])])
    assert torch.equal(found.pred_boxes.tensor, boxes)
    assert found.image_size == (256, 400)
    assert torch.equal(found.odam_maps.values, same[0]["instances"].odam_maps.values)
    assert torch.equal(found.scores, same[0]["instances"].scores)


def test_nonfinite_predictions_do_not_shift_proposals():
    """Detectron2 drops rows with nan before it counts; maps must follow the same rows."""
    model = zoo_model(FASTER_RCNN, opts=SLIM)
    inputs = two_images()[:1]
    predictor = model.roi_heads.box_predictor
    original = type(predictor).forward

    class Poisoned(type(predictor)):
        def forward(self, x):
            scores, deltas = original(self, x)
            if len(scores) > 20:  # the detector's own pass over all proposals
                scores = scores.clone()
                scores[3] = float("nan")
            return scores, deltas

    predictor.__class__ = Poisoned
    found = explain(model, inputs)[0]["instances"]  # check_same would refuse shifted rows
    assert len(found) > 5


def test_heads_that_change_the_scores_are_refused():
    """Never a wrong map: a head of the user's that averages, rescales or votes is noticed."""
    model = zoo_model(FASTER_RCNN, opts=SLIM)

    class Halving(type(model.roi_heads)):
        def _forward_box(self, features, proposals):
            instances = super()._forward_box(features, proposals)
            for found in instances:
                found.scores = found.scores / 2 + 0.3
            return instances

    model.roi_heads.__class__ = Halving
    with pytest.raises(UnsupportedModelError, match="do not come from the head"):
        explain(model, two_images())


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.META_ARCHITECTURE", "ProposalNetwork"], "no explainer for .*ProposalNetwork"),
        (["MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIPool"], "ROIAlign and .*explain_outputs"),
    ],
)  # fmt: skip
def test_models_that_cannot_be_explained_are_named(opts, message):
    cfg = model_zoo.get_config(FASTER_RCNN)
    add_odam_config(cfg)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *SLIM, *opts])
    with pytest.raises(UnsupportedModelError, match=message):
        explain(build_model(cfg), two_images())


def test_wrong_arguments_get_one_sentence(slim_model):
    inputs = two_images()
    box, label = torch.tensor([[1.0, 1, 9, 9]]), torch.tensor([0])
    for targets, settings, message in [
        (["middle"], {}, "unknown target 'middle'"),
        (["class:cat"], {}, "names are not known here"),
        (["class:dog"], {"class_names": ("cat", "dgo")}, "did you mean 'dgo'"),
        (["class"], {"score": "odds"}, "must be one of"),
        (["class"], {"smoothing_sigma": -1.0}, "smoothing_sigma"),
        (["class"], {"chunk_mb": 0}, "chunk_mb"),
    ]:
        with pytest.raises(ValueError, match=message):
            explain(slim_model, inputs, targets, **settings)
    for boxes, classes, message in [
        ([box], [label], "2 images, but 1 sets of boxes"),
        ([box, box[:, :3]], [label, label], "image 1: boxes"),
        ([box, box], [label, label + 80], "image 1: class ids must be 0 to 79"),
        ([box.flip(1), box], [label, label], "image 0: boxes must be finite XYXY"),
        ([box * float("nan"), box], [label, label], "image 0: boxes must be finite XYXY"),
    ]:
        with pytest.raises(ValueError, match=message):
            explain_boxes(slim_model, inputs, boxes, classes)


def test_a_config_without_our_keys():
    with pytest.raises(KeyError, match=r"call odam_d2\.add_odam_config"):
        ExplainSettings.from_config(get_cfg())


def test_class_names_come_from_the_data_set():
    cfg = model_zoo.get_config(FASTER_RCNN)
    add_odam_config(cfg)
    settings = ExplainSettings.from_config(cfg)
    assert settings.class_names[:2] == ("person", "bicycle")
    model = zoo_model(FASTER_RCNN, opts=[*SLIM, "MODEL.META_ARCHITECTURE", "OdamRCNN"])
    assert explain(model, two_images(), ["class:person"])[0]["instances"].odam_maps is not None


def test_fast_rcnn_without_proposals_gets_one_sentence():
    cfg = model_zoo.get_config("COCO-Detection/fast_rcnn_R_50_FPN_1x.yaml")
    add_odam_config(cfg)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *SLIM])
    for arch in ("GeneralizedRCNN", "OdamRCNN"):
        cfg.MODEL.META_ARCHITECTURE = arch
        model = build_model(cfg).eval()
        with pytest.raises(InputError, match="each image needs them as 'proposals'"):
            explain(model, two_images()) if arch == "GeneralizedRCNN" else model(two_images())
        boxes = [torch.tensor([[5.0, 5, 60, 40]])] * 2
        found = explain_boxes(model, two_images(), boxes, [torch.tensor([3])] * 2)
        assert len(found[1]["instances"].odam_maps) == 1


def test_unknown_heads_are_named_and_the_general_way_is_shown():
    class MyHeads(nn.Module):
        num_classes = 80

    class MyPredictor(nn.Module):
        pass

    for part, head in (("roi_heads", MyHeads()), ("roi_heads.box_predictor", MyPredictor())):
        model = zoo_model(FASTER_RCNN, opts=SLIM)
        owner, _, name = part.rpartition(".")
        setattr(model.get_submodule(owner), name, head)
        message = f"{type(head).__name__} .*explain_outputs .docs/your_own_head.md"
        with pytest.raises(UnsupportedModelError, match=message):
            explain(model, two_images())
