"""
The tables of config keys, made by running the code that adds them on nodes which remember the
comment above each key. Detectron2 is not imported for it.
"""

import ast
import re
import sys
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[2] / "odam_d2"
PLACE = "<!-- the tables of keys -->"

NODES = ("MODEL.ODAM", "MODEL.FCOS", "TEST.ODAM")

_KEY = re.compile(r"\b[A-Z][A-Z.]*_[A-Z_.]*[A-Z]\b|\b(?:MODEL|TEST)\.[A-Z._]*[A-Z]\b")

_comments: dict[str, str] = {}
"""Of each key's name the latest comment: FCOS's keys are copied, far from their comments."""


class Node(dict):
    """In the place of a ``CfgNode``: attributes are items, ``comments`` what is said of each."""

    def __init__(self) -> None:
        super().__init__()
        self.__dict__["comments"] = {}

    def __getattr__(self, name: str) -> Any:
        return self[name]

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value
        frame = sys._getframe(1)
        comment = _comment_above(frame.f_code.co_filename, frame.f_lineno)
        self.comments[name] = _comments[name] = comment or _comments.get(name, "")


def _comment_above(file: str, line: int) -> str:
    """Above a statement, or above those that stand right before it."""
    lines = Path(file).read_text(encoding="utf-8").splitlines()[: line - 1]
    while lines and lines[-1].strip() and not lines[-1].strip().startswith("#"):
        lines.pop()
    found = []
    while lines and lines[-1].strip().startswith("#"):
        found.insert(0, lines.pop().strip("# "))
    return " ".join(found)


def _run(module: str, names: dict[str, Any]) -> None:
    """Define what a module of ours defines, after what it imports from beside it."""
    path = PACKAGE / f"{module}.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
            _run(node.module, names)
    tree.body = [node for node in tree.body if not isinstance(node, ast.Import | ast.ImportFrom)]
    exec(compile(tree, str(path), "exec"), names)


def config_nodes() -> dict[str, Node]:
    """The nodes that have keys, by path such as ``MODEL.ODAM.RISE``, outer ones first."""
    cfg, names = Node(), {"CN": Node}
    cfg.MODEL, cfg.TEST = Node(), Node()
    _run("config", names)
    names["add_odam_config"](cfg)
    found: dict[str, Node] = {}

    def walk(path: str, node: Node) -> None:
        found[path] = node
        for name, value in node.items():
            if isinstance(value, Node):
                walk(f"{path}.{name}", value)

    for path in NODES:
        outer, name = path.split(".")
        walk(path, cfg[outer][name])
    return found


def tables() -> str:
    """Markdown: for each node a heading and a table."""
    parts = []
    for path, node in config_nodes().items():
        rows = [
            f"| `{name}` | `{value!r}` | {_escaped(node.comments[name])} |"
            for name, value in node.items()
            if not isinstance(value, Node)
        ]
        if rows:
            parts.append(
                "\n".join([f"## {path}", "", "| key | default | |", "| --- | --- | --- |"])
            )
            parts[-1] += "\n" + "\n".join(rows)
    return "\n\n".join(parts)


def _escaped(comment: str) -> str:
    """Names of keys are code, and no bar ends a cell of the table."""
    return _KEY.sub(r"`\g<0>`", comment).replace("|", "\\|")


def on_page_markdown(markdown: str, **_: object) -> str:
    """Called by mkdocs with the text of each page."""
    return markdown.replace(PLACE, tables()) if PLACE in markdown else markdown
