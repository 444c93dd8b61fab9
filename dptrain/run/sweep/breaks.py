"""How a sweep ends before its last job: exceptions that pass through Hydra, a launcher and a sweeper."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from ...errors import BudgetError, ProcessError

if TYPE_CHECKING:
    from .session import Sweep

_PACKAGES = ("joblib", "submitit", "ray")


class SweepRefused(BaseException):
    """Carries an error through Hydra, which turns every other exception of a callback into a warning and goes on.

    Attributes:
        error: What is to be told.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class SweepBroken(BaseException):
    """A sweep broke off after it had begun: what its jobs have spent is still to be told.

    Attributes:
        sweep: To be ended by whoever catches this.
        cause: Why: an error, or the wish to stop.
    """

    def __init__(self, sweep: Sweep, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.sweep, self.cause = sweep, cause


class NoBudget:
    """The score of a trial that the ledger refused: whoever reads it ends the study, once the trials beside it ended.

    Attributes:
        error: What the ledger said.
    """

    def __init__(self, error: BudgetError) -> None:
        self.error = error

    def __float__(self) -> NoReturn:
        raise SweepRefused(self.error)


def lost(error: BaseException, sweep: Sweep) -> ProcessError | None:
    """Return what to tell of a launcher's own error, which means that the process of a job is gone; None for others."""
    if not any(kind.__module__.partition(".")[0] in _PACKAGES for kind in type(error).__mro__):
        return None
    record = sweep.record
    fix = (
        "resume one by one those that had begun, by their own settings"
        if record.study
        else f"give the same command with output_dir={record.folder} resume=true"
    )
    return ProcessError(
        f"the process of a job was lost ({type(error).__name__}), and its steps stay spent: when the other jobs have "
        f"ended, {fix}"
    )
