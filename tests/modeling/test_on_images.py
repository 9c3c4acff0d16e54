"""Decisions at the places of one image's detections, read in other images of a batch."""

import pytest
import torch
from oracle import two_images
from training_cases import training_model

from odam_d2.modeling.adapters import build_adapter
from odam_d2.modeling.state import preserved


@pytest.mark.parametrize("case", ["fpn", "c4", "cascade", "retinanet", "fcos"])
def test_other_images_are_read_at_the_same_places(case):
    """One by one, each image as if it were the one of the trace, where the images differ."""
    few = ["TEST.DETECTIONS_PER_IMAGE", 3, "MODEL.FCOS.SCORE_THRESH_TEST", 0.0]
    given = {"image": two_images()[0]["image"]}
    noise = torch.rand(3, *given["image"].shape, generator=torch.Generator().manual_seed(1))
    batch = [{"image": image} for image in 255 * noise]
    with preserved(training_model(case, *few)) as model:
        adapter = build_adapter(model)
        run = adapter.run([given], lambda view: view.forward([given]))
        (trace,) = run.traces
        index, image = torch.tensor([2, 0, 0, 1]), torch.tensor([0, 0, 1, 2])
        images = model.preprocess_image(batch).tensor
        features = adapter.features(images)
        found = adapter.evaluate(features, trace.on_images(index, image, len(batch)))
        assert torch.equal(found.classes, trace.classes[index])
        scores, boxes = [], []
        for row, number in zip(index.tolist(), image.tolist(), strict=True):
            of_image = adapter.features(images[number : number + 1])
            alone = adapter.evaluate(of_image, trace)
            scores.append(alone.scores[row])
            boxes.append(alone.boxes[row])
        torch.testing.assert_close(found.scores, torch.stack(scores), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.boxes, torch.stack(boxes), rtol=1e-4, atol=1e-3)
        assert (found.scores - adapter.decide(trace).scores[index]).abs().max() > 1e-5
