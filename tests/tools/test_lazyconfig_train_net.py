"""tools/lazyconfig_train_net.py: training, resuming, evaluating, and what goes wrong."""

import builtins
import json
import re
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import SimpleTrainer
from tiny_coco import last_checkpoint, logged_ap, register_tiny
from tool_modules import load_tool, run_in_process

from odam_d2 import ExplainSettings
from odam_d2.engine import lazy_trainer, setup_lazy
from odam_d2.errors import UserError

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "tests" / "lazy_configs" / "retinanet_slim.py"


tool = load_tool("lazyconfig_train_net")
run = partial(run_in_process, tool)


def train(output_dir, *arguments) -> int:
    return run("--config-file", CONFIG, *arguments, f"train.output_dir={output_dir}")


@pytest.fixture(scope="module", autouse=True)
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    register_tiny("tiny_lazy", folder)
    register_coco_instances("lost_lazy", {}, str(folder / "lost.json"), str(folder))
    yield
    DatasetCatalog.remove("tiny_lazy")
    MetadataCatalog.remove("tiny_lazy")
    DatasetCatalog.remove("lost_lazy")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """An output folder after three iterations and an evaluation."""
    output_dir = tmp_path_factory.mktemp("trained") / "run"
    assert train(output_dir, "train.eval_period=3") == 0
    return output_dir


def test_with_a_seed_a_resumed_training_ends_as_one_that_was_not_interrupted(trained, tmp_path):
    (tmp_path / "model_0000001.pth").write_bytes((trained / "model_0000001.pth").read_bytes())
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    assert train(tmp_path, "--resume", "train.eval_period=3") == 0
    whole, resumed = last_checkpoint(trained), last_checkpoint(tmp_path)
    assert resumed["iteration"] == whole["iteration"] == 2
    for name, value in whole["model"].items():
        assert torch.equal(resumed["model"][name], value), name


def test_training_writes_checkpoints_config_and_evaluation(trained):
    assert (trained / "model_0000001.pth").is_file()
    assert last_checkpoint(trained)["iteration"] == 2
    assert LazyConfig.load(str(trained / "config.yaml")).train.max_iter == 3
    rows = [json.loads(line) for line in (trained / "metrics.json").read_text().splitlines()]
    assert any("bbox/AP50" in row for row in rows)
    assert any("total_loss" in row for row in rows)


def test_eval_only_gives_the_figures_of_the_end_of_training(trained, tmp_path):
    """Also from the config that the training saved."""
    at_the_end = logged_ap((trained / "log.txt").read_text())
    options = [
        f"train.init_checkpoint={trained / 'model_final.pth'}",
        f"train.output_dir={tmp_path}",
    ]
    assert run("--config-file", trained / "config.yaml", "--eval-only", *options) == 0
    assert logged_ap((tmp_path / "log.txt").read_text()) == at_the_end
    assert not (tmp_path / "last_checkpoint").exists()


