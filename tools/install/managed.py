"""The environment that is ours: ``.venv`` in the checkout, made with pinned versions."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import detectron2_wheel
from checks import InstallError, check_disk, check_platform, check_python, check_venv_module
from pip_runner import Pip

__all__ = ["REVIEWED", "ManagedEnvironment"]

# The name of the Detectron2 that detectron2_wheel.py installs, among those that can be asked for.
REVIEWED = "reviewed"

# A line of Python that fails when something is missing.
TRIAL = "import torch, torchvision, cv2, scipy, pycocotools, detectron2.model_zoo, odam_d2"


class ManagedEnvironment:
    """
    ``.venv``: made once, and brought up to date when a file that determines it has changed.

    A note inside says what it was made from, and whether to the end. So a finished environment
    costs no time, and after an interruption the same command goes on.
    """

    def __init__(self, root: Path, detectron2: str = "") -> None:
        """
        Args:
            root: the checkout.
            detectron2: what pip shall install as Detectron2, a requirement or a path; empty for
                what ``.venv`` was made with before, at first :data:`REVIEWED`.
        """
        self.root = root
        self.folder = root / ".venv"
        self.python = self.folder / "bin" / "python"
        self.note = self.folder / "odam-install.txt"
        self.choice = self.folder / "odam-detectron2.txt"
        # A path stays the same from wherever the next command is given.
        is_path = detectron2 and Path(detectron2).exists()
        self._asked = str(Path(detectron2).resolve()) if is_path else detectron2

    @property
    def detectron2(self) -> str:
        """What pip installs as Detectron2, or :data:`REVIEWED`."""
        return self._asked or (self.choice.read_text() if self.choice.exists() else REVIEWED)

    def is_handmade(self) -> bool:
        """Whether there is a ``.venv`` that this program has not begun."""
        return self.python.exists() and not self.note.exists()

    def install(self, exact_python: bool = False, dev: bool = True) -> None:
        """
        Make the environment, or bring it up to date.

        Args:
            exact_python: start over if it has another Python than the one that runs this.
            dev: no choice here: what tests and linter need is always installed along.
        """
        self.folder.mkdir(exist_ok=True)
        with _one_at_a_time(self.folder):
            if exact_python and self._version() not in (None, _running_version()):
                print(f".venv has Python {self._version()}: making it again", flush=True)
                self._wipe()
            if self._is_finished():
                print("environment: .venv, up to date", flush=True)
                return
            self.note.write_text("unfinished")
            if self._asked:
                self.choice.write_text(self._asked)
            self._make()
            self.note.write_text(self._fingerprint())

    def _make(self) -> None:
        start = time.monotonic()
        check_python()
        check_platform()
        check_venv_module()
        if not self._has_pip():
            self._wipe()
        check_disk(self.folder, _pip_cache(), present=_size(self.folder) / 1e9)
        self._run_steps()
        took = time.monotonic() - start
        print(f"environment: .venv, made in {took:.0f} s, {_size(self.folder) / 1e9:.1f} GB")

    def _run_steps(self) -> None:
        requirements = self.root / "requirements"
        scratch = self.folder / "tmp"  # on the disk that was checked; /tmp may be a small one
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        pip = Pip(self.python, self.folder / "install.log", {**os.environ, "TMPDIR": str(scratch)})
        install = ("install", "--no-build-isolation", "-c", str(requirements / "lock.txt"))

        if not self._has_pip():
            print(f"[1/4] .venv with Python {_running_version()}", flush=True)
            subprocess.run([sys.executable, "-m", "venv", str(self.folder)], check=True)
        packages = self.folder / "lib" / f"python{self._version()}" / "site-packages"
        _remove_unfinished(packages)
        print("[2/4] packages (the first time, 2 GB to download)", flush=True)
        # First what builds the few packages that come as source, so that it is pinned as well.
        pip(*install, "-c", str(requirements / "run.txt"), "setuptools")
        lists = ("-r", str(requirements / "run.txt"), "-r", str(requirements / "dev.txt"))
        pip(*install, "--use-pep517", *lists)
        print(f"[3/4] Detectron2 ({self.detectron2})", flush=True)
        pip("uninstall", "--yes", detectron2_wheel.NAME, "detectron2")  # whichever was there
        if self.detectron2 == REVIEWED:
            detectron2_wheel.install(pip, packages, scratch)
        else:  # its build looks at torch, and asks for versions of packages older than ours
            pip("install", "wheel", "ninja")
            pip(*install, "--no-deps", self.detectron2)
        print("[4/4] odam_d2, from this checkout", flush=True)
        pip("install", "--no-deps", "--no-build-isolation", "--editable", str(self.root))
        self._try_imports()
        shutil.rmtree(scratch)

    def _try_imports(self) -> None:
        trial = subprocess.run([self.python, "-c", TRIAL], capture_output=True, text=True)
        if trial.returncode != 0:
            raise InstallError(
                "everything is installed, but does not import: "
                + (trial.stderr.strip().splitlines() or ["no message"])[-1]
            )

    def _has_pip(self) -> bool:
        if not os.access(self.python, os.X_OK):
            return False
        command = [self.python, "-m", "pip", "--version"]
        return subprocess.run(command, capture_output=True).returncode == 0

    def _version(self) -> str | None:
        """The environment's Python, such as "3.12"."""
        folders = [path.parent.name for path in self.folder.glob("lib/python3.*/site-packages")]
        return folders[0].removeprefix("python") if folders else None

    def _is_finished(self) -> bool:
        if not os.access(self.python, os.X_OK) or not self.note.exists():
            return False
        return self.note.read_text() == self._fingerprint()

    def _wipe(self) -> None:
        """Remove all but the notes. The folder itself stays, it holds the lock."""
        for entry in self.folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry not in (self.note, self.choice):
                entry.unlink()

    def _fingerprint(self) -> str:
        """A code that changes when the environment has to."""
        code = hashlib.sha256(
            f"{self._version()}\n{self.root}\n{self.detectron2}\n"
            f"{detectron2_wheel.SHA256}\n".encode()
        )
        packaging = [self.root / "setup.py", self.root / "pyproject.toml"]
        for file in [*sorted((self.root / "requirements").glob("*.txt")), *packaging]:
            code.update(file.read_bytes())
        return code.hexdigest()


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Make a second installation into the same folder wait for the first."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another installation into .venv to end", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _remove_unfinished(packages: Path) -> None:
    """
    Let pip install again what an interruption left half-written. pip ends a package with these
    two files; one that lacks them would count as installed all the same.
    """
    for metadata in packages.glob("*.dist-info"):
        if not (metadata / "INSTALLER").exists() or not (metadata / "RECORD").exists():
            shutil.rmtree(metadata)


def _running_version() -> str:
    return "{}.{}".format(*sys.version_info[:2])


def _pip_cache() -> Path | None:
    """The folder of pip's cache, or the nearest existing one above; None if pip keeps none."""
    command = [sys.executable, "-m", "pip", "cache", "dir"]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode != 0:
        return None
    folder = Path(answer.stdout.strip())
    return next(path for path in [folder, *folder.parents] if path.exists())


def _size(folder: Path) -> int:
    """Bytes in a folder and below, as the disk counts them."""
    blocks = 0
    for path, _, files in os.walk(folder):
        blocks += sum(os.lstat(os.path.join(path, name)).st_blocks for name in files)
    return blocks * 512
