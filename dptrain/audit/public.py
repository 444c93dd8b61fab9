"""Images declared public, held against the ledger: those it knows are somebody's, and an audit charges no budget."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import BudgetError


def refuse_charged(data: Path, url: str | None = None, key: str | None = None) -> bool:
    """Refuse a train split with pictures that a ledger holds; nothing is charged, registered or remembered.

    Args:
        data: The data.yaml that was declared public.
        url: The ledger; default that of the environment, else ``budget.db`` in the working directory, if it is there.
        key: File with its key, where it is not in the usual places.

    Returns:
        Whether there was a ledger to ask.

    Raises:
        BudgetError: A dataset of the ledger holds one of the pictures (under any file name), or the ledger cannot be
            read.
    """
    from ..datasets.sources import load_data
    from ..ledger import BudgetLedger
    from ..spending import hash_images

    address = url or os.environ.get("DPTRAIN_BUDGET_URL") or "sqlite:///budget.db"
    ledger = BudgetLedger.existing(address, key) if url is None else BudgetLedger(url, key, create=False)
    if ledger is None:
        return False
    holders = sorted(ledger.shared_images(hash_images(ledger, load_data(data).train)))
    if holders:
        raise BudgetError(
            f"data={str(data)!r} was declared public, and the ledger {ledger.name} has images of it as private, in "
            f"{', '.join(holders)}: an audit charges no budget, so take other images, or none for synthetic scenes"
        )
    return True
