"""Audits: an empirical lower bound on epsilon, from one training run with canaries on public or synthetic data."""

from .bound import best_guesses, epsilon_lower_bound, p_value
from .result import AuditResult
from .run import audit_training, default_plan

__all__ = ["AuditResult", "audit_training", "best_guesses", "default_plan", "epsilon_lower_bound", "p_value"]
