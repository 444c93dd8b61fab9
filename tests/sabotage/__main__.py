"""``python -m tests.sabotage [NAME ...]``: plant every bug in turn, and print which tests catch it.

Ends with status 1 if a bug is not caught, does not run, or one of its tests fails without it.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .bugs import BUGS
from .trial import Verdict, broken, judge


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sabotage", description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("names", nargs="*", metavar="NAME", help="bugs to plant; all of them by default")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table as Markdown")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in BUGS]
    if unknown:
        parser.error(f"no bug is called {unknown[0]!r}; known are: {', '.join(BUGS)}")
    chosen = [BUGS[name] for name in options.names or BUGS]
    console = Console(stderr=True)
    began = time.monotonic()
    console.print(f"the tests of {len(chosen)} bugs without any of them ...")
    red = broken(test for bug in chosen for test in bug.caught_by)
    verdicts: list[Verdict] = []
    for number, bug in enumerate(chosen, 1):
        verdicts.append(judge(bug, red))
        console.print(
            f"{number:>3}/{len(chosen)} {bug.name}: {verdicts[-1].word}, {verdicts[-1].seconds:.0f} s", markup=False
        )
    minutes = (time.monotonic() - began) / 60
    Console().print(table(verdicts))
    print(summary(verdicts, minutes))
    if options.markdown:
        options.markdown.write_text(markdown(verdicts, minutes))
    return 0 if all(verdict.sound for verdict in verdicts) else 1


def summary(verdicts: list[Verdict], minutes: float) -> str:
    planted = [verdict for verdict in verdicts if not verdict.bug.harmless]
    caught = sum(verdict.sound for verdict in planted)
    harmless = len(verdicts) - len(planted)
    passed = sum(verdict.sound for verdict in verdicts) - caught
    return (
        f"{caught} of {len(planted)} bugs caught, {passed} of {harmless} harmless changes let through, "
        f"in {minutes:.1f} minutes"
    )


def _catchers(verdict: Verdict) -> list[str]:
    return [f"{Path(file).stem}: {name}" for file, _, name in (test.partition("::") for test in verdict.bug.caught_by)]


def table(verdicts: list[Verdict]) -> Table:
    made = Table(title="Planted bugs", show_lines=True)
    for column in ("bug", "what somebody wrote", "verdict", "tests that must fail"):
        made.add_column(column, overflow="fold")
    for verdict in verdicts:
        style = None if verdict.sound else "bold red"
        made.add_row(verdict.bug.name, verdict.bug.story, verdict.word, "\n".join(_catchers(verdict)), style=style)
    return made


def markdown(verdicts: list[Verdict], minutes: float) -> str:
    lines = ["| bug | what somebody wrote | verdict | tests that must fail |", "|---|---|---|---|"]
    for verdict in verdicts:
        tests = "<br>".join(f"`{test}`" for test in _catchers(verdict))
        lines.append(f"| {verdict.bug.name} | {verdict.bug.story} | {verdict.word} | {tests} |")
    return "\n".join([*lines, "", summary(verdicts, minutes) + ".", ""])


if __name__ == "__main__":
    sys.exit(main())
