"""Manifests of pictures that exist only as hashes, for tests of what the ledger does with them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from dptrain import BudgetLedger
from dptrain.ledger.manifest import Manifest, Picture, from_pictures


def hashed(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def pictures(ledger: BudgetLedger, numbers: Iterable[int], labels: str = "") -> Manifest:
    """The manifest of some numbered pictures, all with the same labels."""
    return from_pictures(
        ledger._store.key, [Picture(hashed(f"file {n}"), hashed(f"unit {n}"), hashed(labels)) for n in numbers]
    )
