"""The installer, ``tools/install``: it is no package, so it is put on the path as when it runs."""

import csv
import hashlib
import importlib
import sys
import zipfile
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]
Usage = namedtuple("Usage", "free")


@pytest.fixture
def installer(monkeypatch):
    """The modules of the installer, as attributes."""
    monkeypatch.syspath_prepend(str(ROOT / "tools" / "install"))
    names = [
        "checks",
        "detectron2_wheel",
        "existing",
        "managed",
        "pip_runner",
        "select_environment",
    ]
    return SimpleNamespace(**{name: importlib.import_module(name) for name in names})


# What must hold before anything is installed.


@pytest.mark.parametrize("version", [(3, 10, 0), (3, 13, 7)])
def test_python_in_range(installer, version):
    installer.checks.check_python(version)


@pytest.mark.parametrize("version", [(3, 9, 18), (3, 14, 0), (2, 7, 18)])
def test_python_out_of_range(installer, version):
    with pytest.raises(installer.checks.InstallError) as error:
        installer.checks.check_python(version, works=lambda name: name == "python3.11")
    assert str(error.value) == (
        f"Python 3.10 to 3.13 is needed and this is {'.'.join(map(str, version))}: "
        "try PYTHON=python3.11"
    )


def test_python_of_the_user_may_be_newer(installer):
    installer.checks.check_python((3, 15, 0), newest=None)
    with pytest.raises(installer.checks.InstallError, match=r"3\.9\.1"):
        installer.checks.check_python((3, 9, 1), newest=None, works=lambda name: False)


def test_a_stand_in_that_fails_is_no_python(installer, monkeypatch, tmp_path):
    for name, status in [("good", 0), ("bad", 127)]:
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {status}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert [installer.checks.runs(name) for name in ("good", "bad", "absent")] == [
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("platform", "reason"),
    [
        (("win32", "AMD64", True, ""), "Linux and macOS only, and this is win32"),
        (("linux", "i686", False, "glibc"), "no build for 32 bits"),
        (("linux", "x86_64", True, ""), "with glibc only"),
        (("darwin", "x86_64", True, ""), "Intel"),
    ],
)
def test_platforms_without_pytorch(installer, platform, reason):
    with pytest.raises(installer.checks.InstallError, match=reason):
        installer.checks.check_platform(*platform)


@pytest.mark.parametrize(
    "platform", [("linux", "x86_64", True, "glibc"), ("darwin", "arm64", True, "")]
)
def test_platforms_with_pytorch(installer, platform):
    installer.checks.check_platform(*platform)


def test_python_without_venv(installer):
    with pytest.raises(installer.checks.InstallError, match=r"python3\.\d+-venv on Debian"):
        installer.checks.check_venv_module(find_spec=lambda name: None)


@pytest.fixture
def gigabytes(installer, monkeypatch):
    """Set what an installation takes to round numbers: 6 GB, and 2 GB of downloads."""
    monkeypatch.setattr(installer.checks, "VENV_GB", {sys.platform: 6.0})
    monkeypatch.setattr(installer.checks, "DOWNLOAD_GB", {sys.platform: 2.0})


@pytest.mark.parametrize(
    ("cache", "present", "needed"),
    [
        ("same disk", 0.0, 10.0),  # 6 to stay, 2 on the way, 2 in pip's cache
        ("other disk", 0.0, 8.0),
        (None, 0.0, 8.0),
        (None, 5.0, 3.0),  # 5 of the 6 are there
        (None, 9.0, 2.0),
    ],
)
@pytest.mark.usefixtures("gigabytes")
def test_disk(installer, cache, present, needed):
    def check(free):
        installer.checks.check_disk(
            "venv",
            cache,
            present,
            usage=lambda folder: Usage(1e9 * (free if folder == "venv" else 2.0)),
            device=lambda folder: folder == "other disk",
        )

    check(needed)
    with pytest.raises(installer.checks.InstallError) as error:
        check(needed - 0.1)
    assert str(error.value) == (
        f"installing needs {needed:.1f} GB of free disk space at venv and there are "
        f"{needed - 0.1:.1f} GB: make room and run the command again"
    )


@pytest.mark.usefixtures("gigabytes")
def test_disk_of_the_cache(installer):
    with pytest.raises(installer.checks.InstallError, match=r"2\.0 GB .* at cache"):
        installer.checks.check_disk(
            "venv",
            "cache",
            usage=lambda folder: Usage(1e9 * (100.0 if folder == "venv" else 1.9)),
            device=lambda folder: folder,
        )


# The wheel of Detectron2.


