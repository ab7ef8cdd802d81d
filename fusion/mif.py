"""Multi-round Interactive Fusion: every stream queries every other (parallel), or one after the other (progressive).

Source: "Multimodal Interactive Fusion for Action Anticipation" (anonymous submission, paper 6); no code is public.
  stage 1  F_i = DPES(X_i)                                              equation 1
  stage 2  DMF(F_i, F_j) = LN(MHCA(F_i, F_j) + F_i)                     equations 2, 3; F_i asks, F_j is looked at
           parallel: F_s = sum over ordered pairs                       equation 4
           progressive: F_n = DMF(F_r, F_o), F_s' = DMF(F_n, F_f)       equations 5, 6
  stage 3  F_m = Linear(LN(MLP(F_s) + F_s))                             equation 7
Ablations: table V (`query`, `pairing`) and table VI (`order`); table II's other strategies are in strategies.py.

Chosen where the text is silent; what has a name in brackets is an option of every head:
- A stream is first projected to a common `width` by a linear layer: objects have 352 channels, RGB and flow 1024.
- MHSA and MHCA are those of Vaswani et al. as printed, so without biases; `heads` 8.
- Positions are their sinusoids (`positions`; or learned, one table per stream and place, for at most `max_steps`). They
  are counted from the first real step, of all streams together where these have the same T.
- DPES(X): Z = X + P, F = LN(Z + MHSA(Z)) + P': the second embedding tells stage 2, where streams meet, when things are
  (`second_position="output"`). "query_key" adds it to queries and keys inside MHSA instead, "none" leaves it out.
- Residual and LayerNorm of DPES are those of equation 3. `dropout` is applied after the first positions, after MHSA and
  MHCA before their residual, and twice in the MLP.
- MLP: two layers, `mlp_ratio` times as wide between, `activation`. Every task has a stage 3 of its own (`stage3=
  "per_task"`); "shared" shares all of it but the last Linear.
- Stage 3 is fed with one vector per clip: the mean over time of F_s (`pool="mean"`), or its last real step. Every
  F'_ij is pooled by its own stream's steps and then summed, so streams may differ in T; with equal T and no mask this
  is the pooled sum of equation 4.
- More than three streams: all ordered pairs, or a longer chain. "Diff-All" with more: all ordered triples.
- Two streams, progressive (section III-A): DMF(DMF(F_r, F_f), F_r). The text names the keys and values of the second
  DMF only; that the result of the first asks is taken from equation 6.
- A sample that lacks a stream: pairs with it are left out of the sum; where no pair is left, the one stream counts by
  LN(F_i), its pairs without MHCA. A sample without the asking stream (`query="rgb"`) has F_s = 0. In a chain the DMF of
  a missing stream is skipped, and the first stream that is there begins it.

State: stage1 holds the streams in their order, DMF of the parallel form the pairs in the order of `head.pairs`; the
layout of such tensors is told in grouped.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from .contract import Instances, Output, one_of, register
from .grouped import GroupedAttention, GroupedNorm
from .mif_stages import (
    DPES,
    Activation,
    Classifier,
    Design,
    Pool,
    PositionKind,
    SecondPosition,
    Sharing,
    StreamsHead,
    pool_steps,
)

PAPER = "Multimodal Interactive Fusion (anonymous, paper 6)"
Pairing = Literal["pairs", "diff_all"]


class DMF(nn.Module):
    """LN(MHCA(F_i, F_j) + F_i), equations 2 and 3, of `groups` pairs, each with its own weights."""

    def __init__(self, groups: int, design: Design) -> None:
        super().__init__()
        self.attention = GroupedAttention(groups, design.width, design.heads)
        self.norm = GroupedNorm(groups, design.width)
        self.dropout = nn.Dropout(design.dropout)

    def forward(
        self,
        query: Tensor,
        source: Tensor,
        *,
        values: Tensor | None = None,
        keep: Tensor | None = None,
        with_weights: bool = False,
        pool: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """query F_i (G, B, L, D), source F_j (G, B, S, D) -> F'_ij (G, B, L, D), weights: see GroupedAttention.

        pool: a weighted mean over L, for F'_ij (G, B, D).
        """
        mixed, weights = self.attention(query, source, values=values, keep=keep, with_weights=with_weights)
        return self.norm(self.dropout(mixed) + query, pool), weights


class MIFParallel(StreamsHead):
    """Parallel MIF, equation 4. Features: sequences (B, T, D), two streams or more, T may differ.

    query: "all", or the one stream that asks (F_i-Q of table V). pairing: "pairs", or "diff_all": queries, keys and
    values of three different streams (table V), which then must have the same T.
    pairs: (asking, looked at) or (asking, keys, values): the order of the groups of `fusion`.
    extras: attention/ASKING/LOOKED_AT (B, T, T'), attention/ASKING/KEYS/VALUES of "diff_all": the heads' mean weights.
    """

    def __init__(
        self,
        *,
        streams: Mapping[str, int],
        classes: Mapping[str, int],
        query: str = "all",
        pairing: Pairing = "pairs",
        design: Design,
    ) -> None:
        super().__init__(streams=streams, classes=classes, design=design)
        one_of("pairing", pairing, get_args(Pairing))
        if query != "all":
            one_of("query", query, ["all", *self.streams])
        least = 3 if pairing == "diff_all" else 2
        if len(self.streams) < least:
            raise ValueError(
                f"pairing {pairing!r} fuses {least} streams or more; it got {', '.join(map(repr, self.streams))}"
            )
        self.query = query
        self.same_steps, self.optional_streams = pairing == "diff_all", pairing == "pairs"
        self.pairs = [each for each in permutations(self.streams, least) if query in ("all", each[0])]
        places = {name: place for place, name in enumerate(self.streams)}
        self._roles = [[places[name] for name in role] for role in zip(*self.pairs, strict=True)]
        self.stage1 = DPES(len(self.streams), design)
        self.fusion = DMF(len(self.pairs), design)
        self.stage3 = Classifier(self.classes, design)

    def interact(
        self, x: Tensor, keep: Tensor | None = None, *, with_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Stage 2: F (S, B, T, D) -> pooled F' (pairs, B, D), weights (pairs, B, T, T'). keep: bool (S, B, T)."""
        asking, looked_at, *values = self._by_role(x)
        asks = seen = None
        if keep is not None:
            asks, *others = self._by_role(keep)
            seen = torch.stack(others).all(0)
        return self.fusion(
            asking,
            looked_at,
            values=values[0] if values else None,
            keep=seen,
            with_weights=with_weights,
            pool=lambda fused: pool_steps(fused, asks, self.design.pool),
        )

    def _by_role(self, x: Tensor) -> list[Tensor]:
        """Of streams (S, ...): who asks (pairs, ...), who is looked at, and with "diff_all" whose values."""
        of_stream = x.unbind()  # indexing would give each stream a gradient as large as all of them
        return [torch.stack([of_stream[place] for place in role]) for role in self._roles]

    def fuse(
        self,
        features: dict[str, Tensor],
        boxes: Instances | None,
        masks: dict[str, Tensor],
        *,
        losses: bool,
        extras: bool,
    ) -> Output:
        if self.query != "all" and self.query not in features:
            raise ValueError(f"features of {self.query!r} are missing; with query={self.query!r} it alone asks")
        x, keep, same_clock = self.stack(features, masks)
        pooled, weights = self.interact(self.stage1(x, keep, same_clock=same_clock), keep, with_weights=extras)
        if keep is not None:
            there = self._by_role(keep.any(-1))
            complete = torch.stack(there).all(0)
            used = complete | (there[0] & ~complete.any(0))
            pooled = pooled.masked_fill(~used[..., None], 0.0)
        output = Output(self.stage3(pooled.sum(0)))
        if weights is not None:
            output.extras = {f"attention/{'/'.join(p)}": w.detach() for p, w in zip(self.pairs, weights, strict=True)}
        return output


class MIFProgressive(StreamsHead):
    """Progressive MIF, equations 5 and 6. Features: sequences (B, T, D), two streams or more, T may differ.

    order: all streams: the first asks the second, the result asks the third, and so on (table VI); two streams: the
    result asks the first again.
    extras: attention/ASKING/LOOKED_AT (B, T, T'), the heads' mean weights; ASKING names what was fused, joined by "+".
    """

    def __init__(
        self,
        *,
        streams: Mapping[str, int],
        classes: Mapping[str, int],
        order: Sequence[str] | None = None,
        design: Design,
    ) -> None:
        super().__init__(streams=streams, classes=classes, design=design)
        if len(self.streams) < 2:
            raise ValueError(f"MIF fuses two streams or more; it got {', '.join(map(repr, self.streams))}")
        self.order = tuple(self.streams if order is None else order)
        if sorted(self.order) != sorted(self.streams):
            raise ValueError(f"order is {self.order}; it must name each of {tuple(self.streams)} once")
        self.sources = self.order[1:] + (self.order[:1] if len(self.order) == 2 else ())
        self.stage1 = DPES(len(self.streams), design)
        self.fusion = nn.ModuleList([DMF(1, design) for _ in self.sources])
        self.stage3 = Classifier(self.classes, design)

    def fuse(
        self,
        features: dict[str, Tensor],
        boxes: Instances | None,
        masks: dict[str, Tensor],
        *,
        losses: bool,
        extras: bool,
    ) -> Output:
        stacked, keep, same_clock = self.stack(features, masks)
        x = dict(zip(self.streams, self.stage1(stacked, keep, same_clock=same_clock), strict=True))
        fused, asking = x[self.order[0]], [self.order[0]]
        kept = {} if keep is None else dict(zip(self.streams, keep, strict=True))
        there = {name: mask.any(-1) for name, mask in kept.items()}
        steps = kept.get(self.order[0])
        seen = {}
        met = None  # samples where something was fused
        for module, name in zip(self.fusion, self.sources, strict=True):
            mask = kept.get(name)
            new, weights = module(
                fused[None], x[name][None], keep=None if mask is None else mask[None], with_weights=extras
            )
            if weights is not None:
                seen[f"attention/{'+'.join(asking)}/{name}"] = weights[0].detach()
            if mask is None or steps is None:
                fused = new[0]
            else:
                begun = steps.any(-1)
                both = begun & there[name]
                if met is not None and name in asking:
                    both &= met  # of two streams one is missing: the other has nobody to ask
                fused = _choose(both, new[0], _choose(begun, fused, x[name]))
                steps = _choose(begun, steps, mask)
                met = both if met is None else met | both
            asking += [name] if name not in asking else []
        output = Output(self.stage3(pool_steps(fused, steps, self.design.pool)))
        output.extras = seen
        return output


def _choose(samples: Tensor, these: Tensor, others: Tensor) -> Tensor:
    """these where samples (B) is True, else others: (B, ...)."""
    return torch.where(samples.view(-1, *[1] * (these.ndim - 1)), these, others)


@register("mif_parallel", paper=PAPER, summary="every stream asks every other; the answers are summed")
def mif_parallel(
    *,
    streams: Mapping[str, int],
    classes: Mapping[str, int],
    query: str = "all",
    pairing: Pairing = "pairs",
    width: int = 1024,
    heads: int = 8,
    dropout: float = 0.1,
    mlp_ratio: float = 4.0,
    activation: Activation = "relu",
    positions: PositionKind = "sinusoid",
    second_position: SecondPosition = "output",
    max_steps: int = 512,
    pool: Pool = "mean",
    stage3: Sharing = "per_task",
) -> MIFParallel:
    """Parallel MIF. query, pairing: see MIFParallel; the rest: see the module."""
    design = Design(
        width=width, heads=heads, dropout=dropout, mlp_ratio=mlp_ratio, activation=activation, positions=positions,
        second_position=second_position, max_steps=max_steps, pool=pool, stage3=stage3,
    )  # fmt: skip
    return MIFParallel(streams=streams, classes=classes, query=query, pairing=pairing, design=design)


@register("mif_progressive", paper=PAPER, summary="one stream asks the next, the result the one after")
def mif_progressive(
    *,
    streams: Mapping[str, int],
    classes: Mapping[str, int],
    order: Sequence[str] | None = None,
    width: int = 1024,
    heads: int = 8,
    dropout: float = 0.1,
    mlp_ratio: float = 4.0,
    activation: Activation = "relu",
    positions: PositionKind = "sinusoid",
    second_position: SecondPosition = "output",
    max_steps: int = 512,
    pool: Pool = "mean",
    stage3: Sharing = "per_task",
) -> MIFProgressive:
    """Progressive MIF. order: see MIFProgressive; None is the order of `streams`. The rest: see the module."""
    design = Design(
        width=width, heads=heads, dropout=dropout, mlp_ratio=mlp_ratio, activation=activation, positions=positions,
        second_position=second_position, max_steps=max_steps, pool=pool, stage3=stage3,
    )  # fmt: skip
    return MIFProgressive(streams=streams, classes=classes, order=order, design=design)
