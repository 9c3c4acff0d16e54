"""What must hold before anything is installed, and what a user is told otherwise."""

import sys
from collections import namedtuple

import pytest

Usage = namedtuple("Usage", "free")


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
