"""Odam-Train in detectors: gradient, schedule, precision, processes, what it leaves alone."""

from pathlib import Path

import pytest
import torch
from detectron2.config import LazyCall, LazyConfig, instantiate
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn
from training_cases import Recorder, labelled_images, losses_of, training_model

from odam_d2.core.errors import InputError
from odam_d2.core.odam_train import Pairs, consistency, object_pairs, separation
from odam_d2.modeling import OdamRetinaNet, UnsupportedModelError
from odam_d2.modeling.losses import (
    ODAM_LOSS_REGISTRY,
    Labels,
    OdamTraining,
    OdamTrainLoss,
    Positives,
)


class FixedBoxes(nn.Module):
    """
    A loss whose view of predicted boxes does not change: those enter it without a graph, as
    weights, so finite differences must not see them move.
    """

    def __init__(self, loss):
        super().__init__()
        self.loss, self.labels = loss, None

    def forward(self, batch):
        self.labels = self.labels or [positives.labels for positives in batch]
        pairs = zip(batch, self.labels, strict=True)
        return self.loss([Positives(positives.maps, labels) for positives, labels in pairs])


def dense_problem(case):
    """Loss of a whole dense detector in float64, and the weights of its class tower."""
    model = training_model(case, dtype=torch.float64)
    inputs = labelled_images(torch.float64)
    model.odam_training.loss = FixedBoxes(model.odam_training.loss)
    # Biases only move ReLUs: the derivative by them is zero almost everywhere.
    tower = model.head.cls_subnet.named_parameters()
    weights = [parameter for name, parameter in tower if name.endswith("weight")]
    weights += [model.head.cls_score.weight, model.backbone.fpn_output3.weight]
    return lambda: losses_of(model, inputs)[0]["loss_odam"], weights


def two_stage_problem(case):
    """
    Loss of a two-stage detector's heads in float64 on proposals that are given: Detectron2's RPN
    works in float32.
    """
    model = training_model(case, dtype=torch.float64)
    inputs = labelled_images(torch.float64)
    model.odam_training.loss = FixedBoxes(model.odam_training.loss)
    heads = model._training_view(model.odam_training).roi_heads
    images = model.preprocess_image(inputs)
    targets = [x["instances"] for x in inputs]
    proposals = [near(gt) for gt in targets]

    def loss():
        torch.manual_seed(0)
        with EventStorage():
            features = model.backbone(images.tensor)
            given = [Instances(p.image_size, **p.get_fields()) for p in proposals]
            return heads(images, features, given, targets)[1]["loss_odam"]

    predictor = heads.box_predictor
    head = heads.res5 if case == "c4" else heads.box_head
    weights = [p for p in head.parameters() if p.requires_grad and p.dim() > 1][:3]
    last = model.backbone.res4[0].conv1 if case == "c4" else model.backbone.fpn_output2
    return loss, [*weights, predictor.cls_score.weight, last.weight]


def near(gt):
    """Proposals close to the objects, the same ones every time."""
    generator = torch.Generator().manual_seed(1)
    boxes = gt.gt_boxes.tensor.repeat(6, 1)
    boxes = boxes + 6 * torch.randn(boxes.shape, generator=generator, dtype=boxes.dtype)
    boxes = Boxes(boxes)
    boxes.clip(gt.image_size)
    logits = torch.zeros(len(boxes), dtype=boxes.tensor.dtype)
    return Instances(gt.image_size, proposal_boxes=boxes, objectness_logits=logits)


@pytest.mark.parametrize("case", ["fpn", "conv_head", "c4", "retinanet", "retinanet_bn", "fcos"])
def test_gradient_is_that_of_finite_differences(case):
    """Second order: through the gradients that maps are made of, to every weight they depend on."""
    dense = case in ("retinanet", "retinanet_bn", "fcos")
    loss, weights = (dense_problem if dense else two_stage_problem)(case)
    gradients = torch.autograd.grad(loss(), weights)
    for weight, gradient in zip(weights, gradients, strict=True):
        direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)).double()
        direction /= direction.norm() / weight.detach().norm().clamp(min=1)
        step = 1e-6
        with torch.no_grad():
            weight += step * direction
            ahead = loss().item()
            weight -= 2 * step * direction
            behind = loss().item()
            weight += step * direction
        expected = (ahead - behind) / (2 * step)
        found = (gradient * direction).sum().item()
        assert found == pytest.approx(expected, rel=2e-3, abs=1e-7)
        assert abs(found) > 1e-8


ALL = ["fpn", "c4", "cascade", "retinanet", "fcos"]


