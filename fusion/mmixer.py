"""M-Mixer: each stream is encoded in time by a recurrent unit that sees what all the other streams are about.

Source: Lee, Woo, Park, Nugroho and Kim, "Modality Mixer for Multi-modal Action Recognition", WACV 2023
(arXiv:2208.11314); equation numbers are the paper's. No code was published.

c^i = ASO(f^i) sums up stream i (eq. 2), g^i is the others' c side by side (eq. 3), h_t^i = MCU^i(f_t^i, g^i) (eq. 4),
and the last hidden states of all streams, side by side, are classified (eq. 5). MCU, the multi-modal contextualization
unit, has a mix module (eq. 7 to 10) and reset and update gates (eq. 11 to 14).

Fast where the equations would be slow: only the products with h_{t-1} wait for the step before. The mix module runs for
all steps at once, g^i is projected once, and W_s [f; g] is W_sf f + W_sg g, of which the second part is constant in
time. W_r and W_z are one matrix, and the units of all streams run side by side in one batched product. In training,
the gradients of the recurrent weights are summed over many steps at once (mmixer_scan.py).

Choices where the text is silent: layer norms have a gain and a shift; h_0 is zeros; ASO by GRU has width d_h and gives
its last state. The mix module as "simple concatenation" (Table 3, II) is W_m [f; g] of the two embeddings of eq. 7 and
8: something has to bring them to the width d_h that eq. 11 wants, and W_m has the size of W_s.
A stream that a sample lacks has a content of zeros and a last hidden state of zeros; unknown steps are skipped.
Differs: any number of tasks, one classifier each. The classifiers of single streams (eq. 15, 16) learn at the same time
as the network and not after it; what they learn from is detached, so the network is as if they were not there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .contract import FusionHead, Instances, Output, State, masked_mean, register
from .mmixer_scan import Scan

Summary = Literal["avg", "max", "gru"]
Unit = Literal["mcu", "lstm", "gru"]
Content = Literal["cross", "self"]
EPS = 1e-5


# Gain and shift of a layer norm; None = there is no norm.
Affine = tuple[Tensor, Tensor] | None


class StackedNorm(nn.Module):
    """Layer norm over the last axis, with a gain and a shift (*shape) that broadcast to the input."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(shape))
        self.shift = nn.Parameter(torch.zeros(shape))

    @property
    def affine(self) -> Affine:
        return self.gain, self.shift


def normed(x: Tensor, affine: Affine) -> Tensor:
    if affine is None:
        return x
    gain, shift = affine
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=EPS), gain)


