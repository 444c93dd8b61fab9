"""The DP-SGD loop (Abadi et al. 2016, algorithm 1), for any torch module with a per-example loss.

Per step: draw units -> sum their clipped gradients over physical batches -> noise, once -> divide by the public
expected batch size -> optimizer -> moving average. The optimizer, the average and whoever watches see noised
gradients only.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import astuple, replace
from functools import partial
from itertools import chain
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ConfigError, PrivacyError
from ..gradients import LossFunction, check_independence
from ..gradients.autotune import by_rule
from ..gradients.batches import UnitBatch, batch_size, in_pieces
from ..gradients.checks import check_module, trainable_parameters
from ..privacy.plan import PrivacyPlan
from ..privacy.sampling import Draw
from ..privacy.streams import NoiseStream
from ..support.devices import refuse_single_precision
from ..support.out_of_memory import in_memory
from ..support.threads import spare_threads
from .average import MovingAverage, copy_into
from .clipped_sum import ClippedSum
from .phases import Phase, last_steps, let_train, parameters_of
from .processes import Group, shares_of


class Loader(Protocol):
    """Turns draws into batches; an empty draw is a step without batches.

    Of one with an attribute ``examples_at_once`` every pass has that number of examples: a batch of fewer is filled up
    with blank ones that weigh nothing, one of more comes apart, and a unit of more goes through in pieces that are
    clipped as one. Without it the passes are your batches. If the loss then decides anything by the last digits of a
    prediction, as every detector's does, one unit more can change the gradients of others: set it, see
    :func:`~dptrain.clipped_gradient_sum`.
    """

    def steps(self, draws: Iterator[Draw]) -> Iterator[Iterator[Any]]:
        """Yield, for every draw, its physical batches: each unit drawn exactly once.

        A unit is an example, or the examples of one unit in a :class:`UnitBatch`: all of them are then in one batch.
        """


def _same(value: Any, agreed: Any) -> bool:
    return value is agreed or (isinstance(agreed, int | float | str | tuple) and value == agreed)


def _count(batch: Any) -> int:
    return batch_size(batch.examples if isinstance(batch, UnitBatch) else batch)


def learning_rate(name: str, base: float, step: int, steps: int, warmup_steps: int = 0, final: float = 0.01) -> float:
    """Return the learning rate of a step (counted from 0): a function of public numbers only.

    ``constant``; or ``cosine`` or ``linear`` from ``base`` to ``final * base`` at the last step; each after a linear
    warm-up over ``warmup_steps``.
    """
    if step < warmup_steps:
        return base * (step + 1) / warmup_steps
    fraction = (step - warmup_steps) / max(1, steps - warmup_steps - 1)
    if name == "constant":
        return base
    if name == "linear":
        return base * (1.0 - (1.0 - final) * fraction)
    if name == "cosine":
        return base * (final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * fraction)))
    raise ConfigError(f"schedule.name={name!r} is not one of constant, cosine, linear")


class PrivateTrainer:
    """Trains a module by a plan.

    Formal guarantee: the module's parameters, the moving average and the optimizer state, after every step and all of
    them together, are (plan.epsilon(), plan.delta)-differentially private in the units that ``loader`` serves, wherever
    and for whatever reason the loop ends. What the first t steps give is (plan.epsilon(steps=t), plan.delta)-private if
    t was decided before the first of them; not if the loop was stopped by what it showed.

    That is so provided that loss i of ``loss_function`` depends on example i only. It is tried before the first batch
    of two examples or more enters a sum, on ``probe``, or else on that batch; a refusal is then for the data's owner. A
    step is taken for every draw, empty ones too.

    Args:
        module: What to train; every trainable parameter must have a per-example gradient rule, but for ``microbatch``.
        loss_function: ``loss_function(module, batch)`` -> one loss an example, (n,).
        plan: Makes the sampler, the clip and the noise.
        optimizer: A torch optimizer over exactly the parameters that train in any step.
        loader: Serves the units of a draw.
        num_units: Number of units that ``loader`` can be asked for.
        identities: Of the units, for a plan with bands (:class:`~dptrain.privacy.sampling.CyclicPoissonSampler`) or
            several processes (:func:`~dptrain.training.processes.shares_of`).
        seed: For tests only: repeats sampling and noise, and voids the guarantee.
        engine: ``fused``, ``opacus`` or ``microbatch``.
        ema_decay: Decay of the moving average; 0 leaves it equal to the iterate.
        exact: Take the units one at a time, in whole numbers, and add noise that no rounding weakens
            (:mod:`dptrain.privacy.exact`).
        set_rate: Learning rate of a step, from the step's number alone.
        before_step: Called with the step's number before anything of it is computed; it must not look at data.
        on_release: Called with the number of steps, this one included, right before the step's noised gradient is made.
        phases: Which parameters train in which steps: their steps add up to the plan's, and their names hold all that
            is trainable. What trains is switched here (``requires_grad``), by the step's number alone. Without phases
            the module's trainable parameters train in every step.
        group: Of several processes that take the steps together; None: this one alone. The units then need identities.
        probe: A made-up batch of two or more different examples, on which ``check_independence`` is tried now, so that
            no private example decides what comes out; None: the first private batch is tried. False: the caller has
            tried it, or answers for the loss.

    Raises:
        ModelError, ConfigError: Before the first step, if the module or the optimizer cannot be trained privately.
    """

    def __init__(
        self,
        module: nn.Module,
        loss_function: LossFunction,
        plan: PrivacyPlan,
        optimizer: torch.optim.Optimizer,
        loader: Loader,
        num_units: int,
        *,
        identities: Sequence[bytes] | None = None,
        seed: int | None = None,
        engine: str = "fused",
        ema_decay: float = 0.0,
        exact: bool = False,
        set_rate: Callable[[int], float] | None = None,
        before_step: Callable[[int], None] | None = None,
        on_release: Callable[[int], None] | None = None,
        phases: Sequence[Phase] = (),
        group: Group | None = None,
        probe: Any = None,
    ) -> None:
        self.module, self.loss_function, self.plan, self.engine = module, loss_function, plan, engine
        if not phases:
            check_module(module, engine)
        self.phases = tuple(phases) or (Phase(plan.steps, tuple(trainable_parameters(module))),)
        self.parameters = parameters_of(module, self.phases, plan.steps)
        for parameter in self.parameters.values():
            refuse_single_precision(parameter.device.type)
        self.optimizer, self.loader = optimizer, loader
        self._check_optimizer()
        self.average = MovingAverage(self.parameters, ema_decay)
        if exact and plan.bands > 1:
            raise ConfigError(f"exact noise of {plan.bands} bands is not worked out: leave one of them out")
        self._group = group
        coins = NoiseStream(seed, "sampling") if group is None else group.coins(seed)
        self.sampler = plan.sampler(num_units, coins, identities)
        self._shares = None if group is None else self._shared_out(group, identities)
        self.noise_stream = plan.noise_stream(seed)
        self.secure = seed is None
        self.step = 0
        self._exact = exact
        self._examples_at_once: int | None = getattr(loader, "examples_at_once", None)
        self._set_rate, self._before_step, self._on_release = set_rate, before_step, on_release
        self._ends = last_steps(self.phases)
        self._sums = [self._sum_of(phase) for phase in self.phases]
        self._tried: list[bool] = []
        self._agreed: list[dict[str, tuple[Any, ...]]] = []
        for number in range(len(self.phases)):
            self._switch(number)
            self._tried.append(probe is False or (probe is not None and self._try(probe)))
            self._agreed.append(self._terms())
        self._switch(0)

    def _shared_out(self, group: Group, identities: Sequence[bytes] | None) -> np.ndarray:
        """Which process computes the gradient of every unit."""
        if self.plan.bands > 1:
            raise ConfigError(
                f"{group.count} processes and noise of {self.plan.bands} bands are not worked out: leave one out"
            )
        if identities is None or len(identities) != self.sampler.num_units:
            raise ConfigError(
                f"{group.count} processes need the identities of all units: which process computes a unit follows from "
                "its own"
            )
        return shares_of(identities, group.count)

    def _sum_of(self, phase: Phase) -> ClippedSum:
        """The clip rule of a phase, and the noise that fits it."""
        let_train(self.parameters, phase.names)
        check_module(self.module, self.engine)
        plan = self.plan if phase.clip_norm is None else replace(self.plan, clip_norm=phase.clip_norm)
        among = tuple(self.parameters)
        return ClippedSum(plan, self.module, self.loss_function, self.engine, self._examples_at_once, among)

    def _switch(self, number: int) -> None:
        self._phase = number
        self.noise_stream.restart()  # another set of numbers, perhaps with noise of another scale
        let_train(self.parameters, self.phases[number].names)
        self.clipped = self._sums[number]

    def _enter(self) -> None:
        """Switch to the phase that the next step is in; only the step's number decides it."""
        number = min(bisect_right(self._ends, self.step), len(self.phases) - 1)
        if number != self._phase:
            self._refuse_changed()  # what was changed in the last phase, the switch would hide
            self._switch(number)

    def _try(self, batch: Any) -> bool:
        batch = batch.examples if isinstance(batch, UnitBatch) else batch
        return batch_size(batch) > 1 and check_independence(self.module, self.loss_function, batch, self.engine)

    def _terms(self) -> dict[str, tuple[Any, ...]]:
        """What the guarantee was stated for; nothing of it may change between the first step and the last."""
        parameters, mechanism = trainable_parameters(self.module), self.clipped.mechanism
        return {
            "plan": astuple(self.plan),
            "phases": (self._ends, *map(astuple, self.phases)),
            "sampler": (self.sampler, *self.sampler.terms()),
            "noise": (self.noise_stream, self.noise_stream.secure, self.noise_stream.factor, self.secure, self._exact),
            "module": (self.module,),
            "loss function": (self.loss_function, self.engine),
            "clip rule": (
                self.clipped,
                *vars(self.clipped).values(),
                *vars(mechanism).values(),
                mechanism.rule.sensitivity(),
            ),
            "set of trainable parameters": (*parameters, *parameters.values()),
            "optimizer": (self.optimizer, *(p for group in self.optimizer.param_groups for p in group["params"])),
        }

    def _refuse_changed(self) -> None:
        now = self._terms()
        for name, agreed in self._agreed[self._phase].items():
            if len(now[name]) != len(agreed) or not all(map(_same, now[name], agreed)):
                raise PrivacyError(
                    f"the {name} changed after step {self.step}, and the guarantee is of what was there at the start: "
                    "leave it as it was; a new trainer with its own plan adds to what this one has spent"
                )

    def _check_optimizer(self) -> None:
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        if held != {id(p) for p in self.parameters.values()}:
            raise ConfigError("the optimizer must hold exactly the module's trainable parameters, no more and no less")

    def run(self, until: int | None = None) -> Iterator[int]:
        """Take steps up to number ``until`` (default: all of the plan's), yielding the number of steps done so far.

        Between two yields exactly one noised step is taken. Raises ``PrivacyError`` for more steps than planned.
        """
        until = self.plan.steps if until is None else until
        if until > self.plan.steps:
            raise PrivacyError(f"{until} steps requested, but the plan accounts for {self.plan.steps}: make a new plan")
        draws = self.sampler.draws(until, start=self.step)
        if self._group is not None and self._shares is not None:
            draws = self._group.own(draws, self._shares)
        steps = self.loader.steps(draws)
        try:
            for batches in steps:
                self._take_step(batches)
                yield self.step
        finally:
            close = getattr(steps, "close", None)
            if close is not None:
                close()

    def _take_step(self, batches: Iterator[Any]) -> None:
        if self.step >= self.plan.steps:
            raise PrivacyError(f"step {self.step + 1} requested, but the plan accounts for {self.plan.steps}")
        self._enter()
        if self._before_step is not None:
            self._before_step(self.step)
        if self._set_rate is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = self._set_rate(self.step)
        self._refuse_changed()
        gradient = self._noised(batches)
        for name, parameter in self.parameters.items():
            parameter.grad = gradient[name].to(parameter.dtype) if name in gradient else None
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.average.update(self.step)
        if not bool(torch.stack([torch.isfinite(p).all() for p in self.parameters.values()]).all()):
            raise PrivacyError(
                f"the weights are no longer finite after step {self.step}: the run diverged; lower the learning rate"
            )
        if self._group is not None:
            self._group.compare(self.parameters, self.step)

    def _noised(self, batches: Iterator[Any]) -> dict[str, Tensor]:
        """Return the noised gradient of one draw, of which ``batches`` are the units that this process looks at."""
        if self._group is None:
            with self._noise_ahead() as stream:
                return self._released(self._clipped_sum(batches), stream)
        dtypes = {p.dtype for p in self.parameters.values()}
        dtype = dtypes.pop() if len(dtypes) == 1 else torch.float64
        with self._noise_ahead() if self._group.is_first else nullcontext(self.noise_stream) as stream:
            own = self._clipped_sum(self._group.counted(batches))
            return self._group.noised(self.step, own, partial(self._released, stream=stream), dtype)

    @contextmanager
    def _noise_ahead(self) -> Iterator[NoiseStream]:
        """Make the noise of this step in the background inside the block, where a core is free for it.

        It is begun and used, or dropped, within the step: none is left at its end, however that comes.
        """
        stream = self.noise_stream.at(self.step)
        threads = spare_threads(next(iter(self.parameters.values())).device.type)
        if threads:
            mechanism = self.clipped.mechanism
            own = [p for name, p in self.parameters.items() if name in mechanism.names]
            mechanism.begin_noise(own, stream, on_grid=self._exact, threads=threads)
        try:
            yield stream
        finally:
            stream.drop()

    def _released(self, total: dict[str, Tensor], stream: NoiseStream) -> dict[str, Tensor]:
        """Count the step, and noise the sum over all of its draw, once."""
        if self._on_release is not None:
            self._on_release(self.step + 1)
        return self.clipped.mechanism.noise(total, stream)

    def _clipped_sum(self, batches: Iterator[Any]) -> dict[str, Tensor]:
        """Return the sum over one draw; it lives in this call only, so that an exception leaves nothing stale."""
        # In double precision: the rounding of a single precision sum grows with the draw, and the sensitivity with it.
        total = {
            name: torch.zeros(p.shape, dtype=torch.int64 if self._exact else torch.float64, device=p.device)
            for name, p in self.parameters.items()
            if name in self.clipped.mechanism.names
        }
        before = self._tensor_versions()
        # By rule, a seeded run repeats to the last bit, and a unit's whole numbers are a function of the unit alone.
        with by_rule() if self._exact or not self.secure else nullcontext():
            for batch in batches:
                self._tried[self._phase] = self._tried[self._phase] or self._try(batch)
                for some in self._passes(batch):
                    torch._foreach_add_(list(total.values()), list(self._part(some).values()))
        if before != self._tensor_versions():
            raise PrivacyError(
                "a buffer or parameter of the module changed while it looked at private images, and nothing noises it: "
                "freeze the layer that keeps running statistics"
            )
        return total

    def _passes(self, batch: Any) -> list[Any]:
        """Return the batch as batches that go through the model at once, each unit whole in one of them."""
        most = self._examples_at_once
        if self._exact or (isinstance(batch, UnitBatch) and most is not None and _count(batch) > most):
            return in_pieces(batch, 1)
        return [batch] if most is None or isinstance(batch, UnitBatch) else in_pieces(batch, most)

    def _part(self, batch: Any) -> dict[str, Tensor]:
        """Return the clipped sum of what goes through the model at once."""
        count = _count(batch) if self._exact else max(self._examples_at_once or 0, _count(batch))
        with in_memory(next(iter(self.parameters.values())).device, count):
            return self.clipped.on_grid(batch) if self._exact else self.clipped.over(batch)

    def _tensor_versions(self) -> dict[str, tuple[int, int]]:
        tensors = chain(self.module.named_buffers(), self.module.named_parameters())
        return {name: (id(tensor), tensor._version) for name, tensor in tensors}

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs: noised or public, all of it; no noise, whose correlation begins anew."""
        return {
            "step": self.step,
            "phases": [phase.to_list() for phase in self.phases],
            "parameters": {name: p.detach().clone() for name, p in self.parameters.items()},
            "frozen": {name: t.clone() for name, t in self.module.state_dict().items() if name not in self.parameters},
            "average": {name: value.clone() for name, value in self.average.values.items()},
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: dict[str, Any], step: int | None = None) -> None:
        """Go on from :meth:`state`; ``step``, if later, counts steps that were started and lost as taken.

        Raises:
            PrivacyError: The state is of other parameters or phases, or this trainer has taken steps already.
        """
        if self.step:
            raise PrivacyError(
                f"this trainer has taken {self.step} steps, which cannot be undone: restore into a new one"
            )
        if list(state["parameters"]) != list(self.parameters):
            raise PrivacyError(
                "the checkpoint holds other trainable parameters than this run: resume with its settings"
            )
        if state["phases"] != [phase.to_list() for phase in self.phases]:
            raise PrivacyError("the checkpoint is of a run with other phases than this one: resume with its settings")
        shapes = {name: tensor.shape for name, tensor in {**state["parameters"], **state["frozen"]}.items()}
        if shapes != {name: tensor.shape for name, tensor in self.module.state_dict().items()}:
            raise PrivacyError("the checkpoint is of another model than this run's: resume with its settings")
        self.module.load_state_dict(state["frozen"], strict=False)
        copy_into(self.parameters, state["parameters"])
        self.average.values = {name: state["average"][name].to(p.device) for name, p in self.parameters.items()}
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = max(state["step"], step or 0)
        self._enter()
