"""Errors that a user can act on: one line that names the value, the place and the fix."""

from __future__ import annotations

import unicodedata

_MOST_CHARACTERS = 2000  # of a message; its start names the place, its end the fix


def is_control(character: str) -> bool:
    """Whether a character ends a line, steers a terminal, or cannot be encoded: none of these is part of a line."""
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")


class DptrainError(Exception):
    """Base of every error that dptrain raises on purpose.

    The command prints the message as one line on stderr and exits with status 2; ``--debug`` shows the traceback.
    """

    def __str__(self) -> str:
        """The message as one line of bounded length: what it quotes may come from any file."""
        text = super().__str__()
        if len(text) > _MOST_CHARACTERS:
            text = f"{text[: _MOST_CHARACTERS // 2]} [...] {text[-_MOST_CHARACTERS // 2 :]}"
        return "".join(c.encode("unicode_escape").decode() if is_control(c) else c for c in text)


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


class SupersededError(BudgetError):
    """The run went on in another folder or process: this one may take no further step."""


class ProcessError(DptrainError, RuntimeError):
    """Another process of the run ended, failed, or computes something else: the run cannot continue without it."""


class SealError(DptrainError, RuntimeError):
    """A sealed file cannot be opened: another key, or not a bit as it was sealed. Nothing of it is used."""
