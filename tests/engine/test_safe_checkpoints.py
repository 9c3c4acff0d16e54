"""Checkpoints, and other pickles, are data: arrays and tensors are read, and nothing is run."""

import functools
import io
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from demo_tool import SLIM
from demo_tool import tool as demo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.structures import BoxMode
from PIL import Image
from torch import nn

from experiments.crowds import candidates
from odam_d2.engine import Trainer, load_weights, setup_cfg, setup_lazy
from odam_d2.engine.checkpointer import SafeCheckpointer
from odam_d2.engine.lazy_trainer import check_lazy_run
from odam_d2.engine.proposals import check_proposals
from odam_d2.engine.safe_pickle import load_arrays
from odam_d2.errors import UserError, run_tool
from odam_d2.model_zoo import strip_checkpoint
from odam_d2.modeling.explain import explain
from odam_d2.modeling.settings import DRiseSettings

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


class Nested:
    """A tensor's storage, by PyTorch's own function for it, which unpickles anything."""

    def __init__(self, inner: object):
        self.inner = inner

    def __reduce__(self):
        data = io.BytesIO()
        torch.save(self.inner, data)
        return torch.storage._load_from_bytes, (data.getvalue(),)


@pytest.fixture
def evil(tmp_path):
    marker = tmp_path / "it_ran"
    yield Evil(marker)
    assert not marker.exists()


def small_model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(OrderedDict(top=nn.Conv2d(1, 2, 1), norm=nn.BatchNorm2d(2)))
    model.norm.running_var[:] = torch.tensor([2.0, 3.0])
    return model


def save(content: object, path: Path) -> str:
    """As the ending says."""
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=path.stem != "legacy")
    return str(path)


@pytest.mark.parametrize("name", ["w.pkl", "w.pth", "legacy.pth", "w.pyth", "w.anything"])
@pytest.mark.parametrize("place", ["model", "weight", "beside"])
def test_what_runs_is_refused_in_every_kind_of_checkpoint(name, place, evil, tmp_path):
    model = small_model()
    weights = {key: value.numpy() for key, value in model.state_dict().items()}
    key = "model_state" if name.endswith(".pyth") else "model"
    content = {key: weights, "__author__": "x", "matching_heuristics": True}
    if place == "weight":
        weights["top.weight"] = evil
    else:
        content["model" if place == "model" else "optimizer"] = evil
    with pytest.raises(UserError, match=r"not a checkpoint.*(system|numpy)"):
        load_weights(model, save(content, tmp_path / name))


def test_weights_only_does_not_depend_on_the_default_of_pytorch(evil, tmp_path, monkeypatch):
    """Before 2.6, ``torch.load`` unpickled anything unless it was told not to."""
    load = torch.load

    @functools.wraps(load)
    def old(file, map_location=None, weights_only=False, **more):
        return load(file, map_location=map_location, weights_only=weights_only, **more)

    monkeypatch.setattr(torch, "load", old)
    for content in (evil, Nested(evil)):
        for name in ("w.pth", "w.pyth", "w.pkl"):
            with pytest.raises(UserError, match="not a checkpoint"):
                load_weights(small_model(), save({"model": content}, tmp_path / name))


@pytest.mark.parametrize("author", ["Detectron2", "Caffe2", "ImageNet of Caffe2", "pycls"])
def test_checkpoints_of_the_zoos_load_as_by_detectron2(author, tmp_path):
    weights = {key: value.numpy() for key, value in small_model().state_dict().items()}
    if author == "Detectron2":
        content = {"model": weights, "__author__": author, "matching_heuristics": True}
    elif author == "pycls":
        content = {"model_state": {key: torch.from_numpy(v) for key, v in weights.items()}}
    else:
        weights = {"top_w": weights["top.weight"], "top_b": weights["top.bias"],
                   "top_w_momentum": weights["top.weight"] + 1}  # fmt: skip
        content = {"blobs": weights, "cfg": "A: 1"} if author == "Caffe2" else weights
    path = save(content, tmp_path / ("w.pyth" if author == "pycls" else "w.pkl"))
    states = []
    for checkpointer in (DetectionCheckpointer, SafeCheckpointer):
        model = small_model()
        for tensor in model.state_dict().values():
            tensor.zero_()
        checkpointer(model).load(path)
        states.append(model.state_dict())
    theirs, ours = states
    assert theirs["top.weight"].abs().sum() > 0
    for key, value in theirs.items():
        assert torch.equal(ours[key], value)