class MixModule(nn.Module):
    """Cross-modality mix module, eq. 7 to 10, of all streams at once.

    widths: D_i of the streams' features. contents: widths of what each is mixed with. width: d_h.
    mix: False = W_m [f; g] in place of eq. 9 and 10.
    """

    def __init__(
        self, widths: Sequence[int], contents: Sequence[int], width: int, *, mix: bool = True, layer_norm: bool = True
    ) -> None:
        super().__init__()
        self.embed = nn.ModuleList(_embedding(size, width, layer_norm) for size in widths)
        self.embed_content = nn.ModuleList(_embedding(size, width, layer_norm) for size in contents)
        self.mix = mix
        self.joint = _stacked_weight(len(widths), 2 * width, width)
        self.joint_norm = StackedNorm(len(widths), 1, width) if layer_norm else None

    def forward(self, features: Sequence[Tensor], contents: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """features: N of (B, T, D_i). contents: N of (B, C_i). f~ (N, B, T, width), and s, None without mixing."""
        f = torch.stack([layer(x).tanh() for layer, x in zip(self.embed, features, strict=True)])
        g = torch.stack([layer(x).tanh() for layer, x in zip(self.embed_content, contents, strict=True)])[:, :, None]
        of_feature, of_content = self.joint.chunk(2, 1)
        joint = _product(f, of_feature) + _product(g, of_content)
        joint = normed(joint.flatten(1, 2), self.joint_norm and self.joint_norm.affine).view(joint.shape)
        if not self.mix:
            return joint, None
        share = joint.sigmoid()
        return g + share * (f - g), share


class Recurrence(nn.Module):
    """Reset and update module, eq. 11 to 14, of `count` units side by side.

    scan: False = plain operations always, also where mmixer_scan.py computes the same with a faster gradient. For
    second derivatives and torch.func.
    """

    scan = True

    def __init__(self, count: int, width: int, *, layer_norm: bool = True) -> None:
        super().__init__()
        self.width = width
        # [W_r, W_z] and W_h; a row vector times them
        self.gates = _stacked_weight(count, width, 2 * width)
        self.candidate = _stacked_weight(count, width, width)
        self.gates_norm = StackedNorm(count, 1, 2, width) if layer_norm else None
        self.candidate_norm = StackedNorm(count, 1, width) if layer_norm else None

    def forward(self, mixed: Tensor) -> list[Tensor]:
        """mixed: f~ (N, B, T, width). The hidden states h_0 (zeros) to h_T: T + 1 of (N, B, width)."""
        gates_norm = self.gates_norm and self.gates_norm.affine
        candidate_norm = self.candidate_norm and self.candidate_norm.affine
        if (
            self.scan
            and gates_norm
            and candidate_norm
            and torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and not torch.is_autocast_enabled(mixed.device.type)
        ):
            return list(Scan.apply(mixed, self.gates, self.candidate, *gates_norm, *candidate_norm, EPS))
        hidden = [torch.zeros_like(mixed[:, :, 0])]
        for step in mixed.unbind(2):
            weights = self.gates, self.candidate, gates_norm, candidate_norm
            hidden.append(_step(step, hidden[-1], *weights))  # pyright: ignore[reportCallIssue]
        return hidden


# torch.compile unrolls the loop over time; so marked, it compiles one step and not each of them anew
@torch.compiler.nested_compile_region
def _step(
    mixed: Tensor,
    hidden: Tensor,
    gates: Tensor,
    candidate: Tensor,
    gates_norm: Affine,
    candidate_norm: Affine,
) -> Tensor:
    """h_t of f~_t and h_{t-1}, all (N, B, width)."""
    both = torch.bmm(mixed + hidden, gates).unflatten(-1, (2, -1))
    reset, update = normed(both, gates_norm).sigmoid().unbind(2)
    new = torch.bmm(torch.addcmul(mixed, reset, hidden), candidate)
    new = normed(new, candidate_norm).tanh()
    return torch.addcmul(hidden, update, new - hidden)


class MCU(nn.Module):
    """Multi-modal contextualization units, one for each stream, side by side: eq. 7 to 14."""

    def __init__(
        self, widths: Sequence[int], contents: Sequence[int], width: int, *, mix: bool = True, layer_norm: bool = True
    ) -> None:
        super().__init__()
        self.mix = MixModule(widths, contents, width, mix=mix, layer_norm=layer_norm)
        self.recurrence = Recurrence(len(widths), width, layer_norm=layer_norm)

    def forward(self, features: Sequence[Tensor], contents: Sequence[Tensor]) -> tuple[list[Tensor], Tensor | None]:
        """features: N of (B, T, D_i). contents: N of (B, C_i).

        The hidden states h_0 (zeros) to h_T, T + 1 of (N, B, width); and s (N, B, T, width), how much of each channel
        comes from the stream itself.
        """
        mixed, share = self.mix(features, contents)
        return self.recurrence(mixed), share


@register("mmixer", paper="Lee et al., WACV 2023", summary="recurrent units that see the content of the other streams")
class MMixer(FusionHead):
    """M-Mixer.

    width: d_h. aso: what sums a stream up, "avg", "max" or "gru" (Table 1).
    unit: "mcu", or "lstm" or "gru" of the stream alone (Table 2), for which the options below say nothing.
    content: "cross" = the others' (two streams or more), "self" = the stream's own (MCU-self, Table 4).
    mix: False puts concatenation in the place of the mix module (Table 3, II). layer_norm: False leaves all out (III).
    unimodal: also classify each stream's last hidden state alone (eq. 15), in auxiliary["unimodal/STREAM"].
    extras: integration_score (B, streams, T), s_t averaged over channels: how much of a step is the stream's own. The
        steps are a sample's real ones; NaN stands behind the last.
    """

    optional_streams = True

    def __init__(
        self,
        *,
        streams: Mapping[str, int],
        classes: Mapping[str, int],
        width: int = 512,
        aso: Summary = "avg",
        unit: Unit = "mcu",
        content: Content = "cross",
        mix: bool = True,
        layer_norm: bool = True,
        unimodal: bool = True,
    ) -> None:
        super().__init__(streams=streams, classes=classes)
        for option, value, allowed in (("aso", aso, Summary), ("unit", unit, Unit), ("content", content, Content)):
            if value not in get_args(allowed):
                raise ValueError(f"{option} is {value!r}; it is one of {', '.join(map(repr, get_args(allowed)))}")
        if unit == "mcu" and content == "cross" and len(self.streams) < 2:
            raise ValueError(
                f"content='cross' needs two streams or more and got {', '.join(self.streams)}; "
                "content='self' works with one"
            )
        self.width, self.aso, self.content = width, aso, content
        # An MCU mixes every step with the content of the whole sequence (eq. 2, 3), what is still to come as well.
        self.recurrent = unit != "mcu"
        sizes = list(self.streams.values())
        self.units: MCU | None = None
        self.plain_units = self.summaries = None
        if unit == "mcu":
            own = [width] * len(sizes) if aso == "gru" else sizes
            mixed_with = own if content == "self" else [sum(own) - size for size in own]
            self.units = MCU(sizes, mixed_with, width, mix=mix, layer_norm=layer_norm)
            if aso == "gru":
                self.summaries = nn.ModuleList(nn.GRU(size, width, batch_first=True) for size in sizes)
        else:
            make = nn.LSTM if unit == "lstm" else nn.GRU
            self.plain_units = nn.ModuleList(make(size, width, batch_first=True) for size in sizes)
        self.classifiers = nn.ModuleDict(
            {task: nn.Linear(len(sizes) * width, count) for task, count in self.classes.items()}
        )
        self.unimodal = nn.ModuleDict()
        if unimodal:
            for stream in self.streams:
                self.unimodal[stream] = nn.ModuleDict(
                    {task: nn.Linear(width, count, bias=False) for task, count in self.classes.items()}
                )

    def fuse(
        self,
        features: dict[str, Tensor],
        boxes: Instances | None,
        masks: dict[str, Tensor],
        *,
        losses: bool,
        extras: bool,
    ) -> Output:
        packed, counts = self._packed(features, masks)
        share = None
        if self.plain_units is not None:
            last = _last_states(self.plain_units, packed, counts)
        else:
            assert self.units is not None
            hidden, share = self.units(packed, self._contents(packed, counts))
            last = hidden[-1] if counts is None else _after(counts, torch.stack(hidden, 2))
        output = self._classify(last, features)
        if extras and share is not None:
            score = share.detach().mean(-1)
            if counts is not None:
                score = score.where(_first(counts, score.shape[-1]), torch.nan)
            output.extras["integration_score"] = score.transpose(0, 1)
        return output

    def advance(
        self, features: dict[str, Tensor], masks: dict[str, Tensor], state: State | None
    ) -> tuple[Output, State]:
        assert self.plain_units is not None
        packed, counts = self._packed(features, masks)
        new = []
        for i, (unit, x) in enumerate(zip(self.plain_units, packed, strict=True)):
            real = None if counts is None else _first(counts[i], x.shape[1])
            new.append(_advance(unit, x, real, None if state is None else state[i]))
        return self._classify(torch.stack([unit[0][-1] for unit in new]), features), new

    def _classify(self, last: Tensor, features: Mapping[str, Tensor]) -> Output:
        """The last hidden states (N, B, width) as logits, of all streams and of each that is there."""
        joint = last.transpose(0, 1).flatten(1)
        output = Output({task: layer(joint) for task, layer in self.classifiers.items()})
        for i, stream in enumerate(self.streams):
            if stream in self.unimodal and stream in features:
                layers = self.unimodal[stream]
                assert isinstance(layers, nn.ModuleDict)
                state = last[i].detach()
                output.auxiliary[f"unimodal/{stream}"] = {task: layer(state) for task, layer in layers.items()}
        return output

    def _packed(self, features: dict[str, Tensor], masks: dict[str, Tensor]) -> tuple[list[Tensor], Tensor | None]:
        """All streams (B, T, D), a sample's real steps first and zeros behind them; how many are real, int64 (N, B).

        None in place of the numbers where all steps of all streams are real.
        """
        some = next(iter(features.values()))
        steps = max(x.shape[1] for x in features.values())
        packed, counts = [], []
        for stream, width in self.streams.items():
            x = features.get(stream)
            if x is None:
                x = some.new_zeros(len(some), steps, width)
                count = torch.zeros(len(some), dtype=torch.int64, device=some.device)
            elif stream in masks:
                mask = masks[stream]
                count = mask.sum(1)
                order = mask.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
                # `where` and not a product: what stands in a masked step may be NaN
                x = x.take_along_dim(order[..., None], 1).where(_first(count, x.shape[1])[..., None], 0.0)
            else:
                count = torch.full((len(x),), x.shape[1], device=x.device)
            packed.append(x if x.shape[1] == steps else F.pad(x, (0, 0, 0, steps - x.shape[1])))
            counts.append(count)
        complete = not masks and all(x is not None and x.shape[1] == steps for x in map(features.get, self.streams))
        return packed, None if complete else torch.stack(counts)

    def _contents(self, packed: list[Tensor], counts: Tensor | None) -> list[Tensor]:
        """What each unit mixes its features with (B, C_i): eq. 2 and 3."""
        if self.summaries is not None:
            own = list(_last_states(self.summaries, packed, counts))
        else:
            own = []
            for i, x in enumerate(packed):
                real = None if counts is None else _first(counts[i], x.shape[1])
                if self.aso == "avg":
                    own.append(masked_mean(x, real))
                elif real is None:
                    own.append(x.amax(1))
                else:
                    own.append(x.where(real[..., None], -torch.inf).amax(1).where(real.any(1, keepdim=True), 0.0))
        if self.content == "self":
            return own
        return [torch.cat([c for j, c in enumerate(own) if j != i], -1) for i in range(len(own))]


def _first(counts: Tensor, steps: int) -> Tensor:
    """bool (..., steps), True for the first `counts` (...) of them."""
    return torch.arange(steps, device=counts.device) < counts[..., None]


def _after(counts: Tensor, states: Tensor) -> Tensor:
    """The state after `counts` (...) steps, of the states (..., T + 1, width) before the first step and after each."""
    return states.take_along_dim(counts[..., None, None], -2).squeeze(-2)


def _last_states(units: nn.ModuleList, packed: list[Tensor], counts: Tensor | None) -> Tensor:
    """The last hidden state of each LSTM or GRU over its stream: (N, B, width)."""
    states = [unit(x)[0] for unit, x in zip(units, packed, strict=True)]
    if counts is None:
        return torch.stack([x[:, -1] for x in states])
    return _after(counts, F.pad(torch.stack(states), (0, 0, 1, 0)))


def _advance(unit: Any, x: Tensor, real: Tensor | None, state: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
    """The state (h, and c of an LSTM, each (1, B, width)) after x (B, T, D); steps that are not real leave it as it is.

    state None: zeros.
    """
    if state is None:
        zeros = x.new_zeros(1, len(x), unit.hidden_size)
        state = (zeros, zeros) if isinstance(unit, nn.LSTM) else (zeros,)
    for part, kept in [(x, None)] if real is None else zip(x.split(1, 1), real.split(1, 1), strict=True):
        after = unit(part, state if len(state) == 2 else state[0])[1]
        after = after if isinstance(after, tuple) else (after,)
        if kept is not None:
            after = tuple(torch.where(kept[None], new, old) for new, old in zip(after, state, strict=True))
        state = after
    return state


def _embedding(inputs: int, width: int, layer_norm: bool) -> nn.Module:
    linear = nn.Linear(inputs, width, bias=False)
    return nn.Sequential(linear, nn.LayerNorm(width, eps=EPS)) if layer_norm else linear


def _stacked_weight(count: int, inputs: int, outputs: int) -> nn.Parameter:
    """`count` matrices (inputs, outputs), drawn as nn.Linear draws its own."""
    return nn.Parameter(torch.empty(count, inputs, outputs).uniform_(-1.0, 1.0) / math.sqrt(inputs))


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """(N, B, T, D) times (N, D, E)."""
    return torch.bmm(x.flatten(1, 2), weight).unflatten(1, x.shape[1:3])
