"""An audit from its settings to its result: ``dptrain audit`` and ``dptrain.audit_training``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import ConfigError
from ..privacy import accounting
from ..privacy.plan import PrivacyPlan
from ..privacy.streams import NoiseStream
from ..privacy.trade_off import FALSE_POSITIVE_RATES
from ..statement.audit import FILE
from ..support.files import write_json
from .f_dp import Family
from .guesses import all_bounds, check_counts, rate_reached
from .public import refuse_charged
from .result import BLACK_BOX, PICTURE, THREATS, WHITE_BOX, AuditResult, refuse_overwriting

SAMPLE_RATE = {WHITE_BOX: 0.5, BLACK_BOX: 1.0}
STEPS = {WHITE_BOX: 100, BLACK_BOX: 20}
CANARIES = {WHITE_BOX: 6_000, BLACK_BOX: 100}
EPSILON, DELTA = 8.0, 1e-5
SMALL_MODEL = "small"
DETECTOR = "yolo26n.yaml"
_GUESSED = {WHITE_BOX: 0.1, BLACK_BOX: 0.5}  # of the canaries
_FEWEST_GUESSES = 40
_CANARIES_BY_DELTA = 0.1  # over delta; with many more the term with delta alone is above 1 - confidence
_FEWEST = 20  # canaries
_SCENES = {WHITE_BOX: 128, BLACK_BOX: 16}
_SMALL_IMAGES = 16  # pixels a side, for the small model
_LEARNING_RATE = 1e-3  # of the black-box run


def default_plan(
    threat: str = WHITE_BOX,
    *,
    epsilon: float | None = None,
    noise_multiplier: float | None = None,
    delta: float = DELTA,
    sample_rate: float | None = None,
    steps: int | None = None,
    canaries: int | None = None,
) -> PrivacyPlan:
    """Return the plan that an audit trains by unless it is given one: epsilon 8 at delta 1e-5.

    Many steps at a high sample rate cost little and leave the attacker little doubt about who was drawn, so that the
    bound comes near the claim.
    """
    _check_threat(threat)
    if epsilon is not None and noise_multiplier is not None:
        raise ConfigError("epsilon and noise_multiplier cannot be combined: each determines the other")
    rate = SAMPLE_RATE[threat] if sample_rate is None else sample_rate
    steps = STEPS[threat] if steps is None else steps
    units = _SCENES[threat] + (default_canaries(threat, delta) if canaries is None else canaries) / 2
    batch = max(1, round(rate * units)) if 0.0 < rate <= 1.0 else 1  # the plan refuses such a rate
    if noise_multiplier is not None:
        return PrivacyPlan(rate, steps, noise_multiplier, 1.0, delta, batch)
    epsilon = EPSILON if epsilon is None else epsilon
    return PrivacyPlan.calibrate(epsilon=epsilon, delta=delta, sample_rate=rate, steps=steps, expected_batch_size=batch)


def default_canaries(threat: str, delta: float) -> int:
    """Return how many canaries an audit has unless it is told: fewer where delta is large."""
    return min(CANARIES[threat], max(100, int(_CANARIES_BY_DELTA / delta)))


def audit_training(
    plan: PrivacyPlan | None = None,
    *,
    threat: str = WHITE_BOX,
    model: str | Path | None = None,
    data: str | Path | None = None,
    public: bool = False,
    ledger: str | None = None,
    ledger_key: str | None = None,
    canaries: int | None = None,
    guesses: int | Sequence[int] | None = None,
    confidence: float = 0.95,
    imgsz: int = 64,
    device: str = "cpu",
    engine: str = "fused",
    seed: int | None = None,
    on_step: Callable[[int], None] | None = None,
) -> AuditResult:
    """Train once with canaries, guess which were in, and return the epsilon that the guesses prove.

    Guarantee: if training by ``plan`` is (epsilon, delta)-private at ``plan.delta``, the bound exceeds that epsilon
    with chance at most ``1 - confidence``: two tests of the same guesses share that chance, one for any training
    (Steinke, Nasr and Jagielski 2023, theorem 5.2), one for training by the plan's sampling and steps with any noise
    (Mahloujifar, Melis and Chaudhuri 2024). The canaries' coins come from the operating system. No private budget is
    spent: the data are synthetic, or declared public.

    White-box: ``PrivateTrainer`` trains on images and Dirac canaries, and the attacker sees every iterate. Also
    measures noise and one unit's share there, and accuses a correct run of either with chance at most 1 in 10,000.
    Black-box: ``dptrain.train`` trains a detector on image files, canaries among them, and the attacker sees what the
    released weights make of them.

    Args:
        plan: What to audit; default :func:`default_plan` of the threat.
        threat: ``white-box`` or ``black-box``.
        model: A detector, such as ``yolo26n.yaml`` or a public checkpoint; default a small network (white-box), or
            yolo26n (black-box).
        data: A public ``data.yaml`` to train on besides the canaries; default synthetic scenes.
        public: Your declaration that ``data`` is public; without it they are refused.
        ledger: A ledger that ``data`` must share no picture with; default that of the environment
            (``DPTRAIN_BUDGET_URL``), else ``budget.db`` in the working directory, if it is there. Nothing is written.
        ledger_key: Its key, or the file that holds it.
        canaries: m, at least 20; default 6,000 (white-box) or 100 (black-box), fewer where delta is above 1e-5.
        guesses: Their number, or several, for which the bound is then corrected; default 10 % of the canaries but
            at least 40 (white-box), half of them (black-box).
        confidence: Of the bound.
        imgsz: Side of a detector's images in pixels, a multiple of 32.
        device: Where gradients are computed.
        engine: How: one of the engines of ``dptrain.train``.
        seed: For tests only: repeats the audit.
        on_step: White-box: called with the number of steps done.

    Raises:
        ConfigError, DataError, ModelError: Before training; data that were not declared public among them.
        PrivacyError: Before training; data declared public that the ledger has as private.
    """
    _check(threat, model, data, public, canaries, confidence, imgsz)
    words = "synthetic scenes"
    if data is not None:
        compared = refuse_charged(Path(data), ledger, ledger_key)
        words = f"{Path(data).stem} (declared public{'; no image of it is in the ledger' if compared else ''})"
    plan = plan or default_plan(threat, canaries=canaries)
    if plan.clipping.name != "flat":
        raise ConfigError(f"clipping={plan.clipping.name} cannot be audited: canaries are made for flat clipping")
    if plan.bands > 1:
        raise ConfigError(f"bands={plan.bands} cannot be audited: the attacks are on steps of independent noise")
    count = default_canaries(threat, plan.delta) if canaries is None else canaries
    counts = _numbers(guesses, count, max(round(_GUESSED[threat] * count), min(_FEWEST_GUESSES, count // 2)))
    included = NoiseStream(seed, "canaries").uniform(count) < 0.5
    rng = np.random.default_rng(seed)
    name = str(model) if model is not None else SMALL_MODEL if threat == WHITE_BOX else DETECTOR
    measured = None
    if seed is not None:
        torch.manual_seed(seed)  # of the model's first weights
    if threat == WHITE_BOX:
        from .white_box import watch_training

        module, loss, examples, at_once = _parts(name, data, imgsz, device, plan, rng)
        watcher = watch_training(
            plan,
            module,
            loss,
            examples,
            included,
            physical_batch_size=at_once,
            engine=engine,
            seed=seed,
            on_step=on_step,
        )
        scores, measured = watcher.scores, watcher.measure(included) if 1 < included.sum() < count - 1 else None
    else:
        from .black_box import attack_training

        scores = attack_training(
            plan,
            included,
            model=name,
            data=None if data is None else Path(data),
            scenes=_SCENES[threat],
            imgsz=imgsz,
            device=device,
            engine=engine,
            learning_rate=_LEARNING_RATE,
            rng=rng,
            seed=seed,
        )
    bounds = all_bounds(scores, included, counts, delta=plan.delta, family=Family.of(plan), confidence=confidence)
    best = bounds[0]
    allowed = accounting.true_positive_rates(plan.sample_rate, plan.steps, plan.noise_multiplier, plan.delta)
    return AuditResult(
        threat=threat,
        plan=plan,
        claimed_epsilon=plan.epsilon(),
        epsilon_lower_bound=best.epsilon_lower_bound,
        test=best.test,
        bounds={guess.test: guess.epsilon_lower_bound for guess in reversed(bounds)},  # the highest of each comes last
        confidence=confidence,
        canaries=count,
        guesses=best.guesses,
        correct=best.correct,
        numbers_tried=len(counts),
        allowed_rates=allowed,
        reached_rates={name: rate_reached(scores, included, rate) for name, rate in FALSE_POSITIVE_RATES.items()},
        measured=measured,
        model="a small network" if name == SMALL_MODEL else Path(name).name,
        data=words,
        scores=scores,
        included=included,
    )


def _check_threat(threat: str) -> None:
    if threat not in THREATS:
        raise ConfigError(f"threat={threat!r} is not one of {', '.join(THREATS)}")


def _check(
    threat: str,
    model: str | Path | None,
    data: str | Path | None,
    public: bool,
    canaries: int | None,
    confidence: float,
    imgsz: int,
) -> None:
    """Refuse what cannot be audited, before anything is computed."""
    _check_threat(threat)
    if data is not None and not public:
        raise ConfigError(
            f"data={str(data)!r} may be private, and an audit charges nothing for what it trains on: declare it "
            "public (--public), or leave it out for synthetic scenes"
        )
    if public and data is None:
        raise ConfigError("public declares data that were not given: give data, or leave public out")
    if data is not None and model is None:
        raise ConfigError(f"data={str(data)!r} needs a detector: give model, such as {DETECTOR}")
    if canaries is not None and (isinstance(canaries, bool) or not isinstance(canaries, int) or canaries < _FEWEST):
        raise ConfigError(f"canaries={canaries} must be a whole number, at least {_FEWEST}")
    if not 0.0 < confidence < 1.0:
        raise ConfigError(f"confidence={confidence} is not in (0, 1), such as 0.95")
    if imgsz < 32 or imgsz % 32:
        raise ConfigError(f"imgsz={imgsz} is not a multiple of 32")


def _numbers(guesses: int | Sequence[int] | None, canaries: int, default: int) -> list[int]:
    if guesses is None:
        return [default]
    numbers = sorted({guesses} if isinstance(guesses, int) else set(guesses))
    check_counts(numbers, canaries)
    return numbers


def _parts(
    name: str, data: str | Path | None, imgsz: int, device: str, plan: PrivacyPlan, rng: np.random.Generator
) -> tuple[Any, ...]:
    """What the white-box audit trains: module, per-example loss, examples, and how many examples at once."""
    from .scenes import CLASSES, draw_scene, open_dataset
    from .small import SceneExamples, SmallNet, class_losses

    scenes = _SCENES[WHITE_BOX]
    if name == SMALL_MODEL:
        examples = SceneExamples([draw_scene(_SMALL_IMAGES, rng) for _ in range(scenes)])
        return SmallNet().to(device), class_losses, examples, 256
    from ..detection.loss import PerImageLoss
    from ..detection.memory import physical_batch_size
    from ..detection.model import load_model

    if data is None:
        images: Any = SceneExamples([draw_scene(imgsz, rng) for _ in range(scenes)])
        names = dict(enumerate(CLASSES))
    else:
        images = open_dataset(Path(data), imgsz)
        names = images.data.names
    module = load_model(name, len(names), names=names).to(device)
    at_once = physical_batch_size(
        module, imgsz, plan.expected_batch_size, torch.device(device), sample_rate=plan.sample_rate
    )
    return module, PerImageLoss(), images, at_once


def write_audit(result: AuditResult, folder: Path) -> None:
    """Write ``audit.json`` and ``audit.png``.

    Raises:
        ConfigError: The folder holds an audit already, or cannot be written.
    """
    from .picture import draw_audit

    refuse_overwriting(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draw_audit(result, folder / PICTURE)
        write_json(folder / FILE, result.as_dict())
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written ({error.strerror}): choose another folder") from error