def test_optimizer_and_further_state_load(tmp_path):
    """What ``--resume`` reads: also the rest of a checkpoint, numbers, text and lists."""
    model, other = small_model(), small_model()
    optimizers = [torch.optim.SGD(m.parameters(), 0.1, momentum=0.9) for m in (model, other)]
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizers[0].step()
    SafeCheckpointer(model, str(tmp_path), optimizer=optimizers[0]).save("x", iteration=3, a=[None])
    rest = SafeCheckpointer(other, str(tmp_path), optimizer=optimizers[1]).load(
        str(tmp_path / "x.pth")
    )
    assert rest["iteration"] == 3
    assert rest["a"] == [None]
    assert torch.equal(model.top.weight, other.top.weight)
    momentum = [optimizer.state_dict()["state"][0]["momentum_buffer"] for optimizer in optimizers]
    assert torch.equal(*momentum)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_tensors_and_containers_are_read(protocol):
    shared = torch.arange(4.0)
    content = {
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "half": np.ones(3, np.float16),
        "scalar": np.float32(3),
        "text": np.array(["ab", "c"]),
        "tensor": shared[1:],
        "again": shared,
        "bfloat16": torch.ones(2, dtype=torch.bfloat16),
        "parameter": nn.Parameter(torch.ones(2)),
        "bytes": b"abc\xff",
        "set": {1, 2},
        "ordered": OrderedDict(a=(1, None)),
        "mode": BoxMode.XYWH_ABS,
    }
    found = load_arrays(io.BytesIO(pickle.dumps(content, protocol=protocol)))
    assert list(found) == list(content)
    for key, value in content.items():
        assert type(found[key]) is type(value), key
        if isinstance(value, (np.ndarray, torch.Tensor)):
            assert found[key].dtype == value.dtype
            assert (found[key] == value).all()
        else:
            assert found[key] == value


def test_pickles_of_numpy_1_and_of_python_2():
    """Where NumPy's parts were, what builtins were called, and text as bytes."""
    content = {"a": np.arange(3.0), "s": np.int64(7), "set": {1}}
    data = pickle.dumps(content, protocol=2)
    assert b"c__builtin__\nset" in data
    found = load_arrays(io.BytesIO(data.replace(b"numpy._core", b"numpy.core")))
    assert found["a"].tolist() == [0, 1, 2]
    assert found["s"] == 7
    # An array and its name, as Python 2 writes them: byte strings, beyond ASCII.
    old = (
        b"\x80\x02}U\x01\xe9cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b"
        b"\x87R(K\x01K\x01\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89U\x04\x00\x00\x80\xbftbs."
    )
    assert load_arrays(io.BytesIO(old)) == {"é": np.array([-1], np.float32)}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text",
        b"\x80\x04",
        b"cos\nsystem\n(S'x'\ntR.",
        b"cbuiltins\neval\n.",
        b"c__builtin__\ngetattr\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
        b"ctorch.serialization\nload\n.",
        b"c_codecs\nencode\n(S'x'\nS'zip'\ntR.",
        # Attributes of what may be called.
        b"ctorch._utils\n_rebuild_tensor_v2\n(N}S'__defaults__'\nI1\nstb.",
        b"cnumpy\nndarray\n(N}S'tolist'\nI1\nstb.",
        b"ccollections\nOrderedDict\n(N}S'items'\nI1\nstb.",
    ],
)
def test_other_pickles_are_refused(data):
    with pytest.raises(pickle.UnpicklingError, match=r"."):
        load_arrays(io.BytesIO(data))
    assert torch._utils._rebuild_tensor_v2.__defaults__ == (None,)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_runs_is_refused_in_every_protocol(protocol, evil):
    for content in (evil, {"model": [evil]}, Nested(evil), np.array([evil], dtype=object)):
        with pytest.raises(pickle.UnpicklingError, match="system"):
            load_arrays(io.BytesIO(pickle.dumps(content, protocol=protocol)))


