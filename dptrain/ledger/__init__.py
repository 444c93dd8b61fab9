"""The budget of a dataset across runs: who has spent what of it, and whether one more run fits.

:class:`BudgetLedger` is the way in. ``docs/budget.md`` has the theorem it stands on.
"""

from .budgets import BudgetLedger
from .charges import Charge
from .manifest import Changes, Manifest

__all__ = ["BudgetLedger", "Changes", "Charge", "Manifest"]
