"""RULSTM: an LSTM rolls over what is seen, a second one unrolls from each of its states to the action.

Source: Furnari and Farinella, "What Would You Expect? Anticipating Egocentric Actions with Rolling-Unrolling LSTMs and
Modality Attention", ICCV 2019 (arXiv:1905.09035); numbers of steps, dropout and contexts as in fpv-iplab/rulstm.
  rolling      h_t, c_t over dropout(x_1 .. x_t)
  unrolling    from (h_t, c_t) over x_t, repeated T - t + 1 times (t = 0 .. T - 1): p_t, the last hidden state
  scores       y_t = Linear(dropout(p_t)); those of the last `anticipation_steps` t are fitted to the label
  MATT         weighs the streams' y_t by their contexts [p_t, c_t] (matt.py)
  completion   sequence-completion pre-training: what unrolls is x_t .. x_{T-1}, the features that really come (T - t
               steps), so that the first LSTM learns to sum up and the second to foretell. It looks at what lies ahead:
               a model of this stage is a beginning for others and no anticipation.
The logits of the head are y_t of the `told_step`-th step from the end: with steps of 0.25 s, of which the last ends
0.25 s before the action, 4 is 1 s. Training fits auxiliary["steps"] (B, steps, classes) alone, which hold them.
Missing steps are left out, wherever they are: a sample's real ones count as its last. Where it has fewer than are
fitted, its first real step stands for those before it, as the public code repeats the first feature.
Differs: one classifier for each task. Contexts hold the unrolling hidden state, as in the public code (the text says
the rolling one). Streams may have different T, and samples may lack some: MATT then weighs the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .contract import FusionHead, Instances, Output, register
from .matt import MATT, fuse_scores, published_weights


class Branch(nn.Module):
    """Rolling and unrolling LSTM of one stream, and its classifiers. inputs: D. width: of both states."""

    def __init__(self, inputs: int, width: int, classes: Mapping[str, int], dropout: float) -> None:
        super().__init__()
        self.rolling, self.unrolling = nn.LSTMCell(inputs, width), nn.LSTMCell(inputs, width)
        self.dropout = nn.Dropout(dropout)
        self.classifiers = nn.ModuleDict({task: nn.Linear(width, count) for task, count in classes.items()})

    def forward(
        self, x: Tensor, real: Tensor | None, steps: int, *, completion: bool
    ) -> tuple[dict[str, Tensor], Tensor]:
        """x (B, T, D), real steps last; real bool (B, T). Of the last `steps` t: task -> y (B, steps, classes), and the
        contexts (B, steps, 2 width).
        """
        hidden, cell = self.roll(x, real, steps)
        last = self.unroll(x, hidden, cell, completion=completion)
        scores = {task: layer(self.dropout(last)) for task, layer in self.classifiers.items()}
        return scores, torch.cat([last, cell], -1)

    def roll(self, x: Tensor, real: Tensor | None, steps: int) -> tuple[Tensor, Tensor]:
        """h_t and c_t of the last `steps` t, each (B, steps, width)."""
        inputs = self.dropout(x)
        zeros = x.new_zeros(len(x), self.rolling.hidden_size)
        state = (zeros, zeros)
        kept = []
        for t in range(x.shape[1]):
            new = self.rolling(inputs[:, t], state)
            if real is not None:
                new = tuple(torch.where(real[:, t, None], a, b) for a, b in zip(new, state, strict=True))
            state = new
            kept.append(state)
        hidden, cell = (torch.stack(part, 1) for part in zip(*kept[-steps:], strict=True))
        return hidden, cell

    def unroll(self, x: Tensor, hidden: Tensor, cell: Tensor, *, completion: bool) -> Tensor:
        """p_t (B, steps, width) of states (B, steps, width) at the last t."""
        steps = hidden.shape[1]
        recent = x[:, -steps:]
        done = []
        # all t side by side: the i-th of them takes steps - i of what comes, or one x_t more; the last is ready first
        for j in range(steps if completion else steps + 1):
            active = steps - j if completion else min(steps, steps + 1 - j)
            if active < hidden.shape[1]:
                done.append(hidden[:, active:])
                hidden, cell = hidden[:, :active], cell[:, :active]
            # x of t + j where it really comes, else x_t: a mask of its own for each of them
            fed = recent[:, j : j + active] if completion else recent[:, :active]
            fed = self.dropout(fed).flatten(0, 1)
            after = self.unrolling(fed, (hidden.flatten(0, 1), cell.flatten(0, 1)))
            hidden, cell = (part.unflatten(0, (len(x), active)) for part in after)
        return torch.cat([hidden, *reversed(done)], 1)


class _Aligned(NamedTuple):
    """x (B, T, D), a sample's real steps last, zeros before; real bool (B, T), None where all are."""

    x: Tensor
    real: Tensor | None


