"""What ``statement.json`` and ``audit.json`` hold: every key, what kind of value it has, and its range."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from .facts import SPENT
from .fields import Distribution, MeanRuns, Number, Part, Steps
from .start_runs import StartRun
from .validation_release import ValidationRelease


def _withheld(text: str) -> str:
    if text != SPENT:
        raise PydanticCustomError("range", "what dptrain publishes: what was spent is for the data's owner only")
    return text


class EndedEarly(Part):
    steps: Steps
    epsilon_of_steps: Number
    holds_if: str
    why: str


class Guarantee(Part):
    epsilon: Number
    epsilon_pld: Number | None
    delta: Number
    unit: str
    neighbouring_relation: str
    setting: str
    adversary: str
    covers: str
    attack_accuracy: Number
    true_positive_rates: dict[str, Number]
    ended_early: EndedEarly | None


class Mechanism(Part):
    name: str
    sampling: str
    sample_rate: Number
    steps: Steps
    planned_steps: Annotated[Steps, Field(ge=1)]
    noise_multiplier: Number
    clipping: str
    clip_rule: dict[str, Any]
    clip_norm: Number
    expected_batch_size: int
    bands: int
    correlation: str
    rng_mode: str
    noise: str


class Assumption(Part):
    assumption: str
    holds: bool


class Accounting(Part):
    headline: str
    tighter_reading: str
    library: str
    assumptions: list[Assumption]
    rdp_curve: dict[str, Number]
    epsilon_over_steps: dict[str, Number]
    epsilon_over_steps_of: str


class ClipScales(Part):
    data: str
    images: int
    compared: str


class PublicData(Part):
    start_weights: str | None
    sha256: str | None
    declared: str | None
    compared: bool = False
    clip_scales: ClipScales | None = None


class StartRuns(Part):
    runs: Annotated[list[StartRun], Field(min_length=1)]
    epsilon: Number | None
    delta: Number
    meaning: str


class Tuning(Part):
    method: str
    runs: int | str
    epsilon: Number | None = None
    note: str = ""
    distribution: Distribution | None = None
    mean_runs: MeanRuns | None = None
    epsilon_of_one_run: Number | None = None
    delta: Number | None = None
    candidates: dict[str, Any] | None = None
    score: str | None = None

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.distribution is None) != (self.mean_runs is None):
            raise PydanticCustomError("range", "a distribution with its mean_runs, or neither")
        return self


class Budget(Part):
    """What is published of a ledger; never what it found by looking at the images."""

    name: str
    unit: str
    limit: Number | None
    delta: Number | None
    spent: Annotated[str, AfterValidator(_withheld)]


class Audit(Part):
    """The least that an audit says; whatever else it says is kept."""

    model_config = ConfigDict(extra="allow")

    format: Literal[1]
    method: Annotated[str, Field(min_length=1)]
    epsilon_lower_bound: Annotated[Number, Field(ge=0)]
    confidence: Annotated[float, Field(gt=0, lt=1)]
    verdict: str = ""
    faults: list[str] = Field(default=[])


class Statement(Part):
    """The whole of ``statement.json``; ``checks`` is in what a check of it returned."""

    format: int
    date: str
    status: str
    valid: bool
    guarantee: Guarantee
    mechanism: Mechanism
    accounting: Accounting
    dataset: dict[str, Any]
    model: dict[str, Any]
    public_data: PublicData
    start_runs: StartRuns | None
    validation: str
    validation_release: ValidationRelease | None = None
    training: dict[str, Any]
    weights: dict[str, str]
    tuning: Tuning
    dataset_budget: Budget | None
    audit: Audit | None
    released: list[str]
    assumptions: list[str]
    not_covered: list[str]
    deviations: list[str]
    versions: dict[str, str]
    checks: list[str] = Field(default=[])
    sha256: str
