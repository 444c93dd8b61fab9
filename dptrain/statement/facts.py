"""What was promised, to whom, under which assumptions: facts of the run, not typed in by hand.

The sections answer what Ponomareva et al. (2023), "How to DP-fy ML", section 5.3.3, ask of a report, and NIST SP
800-226 (2025) of whoever evaluates a guarantee: see ``docs/statement.md``.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..privacy import accounting, random_stopping
from ..privacy.plan import PrivacyPlan
from .plan import plan_section
from .start_runs import StartRun, start_runs_section, start_runs_words
from .validation_release import ASSUMPTION, release_section
from .validation_release import NOT_COVERED as VAL_NOT_COVERED
from .validation_release import RELEASED as RELEASED_COUNTS

STATEMENT_FORMAT = 4
_PACKAGES = ("dptrain", "torch", "ultralytics", "dp-accounting", "opacus", "numpy", "cryptography")
_POINTS_OVER_STEPS = 40

VOID = "VOID: a seed was set, so the noise can be predicted and nothing is protected."
SECURE_NOISE, SEEDED_NOISE = "AES-256-CTR from operating system entropy", "seeded, for tests"

RELEASED = (
    "the weights of the last iterate and of the moving average",
    "every iterate at which the run was evaluated, through its metrics on the validation split",
    "the settings in config.yaml, among them the declared dataset size",
)
ASSUMPTIONS = (
    "The declared constants (dataset size, expected batch size, sample rate, delta, image size, names) are public.",
    "One person's data is in one unit: a person in several has a guarantee that weakens with their number.",
    "The adversary sees everything released and every iterate, and not the memory, the timing or the crashes of the "
    "training machine.",
)
_OTHERS = "every other unit of the dataset"
ADD_OR_REMOVE = "add or remove one unit"
FIXED_TABLE = (
    "all pictures of one person are there, or are blank; who is in which picture (the table) is known and the same in "
    "both (fixed-graph, Ganesh et al. 2025)"
)
KNOWN_TABLE = (
    "The table names everybody who is in a picture. It chose the pictures that were trained on, so that nobody is in "
    "two units: that somebody is in the table is not protected."
)
PUBLIC_START = "The start weights were made from data that is public or shares no unit with the training split."
NAMED_START = (
    "The start weights were made from the private runs in start_runs and from no others; all else behind them is "
    "public or shares no unit with the training split."
)
ROUNDED = "The noise is Gaussian up to the rounding of floating-point numbers (noise.exact was off)."
EXACT = "The noise is a discrete Gaussian, added to an exact sum of whole numbers: no rounding weakens it."
SCALED = "The images that the layers' scales were measured on are public and share no unit with the training split."
PUBLIC_VAL = "the images of the validation split: what is measured on them carries no noise"
NOT_COVERED = (
    "other runs on the same images, unless the tuning section below counts them",
    PUBLIC_VAL,
    "what follows about a person from what is true of the whole population",
    "whoever can read the training images, the training machine or its backups",
)
ENDED_EARLY = (
    "Not all planned steps were taken, and when to stop may have been chosen by looking at the run: epsilon is that of "
    "the plan, which holds whatever ended the run."
)
DECIDED_BEFOREHAND = "the step to stop at was decided before the run, or without regard to anything it showed"
NO_PLD = (
    "No figure by PLD: it is the tighter reading of a plan carried out to its end, and that of the steps taken is what "
    "a stop chosen by looking breaks most."
)
FIRST_STEPS = "the outputs of the first t steps and no others, t decided beforehand; not of a run that was stopped"
SPENT = "for the data's owner only: owner/dataset_budget.json in the run's folder, and dptrain budget show"
ONE_RUN = "one training run, every iterate of it"
WINNER = "the winner of a tuning by random stopping, every iterate of it, and the choice; no other run"
SINGLE_RUN = {
    "method": "single run",
    "runs": 1,
    "epsilon": None,
    "note": "Covers this run only: runs made to choose its settings are not counted in its epsilon.",
}


def make_statement(
    plan: PrivacyPlan,
    *,
    steps: int,
    status: str,
    secure: bool,
    dataset: Mapping[str, Any],
    model: Mapping[str, Any],
    validation: str,
    deviations: Sequence[str] = (),
    start_runs: Sequence[StartRun] = (),
    public_data: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    tuning: Mapping[str, Any] | None = None,
    dataset_budget: Mapping[str, Any] | None = None,
    validation_release: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the privacy statement of a run as a plain dictionary.

    Args:
        plan: What was planned.
        steps: Noised steps that were started, also those that a crash lost. With fewer than planned, epsilon is that
            of the plan, since when to stop may have been chosen by looking at the run.
        status: ``running``, ``stopped`` or ``finished``.
        secure: Whether noise and sampling came from the operating system's entropy.
        dataset: Its public facts: ``name``, ``declared_size``, in units; with groups ``groups``, how they were told.
        model: Its public facts: start weights and their hash, trainable parameters, norm.
        validation: What was declared of the validation split.
        deviations: What a reader must know that the defaults do not say.
        start_runs: The private runs that the start was made from.
        public_data: ``start_weights``, ``sha256``, ``declared``: what they were made from, as the user, the record
            beside them or Ultralytics' release says, and ``compared``: whether the images named as theirs were compared
            with the training images. With scaled clipping ``clip_scales``: ``data`` and ``images`` that the scales are
            of, and the ledger ``compared``.
        training: Settings that change no epsilon: optimizer, learning rate, image size.
        tuning: ``method``, ``runs``, ``epsilon`` (of all of them together), ``note``; by default one run, uncounted.
            With ``distribution`` and ``mean_runs`` it was random stopping, and the guarantee is all of the tuning's.
        dataset_budget: What was declared of the dataset's budget: ``name``, ``unit``, and with a budget that the user
            named its ``limit`` and ``delta``. Nothing that the ledger found by looking at the images.
        validation_release: Of a private val split, see :func:`.validation_release.release_section`.
    """
    claim = claim_of(plan, steps, tuning)
    behind = start_runs_section(start_runs, claim.curve, plan.delta, plan.unit, secure)
    statement: dict[str, Any] = {
        "format": STATEMENT_FORMAT,
        "date": datetime.now(UTC).date().isoformat(),  # of the day only: finer times would be a side channel
        "status": status,
        "valid": secure,
        "guarantee": {
            "epsilon": claim.epsilon,
            "epsilon_pld": claim.epsilon_pld,
            **plan_section(plan, "guarantee"),
            "neighbouring_relation": FIXED_TABLE if plan.unit == "person" else ADD_OR_REMOVE,
            "setting": "central: the trainer is trusted with the data; whoever receives what is released is not",
            "adversary": "sees every iterate, all that is released, and "
            + ("every picture without the person, and the table" if plan.unit == "person" else _OTHERS),
            "covers": claim.covers,
            "attack_accuracy": claim.attack_accuracy,
            "true_positive_rates": dict(claim.true_positive_rates),
            "ended_early": claim.ended_early,
        },
        "mechanism": {
            **_mechanism_words(plan.bands),
            **plan_section(plan, "mechanism"),
            "steps": steps,
            "clipping": plan.clipping.words(),
            "rng_mode": "secure" if secure else "seeded",
            "noise": SECURE_NOISE if secure else SEEDED_NOISE,
        },
        "accounting": {
            "headline": "RDP",
            "tighter_reading": "PLD",
            "library": f"dp-accounting {package_version('dp-accounting')}",
            "assumptions": _accounting_assumptions(plan.bands, secure),
            # JSON has no infinity; an order that is left out says nothing, which is safe.
            "rdp_curve": {str(order): bound for order, bound in claim.curve.items() if math.isfinite(bound)},
            # To the end of the plan; a winner was chosen by its last step, so no part of it costs less than all.
            "epsilon_over_steps": {}
            if is_tuned(tuning)
            else {str(at): plan.epsilon(steps=at) for at in _spread(plan.steps)},
            "epsilon_over_steps_of": FIRST_STEPS,
        },
        "dataset": dict(dataset),
        "model": dict(model),
        "public_data": dict(
            public_data or {"start_weights": None, "sha256": None, "declared": None, "compared": False}
        ),
        "start_runs": behind,
        "validation": validation,
        "validation_release": release_section(validation_release),
        "training": dict(training or {}),
        "weights": {},  # :func:`~dptrain.statement.write_statement` adds their sha256
        "tuning": dict(tuning or SINGLE_RUN),
        "dataset_budget": None if dataset_budget is None else {**dataset_budget, "spent": SPENT},
        "audit": None,
        "released": _released(validation_release is not None),
        "assumptions": [
            *ASSUMPTIONS,
            *((KNOWN_TABLE,) if plan.unit == "person" else ()),
            NAMED_START if start_runs else PUBLIC_START,
            *(() if validation_release is None else (ASSUMPTION,)),
            *((SCALED,) if plan.clipping.name == "scaled" else ()),
            EXACT if (training or {}).get("exact_noise") else ROUNDED,
        ],
        "not_covered": [
            VAL_NOT_COVERED if item == PUBLIC_VAL and validation_release is not None else item for item in NOT_COVERED
        ],
        "deviations": [
            *(() if secure else (VOID,)),
            *_weak_delta(plan, dataset),
            *start_runs_words(behind),
            *deviations,
        ],
        "versions": {**{name: package_version(name) for name in _PACKAGES}, "python": platform.python_version()},
    }
    return sealed(statement)