def test_resume_goes_on_where_training_stopped(trained, tmp_path):
    for name in ("last_checkpoint", "model_final.pth"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    assert train(tmp_path, "--resume", "train.max_iter=5") == 0
    assert "Starting training from iteration 3" in (tmp_path / "log.txt").read_text()
    after = last_checkpoint(tmp_path)
    assert after["iteration"] == 4
    # So does the schedule of the learning rate: one step for each of five iterations.
    assert after["trainer"]["hooks"]["LRScheduler"]["last_epoch"] == 5


def test_ctrl_c_saves_what_was_trained(tmp_path, monkeypatch, capsys):
    step = SimpleTrainer.run_step

    def interrupted(self):
        if self.iter == 1:
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(SimpleTrainer, "run_step", interrupted)
    assert train(tmp_path) == 130
    assert last_checkpoint(tmp_path)["iteration"] == 0
    assert "--resume" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_is_told(tmp_path, capsys):
    assert train(tmp_path, "train.max_iter=30", "optimizer.lr=1e9") == 1
    assert "a smaller optimizer.lr may help" in capsys.readouterr().err


def test_evaluation_does_not_explain(trained, tmp_path, monkeypatch):
    """A model of ours in a LazyConfig: nothing is added to what evaluators see."""
    seen = []
    monkeypatch.setattr(
        lazy_trainer, "inference_on_dataset", lambda model, *_: seen.append(model) or {}
    )
    text = CONFIG.read_text() + (
        "\nfrom odam_d2 import ExplainSettings\nfrom odam_d2.modeling import OdamRetinaNet\n"
        "model._target_ = OdamRetinaNet\nmodel.odam = L(ExplainSettings)(targets=('class',))\n"
    )
    (tmp_path / "ours.py").write_text(text)
    options = [f"train.init_checkpoint={trained / 'model_final.pth'}"]
    options.append(f"train.output_dir={tmp_path / 'out'}")
    assert run("--config-file", tmp_path / "ours.py", "--eval-only", *options) == 0
    model = seen[0].eval()
    with torch.no_grad():
        fields = model([{"image": torch.zeros(3, 64, 96)}])[0]["instances"].get_fields()
    assert "odam_maps" not in fields
    model.odam = ExplainSettings(targets=("class",))
    with torch.no_grad():
        fields = model([{"image": torch.zeros(3, 64, 96)}])[0]["instances"].get_fields()
    assert "odam_maps" in fields, "the model was one of ours"


class TestSetup:
    @pytest.fixture(autouse=True)
    def no_cuda(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def zoo(self, *opts):
        return setup_lazy(str(ROOT / "configs/ViTDet/mask_rcnn_vitdet_b.py"), opts)

    def test_device_is_cpu_where_cuda_is_missing_and_mixed_precision_off(self):
        train = self.zoo().train
        assert (train.device, train.amp.enabled) == ("cpu", False)

    def test_cuda_where_there_is_one(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        train = self.zoo().train
        assert (train.device, train.amp.enabled) == ("cuda", True)
        assert self.zoo("train.device=cpu").train.device == "cpu"

    def test_overrides(self):
        """Keys of the file, indices of lists, arguments of what is called, and forced ones."""
        cfg = self.zoo(
            "model.backbone.net.depth=2",
            "model.roi_heads.box_predictor.loss_weight=2.0",
            "dataloader.train.mapper.augmentations.0.prob=0.25",
            "train.seed=7",
            "+model.unheard.of=1",
        )
        assert cfg.model.backbone.net.depth == 2
        assert cfg.model.roi_heads.box_predictor.loss_weight == 2.0
        assert cfg.dataloader.train.mapper.augmentations[0].prob == 0.25
        assert (cfg.train.seed, cfg.model.unheard.of) == (7, 1)

    def test_train_is_completed(self, tmp_path):
        (tmp_path / "bare.py").write_text("model = dict(a=1)\ntrain = dict(max_iter=5)\n")
        cfg = setup_lazy(str(tmp_path / "bare.py"))
        assert (cfg.train.max_iter, cfg.train.log_period, cfg.train.device) == (5, 20, "cpu")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["train.max_iters=5"], "train.max_iters does not exist (did you mean train.max_iter?)"),
        (["nothing.like.it=5"], "config key nothing.like.it does not exist"),
        (["model.head.prior_probb=1"], "did you mean model.head.prior_prob?"),
        (["model.test_score_tresh=1"], "did you mean model.test_score_thresh?"),
        (["train.max_iter.deeper=1"], "train.max_iter.deeper does not exist"),
        (["train.max_iter"], "'train.max_iter' has no value"),
        (["train.max_iter={a"], "train.max_iter cannot be '{a'"),
        (["train.device=cuda"], "no CUDA device"),
        (["train.amp.enabled=True"], "train.amp.enabled needs CUDA"),
        (["train.init_checkpoint=nowhere/model.pth"], "'nowhere/model.pth' does not exist"),
        (["dataloader.train.dataset.names=tiny_lasy"], "not registered (did you mean tiny_lazy?)"),
        (["dataloader.test.dataset.names=lost_lazy"], "lost.json', which does not exist"),
        (["dataloader.train=null"], "has no 'dataloader.train', which this run needs"),
        (["--eval-only", "dataloader.evaluator=null"], "has no 'dataloader.evaluator'"),
        (["--num-gpus", "99"], "--num-gpus is 99"),
    ],
)
def test_error_in_options(options, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    flags = [text for text in options if "=" not in text and "." not in text]
    assert train(tmp_path / "out", *flags, *[text for text in options if text not in flags]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert sentence in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "config.py' does not exist"),
        ("model = 1\nmodel = undefined\n", "line 2, is not a usable config: NameError: name 'unde"),
        ("model = (\n", "is not a usable config: SyntaxError: '(' was never closed"),
        ("from .missing import model\n", "missing.py does not exist"),
        ("import no_such_package\n", "line 1, is not a usable config: ModuleNotFoundError"),
        ("train = {}\n", "has no 'model', so it is not a LazyConfig"),
        ("MODEL = {}\n", "configs with MODEL are for the tools that take YAML"),
        ("model = dict(_target_='torch.nn.Linear')\n", "has no 'dataloader.train'"),
    ],
)
def test_error_in_config_file(content, sentence, tmp_path, capsys):
    importer = builtins.__import__
    if content is not None:
        (tmp_path / "config.py").write_text(content)
    out = tmp_path / "out"
    assert run("--config-file", tmp_path / "config.py", f"train.output_dir={out}") == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not out.exists()
    assert builtins.__import__ is importer, "Detectron2's importer of configs was left in place"


