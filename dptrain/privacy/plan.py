"""The frozen plan that couples everything the guarantee rests on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from . import accounting, calibration
from .bands import MOST_BANDS, accumulated, rounds
from .clip_rules import ClipRule
from .clipping import FLAT, Clipping
from .ranges import check_noise_multiplier
from .units import UNITS

if TYPE_CHECKING:
    from dp_accounting.dp_event import DpEvent
    from torch import Tensor

    from .sampling import PoissonSampler
    from .streams import NoiseStream

_NUMBERS = ("sample_rate", "steps", "noise_multiplier", "clip_norm", "delta", "expected_batch_size", "bands")
MOST_UNITS = 10**15  # of a batch or a dataset; beyond, floating-point numbers no longer count


@dataclass(frozen=True)
class PrivacyPlan:
    """DP-SGD with Poisson sampling, clipping and Gaussian noise, as one unchangeable whole.

    Formal guarantee: training by this plan's sampler, clip and noise for at most ``steps`` steps is
    (``epsilon()``, ``delta``)-differentially private for adding or removing one privacy unit (of ``person``, for all
    pictures of one there or blank, where who is in which is known), towards anyone who sees every iterate (Abadi et al.
    2016, algorithm 1, accounted by RDP), wherever and for whatever reason it stops. Nothing can change the sampler, the
    clip or the noise without changing the event that is accounted, because all of them are made from here.

    Attributes:
        sample_rate: Chance q that one unit is in one step's draw, in (0, 1].
        steps: Number T of noised steps, at least 1.
        noise_multiplier: Standard deviation of the noise in units of the sensitivity, that of the clip rule; above 0.
        clip_norm: Largest norm C of one unit's gradient; finite and above 0.
        delta: In (0, 1); should be well below one over the number of units.
        expected_batch_size: Public constant that the noisy sum is divided by; never the true size of a draw.
        unit: What one person's data is: an ``image``, or a ``group`` of images such as a patient's.
        clipping: The clip rule, see :class:`~dptrain.Clipping`; its sensitivity is what the noise is scaled to.
        bands: b. With 1, the noise of every step is independent. With more it is correlated over b steps
            (:mod:`dptrain.privacy.bands`), a unit can be drawn in one of every b steps only, with b times the sample
            rate, and what is accounted are ceil(T / b) steps at that rate.
    """

    sample_rate: float
    steps: int
    noise_multiplier: float
    clip_norm: float
    delta: float
    expected_batch_size: int
    unit: str = "image"
    clipping: Clipping = FLAT
    bands: int = 1

    def __post_init__(self) -> None:
        if not 0.0 < self.sample_rate <= 1.0:
            raise ConfigError(f"sample_rate={self.sample_rate} is not in (0, 1]: the chance that one unit is in a step")
        for name, most in (
            ("steps", accounting.MOST_STEPS),
            ("expected_batch_size", MOST_UNITS),
            ("bands", MOST_BANDS),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise ConfigError(f"{name}={value} must be a whole number, at least 1 and at most {most}")
        check_noise_multiplier(self.noise_multiplier)
        self.clipping.check(self.clip_norm)
        accounting.check_delta(self.delta)
        if self.unit not in UNITS:
            raise ConfigError(f"unit={self.unit!r} is not one of {', '.join(UNITS)}")
        self._check_bands()

    def _check_bands(self) -> None:
        if self.bands * self.sample_rate > 1.0:
            raise ConfigError(
                f"bands={self.bands} at sample_rate={self.sample_rate:.6g} would draw units of a step's part with a "
                f"chance of {self.bands * self.sample_rate:.6g}, over 1: at most {math.floor(1 / self.sample_rate)} "
                "bands, or a smaller batch"
            )
        if self.bands > 1 and self.unit != "image":
            raise ConfigError(
                f"bands={self.bands} with unit={self.unit} is not worked out: correlated noise is for single images"
            )

    @classmethod
    def calibrate(
        cls,
        *,
        epsilon: float,
        delta: float,
        sample_rate: float,
        steps: int,
        expected_batch_size: int,
        clip_norm: float = 1.0,
        unit: str = "image",
        clipping: Clipping = FLAT,
        bands: int = 1,
    ) -> PrivacyPlan:
        """Return the plan with the least noise whose RDP epsilon is at most ``epsilon``."""
        draft = cls(
            sample_rate, steps, 1.0, clip_norm, delta, expected_batch_size, unit, bands=bands
        )  # checks the rest
        noise = calibration.calibrate_noise(epsilon, delta, *draft.accounted())
        return replace(draft, noise_multiplier=noise, clipping=clipping)

    @classmethod
    def steps_for(
        cls,
        *,
        epsilon: float,
        noise_multiplier: float,
        delta: float,
        sample_rate: float,
        expected_batch_size: int,
        clip_norm: float = 1.0,
        unit: str = "image",
        clipping: Clipping = FLAT,
        bands: int = 1,
    ) -> PrivacyPlan:
        """Return the plan with the most steps whose RDP epsilon is at most ``epsilon``."""
        draft = cls(sample_rate, 1, noise_multiplier, clip_norm, delta, expected_batch_size, unit, clipping, bands)
        count = calibration.calibrate_steps(epsilon, delta, draft.accounted()[0], draft.noise_multiplier)
        return replace(draft, steps=min(count * bands, accounting.MOST_STEPS))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, as JSON has them."""
        return {**{item.name: getattr(self, item.name) for item in fields(self)}, "clipping": self.clipping.to_dict()}

    @classmethod
    def from_dict(cls, values: Any) -> PrivacyPlan:
        """Return the plan that :meth:`to_dict` gave, also from JSON.

        Raises:
            ConfigError: A field is missing, unknown, of another kind, or refused by the constructor.
        """
        names = [item.name for item in fields(cls)]
        if not isinstance(values, Mapping) or set(values) != set(names):
            raise ConfigError(f"plan={values!r} is not made of {', '.join(names)}")
        for name in names:
            kinds, needed = (int | float, "a number") if name in _NUMBERS else (str, "a text")
            if name != "clipping" and (isinstance(values[name], bool) or not isinstance(values[name], kinds)):
                raise ConfigError(f"{name}={values[name]!r} is not {needed}")
        return cls(**{**values, "clipping": Clipping.from_dict(values["clipping"])})

    def accounted(self, steps: int | None = None) -> tuple[float, int]:
        """Return the rate and the number of the Poisson-sampled Gaussians that ``steps`` steps, or all, cost."""
        return rounds(self.sample_rate, self._steps(steps), self.bands)

    def event(self, steps: int | None = None) -> DpEvent:
        """Return what is accounted for ``steps`` steps, all of them by default."""
        return accounting.dp_sgd_event(*self.accounted(steps), self.noise_multiplier)

    def epsilon(self, accountant: str = "rdp", steps: int | None = None) -> float:
        """Return the epsilon of ``steps`` steps, all by default: ``rdp`` (the claim), ``pld`` or a registered one.

        Guarantee: it bounds what the outputs of the first ``steps`` steps tell, for a number that was decided before
        the run. It is no claim for a run that was stopped there after a look at it: that one costs ``epsilon()``.
        """
        count = self._steps(steps)
        return accounting.dp_sgd_epsilon(*self.accounted(count), self.noise_multiplier, self.delta, accountant)

    def _steps(self, steps: int | None) -> int:
        if steps is None:
            return self.steps
        if steps < 0:
            raise ConfigError(f"steps={steps} must not be negative")
        return int(steps)

    @property
    def signal(self) -> float:
        """q sqrt(T / 2) / sigma, which grows with what can be learnt at this budget (De et al. 2022).

        Of correlated noise, as much as independent noise has that adds up to the same on sums of gradients.
        """
        saved = accumulated(self.steps, 1) / accumulated(self.steps, self.bands)
        return saved * self.sample_rate * math.sqrt(self.steps / 2) / self.noise_multiplier

    # The parts, for a training loop of one's own. The order of use is then the caller's duty:
    # sampler -> sum over exactly the units drawn, clipped by mechanism.rule -> mechanism.noise -> anything else.

    def sampler(self, num_units: int, stream: NoiseStream, identities: Sequence[bytes] | None = None) -> PoissonSampler:
        """Return the Poisson sampler of this plan over ``num_units`` units; with bands, by the units' identities."""
        from .sampling import CyclicPoissonSampler, PoissonSampler

        rate = self.sample_rate
        if self.bands > 1:
            return CyclicPoissonSampler(num_units, self.bands * rate, stream, self.bands, identities)
        return PoissonSampler(num_units, rate, stream)

    def noise_stream(self, seed: int | None = None) -> NoiseStream:
        """Return where the noise of this plan comes from, ``noise_stream.at(step)`` for a step; a seed is for tests."""
        from .banded_noise import BandedStream
        from .streams import NoiseStream

        return BandedStream(self.bands, seed, "noise") if self.bands > 1 else NoiseStream(seed, "noise")

    def mechanism(self, names: Iterable[str], among: Iterable[str] | None = None) -> Mechanism:
        """Return what a step does to the parameters of these names: the clip rule, and the noise that fits it.

        ``among`` are the names of all that train in the run, where a step trains only some of them: a pattern of the
        clip rule may then fit one of the others alone.

        Raises:
            ConfigError: The rule does not fit the parameters.
        """
        names = tuple(names)
        rule = self.clipping.rule(self.clip_norm, names, among)
        return Mechanism(rule, frozenset(names), self.noise_multiplier, self.expected_batch_size, self.bands)