@pytest.fixture
def wheel(tmp_path):
    """A small wheel with the same flaws as the real one."""
    info = "sal_detectron2-0.7.2.dist-info"
    files = {
        "detectron2/__init__.py": "",
        "detectron2/config/__init__.py": "",
        "detectron2/_C.cpython-310-x86_64-linux-gnu.so": "built for another torch",
        "tools/__init__.py": "",
        f"{info}/METADATA": "Name: sal-detectron2\nVersion: 0.7.2\n",
    }
    record = "".join(f"{name},sha256=x,{len(text)}\n" for name, text in files.items())
    path = tmp_path / "sal_detectron2-0.7.2-cp310-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**files, f"{info}/RECORD": record + f"{info}/RECORD,,\n"}.items():
            archive.writestr(name, text)
    return path


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_tampered_wheel_is_not_installed(installer, wheel, tmp_path):
    site_packages = tmp_path / "site-packages"
    site_packages.mkdir()

    def download(*arguments):
        folder = Path(arguments[arguments.index("--dest") + 1])
        (folder / wheel.name).write_bytes(wheel.read_bytes() + b"tampered")

    with pytest.raises(installer.checks.InstallError, match="nothing of it was installed"):
        installer.detectron2_wheel.install(download, site_packages, tmp_path)
    assert files_below(site_packages) == []


def test_hash_of_the_reviewed_file(installer, wheel):
    installer.detectron2_wheel.verify(wheel, hashlib.sha256(wheel.read_bytes()).hexdigest())
    with pytest.raises(installer.checks.InstallError, match=installer.detectron2_wheel.SHA256):
        installer.detectron2_wheel.verify(wheel)


def test_unpack_leaves_out_and_replaces(installer, wheel, tmp_path):
    site_packages = tmp_path / "site-packages"
    for name in ("tools/mine.py", "detectron2/left_by_an_interrupted_run.py"):
        (site_packages / name).parent.mkdir(parents=True)
        (site_packages / name).touch()

    installer.detectron2_wheel.unpack(wheel, site_packages)

    info = "sal_detectron2-0.7.2.dist-info"
    installed = [
        "detectron2/__init__.py",
        "detectron2/config/__init__.py",
        f"{info}/INSTALLER",
        f"{info}/METADATA",
        f"{info}/RECORD",
    ]
    assert files_below(site_packages) == [*installed, "tools/mine.py"]
    with (site_packages / info / "RECORD").open(newline="") as record:
        assert sorted(row[0] for row in csv.reader(record)) == installed


# Which environment, and when it is made.


@pytest.fixture
def checkout(tmp_path):
    """A checkout with the files that determine the environment."""
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements" / "run.txt").write_text("torch==2.11.0\n")
    (tmp_path / "setup.py").write_text("")
    return tmp_path


@pytest.fixture
def managed(installer, checkout, monkeypatch):
    """An environment that costs nothing to make; ``made`` counts how often it was."""
    environment = installer.managed.ManagedEnvironment(checkout)
    environment.made = 0

    def make():
        environment.made += 1
        packages = environment.folder / "lib" / f"python3.{sys.version_info.minor}/site-packages"
        packages.mkdir(parents=True, exist_ok=True)
        environment.python.parent.mkdir(exist_ok=True)
        if not environment.python.exists():
            environment.python.symlink_to(sys.executable)

    monkeypatch.setattr(environment, "_make", make)
    return environment


def test_made_once(managed):
    managed.install()
    managed.install()
    assert managed.made == 1


@pytest.mark.parametrize("file", ["requirements/run.txt", "requirements/new.txt", "setup.py"])
def test_made_again_after_a_change(managed, checkout, file):
    managed.install()
    (checkout / file).write_text("numpy==2.4.6\n")
    managed.install()
    assert managed.made == 2


def test_made_again_when_its_python_is_gone(managed):
    managed.install()
    managed.python.unlink()
    managed.install()
    assert managed.made == 2


def test_goes_on_after_an_interruption(installer, managed, monkeypatch):
    make = managed._make

    def interrupted():
        make()
        raise KeyboardInterrupt

    monkeypatch.setattr(managed, "_make", interrupted)
    with pytest.raises(KeyboardInterrupt):
        managed.install()
    assert not managed.is_handmade()

    monkeypatch.setattr(managed, "_make", make)
    managed.install()
    assert managed.made == 2


def test_other_python_only_on_request(managed, monkeypatch, installer):
    managed.install()
    monkeypatch.setattr(installer.managed, "_running_version", lambda: "3.99")
    managed.install()
    assert managed.made == 1
    managed.install(exact_python=True)
    assert managed.made == 2


def test_packages_that_pip_did_not_finish(installer, tmp_path):
    for name in (
        "whole-1.dist-info/RECORD",
        "whole-1.dist-info/INSTALLER",
        "half-1.dist-info/RECORD",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    installer.managed._remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["whole-1.dist-info"]


def test_failure_of_pip_is_told_with_its_end(installer, tmp_path, capsys):
    pip = installer.pip_runner.Pip(Path(sys.executable), tmp_path / "log")
    with pytest.raises(installer.checks.InstallError, match="no-such-package-of-odam") as error:
        pip("install", "--no-index", "--no-deps", "no-such-package-of-odam")
    assert "run the same command again" in str(error.value)
    assert "ERROR" in capsys.readouterr().out
    assert "no-such-package-of-odam" in pip.log.read_text()