@pytest.mark.parametrize("case", ALL)
def test_other_losses_and_random_numbers_stay_as_they_are(case):
    """Bit for bit, and the next random number is the same: no sampling is disturbed."""
    model, inputs = training_model(case), labelled_images()
    with_loss, _ = losses_of(model, inputs)
    after = torch.rand(1)
    plain_model = training_model(case, "MODEL.ODAM.LOSS.NAME", "")
    assert plain_model.odam_training is None
    plain, _ = losses_of(plain_model, inputs)
    assert torch.equal(after, torch.rand(1))
    assert set(with_loss) == {*plain, "loss_odam"}
    for name, value in plain.items():
        assert torch.equal(value, with_loss[name]), name
    assert model.state_dict().keys() == plain_model.state_dict().keys()


def test_what_a_model_keeps_between_iterations_is_kept():
    """RetinaNet's running mean of positives is an attribute that its forward sets."""
    model, inputs = training_model("retinanet"), labelled_images()
    before = model.loss_normalizer if hasattr(model, "loss_normalizer") else None
    losses_of(model, inputs)
    first = model.loss_normalizer
    losses_of(model, inputs)
    plain = training_model("retinanet", "MODEL.ODAM.LOSS.NAME", "")
    for _ in range(2):
        losses_of(plain, inputs)
    assert before != first != model.loss_normalizer == plain.loss_normalizer


def test_running_statistics_change_once():
    """Heads of positives run again for their maps, and must not count twice."""
    norms = ["MODEL.ROI_BOX_HEAD.NORM", "BN"]
    model = training_model("conv_head", *norms)
    plain = training_model("conv_head", *norms, "MODEL.ODAM.LOSS.NAME", "")
    for trained in (model, plain):
        losses_of(trained, labelled_images())
    for (name, found), expected in zip(model.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(found, expected), name
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("iteration", "share"), [(0, None), (9, None), (10, 0.25), (12, 0.75), (13, 1), (99, 1)]
)
def test_weight_starts_and_warms_up(iteration, share):
    schedule = ["MODEL.ODAM.LOSS.START_ITER", 10, "MODEL.ODAM.LOSS.WARMUP_ITERS", 4]
    model = training_model("retinanet", *schedule, "MODEL.ODAM.LOSS.WEIGHT", 2.0)
    losses, scalars = losses_of(model, labelled_images(), iteration)
    if share is None:
        assert "loss_odam" not in losses
        return
    full, _ = losses_of(
        training_model("retinanet", "MODEL.ODAM.LOSS.WEIGHT", 1.0), labelled_images()
    )
    assert losses["loss_odam"].item() == pytest.approx(2 * share * full["loss_odam"].item())
    assert {"odam/same_correlation", "odam/different_correlation", "odam/pair_auc"} <= set(scalars)
    assert scalars["odam/num_same_pairs"] > 0


def test_stages_of_a_cascade_count_the_same():
    """The mean over stages, not their sum: 0.5 (1 + 3 + 8) / 3."""

    class Given(nn.Module):
        def forward(self, batch):
            return torch.tensor(batch, requires_grad=True)

    training = OdamTraining(loss=Given(), weight=0.5)
    with EventStorage(0):
        assert training([1.0, 3.0, 8.0], torch.zeros(1)).item() == pytest.approx(2.0)
        assert training([8.0], torch.zeros(1)).item() == pytest.approx(4.0)


def test_images_of_a_batch_share_no_pairs():
    """Grids of two sizes, objects of the same numbers: as each image by itself, over all pairs."""
    torch.manual_seed(0)
    boxes = torch.tensor([[0.0, 0, 9, 9], [1, 0, 9, 9], [0, 2, 9, 9], [0, 0, 9, 7], [2, 2, 9, 9]])
    objects, ious = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0.5, 0.7, 0.6, 0.3, 0.4])
    labels = Labels(objects, objects, boxes, ious)
    batch = [Positives(torch.rand(5, *size), labels) for size in ((3, 4), (2, 7))]
    pairs = [
        object_pairs(positives.maps, torch.zeros(5), objects, ious, boxes) for positives in batch
    ]
    same, different = (
        Pairs(torch.cat([p.correlation for p in kind]), torch.cat([p.weight for p in kind]))
        for kind in zip(*pairs, strict=True)
    )
    assert (len(same), len(different)) == (6, 10)
    expected = consistency(same, 1e-4) + separation(different, 1e-4)
    with EventStorage(0):
        assert OdamTrainLoss()(batch).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("case", ALL)
def test_weight_zero_measures_and_trains_nothing(case):
    model, inputs = training_model(case, "MODEL.ODAM.LOSS.WEIGHT", 0.0), labelled_images()
    losses, scalars = losses_of(model, inputs)
    assert losses["loss_odam"] == 0
    losses["loss_odam"].backward()
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)
    _, expected = losses_of(training_model(case), inputs)
    for name in expected:
        if name.startswith("odam/"):
            assert scalars[name] == pytest.approx(expected[name], rel=1e-4)


