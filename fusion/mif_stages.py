"""Stages 1 and 3 of MIF and what its heads share: mif.py says from which paper, and what was chosen and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .contract import FusionHead, one_of
from .grouped import GroupedAttention, GroupedNorm

SecondPosition = Literal["output", "query_key", "none"]
Activation = Literal["relu", "gelu"]
PositionKind = Literal["sinusoid", "learned"]
Pool = Literal["mean", "last"]
Sharing = Literal["per_task", "shared"]


@dataclass(frozen=True, kw_only=True)
class Design:
    """What all heads of the paper share and the text leaves open; see the module."""

    width: int = 1024
    heads: int = 8
    dropout: float = 0.1
    mlp_ratio: float = 4.0
    activation: Activation = "relu"
    positions: PositionKind = "sinusoid"
    second_position: SecondPosition = "output"
    max_steps: int = 512
    pool: Pool = "mean"
    stage3: Sharing = "per_task"

    def __post_init__(self) -> None:
        for option, kinds in (
            ("activation", Activation),
            ("positions", PositionKind),
            ("second_position", SecondPosition),
            ("pool", Pool),
            ("stage3", Sharing),
        ):
            one_of(option, getattr(self, option), get_args(kinds))


def sinusoids(index: Tensor, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(..., T) places in time -> (..., T, width): sin and cos in turn, as Vaswani et al., section 3.5."""
    rate = 10000.0 ** (-torch.arange(0, width, 2, device=index.device, dtype=dtype) / width)
    angle = index[..., None] * rate
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)[..., :width]


