"""D-RISE on real detectors against a slow, plain version; streaming, stopping, resuming."""

import dataclasses

import pytest
import torch
from detectron2.structures import Boxes, Instances, pairwise_iou
from oracle import FASTER_RCNN, RETINANET, SLIM, two_images, zoo_model

from odam_d2 import explain
from odam_d2.core.rise import rise_mask
from odam_d2.modeling.attribution import d_rise
from odam_d2.modeling.settings import DRiseSettings

FEW = DRiseSettings(num_masks=7, grid=5, batch_size=3, seed=2)
OPTS = [*SLIM, "TEST.DETECTIONS_PER_IMAGE", 4]


def rcnn_detections(model, image):
    """Boxes, labels, and probabilities of the kept proposals, by Detectron2's own functions."""
    images = model.preprocess_image([image])
    features = model.backbone(images.tensor)
    proposals, _ = model.proposal_generator(images, features, None)
    heads = model.roi_heads
    pooled = heads.box_pooler(
        [features[f] for f in heads.box_in_features], [x.proposal_boxes for x in proposals]
    )
    predictions = heads.box_predictor(heads.box_head(pooled))
    (found,), (kept,) = heads.box_predictor.inference(predictions, proposals)
    probabilities = heads.box_predictor.predict_probs(predictions, proposals)[0][kept]
    return found.pred_boxes.tensor, found.pred_classes, probabilities[:, :-1]


def retinanet_detections(model, image):
    """As above: a detection's probabilities are those of the anchor whose decoded box it is."""
    images = model.preprocess_image([image])
    features = [model.backbone(images.tensor)[f] for f in model.head_in_features]
    found = model.forward_inference(images, features, model.head(features))[0]
    logits, deltas = model._transpose_dense_predictions(
        list(model.head(features)), [model.num_classes, 4]
    )
    anchors = torch.cat([a.tensor for a in model.anchor_generator(features)])
    boxes = model.box2box_transform.apply_deltas(torch.cat(deltas, dim=1)[0], anchors)
    scores = torch.cat(logits, dim=1)[0].sigmoid()
    rows = []
    for box, label, score in zip(
        found.pred_boxes.tensor, found.pred_classes, found.scores, strict=True
    ):
        distance = (boxes - box).abs().sum(dim=1) + 1e3 * (scores[:, label] - score).abs()
        rows.append(scores[distance.argmin()])
    rows = torch.stack(rows) if rows else scores[:0]
    clipped = found.pred_boxes.clone()
    clipped.clip(found.image_size)
    visible = clipped.nonempty()
    return clipped.tensor[visible], found.pred_classes[visible], rows[visible]


def plain_d_rise(detect, image, settings):
    """Equation 3 and 5 of the paper, one mask, one detection, one pixel-wise sum at a time."""
    boxes, _, wanted = detect(image)
    total = torch.zeros(len(boxes), *image["image"].shape[-2:], dtype=torch.float64)
    for number in range(settings.num_masks):
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + number)
        size = tuple(image["image"].shape[-2:])
        mask = rise_mask(size, (settings.grid,) * 2, settings.keep_prob, generator)
        now, _, probabilities = detect({"image": image["image"] * mask})
        for i in range(len(boxes)):
            best = 0.0
            for j in range(len(now)):
                iou = float(pairwise_iou(Boxes(boxes[i][None]), Boxes(now[j][None])))
                cosine = float(wanted[i] @ probabilities[j])
                cosine /= float(wanted[i].norm() * probabilities[j].norm())
                best = max(best, iou * cosine)
            total[i] += best * mask
    return total / settings.num_masks


@pytest.mark.parametrize(
    ("name", "detect"), [(FASTER_RCNN, rcnn_detections), (RETINANET, retinanet_detections)]
)
def test_equal_to_a_plain_version(name, detect):
    model = zoo_model(name, opts=OPTS)
    image = {"image": two_images()[0]["image"][:, :102]}  # no multiple of 4
    with torch.no_grad():
        expected = plain_d_rise(lambda x: detect(model, x), image, FEW)
    (output,) = explain(model, [image], ("class", "combined"), method="d_rise", d_rise=FEW)
    maps = output["instances"].odam_maps
    assert maps.targets == ("class", "combined")
    assert len(maps) == len(expected) > 0
    for v in range(26):
        rows = expected[:, 4 * v : 4 * v + 4].mean(dim=1)
        cells = rows.unflatten(1, (-1, 4)).mean(dim=2)
        torch.testing.assert_close(maps.values[:, 0, v].double(), cells, rtol=1e-5, atol=1e-7)
    assert (maps.values[:, 0] == maps.values[:, 1]).all()