def test_error_without_config_file(capsys):
    assert run("train.max_iter=1") == 1
    assert "name the config by --config-file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["model.head.conv_dims=many"], "model of the config cannot be built: "),
        (["optimizer.lr=fast"], "optimizer of the config cannot be built: "),
        (["+model.unheard_of=1"], "model of the config cannot be built: TypeError: "),
        (["model._target_=no_such_package.Model"], "No module named 'no_such_package'"),
    ],
)
def test_error_while_building(options, sentence, tmp_path, capsys):
    assert train(tmp_path, *options) == 1
    assert re.search(f"^error: .*{re.escape(sentence)}", capsys.readouterr().err, re.MULTILINE)


def test_a_missing_package_is_named(monkeypatch):
    """Detectron2's ViT imports timm when it is built."""
    for name in {"timm", *(n for n in sys.modules if n.startswith("timm."))}:
        monkeypatch.setitem(sys.modules, name, None)  # another test may have imported it
    cfg = setup_lazy(str(ROOT / "configs/ViTDet/mask_rcnn_vitdet_b.py"), ["train.device=cpu"])
    with pytest.raises(UserError, match="model of the config needs the Python package 'timm'"):
        lazy_trainer.build_lazy_model(cfg)


@pytest.mark.parametrize("mode", [["--eval-only"], []])
def test_a_file_that_is_no_checkpoint_is_refused(mode, tmp_path, capsys):
    (tmp_path / "bad.pth").write_bytes(b"not a checkpoint")
    options = [f"train.init_checkpoint={tmp_path / 'bad.pth'}"]
    assert train(tmp_path / "out", *mode, *options) == 1
    assert "bad.pth' is not a checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["model.num_classes=9"], "cls_score.weight is (54, 8, 3, 3) in the file and (81, 8"),
        (["train.init_checkpoint=''"], "train.init_checkpoint is empty"),
    ],
)
def test_eval_only_refuses_weights_that_do_not_fit(options, sentence, trained, tmp_path, capsys):
    weights = f"train.init_checkpoint={trained / 'model_final.pth'}"
    assert train(tmp_path, "--eval-only", weights, *options) == 1
    assert sentence in capsys.readouterr().err


def test_a_broken_interpolation_is_named(tmp_path):
    (tmp_path / "config.py").write_text("model = dict(a='${nowhere}', b=dict(c=1))\n")
    with pytest.raises(UserError, match=r"config key a cannot be read"):
        setup_lazy(str(tmp_path / "config.py"), ["model.a.b=2"])


def test_objects_of_classes_that_the_detector_has_not_end_it_before_a_step(tmp_path, capsys):
    """They are of classes 0 to 3: with 3 of them, Detectron2 takes the last for background."""
    few = ("model.num_classes=3", "model.head.num_classes=3")
    assert train(tmp_path, *few) == 1
    said = capsys.readouterr().err
    assert "data set 'tiny_lazy' has objects of class 3, counted from 0" in said
    assert "must be 6" in said
    assert not list(tmp_path.glob("*.pth"))
