"""``--import``: a project's code runs before the config is read, or one sentence says why not."""

import sys
from argparse import ArgumentParser

import pytest
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY

from odam_d2.engine import setup_cfg, setup_lazy
from odam_d2.engine.project import add_import_argument, import_projects
from odam_d2.errors import UserError

PROJECT = """
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from neighbour import NAME
from odam_d2 import add_odam_config


@META_ARCH_REGISTRY.register()
class Detector{number}:
    pass


MetadataCatalog.get(NAME).thing_classes = ["blob"]


def add_my_config(cfg):
    cfg.MODEL.MINE = 3


def add_numbers(cfg):
    raise AssertionError("not the name of one that adds keys")
"""


@pytest.fixture
def project(tmp_path, monkeypatch, request):
    """A file, its neighbour, and a config with its keys."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"blobs_{request.node.name}"
    (tmp_path / "neighbour.py").write_text(f"NAME = {name!r}\n")
    file = tmp_path / f"project_{abs(hash(name))}.py"
    file.write_text(PROJECT.replace("{number}", str(abs(hash(name)))))
    (tmp_path / "mine.yaml").write_text("MODEL:\n  MINE: 7\n")
    yield file
    sys.modules.pop("neighbour", None)
    sys.modules.pop(f"odam_import_{file.stem}", None)


def test_a_file_registers_and_adds_keys(project, request):
    cfg = setup_cfg(str(project.with_name("mine.yaml")), ["MODEL.MINE", "8"], [str(project)])
    assert cfg.MODEL.MINE == 8
    assert setup_cfg("", imports=[str(project)]).MODEL.MINE == 3  # once more: it runs once only
    assert MetadataCatalog.get(f"blobs_{request.node.name}").thing_classes == ["blob"]
    assert any(name.startswith("Detector") for name, _ in META_ARCH_REGISTRY)


def test_keys_of_a_project_are_unknown_without_it(project):
    with pytest.raises(UserError, match=r"MODEL\.MINE"):
        setup_cfg(str(project.with_name("mine.yaml")))


def test_a_module(project, monkeypatch):
    monkeypatch.syspath_prepend(str(project.parent))
    (add_config,) = import_projects([project.stem])
    assert add_config.__name__ == "add_my_config"


def test_a_lazy_config_may_use_it(project):
    lazy = project.with_name("lazy.py")
    lazy.write_text("import neighbour\nmodel = dict(name=neighbour.NAME)\n")
    assert setup_lazy(str(lazy), imports=[str(project)]).model.name.startswith("blobs_")


def test_argument():
    parser = ArgumentParser()
    add_import_argument(parser)
    assert parser.parse_args([]).imports == []
    assert parser.parse_args(["--import", "a.py", "--import", "b"]).imports == ["a.py", "b"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("x = 1\nx = y", r"broken\.py, line 2, failed: NameError: name 'y'"),
        ("x = (", r"broken\.py failed: SyntaxError: .*line 1"),
        ("import no_such_module_of_mine", r"line 1, failed: ModuleNotFoundError"),
        ("def add_config(cfg):\n    cfg.MODEL.NO.KEY = 3", r"add_config\(cfg\) failed"),
    ],
)
def test_projects_that_fail(tmp_path, monkeypatch, content, words):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "broken.py").write_text(content)
    with pytest.raises(UserError, match=words):
        setup_cfg("", imports=[str(tmp_path / "broken.py")])
    sys.modules.pop("odam_import_broken", None)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no/such/file.py", "there is no file 'no/such/file.py'"),
        ("no_such_package.part", "there is no module 'no_such_package.part' here"),
    ],
)
def test_what_is_not_there(name, words):
    with pytest.raises(UserError, match=words):
        import_projects([name])


def test_two_files_of_one_name(tmp_path, monkeypatch):
    """Classes of the second would be those of the first, in another process."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "twice.py").write_text("")
    import_projects([str(tmp_path / "a" / "twice.py")])
    with pytest.raises(UserError, match=r"two files have the name twice\.py"):
        import_projects([str(tmp_path / "b" / "twice.py")])
    del sys.modules["odam_import_twice"]
