"""What losses on heat maps see: the positives of each image, and their exact maps."""

import pytest
import torch
from detectron2.modeling.meta_arch import FCOS, RetinaNet
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, pairwise_iou
from hypothesis import given
from hypothesis import strategies as st
from training_cases import (
    Recorder,
    image_without_objects,
    labelled_images,
    losses_of,
    training_model,
)

from odam_d2 import explain_boxes
from odam_d2.modeling.adapters import build_adapter
from odam_d2.modeling.attribution.head_maps import autograd_head_maps
from odam_d2.modeling.losses import Labels, choose
from odam_d2.modeling.targets import ClassScore, Targets
from odam_d2.modeling.training import dense as dense_training
from odam_d2.modeling.training.view import positives as positives_of


@pytest.fixture
def spied(monkeypatch):
    """What Detectron2 itself trains on: proposals of box predictors, labels of anchors."""
    calls = {"proposals": [], "anchors": []}
    losses = FastRCNNOutputLayers.losses

    def spy_losses(self, predictions, proposals):
        calls["proposals"].append(
            [(p.proposal_boxes.tensor.clone(), p.gt_classes.clone(), p.gt_boxes.tensor.clone())
             for p in proposals]
        )  # fmt: skip
        return losses(self, predictions, proposals)

    monkeypatch.setattr(FastRCNNOutputLayers, "losses", spy_losses)
    for dense in (RetinaNet, FCOS):
        monkeypatch.setattr(dense, "label_anchors", _spying(dense.label_anchors, calls["anchors"]))
    return calls


def _spying(label_anchors, calls):
    def spy(self, anchors, gt_instances):
        labels = label_anchors(self, anchors, gt_instances)
        calls.append((anchors, labels))
        return labels

    return spy


def assert_same_maps(found, expected):
    """Relative to each map's peak, as float32 allows."""
    assert found.shape == expected.shape
    peak = expected.amax(dim=(1, 2), keepdim=True)
    assert (peak > 0).float().mean() > 0.5
    assert ((found - expected).abs() <= 1e-5 * peak + 1e-12).all()


def recorded(case, inputs, *opts):
    model = training_model(case, *opts)
    recorder = model.odam_training.loss = Recorder()
    losses, _ = losses_of(model, inputs)
    return model, recorder.batches, losses


@pytest.mark.parametrize("case", ["retinanet", "fcos"])
def test_the_first_and_the_last_anchor_of_every_level(case):
    """Anchors are counted over all levels: a level begins where the one before has ended."""
    model = training_model(case)
    adapter = build_adapter(model)
    width = 32 if case == "fcos" else 16
    features = [torch.rand(1, width, rows, rows + 1) for rows in (6, 4, 3, 2, 1)]
    anchors = model.anchor_generator(features)
    lengths = [len(of_level) for of_level in anchors]
    matched = torch.full((sum(lengths),), 80)
    boxes = torch.cat([of_level.tensor for of_level in anchors])
    ends = torch.tensor(lengths).cumsum(0)
    positives = sorted({*(ends - torch.tensor(lengths)).tolist(), *(ends - 1).tolist()})
    matched[positives] = torch.arange(len(positives))
    deltas = model.head(features)[1]
    recording = adapter.new_recording()
    (origins,), (labels,) = dense_training._labels(
        adapter, recording, features, deltas, ([matched], [boxes])
    )
    expected = [[level, at] for level, n in enumerate(lengths) for at in sorted({0, n - 1})]
    assert origins.tolist() == expected
    assert labels.classes.tolist() == list(range(len(positives)))


@pytest.mark.parametrize("case", ["fpn", "conv_head", "c4"])
def test_two_stage_maps_are_those_of_explaining_the_positives(case, spied, together):
    inputs = labelled_images()
    model, (batch,), _ = recorded(case, inputs)
    (proposals,) = spied["proposals"]
    rows = [classes < 80 for _, classes, _ in proposals]
    boxes = [p[row] for (p, _, _), row in zip(proposals, rows, strict=True)]
    classes = [c[row] for (_, c, _), row in zip(proposals, rows, strict=True)]
    assert [len(p) for p in batch] == [len(c) for c in classes]
    assert min(len(p) for p in batch) > 3
    plain = [{"image": x["image"]} for x in inputs]
    expected = explain_boxes(model, plain, boxes, classes, "class", score="logit")
    for positives, of_image, label in zip(batch, expected, classes, strict=True):
        assert_same_maps(positives.maps.detach(), of_image["instances"].odam_maps.on_grid(16)[:, 0])
        assert torch.equal(positives.labels.classes, label)


