"""The benchmark of the crowd protocol measures what docs/crowdhuman.md says that it does."""

import numpy as np

from benchmarks import crowd_speed
from odam_d2.evaluation.crowd import crowd_metrics
from odam_d2.evaluation.crowd_protocol import box_overlaps


def test_images_are_crowds_and_detections_near_to_them():
    images = crowd_speed.made_up_images(30)
    assert len(images) == 30
    for image in images:
        assert (len(image.objects), len(image.boxes), image.size) == (23, 100, (600, 900))
        assert image.objects.min() >= 0
        assert (image.objects[:, 2:] <= [900, 600]).all()
        assert (image.objects[:, 2:] - image.objects[:, :2]).min() >= 40
        assert len(set(image.scores)) == 100
        assert {*image.classes, *image.categories} == {0}
        nearest = box_overlaps(image.boxes, image.objects).max(axis=1)
        assert 0.6 < np.median(nearest) < 0.95
    assert 0.05 < np.mean([image.ignore.mean() for image in images]) < 0.15
    results = crowd_metrics(images)
    assert results["Recall"] > 90  # nearly all is found, and many are found twice
    assert 50 < results["AP"] < 90


def test_the_command_tells_how_long_it_took(monkeypatch, capsys):
    make = crowd_speed.made_up_images
    asked = []
    monkeypatch.setattr(crowd_speed, "made_up_images", lambda n: asked.append(n) or make(3))
    crowd_speed.main()
    assert asked == [4000]
    words = capsys.readouterr().out.split()
    assert words[:2] == ["3", "images:"]
    assert 0 <= float(words[2]) < 60
