"""A disk that gets full: one sentence, a status, and nothing half-written."""

import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random

from .case import RIGHT, Case, expect
from .runs import again, reference
from .tools import limit_file_size, refusal, whole

__all__ = ["cases", "prepare"]

_SIZES = {"train": 4_000_000, "evaluate": 40_000, "analyse": 120_000, "demo": 120_000,
          "crowd": 4_000_000}  # fmt: skip
"""Bytes, about what the largest file has."""


def prepare() -> None:
    for name in _SIZES:
        reference(name)


def _no_large_files(name: str, size: int, folder: Path) -> str:
    run = again(name, folder, finished=False)
    ran = run(folder, before=partial(limit_file_size, size))
    return _judge(ran, folder)


def _small_disk(name: str, size: int, folder: Path) -> str:
    """A file system of so many bytes, where the system allows to mount one."""
    run, out = again(name, folder, finished=False), folder / "out"
    out.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={max(4, size // 1024)}k", "none", str(out)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        return _no_large_files(name, size, folder)
    try:
        return _judge(run(folder), folder)
    finally:
        subprocess.run(["umount", str(out)], check=True)


def _judge(ran, folder: Path) -> str:
    if (folder / "out").is_dir():
        whole(folder / "out")
    if ran.status == 0:  # everything fitted, or it is said to have
        expect(not _missing(ran, folder), f"status 0, and missing: {_missing(ran, folder)}")
        return RIGHT
    return refusal(ran)


def _missing(ran, folder: Path) -> list[str]:
    """Names of pictures that a page or listing of ours shows and that are not there."""
    found = []
    for page in (folder / "out").rglob("*.html"):
        for part in page.read_text().split('src="')[1:]:
            name = part.split('"')[0]
            if (
                "://" not in name
                and not name.startswith("data:")
                and not (page.parent / name).exists()
            ):
                found.append(name)
    return found


def cases(rng: Random) -> Iterator[Case]:
    for name, most in _SIZES.items():
        fault = "3.3 analyze_errors on a full disk" if name == "analyse" else ""
        for number in range(4):
            size = int(most * rng.uniform(0.02, 0.9))
            for kind, attack in (("file", _no_large_files), ("disk", _small_disk)):
                yield Case(f"{name}-{kind}-{number}", partial(attack, name, size), fault, 200)
