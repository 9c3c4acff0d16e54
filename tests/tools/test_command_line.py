"""Tools find their environment, console scripts exist, and every tool knows projects and data."""

import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tool_modules import load_tool, run_in_process

from odam_d2.command_line import train

ROOT = Path(__file__).parents[2]
SCRIPTS = dict(
    re.findall(r'^(odam-[\w-]+) = "([\w.:]+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
)
TOOLS = sorted(path.stem for path in (ROOT / "tools").glob("*.py"))
WITH_COMMAND = sorted(
    path.stem for path in (ROOT / "tools").glob("*.py") if "command_line" in path.read_text()
)

# A Python that has the standard library only, as who has not entered the environment.
BARE = [sys.executable, "-I", "-S"]


@pytest.fixture
def checkout(tmp_path):
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    return tmp_path


@pytest.mark.parametrize("name", [name for name in TOOLS if name != "enter_environment"])
def test_a_tool_goes_on_in_the_environment(checkout, name):
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@"; exit 3\n')
    python.chmod(0o755)
    command = [*BARE, f"tools/{name}.py", "--flag", "a b"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == (f"tools/{name}.py --flag a b\n", 3), done.stderr


def test_a_tool_says_what_to_type_where_there_is_no_environment(checkout):
    command = [*BARE, "tools/demo.py", "--help"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "run `make env`" in line


def test_console_scripts_are_the_tools():
    modules = {target.split(":")[0].rsplit(".", 1)[1] for target in SCRIPTS.values()}
    assert modules - {"train"} == set(WITH_COMMAND) - {"train_net", "lazyconfig_train_net"}
    for target in SCRIPTS.values():
        module, function = target.split(":")
        assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("file", ["a.yaml", "a.py"])
def test_odam_train_takes_both_kinds_of_configs(monkeypatch, file):
    called = []
    for kind in ("train_net", "lazyconfig_train_net"):
        module = getattr(train, kind)
        monkeypatch.setattr(module, "main", lambda args, k=kind: called.append((k, args)))
    train.run(["--config-file", file, "--import", "mine.py", "--coco-json", "a.json", "KEY", "1"])
    ((kind, args),) = called
    assert kind == ("train_net" if file == "a.yaml" else "lazyconfig_train_net")
    assert (args.imports, args.coco_json, args.opts) == (["mine.py"], "a.json", ["KEY", "1"])


HEADS = {
    "demo": ("--input", "a.png"),
    "evaluate_explanations": (),
    "analyze_errors": (),
    "train_net": (),
    "lazyconfig_train_net": (),
}


@pytest.mark.parametrize("name", HEADS)
def test_every_tool_imports_projects_and_takes_data(name, tmp_path, monkeypatch, capsys):
    """Known by what it says of a project, and of a file, that it cannot use."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("SEED: 1\n")
    (tmp_path / "a.py").write_text("model = dict(depth=3)\n")
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "a.json").write_text(json.dumps({"images": []}))
    config = "a.py" if name == "lazyconfig_train_net" else "a.yaml"
    tool, base = load_tool(name), ("--config-file", config, *HEADS[name])
    assert run_in_process(tool, *base, "--import", "nowhere.py") == 1
    assert "there is no file 'nowhere.py'" in capsys.readouterr().err
    assert run_in_process(tool, *base, "--coco-json", "a.json") == 1
    assert "no list of annotations and of categories" in capsys.readouterr().err
    assert run_in_process(tool, *base, "--class-names", "names.txt") == 1
    assert "No such file" in capsys.readouterr().err
