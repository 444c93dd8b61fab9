"""What an audit found, and how it is written down: ``audit.json``, ``audit.png`` and a few lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..privacy.plan import PrivacyPlan
from ..statement.audit import AUDIT_FORMAT, FILE
from ..support.words import round_up, shown, shown_below
from .guesses import CURVE, PAIR
from .white_box import Measured

PICTURE = "audit.png"
WHITE_BOX, BLACK_BOX = THREATS = ("white-box", "black-box")

THREAT_MODELS = {
    WHITE_BOX: (
        "white-box: sees every iterate, knows the plan, the model and all other data, and inserts canaries whose "
        "gradient is one coordinate of the parameters"
    ),
    BLACK_BOX: (
        "black-box: sees how the released weights' loss on its own images differs from the start's, knows the plan, "
        "and inserts images of noise with a random box"
    ),
}
_METHOD = "one training run, {test} test ({paper}), {threat}, {canaries} canaries; {model} on {data}"
_PAPERS = {PAIR: "Steinke, Nasr and Jagielski 2023", CURVE: "Mahloujifar, Melis and Chaudhuri 2024"}


@dataclass(frozen=True, eq=False)
class AuditResult:
    """An audit of one training run.

    Attributes:
        threat: ``white-box`` or ``black-box``.
        plan: By which it trained.
        claimed_epsilon: What the plan claims, by RDP, at ``plan.delta``.
        epsilon_lower_bound: Training is not (epsilon, delta)-private for any epsilon below it, at ``confidence``.
        test: From which it comes, ``(epsilon, delta)`` or ``f-DP``.
        bounds: The highest bound of every test, at the same confidence all together.
        confidence: Of the bounds; the audit of a correct run exceeds the truth at most that rarely.
        canaries: m, each in by a fair coin.
        guesses: r that the bound comes from; ``correct`` of them were right.
        correct: v.
        numbers_tried: How many numbers of guesses were tried; the bound is corrected for them (union bound).
        allowed_rates: The true-positive rate that the claim allows, by false-positive rate.
        reached_rates: The one that this attack reached; no bound.
        measured: White-box only: noise and one unit's share, as seen at the canaries' coordinates.
        model: What was trained.
        data: On what, besides the canaries.
        scores: Of every canary, higher means more likely in; shape (m,).
        included: Whether it was in; shape (m,).
    """

    threat: str
    plan: PrivacyPlan
    claimed_epsilon: float
    epsilon_lower_bound: float
    test: str
    bounds: Mapping[str, float]
    confidence: float
    canaries: int
    guesses: int
    correct: int
    numbers_tried: int
    allowed_rates: Mapping[str, float]
    reached_rates: Mapping[str, float]
    measured: Measured | None
    model: str
    data: str
    scores: np.ndarray = field(repr=False)
    included: np.ndarray = field(repr=False)

    @property
    def faults(self) -> tuple[str, ...]:
        """Why the claim does not hold, in words; empty where nothing speaks against it."""
        found = []
        if self.epsilon_lower_bound > self.claimed_epsilon:
            found.append(
                f"epsilon is at least {shown_below(self.epsilon_lower_bound)}, above the claimed "
                f"{shown(self.claimed_epsilon)}"
            )
        return (*found, *(self.measured.faults if self.measured else ()))

    @property
    def violation(self) -> bool:
        """Whether the audit refutes the claim."""
        return bool(self.faults)

    @property
    def threat_model(self) -> str:
        """What the attacker sees and does, in words."""
        return THREAT_MODELS[self.threat]

    def as_dict(self) -> dict[str, Any]:
        """Return the facts, as in ``audit.json``; the privacy statement reads the first four."""
        return {
            "format": AUDIT_FORMAT,
            "method": _METHOD.format(
                test=self.test,
                paper=_PAPERS[self.test],
                threat=self.threat,
                canaries=self.canaries,
                model=self.model,
                data=self.data,
            ),
            "epsilon_lower_bound": self.epsilon_lower_bound,
            "confidence": self.confidence,
            "verdict": "violation" if self.violation else "no violation found",
            "faults": list(self.faults),
            "claimed_epsilon": self.claimed_epsilon,
            "delta": self.plan.delta,
            "threat": self.threat,
            "threat_model": self.threat_model,
            "canaries": self.canaries,
            "included": int(self.included.sum()),
            "guesses": self.guesses,
            "correct": self.correct,
            "numbers_of_guesses_tried": self.numbers_tried,
            "test": self.test,
            "bounds": dict(self.bounds),
            "true_positive_rates": {
                name: {"allowed": self.allowed_rates[name], "reached": self.reached_rates[name]}
                for name in self.allowed_rates
            },
            "measured": None if self.measured is None else asdict(self.measured),
            "plan": asdict(self.plan),
            "model": self.model,
            "data": self.data,
        }

    def lines(self) -> Iterator[str]:
        """Yield what a person reads."""
        plan, claim = self.plan, self.claimed_epsilon
        yield (
            f"claim      epsilon {shown(claim)} (RDP) at delta {plan.delta:.3g}: {plan.steps} steps, sample rate "
            f"{plan.sample_rate:g}, noise multiplier {plan.noise_multiplier:.4g}"
        )
        yield f"attacker   {self.threat_model}"
        tried = "" if self.numbers_tried == 1 else f", the best of {self.numbers_tried} numbers, corrected for it"
        yield f"guesses    {self.correct} of {self.guesses} right, {self.canaries} canaries{tried}"
        yield (
            f"bound      epsilon is at least {shown_below(self.epsilon_lower_bound)} at confidence "
            f"{self.confidence:g}, {self.epsilon_lower_bound / claim:.0%} of the claim; by test: "
            f"{', '.join(f'{test} {shown_below(bound)}' for test, bound in sorted(self.bounds.items()))}"
        )
        rates = (
            f"with {name} false, {self.reached_rates[name]:.1%} of the included canaries were identified, and the "
            f"claim allows {round_up(100 * rate, 3)}%"
            for name, rate in self.allowed_rates.items()
        )
        yield f"positives  {'; '.join(rates)}"
        if self.measured is not None:
            seen = self.measured
            yield (
                f"measured   noise {seen.noise:.3f} (at most {seen.noise_at_most:.3f}) and one unit's share "
                f"{seen.share:.3f} (at least {seen.share_at_least:.3f}) of what the plan accounts for; "
                f"noise of the step before {max(0.0, seen.repeated):.0%}"
            )
        if self.violation:
            yield f"VIOLATION  {'; '.join(self.faults)}"
        else:
            yield "verdict    no violation found; a bound below the claim does not prove the claim"


def refuse_overwriting(folder: Path) -> None:
    """Refuse a folder that holds an audit already, or that is a file."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file: give a folder for {FILE} and {PICTURE}")
    for name in (FILE, PICTURE):
        if (folder / name).exists():
            raise ConfigError(f"{folder / name} already exists: choose another folder, so that no audit is lost")
