"""Config files of all kinds: what Detectron2 reads is read the same, nothing in them runs."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random

import detectron2.model_zoo
from detectron2.config import CfgNode, get_cfg

from odam_d2 import add_odam_config

from .case import RIGHT, Case, Refused, expect
from .material import SMALL, config_file, crop
from .tools import ROOT, judge, tool

__all__ = ["cases"]

_ZOO = Path(detectron2.model_zoo.__file__).parent / "configs"
_RUN = {  # Python tags that run something; MARK is a command that leaves a file
    "apply-system": '!!python/object/apply:os.system ["MARK"]',
    "apply-getstatus": '!!python/object/apply:subprocess.getoutput ["MARK"]',
    "new-system": '!!python/object/new:os.system ["MARK"]',
    "apply-eval": "!!python/object/apply:eval [\"__import__('os').system('MARK')\"]",
    "apply-exec": "!!python/object/apply:exec [\"import os; os.system('MARK')\"]",
    "eval-attributes": "!!python/object/apply:eval [\"[c for c in ().__class__.__base__"
    ".__subclasses__() if c.__name__ == '_wrap_close'][0].__init__.__globals__['system']"
    "('MARK')\"]",
    "eval-format": "!!python/object/apply:eval [\"'{0.__class__}'.format(open('FILE', 'w'))\"]",
    "eval-lambda": "!!python/object/apply:eval [\"(lambda: open('FILE', 'w'))()\"]",
    "eval-walrus": "!!python/object/apply:eval [\"[x := open('FILE', 'w')]\"]",
    "eval-fstring": "!!python/object/apply:eval [\"f'{open(chr(70))}'\"]",
    "eval-dunder": "!!python/object/apply:eval [\"__builtins__['open']('FILE', 'w')\"]",
    "object": '!!python/object:subprocess.Popen {args: ["MARK"]}',
    "name": "!!python/name:os.system",
    "module": "!!python/module:this",
    "map": '!!python/object/apply:map [!!python/name:os.system , ["MARK"]]',
    "extend": "!!python/object/new:tuple [!!python/object/new:map "
    '[!!python/name:os.system , ["MARK"]]]',
}  # fmt: skip
_HEAVY = {
    "eval-power": '!!python/object/apply:eval ["9 ** 9 ** 9"]',
    "eval-repeat": "!!python/object/apply:eval [\"'x' * 10 ** 11\"]",
    "eval-loops": "!!python/object/apply:eval "
    '["[i for i in range(10 ** 9) for j in range(10 ** 9)]"]',
    "eval-shift": '!!python/object/apply:eval ["1 << 10 ** 12"]',
    "eval-deep": '!!python/object/apply:eval ["' + "(" * 500 + "1" + ")" * 500 + '"]',
    "aliases": "&a0 [x]\n" + "".join(
        f"K{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)),
    "deep": "[" * 3000 + "]" * 3000,
}  # fmt: skip
_WRONG = {
    "unknown": "MODEL:\n  NOTHING: 3\n", "type": "SOLVER:\n  MAX_ITER: many\n",
    "list": "- a\n- b\n",
    "scalar": "hello\n", "number": "3\n", "node-as-value": "MODEL: 3\n",
    "value-as-node": "SEED:\n  A: 1\n",
    "none-node": "MODEL:\n", "odam-none": "MODEL:\n  ODAM:\n", "odam-list": "MODEL:\n  ODAM: [1]\n",
    "tab": "MODEL:\n\tDEVICE: cpu\n",
    "unclosed": "MODEL: {DEVICE: 'cpu\n", "base-self": "_BASE_: config.yaml\n",
    "base-lost": "_BASE_: lost.yaml\n",
    "base-number": "_BASE_: 7\n", "base-list-lost": "_BASE_: [lost.yaml]\n",
    "base-folder": "_BASE_: .\n", "base-none": "_BASE_:\n",
    "base-fifo": "_BASE_: fifo.yaml\n", "base-object": "_BASE_: {a: b}\n",
    "version": "VERSION: 99\n", "version-text": "VERSION: x\n",
    "number-key": "3: 4\n", "none-key": "? \n: 3\n", "list-key": "? [1]\n: 3\n",
    "date": "SEED: 2020-01-01\n",
    "binary": "SEED: !!binary aGVsbG8=\n", "set": "SEED: !!set {a, b}\n",
    "custom-tag": "SEED: !mine 3\n", "documents": "SEED: 1\n---\nSEED: 2\n",
    "cuda": "MODEL:\n  DEVICE: cuda\n", "device": "MODEL:\n  DEVICE: abacus\n",
    "format": "INPUT:\n  FORMAT: XYZ\n",
    "meta": "MODEL:\n  META_ARCHITECTURE: NoSuchThing\n",
    "backbone": "MODEL:\n  BACKBONE:\n    NAME: nothing\n",
    "heads": "MODEL:\n  ROI_HEADS:\n    NAME: NoHeads\n",
    "classes": "MODEL:\n  ROI_HEADS:\n    NUM_CLASSES: -1\n",
    "mean": "MODEL:\n  PIXEL_MEAN: []\n", "std-zero": "MODEL:\n  PIXEL_STD: [0.0, 0.0, 0.0]\n",
    "std-nan": "MODEL:\n  PIXEL_MEAN: [.nan, 1.0, 2.0]\n",
    "size": "INPUT:\n  MIN_SIZE_TEST: -5\n",
    "size-huge": "INPUT:\n  MIN_SIZE_TEST: 1000000\n  MAX_SIZE_TEST: 10000000\n",
    "size-text": "INPUT:\n  MIN_SIZE_TEST: big\n",
    "max-zero": "INPUT:\n  MAX_SIZE_TEST: 0\n",
    "in-features": "MODEL:\n  ROI_HEADS:\n    IN_FEATURES: [p9]\n",
    "depth": "MODEL:\n  RESNETS:\n    DEPTH: 7\n",
    "norm": "MODEL:\n  RESNETS:\n    NORM: XN\n",
    "anchors": "MODEL:\n  ANCHOR_GENERATOR:\n    SIZES: []\n",
    "dataset": "DATASETS:\n  TEST: [nothing]\n",
    "weights": "MODEL:\n  WEIGHTS: 3\n", "fc": "MODEL:\n  ROI_BOX_HEAD:\n    FC_DIM: 0\n",
    "fpn": "MODEL:\n  FPN:\n    OUT_CHANNELS: 0\n",
}  # fmt: skip


def _setup(path: Path, opts: list = ()) -> CfgNode | Refused:
    from odam_d2.engine import setup_cfg
    from odam_d2.errors import UserError

    try:
        return setup_cfg(str(path), opts)
    except UserError as error:
        expect("\n" not in str(error), f"not one line: {error}")
        return Refused(str(error))


def _zoo(path: Path, folder: Path) -> str:
    """As Detectron2 itself reads it."""
    cfg = get_cfg()
    add_odam_config(cfg)
    cfg.merge_from_file(str(path))
    cfg.MODEL.DEVICE = "cpu"
    found = _setup(path)
    expect(not isinstance(found, Refused), f"refused: {found}")
    expect(found.dump() == cfg.dump(), "other values than Detectron2 reads")
    return RIGHT


def _dangerous(tag: str, where: str, folder: Path) -> str:
    mark = folder / "mark"
    tag = tag.replace("MARK", f"touch {mark}").replace("FILE", str(mark))
    base, path = f'"{config_file()}"', folder / "config.yaml"
    text = {
        "value": f"_BASE_: {base}\nOUTPUT_DIR: {tag}\n",
        "base": "_BASE_: base.yaml\nSEED: 1\n",
        "first": f"OUTPUT_DIR: {tag}\nNOTHING: 3\n",
        "key": f"_BASE_: {base}\n? {tag}\n: 3\n",
        "nested": f"_BASE_: {base}\nDATASETS:\n  TEST: [a, {tag}]\n",
        "as-base": f"_BASE_: {tag}\n",
        "override": f"_BASE_: {base}\n",
    }[where]  # fmt: skip
    path.write_text(text)
    (folder / "base.yaml").write_text(f"_BASE_: {base}\nOUTPUT_DIR: {tag}\n")
    before = os.getcwd()
    os.chdir(folder)
    found = _setup(path, ["OUTPUT_DIR", tag] if where == "override" else [])
    os.chdir(before)
    expect(not mark.exists(), "it ran")
    if isinstance(found, Refused):
        return found
    expect(where == "override", f"it was to be refused: OUTPUT_DIR is {found.OUTPUT_DIR!r}")
    return RIGHT


def _heavy(text: str, folder: Path) -> str:
    path = folder / "config.yaml"
    path.write_text(f"OUTPUT_DIR: {text}\n")
    found = _setup(path)
    expect(isinstance(found, Refused), "it was to be refused")
    return found


def _wrong(text: bytes, folder: Path) -> str:
    """Through the demo: building is part of it."""
    from PIL import Image

    Image.fromarray(crop(1)).save(folder / "0.png")
    os.mkfifo(folder / "fifo.yaml")
    text = text if text.startswith(b"_BASE_") else f'_BASE_: "{config_file()}"\n'.encode() + text
    (folder / "config.yaml").write_bytes(text)
    ran = tool("demo", "--config-file", "config.yaml", "--input", "0.png", "--output", "out",
               "--targets", "class", cwd=folder)  # fmt: skip
    return judge(ran, folder / "out")


def _file(make, folder: Path) -> str:
    path = folder / "config.yaml"
    make(path)
    ran = tool("analyze_errors", "--config-file", str(path), "--output", "out", *SMALL, cwd=folder)
    found = judge(ran, folder / "out")
    expect(found != RIGHT, "was to be refused")
    return found


def _literal(seed: int, folder: Path) -> str:
    """``apply:eval`` on literals, arithmetic and comprehensions over them, as in the zoo."""
    rng = Random(seed)
    a, b, c = (rng.randrange(1, 40) for _ in range(3))
    text = rng.choice([
        f"[[x, x * 2 ** (1.0/3), x * 2 ** (2.0/3)] for x in [{a}, {b}, {c}]]",
        f"[[{a}, {b}], [{c}]]", f"[[x + {a}] for x in ({b}, {c})]",
        f"[[-x, {a} // 2, {b} % 7] for x in [{c}]]",
        f"[[{a} - {b} * {c} / 2]]", f"[[i * {a} for i in [1, 2, 3]]]",
    ])  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(
        f'MODEL:\n  ANCHOR_GENERATOR:\n    SIZES: !!python/object/apply:eval ["{text}"]\n'
    )
    found = _setup(path)
    expect(not isinstance(found, Refused), f"refused: {found}")
    expect(
        eval(text) == found.MODEL.ANCHOR_GENERATOR.SIZES,
        f"{text} is {found.MODEL.ANCHOR_GENERATOR.SIZES}",
    )
    return RIGHT


def cases(rng: Random) -> Iterator[Case]:
    for root in (_ZOO, ROOT / "configs"):
        for path in sorted(root.rglob("*.yaml")):
            name = f"{root.parent.name}-{path.relative_to(root)}".replace("/", ":")
            yield Case(f"zoo-{name}", partial(_zoo, path))
    faults = {"value": "4.1 !!python/object/apply in a YAML",
        "base": "4.2 Python tags through _BASE_",
              "first": "4.3 before the error is told"}  # fmt: skip
    for what, tag in _RUN.items():
        for where in ("value", "base", "first", "key", "nested", "as-base", "override"):
            if where in faults or rng.random() < 0.6:
                yield Case(
                    f"{what}-{where}", partial(_dangerous, tag, where), faults.get(where, "")
                )
    for what, text in _HEAVY.items():
        yield Case(f"heavy-{what}", partial(_heavy, text), seconds=15, memory=1500)
    for what, text in _WRONG.items():
        yield Case(f"wrong-{what}", partial(_wrong, text.encode()), seconds=20)
    for what, data in {
        "latin": b"SEED: \xe9\xff\n",
        "zero": b"\0\0\0",
        "random": bytes(rng.randrange(256) for _ in range(300)),
    }.items():
        yield Case(f"wrong-{what}", partial(_wrong, data))
    for what, make in {"folder": Path.mkdir, "fifo": os.mkfifo,
        "dangling": lambda p: p.symlink_to("lost"),
                       "loop": lambda p: p.symlink_to(p), "lost": lambda p: None,
                       "empty": Path.touch}.items():  # fmt: skip
        yield Case(f"file-{what}", partial(_file, make), seconds=20)
    for number in range(12):
        yield Case(f"literal-{number}", partial(_literal, rng.randrange(2**32)))
