"""Errors that a user can act on: one line that names the value, the place and the mend."""

from __future__ import annotations


class DptrainError(Exception):
    """Base of every error that dptrain raises on purpose.

    The command prints the message as one line on stderr and exits with status 2; ``--debug`` shows the traceback.
    """


class ConfigError(DptrainError, ValueError):
    """A setting is missing, misspelt, out of range, or contradicts another one."""


class DataError(DptrainError, ValueError):
    """A dataset cannot be read as declared: data.yaml, image or label."""


class ModelError(DptrainError, ValueError):
    """A model cannot be trained privately as it stands: not a detector, a layer that couples images, and so on."""


class PrivacyError(DptrainError, RuntimeError):
    """Continuing would void the guarantee, so dptrain stops."""


class TrackingError(DptrainError, RuntimeError):
    """The experiment tracker cannot be reached or written."""


class BudgetError(DptrainError, RuntimeError):
    """A run does not fit the budget of its dataset, or the ledger cannot be reached, read or trusted."""
