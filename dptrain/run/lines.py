"""What a run says of itself before its first step. All of it is public."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..detection.estimates import Estimates, of_use
from ..settings.schema import PUBLIC
from ..support.words import counted, shown
from . import phases
from .foretold import foretold
from .prepare import Prepared


def lines_before(prepared: Prepared) -> Iterator[str]:
    """Yield the start, the plan, what is chosen by rule, what is declared public, and what little it may come to."""
    config, plan = prepared.config, prepared.plan
    rule = "" if plan.clipping.name == "flat" else f" ({plan.clipping.name})"
    trainable = sum(p.numel() for p in prepared.trainer.parameters.values())
    total = sum(p.numel() for p in prepared.model.parameters())
    yield (
        f"dptrain: {Path(config.model).name} on {prepared.data_name}: {len(prepared.model.names)} classes, "
        f"{trainable:,} of {total:,} parameters train, {prepared.where}"
    )
    yield (
        f"epsilon {shown(plan.epsilon())} (RDP; PLD {shown(plan.epsilon('pld'))}), delta {plan.delta:.3g}, "
        f"unit {plan.unit}: {plan.steps} steps, noise multiplier {plan.noise_multiplier:.4g}, "
        f"clip norm {plan.clip_norm:g}{rule}, sample rate {plan.sample_rate:.4g}, "
        f"expected batch {plan.expected_batch_size} ({prepared.physical_batch_size} at a time)"
    )
    if plan.bands > 1:
        rate, count = plan.accounted()
        yield (
            f"noise is correlated over {plan.bands} steps; an image is drawn in one of every {plan.bands} steps "
            f"only, which is accounted as {count} steps at sample rate {rate:.4g}"
        )
    if config.phases:
        yield phases.in_words(config, prepared.trainer, prepared.rate_by_rule)
    elif any(prepared.rate_by_rule):
        yield f"optimizer.lr is not set: {config.optimizer.lr:g}, by the rule of docs/training.md"
    if (warning := foretold(plan, prepared.model)) is not None:
        yield warning
    if prepared.validation is not None:
        yield "validation=public: the metrics of the val split are released without noise"
        if prepared.scaled_by is not None and prepared.scaled_by.val:
            yield (
                f"layers are scaled by their gradients on {prepared.scaled_by.images} images of the val split; "
                "privacy.clipping=flat turns it off"
            )
    elif (private := prepared.private_validation) is not None:
        looks = counted(private.plan.releases, "noised evaluation")
        yield (
            f"validation=private: {looks} of the val split at noise multiplier {private.plan.noise_multiplier:.4g}, "
            f"which cost its images epsilon {shown(private.plan.epsilon())} (RDP; PLD "
            f"{shown(private.plan.epsilon('pld'))}), delta {private.plan.delta:.3g}, unit {private.plan.unit}; its "
            "exact metrics, and their number, stay private"
        )
    elif config.validation == PUBLIC:
        yield f"no evaluation: {config.data} has no val split"
    else:
        yield "validation=off: the run does not evaluate, and reads no image of the val split"


def in_words(found: Estimates) -> str:
    """What noised counts say, on the line of an evaluation: each with what the noise may have moved it by."""
    said = "  ".join(f"{name} {found.values[name]:.3f} +- {found.sd[name]:.3f}" for name in ("mAP50", "mAP50-95"))
    return f"{said} (noised{'' if of_use(found) else ': too much for these val images to say more'})"
