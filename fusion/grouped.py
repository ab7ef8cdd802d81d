"""Several layers of one shape, each with weights and inputs of its own, computed in one call.

Six attention modules called in turn start six times as many kernels, each too small to fill a GPU. Here the groups'
weights stand in one tensor, group first. weight[g] is (inputs, outputs), the transpose of nn.Linear's: with the other
order the gradient comes out transposed and is copied at every step, which costs a CPU up to half of the time. What has
one value per channel is stored flat, (groups * D), so that an optimizer that exempts one-dimensional parameters from
weight decay does so here too.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GroupedAttention(nn.Module):
    """Multi-head attention (Vaswani et al., NeurIPS 2017, section 3.2.2) of `groups` pairs of inputs.

    Without biases, as printed there: softmax(Q W_Q (K W_K)^T / sqrt(D / heads)) V W_V per head, concatenated, W_O. A
    sample without any key thus gets exact zeros.
    State: query, out (groups, D, D); key_value (groups, D, 2 D), keys first.
    """

    def __init__(self, groups: int, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"attention of width {width} cannot have {heads} heads; the width must be a multiple")
        self.heads = heads
        self.query = nn.Parameter(torch.empty(groups, width, width))
        self.key_value = nn.Parameter(torch.empty(groups, width, 2 * width))
        self.out = nn.Parameter(torch.empty(groups, width, width))
        for weight in self.parameters():
            bound = math.sqrt(6 / (2 * width))  # Glorot's, of one D x D layer
            nn.init.uniform_(weight, -bound, bound)

    def forward(
        self,
        query: Tensor,
        source: Tensor,
        *,
        values: Tensor | None = None,
        keep: Tensor | None = None,
        with_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """query (G, B, L, D) attends to source (G, B, S, D): (G, B, L, D), and the heads' mean weights (G, B, L, S).

        values: (G, B, S, D) where values are not made of what keys are made of. keep: bool (G, B, S), False for keys
        that are padding. The weights are None unless `with_weights`.
        """
        groups, batch, steps, width = query.shape
        if values is None:
            key, value = _linear(source, self.key_value).chunk(2, -1)
        else:
            of_keys, of_values = self.key_value.chunk(2, 2)
            key, value = _linear(source, of_keys), _linear(values, of_values)
        q, k, v = map(self._split, (_linear(query, self.query), key, value))
        mask = empty = weights = None
        if keep is not None:
            kept = keep.flatten(0, 1)[:, None, None, :]
            empty = ~kept.any(-1, keepdim=True)
            mask = kept | empty  # a row of the softmax without any key would be NaN, also backwards
        if with_weights:
            scores = q @ k.mT / math.sqrt(q.shape[-1])
            weights = (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1)
            mixed = weights @ v
            weights = weights if empty is None else weights.masked_fill(empty, 0.0)
            weights = weights.mean(1).unflatten(0, (groups, batch))
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask)
        if empty is not None:
            mixed = mixed.masked_fill(empty, 0.0)
        return _linear(mixed.transpose(1, 2).reshape(groups, batch, steps, width), self.out), weights

    def _split(self, x: Tensor) -> Tensor:
        """(G, B, L, D) -> (G B, heads, L, D / heads)"""
        return x.flatten(0, 1).unflatten(-1, (self.heads, -1)).transpose(1, 2)


class GroupedNorm(nn.Module):
    """LayerNorm of x (G, B, L, D). State: weight, bias (groups * D)."""

    def __init__(self, groups: int, width: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.ones(groups * width))
        self.bias = nn.Parameter(torch.zeros(groups * width))

    def forward(self, x: Tensor, pool: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """pool: a weighted mean over L; it is taken before gain and bias, which then see (G, B, D) and not all of x."""
        x = F.layer_norm(x, x.shape[-1:])
        x = x if pool is None else pool(x)
        weight, bias = (p.view(self.groups, *[1] * (x.ndim - 2), -1) for p in (self.weight, self.bias))
        return torch.addcmul(bias, x, weight)


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    """x (G, B, L, D), weight (G, D, E) -> (G, B, L, E)"""
    return torch.bmm(x.flatten(1, 2), weight).unflatten(1, x.shape[1:3])
