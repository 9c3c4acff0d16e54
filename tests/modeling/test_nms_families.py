"""NMS, soft-NMS and Odam-NMS in every family, against what Detectron2 finds without NMS."""

import pytest
import torch
from detectron2.layers import batched_nms
from detectron2.modeling.meta_arch import RetinaNet
from oracle import SLIM, full_map, two_images, zoo_model
from training_cases import CASES, MASK, PANOPTIC

from odam_d2 import ExplainSettings, UnsupportedModelError, explain, explain_boxes
from odam_d2.core.errors import InputError
from odam_d2.core.nms import odam_nms, soft_nms
from odam_d2.modeling.adapters import build_adapter
from odam_d2.modeling.explanation import class_logit_maps
from odam_d2.modeling.nms import ODAM_NMS_REGISTRY, Candidates, Nms, OdamNms, SoftNms
from odam_d2.modeling.state import preserved

FAMILIES = {
    **CASES,
    "mask": (MASK, ["MODEL.META_ARCHITECTURE", "OdamRCNN", "MODEL.ROI_MASK_HEAD.CONV_DIM", 8]),
    "panoptic": (PANOPTIC, [
        "MODEL.META_ARCHITECTURE", "OdamPanopticFPN", "MODEL.ROI_MASK_HEAD.CONV_DIM", 8,
        "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32]),
}  # fmt: skip
# Untrained scores are nearly equal: a few hundred candidates are those just above this one.
LIMITS = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0123, "MODEL.RPN.POST_NMS_TOPK_TEST", 30,
          "MODEL.RETINANET.TOPK_CANDIDATES_TEST", 25, "MODEL.FCOS.TOPK_CANDIDATES_TEST", 25,
          "MODEL.FCOS.SCORE_THRESH_TEST", 0.0]  # fmt: skip
OFF = ["MODEL.ROI_HEADS.NMS_THRESH_TEST", 1.0, "MODEL.RETINANET.NMS_THRESH_TEST", 1.0,
       "MODEL.FCOS.NMS_THRESH_TEST", 1.0, "TEST.DETECTIONS_PER_IMAGE", 100000]  # fmt: skip
THRESHOLDS = (0.4, 0.9, 0.5)
ODAM = ["MODEL.ODAM.NMS.NAME", "odam_nms", "MODEL.ODAM.NMS.IOU_THRESH", THRESHOLDS[0],
        "MODEL.ODAM.NMS.SIM_THRESH_HIGH", THRESHOLDS[1],
        "MODEL.ODAM.NMS.SIM_THRESH_LOW", THRESHOLDS[2]]  # fmt: skip


def build(family, *opts):
    name, changes = FAMILIES[family]
    return zoo_model(name, opts=[*SLIM, *changes, *LIMITS, *opts])


def candidates_of(family, image):
    """What Detectron2 finds with its NMS off, and the maps of the class logits, in one image."""
    model = build(family, *OFF, "MODEL.ODAM.TARGETS", [])
    if hasattr(model, "roi_heads"):
        found = explain(model, [image], ("class",), score="logit")[0]["instances"]
        return found, found.odam_maps
    # Postprocessing clips a dense detector's boxes; NMS sees them before.
    with preserved(model):
        adapter = build_adapter(model)
        recording = adapter.new_recording()
        view = adapter.recorded_view(recording)
        images = view.preprocess_image([image])
        features = view.backbone(images.tensor)
        features = [features[name] for name in view.head_in_features]
        (found,) = view.forward_inference(images, features, view.head(features))
        return found, class_logit_maps(adapter, ExplainSettings(), recording.traces[0])


def assert_chosen(found, candidates, keep, scores=None):
    expected = candidates[keep]
    expected.pred_boxes = expected.pred_boxes.clone()
    expected.pred_boxes.clip(found.image_size)
    assert expected.pred_boxes.nonempty().all()
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(found.pred_classes, expected.pred_classes)
    assert torch.equal(found.scores, expected.scores if scores is None else scores)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_odam_nms_chooses_among_the_candidates(family):
    image = {"image": two_images()[0]["image"]}
    candidates, maps = candidates_of(family, image)
    assert len(candidates) > 20
    # Whatever is shown, maps are compared without their sign, as published.
    shown = ["MODEL.ODAM.TARGETS", ["left"], "MODEL.ODAM.SIGNED", True]
    found = build(family, *ODAM, *shown, "MODEL.ODAM.NMS.RECORD", True)
    (output,) = found([image])
    expected = odam_nms(
        candidates.pred_boxes.tensor,
        candidates.scores,
        candidates.pred_classes,
        maps.similarity("class"),
        *THRESHOLDS,
    )
    keep = expected.keep[:12]  # TEST.DETECTIONS_PER_IMAGE
    assert_chosen(output["instances"], candidates, keep)
    record = output["candidates"]
    assert torch.equal(record.suppressed_by, expected.suppressor)
    assert record.kept.nonzero()[:, 0].tolist() == sorted(keep.tolist())
    # The survivors have the maps that they would have had anyway.
    assert output["instances"].odam_maps.targets == ("left",)
    assert (output["instances"].odam_maps.signed, record.odam_maps.signed) == (True, False)
    assert len(output["instances"].odam_maps) == len(keep)


@pytest.mark.parametrize("family", ["fpn", "cascade", "mask", "retinanet", "fcos"])
@torch.no_grad()
def test_maps_of_the_survivors_are_those_of_plain_detections(family):
    image = {"image": two_images()[0]["image"]}
    model = build(family, "MODEL.ODAM.NMS.NAME", "nms")
    (found,), (plain,) = model([image]), build(family)([image])
    found, plain = found["instances"], plain["instances"]
    assert_chosen(found, plain, torch.arange(len(plain)))
    for i in range(len(plain)):
        for t in range(5):
            expected = full_map(plain.odam_maps, i, t)
            error = (full_map(found.odam_maps, i, t) - expected).abs().max()
            assert error <= 1e-5 * expected.max()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_nms_is_detectrons_own(family):
    images = two_images()
    plain = build(family, "MODEL.ODAM.TARGETS", [])(images)
    found = build(family, "MODEL.ODAM.TARGETS", [], "MODEL.ODAM.NMS.NAME", "nms")(images)
    for a, b in zip(plain, found, strict=True):
        a, b = a["instances"], b["instances"]
        assert set(a.get_fields()) == set(b.get_fields())
        assert_chosen(b, a, torch.arange(len(a)))
        assert a.image_size == b.image_size
        if a.has("pred_masks"):
            assert torch.equal(a.pred_masks, b.pred_masks)


@pytest.mark.parametrize("family", ["fpn", "c4", "cascade", "retinanet", "fcos"])
@pytest.mark.parametrize("method", ["linear", "gaussian"])
@torch.no_grad()
def test_soft_nms_keeps_its_scores(family, method):
    image = {"image": two_images()[1]["image"]}
    candidates, _ = candidates_of(family, image)
    opts = ["MODEL.ODAM.NMS.NAME", "soft_nms", "MODEL.ODAM.NMS.SOFT_METHOD", method]
    (output,) = build(family, *opts)([image])
    expected = soft_nms(
        candidates.pred_boxes.tensor, candidates.scores, candidates.pred_classes, method
    )
    assert_chosen(output["instances"], candidates, expected.keep[:12], expected.scores[:12])
    assert len(output["instances"].odam_maps) == len(output["instances"])


@pytest.mark.parametrize("family", ["fpn", "retinanet"])
@torch.no_grad()
def test_records_are_in_the_frame_of_the_output(family):
    """Two images of different sizes, the first one shown at twice its size."""
    model = build(family, "MODEL.ODAM.NMS.NAME", "nms", "MODEL.ODAM.NMS.RECORD", True)
    for image, output in zip(two_images(), model(two_images()), strict=True):
        found, record = output["instances"], output["candidates"]
        assert record.image_size == found.image_size
        assert record.kept.sum() >= len(found)  # postprocessing drops boxes without an area
        kept = record.pred_boxes.tensor[record.kept]
        for box in found.pred_boxes.tensor:
            assert (kept - box).abs().amax(dim=1).min() < 1e-3
        suppressed = ~record.kept & (record.suppressed_by >= 0)
        by = record.suppressed_by[suppressed]
        assert (record.pred_classes[by] == record.pred_classes[suppressed]).all()
        assert (record.scores[by] >= record.scores[suppressed]).all()
        # IoU is that of the network's frame, where boxes are not clipped: larger than 0.5 there.
        assert (record.suppressed_iou[suppressed] > 0.49).all()
        assert image["image"].shape[1:] != found.image_size or "height" not in image


@torch.no_grad()
def test_a_plain_model_can_be_given_an_nms():
    name, _ = FAMILIES["fpn"]
    plain, image = zoo_model(name, opts=[*SLIM, *LIMITS]), two_images()[:1]
    nms = OdamNms(iou_thresh=0.4, sim_thresh_high=0.9, sim_thresh_low=0.5)
    found = explain(plain, image, ("class",), nms=nms, record=True)[0]
    expected = build("fpn", *ODAM)(image)[0]["instances"]
    assert_chosen(found["instances"], expected, torch.arange(len(expected)))
    assert len(found["candidates"]) > len(expected)


@pytest.mark.parametrize("family", ["fpn", "retinanet"])
@torch.no_grad()
def test_no_candidates_at_all(family):
    limit = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.99, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.99]
    for name in ("nms", "soft_nms", "odam_nms"):
        record = ["MODEL.ODAM.NMS.NAME", name, "MODEL.ODAM.NMS.RECORD", True]
        (output,) = build(family, *record, *limit)(two_images()[:1])
        assert len(output["instances"]) == len(output["candidates"]) == 0
        assert len(output["instances"].odam_maps) == 0