class Positions(nn.Module):
    """Embeddings of places in time. State: table (groups, max_steps, D), if learned."""

    def __init__(self, groups: int, design: Design) -> None:
        super().__init__()
        self.width, self.table = design.width, None
        if design.positions == "learned":
            self.table = nn.Parameter(torch.empty(groups, design.max_steps, design.width))
            nn.init.normal_(self.table, std=0.02)

    def forward(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """index: (G or 1, B or 1, T), what is added to x (G, B, T, D) of this dtype."""
        if self.table is None:
            return sinusoids(index, self.width, torch.promote_types(dtype, torch.float32)).to(dtype)
        if index.shape[-1] > self.table.shape[1]:
            raise ValueError(f"a stream has {index.shape[-1]} steps; max_steps is {self.table.shape[1]}")
        return self.table[torch.arange(len(self.table), device=index.device)[:, None, None], index].to(dtype)


class DPES(nn.Module):
    """Dual positional embedding self-attention (equation 1) of `groups` streams, each with its own weights."""

    def __init__(self, groups: int, design: Design) -> None:
        super().__init__()
        self.first = Positions(groups, design)
        self.second = None if design.second_position == "none" else Positions(groups, design)
        self.inside = design.second_position == "query_key"
        self.attention = GroupedAttention(groups, design.width, design.heads)
        self.norm = GroupedNorm(groups, design.width)
        self.dropout = nn.Dropout(design.dropout)

    def forward(self, x: Tensor, keep: Tensor | None = None, *, same_clock: bool = True) -> Tensor:
        """x (G, B, T, D) -> F (G, B, T, D). keep: bool (G, B, T). same_clock: step t is the same time in all groups."""
        index = torch.arange(x.shape[2], device=x.device)[None, None]
        if keep is not None:
            index = (index - _first_steps(keep, same_clock)[..., None]).clamp(min=0)
        z = self.dropout(x + self.first(index, x.dtype))
        if self.second is None:
            return self.norm(z + self.dropout(self.attention(z, z, keep=keep)[0]))
        again = self.second(index, x.dtype)
        if self.inside:
            placed = z + again
            return self.norm(z + self.dropout(self.attention(placed, placed, values=z, keep=keep)[0]))
        return self.norm(z + self.dropout(self.attention(z, z, keep=keep)[0])) + again


def _first_steps(keep: Tensor, same_clock: bool) -> Tensor:
    """keep (G, B, T) -> the first real step of each group (G, B), or of all of them (1, B)."""
    first = torch.where(keep.any(-1), keep.int().argmax(-1), keep.shape[-1])
    return first.amin(0, keepdim=True) if same_clock else first


class Classifier(nn.Module):
    """Linear(LN(MLP(F) + F)), equation 7: (..., D) -> task -> (..., classes)."""

    def __init__(self, classes: Mapping[str, int], design: Design) -> None:
        super().__init__()
        inner = round(design.mlp_ratio * design.width)
        if inner < 1:
            raise ValueError(f"mlp_ratio is {design.mlp_ratio}; the MLP would have no channel")

        def mlp() -> nn.Sequential:
            return nn.Sequential(
                nn.Linear(design.width, inner),
                nn.ReLU() if design.activation == "relu" else nn.GELU(),
                nn.Dropout(design.dropout),
                nn.Linear(inner, design.width),
                nn.Dropout(design.dropout),
            )

        owners = ["shared"] if design.stage3 == "shared" else list(classes)
        self.owner = {task: owners[0] if design.stage3 == "shared" else task for task in classes}
        self.mlp = nn.ModuleDict({owner: mlp() for owner in owners})
        self.norm = nn.ModuleDict({owner: nn.LayerNorm(design.width) for owner in owners})
        self.linear = nn.ModuleDict({task: nn.Linear(design.width, size) for task, size in classes.items()})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        normed = {owner: self.norm[owner](mlp(x) + x) for owner, mlp in self.mlp.items()}
        return {task: linear(normed[self.owner[task]]) for task, linear in self.linear.items()}


def pool_steps(x: Tensor, keep: Tensor | None, how: Pool) -> Tensor:
    """(..., T, D) -> (..., D): mean, or last, of the steps where keep (..., T) is True; zeros where it never is."""
    if keep is None:
        return x.mean(-2) if how == "mean" else x[..., -1, :]
    share = keep
    if how == "last":
        share = keep & (keep.flip(-1).cumsum(-1).flip(-1) == 1)
    exact = torch.promote_types(x.dtype, torch.float32)
    share = share.to(exact) / share.sum(-1, keepdim=True).clamp(min=1)
    return (share.to(x.dtype)[..., None, :] @ x).squeeze(-2)


class StreamsHead(FusionHead):
    """What the heads of the paper begin with: streams projected to one width and stacked."""

    optional_streams = True

    def __init__(self, *, streams: Mapping[str, int], classes: Mapping[str, int], design: Design) -> None:
        super().__init__(streams=streams, classes=classes)
        self.design = design
        self.project = nn.ModuleDict({name: nn.Linear(size, design.width) for name, size in self.streams.items()})

    def stack(self, features: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None, bool]:
        """All streams as (S, B, T, D) with zeros for those that are not there, keep (S, B, T), and whether T is equal.

        keep is None where nothing is padded, masked or missing.
        """
        lengths = {x.shape[1] for x in features.values()}
        longest, some = max(lengths), next(iter(features.values()))
        plain = not masks and len(lengths) == 1 and len(features) == len(self.streams)
        projected, kept = [], []
        for name in self.streams:
            if name not in features:
                projected.append(some.new_zeros(some.shape[0], longest, self.design.width))
                kept.append(torch.zeros(some.shape[0], longest, dtype=torch.bool, device=some.device))
                continue
            x, mask = features[name], masks.get(name)
            if mask is not None:
                # `where` and not a product: what stands in a masked step may be NaN
                x = torch.where(mask[..., None], x, torch.zeros((), dtype=x.dtype, device=x.device))
            missing = longest - x.shape[1]
            x = self.project[name](x)
            projected.append(F.pad(x, (0, 0, 0, missing)) if missing else x)
            if not plain:
                mask = torch.ones(features[name].shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
                kept.append(F.pad(mask, (0, missing)))
        return torch.stack(projected), None if plain else torch.stack(kept), len(lengths) == 1
