"""The statement in words, once for every page that is made of it: a summary, and sections of facts."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..privacy.trade_off import TradeOff
from ..support.words import round_up

_MOST_FACTOR = 1e6  # beyond this e^epsilon is written as a power of ten
_TIERS = ((1.0, "strong"), (10.0, "reasonable"), (math.inf, "weak to none by itself"))
_STATUS = {
    "finished": "The run ended as planned",
    "stopped": "The run was stopped before its end",
    "running": "The run had not ended when this was written",
}


@dataclass(frozen=True)
class Section:
    """A titled part of the page: facts in two columns, then items of a list."""

    title: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    items: list[str] = field(default_factory=list)


def to_json(statement: Mapping[str, Any]) -> str:
    """Return the statement as JSON."""
    return json.dumps(statement, indent=2, sort_keys=False, allow_nan=False) + "\n"


def to_markdown(statement: Mapping[str, Any]) -> str:
    """Return the statement as a page that a person reads; the RDP curve stays in the JSON."""
    lines = ["# Privacy statement", "", f"**{headline(statement)}**", ""]
    for deviation in statement["deviations"]:
        lines += [f"> {_plain(deviation)}", ""]
    for paragraph in summary(statement):
        lines += [_plain(paragraph), ""]
    for section in sections(statement):
        lines += [f"## {section.title}", ""]
        if section.facts:
            lines += [
                "| | |",
                "|---|---|",
                *(f"| {_plain(name)} | {_plain(value)} |" for name, value in section.facts),
                "",
            ]
        if section.items:
            lines += [*(f"- {_plain(item)}" for item in section.items), ""]
    return "\n".join([*lines, f"{made_by(statement)}", ""])


def headline(statement: Mapping[str, Any]) -> str:
    """Return the guarantee in one line."""
    guarantee = statement["guarantee"]
    differs = _DIFFERS.get(guarantee["unit"], f"one {guarantee['unit']} more or less")
    claim = f"({round_up(guarantee['epsilon'])}, {guarantee['delta']:.3g})-differential privacy for {differs}"
    return claim if statement["valid"] else f"VOID, nothing is protected. On paper: {claim}"


# In which two datasets differ that a run on either can hardly be told from the other, where it is no unit more or less.
_DIFFERS = {"person": "all pictures of one person, there or blank, where it is known who is in which"}
_UNITS = {
    "image": "one image, with all its boxes",
    "group": "one group of images (such as all images of one patient, camera or video), with all their boxes",
    "person": "one person, with all pictures in which the person is, where others may be, too",
}


PLANTED = (1, 10, 100)  # units of which a statement says what they could do
_RARE = 1e-3  # chance of an outcome without them
_NO_LIMIT = 0.9  # chances above are called none

_ONE_PERSON = (
    "The guarantee is for what all pictures of one person show, where one picture may show several people. Who is in "
    "which picture is taken as known: that table chose the pictures that were trained on, and the guarantee does not "
    "hide that somebody is in it. Epsilon adds up with every other run on the same people."
)


def summary(statement: Mapping[str, Any]) -> list[str]:
    """Return the guarantee in plain words, a paragraph each."""
    guarantee, steps = statement["guarantee"], statement["mechanism"]["steps"]
    unit, epsilon = guarantee["unit"], guarantee["epsilon"]
    if not statement["valid"]:
        return [
            "This run gives no protection, for the reason named above. The numbers below are what its settings would "
            "promise if that reason did not apply; they must not be quoted as a guarantee."
        ]
    if not steps:
        return ["No training step was taken, so nothing of the training images is in these weights."]
    accuracy = guarantee["attack_accuracy"]
    about, known, asked = f"a single {unit} of its data", f"all the other {unit}s", f"one particular {unit} was used"
    change = f"one {unit} more or less changes"
    if unit == "person":
        change = "whether all pictures of one person are there or blank changes"
        about = "what the pictures of a single person show"
        known = "all pictures without that person and the table of who is in which"
        asked = "the pictures of that person were used or blank"
    factor = math.exp(epsilon) if epsilon < 700 else math.inf
    tier = next(words for bound, words in _TIERS if epsilon <= bound)
    return [
        f"The training limits what anyone can learn about {about}. Suppose someone is given these weights, every "
        f"earlier state of them and {known}, and asks whether {asked}. With even odds beforehand, no method whatever "
        f"is right in more than {_percent(accuracy)} of cases: "
        f"50 % is the toss of a coin, 100 % is certainty. {_rates(guarantee['true_positive_rates'], unit)}",
        f"Epsilon says the same of every question one could ask of the model: {change} the "
        f"probability of any answer by a factor of at most e^{round_up(epsilon)} = {_factor(factor)}, but for a "
        f"probability of {guarantee['delta']:.3g} (delta). Smaller is safer. In the words of Ponomareva et al. (2023, "
        f"section 5.2), a guarantee at this epsilon is {tier}: up to 1 is strong, up to 10 reasonable.",
        _ONE_PERSON
        if unit == "person"
        else f"The guarantee is for one {unit}. A person shown in several has less of it, and it adds up with every "
        "other run on the same images.",
        *_planted(guarantee),
        *_early(guarantee.get("ended_early"), statement["mechanism"]["planned_steps"]),
        *_of_val(statement.get("validation_release")),
    ]


def _rates(rates: Mapping[str, float], unit: str) -> str:
    """The best true-positive rate at each false-positive rate, in a sentence."""
    found = [
        f"that wrongly names {false} of the others finds at most {_percent(rate)}" for false, rate in rates.items()
    ]
    return f"Of the {unit}s that were used, one {', one '.join(found)}."


def _planted(guarantee: Mapping[str, Any]) -> list[str]:
    """What the guarantee says of units that somebody planted, such as poisoned images."""
    unit = guarantee["unit"]
    if unit == "person":
        return []
    bound = TradeOff(np.array([min(guarantee["epsilon"], 500.0)]), np.array([guarantee["delta"]]))
    limits = {count: bound.most_after(count, _RARE) for count in PLANTED}
    if limits[PLANTED[0]] > _NO_LIMIT:
        said = f"At this epsilon it may be certain with one planted {unit}: the guarantee is no defence against them."
    else:
        said = "The chance is then at most " + ", ".join(
            f"{_percent(limit)} with {count}" if limit <= _NO_LIMIT else f"anything with {count}"
            for count, limit in limits.items()
        )
        said = f"{said} planted {unit}s."
    return [
        f"The guarantee also limits what planted {unit}s, such as poisoned ones, can do. Take any outcome that has a "
        f"chance of {_percent(_RARE)} without them, such as that a hidden trigger works. {said}"
    ]


def _early(early: Mapping[str, Any] | None, planned: int) -> list[str]:
    """What a reader must know of a run that ended early."""
    if early is None:
        return []
    return [
        f"{early['steps']} of {planned} planned steps were taken. {early['why']} The smaller figure, epsilon "
        f"{round_up(early['epsilon_of_steps'])} (RDP) of the steps taken, holds only if {early['holds_if']}."
    ]


def _of_val(section: Mapping[str, Any] | None) -> list[str]:
    """What a reader must know of a private val split."""
    if section is None:
        return []
    return [
        f"The images of the validation split are private too. They have a guarantee of their own: epsilon "
        f"{round_up(section['epsilon'])} at delta {section['delta']:.3g}, for one {section['unit']} more or less among "
        "them, by the noised metrics of this run."
    ]


def sections(statement: Mapping[str, Any]) -> list[Section]:
    """Return every section of facts, in the order in which they are read."""
    guarantee, mechanism, accounting = statement["guarantee"], statement["mechanism"], statement["accounting"]
    unit = guarantee["unit"]
    assumptions = [
        f"{'holds' if item['holds'] else 'DOES NOT HOLD'}: {item['assumption']}" for item in accounting["assumptions"]
    ]
    found = [
        Section(
            "Guarantee",
            [
                ("Epsilon (RDP, the headline)", round_up(guarantee["epsilon"], 6)),
                _tighter(guarantee),
                ("Delta", f"{guarantee['delta']:.6g}"),
                ("Privacy unit", _UNITS.get(unit, f"one {unit}")),
                ("Neighbouring relation", guarantee["neighbouring_relation"]),
                ("Setting and trust model", guarantee["setting"]),
                ("Adversary", guarantee["adversary"]),
                ("Data accesses covered", guarantee["covers"]),
                ("Best possible membership guess", f"right in at most {_percent(guarantee['attack_accuracy'])}"),
                *(
                    (f"Best true-positive rate at {false} false positives", f"at most {_percent(rate)}")
                    for false, rate in guarantee["true_positive_rates"].items()
                ),
            ],
        ),
        Section("What is released", items=statement["released"]),
        Section(
            "Mechanism",
            [
                ("Name", mechanism["name"]),
                ("Sampling", f"{mechanism['sampling']}, rate {mechanism['sample_rate']:.6g}"),
                ("Steps", f"{mechanism['steps']} of {mechanism['planned_steps']} planned"),
                ("Epochs", f"{mechanism['sample_rate'] * mechanism['steps']:.4g} (expected uses of one {unit})"),
                ("Noise multiplier", f"{mechanism['noise_multiplier']:g}"),
                ("Correlation of the noise", mechanism["correlation"]),
                ("Clipping", f"{mechanism['clipping']}, norm {mechanism['clip_norm']:g}"),
                ("Expected batch size", f"{mechanism['expected_batch_size']} (a public constant)"),
                ("Random numbers", f"{mechanism['rng_mode']}: {mechanism['noise']}"),
            ],
        ),
        Section(
            "Accounting",
            [("Accountant", f"{accounting['headline']}, {accounting['library']}")],
            assumptions,
        ),
        Section("Tuning", _tuning(statement["tuning"])),
        *_behind(statement["start_runs"]),
        Section("Budget of the dataset", _budget(statement["dataset_budget"])),
        *_release(statement.get("validation_release")),
        Section(
            "Data and model",
            [
                ("Dataset", _listed(statement["dataset"])),
                ("Model", _listed({k: v for k, v in statement["model"].items() if k != "start_sha256"})),
                ("Start weights", _start(statement["public_data"])),
                ("They were made from", _made_from(statement["public_data"])),
                *((("Layers scaled by", scaled),) if (scaled := _scaled_by(statement["public_data"])) else ()),
                ("Validation split", statement["validation"]),
                *((("Training", _listed(statement["training"])),) if statement["training"] else ()),
            ],
        ),
        Section("Audit", _audit(statement["audit"])),
        Section("Assumptions", items=statement["assumptions"]),
        Section("What is not covered", items=statement["not_covered"]),
    ]
    if statement.get("checks"):
        found.append(Section("Checked when this page was made", items=statement["checks"]))
    weights = statement["weights"]
    if weights:
        found.append(Section("Weights covered (sha256)", [(name, value) for name, value in weights.items()]))
    return found


def _tighter(guarantee: Mapping[str, Any]) -> tuple[str, str]:
    early = guarantee.get("ended_early")
    if early is not None:
        value = round_up(early["epsilon_of_steps"], 6)
        return "Epsilon of the steps taken (RDP, no headline)", f"{value}, if {early['holds_if']}"
    pld = guarantee["epsilon_pld"]
    return "Epsilon (PLD, a tighter reading of the same run)", "not stated" if pld is None else round_up(pld, 6)


def status_line(statement: Mapping[str, Any]) -> str:
    """Return how far the run got."""
    mechanism, status = statement["mechanism"], statement["status"]
    return f"{_STATUS.get(status, status)}: {mechanism['steps']} of {mechanism['planned_steps']} steps"


def made_by(statement: Mapping[str, Any]) -> str:
    """Return the closing line: who made it, when, with what."""
    versions = ", ".join(f"{name} {number}" for name, number in statement["versions"].items())
    return f"Made by dptrain from the run's own facts on {statement['date']}. Versions: {versions}."


def _percent(value: float) -> str:
    shown = math.ceil(value * 1e3 - 1e-9) / 10
    return f"{shown:.1f} %" if shown < 100 or value == 1 else f"{min(99.99, math.ceil(value * 1e4) / 100):.2f} %+"


def _factor(value: float) -> str:
    if not math.isfinite(value):
        return "no bound"
    return f"{value:,.2f}" if value < 100 else f"{math.ceil(value):,}" if value < _MOST_FACTOR else f"{value:.1e}"


def _tuning(tuning: Mapping[str, Any]) -> list[tuple[str, str]]:
    epsilon = tuning.get("epsilon")
    rows = [("How this run was chosen", f"{tuning.get('method')}, runs: {tuning.get('runs')}")]
    rows.append(("Epsilon of the tuning", "not counted" if epsilon is None else f"{round_up(epsilon)} (RDP)"))
    if tuning.get("note"):
        rows.append(("Note", str(tuning["note"])))
    return rows


def _behind(section: Mapping[str, Any] | None) -> list[Section]:
    if section is None:
        return []
    runs = [
        (
            f"Run with the statement {run['sha256'][:12]}",
            f"epsilon {round_up(run['epsilon'])} at delta {run['delta']:.3g}, unit {run['unit']}"
            + ("" if run["valid"] else "; VOID: a seed was set"),
        )
        for run in section["runs"]
    ]
    epsilon = section["epsilon"]
    together = "" if epsilon is None else f"epsilon {round_up(epsilon)} at delta {section['delta']:.3g}, "
    return [Section("Private runs behind the start", [*runs, ("With this run", f"{together}{section['meaning']}")])]


def _release(section: Mapping[str, Any] | None) -> list[Section]:
    if section is None:
        return []
    facts = [
        ("Dataset", _listed(section["dataset"])),
        ("Epsilon for its images (RDP)", round_up(section["epsilon"], 6)),
        ("Epsilon for its images (PLD, a tighter reading)", round_up(section["epsilon_pld"], 6)),
        ("Delta", f"{section['delta']:.6g}"),
        ("Privacy unit", _UNITS.get(section["unit"], f"one {section['unit']}")),
        ("Neighbouring relation", section["neighbouring_relation"]),
        ("Noised evaluations", f"{section['releases']} of {section['planned_releases']} planned"),
        ("Covers", section["covers"]),
        ("Mechanism", section["mechanism"]),
        ("Noise multiplier", f"{section['noise_multiplier']:g}"),
    ]
    if (budget := section["budget"]) is not None:
        facts += _budget({**budget, "spent": "for the data's owner only: owner/val_dataset_budget.json"})
    return [Section("Private validation split", facts)]


def _budget(budget: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if budget is None:
        return [("Budget", "no ledger was read: what other runs on the same images have cost is not known here")]
    limit = "none is declared by name"
    if budget["limit"] is not None:
        limit = f"epsilon {budget['limit']:g} at delta {budget['delta']:.3g} (RDP), for all runs together"
    return [
        ("Budget", f"{budget['name']}, unit {budget['unit']}"),
        ("Limit", limit),
        ("Spent by all its runs", budget["spent"]),
    ]


def _audit(audit: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if audit is None:
        return [("Result", "no audit was made of this run")]
    return [
        ("Result", f"epsilon is at least {audit['epsilon_lower_bound']:.4g}, at confidence {audit['confidence']:g}"),
        ("Method", str(audit["method"])),
        ("Meaning", "a lower bound above the claimed epsilon is a bug; a low one proves nothing"),
    ]


def _start(public: Mapping[str, Any]) -> str:
    if public.get("sha256") is None:
        return "none: the start was random"
    return f"{public.get('start_weights')}, sha256 {public['sha256']}"


def _made_from(public: Mapping[str, Any]) -> str:
    declared = public.get("declared") or "not declared"
    return f"{declared}; none of their images is a training image" if public.get("compared") else declared


def _scaled_by(public: Mapping[str, Any]) -> str:
    by = public.get("clip_scales")
    if not by:
        return ""
    return f"{by['images']} public images of {by['data']}; compared with {by['compared']}"


def _listed(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {_words(value)}" for key, value in facts.items() if value is not None)


def _words(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        return "; ".join(map(_listed, value))
    return " ".join(map(str, value)) if isinstance(value, Iterable) and not isinstance(value, str) else str(value)


def _plain(text: str) -> str:
    """Keep a user's words from being Markdown or HTML."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(str(text).split()))
