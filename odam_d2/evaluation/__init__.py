"""Evaluators of explanations, and of detection in crowds."""

from .crowd import CrowdEvaluator, crowd_metrics
from .known_causes import KnownCauseEvaluator

__all__ = ["CrowdEvaluator", "KnownCauseEvaluator", "crowd_metrics"]