@register("rulstm", paper="Furnari and Farinella, ICCV 2019", summary="an LSTM sums up, a second unrolls to the action")
class RULSTM(FusionHead):
    """Rolling-unrolling LSTMs, fused by MATT where there are several streams.

    width: of the states. dropout: of inputs, last states and MATT. anticipation_steps: how many of the last steps are
    fitted (S_ant). told_step: whose scores are the logits, counted from the end; tests report every step.
    sequence_completion: unroll over the features that really come; the pre-training of a branch.
    extras: modality_weights (B, streams), of the told step, with several streams.
    """

    optional_streams = True
    auxiliary_weights = {"steps": 1.0}
    main_weight = 0.0
    stepwise = "steps"

    def __init__(
        self,
        *,
        streams: Mapping[str, int],
        classes: Mapping[str, int],
        width: int = 1024,
        dropout: float = 0.8,
        anticipation_steps: int = 8,
        told_step: int = 4,
        sequence_completion: bool = False,
    ) -> None:
        super().__init__(streams=streams, classes=classes)
        if not 1 <= told_step <= anticipation_steps:
            raise ValueError(f"told_step is {told_step}; it is one of the {anticipation_steps} anticipation_steps")
        self.steps, self.told_step, self.completion = anticipation_steps, told_step, sequence_completion
        self.branches = nn.ModuleDict(
            {stream: Branch(size, width, self.classes, dropout) for stream, size in self.streams.items()}
        )
        self.matt = MATT([2 * width] * len(self.streams), dropout=dropout) if len(self.streams) > 1 else None

    def fuse(
        self,
        features: dict[str, Tensor],
        boxes: Instances | None,
        masks: dict[str, Tensor],
        *,
        losses: bool,
        extras: bool,
    ) -> Output:
        aligned = self._aligned(features, masks)
        steps = min(self.steps, next(iter(aligned.values())).x.shape[1])
        scores, contexts = {}, {}
        for stream, branch in self.branches.items():
            assert isinstance(branch, Branch)
            if stream in aligned:
                own, context = branch(*aligned[stream], steps, completion=self.completion)
                first = _first_real(aligned[stream].real, steps)
                scores[stream] = {task: _repeated(y, first) for task, y in own.items()}
                contexts[stream] = _repeated(context, first)
        output = Output({})
        if self.matt is None:
            fused = scores[next(iter(scores))]
        else:
            some = next(iter(contexts.values()))
            asked = [contexts.get(stream, torch.zeros_like(some)) for stream in self.streams]
            there = self._there(aligned, some) if masks or len(aligned) < len(self.streams) else None
            if there is not None:
                asked = [context.where(there[..., i, None], 0.0) for i, context in enumerate(asked)]
            weights = self.matt(asked, there)
            shares = torch.stack([weights[..., i] for i, stream in enumerate(self.streams) if stream in aligned], -1)
            fused = {task: fuse_scores(shares, [scores[stream][task] for stream in scores]) for task in self.classes}
            if extras:
                output.extras["modality_weights"] = weights[:, -min(self.told_step, steps)].detach()
        output.logits = {task: y[:, -min(self.told_step, steps)] for task, y in fused.items()}
        output.auxiliary["steps"] = fused
        return output

    def _aligned(self, features: dict[str, Tensor], masks: dict[str, Tensor]) -> dict[str, _Aligned]:
        longest = max(x.shape[1] for x in features.values())
        found = {}
        for stream, x in features.items():
            real = masks.get(stream)
            if real is not None:
                order = real.to(torch.uint8).argsort(dim=1, stable=True)
                real = real.take_along_dim(order, 1)
                # `where` and not a product: what stands in a masked step may be NaN
                x = torch.where(real[..., None], x.take_along_dim(order[..., None], 1), torch.zeros_like(x[:, :1]))
            if (short := longest - x.shape[1]) > 0:
                real = x.new_ones(x.shape[:2], dtype=torch.bool) if real is None else real
                x, real = nn.functional.pad(x, (0, 0, short, 0)), nn.functional.pad(real, (short, 0))
            found[stream] = _Aligned(x, real)
        return found

    def _there(self, aligned: dict[str, _Aligned], some: Tensor) -> Tensor:
        """bool (B, steps, streams)."""
        rows = []
        for stream in self.streams:
            real = aligned[stream].real if stream in aligned else some.new_zeros(len(some), 1, dtype=torch.bool)
            rows.append(some.new_ones(len(some), dtype=torch.bool) if real is None else real.any(1))
        return torch.stack(rows, -1)[:, None].expand(-1, some.shape[1], -1)


def _first_real(real: Tensor | None, steps: int) -> Tensor | None:
    """Which of the last `steps` is a sample's first real one: int64 (B,); real steps come last."""
    if real is None:
        return None
    return (steps - real[:, -steps:].sum(1)).clamp(max=steps - 1)


def _repeated(x: Tensor, first: Tensor | None) -> Tensor:
    """x (B, steps, ...) with its first real step in place of those before it."""
    if first is None:
        return x
    places = torch.arange(x.shape[1], device=x.device).maximum(first[:, None])
    return x.take_along_dim(places[..., None], 1)


def from_published(state: Mapping[str, Tensor], streams: Mapping[str, int], task: str = "action") -> dict[str, Tensor]:
    """The head's state of a published checkpoint (its `state_dict`): of one branch, or of the fusion of several, in the
    order of `streams`.

    Raises: ValueError where there are not as many branches as streams.
    """
    count = len({key.split(".")[1] for key in state if key.startswith("branches.")}) or 1
    if count != len(streams):
        raise ValueError(f"these weights have {count} branches; the head has {len(streams)}: {', '.join(streams)}")
    found = {}
    for number, stream in enumerate(streams):
        prefix = f"branches.{number}." if count > 1 else ""
        for ours, theirs in (("rolling", "rolling_lstm.lstm"), ("unrolling", "unrolling_lstm")):
            theirs = theirs if f"{prefix}{theirs}.weight_ih_l0" in state else f"{theirs}.lstm"
            for leaf in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                found[f"branches.{stream}.{ours}.{leaf}"] = state[f"{prefix}{theirs}.{leaf}_l0"]
        for leaf in ("weight", "bias"):
            found[f"branches.{stream}.classifiers.{task}.{leaf}"] = state[f"{prefix}classifier.1.{leaf}"]
    if count > 1:
        found |= {f"matt.{key}": value for key, value in published_weights(state).items()}
    return found
