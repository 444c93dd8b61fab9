"""What a run shows while it goes on: lines, and a bar with step, epsilon so far and of the plan, time left.

All of it is public.
"""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from ..privacy.plan import PrivacyPlan
from ..support.words import shown


def make_console() -> Console:
    """Return the console of a run; in a notebook it prints plain lines, where rich would make one output of each."""
    console = Console()
    return Console(force_jupyter=False, force_terminal=False) if console.is_jupyter else console


class Progress:
    """Shows a bar on a terminal, and only the printed lines elsewhere."""

    def __init__(self, console: Console, plan: PrivacyPlan) -> None:
        self._plan, self._planned = plan, shown(plan.epsilon())
        self._bar = RichProgress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("epsilon {task.fields[epsilon]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not (console.is_terminal and console.file.isatty()),  # FORCE_COLOR makes a notebook a terminal
            transient=True,
        )
        self._task = self._bar.add_task("train", total=plan.steps, epsilon=f"{shown(0.0)} of {self._planned}")

    def update(self, step: int) -> None:
        """Show that ``step`` steps are done."""
        so_far = shown(self._plan.epsilon(steps=step))
        self._bar.update(self._task, completed=step, epsilon=f"{so_far} of {self._planned}")

    def print(self, text: str) -> None:
        """Print a line above the bar."""
        self._bar.console.print(text, soft_wrap=True)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
