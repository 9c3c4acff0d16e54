"""Config files are data: what Detectron2's say is read, and nothing in a file is run."""

import contextlib
import logging
from pathlib import Path

import pytest
from detectron2 import model_zoo
from detectron2.config import CfgNode, LazyConfig, get_cfg

from odam_d2.engine import setup_cfg, setup_lazy
from odam_d2.engine.literals import evaluate_literals
from odam_d2.engine.safe_yaml import merge_file, read_config
from odam_d2.errors import UserError

ROOT = Path(__file__).parents[2]
ZOO = Path(model_zoo.__file__).parent / "configs"
LAZY = ROOT / "tests" / "lazy_configs" / "retinanet_slim.py"


@pytest.fixture
def marker(tmp_path):
    """A file that exists after a test only if something of a config was run."""
    path = tmp_path / "it_ran"
    yield path
    assert not path.exists()


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_every_config_of_the_zoo_says_what_detectron2_reads():
    files = sorted(ZOO.rglob("*.yaml"))
    assert len(files) > 80
    logging.disable(logging.WARNING)  # of Detectron2: that its own way is unsafe
    try:
        for file in files:
            theirs = CfgNode.load_yaml_with_base(str(file), allow_unsafe=True)
            assert repr(read_config(str(file))) == repr(theirs)
            wanted = get_cfg()
            wanted.merge_from_file(str(file))
            found = merge_file(get_cfg(), str(file))
            assert found == wanted
            assert type(found) is CfgNode
            assert type(found.MODEL) is CfgNode
    finally:
        logging.disable(logging.NOTSET)


def test_old_keys_are_converted_as_by_detectron2(tmp_path):
    """Version 1 of Detectron2's keys: ``MODEL.WEIGHT`` became ``MODEL.WEIGHTS``."""
    file = write(tmp_path / "old.yaml", "MODEL: {WEIGHT: here.pkl}\nTEST: {AUG_ON: true}\n")
    wanted = get_cfg()
    wanted.merge_from_file(file)
    assert merge_file(get_cfg(), file).dump() == wanted.dump()
    assert wanted.MODEL.WEIGHTS == "here.pkl"


@pytest.mark.parametrize("kind", ["relative", "absolute", "home", "several"])
def test_bases_are_found_and_merged_as_by_detectron2(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "below").mkdir()
    write(tmp_path / "base.yaml", "A: {X: 1, Y: [1, 2]}\nB: 2\nC: {Z: 3}\n")
    write(tmp_path / "other.yaml", "A: {X: 4}\nE: 5\n")
    base = {
        "relative": "../base.yaml",
        "absolute": str(tmp_path / "base.yaml"),
        "home": "~/base.yaml",
        "several": '["../base.yaml", "../other.yaml"]',
    }[kind]
    file = write(tmp_path / "below" / "leaf.yaml", f"_BASE_: {base}\nA: {{Y: [3]}}\nD: null\n")
    assert read_config(file) == CfgNode.load_yaml_with_base(file)
    assert read_config(file)["A"] == {"X": 4 if kind == "several" else 1, "Y": [3]}


EVIL = [
    "!!python/object/apply:os.system ['touch {marker}']",
    "!!python/object/apply:subprocess.run [[touch, {marker}]]",
    "!!python/object/new:os.system ['touch {marker}']",
    '!!python/object/apply:eval [\'__import__("os").system("touch {marker}")\']',
    "!!python/object/apply:eval ['[x for x in ().__class__.__base__.__subclasses__()]']",
    '!!python/object/apply:builtins.exec [\'open("{marker}", "w")\']',
    "!!python/name:os.system ''",
    "!!python/module:this ''",
    "!!python/object:argparse.Namespace {{}}",
]


