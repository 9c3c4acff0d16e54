"""How often explaining makes the host wait for a device: a few times, whatever is found."""

import pytest
from device_counts import cost_of
from pretend_device import DEVICE, counted, pretend
from training_cases import labelled_images, losses_of, training_model

MOST_WAITS = 6  # that explaining an image adds to inference


@pytest.mark.parametrize("family", ["faster", "mask", "keypoint", "panoptic", "retinanet", "fcos"])
def test_explaining_waits_a_few_times_an_image(family):
    few, many = cost_of(family, 10), cost_of(family, 60)
    assert (few.instances, many.instances) == (10, 60)
    for found in (few, many):
        assert found.added.syncs <= MOST_WAITS, found.added.places


@pytest.mark.parametrize("case", ["fpn", "retinanet"])
def test_the_loss_on_heat_maps_waits_no_more_for_more_positives(case):
    waits = []
    for positives in (4, 24):
        model = training_model(case, "MODEL.ODAM.LOSS.MAX_SAMPLES", positives)
        with pretend():
            model.to(DEVICE)
            losses_of(model, labelled_images())
            with counted() as counts:
                losses, _ = losses_of(model, labelled_images())
                sum(losses.values()).backward()
        waits.append(counts.syncs)
    few, many = waits
    assert many < few + (24 - 4)
