"""Experiments with odam_d2 that the documentation tells of."""