@dataclass(frozen=True)
class Claim:
    """What a release is claimed to cost.

    Attributes:
        epsilon: RDP.
        epsilon_pld: PLD; the RDP figure where the loss distribution has no bound, as for the best of several runs. None
            for a run that ended early.
        attack_accuracy: See :func:`dptrain.privacy.accounting.attack_accuracy`.
        true_positive_rates: See :func:`dptrain.privacy.accounting.true_positive_rates`.
        curve: The Rényi divergence bound by order.
        covers: In words.
        ended_early: None where all planned steps were taken. Else ``steps``, the ``epsilon_of_steps`` taken, and under
            what condition that smaller figure holds.
    """

    epsilon: float
    epsilon_pld: float | None
    attack_accuracy: float
    true_positive_rates: Mapping[str, float]
    curve: Mapping[float, float]
    covers: str
    ended_early: dict[str, Any] | None = None


def is_tuned(tuning: Mapping[str, Any] | None) -> bool:
    """Whether the run is the winner of a tuning by random stopping."""
    return (tuning or {}).get("distribution") is not None


def claim_of(plan: PrivacyPlan, steps: int, tuning: Mapping[str, Any] | None = None) -> Claim:
    """Return what the release of a run costs; of the winner of a tuning, what all of the tuning costs.

    A run that took fewer than the planned steps costs what was planned: whoever ends it may have looked at it. What it
    releases is a function of what the whole run would have, wherever it is cut, so the plan's epsilon holds under any
    rule of stopping. The epsilon of the steps taken holds only if their number was decided beforehand.
    """
    early = steps < plan.steps
    if not tuning or tuning.get("distribution") is None:
        planned = max(steps, plan.steps)
        return Claim(
            plan.epsilon(steps=planned),
            None if early else plan.epsilon("pld", steps=planned),
            accounting.attack_accuracy(*plan.accounted(planned), plan.noise_multiplier, plan.delta),
            accounting.true_positive_rates(*plan.accounted(planned), plan.noise_multiplier, plan.delta),
            accounting.dp_sgd_rdp_curve(*plan.accounted(planned), plan.noise_multiplier),
            ONE_RUN,
            _ended_early(plan, steps) if early else None,
        )
    # All steps planned: another run of the tuning may have taken them.
    event = random_stopping.random_stopping_event(plan.event(), float(tuning["mean_runs"]), str(tuning["distribution"]))
    epsilon = accounting.epsilon(event, plan.delta)
    accuracy = accounting.accuracy_within(epsilon, plan.delta)
    curve = accounting.rdp_curve(event)
    rates = accounting.true_positive_rates_within(curve)
    return Claim(epsilon, None if early else epsilon, accuracy, rates, curve, WINNER)


