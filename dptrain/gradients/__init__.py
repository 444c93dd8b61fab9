"""Per-example gradients of any torch module, and their clipped sum, by three engines behind one interface.

``fused`` (default) does one backward pass and never holds more than it must; ``opacus`` uses Opacus's hooks;
``microbatch`` runs plain autograd on one example at a time and is the oracle that the others are tested against.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch import Tensor, nn

from ..clipping import FlatClip
from ..errors import ConfigError
from . import fused, microbatch
from . import opacus as opacus_engine
from .checks import refuse_coupling, refuse_unsupported, trainable_parameters
from .fused import LossFunction

ENGINES: dict[str, ModuleType] = {"fused": fused, "opacus": opacus_engine, "microbatch": microbatch}

__all__ = ["ENGINES", "LossFunction", "clipped_gradient_sum", "per_sample_gradients", "trainable_parameters"]


def _engine(method: str, module: nn.Module) -> ModuleType:
    if method not in ENGINES:
        raise ConfigError(f"method={method!r} is not one of {', '.join(ENGINES)}")
    refuse_coupling(module)
    refuse_unsupported(module)
    return ENGINES[method]


def per_sample_gradients(
    module: nn.Module, loss_function: LossFunction, batch: Any, method: str = "fused"
) -> dict[str, Tensor]:
    """Return every example's own gradient.

    Args:
        module: Any module whose trainable parameters belong to layers with a rule.
        loss_function: ``loss_function(module, batch)`` gives one loss an example, shape (n,); loss i must depend on
            example i only.
        batch: A tensor, a tuple, or a mapping such as Ultralytics' collate makes.
        method: ``fused``, ``opacus`` or ``microbatch``.

    Returns:
        ``{parameter name: (n, *parameter shape)}`` for every trainable parameter; n may be 0.

    Raises:
        ModelError: The module couples examples, has a trainable parameter without a rule or one that is shared, or a
            trainable parameter got no gradient. The message names it.
    """
    return _engine(method, module).per_sample_gradients(module, loss_function, batch)


def clipped_gradient_sum(
    module: nn.Module, loss_function: LossFunction, batch: Any, clip_norm: float | FlatClip, method: str = "fused"
) -> dict[str, Tensor]:
    """Return the sum over examples of each example's gradient, scaled to norm at most ``clip_norm``.

    Formal guarantee: adding or removing one example changes the result by at most ``clip_norm`` in Euclidean norm over
    all parameters together (``FlatClip.sensitivity``), provided loss i depends on example i only. An example whose
    gradient is not finite contributes zero; an empty batch gives zeros. The module's ``.grad`` is left alone.

    Arguments and errors are those of :func:`per_sample_gradients`; the result is ``{parameter name: tensor}``.
    """
    clip = clip_norm if isinstance(clip_norm, FlatClip) else FlatClip(clip_norm)
    return _engine(method, module).clipped_sum(module, loss_function, batch, clip.weights)