@pytest.mark.parametrize("value", EVIL)
@pytest.mark.parametrize("through", ["itself", "relative", "absolute", "second"])
def test_python_in_a_config_is_refused(value, through, tmp_path, marker):
    """Also in what a config inherits from, and before anything else in it is found to be wrong."""
    evil = write(
        tmp_path / "evil.yaml", f"NO_SUCH_KEY: 1\nOUTPUT_DIR: {value}\n".format(marker=marker)
    )
    write(tmp_path / "good.yaml", "OUTPUT_DIR: here\n")
    bases = {"relative": "evil.yaml", "absolute": evil, "second": '["good.yaml", "evil.yaml"]'}
    file = evil
    if through != "itself":
        file = write(tmp_path / "leaf.yaml", f"_BASE_: {bases[through]}\nVERSION: 2\n")
    with pytest.raises(UserError, match=r"evil\.yaml, line 2: "):
        setup_cfg(file)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("_BASE_: it.yaml\n", "inherits from itself"),
        ("_BASE_: below/../it.yaml\n", "inherits from itself"),
        ("_BASE_: none.yaml\n", r"its _BASE_ '.*none.yaml' does not exist"),
        ("_BASE_: {A: 1}\n", "must be a path or a list of them"),
        ("_BASE_: [1]\n", "must be a path or a list of them"),
        ("_BASE_: base.yaml\nMODEL: {DEVICE: cpu}\n", "has a value for MODEL"),
        ("", "holds no KEY: VALUE"),
        ("- 1\n", "holds no KEY: VALUE"),
        ("A: [1\n", "not a usable config"),
        ("A: !!int ''\n", "not a usable config"),
        ("A: !!timestamp x\n", "not a usable config"),
        ("A: " + "[" * 5000 + "\n", "not a usable config"),
        ("MODEL: {WEIGHTS: '" + "-" * 100_000 + "1'}\n", "not a usable config"),
        ("A: &a [*a]\n", "nested more than"),
        ("A: &a {B: *a}\n", "nested more than"),
        ("A: '" + "x" * 1_000_001 + "'\n", "characters"),
        ("OUTPUT_DIR: !!python/object/apply:eval [1]\n", "takes one expression"),
        ("OUTPUT_DIR: !!python/object/apply:eval {args: ['1']}\n", "takes one expression"),
        ("OUTPUT_DIR: !!python/object/apply:eval ['9**9**9']\n", "too large"),
    ],
)  # fmt: skip
def test_unusable_configs_are_told_in_one_sentence(text, sentence, tmp_path):
    write(tmp_path / "base.yaml", "MODEL: 1\n")
    (tmp_path / "below").mkdir()
    with pytest.raises(UserError, match=sentence) as caught:
        setup_cfg(write(tmp_path / "it.yaml", text))
    assert "\n" not in str(caught.value)


def test_a_few_lines_do_not_fill_the_memory(tmp_path):
    """Each of 30 lines has ten times the line before it."""
    lines = ["A0: &a0 {X: 1}"]
    lines += [
        f"A{n + 1}: &a{n + 1} {{" + ", ".join(f"K{k}: *a{n}" for k in range(10)) + "}"
        for n in range(30)
    ]
    with pytest.raises(UserError, match="values"):
        setup_cfg(write(tmp_path / "it.yaml", "\n".join(lines)))


@pytest.mark.parametrize(
    "text",
    [
        "[[x, x * 2**(1.0/3), x * 2**(2.0/3) ] for x in [32, 64, 128, 256, 512 ]]",
        " 1 - -2.5 // 2 % 3",
        "[(a, b) for a, b in [(1, 2), (3, 4)] for c in (0, 1, 2) if 0 < c <= 1 if a == 3]",
        "{'a': [1, 'b' * 2 + 'c'], 'b': (None, True, not 1)}",
        "[[0] * 3] * 2 + [[]]",
        "2 ** 1000 - 1",
        "[x + y for x in [1, 2] for y in [x, 10 * x]]",
    ],
)
def test_literals_have_the_value_that_python_gives_them(text):
    assert repr(evaluate_literals(text)) == repr(eval(text.strip()))


