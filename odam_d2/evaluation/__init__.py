"""Evaluators of explanations, and of detection in crowds."""

from .causal_effects import CausalRecoverySettings
from .causal_recovery import CausalRecoveryEvaluator
from .crowd import CrowdEvaluator, crowd_metrics
from .explanation import ExplanationEvaluator, ExplanationProtocol
from .known_causes import KnownCauseEvaluator
from .sanity_checks import SanityCheckEvaluator, SanityCheckSettings

__all__ = [
    "CausalRecoveryEvaluator",
    "CausalRecoverySettings",
    "CrowdEvaluator",
    "ExplanationEvaluator",
    "ExplanationProtocol",
    "KnownCauseEvaluator",
    "SanityCheckEvaluator",
    "SanityCheckSettings",
    "crowd_metrics",
]
