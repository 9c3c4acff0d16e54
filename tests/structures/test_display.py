"""Maps as arrays, pictures, plots and HTML: what is shown is what the maps hold."""

import base64
import io
import re
import sys
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from blob_maps import blob_detections, blob_maps
from detectron2.structures import Instances
from matplotlib.figure import Figure
from PIL import Image

import odam_d2
from odam_d2.core.errors import InputError
from odam_d2.structures.heat_colors import blend_heat
from odam_d2.visualization import drawing

SIZE = (60, 100)
BOXES = [(20.0, 10.0, 70.0, 40.0), (1.0, 2.0, 30.0, 50.0)]
IMAGE = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)


@pytest.fixture
def found():
    return blob_detections(SIZE, BOXES, classes=[2, 0])


def test_targets_by_name(found):
    maps = found.odam_maps
    assert maps["left"].targets == ("left",)
    assert torch.equal(maps["left"].values, maps.values[:, maps.targets.index("left")][:, None])
    assert maps["left", "class"].targets == ("left", "class")
    assert torch.equal(maps[0]["left"].values, maps["left"][0].values)
    with pytest.raises(KeyError, match="'middle' was not explained"):
        maps["middle"]


def test_arrays(found):
    maps = found.odam_maps
    np.testing.assert_array_equal(maps.numpy(), maps.dense(*SIZE))
    np.testing.assert_array_equal(maps.numpy(30, 40), maps.dense(30, 40))
    with pytest.raises(InputError, match="both height and width"):
        maps.numpy(30)
    both = odam_d2.OdamMaps.cat([maps, blob_maps((40, 40), [[None] * 5], maps.targets)])
    with pytest.raises(InputError, match="of images of 2 sizes"):
        both.numpy()
    assert both.numpy(30, 40).shape == (3, 5, 30, 40)


def drawn(figure):
    return [ax for ax in figure.axes if ax.images]


def test_a_plot_has_the_map_over_the_image(found):
    maps = found.odam_maps[1]["left"]
    ax = Figure().subplots()
    assert maps.plot(ax, IMAGE) is ax
    shown = ax.images[0]
    expected = blend_heat(IMAGE[:, :, ::-1], maps.dense(*SIZE)[0, 0])
    np.testing.assert_array_equal(shown.get_array(), expected)
    assert list(shown.get_extent()) == [0, SIZE[1], SIZE[0], 0]  # the frame of boxes
    ax = maps.plot(Figure().subplots(), IMAGE, rgb=True)
    np.testing.assert_array_equal(
        ax.images[0].get_array(), blend_heat(IMAGE, maps.dense(*SIZE)[0, 0])
    )


def test_a_plot_without_axes(found, monkeypatch):
    with matplotlib.rc_context({"backend": "agg"}):
        assert found.odam_maps[0]["class"].plot().get_title() == "class"
    with pytest.raises(InputError, match=r"2 instances .* choose it"):
        found.odam_maps["class"].plot()


def titles(maps, **options):
    figure = odam_d2.structures.display.draw_figure(maps, None, 10, **options)
    return [ax.get_title() for ax in drawn(figure)]


def test_empty_and_lost_maps_are_told_apart():
    maps = blob_maps(SIZE, [[(20, 20), None], [None, None]], ("class", "left"))
    maps.saturated[1, 1] = True
    assert titles(maps) == [
        *("class", "left · no positive evidence"),
        *("class · no positive evidence", "left · score saturated"),
    ]
    maps.signed = True
    assert titles(maps)[1] == "left · no evidence"


def test_how_many_of_how_many():
    maps = blob_maps(SIZE, [[(20, 20)]] * 7, ("class",))
    figure = odam_d2.structures.display.draw_figure(maps, None, 3)
    assert len(drawn(figure)) == 3
    assert figure.get_suptitle() == "3 of 7 instances"
    assert odam_d2.structures.display.draw_figure(maps, None, 7).get_suptitle() == ""


def test_show_returns_a_picture(found):
    picture = found.odam_maps.show(IMAGE)
    assert isinstance(picture, Image.Image)
    assert np.asarray(picture).std() > 10
    assert found.odam_maps.show().size[0] > 0
    with pytest.raises(InputError, match=r"the image is a str"):
        found.odam_maps.show("street.jpg")
    with pytest.raises(InputError, match=r"\(60, 100, 3\) of float64"):
        found.odam_maps.show(IMAGE / 255)
    with pytest.raises(InputError, match="no map"):
        found.odam_maps[:0].show(IMAGE)


def pictures(text):
    found = re.findall(r"data:image/png;base64,([^\"]+)", text)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def test_html_of_maps(found):
    text = found.odam_maps._repr_html_()
    (picture,) = pictures(text)
    assert np.asarray(picture.convert("L")).std() > 5
    assert "num_instances=2" in text
    assert pictures(found.odam_maps[:0]._repr_html_()) == []


def test_html_of_instances(found, monkeypatch):
    """By IPython's own registry of formatters, and only in IPython."""
    registered = {}
    formatter = SimpleNamespace(for_type=registered.__setitem__)
    shell = SimpleNamespace(display_formatter=SimpleNamespace(formatters={"text/html": formatter}))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    drawing.show_in_notebooks()
    assert registered == {}
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    drawing.show_in_notebooks()
    assert len(pictures(registered[Instances](found))) == 1
    assert registered[Instances](Instances(SIZE, scores=torch.ones(2))) is None


def test_labels_and_boxes_of_instances(found, monkeypatch):
    calls = []
    monkeypatch.setattr(drawing, "as_html", lambda *args: calls.append(args) or "")
    drawing._html(found)
    ((_, caption, labels, boxes, size),) = calls
    assert labels[0].startswith("0 · class 2 · ")
    assert boxes.tolist() == [list(box) for box in BOXES]
    assert (size, caption.split(",")[0]) == (SIZE, "2 instances")


def test_draw_takes_two_arguments(found):
    picture = odam_d2.draw(IMAGE, {"instances": found})
    other = odam_d2.draw(IMAGE[:, :, ::-1], found, ["a", "b", "c"], rgb=True)
    assert picture.size == other.size
    assert np.asarray(odam_d2.draw(IMAGE, found[:0])).std() > 5
    same = odam_d2.draw(IMAGE, found, ["class 0", "class 1", "class 2"])
    np.testing.assert_array_equal(picture, same)


@pytest.mark.parametrize(
    ("image", "change", "words"),
    [
        (IMAGE[:30], lambda x: x, r"of an image of \(60, 100\), and the image is \(30, 100\)"),
        (IMAGE, lambda x: Instances(SIZE, scores=x.scores), "found has no maps"),
        (IMAGE, lambda x: [x], "found has no maps"),
    ],
)
def test_what_cannot_be_drawn(found, image, change, words):
    with pytest.raises(InputError, match=words):
        odam_d2.draw(image, change(found))
