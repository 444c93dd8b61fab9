"""``dptrain calibrate`` and ``dptrain epsilon``: noise multiplier and epsilon, each from the other."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..support.files import to_json
from .options import Commands, number

if TYPE_CHECKING:
    from ..privacy.plan import PrivacyPlan


def register(commands: Commands) -> None:
    """Add both commands."""
    calibrate = commands.add_parser("calibrate", help="find the noise multiplier for a target epsilon")
    number(calibrate, "epsilon", "target epsilon (RDP)")
    _accounting_options(calibrate)
    calibrate.set_defaults(command=_calibrate)

    epsilon = commands.add_parser("epsilon", help="find the epsilon of a noise multiplier")
    number(epsilon, "noise-multiplier", "noise standard deviation in units of the clip norm")
    _accounting_options(epsilon)
    epsilon.set_defaults(command=_epsilon)


def _accounting_options(parser: argparse.ArgumentParser) -> None:
    number(parser, "delta", "chance of failure allowed, well below 1/n")
    number(parser, "sample-rate", "chance that one image is in a step")
    number(parser, "steps", "number of steps", int)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _calibrate(options: argparse.Namespace) -> int:
    from ..privacy.plan import PrivacyPlan

    return _print_plan(PrivacyPlan.calibrate(epsilon=options.epsilon, **_rest(options)), options.json)


def _epsilon(options: argparse.Namespace) -> int:
    from ..privacy.plan import PrivacyPlan

    return _print_plan(PrivacyPlan(noise_multiplier=options.noise_multiplier, **_rest(options)), options.json)


def _rest(options: argparse.Namespace) -> dict[str, Any]:
    """What both share; the batch size and the clip norm scale the update and change no epsilon."""
    given = {name: getattr(options, name) for name in ("delta", "sample_rate", "steps")}
    return {**given, "expected_batch_size": 1, "clip_norm": 1.0}


def _print_plan(plan: PrivacyPlan, as_json: bool) -> int:
    from ..privacy.accounting import PLD_UP_TO_EPSILON

    rdp = plan.epsilon("rdp")
    values: dict[str, float | int | None] = {
        "noise_multiplier": plan.noise_multiplier,
        "epsilon_rdp": rdp,
        "epsilon_pld": plan.epsilon("pld") if rdp <= PLD_UP_TO_EPSILON else None,
        "delta": plan.delta,
        "sample_rate": plan.sample_rate,
        "steps": plan.steps,
    }
    if as_json:
        print(to_json(values))
        return 0
    notes = {"epsilon_rdp": "  (the headline)", "epsilon_pld": "  (tighter, of the same run)"}
    for name, value in values.items():
        shown = f"not computed: an epsilon above {PLD_UP_TO_EPSILON:g} promises nothing"
        if value is not None:
            shown = f"{value:.6g}{notes.get(name, '')}"
        print(f"{name:<17} {shown}")
    return 0
