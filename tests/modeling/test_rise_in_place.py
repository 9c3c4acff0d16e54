"""RISE read in place: against a plain version, on a detector whose causes are known, resumed."""

import dataclasses

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from oracle import FASTER_RCNN, RETINANET, SLIM, two_images, zoo_model
from plain_heads import (
    CASCADE,
    CASCADE_OPTS,
    CLASSES,
    FAMILIES,
    GIVEN,
    TARGETS,
    all_values,
)
from torch import nn

from odam_d2 import explain, explain_boxes
from odam_d2.core.heatmap import gaussian_kernel, smooth
from odam_d2.core.mask_regression import prior_deviation
from odam_d2.core.masks import STRIDE, blurred_regions, lengths_of, part_masks, regions
from odam_d2.modeling import Decisions, OutputsAdapter, register_adapter
from odam_d2.modeling.attribution.rise import Rise
from odam_d2.modeling.settings import RiseSettings

FEW = RiseSettings(num_masks=10, cell=1 / 4, batch_size=3, seed=2)


def plain_values(model, image, settings, family):
    """Boxes, masks (K, H, W), and what each mask changes (K, N, T), one mask at a time."""
    size = tuple(image.shape[-2:])

    def on_network(picture):
        return model.preprocess_image([{"image": picture}]).tensor

    places = family.places(model, family.features(model, on_network(image)), size)

    def values(picture):
        return all_values(family, model, on_network(picture), places)

    whole = values(image)
    _, boxes = family.decide(model, family.features(model, on_network(image)), places)
    of = regions(boxes, size)
    hidden = blurred_regions(image, of, settings.blur)
    masks, found = [], []
    for number in range(settings.num_masks):
        seed = settings.seed * 1_000_003 + number // settings.parts
        generator = torch.Generator().manual_seed(seed)
        group = part_masks(size, of, settings.cell, settings.parts, generator)
        mask = group[number % settings.parts]
        found.append((values(image * mask + hidden * (1 - mask)) - whole).double().numpy())
        masks.append(mask.double().numpy())
    return boxes, np.stack(masks), np.stack(found)