def test_training_knows_nothing_of_it():
    model = build("fpn", *ODAM).train()
    with pytest.raises(AssertionError):  # Detectron2's own: no instances to train with
        model(two_images())


@pytest.mark.parametrize(
    ("opts", "sentence"),
    [
        (["NAME", "odam"], "'odam'; the registered ones are nms, odam_nms, soft_nms"),
        (["NAME", "odam_nms", "IOU_THRESH", 1.5], "MODEL.ODAM.NMS.IOU_THRESH is 1.5"),
        (["NAME", "odam_nms", "SIM_THRESH_HIGH", 0.2],
         "MODEL.ODAM.NMS.SIM_THRESH_HIGH is 0.2, below MODEL.ODAM.NMS.SIM_THRESH_LOW, 0.3"),
        (["NAME", "odam_nms", "GRID_STRIDE", 0], "MODEL.ODAM.NMS.GRID_STRIDE is 0"),
        (["NAME", "soft_nms", "SOFT_METHOD", "cubic"], "MODEL.ODAM.NMS.SOFT_METHOD"),
        (["NAME", "soft_nms", "SOFT_SIGMA", 0.0], "MODEL.ODAM.NMS.SOFT_SIGMA is 0.0"),
        (["NAME", "soft_nms", "SOFT_IOU_THRESH", -1.0], "MODEL.ODAM.NMS.SOFT_IOU_THRESH is -1.0"),
        (["NAME", "soft_nms", "SOFT_SCORE_THRESH", 2.0], "MODEL.ODAM.NMS.SOFT_SCORE_THRESH is 2"),
        (["NAME", "odam_nms", "SOFT_METHOD", "gausian"], "MODEL.ODAM.NMS.SOFT_METHOD is 'gausian'"),
        (["SIM_THRESH_HIGH", 70.0], "MODEL.ODAM.NMS.SIM_THRESH_HIGH is 70.0"),
        (["RECORD", True], "MODEL.ODAM.NMS.RECORD needs an NMS"),
    ],
)  # fmt: skip
def test_wrong_values_are_named(opts, sentence):
    keys = [f"MODEL.ODAM.NMS.{x}" if i % 2 == 0 else x for i, x in enumerate(opts)]
    with pytest.raises(InputError) as error:
        build("fpn", *keys)
    assert sentence in str(error.value)


