"""Mutants by cosmic-ray's operators: where code can be changed, and a sample of that."""

from __future__ import annotations

import ast
import difflib
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

__all__ = ["Mutant", "draw"]

# What nobody writes by mistake is easily noticed: it would only flatter the tests.
_UNLIKELY = re.compile(
    r"ReplaceBinaryOperator_.*(Shift|_Pow$)"  # to shifts and powers
    r"|ReplaceBinaryOperator_Bit\w+_(?!Bit)|ReplaceBinaryOperator_(?!Bit)\w+_Bit"  # sets to numbers
    r"|ReplaceComparisonOperator_(?!Is)\w+_Is|ReplaceComparisonOperator_Is(Not)?_(?!Is)"
    r"|ReplaceUnaryOperator_(?!Delete)"
)

Position = tuple[int, int]  # line from 1, column from 0


@dataclass(frozen=True)
class Mutant:
    """
    One changed place of one file.

    Attributes:
        file: below the root of the repository.
        line: of the change.
        operator: cosmic-ray's name of the kind of change.
        code: of the whole file, changed.
        diff: unified, without context.
    """

    file: str
    line: int
    operator: str
    code: str
    diff: str


@dataclass(frozen=True, order=True)
class _Change:
    file: str
    start: Position
    family: str
    operator: str
    occurrence: int


def draw(root: Path, files: Sequence[str], count: int, seed: int) -> list[Mutant]:
    """
    Choose ``count`` places at random, each place once, and at each of them one change at random.
    A change that is no Python is left out, and so are annotations of types, which nothing reads.

    Args:
        root: of the repository.
        files: below ``root``.
        count: of mutants; fewer where there are fewer places.
        seed: of the choice; with the same code the same mutants come out.
    """
    sources = {file: (root / file).read_text("utf-8") for file in sorted(files)}
    changes = sorted(c for file, source in sources.items() for c in _changes(file, source))
    places: dict[tuple, list[_Change]] = {}
    for change in changes:
        places.setdefault((change.file, change.start, change.family), []).append(change)
    generator = random.Random(seed)
    order = list(places.values())
    generator.shuffle(order)
    mutants = []
    for at_place in order:
        if len(mutants) == count:
            break
        change = generator.choice(at_place)
        mutant = _mutant(change, sources[change.file])
        if mutant is not None:
            mutants.append(mutant)
    return mutants


def _changes(file: str, source: str) -> Iterator[_Change]:
    nodes = list(ast_nodes(get_ast(source)))
    lines, ignored = source.splitlines(), _annotations(source)
    for name in operator_names():
        operator = get_operator(name)
        if operator.arguments() or _UNLIKELY.search(name):
            continue
        positions = (p for node in nodes for p in operator().mutation_positions(node))
        for occurrence, (start, _) in enumerate(positions):
            if any(first <= start < last for first, last in ignored):
                continue
            before = lines[start[0] - 1][: start[1]].rstrip()
            if "BinaryOperator" in name and (not before or before[-1] in "(,[{"):
                continue  # the star of *args, which cosmic-ray takes for a product
            if before.endswith("strict="):
                continue  # zip's, an assertion that always holds
            family = name.split("/")[1].split("_")[0]
            yield _Change(file, start, family, name, occurrence)


def _annotations(source: str) -> list[tuple[Position, Position]]:
    """From where to where each annotation of a type goes."""
    found = []
    for node in ast.walk(ast.parse(source)):
        parts = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        found += [((p.lineno, p.col_offset), (p.end_lineno, p.end_col_offset)) for p in parts if p]
    return found


def _mutant(change: _Change, source: str) -> Mutant | None:
    code = mutate_code(source, get_operator(change.operator)(), change.occurrence)
    try:
        if code is None or ast.dump(ast.parse(code)) == ast.dump(ast.parse(source)):
            return None
        compile(code, change.file, "exec")
    except SyntaxError:
        return None
    lines = difflib.unified_diff(source.splitlines(), code.splitlines(), n=0, lineterm="")
    diff = "\n".join(line for line in lines if not line.startswith(("---", "+++", "@@")))
    return Mutant(change.file, change.start[0], change.operator.split("/")[1], code, diff)