def test_stages_of_a_cascade_have_their_own_positives(spied):
    _, stages, _ = recorded("cascade", labelled_images())
    assert len(stages) == len(spied["proposals"]) == 3
    for batch, proposals in zip(stages, spied["proposals"], strict=True):
        assert [len(p) for p in batch] == [int((c < 80).sum()) for _, c, _ in proposals]
    # Each stage asks for more overlap than the one before.
    assert sum(map(len, stages[0])) > sum(map(len, stages[2])) > 0


def test_cascade_maps_are_those_of_the_stage_alone(spied):
    """A stage's logit by its own head, pooled by Detectron2, each positive by itself."""
    inputs = labelled_images()[:1]
    model, stages, _ = recorded("cascade", inputs)
    heads = model.roi_heads
    with torch.no_grad():
        features = model.backbone(model.preprocess_image(inputs).tensor)
    leaves = [features[name].detach().requires_grad_() for name in heads.box_in_features]
    stage, ((boxes, classes, _),) = 1, spied["proposals"][1]
    rows = classes < 80
    pooled = heads.box_pooler(leaves, [Boxes(boxes[rows])])
    logits = heads.box_predictor[stage](heads.box_head[stage](pooled))[0]
    (positives,) = stages[stage]
    for i, label in enumerate(classes[rows].tolist()):
        gradients = torch.autograd.grad(logits[i, label], leaves, retain_graph=True)
        level = max(range(4), key=lambda n: float(gradients[n].abs().sum()))
        values = (gradients[level] * leaves[level]).sum(1, keepdim=True)[0].relu()
        stride = 4 * 2**level
        expected = _resampled(values[0].detach(), stride, (128, 200))
        assert_same_maps(positives.maps[i : i + 1].detach(), expected[None])


