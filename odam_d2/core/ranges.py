"""Which values settings may have, each told in one sentence that names the setting."""

from __future__ import annotations

import numbers
import reprlib
from collections.abc import Sequence
from typing import Any

from .errors import InputError

__all__ = ["check_flag", "check_number", "check_one_of", "check_text"]


def check_number(
    key: str,
    value: object,
    words: str,
    low: float,
    high: float,
    *,
    above: bool = False,
    below: bool = False,
    whole: bool = False,
) -> None:
    """
    Args:
        key: the setting, as the user knows it.
        words: what is right, after "it must be".
        low, high: the least and the greatest value.
        above, below: whether ``low`` and ``high`` themselves are wrong.
        whole: whether it must be an integer.

    Raises:
        InputError: it is no number, or out of range. NaN is out of every range.
    """
    kind: type[Any] = numbers.Integral if whole else numbers.Real
    right = (
        isinstance(value, kind)
        and not isinstance(value, bool)
        and (value > low if above else value >= low)
        and (value < high if below else value <= high)
    )
    _require(right, key, value, words)


def check_one_of(key: str, value: object, known: Sequence[str]) -> None:
    """Raise an :class:`InputError` when a setting is none of the names that there are."""
    _require(isinstance(value, str) and value in known, key, value, f"one of {', '.join(known)}")


def check_text(key: str, value: object) -> None:
    """Raise an :class:`InputError` when a setting is no string."""
    _require(isinstance(value, str), key, value, "text, '' for none")


def check_flag(key: str, value: object) -> None:
    """Raise an :class:`InputError` when a setting is neither True nor False."""
    _require(isinstance(value, bool), key, value, "True or False")


def _require(right: bool, key: str, value: object, words: str) -> None:
    if not right:
        raise InputError(f"{key} is {reprlib.repr(value)}; it must be {words}")
