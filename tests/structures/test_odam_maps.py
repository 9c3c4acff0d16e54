"""OdamMaps: geometry against torch's interpolation, life inside Instances."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from pretend_device import DEVICE, counted, pretend

from odam_d2 import OdamMaps
from odam_d2.core.windows import paste_window

FIELDS = (
    "values", "origins", "strides", "grid_sizes", "image_sizes", "levels", "saturated",
)  # fmt: skip


def make_maps(count=3, targets=("class", "left"), grid=(8, 10), image=(60, 75), stride=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pair = torch.ones(count, 2, dtype=torch.long)
    return OdamMaps(
        targets,
        torch.rand(count, len(targets), 5, 7, generator=generator, dtype=torch.float64),
        origins=torch.tensor([[0, 0], [3, 2], [-2, 8]])[:count],
        strides=torch.full((count,), float(stride)),
        grid_sizes=pair * torch.tensor(grid),
        image_sizes=pair * torch.tensor(image),
        levels=torch.zeros(count, dtype=torch.long),
    )


def make_signed(**how):
    maps = make_maps(**how)
    maps.values = maps.values - 0.5
    maps.signed = True
    return maps


def on_grid(maps, i):
    window = (*maps.origins[i].tolist(), *maps.values.shape[-2:])
    return paste_window(maps.values[i], window, tuple(maps.grid_sizes[i].tolist()))


@pytest.mark.parametrize("factor", [1, 2])
def test_dense_at_a_multiple_of_the_input_equals_interpolation(factor):
    """Cells scaled by stride * factor, half-cell aligned, then the padding is cropped."""
    maps = make_maps()
    dense = maps.dense(60 * factor, 75 * factor)
    for i in range(len(maps)):
        full = F.interpolate(on_grid(maps, i)[None], scale_factor=8 * factor, mode="bilinear")
        torch.testing.assert_close(dense[i], full[0, :, : 60 * factor, : 75 * factor])


@pytest.mark.parametrize(("height", "width"), [(60, 75), (240, 150), (480, 600)])
def test_the_peak_is_at_the_centre_of_its_cell(height, width):
    """Cell (4, 6) of stride 8 has its centre at input pixel (y, x) = (36, 52)."""
    maps = make_maps(1)
    maps.values.zero_()
    maps.origins[0] = torch.tensor([2, 3])
    maps.values[0, 0, 2, 3] = 1.0
    dense = maps.dense(height, width)[0, 0]
    y = torch.arange(height) + 0.5
    x = torch.arange(width) + 0.5
    centre = torch.stack([(dense.sum(1) * y).sum(), (dense.sum(0) * x).sum()]) / dense.sum()
    expected = torch.tensor([36 * height / 60, 52 * width / 75], dtype=torch.float64)
    torch.testing.assert_close(centre, expected, rtol=0, atol=1e-2 * height / 60)


def test_a_ceiled_level_is_not_stretched():
    """
    Image 60 wide at stride 32: two cells cover 64 pixels. Cell 1's centre is at pixel 48, not at
    3/4 of the width (45) as the ratio of sizes would have it.
    """
    maps = make_maps(1, grid=(2, 2), image=(60, 60), stride=32)
    maps.values.zero_()
    maps.values[0, 0, :2, 1] = 1.0
    row = maps.dense(60, 60)[0, 0, 30]
    assert row[47] < 1
    assert (row[48:] == 1).all()
    assert row[32] == pytest.approx((32.5 - 16) / 32)


def test_thumbnails_keep_the_mass():
    """Sampling every other cell would lose a peak that falls between the samples."""
    maps = make_maps(1, grid=(40, 40), image=(160, 160), stride=4)
    maps.origins.zero_()
    for column in range(5):
        maps.values.zero_()
        maps.values[0, 0, 2, column] = 1.0
        assert maps.dense(10, 10)[0, 0].sum() > 0


def test_similarity_is_the_cosine_of_rendered_maps():
    maps = make_maps()
    flat = maps.on_grid(16)[:, 0].flatten(1)
    expected = torch.nn.functional.cosine_similarity(flat[:, None], flat[None], dim=2)
    found = maps.similarity("class")
    assert maps.on_grid(16).shape[-2:] == (4, 5)  # ceil(60 / 16), ceil(75 / 16)
    torch.testing.assert_close(found, expected)
    assert 0 < found[0, 1] < 1


def test_similarity_across_levels_sees_the_same_place():
    """The same blob on strides 8 and 16 correlates; a blob elsewhere does not."""
    fine, coarse = make_maps(2, grid=(16, 20), image=(128, 160)), make_maps(1, grid=(8, 10),
                                                                            image=(128, 160),
                                                                            stride=16)  # fmt: skip
    for maps in (fine, coarse):
        maps.values.zero_()
    fine.origins[:] = torch.tensor([[4, 4], [10, 12]])
    fine.values[:, 0, :4, :4] = 1.0
    coarse.origins[:] = torch.tensor([[2, 2]])
    coarse.values[:, 0, :2, :2] = 1.0
    similarity = OdamMaps.cat([fine, coarse]).similarity("class")
    assert similarity[0, 2] > 0.9
    assert similarity[1, 2] < 0.05


def test_a_zero_map_is_similar_to_nothing():
    maps = make_maps()
    maps.values[0] = 0
    assert maps.similarity()[0].tolist() == [0, 0, 0]


def test_indexing_and_cat_keep_every_field():
    maps = make_maps()
    maps.saturated = torch.tensor([[True, False], [False, False], [False, True]])
    for item in (torch.tensor([2, 0]), torch.tensor([True, False, True]), slice(1, 3), [1], -1):
        part = maps[item]
        index = torch.arange(3)[item].reshape(-1)
        for name in FIELDS:
            assert torch.equal(getattr(part, name), getattr(maps, name)[index])
    first, none, rest = maps.split([1, 0, 2])
    assert [len(part) for part in (first, none, rest)] == [1, 0, 2]
    again = OdamMaps.cat([first, none, rest])
    assert torch.equal(again.saturated, maps.saturated)
    torch.testing.assert_close(again.dense(30, 40), maps.dense(30, 40))
    assert torch.equal(maps[-3].values, maps.values[:1])
    for item in (3, 4, -4):
        with pytest.raises(IndexError, match=f"instance {item} asked of 3"):
            maps[item]
    for item in (None, True, False):
        with pytest.raises(IndexError, match=f"a list of ints or a tensor, not {item}"):
            maps[item]
    assert len(maps[np.int64(1)]) == 1


def test_saturated_is_of_a_target_and_optional():
    maps = make_maps()
    assert maps.saturated.tolist() == [[False, False]] * 3
    maps.saturated[1, 0] = True
    assert maps.select("left").saturated.tolist() == [[False]] * 3
    assert maps.select(["left", "class"]).saturated[1].tolist() == [False, True]
    half = maps.to(torch.float16).detach().normalized()
    assert half.saturated.dtype == torch.bool
    assert torch.equal(half.saturated, maps.saturated)
    geometry = {name: getattr(maps, name) for name in FIELDS[1:6]}
    with pytest.raises(ValueError, match="saturated must have the shape"):
        OdamMaps(maps.targets, maps.values, saturated=maps.saturated[:, 0], **geometry)


def test_cat_pads_smaller_windows_with_zeros():
    maps = make_maps()
    small = OdamMaps(maps.targets, maps.values[:1, :, :2, :3],
                     **{n: getattr(maps, n)[:1] for n in ("origins", "strides", "grid_sizes",
                                                           "image_sizes", "levels")})  # fmt: skip
    both = OdamMaps.cat([small, maps])
    assert both.values.shape[-2:] == (5, 7)
    torch.testing.assert_close(both.dense(60, 75)[0], small.dense(60, 75)[0])


@pytest.mark.parametrize(
    "other",
    [{"image": (52, 77)}, {"grid": (6, 7)}, {"stride": 7}, {"grid": (4, 5), "stride": 16}],
    ids=["image", "grid", "stride", "level"],
)
def test_each_instance_keeps_its_own_geometry(other):
    """Joined with maps of another image or level, each is rendered as it is alone."""
    parts = [make_maps(), make_maps(2, **other)]
    both = OdamMaps.cat(parts)[torch.tensor([3, 0, 4, 1, 2])]  # mixed
    for size in ((60, 75), (23, 31)):
        alone = torch.cat([part.dense(*size) for part in parts])[torch.tensor([3, 0, 4, 1, 2])]
        assert (parts[0].dense(*size)[:2] - parts[1].dense(*size)).abs().max() > 0.01
        torch.testing.assert_close(both.dense(*size), alone)


def test_travels_with_instances_through_postprocessing():
    """Boxes are rescaled, the empty one is dropped, and the maps follow."""
    maps = make_maps()
    boxes = Boxes([[0.0, 0, 20, 20], [5, 5, 5, 5], [10, 10, 40, 50]])
    found = Instances((60, 75), pred_boxes=boxes, odam_maps=maps)
    out = detector_postprocess(found, 120, 150)
    assert torch.equal(out.odam_maps.values, maps.values[[0, 2]])
    both = Instances.cat([out, out])
    assert len(both.odam_maps) == 4
    assert both.to("cpu").odam_maps.values.dtype == torch.float64


def test_it_tells_what_it_holds():
    words = "OdamMaps(num_instances=3, targets=('class', 'left'), window=5x7)"
    assert repr(make_maps()) == words
    assert len(make_maps()) == 3


def test_to_changes_the_dtype_of_values_only():
    maps = make_maps().to(torch.float32)
    assert maps.values.dtype == torch.float32
    assert maps.origins.dtype == torch.long


def test_empty():
    maps = OdamMaps.empty(("class",), torch.zeros(0))
    assert maps.dense(6, 8).shape == (0, 1, 6, 8)
    assert maps.on_grid(16).shape == (0, 1, 0, 0)
    assert maps.similarity().shape == (0, 0)
    assert len(OdamMaps.cat([maps, maps])) == 0
    assert len(OdamMaps.cat([maps, make_maps().select("class").to(torch.float32)])) == 3


def test_wrong_shapes_and_names_are_refused():
    maps = make_maps()
    with pytest.raises(ValueError, match=r"values must have the shape \(N, 1, h, w\)"):
        maps._replace(targets=("class",))
    with pytest.raises(ValueError, match=r"origins must have the shape \(3, 2\)"):
        maps._replace(origins=maps.origins[:2])
    with pytest.raises(KeyError, match="'top' was not explained"):
        maps.select("top")
    with pytest.raises(ValueError, match="targets differ"):
        OdamMaps.cat([maps, maps.select("left")])
    other = maps._replace(image_sizes=maps.image_sizes + torch.tensor([[0], [1], [0]]))
    with pytest.raises(ValueError, match="different sizes share no grid"):
        other.similarity()


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 90), width=st.integers(1, 90),
    image=st.tuples(st.integers(1, 64), st.integers(1, 80)),
)  # fmt: skip
def test_a_constant_map_renders_constant_at_any_size(height, width, image):
    """Weights sum to one everywhere, borders included."""
    maps = make_maps(1, image=image)
    maps = maps._replace(values=torch.ones(1, 2, 8, 10, dtype=torch.float64))
    maps.origins.zero_()
    torch.testing.assert_close(
        maps.dense(height, width), torch.ones(1, 2, height, width, dtype=torch.float64)
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda maps: maps.dense(0, 5), "it must be whole pixels"),
        (lambda maps: maps.dense(-5, 5), "it must be whole pixels"),
        (lambda maps: maps.dense(10.5, 5), "it must be whole pixels"),
        (lambda maps: maps.on_grid(0), "above 0"),
        (lambda maps: maps.on_grid(float("nan")), "above 0"),
        (lambda maps: maps.similarity("left", -4), "above 0"),
        (lambda maps: maps.select(None), "must be names of"),
        (lambda maps: OdamMaps.cat([maps, 3]), "a list of OdamMaps"),
    ],
)
def test_arguments_that_make_no_sense(call, words):
    with pytest.raises(ValueError, match=words):
        call(make_maps())


def test_a_device_is_waited_for_once_at_most():
    """However many levels the instances are of: a GPU would stand still each time."""
    with pretend():
        maps = make_maps().to(DEVICE)
        mask = torch.arange(len(maps), device=DEVICE) > 0
        for run, waits in (
            (lambda: maps.dense(20, 30), 0),
            (lambda: maps.on_grid(8.0), 1),  # for the size of the image
            (lambda: maps.similarity("class"), 1),
            (lambda: maps[mask], 1),
            (lambda: maps[2], 0),
            (lambda: maps[[0, 2]], 1),
        ):
            with counted() as counts:
                run()
            assert counts.syncs == waits


def test_signed_maps_are_what_is_above_zero_less_what_is_below():
    """Also between cells, where ReLU and interpolation must not change places."""
    maps = make_signed()
    above, below = maps.positive(), maps.negative()
    assert not above.signed
    assert not below.signed
    assert torch.equal(above.values, maps.values.clamp(min=0))
    assert torch.equal(above.values - below.values, maps.values)
    for rendered in (lambda x: x.dense(50, 40), lambda x: x.on_grid(5.0)):
        torch.testing.assert_close(rendered(maps), rendered(above) - rendered(below))
    assert above.positive() is above
    with pytest.raises(ValueError, match="these maps have no sign"):
        above.negative()


def test_the_sign_follows_maps_wherever_they_go():
    maps = make_signed()
    moved = {
        "one": maps[1], "mask": maps[torch.tensor([True, False, True])],
        "split": maps.split([1, 2])[1], "cat": OdamMaps.cat([maps, maps[:1]]),
        "select": maps.select("left"),
        "dtype": maps.to(torch.float32), "detached": maps.detach(), "scaled": maps.normalized(),
    }  # fmt: skip
    assert all(x.signed for x in moved.values())
    found = Instances((60, 75), odam_maps=maps)
    assert Instances.cat([found, found[:1]]).odam_maps.signed
    assert repr(maps).endswith("window=5x7, signed=True)")
    assert OdamMaps.empty(("class",), torch.zeros(0), signed=True).signed
    with pytest.raises(ValueError, match="some maps are signed and others are not"):
        OdamMaps.cat([maps, maps.positive()])


def test_signed_maps_are_scaled_by_their_size_and_compared_by_evidence_for():
    """A map whose largest size is below zero must not grow beyond one, nor correlate by it."""
    maps = make_signed()
    maps.values[0] = -maps.values[0]
    assert (maps.normalized().values.abs().amax(dim=(-2, -1)) == 1).all()
    assert torch.equal(maps.normalized().values.sign(), maps.values.sign())
    similarity = maps.similarity("left", 8.0)
    torch.testing.assert_close(similarity, maps.positive().similarity("left", 8.0))
    assert (similarity >= 0).all()
