"""D-CLOSE and Visual Precision Search, on real detectors against plain loops, resumed, refused."""

import dataclasses
import sys

import pytest
import torch
from detectron2.structures import Boxes, pairwise_iou
from oracle import two_images
from plain_heads import FAMILIES
from test_d_rise import rcnn_detections, retinanet_detections
from test_rise_in_place import PATCHES, Toy, ToyAdapter, toy_images

from odam_d2 import explain, explain_boxes
from odam_d2.core.d_close import segment_mask
from odam_d2.core.errors import InputError
from odam_d2.modeling.adapters import build_adapter, register_adapter
from odam_d2.modeling.attribution.d_close import DClose
from odam_d2.modeling.attribution.superpixels import superpixels
from odam_d2.modeling.attribution.vps import Vps
from odam_d2.modeling.settings import DCloseSettings, ExplainSettings, VpsSettings
from odam_d2.modeling.state import preserved

CLOSE = DCloseSettings(6, levels=2, segments=12, enlarge=0.5, batch_size=4, seed=3)
SEARCH = VpsSettings(regions=4, batch_size=5)
TARGETS = ("class", "right")
DETECT = {"faster_rcnn": rcnn_detections, "retinanet": retinanet_detections}


class Plain:
    """
    Reads masked images, one by one: detections by Detectron2's own functions where the tests of
    D-RISE have them, else as the adapter runs the model; the right side at the place of the first
    run, by the adapter's definition.
    """

    def __init__(self, name, model, image):
        self.detect = DETECT.get(name)
        self.model, self.adapter, self.image = model, build_adapter(model), image
        self.trace = self.run(image)
        self.boxes, self.labels, self.wanted = self.found(image)

    def run(self, image):
        given = [{"image": image}]
        return self.adapter.run(given, lambda view: view.forward(given)).traces[0]

    def found(self, image):
        if self.detect is not None:
            return self.detect(self.model, {"image": image})
        trace = self.run(image)
        if not len(trace):
            return torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, self.adapter.num_classes)
        boxes = trace.instances[0].pred_boxes.clone()
        boxes.clip(tuple(image.shape[-2:]))
        probabilities = self.adapter.decide(trace).probabilities[:, : self.adapter.num_classes]
        return boxes.tensor, trace.classes, probabilities

    def similarity(self, mask, pair):
        """(N,), of each detection the best of ``pair(IoU, its number, label, probabilities)``."""
        boxes, labels, probabilities = self.found(self.image * mask)
        best = torch.zeros(len(self.boxes), dtype=torch.float64)
        for i in range(len(self.boxes)):
            for box, label, of_box in zip(boxes, labels, probabilities, strict=True):
                iou = float(pairwise_iou(Boxes(self.boxes[i][None]), Boxes(box[None])))
                best[i] = max(float(best[i]), pair(iou, i, int(label), of_box))
        return best

    def right(self, mask):
        images = self.model.preprocess_image([{"image": self.image * mask}]).tensor
        decisions = self.adapter.evaluate(self.adapter.features(images), self.trace)
        return decisions.boxes[:, 2].double()