@torch.no_grad()
def test_an_nms_of_ones_own_by_its_name():
    class OnlyTheBest:
        needs_maps = False

        def __init__(self, cfg):
            pass

        def __call__(self, candidates):
            keep = torch.zeros(1, dtype=torch.int64)
            result = Nms()(candidates)
            return result._replace(keep=keep, scores=candidates.scores[keep])

    ODAM_NMS_REGISTRY._do_register("only_the_best", OnlyTheBest)
    try:
        (output,) = build("retinanet", "MODEL.ODAM.NMS.NAME", "only_the_best")(two_images()[:1])
    finally:
        ODAM_NMS_REGISTRY._obj_map.pop("only_the_best")
    assert len(output["instances"]) == 1


def test_nms_follows_detectrons_arithmetic():
    """Where ours differs in the last digit at the threshold, Detectron2's decides."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.randint(0, 8, (400, 2), generator=generator).float()
    boxes = torch.cat([corner, corner + 4], dim=1)
    scores = torch.linspace(1, 0, 400)
    classes = torch.zeros(400, dtype=torch.int64)
    for thresh in (1 / 3, 0.6, 1 / 7):
        found = Nms()(Candidates(boxes, scores, classes, thresh))
        assert torch.equal(found.keep, batched_nms(boxes, scores, classes, thresh))
        assert (found.suppressor[found.keep] == -1).all()
        assert found.iou[found.keep].isnan().all()
    assert Nms().needs_maps is False
    assert SoftNms().needs_maps is False


def test_candidates_without_maps_have_none_to_compare():
    boxes = torch.tensor([[0.0, 0, 4, 4], [1, 0, 5, 4]])
    candidates = Candidates(boxes, torch.tensor([0.9, 0.8]), torch.zeros(2, dtype=torch.int64), 0.5)
    with pytest.raises(InputError, match="these candidates have none"):
        OdamNms()(candidates)


def test_given_boxes_need_a_target_whatever_the_nms():
    inputs = two_images()[:1]
    boxes, classes = [torch.tensor([[5.0, 5, 40, 40]])], [torch.tensor([0])]
    with pytest.raises(InputError, match="no targets to explain"):
        explain_boxes(build("retinanet"), inputs, boxes, classes, targets=(), nms=Nms())


class Rescored(RetinaNet):
    """Changes scores at the very end, so that there are no maps of what it returns."""

    def forward(self, batched_inputs):
        results = super().forward(batched_inputs)
        for result in results:
            found = result["instances"]
            found.scores = found.scores / 2
            for name in set(found.get_fields()) - {"pred_boxes", "scores", "pred_classes"}:
                found.remove(name)
        return results


def test_an_nms_alone_asks_nothing_of_what_the_model_does_afterwards():
    model = build("retinanet")
    plain = explain(model, two_images(), (), nms=OdamNms())
    model.__class__ = Rescored
    with pytest.raises(UnsupportedModelError, match="what it returns is not what leaves its head"):
        explain(model, two_images(), ("class",), nms=OdamNms())
    for before, after in zip(plain, explain(model, two_images(), (), nms=OdamNms()), strict=True):
        assert torch.equal(before["instances"].scores / 2, after["instances"].scores)
        assert not after["instances"].has("odam_maps")
