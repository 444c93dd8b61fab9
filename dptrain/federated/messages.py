"""An offer and a release as the records of Flower's messages."""

from __future__ import annotations

from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from .exchange import DeclinedError, Offer, Release, Terms

ARRAYS, CONFIG, NUMBERS, WORDS = "arrays", "config", "numbers", "words"
SIZE = "dataset-size"  # what the server weighs by
_ROUND = "server-round"  # Flower's name
_COUNTS, _REALS = (SIZE, "round", "steps", "planned-steps", "valid"), ("epsilon", "epsilon-so-far", "delta")


def config_of(terms: Terms) -> ConfigRecord:
    """Return the terms as the server sends them; Flower adds the number of the round."""
    return ConfigRecord(
        {
            "rounds": terms.rounds,
            "steps-per-round": terms.steps_per_round,
            "start-sha256": terms.start_sha256,
            "frozen-sha256": terms.frozen_sha256,
            "classes": list(terms.classes),
        }
    )


def offer_in(content: RecordDict) -> Offer:
    """Read what the server sent.

    Raises:
        DeclinedError: It is not what a server of this version sends.
    """
    try:
        sent: dict[str, Any] = dict(content.config_records[CONFIG])
        number = sent.pop(_ROUND)
        terms = Terms(**{key.replace("-", "_"): value for key, value in sent.items()})
        object.__setattr__(terms, "classes", tuple(terms.classes))
        return Offer(number, terms, content.array_records[ARRAYS].to_torch_state_dict())
    except Exception as error:  # records of any other shape fail in many ways
        raise DeclinedError("the message is not one of dptrain's server: use the same version everywhere") from error


def content_of(release: Release) -> RecordDict:
    """Return what a site sends: these records, and nothing else."""
    numbers: dict[str, int | float] = {
        SIZE: release.dataset_size,
        "round": release.number,
        "steps": release.steps,
        "planned-steps": release.planned_steps,
        "valid": int(release.valid),
        "epsilon": release.epsilon,
        "epsilon-so-far": release.epsilon_so_far,
        "delta": release.delta,
    }
    return RecordDict(
        {
            ARRAYS: ArrayRecord(dict(release.parameters)),
            NUMBERS: MetricRecord(dict(numbers)),
            WORDS: ConfigRecord({"name": release.name, "unit": release.unit}),
        }
    )


def release_in(content: RecordDict) -> Release:
    """Read what a site sent; its parameters are not checked yet.

    Raises:
        DeclinedError: It is not what a site of this version sends.
    """
    try:
        numbers, words = dict(content.metric_records[NUMBERS]), dict(content.config_records[WORDS])
        if not all(type(numbers[name]) is int for name in _COUNTS) or not all(
            type(numbers[name]) is float for name in _REALS
        ):
            raise ValueError("numbers of another kind")
        known: dict[str, Any] = {name.replace("-", "_"): value for name, value in numbers.items()}
        known |= {"number": known.pop("round"), "valid": bool(known["valid"]), **words}
        return Release(parameters=content.array_records[ARRAYS].to_torch_state_dict(), **known)
    except Exception as error:  # as above
        raise DeclinedError("the reply is not one of dptrain's sites: use the same version everywhere") from error
