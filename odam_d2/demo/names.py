"""Names of files and folders that never clash."""

import re
from collections.abc import Iterable, Sequence

__all__ = ["slug", "unique_names"]

_LONGEST = 40  # characters of a slug; file systems end at 255 bytes


def slug(text: str) -> str:
    """``text`` with everything but letters, digits, ``_`` and ``.`` replaced by ``-``."""
    return re.sub(r"[^\w.]+", "-", text)[:_LONGEST].strip("-.") or "unnamed"


def unique_names(names: Sequence[str], reserved: Iterable[str] = ()) -> list[str]:
    """
    The names, with ``-2``, ``-3``, ... appended to those that came before; also names that differ
    in case only, which some file systems do not tell apart.

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
            candidate = f"{name}-{number}"
        taken.add(candidate.casefold())
        result.append(candidate)
    return result
