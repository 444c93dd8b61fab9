"""Per-example gradients by plain autograd, one example at a time: what every engine is tested against.

It shares no code with dptrain: the module runs untouched, on a batch of one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

Losses = Callable[[nn.Module, Tensor], Tensor]


def projected_losses(out_of: Callable[[nn.Module, Tensor], Tensor] | None = None) -> Losses:
    """Return a loss that gives every output entry of an example its own weight, and is not linear in them."""

    def losses(module: nn.Module, x: Tensor) -> Tensor:
        out = module(x) if out_of is None else out_of(module, x)
        flat = out.flatten(1)
        weights = torch.sin(1.0 + torch.arange(flat.shape[1], dtype=flat.dtype, device=flat.device))
        return (flat * weights).sum(1) + 0.1 * (flat * flat).sum(1)

    return losses


def one_at_a_time(module: nn.Module, losses: Losses, x: Tensor) -> dict[str, Tensor]:
    """Return ``{parameter name: (n, *shape)}`` from n separate backward passes into ``.grad`` of a copy."""
    own = copy.deepcopy(module)
    rows: dict[str, list[Tensor]] = {name: [] for name, p in own.named_parameters() if p.requires_grad}
    for i in range(len(x)):
        own.zero_grad(set_to_none=True)
        losses(own, x[i : i + 1]).sum().backward()
        for name, p in own.named_parameters():
            if name in rows:
                rows[name].append(torch.zeros_like(p) if p.grad is None else p.grad.clone())
    shapes = dict(own.named_parameters())
    return {k: torch.stack(v) if v else shapes[k].new_zeros((0, *shapes[k].shape)) for k, v in rows.items()}


def of_units(rows: dict[str, Tensor], units: list[int]) -> dict[str, Tensor]:
    """Return the mean gradient of every unit from those of its examples, one unit after the other."""
    own = [[row for row, unit in enumerate(units) if unit == number] for number in range(max(units, default=-1) + 1)]
    return {name: torch.stack([g[chosen].mean(0) for chosen in own]) if own else g[:0] for name, g in rows.items()}


def squared_norms(gradients: dict[str, Tensor]) -> Tensor:
    """Return the squared norm of every example's gradient, in double precision."""
    return torch.stack([g.flatten(1).double().square().sum(1) for g in gradients.values()]).sum(0)


def clipped(gradients: dict[str, Tensor], clip_norm: float) -> dict[str, Tensor]:
    """Return the sum of the clipped gradients in double precision; one that is not finite counts as zero."""
    norms = squared_norms(gradients).sqrt()
    factors = torch.where(norms.isfinite(), (clip_norm / norms).clamp(max=1.0), 0.0)
    return {
        k: torch.einsum("n,nd->d", factors, g.flatten(1).double().nan_to_num(0.0, 0.0, 0.0)).view(g.shape[1:])
        for k, g in gradients.items()
    }


def assert_same(got: dict[str, Tensor], wanted: dict[str, Tensor], relative: float, floor: float = 0.0) -> None:
    """Compare every tensor and every example on its own scale: |difference| <= relative * |wanted| + floor, L2."""
    assert list(got) == list(wanted)
    for name, want in wanted.items():
        assert got[name].shape == want.shape, name
        difference = (got[name].double() - want.double()).flatten(1).norm(dim=1)
        scale = want.double().flatten(1).norm(dim=1)
        excess = (difference - relative * scale - floor).max() if len(want) else torch.tensor(-1.0)
        assert excess <= 0, f"{name}: off by {difference.tolist()} of {scale.tolist()}"
