"""Which environment is used, when it is made, and what is added to one of the user's."""

import json
import sys
from pathlib import Path

import pytest


@pytest.fixture
def checkout(tmp_path):
    """A checkout with the files that determine the environment."""
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements" / "run.txt").write_text("torch==2.11.0\n")
    (tmp_path / "setup.py").write_text("")
    (tmp_path / "pyproject.toml").write_text("")
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


DETERMINING = ["requirements/run.txt", "requirements/new.txt", "setup.py", "pyproject.toml"]


@pytest.mark.parametrize("file", DETERMINING)
def test_made_again_after_a_change(managed, checkout, file):
    managed.install()
    (checkout / file).write_text("numpy==2.4.6\n")
    managed.install()
    assert managed.made == 2


def made_with(installer, checkout, monkeypatch, detectron2):
    """What is installed as Detectron2 by one command, or None where nothing had to be made."""
    environment = installer.managed.ManagedEnvironment(checkout, detectron2)
    made = []
    monkeypatch.setattr(environment, "_make", lambda: made.append(environment.detectron2))
    monkeypatch.setattr(installer.managed.os, "access", lambda *_: True)
    environment.install()
    return made[0] if made else None


def test_detectron2_of_the_user_stays_until_another_is_named(
    installer, checkout, monkeypatch, tmp_path
):
    folder = tmp_path / "detectron2"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    commands = ["", "detectron2", "", "detectron2 @ git+https://example.org/d", "", "reviewed", ""]
    made = [made_with(installer, checkout, monkeypatch, asked) for asked in commands]
    assert made == ["reviewed", str(folder), None, commands[3], None, "reviewed", None]


def test_detectron2_is_not_changed_in_an_environment_of_the_user(select, installer):
    with pytest.raises(installer.checks.InstallError, match="leave out DETECTRON2="):
        select(here=BOTH, detectron2="detectron2")


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


def stand_in(python, **state):
    """A command that answers the installer's question about an environment with ``state``."""
    python.parent.mkdir(parents=True)
    answer = json.dumps({"missing": [], "odam_d2": None, "versions": {}, **state})
    python.write_text(f"#!/bin/sh\necho '{answer}'\n")
    python.chmod(0o755)
    return python


@pytest.fixture
def select(installer, checkout, monkeypatch):
    """Choose an environment, where the running Python and a hand-made .venv have some modules."""

    def select(use_env="", here=(), handmade=None, detectron2=""):
        module = installer.select_environment
        monkeypatch.setattr(module, "_has", lambda *names: set(names) <= set(here))
        if handmade is not None:
            missing = sorted({"torch", "detectron2", "pip"} - set(handmade))
            stand_in(checkout / ".venv" / "bin" / "python", missing=missing)
        return module.select_environment(use_env, checkout, detectron2)

    return select


BOTH = ("torch", "detectron2", "pip")


@pytest.mark.parametrize(
    ("situation", "kind", "folder"),
    [
        ({}, "ManagedEnvironment", ".venv"),
        ({"here": ["torch"]}, "ManagedEnvironment", ".venv"),
        ({"here": BOTH}, "ExistingEnvironment", None),
        ({"here": BOTH, "use_env": "0"}, "ManagedEnvironment", ".venv"),
        ({"handmade": BOTH}, "ExistingEnvironment", ".venv"),
        ({"handmade": ["pip"]}, "ManagedEnvironment", ".venv"),  # empty: nothing to spoil
    ],
)
def test_which_environment(select, checkout, situation, kind, folder):
    environment = select(**situation)
    assert type(environment).__name__ == kind
    expected = checkout / folder / "bin" / "python" if folder else Path(sys.executable)
    assert environment.python == expected


@pytest.mark.parametrize(
    ("situation", "reason"),
    [
        ({"handmade": ["torch", "pip"]}, "has no detectron2"),
        ({"handmade": []}, "has no torch and no detectron2"),  # and no pip to fill it with
        ({"handmade": BOTH, "use_env": "0"}, "made by hand: rename it"),
    ],
)
def test_environments_that_stay_untouched(select, installer, situation, reason):
    with pytest.raises(installer.checks.InstallError, match=reason):
        select(**situation)


@pytest.fixture
def pip_calls(installer, monkeypatch):
    """What pip would be told in an environment of the user's, with the constraints written out."""
    calls = []

    def run(*arguments):
        calls.append([Path(a).read_text() if a.endswith("present.txt") else a for a in arguments])

    monkeypatch.setattr(installer.existing, "Pip", lambda python, log: run)
    monkeypatch.setattr(installer.existing.ExistingEnvironment, "_check", lambda self: None)
    return calls


VERSIONS = {"torch": "2.5.1+cu124", "numpy": "1.26.4", "setuptools": "75.0.0"}


def test_user_s_environment_is_only_added_to(installer, checkout, pip_calls):
    (checkout / "requirements" / "dev.txt").write_text(
        "pytest==9.2.0\npytest-xdist==3.8.0\nruff==0.17.6\n"
    )
    missing = ["scipy", "ruff", "xdist", "pytest"]
    python = stand_in(checkout / "theirs" / "python", missing=missing, versions=VERSIONS)
    environment = installer.existing.ExistingEnvironment(checkout, python)

    environment.install()

    present = "torch==2.5.1+cu124\nnumpy==1.26.4\nsetuptools==75.0.0\n"
    ours = ["install", "--no-deps", "--no-build-isolation", "--editable", str(checkout)]
    assert pip_calls == [["install", "--constraint", present, "scipy"], ours]

    pip_calls.clear()
    environment.install(dev=True)
    tools = ["pytest==9.2.0", "pytest-xdist==3.8.0", "ruff==0.17.6"]
    assert pip_calls == [["install", "--constraint", present, "scipy", *tools], ours]


def test_user_s_environment_that_has_everything(installer, checkout, pip_calls):
    there = str(checkout / "odam_d2" / "__init__.py")
    python = stand_in(checkout / "theirs" / "python", odam_d2=there, versions=VERSIONS)
    installer.existing.ExistingEnvironment(checkout, python).install(dev=True)
    assert pip_calls == []


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


def test_every_command_of_pip_is_understood(installer, tmp_path):
    """Not all of them know the same options; nothing of that name is there to be removed."""
    pip = installer.pip_runner.Pip(Path(sys.executable), tmp_path / "log")
    pip("uninstall", "--yes", "no-such-package-of-odam")
    assert "not installed" in pip.log.read_text()
