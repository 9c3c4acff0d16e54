"""
What must hold before anything is installed: Python, platform, disk.

This file and ``__main__.py`` keep to the syntax of Python 3.6, so that an old Python can run them
and say that it is old.
"""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys

__all__ = ["InstallError", "check_disk", "check_platform", "check_python", "check_venv_module"]

OLDEST = (3, 10)
NEWEST = (3, 13)

# Measured, in GB: what .venv takes in the end, and what is downloaded on the way. torch for Linux
# brings the CUDA libraries; the one for macOS does not (estimated from the size of its files).
VENV_GB = {"linux": 5.8, "darwin": 1.8}
DOWNLOAD_GB = {"linux": 2.1, "darwin": 0.4}


class InstallError(Exception):
    """Something that the user can mend; the message is one sentence for them."""


def runs(command):
    """Whether there is such a command and it is more than a stand-in that fails."""
    if shutil.which(command) is None:
        return False
    return subprocess.call([command, "-c", ""], stderr=subprocess.DEVNULL) == 0


def check_python(version=sys.version_info, newest=NEWEST, works=runs):
    """
    Refuse a Python for which the pinned packages do not exist, and name one on PATH that would do.

    Args:
        version: the version to judge, as a tuple; that of the running Python by default.
        newest: the last one that will do; None for no such bound.
        works: says whether a command is there and runs.
    """
    if OLDEST <= tuple(version[:2]) <= (newest or version):
        return
    names = [f"python3.{minor}" for minor in range(NEWEST[1], OLDEST[1] - 1, -1)]
    found = [name for name in names if works(name)]
    advice = f"try PYTHON={found[0]}" if found else "install one and give it as PYTHON=/path/to/it"
    raise InstallError(
        f"Python 3.{OLDEST[1]} to 3.{NEWEST[1]} is needed and this is "
        f"{'.'.join(map(str, version[:3]))}: {advice}"
    )


def check_platform(system=sys.platform, machine=None, wide=sys.maxsize > 2**32, libc=None):
    """Refuse what PyTorch has no builds for: Windows, 32 bits, musl, macOS on Intel."""
    machine = machine or platform.machine()
    libc = platform.libc_ver()[0] if libc is None else libc
    if system not in VENV_GB:
        reason = f"this installs on Linux and macOS only, and this is {system}"
    elif not wide:
        reason = "PyTorch has no build for 32 bits, and this Python is one"
    elif system == "darwin" and machine == "x86_64":
        reason = "PyTorch has no current build for Macs with Intel processors"
    elif system == "linux" and libc != "glibc":
        reason = "PyTorch has builds for Linux with glibc only, and this one has another C library"
    else:
        return
    raise InstallError(f"{reason}; docs/install.md says how to use a Detectron2 of your own")


def check_venv_module(find_spec=importlib.util.find_spec):
    """Some Linux distributions ship Python without what ``venv`` needs to bring pip along."""
    if find_spec("venv") is None or find_spec("ensurepip") is None:
        package = "python{}.{}-venv".format(*sys.version_info[:2])
        raise InstallError(
            "this Python lacks its venv or ensurepip module: install the package that has it "
            f"({package} on Debian and Ubuntu) and run the command again"
        )


def device_of(folder):
    """A number that is the same for folders on the same disk."""
    return os.stat(folder).st_dev


def check_disk(venv, cache, present=0.0, usage=shutil.disk_usage, device=device_of):
    """
    Refuse to start an installation that the disk has no room for.

    Args:
        venv: folder in which the environment is made; what pip downloads passes through it.
        cache: folder in which pip keeps what it downloaded, or None.
        present: GB of the environment that are there already, from an interrupted run.
        usage: ``shutil.disk_usage``.
        device: tells folders on different disks apart.
    """
    download = DOWNLOAD_GB[sys.platform]
    here = max(VENV_GB[sys.platform] - present, 0.0) + download
    if cache is not None and device(cache) == device(venv):
        here += download
    elif cache is not None:
        _check_room(cache, download, usage)
    _check_room(venv, here, usage)


def _check_room(folder, needed, usage):
    free = usage(folder).free / 1e9
    if free < needed:
        raise InstallError(
            f"installing needs {needed:.1f} GB of free disk space at {folder} and there are "
            f"{free:.1f} GB: make room and run the command again"
        )
