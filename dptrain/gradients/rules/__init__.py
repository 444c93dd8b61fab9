"""One rule a layer kind: how its forward pass is recorded and its per-example gradient formed.

A rule is looked up by the exact type of a module. A subclass may compute something else, so it has no rule until
somebody registers one.
"""

from __future__ import annotations

from . import conv, embedding, linear, norm  # noqa: F401 - each registers its rules
from .base import Record, Rule, Tape, registered_rules, rule_for
from .folded import fold, register_pair
from .outside import LayerRule, OutsideRule, register_layer_rule

__all__ = [
    "LayerRule",
    "OutsideRule",
    "Record",
    "Rule",
    "Tape",
    "fold",
    "register_layer_rule",
    "register_pair",
    "registered_rules",
    "rule_for",
]
