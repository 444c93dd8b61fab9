"""Audits: an empirical lower bound on epsilon, from one training run with canaries on public or synthetic data."""

from .bound import epsilon_lower_bound, p_value
from .f_dp import Family, f_dp_lower_bound
from .guesses import all_bounds
from .result import AuditResult
from .run import audit_training, default_plan

__all__ = [
    "AuditResult",
    "Family",
    "all_bounds",
    "audit_training",
    "default_plan",
    "epsilon_lower_bound",
    "f_dp_lower_bound",
    "p_value",
]
