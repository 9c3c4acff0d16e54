"""Files with a JSON object in each line."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from reprlib import repr as shortened
from types import EllipsisType
from typing import TypeVar

from odam_d2.core.errors import InputError
from odam_d2.errors import one_line

__all__ = ["field", "is_number", "numbers", "read_json_lines"]

T = TypeVar("T")

_MAY_RAISE = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
_WORDS: dict[type, str] = {dict: "an object", list: "a list", str: "a string"}


def read_json_lines(path: str | os.PathLike, parse: Callable[[dict], object]) -> Iterator:
    """
    Yield what ``parse`` makes of the object in each line that is not empty.

    Raises:
        InputError: a line is not UTF-8 or not a JSON object, or ``parse`` raises what wrong values
            may raise; the message names file and line.
        FileNotFoundError: there is no such file.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8"))
                if not isinstance(record, dict):
                    raise ValueError(f"a JSON object is needed, not {type(record).__name__}")
                found = parse(record)
            except _MAY_RAISE as error:
                raise InputError(f"{path}, line {number}: {_words(error)}") from error
            yield found


def _words(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error})"
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8"
    if isinstance(error, KeyError):
        return f"no key {error}"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return one_line(error)


def field(record: dict, key: str, kind: type[T], default: T | EllipsisType = ...) -> T:
    """
    A value of a JSON object.

    Raises:
        KeyError: it is not there and has no default.
        ValueError: it is of another kind.
    """
    value = record[key] if default is ... else record.get(key, default)
    if not isinstance(value, kind):
        raise ValueError(f"{key} must be {_WORDS[kind]}, not {shortened(value)}")
    return value


def numbers(record: dict, key: str, words: str) -> list[float]:
    """
    The four finite numbers that a JSON object has for a box.

    Args:
        words: what they are, for the message.

    Raises:
        KeyError: they are not there.
        ValueError: they are something else.
    """
    values = record[key]
    if not isinstance(values, list) or len(values) != 4 or not all(map(is_number, values)):
        raise ValueError(f"{key} must be 4 numbers {words}, not {shortened(values)}")
    return [float(value) for value in values]


def is_number(value: object) -> bool:
    """Whether a value of JSON is a number that a float can hold, and finite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= 1.7e308 and math.isfinite(value)
