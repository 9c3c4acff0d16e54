"""The meta-architectures that YAML names: plain Detectron2's models, with maps."""

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from oracle import FASTER_RCNN, RETINANET, SLIM, two_images, zoo_model

from odam_d2 import ExplainSettings
from odam_d2.modeling import OdamPanopticFPN

PANOPTIC = "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml"
NARROW = [*SLIM, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8]
OURS = {PANOPTIC: "OdamPanopticFPN", FASTER_RCNN: "OdamRCNN", RETINANET: "OdamRetinaNet"}


def ours(name, *opts):
    return zoo_model(name, opts=[*NARROW, "MODEL.META_ARCHITECTURE", OURS[name], *opts])


def assert_same(plain, found, extra=("odam_maps",)):
    """Instances with the same fields bit for bit, and one more."""
    assert set(found.get_fields()) == {*plain.get_fields(), *extra}
    for name, value in plain.get_fields().items():
        other = found.get(name)
        tensors = (value.tensor, other.tensor) if isinstance(value, Boxes) else (value, other)
        assert torch.equal(*tensors), name


@torch.no_grad()
def test_panoptic_fpn_explains_its_instances():
    plain, model, inputs = zoo_model(PANOPTIC, opts=NARROW), ours(PANOPTIC), two_images()
    assert not model.load_state_dict(plain.state_dict()).missing_keys
    expected, found = plain(inputs), model(inputs)
    assert sum(len(x["instances"]) for x in expected) > 10
    for a, b in zip(expected, found, strict=True):
        assert_same(a["instances"], b["instances"])
        assert torch.equal(a["sem_seg"], b["sem_seg"])
        assert torch.equal(a["panoptic_seg"][0], b["panoptic_seg"][0])
        assert a["panoptic_seg"][1] == b["panoptic_seg"][1]

    raw, stuff = model.inference(inputs, do_postprocess=False)
    assert raw[0].image_size == (128, 200)
    assert raw[0].has("odam_maps")
    assert len(stuff) == 2


@torch.no_grad()
def test_panoptic_fpn_without_targets_is_the_plain_one():
    model, inputs = ours(PANOPTIC, "MODEL.ODAM.TARGETS", []), two_images()
    plain = zoo_model(PANOPTIC, opts=NARROW)
    for a, b in zip(plain(inputs), model(inputs), strict=True):
        assert_same(a["instances"], b["instances"], extra=())


def test_panoptic_fpn_trains_as_the_plain_one():
    gt = Instances((128, 200), gt_boxes=Boxes([[10.0, 10, 90, 100]]), gt_classes=torch.tensor([3]))
    stuff = torch.zeros(128, 200, dtype=torch.long)
    inputs = [{**two_images()[0], "instances": gt, "sem_seg": stuff}]
    losses = []
    opts = ["MODEL.MASK_ON", False]  # no mask annotation needed
    for model in (zoo_model(PANOPTIC, opts=[*NARROW, *opts]), ours(PANOPTIC, *opts)):
        torch.manual_seed(7)
        with EventStorage():
            losses.append(model.train()(inputs))
    assert losses[0].keys() == losses[1].keys()
    assert "loss_sem_seg" in losses[0]
    for key in losses[0]:
        assert torch.equal(losses[0][key], losses[1][key])


@torch.no_grad()
def test_built_from_arguments_without_a_config():
    """As LazyConfig builds models; without settings nothing is explained."""
    plain, inputs = zoo_model(PANOPTIC, opts=NARROW), two_images()
    names = ["backbone", "proposal_generator", "roi_heads", "sem_seg_head"]
    arguments = {name: getattr(plain, name) for name in names}
    arguments |= {
        name: getattr(plain, name).flatten().tolist() for name in ("pixel_mean", "pixel_std")
    }
    silent = OdamPanopticFPN(**arguments).eval()
    assert not silent(inputs)[0]["instances"].has("odam_maps")
    talking = OdamPanopticFPN(**arguments, odam=ExplainSettings(targets=("top",))).eval()
    assert talking(inputs)[0]["instances"].odam_maps.targets == ("top",)


@pytest.mark.parametrize("name", OURS)
@torch.no_grad()
def test_hooks_of_the_model_run_once(name):
    model, calls = ours(name, "MODEL.ODAM.TARGETS", ["class"]), []
    model.register_forward_pre_hook(lambda *_: calls.append("before"))
    model.register_forward_hook(lambda *_: calls.append("after"))
    assert model(two_images())[0]["instances"].has("odam_maps")
    assert calls == ["before", "after"]
