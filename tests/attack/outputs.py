"""The general way, ``explain_outputs``, on layers and functions of many kinds."""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random

import torch
from torch import nn

from odam_d2 import explain, explain_outputs

from .case import RIGHT, Case, Refused, Wrong, attempt, expect
from .material import picture, shipped

__all__ = ["cases"]


class _Net(nn.Module):
    """No ``Backbone``: two layers of features, and values that depend on one of them or on both."""

    device = torch.device("cpu")

    def __init__(self, channels: int, stride: int, values: int):
        super().__init__()
        torch.manual_seed(channels)
        self.trunk = nn.Conv2d(3, channels, 3, stride, 1)
        self.side = nn.Conv2d(3, 8, 3, 16, 1)
        self.head = nn.Linear(channels, values)
        self.other = nn.Linear(8, values)

    def forward(self, inputs):
        image = torch.stack([x["image"] for x in inputs])
        feature, side = self.trunk(image).relu(), self.side(image).relu()
        weights = torch.linspace(0, 1, feature.shape[-1])
        return self.head((feature * weights).mean((2, 3))), self.other(side.mean((2, 3)))


def _image(height: int, width: int, seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {"image": torch.rand(3, height, width, generator=generator)}


def _values(model, rows: int, targets: int, inputs: list) -> list:
    main, _ = model(inputs)
    return [value[: rows * targets].view(rows, targets) for value in main]


def _truth(model: _Net, inputs: list, rows: int, targets: int) -> torch.Tensor:
    """(I, rows, targets, h, w): gradient times feature, summed over channels, positive."""
    kept = {}
    hook = model.trunk.register_forward_hook(
        lambda m, a, out: kept.setdefault("x", out.detach().requires_grad_())
    )
    values = _values(model, rows, targets, inputs)
    hook.remove()
    maps = [
        [[(torch.autograd.grad(v, kept["x"], retain_graph=True)[0] * kept["x"])[i].sum(0).relu()
            for v in row]
         for row in of_image] for i, of_image in enumerate(values)
    ]  # fmt: skip
    return torch.stack([torch.stack([torch.stack(row) for row in rows]) for rows in maps])


def _is_channels_last_too(channels: int, stride: int, size: tuple) -> bool:
    """Whether (I, C, h, w) of a layer could be (I, h, w, C) with another stride."""
    seen = (channels, -(-size[0] // stride))
    return any(seen == (-(-size[0] // s), -(-size[1] // s)) for s in (2**k for k in range(12)))


def _exact(
    channels: int,
    stride: int,
    size: tuple,
    images: int,
    rows: int,
    targets: int,
    settings: dict,
    folder: Path,
) -> str:
    model = _Net(channels, stride, rows * targets)
    inputs = [_image(*size, seed=k) for k in range(images)]
    names = [f"value {t}" for t in range(targets)]
    found = attempt(
        lambda: explain_outputs(
            model, inputs, partial(_values, model, rows, targets), "trunk", names, **settings
        )
    )
    if isinstance(found, Refused):  # a few cells may be anything
        several = _is_channels_last_too(channels, stride, size)
        expect(min(size) // stride <= 2 or several, f"refused: {found}")
        return found
    truth = _truth(model, inputs, rows, targets).detach()
    for maps, true in zip(found, truth, strict=True):
        expect(
            maps.values.shape == true.shape,
            f"shape {tuple(maps.values.shape)}, not {tuple(true.shape)}",
        )
        error = float((maps.values - true).abs().max() / true.max().clamp(min=1e-12))
        expect(error < 1e-4, f"error {error:.2g} of the peak")
    return RIGHT


def _method(method: str, layer: bool, folder: Path) -> str:
    model, inputs = _Net(16, 4, 3), [_image(64, 96)]
    values = partial(_values, model, 3, 1)
    call = partial(explain_outputs, model, inputs, values, method=method)
    found = attempt(partial(call, layer="trunk") if layer else call)
    if method in ("d_rise", "nothing") or (method == "input_gradient") == layer:
        expect(isinstance(found, Refused), "it has no effect, and no word is said")
        return found
    expect(not isinstance(found, Refused), f"refused: {found}")
    (maps,) = found
    expect(len(maps) == 3 and maps.values.isfinite().all() and maps.values.any(), "empty maps")
    if method != "odam" and layer:
        plain = explain_outputs(model, inputs, values, layer="trunk")[0]
        expect(not torch.allclose(plain.values, maps.values), "the method has no effect")
    return RIGHT


def _setting(settings: dict, must: bool, folder: Path) -> str:
    model, inputs = _Net(16, 4, 3), [_image(64, 96)]
    call = partial(explain_outputs, model, inputs, partial(_values, model, 3, 1), "trunk")
    found = attempt(partial(call, **settings))
    if isinstance(found, Refused):
        return found
    expect(not must, "was to be refused, and has no effect")
    expect(found[0].values.isfinite().all(), "maps are not finite")
    return RIGHT


def _other_layer(folder: Path) -> str:
    """A layer on which the values do not depend: told, no map of zeros."""
    model, inputs = _Net(16, 4, 3), [_image(64, 96)]
    found = attempt(lambda: explain_outputs(model, inputs, partial(_values, model, 3, 1), "side"))
    expect(isinstance(found, Refused), "a map of zeros")
    return found


def _one_level(level: str, folder: Path) -> str:
    """Instances that read one level of a pyramid each: none gets a map of zeros on another's."""
    model = shipped()
    inputs = [picture(1)]

    def outputs(given):
        images = model.preprocess_image(given)
        features = model.backbone(images.tensor)
        return [torch.stack([features["p3"][0].max(), features["p4"][0].max()])]

    found = attempt(lambda: explain_outputs(model, inputs, outputs, layer=level))
    if isinstance(found, Refused):
        return found
    expect(
        found[0].values.flatten(1).any(1).all(),
        "one of the instances has a map of zeros, and no word",
    )
    return RIGHT


def _no_grad(how: str, folder: Path) -> str:
    """Somebody's inference under no_grad: recognised by that name, and the way out is shown."""
    model, inputs = _Net(16, 4, 3), [_image(64, 96)]
    plain = partial(_values, model, 3, 1)
    outputs = {
        "decorated": torch.no_grad()(plain), "inference_mode": torch.inference_mode()(plain),
        "detached": lambda x: [v.detach() for v in plain(x)],
        "numpy": lambda x: [torch.tensor(v.tolist()) for v in plain(x)],
        "method": None,
    }[how]  # fmt: skip
    if how == "method":
        model.forward = torch.no_grad()(model.forward)
        outputs = plain
    try:
        found = attempt(lambda: explain_outputs(model, inputs, outputs, "trunk"))
    except RuntimeError as error:
        raise Wrong(f"RuntimeError: {str(error)[:150]}") from error
    expect(isinstance(found, Refused), "was to be refused")
    if how in ("decorated", "method"):
        expect("no_grad" in found, f"no_grad is not named: {found}")
        expect(re.search("__wrapped__|enable_grad", found), f"no way out is shown: {found}")
    return found


def _layers_listed(folder: Path) -> str:
    model, inputs = _Net(16, 4, 3), [_image(64, 96)]
    found = attempt(lambda: explain_outputs(model, inputs, partial(_values, model, 3, 1), "trunc"))
    expect(isinstance(found, Refused) and "trunk" in found, f"layers are not listed: {found}")
    return found


def _bad(outputs, words: str, folder: Path) -> str:
    model, inputs = _Net(16, 4, 3), [_image(64, 96)]
    found = attempt(lambda: explain_outputs(model, inputs, partial(outputs, model), "trunk"))
    expect(isinstance(found, Refused), f"was to be refused: {found}")
    return found


def _detector(kind: str, layer: str, method: str, folder: Path) -> str:
    """The scores of a shipped detector by its own inference, on a layer of the backbone."""
    model, inputs = shipped(kind), [picture(1)]
    more = {"norm_statistics": "exact"}
    truth = explain(model, inputs, ["class"], layer=layer, method=method, **more)[0]["instances"]

    def outputs(given):
        with torch.enable_grad():
            if kind == "faster_rcnn":
                return [model.inference(given, do_postprocess=False)[0].scores]
            images = model.preprocess_image(given)
            features = model.backbone(images.tensor)
            features = [features[f] for f in model.head_in_features]
            return [model.forward_inference(images, features, model.head(features))[0].scores]

    found = explain_outputs(
        model, inputs, outputs, layer=f"backbone.bottom_up.{layer}", method=method
    )
    expect(len(found[0]) > 0, "nothing is found")
    mine = found[0].dense(48, 48).flatten(1)
    true = truth.odam_maps.dense(48, 48).flatten(1)
    for row in true[true.amax(1) > 0]:  # whatever their order
        same = torch.nn.functional.cosine_similarity(mine, row[None], dim=1).max()
        expect(same > 0.999, f"cosine {float(same):.3f} with what explain says")
    return RIGHT


def cases(rng: Random) -> Iterator[Case]:
    for number in range(40):
        channels, stride = rng.choice([1, 3, 16, 64, 256]), rng.choice([1, 4, 8, 16])
        size = (rng.choice([32, 64, 97, 200]), rng.choice([33, 64, 160, 256]))
        elements = channels * (size[0] // stride) * (size[1] // stride)
        images, rows, targets = rng.choice([1, 1, 2, 3]), rng.choice([1, 2, 5]), rng.choice([1, 2])
        fault = "2 a layer above 2^15 elements" if elements > 2**15 else ""
        if rows == 1:
            fault = "2 a single instance"
        layer = f"{channels}x{size[0] // stride}x{size[1] // stride}"
        yield Case(f"exact-{number}-{layer}-{images}x{rows}x{targets}",
                   partial(_exact, channels, stride, size, images, rows, targets,
                       {"chunk_mb": rng.choice([1, 64])}), fault)  # fmt: skip
    yield Case(
        "exact-256x50x76",
        partial(_exact, 256, 16, (800, 1216), 1, 4, 1, {}),
        "2 a layer above 2^15 elements",
    )
    for method in ("odam", "grad_cam", "grad_cam_pp", "input_gradient", "d_rise", "nothing"):
        for layer in (True, False):
            if not layer and method in ("odam", "grad_cam", "grad_cam_pp"):
                continue
            fault = "2 Grad-CAM and Grad-CAM++ there" if "cam" in method else ""
            fault = "2 input_gradient" if method == "input_gradient" else fault
            if method == "input_gradient" and layer:
                fault = "1.6 explain_outputs(method='input_gradient')"
            yield Case(
                f"method-{method}-{'layer' if layer else 'no-layer'}",
                partial(_method, method, layer),
                fault,
            )
    for what, (settings, must) in {
        "logit": ({"score": "logit"}, True), "record": ({"record": True}, True),
        "unknown": ({"nothing": 1}, True),
        "norm": ({"norm_statistics": "exact"}, True), "names": ({"class_names": ["a"]}, True),
        "sigma": ({"smoothing_sigma": 1.5}, False),
        "sigma-nan": ({"smoothing_sigma": float("nan")}, True),
        "chunk-0": ({"chunk_mb": 0}, True), "chunk-tiny": ({"chunk_mb": 1e-9}, False),
        "layer-none": ({"targets": ()}, True),
        "targets-two": ({"targets": ["a", "b"]}, True), "target-none": ({"targets": [None]}, True),
    }.items():  # fmt: skip
        fault = "1.6 explain_outputs(score='logit')" if what == "logit" else ""
        yield Case(f"setting-{what}", partial(_setting, settings, must), fault)
    yield Case("other-layer", _other_layer, "2 a layer that an instance does not depend on")
    for level in ("backbone.fpn_output3", "backbone.fpn_output4"):
        yield Case(
            f"one-level-{level}",
            partial(_one_level, level),
            "2 a layer that an instance does not depend on",
        )
    for how in ("decorated", "inference_mode", "detached", "numpy", "method"):
        yield Case(f"no-grad-{how}", partial(_no_grad, how), "2 @torch.no_grad is recognised")
    yield Case(
        "layers-are-listed", _layers_listed, "2 layers are listed for models that are no Backbone"
    )
    for what, outputs in {
        "none": lambda m, x: None, "tensor": lambda m, x: m(x)[0].sum(), "empty": lambda m, x: [],
        "number": lambda m, x: [3.0],
        "numpy": lambda m, x: [m(x)[0][0].detach().numpy()], "3d": lambda m, x: [m(x)[0][None]],
        "strings": lambda m, x: ["a"],
        "twice": lambda m, x: [m(x)[0][0] + m(x)[0][0]], "integers": lambda m,
        x: [m(x)[0][0].long()], "two": lambda m, x: [m(x)[0][0]] * 2,
        "nan": lambda m, x: [m(x)[0][0] * float("nan")], "scalar": lambda m, x: [m(x)[0][0].sum()],
    }.items():  # fmt: skip
        yield Case(f"outputs-{what}", partial(_bad, outputs, ""))
    for kind in ("faster_rcnn", "retinanet"):
        for layer in ("res3", "res4", "res5"):
            for method in ("odam", "grad_cam", "grad_cam_pp"):
                yield Case(
                    f"detector-{kind}-{layer}-{method}", partial(_detector, kind, layer, method)
                )