@pytest.mark.parametrize("case", ["fpn", "retinanet", "fcos"])
def test_first_order_trains_the_features_only(case):
    """As the authors' code: the gradient that maps are made of counts as a constant."""
    inputs = labelled_images()
    second, first = (
        training_model(case, "MODEL.ODAM.LOSS.SECOND_ORDER", order) for order in (True, False)
    )
    values = [losses_of(model, inputs)[0]["loss_odam"] for model in (second, first)]
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-5)
    for value in values:
        value.backward()
    of_head = [
        (m.roi_heads.box_head.fc1 if case == "fpn" else m.head.cls_subnet[0]).weight.grad
        for m in (second, first)
    ]
    assert of_head[0].any()
    assert of_head[1] is None or not of_head[1].any()
    assert first.backbone.fpn_output3.weight.grad.any()


# Not FCOS: fvcore's GIoU loss, which it uses, mixes dtypes under autocast by itself.
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", ["fpn", "cascade", "c4", "retinanet"])
def test_maps_are_float32_under_autocast(case, dtype):
    model, inputs = training_model(case), labelled_images()
    recorder = model.odam_training.loss = Recorder(model.odam_training.loss)
    with torch.autocast("cpu", dtype):
        losses, _ = losses_of(model, inputs)
    assert recorder.batches  # one for each stage of a cascade
    for batch in recorder.batches:
        assert all(positives.maps.dtype == torch.float32 for positives in batch)
    exact, _ = losses_of(training_model(case), inputs)
    # Features have the eleven or eight bits of half precision; arithmetic on them loses no more.
    assert losses["loss_odam"].dtype == torch.float32
    assert losses["loss_odam"].item() == pytest.approx(exact["loss_odam"].item(), rel=0.05)
    losses["loss_odam"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_gradients_accumulate():
    """Two backward passes before a step add up, as gradient accumulation needs."""
    model, inputs = training_model("retinanet"), labelled_images()
    weight = model.head.cls_subnet[0].weight
    single = []
    for image in inputs:
        (gradient,) = torch.autograd.grad(losses_of(model, [image])[0]["loss_odam"], weight)
        single.append(gradient)
    for image in inputs:
        losses_of(model, [image])[0]["loss_odam"].backward()
    assert torch.allclose(weight.grad, sum(single), rtol=1e-5, atol=1e-9)


def test_a_loss_of_ones_own_by_its_name():
    class MapsSum(nn.Module):
        """Two parameters' worth of a loss."""

        def __init__(self, cfg):
            super().__init__()
            self.scale = cfg.MODEL.ODAM.LOSS.CLAMP

        def forward(self, batch):
            return self.scale * sum(positives.maps.sum() for positives in batch)

    ODAM_LOSS_REGISTRY._do_register("MapsSum", MapsSum)
    try:
        model = training_model("fpn", loss="MapsSum")
        losses, _ = losses_of(model, labelled_images())
    finally:
        ODAM_LOSS_REGISTRY._obj_map.pop("MapsSum")
    assert losses["loss_odam"] > 0


@pytest.mark.parametrize(
    ("opts", "sentence"),
    [
        (["NAME", "OdamTrain"], "'OdamTrain'; the registered losses are OdamTrainLoss"),
        (["WEIGHT", -0.1], "WEIGHT is -0.1; it must be 0 or more"),
        (["WEIGHT", float("nan")], "WEIGHT is nan; it must be 0 or more"),
        (["START_ITER", -1], "START_ITER is -1"),
        (["MAX_SAMPLES", 0], "MAX_SAMPLES is 0; it must be 1 or more"),
        (["GRID_STRIDE", 0], "GRID_STRIDE is 0"),
        (["CLAMP", 0.5], "CLAMP is 0.5; it must be above 0 and below 0.5"),
        (["MIN_OVERLAP", 1.0], "MIN_OVERLAP is 1.0"),
    ],
)
def test_wrong_values_are_named(opts, sentence):
    key, value = opts
    with pytest.raises(InputError, match=f"^MODEL.ODAM.LOSS.{key}") as error:
        training_model("retinanet", f"MODEL.ODAM.LOSS.{key}", value)
    assert sentence in str(error.value)


def test_towers_that_cannot_be_trained_are_refused_at_once():
    with pytest.raises(UnsupportedModelError, match="SyncBN"):
        training_model("retinanet", "MODEL.RETINANET.NORM", "SyncBN")


def test_a_lazy_config_gives_it_as_an_argument():
    cfg = LazyConfig.load(str(Path(__file__).parents[1] / "lazy_configs" / "retinanet_slim.py"))
    cfg.model._target_ = OdamRetinaNet
    cfg.model.odam_training = LazyCall(OdamTraining)(loss=LazyCall(OdamTrainLoss)(), weight=0.3)
    model = instantiate(cfg.model).train()
    losses, _ = losses_of(model, labelled_images())
    assert losses["loss_odam"] > 0
    assert model.odam_training.weight == 0.3
