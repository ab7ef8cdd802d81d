"""AFFT's fusers: attention over the streams' features of each frame, of all frames, or across streams.

Source: Zhong, Schneider, Voit, Stiefelhagen and Beyerer, "Anticipative Feature Fusion Transformer for Multi-Modal
Action Anticipation", WACV 2023 (arXiv:2210.12649), and its public code zeyun-zhong/AFFT, whose names the weights keep.

`afft_sa`   SA-Fuser: in each frame by itself, a learned token and the streams' features attend to one another; the
            token is the fused feature. Without the token it is the mean over streams.
`afft_t_sa` T-SA-Fuser: the same over all streams and frames at once, causal in time; the mean over streams, or a token
            for each frame.
`afft_ca`   CA-Fuser: the first stream attends to its own past and then to each other stream's, a block for each.

Every stream is first mapped to one width: linear, nonlinear (ReLU) or gated.
The paper's model hands the fused features to a GPT-2 that predicts the next one; a head ends before it. In its place
stands pooling over time, the mean or the last step, and the classifiers, of which the published ones fit: the future
feature that they were trained on lives in the same space. MATT, which the paper compares with, is in matt.py.

A stream that a step lacks is no key of attention and not in the mean. Positions count a sample's real steps, those that
any stream has. In `afft_ca`, a step that the first stream lacks begins with its position embedding alone, and a stream
that is not there adds nothing.
Differs: the gated mapping gates channels, also of sequences, where the public code's gates time; fewer frames than
`frame_tokens` are taken; other streams' features may be missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from .afft_fusers import EPS, CrossAttentionFuser, Fuser, SelfAttentionFuser, TemporalSelfAttentionFuser
from .contract import FusionHead, Instances, Output, masked_mean, register

MappingKind = Literal["linear", "nonlinear", "gated"]
Pooling = Literal["mean", "last"]
PAPER = "Zhong et al., WACV 2023"


class FeatureMapping(nn.Module):
    """A stream's features (..., inputs) -> (..., width).

    kind: "linear" = W x without bias, and nothing at all where the widths are equal, unless `always`;
        "nonlinear" = ReLU(W x + b); "gated" = y * sigmoid(V y + c) of y = W x + b.
    layer_norm: after it; None = as published, for all but "linear".
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        *,
        kind: MappingKind = "linear",
        layer_norm: bool | None = None,
        always: bool = False,
    ) -> None:
        super().__init__()
        if kind not in get_args(MappingKind):
            raise ValueError(f"mapping is {kind!r}; it is one of {', '.join(map(repr, get_args(MappingKind)))}")
        if kind == "linear":
            linear = always or inputs != width
            layers: list[nn.Module] = [nn.Linear(inputs, width, bias=False) if linear else nn.Identity()]
        else:
            layers = [nn.Linear(inputs, width), nn.ReLU() if kind == "nonlinear" else ChannelGating(width)]
        if layer_norm if layer_norm is not None else kind != "linear":
            layers.append(nn.LayerNorm(width, eps=EPS))
        self.mapping = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.mapping(x)


