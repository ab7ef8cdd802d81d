"""The recurrence of M-Mixer's units (eq. 11 to 14, see mmixer.py) with its gradient written out.

Automatic differentiation adds a product to the gradients of W_r, W_z and W_h for every step: for the few rows of a
step's batch that is writing megabytes for little arithmetic. Here the steps back in time are taken first, ROWS rows of
them, and then one product for all of these. `Recurrence` has the same in plain operations, and the tests compare both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Steps x batch of one product for the weights' gradients: large enough for fast kernels, small enough for a cache.
ROWS = 256


class Scan(torch.autograd.Function):
    """f~ (N, B, T, d), weights and norms to h_0 ... h_T. For tensors of one dtype; not for autocast."""

    @staticmethod
    def forward(
        ctx: Any,
        mixed: Tensor,
        gates_weight: Tensor,
        new_weight: Tensor,
        gates_gain: Tensor,
        gates_shift: Tensor,
        new_gain: Tensor,
        new_shift: Tensor,
        eps: float,
    ) -> tuple[Tensor, ...]:
        width = [mixed.shape[-1]]
        hidden, saved = [torch.zeros_like(mixed[:, :, 0])], []
        for step in mixed.unbind(2):
            h = hidden[-1]
            raw = torch.bmm(step + h, gates_weight).unflatten(-1, (2, -1))
            raw_normed, *raw_moments = torch.native_layer_norm(raw, width, None, None, eps)
            gates = torch.addcmul(gates_shift, raw_normed, gates_gain).sigmoid_()
            reset, update = gates.unbind(2)
            raw_new = torch.bmm(torch.addcmul(step, reset, h), new_weight)
            new_normed, *new_moments = torch.native_layer_norm(raw_new, width, None, None, eps)
            new = torch.addcmul(new_shift, new_normed, new_gain).tanh_()
            hidden.append(torch.addcmul(h, update, new - h))
            saved += [raw, *raw_moments, gates, raw_new, *new_moments, new]
        ctx.eps = eps
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(mixed, gates_weight, new_weight, gates_gain, new_gain, *hidden[:-1], *saved)
        return tuple(hidden)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        mixed, gates_weight, new_weight, gates_gain, new_gain, *rest = ctx.saved_tensors
        units, batch, steps, width = mixed.shape
        hidden, saved = rest[:steps], [rest[at : at + 8] for at in range(steps, len(rest), 8)]
        d_mixed = torch.empty_like(mixed)
        d_gates_weight, d_new_weight = torch.zeros_like(gates_weight), torch.zeros_like(new_weight)
        d_gates_gain, d_gates_shift = torch.zeros_like(gates_gain), torch.zeros_like(gates_gain)
        d_new_gain, d_new_shift = torch.zeros_like(new_gain), torch.zeros_like(new_gain)
        last = grads[-1]
        d_h = torch.zeros_like(mixed[:, :, 0]) if last is None else last
        length = max(1, ROWS // batch)
        for end in range(steps, 0, -length):
            chunk = range(max(0, end - length), end)
            # what needs no gradient from later steps, for the whole chunk: (units, steps, batch, ...)
            h = torch.stack([hidden[t] for t in chunk], 1)
            raw, gates, raw_new, new = (torch.stack([saved[t][i] for t in chunk], 1) for i in (0, 3, 4, 7))
            reset, update = gates.unbind(3)
            to_new = update * (1 - new * new)
            to_gates = gates * (1 - gates) * torch.stack([h, new - h], 3)
            to_raw, to_raw_new, kept = to_gates * gates_gain[:, None], to_new * new_gain[:, None], 1 - update
            found: list[tuple[Tensor, ...]] = []
            for at in reversed(range(len(chunk))):
                raw_t, raw_mean, raw_rstd, _, raw_new_t, new_mean, new_rstd, _ = saved[chunk[at]]
                d_raw_new = _through_norm(d_h * to_raw_new[:, at], raw_new_t, new_mean, new_rstd)
                d_inner = torch.bmm(d_raw_new, new_weight.mT)
                d_raw = torch.stack([d_inner, d_h], 2) * to_raw[:, at]
                d_raw = _through_norm(d_raw, raw_t, raw_mean, raw_rstd)
                d_outer = torch.bmm(d_raw.flatten(2), gates_weight.mT)
                found.append((d_h, d_raw_new, d_inner, d_raw, d_outer))
                d_h = torch.addcmul(torch.addcmul(d_outer, d_inner, reset[:, at]), d_h, kept[:, at])
                given = grads[chunk[at]]
                d_h = d_h if given is None else d_h + given
            all_h, all_raw_new, all_inner, all_raw, all_outer = (
                torch.stack(parts[::-1], 1) for parts in zip(*found, strict=True)
            )
            step = mixed[:, :, chunk.start : chunk.stop].transpose(1, 2)
            d_mixed[:, :, chunk.start : chunk.stop] = (all_inner + all_outer).transpose(1, 2)
            d_gates_weight.baddbmm_((step + h).flatten(1, 2).mT, all_raw.flatten(3).flatten(1, 2))
            d_new_weight.baddbmm_(torch.addcmul(step, reset, h).flatten(1, 2).mT, all_raw_new.flatten(1, 2))
            d_gates = torch.stack([all_inner, all_h], 3) * to_gates
            d_gates_gain += (d_gates * F.layer_norm(raw, [width], eps=ctx.eps)).sum((1, 2))[:, None]
            d_gates_shift += d_gates.sum((1, 2))[:, None]
            d_new = all_h * to_new
            d_new_gain += (d_new * F.layer_norm(raw_new, [width], eps=ctx.eps)).sum((1, 2))[:, None]
            d_new_shift += d_new.sum((1, 2))[:, None]
        d_norms = d_gates_gain, d_gates_shift, d_new_gain, d_new_shift
        return d_mixed, d_gates_weight, d_new_weight, *d_norms, None


def _through_norm(grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    """The gradient before a layer norm without gain and shift, of the gradient after it."""
    wanted = [True, False, False]
    return torch.ops.aten.native_layer_norm_backward(grad, x, x.shape[-1:], mean, rstd, None, None, wanted)[0]
