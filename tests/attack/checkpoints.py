"""Checkpoints cut off, of other shapes, with other things in them, or with code."""

import copy
import functools
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image

from .case import RIGHT, Case, Refused, Wrong, expect
from .material import config_file, crop, shipped
from .tools import judge, refusal, tool, whole

__all__ = ["cases"]


class _Evil:
    def __init__(self, mark: Path):
        self.mark = str(mark)

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@functools.cache
def _state() -> dict:
    return {k: v.clone() for k, v in shipped().state_dict().items()}


def _load(path: Path) -> torch.nn.Module | Refused:
    from odam_d2.engine import load_weights
    from odam_d2.errors import UserError

    model = shipped(own=True)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.zero_()
    try:
        load_weights(model, str(path))
    except UserError as error:
        expect("\n" not in str(error), f"not one line: {error}")
        return Refused(str(error))
    return model


def _good(save: Callable[[Path], object], suffix: str, exact: bool, folder: Path) -> str:
    path = folder / f"weights.{suffix}"
    save(path)
    model = _load(path)
    expect(not isinstance(model, Refused), f"a good checkpoint is refused: {model}")
    for name, value in model.state_dict().items():
        true = _state()[name]
        same = (
            torch.equal(value, true) if exact else torch.allclose(value, true.to(value), 1e-2, 1e-3)
        )
        expect(same, f"{name} is another")
    return RIGHT


def _torch(content: object, path: Path) -> None:
    torch.save(content, path)


def _pickled(content: object, protocol: int, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol))


def _bad(content: Callable[[Path], object], suffix: str, folder: Path) -> str:
    """Refused, by loading and by the tool that strips it; nothing runs."""
    mark, path, target = (
        folder / "mark",
        folder / f"weights.{suffix}",
        folder / "out" / "stripped.pth",
    )
    target.parent.mkdir()
    made = content(mark)
    if isinstance(made, bytes):
        path.write_bytes(made)
    else:
        (partial(_pickled, protocol=2) if suffix == "pkl" else _torch)(made, path=path)
    try:
        found = _load(path)
    finally:
        if mark.exists():
            raise Wrong("it ran")
    expect(isinstance(found, Refused), "was to be refused, and loads")
    ran = tool("strip_checkpoint", path, target)
    expect(not mark.exists(), "it ran in strip_checkpoint")
    if ran.status:
        refusal(ran)
    whole(target.parent)
    return found


def _strip_bad(content: object, folder: Path) -> str:
    path, target = folder / "weights.pth", folder / "out" / "stripped.pth"
    torch.save(content, path)
    ran = tool("strip_checkpoint", path, target)
    whole(folder)
    expect(ran.status != 0, "was to be refused")
    return refusal(ran)


def _strip_good(content: Callable[[], object], folder: Path) -> str:
    path, target = folder / "weights.pth", folder / "out" / "stripped.pth"
    torch.save(content(), path)
    ran = tool("strip_checkpoint", path, target)
    expect(ran.status == 0, f"failed: {ran.err[-300:]}")
    found = torch.load(target, weights_only=True)["model"]
    expect(
        all(torch.equal(found[k].float(), v.float()) for k, v in _state().items()), "other weights"
    )
    return RIGHT


def _evil_state(mark: Path) -> dict:
    return {"model": {**_state(), "extra": _Evil(mark)}, "__author__": "x"}


def _cut(place: float) -> bytes:
    import io

    buffer = io.BytesIO()
    torch.save({"model": _state()}, buffer)
    return buffer.getvalue()[: int(place * len(buffer.getvalue()))]


def _flipped(seed: int, folder: Path) -> str:
    """One byte is another: refused, or what loads is all that was there but for a value."""
    data, rng = bytearray(_cut(1.0)), Random(seed)
    place = rng.randrange(len(data) - 60000, len(data)) if seed % 2 else rng.randrange(4000)
    data[place] ^= 1 << rng.randrange(8)
    path = folder / "weights.pth"
    path.write_bytes(data)
    found = _load(path)
    return found if isinstance(found, Refused) else RIGHT