class ChannelGating(nn.Module):
    """x * sigmoid(W x + b)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x).sigmoid()


class AFFT(FusionHead):
    """Mapping, a fuser, pooling over real steps and a classifier for each task.

    fuser: of as many streams, in their order. mapping, layer_norm: see FeatureMapping. map_always: map streams that
    already have the fuser's width, too (`sparse_mapping: false` of the public code).
    """

    optional_streams = True
    same_steps = True

    def __init__(
        self,
        fuser: Fuser,
        *,
        streams: Mapping[str, int],
        classes: Mapping[str, int],
        mapping: MappingKind,
        layer_norm: bool | None,
        map_always: bool,
        pool: Pooling,
        classifier_dropout: float,
        past: bool = False,
    ) -> None:
        super().__init__(streams=streams, classes=classes)
        if pool not in get_args(Pooling):
            raise ValueError(f"pool is {pool!r}; it is one of {', '.join(map(repr, get_args(Pooling)))}")
        self.pool, self.past = pool, past
        self.mapping = nn.ModuleDict(
            {
                stream: FeatureMapping(size, fuser.width, kind=mapping, layer_norm=layer_norm, always=map_always)
                for stream, size in self.streams.items()
            }
        )
        self.fuser = fuser
        self.dropout = nn.Dropout(classifier_dropout)
        self.classifiers = nn.ModuleDict({task: nn.Linear(fuser.width, count) for task, count in self.classes.items()})

    def fuse(
        self,
        features: dict[str, Tensor],
        boxes: Instances | None,
        masks: dict[str, Tensor],
        *,
        losses: bool,
        extras: bool,
    ) -> Output:
        fused, there, attention = self.fused(features, masks, with_attention=extras)
        real = None if there is None else there.any(-1)
        if self.pool == "mean":
            pooled = masked_mean(fused, real)
        elif real is None:
            pooled = fused[:, -1]
        else:
            last = (real * torch.arange(1, real.shape[1] + 1, device=real.device)).argmax(1)
            pooled = fused.take_along_dim(last[:, None, None], 1)[:, 0].where(real.any(1, keepdim=True), 0.0)
        pooled = self.dropout(pooled)
        output = Output({task: layer(pooled) for task, layer in self.classifiers.items()})
        if self.past and losses:
            steps = self.dropout(fused)
            output.auxiliary["past/fused"] = {task: layer(steps) for task, layer in self.classifiers.items()}
        if extras and attention is not None:
            output.extras["attention"] = attention.detach()
            if isinstance(self.fuser, SelfAttentionFuser) and self.fuser.modal_token is not None:
                of_token = attention[:, -1, :, :, 0, 1:].detach().mean(2)
                shares = of_token / of_token.sum(-1, keepdim=True).clamp(min=torch.finfo(of_token.dtype).tiny)
                output.extras["modality_weights"] = masked_mean(shares, real)
        return output

    def fused(
        self, features: dict[str, Tensor], masks: Mapping[str, Tensor], *, with_attention: bool = False
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The fused sequence (B, T, width); where which stream is, bool (B, T, streams) or None; attention or None."""
        some = next(iter(features.values()))
        shape = some.shape[:2]
        mapped, there = [], []
        for stream, layer in self.mapping.items():
            x = features.get(stream)
            if x is None:
                mapped.append(some.new_zeros(*shape, self.fuser.width))
                there.append(torch.zeros(shape, dtype=torch.bool, device=some.device))
                continue
            mask = masks.get(stream)
            if mask is not None:
                # `where` and not a product: what stands in a masked step may be NaN
                x = layer(x.where(mask[..., None], 0.0)).where(mask[..., None], 0.0)
            else:
                x, mask = layer(x), torch.ones(shape, dtype=torch.bool, device=some.device)
            mapped.append(x)
            there.append(mask)
        present = torch.stack(there, -1) if masks or len(features) < len(self.streams) else None
        fused, attention = self.fuser(mapped, present, with_attention=with_attention)
        return fused, present, attention


@register("afft_sa", paper=PAPER, summary="a token and the streams attend to one another in each frame (SA-Fuser)")
def afft_sa(
    *,
    streams: Mapping[str, int],
    classes: Mapping[str, int],
    width: int = 1024,
    depth: int = 6,
    heads: int = 4,
    token: bool = True,
    modal_encoding: bool = False,
    frame_tokens: int | None = None,
    mapping: MappingKind = "linear",
    layer_norm: bool | None = None,
    map_always: bool = False,
    pool: Pooling = "mean",
    dropout: float = 0.1,
    drop_path: float = 0.1,
    classifier_dropout: float = 0.2,
    past: bool = False,
) -> AFFT:
    """SA-Fuser.

    width, depth, heads: of the transformer. token: False = the mean over streams in its place. modal_encoding: add an
    embedding of its own to each stream and the token. frame_tokens: a token for each of so many frames, None = one.
    mapping: "linear", "nonlinear" or "gated"; layer_norm: after it, None = as published; map_always: also where the
    stream is `width` wide. pool: "mean" of the steps, or the "last": frames do not see one another here.
    dropout: inside the fuser. drop_path: of its last block, less before. classifier_dropout: before the classifiers.
    past: with losses the classifiers also say what was done at each step, auxiliary["past/fused"] (B, T, classes), for
    `loss.past` of a recipe (the public code's past_logits, without the forecast in between).
    extras: attention (B, depth, T, heads, tokens, tokens), the token first; modality_weights (B, streams), what of the
        last block's attention the token gives to each stream, of what it gives to all.
    """
    fuser = SelfAttentionFuser(
        width,
        len(streams),
        depth=depth,
        heads=heads,
        dropout=dropout,
        drop_path=drop_path,
        token=token,
        modal_encoding=modal_encoding,
        frame_tokens=frame_tokens,
    )
    return AFFT(
        fuser,
        streams=streams,
        classes=classes,
        mapping=mapping,
        layer_norm=layer_norm,
        map_always=map_always,
        pool=pool,
        classifier_dropout=classifier_dropout,
        past=past,
    )