@dataclass(frozen=True)
class Mechanism:
    """The clip rule of a plan for some parameters, and the noise that fits it. Made by :meth:`PrivacyPlan.mechanism`.

    Formal guarantee: ``noise`` of a sum that ``rule`` clipped is one Gaussian mechanism with the plan's noise
    multiplier, divided by a public constant: the noise is scaled to the sensitivity of ``rule`` itself. With bands that
    is said of all steps in which a unit's one use can still be seen, and of draws by the plan's own sampler.

    Attributes:
        rule: By which every unit is clipped.
        names: Of the parameters.
        noise_multiplier, expected_batch_size, bands: Of the plan.
    """

    rule: ClipRule
    names: frozenset[str]
    noise_multiplier: float
    expected_batch_size: int
    bands: int = 1

    def noise(self, total: Mapping[str, Tensor], stream: NoiseStream) -> dict[str, Tensor]:
        """Return the noised sum divided by the expected batch size: the gradient of one step.

        ``total`` is the clipped sum over *all* the units of one draw; noise is added once a step. A sum of
        :meth:`dptrain.ClippedSum.on_grid` gets exact noise. ``stream`` is :meth:`PrivacyPlan.noise_stream` at this
        step; without bands it may be any other.

        Raises:
            ConfigError: ``total`` is of other parameters, or ``stream`` of another number of bands; or the noise would
                have to be exact and correlated.
        """
        import torch

        from . import noise as door
        from .exact import SENSITIVITY

        if total.keys() != self.names:
            other = sorted(total.keys() ^ self.names)[0]
            raise ConfigError(f"the sum is of other parameters than the clip rule: {other!r} is in one of them only")
        if len(stream.factor) != self.bands:
            raise ConfigError(
                f"noise of {len(stream.factor)} bands for a plan of {self.bands}: use plan.noise_stream()"
            )
        sensitivity = self.rule.sensitivity()
        on_grid = all(tensor.dtype == torch.int64 for tensor in total.values())
        if on_grid and self.bands > 1:
            raise ConfigError(f"exact noise of {self.bands} bands is not worked out: leave one of them out")
        noised = door.privatize(
            total,
            sensitivity=SENSITIVITY if on_grid else sensitivity,
            noise_multiplier=self.noise_multiplier,
            stream=stream,
        )
        if on_grid:
            noised = {name: tensor.double() * (sensitivity / SENSITIVITY) for name, tensor in noised.items()}
        return {name: tensor / self.expected_batch_size for name, tensor in noised.items()}

    def begin_noise(self, shapes: Iterable[Tensor], stream: NoiseStream, *, on_grid: bool, threads: int) -> None:
        """Begin to make the noise of the next :meth:`noise` in the background, while the sum is still computed.

        Args:
            shapes: Tensors as large as those of the sum, such as the parameters; what they hold is not looked at.
            stream: As :meth:`noise` will be given it. ``stream.drop()`` gives up what is not used.
            on_grid: Whether the sum will be one of :meth:`dptrain.ClippedSum.on_grid`.
            threads: How many threads make it.
        """
        from . import noise as door
        from .exact import SENSITIVITY

        door.begin_noise(
            sum(tensor.numel() for tensor in shapes),
            sensitivity=SENSITIVITY if on_grid else self.rule.sensitivity(),
            noise_multiplier=self.noise_multiplier,
            stream=stream,
            whole=on_grid,
            threads=threads,
        )
