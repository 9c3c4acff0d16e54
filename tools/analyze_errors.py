#!/usr/bin/env python
"""``odam-errors`` in a checkout, see its ``--help``."""

import runpy
import sys
from pathlib import Path

runpy.run_path(str(Path(__file__).with_name("enter_environment.py")))["enter_environment"]()

from odam_d2.command_line.analyze_errors import command

if __name__ == "__main__":
    sys.exit(command())
