"""Evaluators of explanations, and of detection in crowds."""

from .crowd import CrowdEvaluator, crowd_metrics
from .explanation import ExplanationEvaluator, ExplanationProtocol
from .known_causes import KnownCauseEvaluator

__all__ = [
    "CrowdEvaluator",
    "ExplanationEvaluator",
    "ExplanationProtocol",
    "KnownCauseEvaluator",
    "crowd_metrics",
]
