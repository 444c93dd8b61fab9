"""Files encrypted at rest in the age format: weights, checkpoints, ledger exports, whole datasets."""

from .keys import Keys, find_keys, new_identity, recipients_of

__all__ = ["Keys", "find_keys", "new_identity", "recipients_of"]
