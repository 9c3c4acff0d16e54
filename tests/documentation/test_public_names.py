"""Every public name is on a page of the reference, and says what it takes, returns and raises."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap

import griffe
import pytest
from hooks import ROOT, hook

api = hook("api")
PUBLIC = api.public_names()
NAMES = [name for names in PUBLIC.values() for name in names]

# What users call, beside the functions: their methods say everything, too.
COMPLETE = ("odam_d2.OdamMaps", "odam_d2.ExplainSettings")


@pytest.fixture(scope="module")
def sources():
    return read("odam_d2", ROOT)


def read(package, folder):
    extensions = griffe.load_extensions(str(ROOT / "docs" / "hooks" / "docstrings.py"))
    return griffe.load(package, search_paths=[str(folder)], extensions=extensions)


def sections(found):
    """Of a docstring, the items of each section by its kind."""
    if not found.docstring:
        return {}
    parsed = found.docstring.parse("google", returns_named_value=False, warnings=False)
    return {section.kind.value: section.value for section in parsed}


def raises(function):
    """Whether it has a ``raise`` of its own, not one that hands on what was caught."""
    waiting = list(ast.iter_child_nodes(ast.parse(textwrap.dedent(function.source)).body[0]))
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Raise) and node.exc is not None:
            return True
        if not isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            waiting += ast.iter_child_nodes(node)
    return False


def lacks(function):
    """What its docstring does not say."""
    found = sections(function)
    takes = [p.name.lstrip("*") for p in function.parameters if p.name not in ("self", "cls")]
    told = [parameter.name.lstrip("*") for parameter in found.get("parameters", [])]
    missing = [] if "text" in found else ["what it does"]
    missing += [f"a parameter {name} that there is not" for name in told if name not in takes]
    if takes and not told:
        missing.append("Args")
    returns = str(function.returns) not in ("None", "NoReturn")
    if takes and returns and not {"returns", "yields"} & found.keys():
        missing.append("Returns")
    # A colon in the first line would be read as the end of a type.
    if any(str(item.annotation) != str(function.returns) for item in found.get("returns", [])):
        missing.append("a first line of Returns without a colon")
    if raises(function) and "raises" not in found:
        missing.append("Raises")
    return missing


def test_what_docstrings_lack_is_seen(tmp_path):
    (tmp_path / "sample.py").write_text('''
def silent(a) -> int:
    raise ValueError(a)


def whole(a, *b):
    """
    Add.

    Args:
        a, *b: numbers,
            of one kind.

    Returns:
        Their sum.

    Raises:
        ValueError: there is no b.
    """
    if not b:
        raise ValueError("no b")
    return sum(b, a)


def renamed(c) -> int:
    """
    Count.

    Args:
        d: a number.

    Returns:
        A dict: so many.
    """
''')
    sample = read("sample", tmp_path)
    assert lacks(sample["silent"]) == ["what it does", "Args", "Returns", "Raises"]
    assert lacks(sample["whole"]) == []
    assert lacks(sample["renamed"]) == [
        "a parameter d that there is not",
        "a first line of Returns without a colon",
    ]


def test_every_package_is_on_one_page():
    pages = {page: page.read_text() for page in (ROOT / "docs" / "api").glob("*.md")}
    for package in api.PACKAGES:
        directive = re.compile(rf"^::: {re.escape(package)}$", re.MULTILINE)
        assert sum(len(directive.findall(text)) for text in pages.values()) == 1, package
    index = pages[ROOT / "docs" / "api" / "index.md"]
    assert all(f"]({page.name})" in index for page in pages if page.name != "index.md")


def test_every_name_is_the_one_that_python_imports():
    """What the page shows was found without importing it."""
    for package, names in PUBLIC.items():
        module = importlib.import_module(package)
        shown = {name.label for name in names}
        others = {
            name
            for name in module.__all__
            if not inspect.ismodule(getattr(module, name)) and name not in shown
        }
        earlier = {name.label for name in NAMES} - shown
        assert others <= earlier, f"{package}: on no page are {sorted(others - earlier)}"
        for name in names:
            where, _, label = name.defined.rpartition(".")
            source = importlib.import_module(where)
            assert getattr(module, name.label) is getattr(source, label), name


@pytest.mark.parametrize("name", NAMES, ids=[name.path for name in NAMES])
def test_docstring(sources, name):
    found = sources[name.defined.removeprefix("odam_d2.")]
    if found.is_function:
        assert lacks(found) == []
        return
    assert sections(found), f"{name.path} has no docstring"
    if found.is_class:
        wrong = lacking_methods(found, name)
        assert not wrong, "; ".join(f"{method} lacks {lack}" for method, lack in wrong.items())


def ours(cls):
    """A class and its bases, as far as they are odam_d2's."""
    return [base for base in cls.__mro__ if base.__module__.startswith("odam_d2")]


def lacking_methods(found, name):
    """
    Of a class: what building it takes must be said; methods have a docstring, where they are not
    those of a documented base; and of some classes a whole one.
    """
    module, _, label = name.defined.rpartition(".")
    cls = getattr(importlib.import_module(module), label)
    wrong = {}
    methods = dict(found.functions)
    if name.path in api.WITH_INHERITED:
        for base in ours(cls)[1:]:
            methods = found.modules_collection[base.__module__][base.__name__].functions | methods
    for method, function in methods.items():
        if method.startswith("_") and method not in ("__call__", "__getitem__"):
            continue
        inherited = any(method in vars(base) for base in cls.__mro__[1:])
        inherited |= method == "from_config"  # what Detectron2's @configurable calls
        if name.path in COMPLETE:
            wrong[method] = lacks(function)
        elif not function.docstring and not inherited:
            wrong[method] = ["what it does"]
    bases = [found.modules_collection[b.__module__] for b in ours(cls)]
    documented = [
        of
        for base, module in zip(ours(cls), bases, strict=True)
        for of in (module[base.__name__], module[base.__name__].functions.get("__init__"))
        if of is not None
    ]
    told = {
        item.name.lstrip("*")
        for of in documented
        for kind in ("parameters", "attributes")
        for item in sections(of).get(kind, [])
    }
    if "__init__" in found.functions or "dataclass" in found.labels:
        given = inspect.signature(cls.__init__).parameters
        wrong["building it"] = [key for key in given if key != "self" and key not in told]
    return {method: lack for method, lack in wrong.items() if lack}
