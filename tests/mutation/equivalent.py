"""
Mutants that change nothing anybody could notice, each with its reason: ten at most.
"""

# Of a file, the lines of the diff, and why.
EQUIVALENT: list[tuple[str, str, str, str]] = []
