"""Run by some Python, prints what that Python has, as JSON. Imports none of it."""

import importlib.metadata
import importlib.util
import json
import re
import sys


def main() -> None:
    """Print the arguments that are no modules there, where odam_d2 is, and what is installed."""
    ours = importlib.util.find_spec("odam_d2")
    versions = {
        distribution.metadata["Name"]: distribution.version
        for distribution in importlib.metadata.distributions()
    }
    pattern = re.compile(r"[0-9][0-9A-Za-z.+!]*")  # what pip can read, in a constraints file
    answer = {
        "missing": [name for name in sys.argv[1:] if importlib.util.find_spec(name) is None],
        "odam_d2": ours.origin if ours else None,
        "versions": {n: v for n, v in versions.items() if n and v and pattern.fullmatch(v)},
    }
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
