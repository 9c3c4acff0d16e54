"""
What of odam_d2 is public: the names in ``__all__`` of these packages. In a page of the reference,
``::: PACKAGE`` stands for all of them.
"""

import ast
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]

PACKAGES = (
    "odam_d2",
    "odam_d2.modeling",
    "odam_d2.modeling.adapters",
    "odam_d2.modeling.attribution",
    "odam_d2.modeling.settings",
    "odam_d2.modeling.targets",
    "odam_d2.modeling.losses",
    "odam_d2.modeling.nms",
    "odam_d2.data",
    "odam_d2.model_zoo",
    "odam_d2.evaluation",
    "odam_d2.visualization",
    "odam_d2.demo",
    "odam_d2.engine",
)

WITH_INHERITED = ("odam_d2.OdamMaps",)
"""Classes made of parts that are not public by themselves."""

_DIRECTIVE = re.compile(rf"^::: ({'|'.join(map(re.escape, PACKAGES))})$", re.MULTILINE)


class Public(NamedTuple):
    """A public name: where it is imported from, and where it is defined."""

    path: str
    defined: str

    @property
    def label(self) -> str:
        """Without its package."""
        return self.path.rpartition(".")[2]

    @property
    def directive(self) -> str:
        """For mkdocstrings, which takes the path of a function in a module of its name for that."""
        module = ROOT.joinpath(*self.path.split("."))
        hidden = module.is_dir() or module.with_suffix(".py").exists()
        path = self.defined if hidden else self.path
        options = [f"heading: {self.path}", f"toc_label: {self.label}"]
        options += ["inherited_members: true"] if self.path in WITH_INHERITED else []
        return f"::: {path}\n    options: {{{', '.join(options)}}}"


def _file(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _tree(module: str) -> ast.Module:
    return ast.parse(_file(module).read_text(encoding="utf-8"))


def exported(package: str) -> list[str]:
    """``__all__`` of a package, read without importing it."""
    for node in _tree(package).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    raise ValueError(f"{package} has no __all__")


def definition(module: str, name: str) -> str | None:
    """The path of what a name of a module means; None for a module of its own, or of others."""
    for node in _tree(module).body:
        if isinstance(node, ast.ImportFrom) and name in {x.asname or x.name for x in node.names}:
            above = module.split(".")
            above = above[: len(above) - node.level + (_file(module).name == "__init__.py")]
            source = ".".join([*above, node.module or ""]) if node.level else node.module or ""
            known = node.module and source.startswith("odam_d2")
            return definition(source, name) if known else None
    return f"{module}.{name}"


def public_names() -> dict[str, list[Public]]:
    """Of each package the names that its page has. A name stands in the first that has it."""
    seen: set[str] = set()
    names: dict[str, list[Public]] = {}
    for package in PACKAGES:
        names[package] = []
        for name in sorted(exported(package), key=str.lower):
            defined = definition(package, name)
            if defined is not None and defined not in seen:
                seen.add(defined)
                names[package].append(Public(f"{package}.{name}", defined))
    return names


def on_page_markdown(markdown: str, **_: object) -> str:
    """Called by mkdocs with the text of each page."""
    if not _DIRECTIVE.search(markdown):
        return markdown
    names = public_names()

    def directives(match: re.Match) -> str:
        return "\n\n".join(name.directive for name in names[match[1]])

    return _DIRECTIVE.sub(directives, markdown)