def _nan(how: str, name: str, folder: Path) -> str:
    """Weights that are not finite: somebody has to say so."""
    state = copy.deepcopy(_state())
    for key, value in state.items():
        if value.is_floating_point() and (how == "all" or "cls_score.weight" in key):
            value.fill_(float("inf") if how == "inf" else float("nan"))
    torch.save({"model": state}, folder / "odd.pth")
    Image.fromarray(crop(1)).save(folder / "0.png")
    from .material import NAMES, SMALL, coco, register

    path = coco(folder / "data", 1)
    base, data = ["--config-file", config_file()], ["DATASETS.TEST", f"('{NAMES[0]}',)", *SMALL]
    weights = ["MODEL.WEIGHTS", str(folder / "odd.pth")]
    arguments = {
        "demo": [*base, "--input", "0.png", "--output", "out", "--opts", *weights],
        "analyze_errors": [*base, "--output", "out", *data, *weights],
        "evaluate_explanations": [*base, "--output", "out", *data, *weights],
        "train_net": ["--eval-only", *base, *data, *weights, "OUTPUT_DIR", "out"],
    }[name]
    ran = tool(name, *arguments, before=lambda: register(path), cwd=folder)
    if ran.status == 0:
        said = re.search(r"NaN|not finite|infinite", ran.out + ran.err)
        expect(said, f"status 0, and not a word: {ran.out.strip().splitlines()[-1:]}")
    return judge(ran, folder / "out")


def _special(make: Callable[[Path], object], folder: Path) -> str:
    path = folder / "weights.pth"
    make(path)
    ran = tool("demo", "--config-file", config_file(), "--input", "0.png", "--output", "out",
        "--opts",
               "MODEL.WEIGHTS", str(path),
               before=lambda: Image.fromarray(crop(1)).save(folder / "0.png"),
               cwd=folder)  # fmt: skip
    expect(ran.status != 0, "was to be refused")
    return judge(ran, folder / "out")


def _unsafe_torch(folder: Path) -> str:
    """Where ``torch.load`` does not restrict by default (before torch 2.6), our tools still do."""
    original, mark, path = torch.load, folder / "mark", folder / "weights.pth"
    torch.save(_evil_state(mark), path)

    def old(*args, weights_only=None, **kwargs):
        return original(*args, weights_only=bool(weights_only), **kwargs)

    torch.load = old
    try:
        found = _load(path)
    finally:
        if mark.exists():
            raise Wrong("it ran")
    expect(isinstance(found, Refused), "it loads")
    return found


