"""Names of files and folders that never clash."""

import os
import re
from collections.abc import Iterable, Sequence

__all__ = ["slug", "unique_names"]

_LONGEST = 40  # characters of a slug
_LONGEST_FILE = 255  # bytes of a name on common file systems


def slug(text: str) -> str:
    """``text`` with everything but letters, digits, ``_`` and ``.`` replaced by ``-``."""
    return re.sub(r"[^\w.]+", "-", text)[:_LONGEST].strip("-.") or "unnamed"


def unique_names(names: Sequence[str], reserved: Iterable[str] = ()) -> list[str]:
    """
    The names, with ``-2``, ``-3``, ... appended to those that came before; also names that differ
    in case only, which some file systems do not tell apart. A name that would then be too long for
    a file system is cut off before.

    Args:
        names: what to make unique; the first of equals keeps its name.
        reserved: names that are taken.
    """
    taken = {name.casefold() for name in reserved}
    result = []
    for name in names:
        number, candidate = 1, name
        while candidate.casefold() in taken:
            number += 1
            candidate = _with_suffix(name, f"-{number}")
        taken.add(candidate.casefold())
        result.append(candidate)
    return result


def _with_suffix(name: str, suffix: str) -> str:
    while len(os.fsencode(name + suffix)) > _LONGEST_FILE:
        name = name[:-1]
    return name + suffix