def fake(count=5):
    """A detector of two boxes of which the first comes back as far as its centre can be seen."""
    boxes = torch.tensor([[8.0, 4, 40, 28], [30.0, 20, 60, 44]])

    def detect(batch):
        detect.calls.append(len(batch))
        outputs = []
        for given in batch:
            seen = given["image"][0, [16, 32], [24, 45]] / 100
            keep = seen > 0.3
            found = Instances((48, 64), pred_boxes=Boxes(boxes[keep]))
            found.scores, found.pred_classes = seen[keep], torch.tensor([1, 2])[keep]
            outputs.append({"instances": found})
        return outputs

    detect.calls = []
    given = {"image": torch.full((3, 48, 64), 100.0)}
    found = detect([given])[0]["instances"]
    detect.calls.clear()
    return detect, given, found


def test_the_map_shows_what_the_detector_needs():
    """A detector that gives no probabilities: only its label counts."""
    detect, given, found = fake()
    maps = d_rise.d_rise_maps(detect, given, found, ("class",), DRiseSettings(num_masks=400))
    peaks = maps.values[:, 0].flatten(1).argmax(dim=1)
    places = torch.stack([peaks // 16, peaks % 16], dim=1) * 4 + 2
    distance = (places - torch.tensor([[16, 24], [32, 45]])).abs().amax(dim=1)
    assert (distance <= 4).all()


def test_batches_do_not_matter_and_stay_small():
    detect, given, found = fake()
    settings = DRiseSettings(num_masks=20, batch_size=6)
    first = d_rise.d_rise_maps(detect, given, found, ("class",), settings)
    assert detect.calls == [6, 6, 6, 2]
    one = dataclasses.replace(settings, batch_size=1)
    second = d_rise.d_rise_maps(detect, given, found, ("class",), one)
    torch.testing.assert_close(first.values, second.values)
    other = dataclasses.replace(settings, seed=1)
    third = d_rise.d_rise_maps(detect, given, found, ("class",), other)
    assert not torch.allclose(first.values, third.values)


def test_stops_when_the_maps_have_settled():
    detect, given, found = fake()
    settings = DRiseSettings(check_every=50, batch_size=10, grid=4, settled=0.9)
    d_rise.d_rise_maps(detect, given, found, ("class",), settings)
    assert 50 <= sum(detect.calls) < 5000
    assert sum(detect.calls) % 50 == 0


def test_an_interrupted_run_goes_on_and_a_finished_one_is_not_done_again(tmp_path):
    detect, given, found = fake()
    settings = DRiseSettings(num_masks=24, check_every=10, batch_size=5, state_dir=str(tmp_path))
    whole = d_rise.d_rise_maps(
        detect, given, found, ("class",), dataclasses.replace(settings, state_dir="")
    )
    detect.calls.clear()

    def interrupted(batch):
        if len(detect.calls) == 2:
            raise KeyboardInterrupt
        return detect(batch)

    with pytest.raises(KeyboardInterrupt):
        d_rise.d_rise_maps(interrupted, given, found, ("class",), settings)
    assert sum(detect.calls) == 10
    again = d_rise.d_rise_maps(detect, given, found, ("class",), settings)
    assert sum(detect.calls) == 24
    torch.testing.assert_close(again.values, whole.values)
    third = d_rise.d_rise_maps(detect, given, found, ("class",), settings)
    assert sum(detect.calls) == 24
    assert (third.values == again.values).all()
    # Another image is another run.
    darker = {"image": given["image"] * 0.9}
    d_rise.d_rise_maps(detect, darker, found, ("class",), settings)
    assert sum(detect.calls) == 48


def test_a_run_that_was_interrupted_at_once_is_not_taken_for_damaged(tmp_path, caplog):
    detect, given, found = fake()
    settings = DRiseSettings(num_masks=5, batch_size=5, state_dir=str(tmp_path))

    def interrupted(batch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        d_rise.d_rise_maps(interrupted, given, found, ("class",), settings)
    assert len(list(tmp_path.iterdir())) == 1
    d_rise.d_rise_maps(detect, given, found, ("class",), settings)
    assert sum(detect.calls) == 5
    assert "damaged" not in caplog.text