def _resampled(values, stride, size):
    """To cells of 16 pixels by the rule of centres, one cell after the other."""
    shape = [-(-side // 16) for side in size]
    out = torch.zeros(shape)

    def weights(j, cells):
        position = min(max((j + 0.5) * 16 / stride - 0.5, 0), cells - 1)
        reach = max(1.0, 16 / stride)
        weight = (1 - (torch.arange(cells) - position).abs() / reach).clamp(min=0)
        return weight / weight.sum()

    for v in range(shape[0]):
        for u in range(shape[1]):
            row, column = weights(v, values.shape[0]), weights(u, values.shape[1])
            out[v, u] = row @ values @ column
    return out


@pytest.mark.parametrize("case", ["retinanet", "fcos"])
def test_dense_maps_are_those_of_autograd(case, spied):
    inputs = labelled_images()
    model, (batch,), _ = recorded(case, inputs)
    assert_dense_maps(model, inputs, batch, spied["anchors"][0])


def assert_dense_maps(model, inputs, batch, labelled):
    """Against one backward pass of the head for each positive, group norm held constant."""
    anchors, (labels, _) = labelled
    ends = torch.tensor([len(a) for a in anchors]).cumsum(0)
    origins, classes = [], []
    for of_image in labels:
        rows = ((of_image >= 0) & (of_image < model.num_classes)).nonzero()[:, 0]
        level = (rows[:, None] >= ends).sum(dim=1)
        origins.append(
            torch.stack([level, rows - (ends - ends.diff(prepend=ends[:1] * 0))[level]], 1)
        )
        classes.append(of_image[rows])
    assert [len(p) for p in batch] == [len(c) for c in classes]
    assert min(len(p) for p in batch) > 3
    adapter = build_adapter(model)
    with torch.no_grad():
        images = model.preprocess_image(inputs)
        features = model.backbone(images.tensor)
        features = [features[name] for name in model.head_in_features]
        recording, outputs = adapter.new_recording(), model.head(features)
        trace = adapter.trace_anchors(recording, images, features, outputs, origins, classes)
        targets = Targets([ClassScore("class", None, "logit")])
        maps = autograd_head_maps(adapter, trace, targets, 0.0, 2**26)
        windows, labels = (maps.values.relu(), maps.origins), [p.labels for p in batch]
        expected = positives_of(adapter, trace, windows, labels, 16)
    for positives, of_image in zip(batch, expected, strict=True):
        assert_same_maps(positives.maps.detach(), of_image.maps)


def test_batch_norm_in_training_takes_the_statistics_of_the_batch(spied):
    inputs = labelled_images()
    model, (batch,), _ = recorded("retinanet_bn", inputs)
    # The same statistics as running ones: an average with momentum 1 over one batch is its own.
    norms = [m for m in model.head.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    losses_of(model, inputs)
    images = model.preprocess_image(inputs)
    cells = [len(inputs) * f.shape[-2] * f.shape[-1] for f in _features(model, images)]
    for number, norm in enumerate(norms):
        count = cells[number % len(cells)]
        norm.running_var *= (count - 1) / count  # torch keeps the unbiased one
    model.eval()
    assert_dense_maps(model, inputs, batch, spied["anchors"][0])


@torch.no_grad()
def _features(model, images):
    features = model.backbone(images.tensor)
    return [features[name] for name in model.head_in_features]


@pytest.mark.parametrize("case", ["fpn", "retinanet"])
def test_labels_say_which_object_and_how_well(case):
    inputs = labelled_images()
    _, (batch,), _ = recorded(case, inputs)
    for positives, image in zip(batch, inputs, strict=True):
        labels, gt = positives.labels, image["instances"]
        ious = pairwise_iou(gt.gt_boxes, Boxes(labels.boxes))
        for number in labels.objects.unique():
            of_object = labels.objects == number
            # One ground-truth object whose IoUs these are, and which has their class.
            fits = ((ious[:, of_object] - labels.ious[of_object]).abs() < 1e-5).all(dim=1)
            assert fits.sum() == 1
            assert (labels.classes[of_object] == gt.gt_classes[fits]).all()
        assert len(labels.objects.unique()) == len(gt)


@pytest.mark.parametrize("case", ["fpn", "c4", "cascade", "retinanet", "fcos"])
def test_without_positives_the_loss_is_a_zero_with_a_graph(case):
    for inputs in ([image_without_objects()], [image_without_objects(), labelled_images()[0]]):
        model = training_model(case)
        losses, _ = losses_of(model, inputs)
        assert losses["loss_odam"].requires_grad
        assert (losses["loss_odam"] == 0) == (len(inputs) == 1)
        losses["loss_odam"].backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("case", ["fpn", "retinanet"])
def test_max_samples_bounds_each_image(case):
    _, (batch,), _ = recorded(case, labelled_images(), "MODEL.ODAM.LOSS.MAX_SAMPLES", 4)
    assert [len(p) for p in batch] == [4, 4]
    # Every object keeps its best ones.
    assert [len(p.labels.objects.unique()) for p in batch] == [3, 2]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=20), st.integers(1, 8))
def test_samples_are_chosen_in_turns(positives, most):
    objects = torch.tensor([o for o, _ in positives], dtype=torch.int64)
    ious = torch.tensor([float(i) for _, i in positives])
    labels = Labels(objects, objects, torch.zeros(len(objects), 4), ious)
    chosen = choose(labels, most).tolist()
    # Plainly: in every round each object that has one left gives its best, first of equals.
    left = {o: sorted((i for i in range(len(positives)) if positives[i][0] == o),
                      key=lambda i: (-positives[i][1], i)) for o in range(4)}  # fmt: skip
    rounds = [[left[o].pop(0) for o in range(4) if left[o]] for _ in range(20)]
    expected = [i for of_round in rounds for i in of_round][:most]
    assert chosen == sorted(expected)


def test_objects_with_the_same_box_are_one():
    """As for Detectron2, whose matcher takes the first of them: they cannot be told apart."""
    gt = torch.tensor([[0.0, 0, 9, 9], [5, 5, 9, 9], [0, 0, 9, 9]])
    labels = Labels.of_matches(torch.zeros(3, dtype=torch.int64), gt, gt)
    assert labels.objects[0] == labels.objects[2] != labels.objects[1]
    assert labels.ious.tolist() == [1, 1, 1]
