"""Images declared public, held against the ledger: those it knows are somebody's, and an audit charges nothing."""

from __future__ import annotations

from pathlib import Path

from ..support.environment import ledger_address


def refuse_charged(data: Path, url: str | None = None, key: str | None = None) -> bool:
    """Refuse a train split with pictures that a ledger holds; nothing is charged, registered or remembered.

    Args:
        data: The data.yaml that was declared public.
        url: The ledger; default that of the environment, else ``budget.db`` in the working directory, if it is there.
        key: File with its key, where it is not in the usual places.

    Returns:
        Whether there was a ledger to ask.

    Raises:
        PrivacyError: A dataset of the ledger holds one of the pictures (under any file name).
        BudgetError: The ledger cannot be read.
    """
    from ..datasets.sources import load_data
    from ..ledger import BudgetLedger
    from ..run.declared_public import DeclaredPublic

    address = ledger_address(url)
    ledger = BudgetLedger.existing(address, key) if url is None else BudgetLedger(url, key, create=False)
    if ledger is None:
        return False
    fix = "an audit charges nothing to the ledger, so use other images, or none for synthetic scenes"
    DeclaredPublic(f"the images of data={str(data)!r}", load_data(data).train, fix).refuse_held(ledger)
    return True
