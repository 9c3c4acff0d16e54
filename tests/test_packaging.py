"""What a built package contains, what it asks for, and what may import what."""

import ast
import importlib.metadata
import importlib.util
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from odam_d2 import _requirements

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "odam_d2"

# Files that a forgotten line in package_data would leave out.
PROBES = [
    "odam_d2/model_zoo/weights/CrowdShapes/probe.pth",
    "odam_d2/visualization/templates/probe.html.j2",
    "configs/CrowdShapes/probe.yaml",
    "configs/new/probe.py",
]


def in_wheel(path):
    """Where a file of the checkout is in a wheel."""
    return re.sub("^configs/", "odam_d2/model_zoo/configs/", str(path))


def sources(folder):
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """What a wheel has, built from a copy of the sources without any index."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, copy)
    shutil.copy(ROOT / "README.md", copy)
    for name in ("odam_d2", "configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in PROBES:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("probe")
    command = [sys.executable, "setup.py", "-q", "build", "--build-lib", "lib", "egg_info"]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    information = copy / "odam_d2.egg-info"
    requirements = (information / "requires.txt").read_text().split("\n[")[0].split()
    return SimpleNamespace(
        names={str(path.relative_to(copy / "lib")) for path in sources(copy / "lib")},
        metadata=(information / "PKG-INFO").read_text(),
        required={canonicalize_name(r.name): r for r in map(Requirement, requirements)},
    )


def test_wheel_has_every_file_of_the_package(built):
    files = [*sources(PACKAGE), *sources(ROOT / "configs")]
    expected = {in_wheel(path.relative_to(ROOT)) for path in files} | set(map(in_wheel, PROBES))
    assert expected - built.names == set()


def test_wheel_brings_one_package(built):
    assert {name.split("/")[0] for name in built.names} == {"odam_d2"}


def test_wheel_leaves_an_environment_alone(built):
    """Bounds are lower ones, which the versions that we test with meet; no Detectron2."""
    assert not [name for name in built.required if "detectron2" in name]
    assert {s.operator for r in built.required.values() for s in r.specifier} == {">="}
    pinned = [Requirement(line) for line in pinned_lines("run.txt")]
    for pin in pinned:
        (version,) = (specifier.version for specifier in pin.specifier)
        requirement = built.required.get(canonicalize_name(pin.name))
        assert requirement is None or requirement.specifier.contains(version), pin


def test_version_is_the_one_of_the_package(built):
    version = runpy.run_path(str(PACKAGE / "version.py"))["__version__"]
    assert f"\nVersion: {version}\n" in built.metadata


# Imports.


def imported_modules(path):
    """Absolute names of all modules that a source file imports, wherever in it."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            yield ".".join([*above, *filter(None, [node.module])])


def test_imported_modules_are_found(tmp_path, monkeypatch):
    """The tests below see absolute, relative and local imports."""
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "odam_d2" / "core").mkdir(parents=True)
    source = tmp_path / "odam_d2" / "core" / "module.py"
    source.write_text(
        "import numpy.linalg as a, os\n"
        "from . import near\n"
        "from .near import b\n"
        "from ..far import c\n"
        "def local():\n    from detectron2.data import d\n"
    )
    assert list(imported_modules(source)) == [
        *("numpy.linalg", "os", "odam_d2.core", "odam_d2.core.near", "odam_d2.far"),
        "detectron2.data",
    ]


def test_core_imports_torch_only():
    """The mathematics must run, and be tested, without a detector or its framework."""
    for path in sources(PACKAGE / "core"):
        for name in imported_modules(path):
            top = name.split(".")[0]
            allowed = top == "torch" or top in sys.stdlib_module_names
            assert allowed or name.startswith("odam_d2.core"), f"{path.name} imports {name}"


