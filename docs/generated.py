"""Pages made from the code when the site is built: settings from the schema, commands from parsers, planted bugs."""

from __future__ import annotations

import argparse
import dataclasses
import html
from typing import Any


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill the markers in ``settings.md``, ``commands.md`` and ``sabotage.md``."""
    makers = {"<!-- settings -->": settings, "<!-- commands -->": commands, "<!-- bugs -->": bugs}
    for marker, make in makers.items():
        if marker in markdown:
            markdown = markdown.replace(marker, make())
    return markdown


def settings() -> str:
    """Return a table a section of every key of ``dptrain train``, with its type, default and help line."""
    from dptrain.settings.schema import keys

    sections: dict[str, list[str]] = {}
    for key, item in keys():
        section, _, _ = key.rpartition(".")
        text = html.escape(item.metadata["help"], quote=False).replace("|", "\\|")
        sections.setdefault(section or "The run", []).append(f"| `{key}` | {_default(item)} | {text} |")
    head = "| key | default | what it does |\n|---|---|---|\n"
    return "\n\n".join(f"## {name}\n\n{head}" + "\n".join(rows) for name, rows in sections.items())


def _default(item: dataclasses.Field[Any]) -> str:
    made = item.default_factory
    value = item.default if made is dataclasses.MISSING else made()
    if value == "???":
        return "required"
    return "" if value is None or value == "" else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def commands() -> str:
    """Return what ``dptrain COMMAND --help`` prints, a section a command."""
    from dptrain.commands.main import _parser

    parts: list[str] = []
    for action in _parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, parser in action.choices.items():
                parts.append(f"## dptrain {name}\n\n```text\n{parser.format_help().strip()}\n```")
                for nested in parser._actions:
                    if isinstance(nested, argparse._SubParsersAction):
                        parts += [
                            f"### dptrain {name} {below}\n\n```text\n{inner.format_help().strip()}\n```"
                            for below, inner in nested.choices.items()
                        ]
    return "\n\n".join(parts)


def bugs() -> str:
    """Return a table of every bug that ``python -m tests.sabotage`` plants, with the tests that must fail."""
    from tests.sabotage.bugs import BUGS

    lines = ["| bug | what somebody wrote | tests that must fail |", "|---|---|---|"]
    for bug in BUGS.values():
        tests = "<br>".join(f"`{test.partition('::')[2]}`" for test in bug.caught_by)
        lines.append(f"| {bug.name} | {bug.story} | {tests} |")
    return "\n".join(lines)
