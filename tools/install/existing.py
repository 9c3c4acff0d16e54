"""
An environment of the user's in which torch and Detectron2 are there already: nothing that is
installed in it changes, only what is missing is added.
"""

import json
import subprocess
import tempfile
from pathlib import Path

from checks import InstallError, check_python
from pip_runner import Pip

__all__ = ["ExistingEnvironment"]

PROBE = Path(__file__).with_name("probe.py")

# Modules that odam_d2 imports beside torch and Detectron2, and the packages that bring them.
RUN = {
    "cv2": "opencv-python",
    "fvcore": "fvcore",
    "iopath": "iopath",
    "jinja2": "jinja2",
    "matplotlib": "matplotlib",
    "numpy": "numpy",
    "omegaconf": "omegaconf",
    "PIL": "pillow",
    "pycocotools": "pycocotools",
    "scipy": "scipy",
    "tabulate": "tabulate",
    "tqdm": "tqdm",
    "yaml": "pyyaml",
}
# Likewise for tests, linter and site; versions: requirements/dev.txt.
DEV = {
    "hypothesis": "hypothesis",
    "mkdocs": "mkdocs",
    "mkdocstrings": "mkdocstrings",
    "mkdocstrings_handlers": "mkdocstrings-python",
    "mypy": "mypy",
    "pymdownx": "pymdown-extensions",
    "pytest": "pytest",
    "ruff": "ruff",
    "skimage": "scikit-image",
    "xdist": "pytest-xdist",
}


class ExistingEnvironment:
    """The environment of one Python that the user chose."""

    def __init__(self, root: Path, python: Path) -> None:
        """
        Args:
            root: the checkout.
            python: the interpreter of the environment.
        """
        self.root = root
        self.python = python
        self.state = self._probe()

    def lacks(self, *modules: str) -> list[str]:
        """Those of the modules that the environment does not have."""
        return [name for name in modules if name in self.state["missing"]]

    def install(self, exact_python: bool = False, dev: bool = False) -> None:
        """
        Add what is missing.

        Args:
            exact_python: no choice here: the Python is the user's.
            dev: also what tests, linter and site need.
        """
        missing = [RUN[name] for name in self.lacks(*RUN)]
        missing += [DEV[name] for name in self.lacks(*DEV)] if dev else []
        ours = self.state["odam_d2"] == str(self.root / "odam_d2" / "__init__.py")
        print(f"environment: {self.python}, {self._describe()} left as they are", flush=True)
        if ours and not missing:
            return
        self._check()
        log = self.root / "output" / "install.log"
        log.parent.mkdir(exist_ok=True)
        pip = Pip(self.python, log)
        if missing:
            print(f"adding {', '.join(missing)}", flush=True)
            self._add(pip, self._pinned(missing))
        if not ours:
            print("adding odam_d2, from this checkout", flush=True)
            isolation = ("--no-build-isolation",) if self._can_build() else ()
            pip("install", "--no-deps", *isolation, "--editable", str(self.root))

    def _describe(self) -> str:
        versions = {name.lower(): version for name, version in self.state["versions"].items()}
        detectron2 = next((v for n, v in versions.items() if n.endswith("detectron2")), "(source)")
        return f"its torch {versions.get('torch', '(source)')} and detectron2 {detectron2}"

    def _probe(self) -> dict:
        names = ["torch", "detectron2", "pip", *RUN, *DEV]
        command = [str(self.python), str(PROBE), *names]
        answer = subprocess.run(command, capture_output=True, text=True)
        if answer.returncode != 0:
            last = (answer.stderr.strip().splitlines() or ["no message"])[-1]
            raise InstallError(f"{self.python} does not run: {last}")
        return json.loads(answer.stdout)

    def _check(self) -> None:
        line = "import sys, torch, detectron2; print(*sys.version_info[:3])"
        answer = subprocess.run([self.python, "-c", line], capture_output=True, text=True)
        if answer.returncode != 0:
            last = (answer.stderr.strip().splitlines() or ["no message"])[-1]
            raise InstallError(
                f"torch and detectron2 of {self.python} do not import ({last}): mend them, "
                "or run the command with USE_ENV=0 for an environment of its own"
            )
        check_python(tuple(map(int, answer.stdout.split())), newest=None)

    def _add(self, pip: Pip, packages: list[str]) -> None:
        """Install packages in a way in which pip cannot change one that is there."""
        with tempfile.TemporaryDirectory() as folder:
            present = Path(folder, "present.txt")
            versions = self.state["versions"].items()
            present.write_text("".join(f"{name}=={version}\n" for name, version in versions))
            pip("install", "--constraint", str(present), *packages)

    def _pinned(self, packages: list[str]) -> list[str]:
        """The tools in their exact versions: another ruff formats differently."""
        lines = (self.root / "requirements" / "dev.txt").read_text().splitlines()
        tools = [line for line in lines if line.split("==")[0] in packages]
        return [name for name in packages if name not in DEV.values()] + tools

    def _can_build(self) -> bool:
        """Whether its setuptools is new enough for editable installs."""
        version = self.state["versions"].get("setuptools", "0")
        return int(version.split(".")[0]) >= 64
