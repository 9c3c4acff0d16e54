"""
An extension of griffe that reads docstrings as they are written here: ``NAME.__doc__ = "..."``
documents NAME, as registries have it; ``:class:`NAME``` is code; and what is said of several
arguments or attributes in one entry, ``height, width: ...``, is said of each.
"""

import ast
import re
from typing import Any

import griffe

_TOGETHER = re.compile(
    r"^ {4}(?P<names>\*{0,2}\w+(?:, \*{0,2}\w+)+)(?P<rest>:.*(?:\n {5,}.*|\n(?=\n {5,}))*)",
    re.MULTILINE,
)
_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr):`~?([^`]+)`")


class Docstrings(griffe.Extension):
    """Called by griffe while it reads the sources."""

    def on_module_members(self, *, node: Any, mod: griffe.Module, **_: Any) -> None:
        """Of each module whose members are known: griffe does not keep such statements."""
        if not isinstance(node, ast.Module):
            return
        for statement in node.body:
            match statement:
                case ast.Assign(
                    targets=[ast.Attribute(value=ast.Name(id=name), attr="__doc__")],
                    value=ast.Constant(value=str(text)),
                ):
                    found = mod.members[name]
                    found.docstring = griffe.Docstring(
                        _plain(text), lineno=statement.lineno, parent=found
                    )

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Of each object."""
        if obj.docstring:
            obj.docstring.value = _plain(obj.docstring.value)


def _plain(text: str) -> str:
    """Literals keep their two backticks, which are code in Markdown, too."""

    def apart(match: re.Match) -> str:
        return "\n".join(f"    {name}{match['rest']}" for name in match["names"].split(", "))

    return _TOGETHER.sub(apart, _ROLE.sub(r"``\1``", text.strip()))
