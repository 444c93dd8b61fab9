"""Does what one example gives to the sum depend on the examples beside it? Asked of the code, by trying it.

Clipping bounds what one example adds only if its gradient is a function of that example alone. No list of layers can
tell that of a loss that somebody wrote, so it is tried: examples are exchanged and left out, and the others' gradients
must stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from . import microbatch
from .batches import batch_size, join_examples, take_examples
from .checks import trainable_parameters
from .fused import LossFunction

_TINY = 1e-30
_TF32 = 2.0**-10  # rounding of the inputs of matrix products on recent NVIDIA GPUs

_MEND = "let loss i be computed from example i only (no mean, sum, maximum or normalisation over the batch)"
_STATE = "let no layer keep anything of one example for the next, and draw random numbers from torch only"


def check(engine: ModuleType, module: nn.Module, loss_function: LossFunction, batch: Any) -> bool:
    """See :func:`dptrain.gradients.check_independence`."""
    count = batch_size(batch)
    if count < 2:
        raise ModelError(f"a batch of {count} cannot show whether examples depend on one another: give at least two")
    first, other, last = (take_examples(batch, index, index + 1) for index in (0, 1, 2 % count))
    other_again = last if count > 2 else first
    trial = _Trial(engine, module, loss_function, batch)
    with trial.watched():
        if engine is microbatch:  # no example has another beside it; it could find what the one before left behind
            base = trial.alone((first, other, last), kept=(0, 2))
            exchanged = trial.alone((first, other_again, last), kept=(0, 2))
            trial.compare(base, exchanged, "another example was exchanged", _STATE)
            trial.compare(base, trial.alone((first, last)), "another example was left out", _STATE)
            return bool((base.norms > 0).any())
        base = trial.outcome((first, other, last), kept=(0, 2))
        random = trial.is_random((first, other, last))
        trial.compare(base, trial.outcome((first, other_again, last), kept=(0, 2)), "another example was exchanged")
        pair = trial.outcome((first, last), kept=(0, 1))  # its rows are counted, whatever they hold
        if not random:
            trial.compare(base, pair, "another example was left out")
            trial.compare(base, trial.alone((first, last)), "it was alone")
    return bool((base.norms > 0).any())


class _Outcome:
    """Of some examples of a batch: each one's loss, the norm of each one's gradient, and the sum of these gradients."""

    def __init__(self, losses: Tensor, norms: Tensor, total: dict[str, Tensor]) -> None:
        self.losses, self.norms, self.total = losses.detach().double().cpu(), norms.double().cpu(), total


class _Trial:
    def __init__(self, engine: ModuleType, module: nn.Module, loss_function: LossFunction, batch: Any) -> None:
        self.engine, self.module, self.loss_function, self.batch = engine, module, loss_function, batch
        self.parameters = trainable_parameters(module)
        self.device = next(iter(self.parameters.values())).device
        self.rounding = max(torch.finfo(p.dtype).eps for p in self.parameters.values())

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note the coarsest number format that the layers compute in, and leave the random numbers as they were."""

        def note(_layer: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point():
                self.rounding = max(self.rounding, torch.finfo(output.dtype).eps)

        if self.device.type == "cuda" and self.rounding > torch.finfo(torch.float64).eps:
            self.rounding = max(self.rounding, _TF32)
        devices = [] if self.device.type == "cpu" else [self.device]
        hooks = [layer.register_forward_hook(note) for layer in self.module.modules()]
        try:
            with torch.random.fork_rng(devices, device_type=self.device.type if devices else "cuda"):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def outcome(self, examples: Sequence[Any], kept: Sequence[int]) -> _Outcome:
        """Return what the engine makes of a batch, of the examples ``kept`` in it."""
        norms = torch.zeros(0)
        losses = torch.zeros(0)

        def note(module: Any, batch: Any) -> Tensor:
            nonlocal losses
            losses = self.loss_function(module, batch)
            return losses

        def weigh(squared_norms: Tensor) -> Tensor:
            nonlocal norms
            norms = squared_norms.squeeze(1).sqrt()
            weights = torch.zeros_like(norms)
            weights[[index for index in kept if index < len(norms)]] = 1.0
            return torch.where(torch.isfinite(norms), weights, torch.zeros_like(norms)).unsqueeze(1)

        torch.manual_seed(0)
        total = self.engine.clipped_sum(self.module, note, join_examples(examples, self.batch), weigh)
        if len(norms) != len(examples):
            raise ModelError(f"the loss function returned {len(norms)} losses for {len(examples)} examples: {_MEND}")
        return _Outcome(losses[list(kept)], norms[list(kept)], total)

    def alone(self, examples: Sequence[Any], kept: Sequence[int] | None = None) -> _Outcome:
        """Return what plain autograd makes of each example by itself, one after the other; of those ``kept``."""
        kept = range(len(examples)) if kept is None else kept
        losses: list[Tensor] = []
        norms: list[Tensor] = []
        total = {name: torch.zeros_like(p) for name, p in self.parameters.items()}

        def note(module: Any, batch: Any) -> Tensor:
            losses.append(self.loss_function(module, batch))
            return losses[-1]

        for index, example in enumerate(examples):
            torch.manual_seed(0)
            (found,) = microbatch.example_gradients(self.module, note, example)
            if index not in kept:
                losses.pop()
                continue
            norms.append(torch.stack([g.double().square().sum().cpu() for g in found.values()]).sum().sqrt())
            if bool(torch.isfinite(norms[-1])):
                for name, gradient in found.items():
                    total[name].add_(gradient)
        return _Outcome(torch.cat(losses), torch.stack(norms), total)

    def is_random(self, examples: Sequence[Any]) -> bool:
        """Return whether the losses draw random numbers; refuse those that torch's seed does not repeat."""
        joined = join_examples(examples, self.batch)

        def losses(seed: int) -> Tensor:
            torch.manual_seed(seed)
            with torch.no_grad():
                return self.loss_function(self.module, joined).double().nan_to_num()

        once, again, other = losses(0), losses(0), losses(1)
        slack = self._slack() * once.abs().max()
        if bool(((once - again).abs() > slack).any()):
            raise ModelError(
                "two passes over the same batch gave different losses: the model or the loss keeps a state, or draws "
                "random numbers that torch.manual_seed does not repeat; fix that, so that it can be checked that no "
                "example depends on another"
            )
        return bool(((once - other).abs() > slack).any())

    def _slack(self) -> float:
        return self.rounding**0.5

    def compare(self, base: _Outcome, other: _Outcome, case: str, fix: str = _MEND) -> None:
        """Refuse losses or gradients that differ by more than rounding."""
        distances = torch.stack([(base.total[k].double() - other.total[k].double()).norm().cpu() for k in base.total])
        sizes = [base.norms, other.norms]
        gradients = float(distances.norm()) / max(sum(float(norms[norms.isfinite()].sum()) for norms in sizes), _TINY)
        for what, share in (
            ("loss", _apart(base.losses, other.losses)),
            ("gradient", max(_apart(base.norms, other.norms), gradients)),
        ):
            if share > self._slack():
                raise ModelError(f"the {what} of one example changed by {100 * share:.2g}% when {case}: {fix}")


def _apart(one: Tensor, other: Tensor) -> float:
    """Return the largest difference as a share of the largest value; infinite if others of them are not finite."""
    finite = one.isfinite()
    if not torch.equal(finite, other.isfinite()):
        return float("inf")
    if not bool(finite.any()):
        return 0.0
    scale = torch.stack((one[finite], other[finite])).abs().max().clamp(min=_TINY)
    return float((one[finite] - other[finite]).abs().max() / scale)
