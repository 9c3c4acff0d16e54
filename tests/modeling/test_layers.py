"""Maps on other layers than the one that the head reads."""

import pytest
import torch
import zoo
from hypothesis import given
from hypothesis import strategies as st
from oracle import FASTER_RCNN, RETINANET, SLIM, detections_error, two_images, zoo_model
from torch import nn

from odam_d2 import explain, explain_boxes
from odam_d2.core.errors import InputError
from odam_d2.modeling.layers import captured, find_layer, layer_names
from odam_d2.modeling.map_geometry import map_geometry


@pytest.mark.parametrize(
    ("name", "layer", "stride"),
    [
        (FASTER_RCNN, "res4", 16),
        (FASTER_RCNN, "backbone.bottom_up.res2.1", 4),
        ("Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml", "res5", 32),
        (RETINANET, "bottom_up.res3", 8),
    ],
)
def test_layers_of_a_resnet(name, layer, stride):
    """The reference's leaf is that layer: res4 is read by the pyramid and by res5."""
    model = zoo_model(name, opts=SLIM)
    module = model.get_submodule(
        layer if layer.startswith("backbone") else f"backbone.bottom_up.{layer.split('.')[-1]}"
    )
    for image in two_images():
        error = detections_error(model, image, limit=3, layer=layer, module=(module, stride, 0))
        assert error <= 1e-5


def test_a_block_of_vit():
    """Its output has the channels last, and its image is padded to a square."""
    model = zoo.build(zoo.recipe("ViTDet/mask_rcnn_vitdet_b.py"))
    model.roi_heads.box_predictor.test_topk_per_image = 2  # one backward pass for each map
    block, image = model.backbone.net.blocks[1], two_images()[0]
    found = explain(model, [image], layer="net.blocks.1")[0]["instances"].odam_maps
    assert found.grid_sizes.unique().tolist() == [16]  # 256 / 16
    assert found.strides.unique().tolist() == [16.0]
    assert detections_error(model, image, layer="blocks.1", module=(block, 16, 2)) <= 1e-5