@register("afft_t_sa", paper=PAPER, summary="all streams attend to one another over past frames (T-SA-Fuser)")
def afft_t_sa(
    *,
    streams: Mapping[str, int],
    classes: Mapping[str, int],
    width: int = 1024,
    depth: int = 6,
    heads: int = 4,
    modal_encoding: bool = True,
    frame_tokens: int | None = None,
    max_steps: int = 64,
    mapping: MappingKind = "linear",
    layer_norm: bool | None = None,
    map_always: bool = False,
    pool: Pooling = "last",
    dropout: float = 0.1,
    drop_path: float = 0.1,
    classifier_dropout: float = 0.2,
    past: bool = False,
) -> AFFT:
    """T-SA-Fuser: options as those of `afft_sa`, and

    frame_tokens: None = no token, the mean over streams. max_steps: places for frames.
    pool: the "last" step has seen all, "mean" is over all.
    extras: attention (B, depth, heads, tokens, tokens), tokens by stream and then by time.
    """
    fuser = TemporalSelfAttentionFuser(
        width,
        len(streams),
        depth=depth,
        heads=heads,
        dropout=dropout,
        drop_path=drop_path,
        modal_encoding=modal_encoding,
        frame_tokens=frame_tokens,
        max_steps=max_steps,
    )
    return AFFT(
        fuser,
        streams=streams,
        classes=classes,
        mapping=mapping,
        layer_norm=layer_norm,
        map_always=map_always,
        pool=pool,
        classifier_dropout=classifier_dropout,
        past=past,
    )


@register("afft_ca", paper=PAPER, summary="the first stream attends to the past of each other in turn (CA-Fuser)")
def afft_ca(
    *,
    streams: Mapping[str, int],
    classes: Mapping[str, int],
    width: int = 1024,
    heads: int = 4,
    max_steps: int = 128,
    mapping: MappingKind = "linear",
    layer_norm: bool | None = None,
    map_always: bool = False,
    pool: Pooling = "last",
    dropout: float = 0.1,
    drop_path: float = 0.1,
    classifier_dropout: float = 0.2,
    past: bool = False,
) -> AFFT:
    """CA-Fuser of two streams or more, the first of which asks: options as those of `afft_t_sa`.

    extras: attention of the first stream to each other, (B, streams - 1, heads, T, T).
    """
    fuser = CrossAttentionFuser(
        width, len(streams), heads=heads, dropout=dropout, drop_path=drop_path, max_steps=max_steps
    )
    return AFFT(
        fuser,
        streams=streams,
        classes=classes,
        mapping=mapping,
        layer_norm=layer_norm,
        map_always=map_always,
        pool=pool,
        classifier_dropout=classifier_dropout,
        past=past,
    )


def published_weights(state: Mapping[str, Tensor], *, tasks: Mapping[str, str] | None = None) -> dict[str, Tensor]:
    """Mapping, fuser and classifiers of an AFFT checkpoint under the names of an `AFFT` head.

    state: the checkpoint's `model` or `model_state`, whole or the part below `future_predictor.`. The GPT-2 between
        fuser and classifiers, a backbone and the tables from actions to verbs and nouns are left out.
    tasks: the checkpoint's task -> the head's; None = they are called the same.

    Raises ValueError for a key that is of none of these.
    """
    plain = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    inner = "future_predictor."
    if any(key.startswith(f"{inner}fuser.") for key in plain):
        plain = {
            key.removeprefix(inner): tensor
            for key, tensor in plain.items()
            if not key.startswith(("backbone.", "cls_map_"))
        }
    found = {}
    for key, tensor in plain.items():
        first, _, rest = key.partition(".")
        if first in ("mapping", "fuser"):
            found[key] = tensor
        elif first == "classifiers" and ".all-fused.1." in rest:
            task, _, leaf = rest.partition(".all-fused.1.")
            found[f"classifiers.{(tasks or {}).get(task, task)}.{leaf}"] = tensor
        elif first not in ("dim_encoder", "dim_decoder", "future_predictor"):
            raise ValueError(
                f"{key!r} is no key of AFFT; it has mapping, fuser, dim_encoder, dim_decoder, future_predictor and "
                "classifiers.TASK.all-fused.1"
            )
    return found


def load_published(head: AFFT, state: Mapping[str, Tensor], *, tasks: Mapping[str, str] | None = None) -> AFFT:
    """Load an AFFT checkpoint into `head`, in place and strictly; see `published_weights`.

    Raises ValueError where keys are missing, left over or of another shape.
    """
    converted, own = published_weights(state, tasks=tasks), head.state_dict()
    shapes = {key: [tuple(x[key].shape) if key in x else None for x in (own, converted)] for key in own | converted}
    if wrong := [f"{key} {theirs}, not {ours}" for key, (ours, theirs) in shapes.items() if ours != theirs]:
        raise ValueError(
            f"these weights are not of this head of streams {head.streams} and classes {head.classes}; they have "
            + ", ".join(wrong)
        )
    head.load_state_dict(converted)
    return head
