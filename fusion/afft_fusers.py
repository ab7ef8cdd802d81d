"""AFFT's three fusers and their blocks, under the published names of weights. The source and what differs: afft.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from .contract import masked_mean

EPS = 1e-6


def attend(
    q: Tensor, k: Tensor, v: Tensor, heads: int, keep: Tensor | None, dropout: float, with_weights: bool
) -> tuple[Tensor, Tensor | None]:
    """softmax(q k' / sqrt(D / heads)) v of q (B, L, D) and k, v (B, S, D); weights (B, heads, L, S) if wanted.

    keep: bool, broadcast to (B, heads, L, S), False for keys that a query may not see. It must see one.
    """
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    weights = None
    if with_weights:
        scores = q @ k.mT * q.shape[-1] ** -0.5
        weights = (scores if keep is None else scores.where(keep, -torch.inf)).softmax(-1)
        mixed = F.dropout(weights, dropout) @ v
    else:
        mixed = F.scaled_dot_product_attention(q, k, v, keep, dropout_p=dropout)
    return mixed.transpose(1, 2).flatten(2), weights


class Attention(nn.Module):
    """Multi-head attention of (B, L, D) to itself, or with `cross` to a source (B, S, D)."""

    def __init__(self, width: int, heads: int, *, dropout: float, cross: bool = False) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"attention of width {width} cannot have {heads} heads; the width must be a multiple")
        self.heads, self.dropout, self.cross = heads, dropout, cross
        if cross:
            self.w_q, self.w_k, self.w_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        else:
            self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, source: Tensor | None = None, *, keep: Tensor | None = None, with_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """keep: as in `attend`; a query that sees no key gets zeros, and so do its weights."""
        if source is not None:
            q, k, v = self.w_q(x), self.w_k(source), self.w_v(source)
        else:
            q, k, v = self.qkv(x).chunk(3, -1)
        seen = None
        if keep is not None:
            # a softmax over no key would be NaN, also backwards: such a query sees all, and is then forgotten
            seen = keep.any(-1, keepdim=True)
            keep = keep | ~seen
        mixed, weights = attend(q, k, v, self.heads, keep, self.dropout if self.training else 0.0, with_weights)
        mixed = self.proj_drop(self.proj(mixed))
        if seen is not None:
            mixed = mixed.where(seen[:, 0], 0.0)
            weights = None if weights is None else weights.where(seen, 0.0)
        return mixed, weights


class FeedForward(nn.Module):
    """Two layers with GELU, four times as wide in between."""

    def __init__(self, width: int, *, dropout: float) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


class Block(nn.Module):
    """Attention and feed-forward, each of a layer norm and added to what came in."""

    def __init__(self, width: int, heads: int, *, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = Attention(width, heads, dropout=dropout)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = FeedForward(width, dropout=dropout)
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, x: Tensor, keep: Tensor | None, with_weights: bool) -> tuple[Tensor, Tensor | None]:
        mixed, weights = self.attn(self.norm1(x), keep=keep, with_weights=with_weights)
        x = x + self.drop_path(mixed)
        return x + self.drop_path(self.mlp(self.norm2(x))), weights


class DecoderBlock(nn.Module):
    """Attention to itself, attention to a memory and feed-forward, each of a layer norm and added."""

    def __init__(self, width: int, heads: int, *, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.norm_self = nn.LayerNorm(width, eps=EPS)
        self.attn = Attention(width, heads, dropout=dropout)
        self.norm_q, self.norm_kv = nn.LayerNorm(width, eps=EPS), nn.LayerNorm(width, eps=EPS)
        self.cross_attn = Attention(width, heads, dropout=dropout, cross=True)
        self.norm_mlp = nn.LayerNorm(width, eps=EPS)
        self.mlp = FeedForward(width, dropout=dropout)
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(
        self, x: Tensor, memory: Tensor, keep: Tensor, keep_memory: Tensor, with_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        x = x + self.drop_path(self.attn(self.norm_self(x), keep=keep)[0])
        mixed, weights = self.cross_attn(
            self.norm_q(x), self.norm_kv(memory), keep=keep_memory, with_weights=with_weights
        )
        x = x + self.drop_path(mixed)
        return x + self.drop_path(self.mlp(self.norm_mlp(x))), weights


class Fuser(nn.Module):
    """What the three have in common: blocks, a last norm, and how steps are numbered.

    width: of the mapped features. count: of streams. dropout: of what goes in, of attention weights and after layers.
    drop_path: chance that the last block is left out in training, less for those before it.
    """

    max_steps: int | None = None

    def __init__(self, width: int, *, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.width, self.drop_path = width, drop_path
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.embd_drop = nn.Dropout(dropout)

    def _paths(self, depth: int) -> list[float]:
        return [self.drop_path * layer / max(1, depth - 1) for layer in range(depth)]

    def _begin(self) -> None:
        for name, parameter in self.named_parameters():
            if name in ("modal_token", "modality_embedding"):
                nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _positions(self, x: Tensor, there: Tensor | None) -> Tensor:
        """int64 (1 or B, T): the how manieth of its sample's real steps each step is."""
        steps = x.shape[1]
        if self.max_steps is not None and steps > self.max_steps:
            raise ValueError(f"these features have {steps} steps; this fuser has places for {self.max_steps}")
        if there is None:
            return torch.arange(steps, device=x.device)[None]
        return (there.any(-1).long().cumsum(1) - 1).clamp(min=0)

    def forward(
        self, features: Sequence[Tensor], there: Tensor | None = None, *, with_attention: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """The fused features (B, T, width), and attention weights if wanted.

        features: of each stream (B, T, width). there: bool (B, T, streams), None = everywhere.
        """
        raise TypeError(f"{type(self).__name__} defines no forward")


class SelfAttentionFuser(Fuser):
    """SA-Fuser. Attention: (B, depth, T, heads, tokens, tokens), the fused token first.

    token: False = the mean over streams. modal_encoding: add an embedding of its own to each token.
    frame_tokens: so many tokens, one for each frame; None = one for all.
    """

    def __init__(
        self,
        width: int,
        count: int,
        *,
        depth: int = 6,
        heads: int = 4,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        token: bool = True,
        modal_encoding: bool = False,
        frame_tokens: int | None = None,
    ) -> None:
        super().__init__(width, dropout=dropout, drop_path=drop_path)
        self.blocks = nn.ModuleList(Block(width, heads, dropout=dropout, drop_path=path) for path in self._paths(depth))
        self.modal_token = nn.Parameter(torch.zeros(1, frame_tokens or 1, width)) if token else None
        self.modality_embedding = nn.Parameter(torch.zeros(1, count + token, width)) if modal_encoding else None
        self.frame_level, self.max_steps = frame_tokens is not None, frame_tokens if token else None
        self._begin()

    def forward(
        self, features: Sequence[Tensor], there: Tensor | None = None, *, with_attention: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        batch, steps, _ = features[0].shape
        x = torch.stack(list(features), 2)
        positions = self._positions(x, there)
        if self.modal_token is not None:
            token = self.modal_token[0][positions] if self.frame_level else self.modal_token
            x = torch.cat([token.expand(batch, steps, -1)[:, :, None], x], 2)
        if self.modality_embedding is not None:
            x = x + self.modality_embedding
        keep = None
        if there is not None:
            there = there.flatten(0, 1)
            keep = (there if self.modal_token is None else F.pad(there, (1, 0), value=True))[:, None, None]
        x = self.embd_drop(x.flatten(0, 1))
        attention = []
        for block in self.blocks:
            x, weights = block(x, keep, with_attention)
            attention.append(weights)
        x = self.norm(x)
        fused = masked_mean(x, there) if self.modal_token is None else x[:, 0]
        found = torch.stack(attention, 1).unflatten(0, (batch, steps)).transpose(1, 2) if with_attention else None
        return fused.unflatten(0, (batch, steps)), found


class TemporalSelfAttentionFuser(Fuser):
    """T-SA-Fuser. Attention: (B, depth, heads, tokens, tokens); tokens are all frames of the first stream, and so on.

    modal_encoding, frame_tokens: as in SA-Fuser; tokens of frames stand before the first stream. None = no token, the
        mean over streams. max_steps: places for frames.
    """

    def __init__(
        self,
        width: int,
        count: int,
        *,
        depth: int = 6,
        heads: int = 4,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        modal_encoding: bool = True,
        frame_tokens: int | None = None,
        max_steps: int = 64,
    ) -> None:
        super().__init__(width, dropout=dropout, drop_path=drop_path)
        self.blocks = nn.ModuleList(Block(width, heads, dropout=dropout, drop_path=path) for path in self._paths(depth))
        self.modal_token = None if frame_tokens is None else nn.Parameter(torch.zeros(1, frame_tokens, width))
        rows = count + (frame_tokens is not None)
        self.modality_embedding = nn.Parameter(torch.zeros(rows, width)) if modal_encoding else None
        self.position_embeddings = nn.Embedding(max_steps, width)
        self.max_steps = max_steps if frame_tokens is None else min(max_steps, frame_tokens)
        self._begin()

    def forward(
        self, features: Sequence[Tensor], there: Tensor | None = None, *, with_attention: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        batch, steps, _ = features[0].shape
        x = torch.stack(list(features), 1)
        positions = self._positions(features[0], there)
        if self.modal_token is not None:
            x = torch.cat([self.modal_token[0][positions].expand(batch, -1, -1)[:, None], x], 1)
        x = x + self.position_embeddings(positions)[:, None]
        if self.modality_embedding is not None:
            x = x + self.modality_embedding[:, None]
        rows = x.shape[1]
        keep = _past(steps, x.device).repeat(rows, rows)[None, None]
        if there is not None:
            keys = there if self.modal_token is None else torch.cat([there.any(-1, keepdim=True), there], -1)
            keep = keep & keys.transpose(1, 2).flatten(1)[:, None, None]
        x = self.embd_drop(x.flatten(1, 2))
        attention = []
        for block in self.blocks:
            x, weights = block(x, keep, with_attention)
            attention.append(weights)
        x = self.norm(x).unflatten(1, (rows, steps))
        if self.modal_token is not None:
            fused = x[:, 0]
        else:
            present = None if there is None else there.flatten(0, 1)
            fused = masked_mean(x.transpose(1, 2).flatten(0, 1), present).unflatten(0, (batch, steps))
        return fused, torch.stack(attention, 1) if with_attention else None


class CrossAttentionFuser(Fuser):
    """CA-Fuser. Attention: of the first stream to the others, (B, streams - 1, heads, T, T). max_steps: places."""

    def __init__(
        self,
        width: int,
        count: int,
        *,
        heads: int = 4,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        max_steps: int = 128,
    ) -> None:
        super().__init__(width, dropout=dropout, drop_path=drop_path)
        if count < 2:
            raise ValueError("CA-Fuser needs two streams or more: the first attends to the others")
        self.blocks = nn.ModuleList(
            DecoderBlock(width, heads, dropout=dropout, drop_path=path) for path in self._paths(count - 1)
        )
        self.position_embeddings = nn.Embedding(max_steps, width)
        self.max_steps = max_steps
        self._begin()

    def forward(
        self, features: Sequence[Tensor], there: Tensor | None = None, *, with_attention: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        steps = features[0].shape[1]
        places = self.position_embeddings(self._positions(features[0], there))
        x, *memories = (self.embd_drop(feature + places) for feature in features)
        keep = _past(steps, x.device)[None, None]
        keeps = [keep] * len(features) if there is None else [keep & row[:, None, None] for row in there.unbind(-1)]
        attention = []
        for block, memory, keep_memory in zip(self.blocks, memories, keeps[1:], strict=True):
            x, weights = block(x, memory, keeps[0], keep_memory, with_attention)
            attention.append(weights)
        return self.norm(x), torch.stack(attention, 1) if with_attention else None


def _past(steps: int, device: torch.device) -> Tensor:
    """bool (T, T): which steps (columns) each step (rows) may see, itself and those before it."""
    return torch.ones(steps, steps, dtype=torch.bool, device=device).tril()
