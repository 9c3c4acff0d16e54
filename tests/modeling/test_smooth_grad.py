"""SmoothGrad, against the mean of plain gradients one copy, detection and target at a time."""

import pytest
import torch
from oracle import two_images
from plain_heads import CLASSES, FAMILIES, GIVEN, TARGETS, value_of

from odam_d2 import explain, explain_boxes
from odam_d2.core.errors import InputError
from odam_d2.modeling.attribution.smooth_grad import SmoothGrad
from odam_d2.modeling.settings import SmoothGradSettings

FEW = SmoothGradSettings(num_samples=3, noise=0.2, seed=5)


def noise(shape, sample):
    """The numbers that the seed gives; float32, so that they are those of every precision."""
    generator = torch.Generator().manual_seed(5 * 1_000_003 + sample)
    return torch.randn(shape, generator=generator)


def plain_maps(family, model, given):
    images = model.preprocess_image([given]).tensor
    places = family.places(model, family.features(model, images), given["image"].shape[-2:])
    height, width = given["image"].shape[-2:]
    shown = images[:, :, :height, :width]
    spread = FEW.noise * (shown.max() - shown.min())
    total = torch.zeros(2, len(TARGETS), *images.shape[1:], dtype=images.dtype)
    for sample in range(FEW.num_samples):
        noisy = images.clone()
        noisy[0, :, :height, :width] += spread * noise((3, height, width), sample).to(noisy)
        noisy.requires_grad_()
        scores, boxes = family.decide(model, family.features(model, noisy), places)
        for n in range(2):
            for t, target in enumerate(TARGETS):
                value = value_of(scores, boxes, n, target)
                (gradient,) = torch.autograd.grad(value, noisy, retain_graph=True)
                total[n, t] += gradient[0] / FEW.num_samples
    largest = torch.zeros(2, len(TARGETS), *images.shape[2:], dtype=images.dtype)
    for channel in total.unbind(2):
        largest = torch.maximum(largest, channel.abs())
    return largest


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_equal_to_plain_loops(name, dtype):
    family = FAMILIES[name]
    model = family.model(dtype)
    given = {"image": two_images(dtype)[0]["image"][:, :102]}
    expected = plain_maps(family, model, given)
    settings = {"method": "smooth_grad", "smooth_grad": FEW, "chunk_mb": 2}  # one box at a time
    (output,) = explain_boxes(model, [given], GIVEN, CLASSES, TARGETS, **settings)
    values = output["instances"].odam_maps.values
    assert values.shape == expected.shape
    error = (values - expected).abs().amax(dim=(2, 3)) / expected.amax(dim=(2, 3))
    assert float(error.max()) <= (1e-4 if dtype == torch.float32 else 1e-10)


@pytest.mark.parametrize("name", ["faster_rcnn", "retinanet"])
def test_without_noise_it_is_the_input_gradient(name):
    """Of images of two sizes in one batch, the smaller one padded; nothing of the second."""
    model = FAMILIES[name].model(torch.float64)
    given = [two_images(torch.float64), [*GIVEN, torch.zeros(0, 4)], [*CLASSES, CLASSES[0][:0]]]
    settings = {"method": "smooth_grad", "smooth_grad": SmoothGradSettings(1, 0)}
    found = explain_boxes(model, *given, TARGETS, **settings)
    expected = explain_boxes(model, *given, TARGETS, method="input_gradient")
    a, b = (x[0]["instances"].odam_maps for x in (found, expected))
    assert torch.equal(a.image_sizes, b.image_sizes)
    assert len(found[1]["instances"].odam_maps) == 0
    peak = b.values.amax(dim=(2, 3), keepdim=True)
    assert float(((a.values - b.values).abs() / peak).max()) <= 1e-7


def test_an_image_in_a_batch_has_the_maps_that_it_has_alone():
    """It is not the number of the image that the noise depends on."""
    model, image = FAMILIES["retinanet"].model(torch.float64), two_images(torch.float64)[0]
    settings = {"method": "smooth_grad", "smooth_grad": FEW}
    (alone,) = explain_boxes(model, [image], GIVEN, CLASSES, ("class",), **settings)
    both = explain_boxes(model, [image] * 2, GIVEN * 2, CLASSES * 2, ("class",), **settings)
    for result in both:
        ours, theirs = (x["instances"].odam_maps.values for x in (result, alone))
        assert float((ours - theirs).abs().max() / theirs.max()) <= 1e-7


def test_seeds_matter_and_random_numbers_of_the_user_do_not(slim_model):
    def maps(seed):
        settings = {"smooth_grad": SmoothGradSettings(2, seed=seed)}
        found = explain(slim_model, two_images()[:1], ("class",), method="smooth_grad", **settings)
        return found[0]["instances"].odam_maps.values

    torch.manual_seed(1)
    first, state = maps(0), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(maps(0), first)
    assert float((maps(1) - first).abs().max() / first.max()) > 0.1
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_after_ctrl_c_the_model_is_as_it_was(faster_rcnn, monkeypatch):
    calls, backbone = [], type(faster_rcnn.backbone)
    plain = backbone.forward

    def forward(self, *args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return plain(self, *args)

    monkeypatch.setattr(backbone, "forward", forward)
    faster_rcnn.train()
    before = [(m.training, len(m._forward_hooks)) for m in faster_rcnn.modules()]
    with pytest.raises(KeyboardInterrupt):
        explain(faster_rcnn, two_images(), ("class",), method="smooth_grad", smooth_grad=FEW)
    assert [(m.training, len(m._forward_hooks)) for m in faster_rcnn.modules()] == before
    assert all(p.grad is None for p in faster_rcnn.parameters())


def test_a_backbone_without_gradients_is_told(faster_rcnn, monkeypatch):
    backbone = type(faster_rcnn.backbone)
    monkeypatch.setattr(backbone, "forward", torch.no_grad()(backbone.forward))
    with pytest.raises(InputError, match="do not depend on the images"):
        explain(faster_rcnn, two_images(), ("class",), method="smooth_grad", smooth_grad=FEW)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_samples": 0}, "num_samples is 0; it must be 1 or more"),
        ({"noise": -0.1}, "noise is -0.1; it must be 0 to 1000"),
        ({"seed": 0.5}, "seed is 0.5; it must be a whole number"),
    ],
)
def test_wrong_settings_are_told(settings, message):
    with pytest.raises(InputError, match=message):
        SmoothGradSettings(**settings)


def test_methods_are_plain_data():
    assert SmoothGrad(FEW) == SmoothGrad(SmoothGradSettings(3, 0.2, 5))
