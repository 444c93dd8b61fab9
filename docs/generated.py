"""Pages made from the code when the site is built: settings from the schema, commands from parsers, planted bugs."""

from __future__ import annotations

import argparse
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
    from omegaconf import MISSING

    from dptrain.settings.keys import default_of, keys

    sections: dict[str, list[str]] = {}
    for key, item in keys():
        section, _, _ = key.rpartition(".")
        text = html.escape(item.metadata["help"], quote=False).replace("|", "\\|")
        default = "required" if item.default == MISSING else f"`{shown}`" if (shown := default_of(item)) else ""
        sections.setdefault(section or "The run", []).append(f"| `{key}` | {default} | {text} |")
    head = "| key | default | what it does |\n|---|---|---|\n"
    return "\n\n".join(f"## {name}\n\n{head}" + "\n".join(rows) for name, rows in sections.items())


def commands() -> str:
    """Return what ``dptrain COMMAND --help`` prints, a section a command."""
    from dptrain.commands.main import _parser
    from dptrain.commands.pretrain import _help
    from dptrain.commands.train import _train_help

    helps = {"train": lambda: _train_help().split("\nkeys:")[0], "pretrain": _help}  # settings.md has the keys of train
    parts: list[str] = []
    for action in _parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, parser in action.choices.items():
                text = helps[name]() if name in helps else parser.format_help()
                parts.append(f"## dptrain {name}\n\n```text\n{text.strip()}\n```")
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
