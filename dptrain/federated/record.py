"""The record of a federation: what each site declared and spent, and what that comes to for an image and a person."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..privacy.units import UNITS
from .exchange import DeclinedError, Release

FORMAT = 1
RECORD = "federation.json"


@dataclass(frozen=True)
class SiteRecord:
    """What the server knows of a site: what it declared, and how far it came.

    Attributes:
        rounds: The server's numbers of the rounds that it took part in.
    """

    dataset_size: int
    unit: str
    epsilon: float
    delta: float
    epsilon_so_far: float
    steps: int
    planned_steps: int
    valid: bool
    rounds: tuple[int, ...]


def noted(sites: Mapping[str, SiteRecord], release: Release) -> dict[str, SiteRecord]:
    """Return the sites' records with one more release.

    Raises:
        DeclinedError: The site declares something else than before, or something that is no declaration.
    """
    values = {key: getattr(release, key) for key in SiteRecord.__dataclass_fields__ if key != "rounds"}
    sound = (
        release.dataset_size > 0
        and 0 <= release.steps <= release.planned_steps
        and all(math.isfinite(value) and value > 0 for value in (release.epsilon, release.delta))
        and release.unit in UNITS
    )
    if not sound:
        raise DeclinedError(f"the site {release.name} declares numbers that no plan has")
    before = sites.get(release.name)
    if before is None:
        return {**sites, release.name: SiteRecord(**values, rounds=(release.number,))}
    for name in ("dataset_size", "unit", "epsilon", "delta", "planned_steps"):
        if getattr(before, name) != values[name]:
            raise DeclinedError(f"the site {release.name} declares another {name} than before: {values[name]}")
    return {**sites, release.name: SiteRecord(**values, rounds=(*before.rounds, release.number))}


def to_record(sites: Mapping[str, SiteRecord], done: int, terms: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``federation.json``; it holds nothing but what was declared, and public settings."""
    each = {name: {**asdict(site), "rounds": list(site.rounds)} for name, site in sorted(sites.items())}
    return {"format": FORMAT, "rounds_done": done, "terms": dict(terms), "sites": each, "composed": composed(sites)}


def composed(sites: Mapping[str, SiteRecord]) -> dict[str, Any]:
    """Return what the sites' guarantees come to, together.

    Sites have no image in common, so a unit of one site is in its site's guarantee alone (parallel composition:
    McSherry 2009, theorem 4). Who is at several sites has what those spend, added up (Dwork et al. 2006): at worst all.
    """
    known = list(sites.values())
    return {
        "unit_of_one_site": {
            "epsilon": max((site.epsilon for site in known), default=0.0),
            "delta": max((site.delta for site in known), default=0.0),
        },
        "unit_of_every_site": {
            "epsilon": sum(site.epsilon for site in known),
            "delta": sum(site.delta for site in known),
        },
        "valid": all(site.valid for site in known),
    }


def to_markdown(record: Mapping[str, Any]) -> str:
    """Return the record as a page."""
    lines = [
        "# Record of a federation",
        "",
        f"{record['rounds_done']} of {record['terms']['rounds']} rounds are done.",
        "",
        "| site | unit | declared size | epsilon of its plan | so far | delta | steps |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, site in record["sites"].items():
        steps, spent = f"{site['steps']} of {site['planned_steps']}", f"{site['epsilon_so_far']:.4g}"
        whole, delta = f"{site['epsilon']:.4g}", f"{site['delta']:.3g}"
        values = (name, site["unit"], site["dataset_size"], whole, spent, delta, steps)
        lines.append(f"| {' | '.join(map(str, values))} |")
    lines += [
        "",
        "'So far' holds for whoever had decided beforehand to stop there; the epsilon of the plan holds always.",
    ]
    one, every = record["composed"]["unit_of_one_site"], record["composed"]["unit_of_every_site"]
    lines += [
        "",
        f"One {_unit(record)} of one site: epsilon {one['epsilon']:.4g} at delta {one['delta']:.3g}, the largest of "
        "all sites. The others never saw it.",
        "",
        f"Somebody who is one {_unit(record)} of every site: at most the sum, epsilon {every['epsilon']:.4g} at delta "
        f"{every['delta']:.3g}.",
        "",
        "The server did not measure any of this: each site declares it, and proves it by its own statement.json.",
    ]
    if not record["composed"]["valid"]:
        lines += ["", "**No guarantee**: a site ran with a seed, for a test."]
    return "\n".join(lines) + "\n"


def _unit(record: Mapping[str, Any]) -> str:
    units = {site["unit"] for site in record["sites"].values()}
    return units.pop() if len(units) == 1 else "unit"


def sites_in(record: Mapping[str, Any]) -> dict[str, SiteRecord]:
    """Read the sites of a record back."""
    return {name: SiteRecord(**{**site, "rounds": tuple(site["rounds"])}) for name, site in record["sites"].items()}
