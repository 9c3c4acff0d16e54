"""The wheel of Detectron2: its hash, and what of it is installed."""

import csv
import hashlib
import zipfile
from pathlib import Path

import pytest


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
