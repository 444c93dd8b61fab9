"""What datasets have spent, as one HTML page for their owner: no script, nothing from the network."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

from ..support.words import shown
from .picture import draw_spending
from .reading import DatasetReading, Movement


def to_html(ledger: str, datasets: Sequence[tuple[DatasetReading, Sequence[Movement]]]) -> str:
    """Return the page. It is private: what a dataset has spent depends on which images the runs could draw.

    Args:
        ledger: What the ledger is called.
        datasets: What each has spent, and by which runs.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("dptrain", "ledger"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("dashboard.html.j2").render(
        ledger=ledger,
        read=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        datasets=[_section(reading, movements) for reading, movements in datasets],
    )


def _section(reading: DatasetReading, movements: Sequence[Movement]) -> dict[str, Any]:
    used = None if reading.used is None else round(100 * min(reading.used, 1.0), 1)
    return {
        "reading": reading,
        "spent": shown(reading.epsilon),
        "limit": None if reading.limit is None else f"{reading.limit:g}",
        "delta": None if reading.delta is None else f"{reading.delta:.3g}",
        "used": used,
        "left": None if used is None else round(100 - used, 1),
        "picture": _picture(reading, movements) if movements else "",
        "movements": [
            {
                "at": run.at.replace("T", " ").rstrip("Z"),
                "name": run.name,
                "status": run.status,
                "steps": f"{run.charged:,}" if run.charged == run.planned else f"{run.charged:,}/{run.planned:,}",
                "noise": run.kind if run.noise_multiplier is None else f"{run.noise_multiplier:g}",
                "epsilon": shown(run.epsilon),
            }
            for run in reversed(movements)
        ],
    }


def _picture(reading: DatasetReading, movements: Sequence[Movement]) -> Any:
    from markupsafe import Markup

    stream = BytesIO()
    draw_spending(movements, reading, stream)
    text = stream.getvalue().decode()
    return Markup(text[text.index("<svg") :])  # drawn here; names in it are outlines, or escaped in comments