def test_proposals_are_read_as_data(evil, tmp_path):
    boxes = [np.zeros((2, 4), np.float32)]
    content = {"ids": [1], "boxes": boxes, "objectness_logits": [np.zeros(2)]}
    content["bbox_mode"] = BoxMode.XYXY_ABS
    check_proposals([save(content, tmp_path / "good.pkl")])
    with pytest.raises(UserError, match=r"evil\.pkl.*system"):
        check_proposals([save({**content, "ids": evil}, tmp_path / "evil.pkl")])
    with pytest.raises(UserError, match="cannot be read"):
        check_proposals([str(tmp_path / "none.pkl")])


def test_proposals_of_a_run_are_checked(evil, tmp_path):
    """In the tools, before Detectron2 reads them."""
    path = save(evil, tmp_path / "evil.pkl")
    opts = ["MODEL.LOAD_PROPOSALS", "True", "DATASETS.PROPOSAL_FILES_TRAIN", [path]]
    cfg = setup_cfg("", [*opts, "DATASETS.PROPOSAL_FILES_TEST", [path]])
    for build in (
        lambda: Trainer.build_train_loader(cfg),
        lambda: Trainer.build_test_loader(cfg, "x"),
    ):
        with pytest.raises(UserError, match="no file of proposals"):
            build()
    lazy = setup_lazy(str(Path(__file__).parents[1] / "lazy_configs" / "retinanet_slim.py"))
    lazy.dataloader.test.dataset.names = ()
    lazy.dataloader.test.dataset.proposal_files = [path]
    arguments = type("Arguments", (), {"eval_only": True, "resume": False, "config_file": "x"})
    with pytest.raises(UserError, match="no file of proposals"):
        check_lazy_run(lazy, arguments)


def test_the_demo_runs_nothing(evil, tmp_path, capsys):
    Image.new("RGB", (64, 64)).save(tmp_path / "image.png")
    for name in ("w.pkl", "w.pth"):
        path = save({"model": evil, "__author__": "x"}, tmp_path / name)
        opts = [str(value) for value in (*SLIM, "MODEL.WEIGHTS", path)]
        arguments = ["--input", tmp_path / "image.png", "--output", tmp_path / "out"]
        config = tmp_path / "empty.yaml"
        config.write_text("VERSION: 2\n")
        arguments = [*map(str, arguments), "--config-file", str(config), "--opts", *opts]
        assert run_tool(lambda given=arguments: demo.run(given)) == 1
        assert "posix.system" in capsys.readouterr().err


def test_a_saved_state_runs_nothing(evil, tmp_path, faster_rcnn):
    """Sums of D-RISE, candidates of the crowd experiment, a checkpoint to strip or to resume."""
    inputs = [{"image": torch.rand(3, 64, 64) * 255}]

    d_rise = DRiseSettings(num_masks=2, state_dir=str(tmp_path / "states"))
    given = {"method": "d_rise", "d_rise": d_rise}
    explain(faster_rcnn, inputs, ("class",), **given)
    (state,) = (tmp_path / "states").iterdir()
    save(evil, state)
    tried = [
        lambda: explain(faster_rcnn, inputs, ("class",), **given),
        lambda: candidates.load(Path(save([evil], tmp_path / "candidates.pth"))),
        lambda: strip_checkpoint(save({"model": evil}, tmp_path / "w.pth"), tmp_path / "out.pth"),
    ]
    (tmp_path / "last_checkpoint").write_text("w.pth")
    model = small_model()
    tried.append(lambda: SafeCheckpointer(model, str(tmp_path)).resume_or_load("", resume=True))
    for attempt in tried:
        try:
            attempt()
        except (UserError, pickle.UnpicklingError):
            continue  # refused, as good as left out