def _ended_early(plan: PrivacyPlan, steps: int) -> dict[str, Any]:
    return {
        "steps": steps,
        "epsilon_of_steps": plan.epsilon(steps=steps),
        "holds_if": DECIDED_BEFOREHAND,
        "why": f"{ENDED_EARLY} {NO_PLD}",
    }


def sealed(statement: Mapping[str, Any]) -> dict[str, Any]:
    """Return the statement with the sha256 of all that it says, which shows an edit; it is no signature."""
    return {**{key: value for key, value in statement.items() if key != "sha256"}, "sha256": digest(statement)}


def digest(statement: Mapping[str, Any]) -> str:
    """Return the sha256 of a statement without its own ``sha256``, whatever the order of its keys."""
    rest = {key: value for key, value in statement.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _released(private: bool) -> list[str]:
    return [*RELEASED, RELEASED_COUNTS] if private else list(RELEASED)


def _mechanism_words(bands: int) -> dict[str, str]:
    if bands == 1:
        return {
            "name": "DP-SGD (Abadi et al. 2016, algorithm 1)",
            "sampling": "Poisson",
            "correlation": "none: the noise of every step is independent",
        }
    return {
        "name": "DP-SGD with correlated noise (Choquette-Choo et al. 2023, (Amplified) banded matrix factorization)",
        "sampling": f"cyclic Poisson: a unit is in one of {bands} parts, and a step draws from one part, at {bands} "
        "times the sample rate",
        "correlation": f"banded over {bands} steps, by the first coefficients of (1 - x)^(-1/2) in columns of norm 1",
    }


def _accounting_assumptions(bands: int, secure: bool) -> list[dict[str, Any]]:
    """What the accountant takes for granted, and whether the run did so."""
    draws = "each step's draw with the sample rate"
    if bands > 1:
        draws = f"the draw of one of every {bands} steps with {bands} times the sample rate, and in no other"
    return [
        {"assumption": f"each unit is in {draws}, independently (Poisson)", "holds": True},
        {"assumption": "each unit moves the sum of a step by at most what the noise is scaled to", "holds": True},
        *([{"assumption": "no column of the noise's factor is longer than 1", "holds": True}] if bands > 1 else []),
        {"assumption": "Gaussian noise once a step, also where nothing was drawn", "holds": True},
        {"assumption": "every step that was started is counted, also those that a crash lost", "holds": True},
        {"assumption": "noise and draws that nobody can predict", "holds": secure},
    ]


def _weak_delta(plan: PrivacyPlan, dataset: Mapping[str, Any]) -> list[str]:
    size = dataset.get("declared_size")
    if not size or plan.delta < 1 / size:
        return []
    return [f"delta {plan.delta:.3g} is not below 1 over the declared {size} units: it permits releasing whole units."]


def _spread(steps: int) -> list[int]:
    """Return up to 41 step counts from 0 to ``steps``, closer together at the start, where epsilon grows fastest."""
    points = _POINTS_OVER_STEPS
    return sorted({math.ceil(steps * (i / points) ** 2) for i in range(points + 1)})


def package_version(package: str) -> str:
    """Return the installed version of a package, or ``not installed``."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
