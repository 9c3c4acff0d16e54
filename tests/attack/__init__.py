"""
Generated attacks on the project: whatever is given to it, the result is right, or it says in one
sentence what is wrong. ``python -m tests.attack --help``; CONTRIBUTING.md, "Attack it".
"""
