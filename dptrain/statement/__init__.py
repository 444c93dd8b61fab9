"""The privacy statement of a run: its facts, the pages made of them, and the check that they still hold.

``facts`` makes the statement from what the run knows, ``render`` and ``page`` put it into Markdown and HTML, ``files``
reads and writes it, and ``check`` compares a statement with the run that it speaks of.
"""

from __future__ import annotations

from .check import CheckedStatement, check_statement
from .facts import STATEMENT_FORMAT, claim_of, make_statement
from .files import STATEMENT_FILES, write_statement
from .page import to_html
from .render import to_json, to_markdown

__all__ = [
    "STATEMENT_FILES",
    "STATEMENT_FORMAT",
    "CheckedStatement",
    "check_statement",
    "claim_of",
    "make_statement",
    "to_html",
    "to_json",
    "to_markdown",
    "write_statement",
]
