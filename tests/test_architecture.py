"""Who imports whom: one way, without circles."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "odam_d2").rglob("*.py"))
}


def imported_by(name: str, path: Path) -> set[str]:
    """Modules of ours that one names in its imports, wherever they stand in the file."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *((node.module or "").split(".") if node.module else [])])
            # A name that is imported may be a module itself.
            deeper = {f"{base}.{alias.name}" for alias in node.names}
            found |= deeper & MODULES.keys() or {base}
    return (found & MODULES.keys()) - {name}


GRAPH = {name: imported_by(name, path) for name, path in MODULES.items()}


def reached(start: str, graph: dict[str, set[str]]) -> set[str]:
    found, todo = set(), [start]
    while todo:
        for name in graph[todo.pop()] - found:
            found.add(name)
            todo.append(name)
    return found


def test_the_graph_has_what_is_known_of_it():
    """The test above is blind if it does not see these."""
    assert "odam_d2.core.heatmap" in GRAPH["odam_d2.modeling.targets"]
    assert "odam_d2.modeling.adapters.head" in GRAPH["odam_d2.modeling.adapters.rcnn"]
    assert "odam_d2.modeling.adapters.cascade" in GRAPH["odam_d2.modeling.adapters"]


def test_no_circle():
    """Also not of imports inside of functions, or for type checkers only."""
    circles = sorted(name for name in MODULES if name in reached(name, GRAPH))
    assert circles == []


# Each may import what stands before it, and itself.
STAGES = ["odam_d2.core", "odam_d2.structures", "odam_d2.modeling.adapters",
          "odam_d2.modeling.attribution"]  # fmt: skip


@pytest.mark.parametrize("number", range(len(STAGES)))
def test_stages_import_one_way(number):
    later = tuple(STAGES[number + 1 :])
    for name in MODULES:
        if name.startswith(STAGES[number]) and later:
            wrong = {used for used in GRAPH[name] if used.startswith(later)}
            assert not wrong, f"{name} imports {wrong}"


CONSUMERS = ("nms", "losses", "training", "meta_arch", "explain", "explanation")


def test_adapters_and_methods_know_no_consumer():
    for name in MODULES:
        if name.startswith(("odam_d2.modeling.adapters", "odam_d2.modeling.attribution")):
            wrong = {
                used
                for used in GRAPH[name]
                if used.startswith(tuple(f"odam_d2.modeling.{part}" for part in CONSUMERS))
            }
            assert not wrong, f"{name} imports {wrong}"