def cells(x):
    """Means over 4 x 4 pixels, of what there is at the border."""
    found = torch.zeros(*x.shape[:-2], -(-x.shape[-2] // 4), -(-x.shape[-1] // 4)).double()
    for v in range(found.shape[-2]):
        for u in range(found.shape[-1]):
            part = x[..., 4 * v : 4 * v + 4, 4 * u : 4 * u + 4]
            found[..., v, u] = part.double().mean(dim=(-2, -1))
    return found


def plain_d_close(plain, settings):
    def pair(iou, i, label, probabilities):
        if label != int(plain.labels[i]):
            return 0.0
        cosine = float(plain.wanted[i] @ probabilities)
        cosine /= float(plain.wanted[i].norm() * probabilities.norm())
        return iou * cosine * float(probabilities[label])

    segments = [
        superpixels(plain.image, settings.segments * 2**level, sigma=1.0)
        for level in range(settings.levels)
    ]
    means, whole = [], plain.right(torch.ones(plain.image.shape[1:]))
    for level in range(settings.levels):
        total, density = 0.0, 0.0
        for number in range(level, settings.num_masks, settings.levels):
            generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + number)
            mask = segment_mask(segments[level], 0.5, settings.enlarge, generator)
            right = plain.right(mask) - whole  # a constant changes nothing but rounding
            value = torch.stack([plain.similarity(mask, pair), right], dim=1)
            total = total + value[:, :, None, None] * cells(mask)
            density = density + cells(mask)
        mean = total / density
        low, high = (x(mean, dim=(2, 3), keepdim=True) for x in (torch.amin, torch.amax))
        size = torch.maximum(high.abs(), low.abs())
        flat = high - low <= 1e-6 * size  # all the same but for rounding
        means.append(torch.where(flat, 0.0, (mean - low) / (high - low)))
    found = means[-1]
    for mean in means[-2::-1]:
        found = (found + mean) * mean
    return found


def plain_vps(plain, settings):
    labels = superpixels(plain.image, settings.regions, adaptive=True)
    count = int(labels.max()) + 1

    def pair(iou, i, _label, probabilities):
        return iou * float(probabilities[int(plain.labels[i])])

    known = {}

    def values(subset):
        if subset not in known:
            mask = sum(((labels == region).float() for region in subset), 0.0 * labels)
            known[subset] = torch.stack([plain.similarity(mask, pair), plain.right(mask)], dim=1)
        return known[subset]

    everything = frozenset(range(count))
    found = torch.zeros(len(plain.boxes), 2, *labels.shape, dtype=torch.float64)
    for n in range(len(plain.boxes)):
        for t in range(2):

            def score(subset, n=n, t=t):
                return float(values(subset)[n, t] + 1 - values(everything - subset)[n, t])

            chosen, last, level = frozenset(), score(frozenset()), 0.0
            while chosen != everything:
                scores = {x: score(chosen | {x}) for x in sorted(everything - chosen)}
                best = max(scores, key=scores.get)
                level -= abs(scores[best] - last)
                last, chosen = scores[best], chosen | {best}
                found[n, t][labels == best] = level
            found[n, t] -= found[n, t].min()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("method", ["d_close", "vps"])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_equal_to_a_plain_version(name, method):
    family = FAMILIES[name]
    opts = [*family.opts, "TEST.DETECTIONS_PER_IMAGE", 2, "MODEL.FCOS.SCORE_THRESH_TEST", 0.0]
    model = family._replace(opts=opts).model()
    image = two_images()[0]["image"][:, :66, :98]  # no multiple of 4
    with preserved(model) as view:
        plain = Plain(name, view, image)
        if method == "d_close":
            expected = plain_d_close(plain, CLOSE)
        else:
            expected = cells(plain_vps(plain, SEARCH))
    settings = {"method": method, "d_close": CLOSE, "vps": SEARCH}
    (output,) = explain(model, [{"image": image}], TARGETS, **settings)
    maps = output["instances"].odam_maps
    assert len(maps) == len(expected) > 0
    assert maps.values.shape == expected.shape
    assert maps.strides.tolist() == [4.0] * len(maps)
    assert expected[:, 1].any()
    error = (maps.values - expected).abs().amax(dim=(2, 3))
    assert float((error / expected.amax(dim=(2, 3)).clamp(min=1e-3)).max()) <= 1e-3


@pytest.mark.parametrize(
    "settings",
    [{"method": "d_close", "d_close": DCloseSettings(400, levels=2, segments=150, enlarge=0.2)},
     {"method": "vps", "vps": VpsSettings(regions=60, max_passes=240)}],
    ids=["d_close", "vps"],
)  # fmt: skip
def test_maps_show_what_the_score_and_a_side_need(settings):
    """The other image of the batch is read as well, and may be of bytes."""
    for result in explain(Toy(), toy_images(), ("class", "bottom"), **settings):
        maps = result["instances"].odam_maps
        for target in ("class", "bottom"):
            heat = maps.select(target).values[0, 0]
            row, column = divmod(int(heat.argmax()), heat.shape[1])
            top, left = PATCHES[target]
            assert top - 4 <= 4 * row + 2 < top + 12, target
            assert left - 4 <= 4 * column + 2 < left + 12, target


@pytest.mark.parametrize("target", ["class", "left"])
def test_searches_share_what_was_read(target):
    """All subsets of 5 regions but few are needed, whatever the number of maps."""
    settings = {"method": "vps", "vps": VpsSettings(regions=5, batch_size=100)}
    model = Toy()
    (found,) = explain(model, toy_images()[:1], (target,), **settings)
    count = int(superpixels(toy_images()[0]["image"], 5, adaptive=True).max()) + 1
    passes = 2 if target == "class" else 1  # a Toy detects, and is asked for its outputs
    first = 1 + 1 + (target == "left")
    assert sum(model.calls) <= first + passes * (count * (count + 1) + 2)
    assert found["instances"].odam_maps.values.any()


@pytest.mark.parametrize("method", ["d_close", "vps"])
def test_an_interrupted_run_goes_on(method, tmp_path, monkeypatch):
    few = {"batch_size": 4, "check_every": 100, "state_dir": str(tmp_path)}
    settings = {
        "d_close": DCloseSettings(12, levels=2, segments=12, **few),
        "vps": VpsSettings(regions=5, **few),
    }[method]

    def values(model, **changed):
        given = {method: dataclasses.replace(settings, **changed)}
        (found,) = explain(model, toy_images()[:1], ("left", "top"), method=method, **given)
        return found["instances"].odam_maps.values

    expected = values(whole := Toy(), state_dir="")
    model, plain = Toy(), Toy.raw

    def raw(self, inputs):
        if len(self.calls) == 9:
            raise KeyboardInterrupt
        return plain(self, inputs)

    monkeypatch.setattr(Toy, "raw", raw)
    with pytest.raises(KeyboardInterrupt):
        values(model)
    monkeypatch.undo()
    again = Toy()
    torch.testing.assert_close(values(again), expected)
    assert len(again.calls) < len(whole.calls) - 2
    ready = Toy()
    torch.testing.assert_close(values(ready), expected)
    assert len(ready.calls) <= 4
    other = Toy()
    with torch.no_grad():
        other.scale.mul_(0.9)
    values(other)
    assert len(other.calls) == len(whole.calls)  # another detector is another run
    for file in tmp_path.glob("*.pth"):
        file.write_bytes(file.read_bytes()[:-30])
    torch.testing.assert_close(values(other), values(other, state_dir=""))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DCloseSettings(0), "num_masks is 0; it must be 1 or more"),
        (lambda: DCloseSettings(levels=0), "levels is 0; it must be 1 to 10"),
        (lambda: DCloseSettings(keep_prob=1.0), "keep_prob is 1.0; it must be above 0 and below 1"),
        (lambda: DCloseSettings(enlarge=-1), "enlarge is -1; it must be 0 to 100"),
        (lambda: DCloseSettings(compactness=0), "compactness is 0; it must be above 0"),
        (lambda: VpsSettings(regions=0), "regions is 0; it must be 1 to"),
        (lambda: VpsSettings(max_passes=0), "max_passes is 0; it must be 1 or more"),
        (lambda: ExplainSettings(method="vps", score="logit"), "score is 'logit'; VPS"),
        (lambda: ExplainSettings(method="d_close", layer="res4"), "layer is 'res4'; D-CLOSE"),
        (
            lambda: ExplainSettings(("class", "class:3"), method="d_close"),
            "targets may have 'class', and not 'class:3'",
        ),
    ],
)
def test_wrong_settings_are_told(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_too_few_passes_for_a_step_are_told():
    settings = {"method": "vps", "vps": VpsSettings(regions=20, max_passes=10)}
    with pytest.raises(InputError, match=r"max_passes is 10, and an image has \d+ regions"):
        explain(Toy(), toy_images(), ("class",), **settings)


@pytest.mark.parametrize("method", ["d_close", "vps"])
def test_boxes_and_no_scikit_image_are_told(method, slim_model, monkeypatch):
    boxes, classes = [torch.tensor([[10.0, 20, 90, 100]])], [torch.tensor([3])]
    with pytest.raises(InputError, match="boxes need another method"):
        explain_boxes(slim_model, two_images()[:1], boxes, classes, ("class",), method=method)
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(InputError, match="scikit-image, which is not installed"):
        explain(Toy(), toy_images(), ("class",), method=method)


class Blind(Toy):
    """Finds nothing."""

    def forward(self, inputs):
        return [{"instances": x["instances"][:0]} for x in super().forward(inputs)]


@register_adapter(Blind)
class BlindAdapter(ToyAdapter):
    def outputs(self, batched_inputs, results):
        return [x.detach(slice(0, 0)) for x in super().outputs(batched_inputs, results)]


@pytest.mark.parametrize("how", [{"method": "rise"}, {"preset": "faithful"}])
def test_nothing_found_is_no_map_of_masks(how):
    for result in explain(Blind(), toy_images(), ("left", "combined"), **how):
        assert len(result["instances"].odam_maps) == 0


@pytest.mark.parametrize("method", ["d_close", "vps"])
def test_nothing_found_is_no_map_and_no_pass(method):
    model = Blind()
    for result in explain(model, toy_images(), ("left", "combined"), method=method):
        assert len(result["instances"].odam_maps) == 0
        assert result["instances"].odam_maps.targets == ("left", "combined")
    assert len(model.calls) <= 2  # detected, read as it is


def test_superpixels_of_any_image():
    """Of one channel, of bytes, of one row; numbers without gaps."""
    generator = torch.Generator().manual_seed(0)
    for image in (torch.rand(1, 20, 30, generator=generator), torch.zeros(3, 20, 30).byte(),
                  torch.rand(3, 1, 40, generator=generator), torch.rand(4, 9, 8)):  # fmt: skip
        for adaptive in (False, True):
            labels = superpixels(image, 6, adaptive=adaptive)
            assert labels.shape == image.shape[1:]
            assert labels.unique().tolist() == list(range(int(labels.max()) + 1))


def test_methods_are_plain_data():
    assert Vps(SEARCH) == Vps(dataclasses.replace(SEARCH))
    assert DClose(CLOSE) == DClose(dataclasses.replace(CLOSE))