def test_a_block_of_swin():
    """Its output is a sequence of cells: a map of the same values must come out."""
    model = zoo.build(zoo.recipe("Swin/mask_rcnn_swin_t_FPN.py"))
    image = {"image": two_images()[0]["image"]}
    layer = "bottom_up.layers.2.blocks.1"
    maps = explain(model, [image], layer=layer)[0]["instances"].odam_maps
    assert maps.grid_sizes[0].tolist() == [128 // 16, 224 // 16]
    assert maps.strides.unique().tolist() == [16.0]
    leaf = []

    def make_leaf(_module, _args, output):
        leaf.append(output.detach().requires_grad_())
        return leaf[0]

    handle = model.get_submodule(f"backbone.{layer}").register_forward_hook(make_leaf)
    with torch.enable_grad():
        best = model.inference([image], do_postprocess=False)[0].scores[0]
    handle.remove()
    (gradient,) = torch.autograd.grad(best, leaf)
    expected = (gradient * leaf[0].detach()).sum(-1).relu().view(8, 14)
    error = (maps.select("class").values[0, 0] - expected).abs().max()
    assert error <= 1e-5 * expected.max()


def test_given_boxes_and_zero_detections():
    model = zoo_model(FASTER_RCNN, opts=[*SLIM, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 2.0])
    for result in explain(model, two_images(), layer="res3"):
        assert len(result["instances"].odam_maps) == 0
    boxes = [torch.tensor([[5.0, 5, 60, 40]]), torch.zeros(0, 4)]
    classes = [torch.tensor([3]), torch.zeros(0)]
    found = explain_boxes(model, two_images(), boxes, classes, layer="res3")
    assert [len(r["instances"].odam_maps) for r in found] == [1, 0]
    assert (found[0]["instances"].odam_maps.values.amax((2, 3)) > 0).any()


def test_one_level_of_a_pyramid_is_told():
    """Boxes of two sizes are read from two levels: one of them does not depend on the other's."""
    model = zoo_model(FASTER_RCNN, opts=SLIM)
    boxes, classes = [torch.tensor([[5.0, 5, 40, 40], [0, 0, 380, 250]])], [torch.tensor([3, 3])]
    with pytest.raises(InputError, match=r"1 of 2 .* on layer 'fpn_output2' \(1 of image 0"):
        explain_boxes(model, two_images()[:1], boxes, classes, layer="fpn_output2")
    small = [boxes[0][:1]], [classes[0][:1]]
    found = explain_boxes(model, two_images()[:1], *small, layer="fpn_output2")
    assert found[0]["instances"].odam_maps.values.any()


def test_a_detector_that_says_the_same_of_all_images_has_maps_of_zeros():
    """Boxes of two sizes, read from two levels that both come from the layer."""
    model = zoo_model(FASTER_RCNN, opts=SLIM)
    for layer in (model.roi_heads.box_predictor.cls_score, model.roi_heads.box_predictor.bbox_pred):
        nn.init.zeros_(layer.weight)
    boxes, classes = [torch.tensor([[5.0, 5, 40, 40], [0, 0, 380, 250]])], [torch.tensor([3, 3])]
    (found,) = explain_boxes(model, two_images()[:1], boxes, classes, layer="res5")
    maps = found["instances"].odam_maps
    assert maps.values.shape[0] == 2
    assert not maps.values.any()


@pytest.mark.parametrize("settings", [{"layer": "res4"}, {"method": "input_gradient"}])
def test_a_backbone_without_gradients_is_told(settings):
    """Its maps were zero."""
    model = zoo_model(RETINANET, opts=SLIM)

    class Guarded(type(model.backbone)):
        forward = torch.no_grad()(type(model.backbone).forward)

    model.backbone.__class__ = Guarded
    with pytest.raises(InputError, match=r"do not depend on (layer 'res4'|the images)"):
        explain(model, two_images(), ("class",), **settings)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("res9", "no layer 'res9'; there are .*bottom_up.res4, .*bottom_up.res5.2"),
        ("0", "layer '0' could be .*bottom_up.res2.0"),
        ("bottom_up", "output of layer 'bottom_up' .dict. is no feature map"),
    ],
)
def test_wrong_layers_get_one_sentence_and_leave_no_hook(layer, message):
    model = zoo_model(FASTER_RCNN, opts=SLIM)
    with pytest.raises(InputError, match=message):
        explain(model, two_images(), layer=layer)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("name", "among", "not_among"),
    [
        ("COCO-Detection/faster_rcnn_R_50_C4_1x.yaml", {"stem", "res2", "res4.5"}, {"res5"}),
        ("ViTDet/mask_rcnn_vitdet_b.py", {"net.blocks.2", "net.patch_embed"}, {"net"}),
        ("Swin/mask_rcnn_swin_t_FPN.py", {"bottom_up.layers.3.blocks.0"}, {"bottom_up.layers.3"}),
        ("MViT/mask_rcnn_mvitv2_t_FPN.py", {"bottom_up.blocks.4"}, {"bottom_up.blocks"}),
        ("COCO-InstanceSegmentation/mask_rcnn_regnety_4gf_dds_fpn_1x.py", {"bottom_up.s3"}, set()),
    ],
)
def test_every_listed_layer_can_be_explained(name, among, not_among):
    model = zoo.build(zoo.recipe(name))
    names = set(layer_names(model.backbone))
    assert among <= names
    assert not not_among & names
    unit = max(model.backbone.size_divisibility, 32)
    size = (2 * unit, 3 * unit)
    for layer in sorted(names):
        with torch.no_grad(), captured(model.backbone, layer, size) as found:
            model.backbone(torch.zeros(1, 3, *size))
        assert found.stride >= 2
    assert not any(m._forward_hooks for m in model.modules())


def test_find_layer_prefers_a_whole_path():
    network = torch.nn.ModuleDict(
        {"a": torch.nn.ReLU(), "b": torch.nn.ModuleDict({"a": torch.nn.GELU()})}
    )
    assert find_layer(network, "a") is network["a"]
    assert find_layer(network, "b.a") is network["b"]["a"]


@given(
    st.integers(1, 40), st.integers(1, 40), st.sampled_from([2, 4, 8, 16, 32]),
    st.sampled_from([3, 50, 97]), st.integers(0, 31),
)  # fmt: skip
def test_geometry_of_maps(h, w, stride, channels, short):
    """Convolutions round sizes up; whatever is said must be true."""
    size = (h * stride - short % stride, w * stride - short % stride)
    reading = map_geometry(torch.zeros(1, channels, h, w), size)
    if reading is not None:
        order, grid, found = reading
        assert tuple(-(-pixels // found) for pixels in size) == grid
        if order == (0, 1, 2, 3) and min(h, w) > 1 and short % stride == 0:
            assert found == stride
    if short % stride == 0 and min(h, w) > 1 and len({h, w, channels}) == 3:
        tokens = map_geometry(torch.zeros(1, h * w, channels), size)
        assert tokens is not None
        assert tokens[1:] == ((h, w), stride)
