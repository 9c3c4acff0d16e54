"""
What a device is asked: explaining makes the host wait for it a few times and dispatches a bounded
number of operations, whatever is found; training dispatches a bounded number of operations.
"""

import pytest
from device_counts import cost_of
from pretend_device import DEVICE, counted, pretend
from training_cases import crowded_images, labelled_images, losses_of, training_model

MOST_WAITS = 6  # that explaining an image adds to inference
MOST_OPERATIONS = {
    "faster": 600, "mask": 600, "keypoint": 600, "panoptic": 600, "dc5": 600, "c4": 600,
    "cascade": 600, "retinanet": 900, "fcos": 900,
}  # fmt: skip
MOST_OPERATIONS_OF_TRAINING = 1500  # that the loss on heat maps adds to an iteration


@pytest.mark.parametrize("family", MOST_OPERATIONS)
def test_explaining_an_image(family):
    few, many = cost_of(family, 10), cost_of(family, 100)
    assert (few.instances, many.instances) == (10, 100)
    for found in (few, many):
        assert found.added.syncs <= MOST_WAITS, found.added.places
        assert found.added.operations <= MOST_OPERATIONS[family]


@pytest.mark.parametrize("family", ["retinanet", "fcos"])
def test_dense_detectors_take_as_many_operations_whatever_is_found(family):
    assert cost_of(family, 10).added.operations == cost_of(family, 100).added.operations


def training_cost(case, images, *opts, loss="OdamTrainLoss"):
    """Of an iteration, with the backward pass."""
    model = training_model(case, *opts, loss=loss)
    with pretend():
        model.to(DEVICE)
        losses_of(model, images)  # what is made once is there from now on
        with counted() as counts:
            losses, _ = losses_of(model, images)
            sum(losses.values()).backward()
    return counts


@pytest.mark.parametrize(
    "case",
    [
        ("fpn",), ("conv_head",), ("c4",), ("cascade",),
        ("retinanet", "MODEL.RETINANET.NUM_CONVS", 4), ("fcos", "MODEL.FCOS.NUM_CONVS", 4),
    ],
    ids=lambda case: case[0],
)  # fmt: skip
def test_training_maps_dispatches_some_operations_an_iteration(case):
    # Memory for temporary tensors is as slim as channels are.
    opts = [*case, "MODEL.ODAM.CHUNK_MB", 4, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 128]
    with_loss, without = (
        training_cost(opts[0], crowded_images(), *opts[1:], loss=loss)
        for loss in ("OdamTrainLoss", "")
    )
    assert (with_loss - without).operations <= MOST_OPERATIONS_OF_TRAINING


@pytest.mark.parametrize("case", ["fpn", "retinanet"])
def test_the_loss_on_heat_maps_waits_no_more_for_more_positives(case):
    few, many = (
        training_cost(case, labelled_images(), "MODEL.ODAM.LOSS.MAX_SAMPLES", positives)
        for positives in (4, 24)
    )
    assert many.syncs <= few.syncs