def plain_rise(model, image, settings, family):
    """One detection, one target, one cell at a time."""
    boxes, masks, found = plain_values(model, image, settings, family)
    size = tuple(image.shape[-2:])
    height, width = (-(-side // STRIDE) for side in size)
    maps = torch.zeros(2, 5, height, width, dtype=torch.float64)
    for v in range(height):
        for u in range(width):
            cell = masks[:, STRIDE * v : STRIDE * v + STRIDE, STRIDE * u : STRIDE * u + STRIDE]
            seen = cell.mean(axis=(1, 2))
            for n in range(2):
                for t in range(5):
                    covariance = np.cov(seen, found[:, n, t], bias=True)
                    maps[n, t, v, u] = covariance[0, 1] / covariance[0, 0]
    for of_box, length in zip(maps, lengths_of(boxes, size), strict=True):
        of_box[:1] = smooth(of_box[:1], float(length * settings.smoothing / STRIDE))
        of_box[1:] = smooth(of_box[1:], float(length * settings.side_smoothing / STRIDE))
    return maps


def plain_faithful(model, image, settings, family):
    """One detection at a time, by the covariance of all pairs of cells."""
    boxes, masks, found = plain_values(model, image, settings, family)
    size = tuple(image.shape[-2:])
    grid = height, width = tuple(-(-side // STRIDE) for side in size)
    cells = np.stack(
        [
            [
                [m[STRIDE * v : STRIDE * v + STRIDE, STRIDE * u : STRIDE * u + STRIDE].mean()
                 for u in range(width)]
                for v in range(height)
            ]
            for m in masks
        ]
    ).reshape(len(masks), -1)  # fmt: skip
    varied = cells - cells.mean(axis=0)
    maps = []
    for n, (box, length) in enumerate(zip(boxes, lengths_of(boxes, size).tolist(), strict=True)):
        kernel = gaussian_kernel(settings.correlation * length / STRIDE, torch.zeros(1).double())
        near = [
            sum(float(w) * np.eye(side, k=k - len(kernel) // 2) for k, w in enumerate(kernel))
            for side in grid
        ]
        rows, columns, inside = prior_deviation(box, length, grid)
        deviation = np.zeros(grid)
        deviation[rows, columns] = inside
        flat = deviation.ravel()
        prior = flat[:, None] * np.kron(*near) * flat
        covariance = varied @ prior @ varied.T
        noise = settings.noise * np.diag(covariance).mean() * np.eye(len(varied))
        centred = found[:, n] - found[:, n].mean(axis=0)
        slopes = prior @ varied.T @ np.linalg.solve(covariance + noise, centred)
        maps.append(slopes.T.reshape(-1, *grid))
    return torch.from_numpy(np.stack(maps))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plain", "chosen"),
    [(plain_rise, {"method": "rise"}), (plain_faithful, {"preset": "faithful"})],
    ids=["rise", "faithful"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_equal_to_a_plain_version(name, dtype, plain, chosen):
    family = FAMILIES[name]
    model = family.model(dtype)
    image = two_images(dtype)[0]["image"][:, :102]  # no multiple of the stride
    with torch.no_grad():
        expected = plain(model, image, FEW, family)
    settings = {"rise": FEW, "signed": True, **chosen}
    (output,) = explain_boxes(model, [{"image": image}], GIVEN, CLASSES, TARGETS, **settings)
    maps = output["instances"].odam_maps
    assert maps.values.shape == expected.shape
    assert maps.strides.tolist() == [4.0, 4.0]
    for of_target, plain in zip(maps.values.unbind(1), expected.unbind(1), strict=True):
        assert plain.any()
        error = (of_target - plain).abs().amax() / plain.amax()
        # Small differences of values; masks are float32 in either precision.
        assert float(error) <= (1e-3 if dtype == torch.float32 else 1e-5)


PATCHES = {"class": (28, 28), "left": (20, 4), "top": (4, 40), "right": (36, 52),
           "bottom": (44, 20), "inward": (12, 52)}  # fmt: skip
"""Of 8 x 8 pixels, whole cells of the maps: (row, column) of the first pixel."""


class Toy(nn.Module):
    """
    One box, each of whose sides reaches outward as a patch of the image is bright, and its score.
    The right one is drawn inward by a patch as well.
    """

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.calls = []

    def raw(self, inputs):
        self.calls.append(len(inputs))
        rows = []
        for x in inputs:
            light = {n: x["image"][:, r : r + 8, c : c + 8].float().mean() / 255 * self.scale
                     for n, (r, c) in PATCHES.items()}  # fmt: skip
            right = 50 + 4 * light["right"] - 8 * light["inward"]
            sides = [10 - 4 * light["left"], 8 - 4 * light["top"], right, 44 + 4 * light["bottom"]]
            rows.append((light["class"].sigmoid().view(1, 1), torch.stack(sides)[None]))
        return rows

    def forward(self, inputs):
        results = []
        for x, (scores, boxes) in zip(inputs, self.raw(inputs), strict=True):
            found = Instances(tuple(x["image"].shape[-2:]), pred_boxes=Boxes(boxes))
            found.scores, found.pred_classes = scores[:, 0], torch.zeros(1, dtype=torch.int64)
            results.append({"instances": found})
        return results


@register_adapter(Toy)
class ToyAdapter(OutputsAdapter):
    layer = "none"
    num_classes = 1

    def outputs(self, batched_inputs, results):
        return [
            Decisions(torch.zeros(1, dtype=torch.int64), *x) for x in self.model.raw(batched_inputs)
        ]

    def outputs_of_boxes(self, batched_inputs, boxes, classes):
        return self.outputs(batched_inputs, [])

    def check_layer(self, layer):
        pass


def toy_images():
    image = torch.zeros(3, 56, 68)
    for row, column in PATCHES.values():
        image[:, row : row + 8, column : column + 8] = 255
    return [{"image": image}, {"image": image[:, :, :64].to(torch.uint8)}]


def test_a_map_shows_what_holds_a_side_where_it_is():
    """Also that of the right side, and not the patch that draws it inward, twice as strongly."""
    settings = RiseSettings(num_masks=240, cell=1 / 4)
    for result in explain(Toy(), toy_images(), TARGETS, method="rise", rise=settings):
        maps = result["instances"].odam_maps
        for target in TARGETS:
            heat = maps.select(target).values[0, 0]
            row, column = divmod(int(heat.argmax()), heat.shape[1])
            top, left = PATCHES[target]
            assert top <= 4 * row + 2 < top + 8, target
            assert left <= 4 * column + 2 < left + 8, target


def test_scores_of_given_boxes_are_of_the_image_as_it_is():
    settings = {"method": "rise", "rise": RiseSettings(num_masks=3)}
    boxes, classes = [torch.tensor([[10.0, 8, 50, 44]])], [torch.tensor([0])]
    (result,) = explain_boxes(Toy(), toy_images()[:1], boxes, classes, **settings)
    expected = torch.sigmoid(torch.ones(1))  # all patches are bright
    torch.testing.assert_close(result["instances"].scores, expected)


def test_all_maps_share_the_passes():
    model = Toy()
    settings = RiseSettings(num_masks=8)
    explain(model, toy_images(), TARGETS, method="rise", rise=settings)
    assert model.calls == [2] * (1 + 1 + 8)  # detected, read as they are, masked


def test_batches_do_not_matter_and_seeds_do(slim_model):
    def values(**changed):
        settings = dataclasses.replace(FEW, **changed)
        found = explain(slim_model, two_images(), TARGETS, method="rise", rise=settings)
        return torch.cat([x["instances"].odam_maps.values.flatten() for x in found])

    first, second = values(), values(batch_size=7)
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4 * float(first.max()))
    assert not torch.allclose(first, values(seed=1), rtol=0.1)


@pytest.mark.parametrize("name", [FASTER_RCNN, RETINANET, CASCADE])
def test_an_image_in_a_batch_has_the_maps_that_it_has_alone(name):
    opts = [*SLIM, *(CASCADE_OPTS if name == CASCADE else []), "TEST.DETECTIONS_PER_IMAGE", 3]
    model = zoo_model(name, opts=opts)
    image = two_images()[0]
    settings = {"method": "rise", "rise": dataclasses.replace(FEW, num_masks=5)}
    (alone,) = explain(model, [image], TARGETS, **settings)
    both = explain(model, [image, image], TARGETS, **settings)
    for result in both:
        assert len(result["instances"]) > 0
        ours, theirs = (x["instances"].odam_maps.values for x in (result, alone))
        error = (ours - theirs).abs().amax(dim=(2, 3)) / theirs.amax(dim=(2, 3)).clamp(min=1e-6)
        assert float(error.max()) <= 1e-2


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    """Also to more masks than were asked for at first."""
    settings = RiseSettings(num_masks=12, batch_size=5, check_every=100, state_dir=str(tmp_path))

    def values(model, **changed):
        given = dataclasses.replace(settings, **changed)
        (found,) = explain(model, toy_images()[:1], TARGETS, method="rise", rise=given)
        return found["instances"].odam_maps.values

    whole = values(Toy(), state_dir="")

    model, plain = Toy(), Toy.raw

    def raw(self, inputs):
        if len(self.calls) == 9:  # detected, as they are, seven masks
            raise KeyboardInterrupt
        return plain(self, inputs)

    monkeypatch.setattr(Toy, "raw", raw)
    with pytest.raises(KeyboardInterrupt):
        values(model)
    monkeypatch.undo()
    again = Toy()
    torch.testing.assert_close(values(again), whole)
    assert len(again.calls) == 2 + 12 - 5
    more = Toy()
    values(more, num_masks=20)
    assert len(more.calls) == 2 + 8
    other = Toy()
    with torch.no_grad():
        other.scale.mul_(0.9)
    values(other)
    assert len(other.calls) == 2 + 12  # another detector is another run


def test_a_damaged_file_is_made_again(tmp_path):
    settings = RiseSettings(num_masks=4, state_dir=str(tmp_path))
    for _ in range(2):
        model = Toy()
        explain(model, toy_images()[:1], TARGETS, method="rise", rise=settings)
        assert len(model.calls) == 2 + 4
        (file,) = tmp_path.glob("rise_*.pth")
        file.write_bytes(file.read_bytes()[:-30])


def test_methods_are_plain_data():
    assert Rise(FEW) == Rise(dataclasses.replace(FEW))
