"""The statement as one HTML file: no script, nothing from the network, fit for print."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..support.words import round_up
from .render import headline, made_by, sections, status_line, summary


def to_html(statement: Mapping[str, Any], results: Path | None = None) -> str:
    """Return the statement as a page of its own; every value in it is escaped.

    Args:
        statement: As :func:`make_statement` returns it.
        results: The run's ``results.csv``, for the picture of accuracy over epsilon; None leaves that out.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from .charts import charts

    environment = Environment(
        loader=PackageLoader("dptrain", "statement"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    guarantee = statement["guarantee"]
    pictures = [
        {"caption": caption, "source": f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"}
        for caption, svg in charts(statement, results)
    ]
    return environment.get_template("page.html.j2").render(
        statement=statement,
        headline=headline(statement),
        status=status_line(statement),
        numbers=[
            ("epsilon", round_up(guarantee["epsilon"]), "RDP, the headline"),
            *(
                ()
                if guarantee["epsilon_pld"] is None
                else (("epsilon", round_up(guarantee["epsilon_pld"]), "PLD, the tighter reading"),)
            ),
            (
                "delta",
                f"{guarantee['delta']:.3g}",
                f"1 in {math.floor((1 + 1e-9) / guarantee['delta']):,}: outside the bound",
            ),
            ("unit", guarantee["unit"], guarantee["neighbouring_relation"]),
        ],
        summary=summary(statement),
        pictures=pictures,
        sections=sections(statement),
        made_by=made_by(statement),
    )