def test_the_package_imports_nothing_of_the_checkout():
    """Who installs it has no benchmarks, experiments, tests or tools, or somebody else's."""
    for path in PACKAGE.rglob("*.py"):
        tops = {name.split(".")[0] for name in imported_modules(path)}
        assert tops.isdisjoint({"benchmarks", "experiments", "tests", "tools"}), path


def test_nothing_imports_the_tools():
    """``tools`` is a common name: whose package it would be depends on the environment."""
    for folder in ("benchmarks", "experiments", "tools"):
        for path in (ROOT / folder).rglob("*.py"):
            assert "tools" not in {name.split(".")[0] for name in imported_modules(path)}, path


def test_imports_are_required(built):
    """A module imported anywhere in the package is asked for in pyproject.toml."""
    packages = {"cv2": "opencv-python", "PIL": "pillow", "yaml": "pyyaml"}
    packages["skimage"] = "scikit-image"
    packages["markupsafe"] = "jinja2"  # which is made of it
    optional = {"scikit-image"}  # whose absence is told, and which has an extra
    known = {*built.required, *optional, "detectron2", "odam-d2"}
    for path in PACKAGE.rglob("*.py"):
        for name in {name.split(".")[0] for name in imported_modules(path)}:
            if name not in sys.stdlib_module_names:
                package = canonicalize_name(packages.get(name, name))
                assert package in known, f"{path.name} imports {name}"


def test_installer_knows_what_is_required(built, monkeypatch):
    """In an environment of the user's the installer adds what pyproject.toml asks for."""
    monkeypatch.syspath_prepend(str(ROOT / "tools" / "install"))
    added = {canonicalize_name(name) for name in importlib.import_module("existing").RUN.values()}
    assert added == set(built.required) - {"torch", "torchvision"}


# Pins.


def pinned_lines(file):
    lines = (ROOT / "requirements" / file).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def pins():
    """Canonical name to version, of the lines that hold for this Python."""
    requirements = [
        Requirement(x) for f in ("run", "dev", "lock") for x in pinned_lines(f"{f}.txt")
    ]
    applicable = [r for r in requirements if r.marker is None or r.marker.evaluate()]
    assert all(str(r.specifier).startswith("==") for r in applicable)
    return {canonicalize_name(r.name): str(r.specifier)[2:] for r in applicable}


def pulled_in(names):
    """The packages that installed packages ask for, and those that these ask for, and so on."""
    waiting, seen = list(names), set()
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in seen:
            continue
        seen.add(name)
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        requirements = map(Requirement, lines)
        waiting += [
            r.name for r in requirements if not r.marker or r.marker.evaluate({"extra": ""})
        ]
    return seen


def test_everything_installed_is_pinned():
    """Except what torch for Linux brings along, at versions of its own choice."""
    own_choice = re.compile(r"(nvidia|cuda)-|triton")
    missing = {name for name in pulled_in(pins()) - set(pins()) if not own_choice.match(name)}
    assert missing == set()


# What ``import odam_d2`` says.


def pretend_missing(monkeypatch, *names):
    find = importlib.util.find_spec
    monkeypatch.setattr(_requirements, "find_spec", lambda n: None if n in names else find(n))


def test_import_without_detectron2(monkeypatch):
    pretend_missing(monkeypatch, "detectron2")
    with pytest.raises(ImportError, match="Detectron2, which is not installed here"):
        _requirements.check_requirements()


@pytest.mark.parametrize("line", ["import pkg_resources", "import importlib.resources"])
def test_import_without_pkg_resources(monkeypatch, tmp_path, line):
    """Only a Detectron2 that uses it needs it."""
    (tmp_path / "model_zoo").mkdir()
    (tmp_path / "model_zoo" / "model_zoo.py").write_text(line)
    detectron2 = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    specs = {"detectron2": detectron2, "pkg_resources": None}
    monkeypatch.setattr(_requirements, "find_spec", specs.get)
    if "pkg_resources" in line:
        with pytest.raises(ImportError, match="setuptools<82"):
            _requirements.check_requirements()
    else:
        _requirements.check_requirements()
