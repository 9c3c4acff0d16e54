"""Evaluators of explanations."""

from .known_causes import KnownCauseEvaluator

__all__ = ["KnownCauseEvaluator"]
