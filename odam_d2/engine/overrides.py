"""Command lines that end with overrides of a config: ``[flags] KEY VALUE KEY VALUE ...``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from detectron2.config import get_cfg

__all__ = ["parse_with_overrides"]


def parse_with_overrides(
    parser: argparse.ArgumentParser, lists: Sequence[str], argv: Sequence[str] | None = None
) -> argparse.Namespace:
    """
    Parse a command line; what follows its flags is ``opts``.

    Args:
        parser: of the flags, and of ``opts`` that take what remains.
        lists: flags of one value or more. Argparse would give them the overrides that follow: their
            values end where a key of the config begins.
        argv: the command line, by default that of the program.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    keys, within = get_cfg(), False
    for place, word in enumerate(argv):
        if word.startswith("--"):
            within = any(flag.startswith(word) for flag in lists)
        elif within and word.split(".")[0] in keys:
            args = parser.parse_args(argv[:place])
            args.opts += argv[place:]
            return args
    return parser.parse_args(argv)