def cases(rng: Random) -> Iterator[Case]:
    state = _state()
    arrays = {k: v.numpy() for k, v in state.items()}
    for what, content in {
        "plain": {"model": state}, "bare": state, "ordered": {"model": OrderedDict(state)},
        "trainer": {"model": state, "optimizer": {"state": {}, "param_groups": []}, "iteration": 7},
        "more": {"model": {**state, "extra.weight": torch.ones(3)}},
        "prefix": {"model": {f"module.{k}": v for k, v in state.items()}},
        "parameters": {"model": {k: torch.nn.Parameter(v) if v.is_floating_point() else v for k,
            v in state.items()}},
        "not-contiguous": {"model": {k: v.t().contiguous().t() if v.dim() == 2 else v for k,
            v in state.items()}},
        "double": {"model": {k: v.double() if v.is_floating_point() else v for k,
            v in state.items()}},
    }.items():  # fmt: skip
        yield Case(f"good-pth-{what}", partial(_good, partial(_torch, content), "pth", True))
    yield Case(
        "good-pth-half",
        partial(
            _good,
            partial(
                _torch,
                {"model": {k: v.half() if v.is_floating_point() else v for k, v in state.items()}},
            ),
            "pth",
            False,
        ),
    )
    for protocol in (0, 2, 4, 5):
        for what, content in {
            "arrays": {"model": arrays, "__author__": "d2"},
            "fortran": {"model": {k: np.asfortranarray(v) if v.ndim else v for k,
                v in arrays.items()}, "__author__": "d2"},
            "tensors": {"model": state, "__author__": "d2"},
            "ordered": {"model": OrderedDict(arrays), "__author__": "d2"},
        }.items():  # fmt: skip
            yield Case(
                f"good-pkl-{what}-{protocol}",
                partial(_good, partial(_pickled, content, protocol), "pkl", True),
            )
    evil = {"value": _evil_state, "model": lambda m: {"model": _Evil(m), "__author__": "x",
        "matching_heuristics": True},
            "top": _Evil, "key": lambda m: {"model": {}, "__author__": _Evil(m)},
            "list": lambda m: [_Evil(m)]}  # fmt: skip
    for what, content in evil.items():
        for suffix in ("pkl", "pth", "pyth", "bin"):
            fault = "4.4 .pkl weights run" if suffix == "pkl" else ""
            yield Case(f"evil-{what}.{suffix}", partial(_bad, content, suffix), fault)
    yield Case("evil-old-torch", _unsafe_torch, "4.6 weights_only for every torch")
    for what, content in {
        "list": [1, 2], "none": None, "number": 3, "string": "hello", "empty": {},
        "model-none": {"model": None},
        "model-list": {"model": [1]}, "model-empty": {"model": {}}, "model-string": {"model": "x"},
        "tensor": torch.ones(3),
        "other": {"model": {"a": torch.ones(2)}}, "strings": {"model": dict.fromkeys(state, "x")},
        "numbers": {"model": dict.fromkeys(state, 3)},
        "shapes": {"model": {k: v[None] for k, v in state.items()}},
        "one-missing": {"model": dict(list(state.items())[1:])},
        "number-keys": {"model": dict(enumerate(state.values()))},
        "nested": {"model": {"model": state}},
        "sparse": {"model": {k: v.to_sparse() if v.dim() else v for k, v in state.items()}},
    }.items():  # fmt: skip
        for suffix in ("pth", "pkl"):
            yield Case(f"bad-{what}.{suffix}", partial(_bad, lambda mark, c=content: c, suffix))
        if what in (
            "list",
            "none",
            "number",
            "string",
            "empty",
            "model-none",
            "model-list",
            "model-string",
            "tensor",
            "strings",
            "numbers",
        ):
            yield Case(f"strip-{what}", partial(_strip_bad, content))
    yield Case("strip-good", partial(_strip_good, lambda: {"model": state, "iteration": 3}))
    for number in range(8):
        place = rng.random() if number else 0.0
        yield Case(f"cut-{number}.pth", partial(_bad, lambda mark, p=place: _cut(p), "pth"))
    for number in range(3):
        noise = bytes(rng.randrange(256) for _ in range(500))
        for suffix in ("pth", "pkl"):
            yield Case(f"noise-{number}.{suffix}", partial(_bad, lambda mark, n=noise: n, suffix))
    for number in range(12):
        yield Case(f"flipped-{number}", partial(_flipped, 2 * rng.randrange(2**30) + number % 2))
    for name in ("demo", "analyze_errors", "evaluate_explanations", "train_net"):
        for how in ("all", "some", "inf"):
            yield Case(f"nan-{how}-{name}", partial(_nan, how, name), "1.9 weights with NaN")
    for what, make in {"folder": Path.mkdir, "fifo": os.mkfifo,
        "dangling": lambda p: p.symlink_to("lost"),
                       "zero-device": lambda p: p.symlink_to("/dev/zero"),
                       "empty": Path.touch}.items():  # fmt: skip
        yield Case(f"special-{what}", partial(_special, make), seconds=25)
