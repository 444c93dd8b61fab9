"""Where the settings leave ``steps`` open: what trains, how many steps, how large a batch.

All of it follows from the start weights, the declared size of the dataset, and the epochs given; or, without epochs,
the time given and the speed of this machine on made-up images. No private image has a part in it.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..detection import DetectionModel
from ..detection.data import load_data
from ..detection.scales import IMAGES
from ..detection.speed import seconds_per_image, seconds_per_prediction
from ..errors import ConfigError
from ..gradients import trainable_parameters
from ..privacy.streams import NoiseStream
from ..settings.left_open import EMA_DECAY, steps_are_open
from ..settings.schema import (
    AUTO,
    DEFAULT_IMAGES_PER_GROUP,
    DEFAULT_TIME,
    EVALUATIONS_PER_RUN,
    PRIVATE,
    PUBLIC,
    PrivacyConfig,
    TrainConfig,
)
from ..settings.times import seconds_of
from ..support.devices import usable_device
from ..support.files import read_json
from .build import model_of, model_to_train
from .folder import SETTINGS

_SHARE = 0.85  # of the time is for what is measured; loading images, checking files and writing take the rest
_AT_ONCE = {False: 8, True: 32}  # images that are timed on a CPU, on a GPU: enough for the speed of more
_STEP_OVER_NOISE = 3.0  # a step's noise, its optimizer, average and checks, over the noise alone

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """How a kind of start is trained where nobody says otherwise. ``docs/training.md`` says what the values rest on.

    Attributes:
        start: What the start is, in words.
        trainable: What trains.
        steps: As few as were good: of the same images, fewer steps of larger batches leave less noise.
        most_steps: Where a batch of all images leaves time for more.
    """

    start: str
    trainable: str
    steps: int
    most_steps: int


RANDOM = Recipe("the start is random", "all", 200, 1000)
LACKS = Recipe("the start lacks classes of the data", "neck_and_head", 80, 320)
KNOWS = Recipe("the start knows the classes of the data", "all", 80, 320)


@dataclass(frozen=True)
class Speed:
    """Seconds that this machine takes.

    Attributes:
        unit: For one unit in a step: its images, with their augmentations.
        step: For the noise of a step.
        once: Before, between and after the steps.
    """

    unit: float
    step: float
    once: float


def recipe_of(model: DetectionModel) -> Recipe:
    """Return the recipe for a detector as :func:`~dptrain.detection.load_model` made it."""
    lacks = getattr(model, "lacks_classes", None)
    return RANDOM if lacks is None else LACKS if lacks else KNOWS


def settle_steps(config: TrainConfig) -> TrainConfig:
    """Return the settings with the steps, the batch and what trains written out, where ``steps`` is open.

    A run that is resumed keeps what it began with.

    Raises:
        DptrainError: The start or the data cannot be used, or the time is too short for a run.
    """
    if not steps_are_open(config):
        return config
    if config.resume:
        return _as_begun(config)
    if config.privacy.noise == "banded":
        raise ConfigError(
            "steps is not set, and privacy.noise=banded pays with many steps of small batches: give steps and "
            "privacy.expected_batch_size (dptrain plan shows what they save)"
        )
    device = torch.device(usable_device(config.device))
    data = load_data(config.data)
    whole = model_of(replace(config, trainable="all", head="auto"), data)
    recipe = recipe_of(whole)
    config = replace(
        config,
        trainable=config.trainable or recipe.trainable,
        head=config.head or ("one_to_many" if whole.model[-1].cv2 is not None else "auto"),
    )
    if config.epochs is not None:
        steps, batch = passes(config.privacy, recipe, config.epochs)
        found = f"{steps} steps are epochs={config.epochs:g}"
    else:
        speed = _measured(config, model_to_train(config, data).to(device), device, _evaluated(config, len(data.val)))
        given = config.time or DEFAULT_TIME
        steps, batch = fitted(config.privacy, recipe, speed, _SHARE * seconds_of(given))
        unit = "an image" if config.privacy.unit == "image" else f"a {config.privacy.unit}"
        found = (
            f"{steps} steps fit into time={given}{'' if config.time else ', the default,'} at {speed.unit:.3g} s {unit}"
        )
    decay = EMA_DECAY if config.ema.decay is None else config.ema.decay
    logger.info(
        "steps is not set: %s, with trainable=%s, as %s%s",
        found,
        config.trainable,
        recipe.start,
        "" if batch is None else f", and privacy.expected_batch_size={batch}",
    )
    privacy = config.privacy if batch is None else replace(config.privacy, expected_batch_size=batch)
    return replace(config, steps=steps, privacy=privacy, ema=replace(config.ema, decay=decay))


def _evaluated(config: TrainConfig, public: int) -> int:
    """Images of all evaluations; those of a private val split as declared, not as counted."""
    if config.validation == PRIVATE:
        return config.validation_privacy.dataset_size or 0
    return public * (EVALUATIONS_PER_RUN + 1) if config.validation == PUBLIC else 0


def fitted(privacy: PrivacyConfig, recipe: Recipe, speed: Speed, seconds: float) -> tuple[int, int | None]:
    """Return the steps, and the expected batch size where it is open, that fit into a time; public numbers alone.

    At equal numbers of images, fewer steps of larger batches leave less noise on the sum of the gradients, until every
    step has all of the images (docs/training.md has the figures). So the steps are those of the recipe, and the batch
    is as large as the time allows. A batch that is given leaves the number of steps to the time.

    Raises:
        ConfigError: Not one step fits.
    """
    left = seconds - speed.once
    size, batch = privacy.dataset_size, privacy.expected_batch_size
    if batch is None and size is not None and privacy.sample_rate is None:
        most = int((left / recipe.steps - speed.step) / speed.unit)
        batch = min(size, _round_down(most)) if most >= 1 else 1
        steps = int(left / (batch * speed.unit + speed.step))
        return _some(min(steps, recipe.most_steps if batch == size else recipe.steps), seconds, speed), batch
    in_a_step = batch or (privacy.sample_rate or 0.0) * (size or 0)
    steps = int(left / (in_a_step * speed.unit + speed.step)) if in_a_step else recipe.steps
    return _some(steps, seconds, speed), None


def passes(privacy: PrivacyConfig, recipe: Recipe, epochs: float) -> tuple[int, int | None]:
    """Return the steps, and the expected batch size where it is open, that take so many passes' worth of images.

    A pass is as many units as are declared; by Poisson sampling a unit is in ``epochs`` steps on average. Few large
    steps, as in :func:`fitted`.

    Raises:
        ConfigError: Nothing says how many units a pass has.
    """
    size, batch = privacy.dataset_size, privacy.expected_batch_size
    rate = privacy.sample_rate if privacy.sample_rate is not None else batch / size if batch and size else None
    if rate is not None:
        return max(1, round(epochs / rate)), None
    if size is None:
        raise ConfigError(f"epochs={epochs:g} are passes over the declared data: give privacy.dataset_size=...")
    batch = min(size, max(1, round(epochs * size / recipe.steps)))
    return max(1, round(epochs * size / batch)), batch


def _some(steps: int, seconds: float, speed: Speed) -> int:
    if steps < 1:
        raise ConfigError(
            f"time={seconds / _SHARE:.0f}s is too short: this machine takes {speed.once:.0f} s around the steps and "
            f"{speed.unit:.2g} s an image; give more time, a smaller imgsz, or steps"
        )
    return steps


def _round_down(number: int) -> int:
    """To two digits, so that two runs of one machine are likely to have the same plan."""
    unit = 10 ** max(0, len(str(number)) - 2)
    return number // unit * unit


def _as_begun(config: TrainConfig) -> TrainConfig:
    """What the run in ``output_dir`` began with; other settings are compared later."""
    file = Path(config.output_dir) / SETTINGS
    try:
        began = read_json(file)
        steps, batch = began["steps"], began["privacy"]["expected_batch_size"]
        return replace(
            config,
            steps=steps,
            trainable=config.trainable or began["trainable"],
            head=config.head or began["head"],
            privacy=replace(config.privacy, expected_batch_size=config.privacy.expected_batch_size or batch),
            ema=replace(config.ema, decay=began["ema"]["decay"] if config.ema.decay is None else config.ema.decay),
        )
    except FileNotFoundError as error:
        raise ConfigError(
            f"resume=true, and output_dir={config.output_dir} holds no run: leave resume out to start one"
        ) from error
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{file} cannot be read, so the run cannot be resumed: give steps, or put it back") from error


def _measured(config: TrainConfig, model: DetectionModel, device: torch.device, evaluated: int) -> Speed:
    examples = config.augment.multiplicity
    if config.privacy.unit != "image":
        examples *= config.privacy.images_per_group or DEFAULT_IMAGES_PER_GROUP
    at_once = _AT_ONCE[device.type == "cuda"]
    if config.physical_batch_size != "auto":
        at_once = min(at_once, int(config.physical_batch_size))
    image = seconds_per_image(model, config.imgsz, at_once, config.engine)
    looks = seconds_per_prediction(model, config.imgsz, at_once) * evaluated
    numbers = sum(p.numel() for p in trainable_parameters(model).values())
    stream = NoiseStream(None, "speed")
    began = time.perf_counter()
    stream.gaussian(numbers)
    noise = time.perf_counter() - began
    measures = evaluated and config.validation == PUBLIC and config.privacy.clipping in (AUTO, "scaled")
    scales = 2 * IMAGES * image if measures else 0.0
    return Speed(image * examples, _STEP_OVER_NOISE * noise, looks + scales)
