"""Multi-head attention (Vaswani et al., "Attention Is All You Need", NeurIPS 2017) as the heads here need it.

Beside torch.nn.MultiheadAttention: weights are computed only where they are asked for, keys can carry an additive
log-weight (a weighted softmax, which the fused kernels take as they take a mask), and a sample without any key to look
at gets zeros instead of NaN.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MultiHeadAttention(nn.Module):
    """softmax(Q K^T / sqrt(D / heads) + log_weights) V over `heads` slices of the channels.

    width: D of queries and of the output. source_width: of keys and values, None = `width`.
    dropout: of attention weights, in training. bias: of the four projections.
    """

    def __init__(
        self, width: int, heads: int, *, source_width: int | None = None, dropout: float = 0.0, bias: bool = True
    ) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"attention of width {width} cannot have {heads} heads; the width must be a multiple")
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width, bias=bias)
        self.key_value = nn.Linear(source_width or width, 2 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)
        for weight in (self.query.weight, *self.key_value.weight.chunk(2), self.out.weight):
            nn.init.xavier_uniform_(weight)
        if bias:
            for layer in (self.query, self.key_value, self.out):
                nn.init.zeros_(layer.bias)

    def forward(
        self,
        query: Tensor,
        source: Tensor,
        *,
        keep: Tensor | None = None,
        log_weights: Tensor | None = None,
        with_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """query (B, L, D) attends to source (B, S, D): the new (B, L, D), and (B, heads, L, S) if `with_weights`.

        keep: bool (B, S), False for keys that are padding; a sample with none to keep gets zeros before `out`.
        log_weights: added to the scores; anything that broadcasts to (B, heads, L, S).
        """
        q = self._split(self.query(query))
        k, v = map(self._split, self.key_value(source).chunk(2, -1))
        bias = None if log_weights is None else log_weights.to(q)
        empty = None
        if keep is not None:
            empty = ~keep.any(-1)[:, None, None, None]
            # an empty sample keeps all its keys: a row of the softmax without any would be NaN, also backwards
            score = torch.zeros((), dtype=q.dtype, device=q.device) if bias is None else bias
            bias = torch.where(keep[:, None, None, :] | empty, score, -torch.inf)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if with_weights:
            scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
            weights = (scores if bias is None else scores + bias).softmax(-1)
            if empty is not None:
                weights = weights.masked_fill(empty, 0.0)
            mixed = F.dropout(weights, dropout) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, bias, dropout_p=dropout)
            if empty is not None:
                mixed = mixed.masked_fill(empty, 0.0)
        return self.out(mixed.transpose(1, 2).flatten(2)), weights

    def _split(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, heads, L, D / heads)"""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
