"""Embedding: a gradient with a row for every token that an example holds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import ModelError
from .base import Forward, Tape, full_precision, register, zero_rows


class _EmbeddingRecord:
    """Holds token numbers and output gradients; never n x vocabulary x width unless asked for."""

    def __init__(self, module: nn.Embedding, tokens: Tensor, b: Tensor) -> None:
        self.module, self.tokens, self.b = module, tokens, b

    def squared_norms(self) -> Tensor:
        # Rows of one token add up before they are squared: sum over pairs of positions with the same token.
        same = self.tokens.unsqueeze(2) == self.tokens.unsqueeze(1)
        b = self.b.double()  # the sum can cancel
        return ((b @ b.transpose(1, 2)) * same).sum((1, 2)).clamp_(min=0.0)

    def weighted_sum(self, weights: Tensor) -> dict[str, Tensor]:
        rows = (self.b * weights.to(self.b.dtype).view(-1, 1, 1)).flatten(0, 1)
        total = rows.new_zeros(self.module.weight.shape)
        return {"weight": total.index_add_(0, self.tokens.flatten(), rows)}

    def per_example(self) -> dict[str, Tensor]:
        n, positions, width = self.b.shape
        total = self.b.new_zeros(n, self.module.num_embeddings, width)
        index = self.tokens.unsqueeze(2).expand(n, positions, width)
        return {"weight": total.scatter_add_(1, index, self.b)}

    def without(self, dropped: Tensor) -> _EmbeddingRecord:
        return _EmbeddingRecord(self.module, self.tokens, zero_rows(self.b, dropped))


def _record(module: nn.Embedding, tokens: Tensor, b: Tensor, tape: Tape) -> _EmbeddingRecord:
    tokens, b = tape.even(module, tokens), tape.even(module, full_precision(b))
    tokens = tokens.reshape(len(tokens) // tape.per_unit, -1)
    b = b.reshape(*tokens.shape, -1)
    if module.padding_idx is not None:
        b = b * (tokens != module.padding_idx).unsqueeze(2)
    return _EmbeddingRecord(module, tokens, b)


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor, module: nn.Embedding, tape: Tape) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.module, ctx.tape = module, tape
        return F.embedding(tokens, weight, module.padding_idx)

    @staticmethod
    def backward(ctx: Any, b: Tensor) -> tuple[None, ...]:  # type: ignore[override]
        (tokens,) = ctx.saved_tensors
        ctx.tape.add(ctx.module, _record(ctx.module, tokens, b, ctx.tape))
        return None, None, None, None


@register(nn.Embedding)
def embedding(module: nn.Embedding, tape: Tape) -> Forward:
    if module.scale_grad_by_freq or module.max_norm is not None:
        raise ModelError("Embedding with scale_grad_by_freq or max_norm depends on the whole batch: turn both off")
    return lambda tokens: _Embedding.apply(tokens, module.weight, module, tape)
