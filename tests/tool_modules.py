"""The tools as modules; ``tools`` is no package and must not be imported as one."""

import importlib.util
from pathlib import Path
from types import ModuleType

from odam_d2.errors import run_tool

__all__ = ["load_tool", "run_in_process"]

TOOLS = Path(__file__).parents[1] / "tools"


def load_tool(name: str) -> ModuleType:
    """A module of its own each time, of the tool with this name, such as ``"train_net"``."""
    spec = importlib.util.find_spec(f"odam_d2.command_line.{name}")
    if spec is None:  # one that only the checkout has
        spec = importlib.util.spec_from_file_location(f"odam_{name}", TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_in_process(tool: ModuleType, *arguments: object) -> int:
    """Exit status of a tool, run in this process."""
    return run_tool(lambda: tool.run([str(argument) for argument in arguments]))