@pytest.mark.parametrize(
    "text",
    [
        "x", "__import__('os')", "(1).real", "[1][0]", "(lambda: 1)()", "f'{1}'", "b'1'", "...",
        "'%99999d' % 1", "9**9**9", "-9**9**9", "[0] * 10**9", "'a' * 10**9", "10**9 * (0,)",
        "[[0] * 90000] * 90000", "[[0] * 50000 for x in [0] * 50000]", "1 << 99", "1 / 0",
        "10.0 ** 400", "[] < []", "{[]: 1}", "{**{}}", "[*[1]]", "{1, 2}", "(x for x in [1])",
        "[x for x in 1]", "[x for x.y in [1]]", "[a for a, b in [(1,)]]", "1 if 1 else 2", "1; 2",
        "", "x = 1", "(" * 500 + ")" * 500, "-" * 9000 + "1", "1" * 20_000, "1\0",
    ],
)  # fmt: skip
def test_anything_else_is_no_literal(text):
    with pytest.raises(ValueError, match=r"."):
        evaluate_literals(text)


@pytest.mark.parametrize("value", ["-" * 100_000 + "1", "(" * 1000, "[" * 50_000, "1" * 5000])
def test_overrides_that_python_cannot_read(value):
    """What nests too deeply is told; what is just no Python is text, as ever."""
    with contextlib.suppress(UserError):
        assert value == setup_cfg("", ["OUTPUT_DIR", value]).OUTPUT_DIR


def test_a_saved_lazy_config_is_read_as_it_was(tmp_path):
    for name in (
        LAZY,
        ROOT / "configs/COCO-InstanceSegmentation/mask_rcnn_regnetx_4gf_dds_fpn_1x.py",
    ):
        cfg = LazyConfig.load(str(name))
        LazyConfig.save(cfg, str(tmp_path / "saved.yaml"))
        theirs = LazyConfig.load(str(tmp_path / "saved.yaml"))
        found = setup_lazy(str(tmp_path / "saved.yaml"), ["train.device=cpu"])
        assert found.model == theirs.model
        assert found.dataloader == theirs.dataloader
        assert found.optimizer == theirs.optimizer


EVIL_LAZY = [
    *(f"model: {value}" for value in EVIL),
    "model: {{_target_: os.system, command: 'touch {marker}'}}",
    "model: {{_target_: detectron2.utils.env.os.system, command: 'touch {marker}'}}",
    "model: {{_target_: detectron2.modeling.backbone.fpn.math.__loader__.exec_module}}",
    "model: {{_target_: torch.load, f: x, weights_only: false}}",
    "model: {{_target_: torch.nn.modules.module.os.system, command: 'touch {marker}'}}",
    "model: {{_target_: detectron2.config.LazyConfig.load, filename: evil.py}}",
    "model: {{_target_: detectron2.modeling.MMDetDetector, detector: {{}}}}",
    "model: {{_target_: {{_target_: torch.nn.ReLU}}}}",
    "model: {{_target_: '${{train.name}}'}}\ntrain: {{name: os.system}}",
    "model: '${{oc.create:\"{{_target_: os.system, command: touch {marker}}}\"}}'",
    "model: {{A: ['${{oc.decode:x}}']}}",
    "model: {{_target_: detectron2.data.get_detection_dataset_dicts, names: [], "
    "proposal_files: [evil.pkl]}}",
    "model: {{A: !!python/object/apply:functools.partial [!!python/name:os.system '']}}",
]


@pytest.mark.parametrize("text", EVIL_LAZY)
def test_a_lazy_config_in_yaml_has_parts_of_detectors_only(text, tmp_path, marker):
    file = write(tmp_path / "config.yaml", text.format(marker=marker))
    with pytest.raises(UserError, match=r"config\.yaml"):
        setup_lazy(file)
