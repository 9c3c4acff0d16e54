"""Expressions of literals, worked out without Python's ``eval``: nothing in them can be called."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator

__all__ = ["evaluate_literals"]

# Far above what a config has use for, and still worked out at once.
_MOST_CHARACTERS = 10_000
_MOST_STEPS = 100_000  # evaluated parts of the expression, and elements of lists that are made
_MOST_BITS = 4096  # of an integer

_BINARY: dict[type, Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: dict[type, Callable] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Not: operator.not_,
}
_COMPARE: dict[type, Callable] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_NUMBERS = (bool, int, float)
_SEQUENCES = (str, list, tuple)


def evaluate_literals(expression: str) -> object:
    """
    The value of an expression made of numbers, strings, lists, tuples, dicts, arithmetic,
    comparisons of numbers, and list comprehensions over such, as Python would work it out.

    Raises:
        ValueError: anything else is in it, it is not Python, or it would take long or much memory;
            the message says what.
    """
    if len(expression) > _MOST_CHARACTERS:
        raise ValueError(f"more than {_MOST_CHARACTERS} characters")
    try:
        return _Evaluation().value(ast.parse(expression.strip(), mode="eval").body, {})
    except (SyntaxError, ArithmeticError, TypeError) as error:
        raise ValueError(
            str(error.args[-1] if isinstance(error, ArithmeticError) else error)
        ) from error
    except (RecursionError, MemoryError) as error:
        raise ValueError("nested too deeply") from error


class _Evaluation:
    """One expression, and the steps that are left for it."""

    def __init__(self) -> None:
        self.steps = _MOST_STEPS

    def value(self, node: ast.expr, names: dict[str, object]) -> object:
        """Of a part of the expression; ``names`` are the variables of comprehensions around it."""
        self._spend(1)
        if isinstance(node, ast.Constant) and isinstance(node.value, (*_NUMBERS, str, type(None))):
            return node.value
        if isinstance(node, ast.Name) and node.id in names:
            return names[node.id]
        if isinstance(node, (ast.List, ast.Tuple)):
            values = [self.value(part, names) for part in node.elts]
            return values if isinstance(node, ast.List) else tuple(values)
        if isinstance(node, ast.Dict) and None not in node.keys:
            pairs = zip(filter(None, node.keys), node.values, strict=True)
            return {self.value(key, names): self.value(value, names) for key, value in pairs}
        if isinstance(node, ast.ListComp):
            return [self.value(node.elt, inner) for inner in self._loops(node.generators, names)]
        if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
            return _UNARY[type(node.op)](self.value(node.operand, names))
        if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
            return self._binary(
                node.op, self.value(node.left, names), self.value(node.right, names)
            )
        if isinstance(node, ast.Compare) and all(type(op) in _COMPARE for op in node.ops):
            return self._compare(node, names)
        raise ValueError(f"{ast.unparse(node)!r} is neither a literal nor arithmetic")

    def _spend(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise ValueError("it takes too many steps")

    def _binary(self, op: ast.operator, left: object, right: object) -> object:
        sizes = [len(part) for part in (left, right) if isinstance(part, _SEQUENCES)]
        integers = [part for part in (left, right) if isinstance(part, int)]
        if sizes:
            # "%" would format a string.
            if not isinstance(op, (ast.Add, ast.Mult)):
                raise ValueError("strings, lists and tuples can be added and repeated only")
            self._spend(sum(sizes) if isinstance(op, ast.Add) else sizes[0] * max(0, *integers))
        elif len(integers) == 2:
            bits = [part.bit_length() for part in integers]
            if isinstance(op, ast.Pow):
                bits = [bits[0] * min(abs(integers[1]), _MOST_BITS)]
            if sum(bits) > _MOST_BITS:
                raise ValueError("a number is too large")
        return _BINARY[type(op)](left, right)

    def _compare(self, node: ast.Compare, names: dict[str, object]) -> bool:
        values = [self.value(part, names) for part in (node.left, *node.comparators)]
        if not all(isinstance(value, _NUMBERS) for value in values):
            raise ValueError("numbers can be compared only")
        ops = zip(node.ops, values, values[1:], strict=False)
        return all(_COMPARE[type(op)](left, right) for op, left, right in ops)

    def _loops(self, loops: list[ast.comprehension], names: dict) -> Iterator[dict[str, object]]:
        """The variables in each turn of the loops of a comprehension."""
        if not loops:
            yield names
            return
        loop, *rest = loops
        values = self.value(loop.iter, names)
        if loop.is_async or not isinstance(values, _SEQUENCES):
            raise ValueError(f"{ast.unparse(loop.iter)!r} is not a list")
        for value in values:
            self._spend(1)
            inner = {**names, **_assigned(loop.target, value)}
            if all(self.value(condition, inner) for condition in loop.ifs):
                yield from self._loops(rest, inner)


def _assigned(target: ast.expr, value: object) -> dict[str, object]:
    if isinstance(target, ast.Name):
        return {target.id: value}
    if isinstance(target, (ast.Tuple, ast.List)) and isinstance(value, _SEQUENCES):
        if len(target.elts) != len(value):
            raise ValueError(f"{ast.unparse(target)!r} stands for {len(value)} values")
        found: dict[str, object] = {}
        for part, one in zip(target.elts, value, strict=True):
            found |= _assigned(part, one)
        return found
    raise ValueError(f"{ast.unparse(target)!r} cannot be assigned to")
