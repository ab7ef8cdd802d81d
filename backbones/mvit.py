"""MViT: a transformer over clips that pools its tokens while it widens them; version 1 and 2.

Sources: Fan et al., "Multiscale Vision Transformers", ICCV 2021 (arXiv:2104.11227); Li et al., "MViTv2", CVPR 2022
(arXiv:2112.01526). The networks are torchvision's. Tables of positions belong to one size of clip, so that a network is
built for `frames` and `crop`. Classes are told from the class token, which the map does not hold.
facebookresearch/SlowFast's file of MViT-B 16x4 was trained before its code pooled keys and values in the last two
blocks (`pool_last_keys=False`); networks that it was told to pool before the projection (POOL_FIRST) are others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum
from torchvision.models import video as tv
from torchvision.models.video.mvit import MSBlockConfig, MultiscaleAttention, MultiscaleBlock
from torchvision.models.video.mvit import MViT as Network

from ._stage_net import STREAMS, linear, load_torchvision, sized
from .contract import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Backbone,
    InputSpec,
    Layout,
    Stream,
    channels_last,
    register,
    stream_spec,
)
from .convert import load_weights, published, rename
from .first_layer import adapt_first_layer

# 16 frames, every fourth of 30 a second.
MVIT_SPEC = InputSpec(frames=16, fps=7.5, resize_side=256, crop=224, mean=(0.45,) * 3, std=(0.225,) * 3)

# Every third.
SPEC_32X3 = replace(MVIT_SPEC, frames=32, fps=10.0)
SPEC_40X3 = replace(SPEC_32X3, frames=40, resize_side=356, crop=312, mean=IMAGENET_MEAN, std=IMAGENET_STD)

PUBLISHED = "torchvision ('pretrained'), SlowFast"
FROM_SLOWFAST = "SlowFast"
FROM_V1 = "torchvision ('pretrained'), SlowFast, pytorchvideo (16x4, 32x3)"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large a network is.

    depth: blocks.
    pooled: those whose queries are pooled by 2 x 2; there width and heads double, and the pooling of keys and values
        over space, 8 x 8 in the first block, halves.
    """

    depth: int = 16
    pooled: tuple[int, ...] = (1, 3, 14)
    width: int = 96
    heads: int = 1

    def doublings(self, block: int) -> int:
        return sum(block >= each for each in self.pooled)

    def width_of(self, block: int) -> int:
        return self.width * 2 ** self.doublings(min(max(block, 0), self.depth - 1))


SMALL = Scale()
BASE = Scale(depth=24, pooled=(2, 5, 21))
LARGE = Scale(depth=48, pooled=(2, 8, 44), width=144, heads=2)


@dataclass(frozen=True, kw_only=True)
class Version:
    """What the two versions differ in.

    widen_in_attention: a block widens its tokens in its attention, else the block before it does so in its MLP.
    pool_all_queries: queries go through a pooling convolution in all blocks, else only where it strides.
    residual_pool: pooled queries are added to what attention gives.
    relative: positions relative to each other, in every block, else a table that is added once.
    """

    widen_in_attention: bool
    pool_all_queries: bool
    residual_pool: bool
    relative: bool

    def blocks(self, scale: Scale = SMALL, *, pool_last_keys: bool = True) -> list[MSBlockConfig]:
        found = []
        for k in range(scale.depth):
            width, key_stride = scale.width_of(k), 8 >> scale.doublings(k)
            pooled_keys = pool_last_keys or key_stride > 1
            pooled = k in scale.pooled
            queries = pooled or self.pool_all_queries
            found.append(
                MSBlockConfig(
                    num_heads=scale.heads << scale.doublings(k),
                    input_channels=scale.width_of(k - 1) if self.widen_in_attention else width,
                    output_channels=width if self.widen_in_attention else scale.width_of(k + 1),
                    kernel_q=[3, 3, 3] if queries else [],
                    kernel_kv=[3, 3, 3] if pooled_keys else [],
                    stride_q=[1, 2, 2] if pooled else [1, 1, 1] if queries else [],
                    stride_kv=[1, key_stride, key_stride] if pooled_keys else [],
                )
            )
        return found


V1 = Version(widen_in_attention=False, pool_all_queries=False, residual_pool=False, relative=False)
V2 = Version(widen_in_attention=True, pool_all_queries=True, residual_pool=True, relative=True)


def _from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return rename(state, (r"head\.1\.(.+)", r"head.\1"))


def _is_torchvision(state: Mapping[str, Tensor]) -> bool:
    return "conv_proj.weight" in state and "pos_encoding.class_token" in state


TORCHVISION = published(
    Layout(name="torchvision (mvit_v1_b, mvit_v2_s)", recognises=_is_torchvision, convert=_from_torchvision)
)


def _is_slowfast(state: Mapping[str, Tensor]) -> bool:
    return "cls_token" in state and "patch_embed.proj.weight" in state and "blocks.0.attn.pool_k.weight" in state


def _is_pytorchvideo(state: Mapping[str, Tensor]) -> bool:
    return "patch_embed.patch_model.weight" in state and "cls_positional_encoding.cls_token" in state


def _from_slowfast(state: Mapping[str, Tensor], *, pool_last_keys: bool) -> dict[str, Tensor]:
    """Of SlowFast and pytorchvideo, which call all but the outermost layers alike. Separate q, k and v are one matrix
    here; tables of positions lose their first dimension, which is 1.
    """
    last = max((int(key.split(".")[1]) for key in state if key.startswith("blocks.")), default=0)
    pooled = f"blocks.{last}.attn.pool_k.weight" in state
    if pooled != pool_last_keys and f"blocks.{last}.attn.proj.weight" in state:
        raise ValueError(
            f"the last blocks of these weights {'do' if pooled else 'do not'} pool their keys; "
            f"build the backbone with pool_last_keys={pooled}"
        )
    state = dict(state)
    for key in [key for key in state if key.startswith("blocks.") and ".attn.q." in key]:
        parts = [key.replace(".attn.q.", f".attn.{part}.") for part in "qkv"]
        if all(part in state for part in parts):
            state[key.replace(".attn.q.", ".attn.qkv.")] = torch.cat([state.pop(part) for part in parts])
    block = r"(blocks\.\d+\.)"
    named = rename(
        state,
        (r"patch_embed\.(?:proj|patch_model)\.(.+)", r"conv_proj.\1"),
        (r"(?:cls_positional_encoding\.)?cls_token", r"pos_encoding.class_token"),
        (r"(?:cls_positional_encoding\.)?pos_embed_(spatial|temporal|class)", r"pos_encoding.\1_pos"),
        (r"norm_embed\.(.+)", r"norm.\1"),
        (block + r"attn\.pool_([qkv])\.(.+)", r"\1attn.pool_\2.pool.\3"),
        (block + r"attn\.norm_([qkv])\.(.+)", r"\1attn.pool_\2.norm_act.0.\3"),
        (block + r"attn\.proj\.(.+)", r"\1attn.project.0.\2"),
        (block + r"mlp\.fc1\.(.+)", r"\1mlp.0.\2"),
        (block + r"mlp\.fc2\.(.+)", r"\1mlp.3.\2"),
        (block + r"proj\.(.+)", r"\1project.\2"),
        (r"head\.(?:projection|proj)\.(.+)", r"head.\1"),
    )
    whole = {key: x.flatten(0, -2) for key, x in named.items() if key.endswith(("spatial_pos", "temporal_pos"))}
    single = {key: x.flatten() for key, x in named.items() if key.endswith(("class_token", "class_pos"))}
    return named | whole | single


_convert = partial(_from_slowfast, pool_last_keys=True)
SLOWFAST = published(Layout(name="facebookresearch/SlowFast (mvit_*)", recognises=_is_slowfast, convert=_convert))
PYTORCHVIDEO = published(
    Layout(name="facebookresearch/pytorchvideo (mvit_v1_b)", recognises=_is_pytorchvideo, convert=_convert)
)


class _Attention(MultiscaleAttention):
    """torchvision's, which makes the indices into its tables of relative positions on the default device, so that each
    block would send three of them to a GPU and wait."""

    def forward(self, x: Tensor, thw: tuple[int, int, int]) -> tuple[Tensor, tuple[int, int, int]]:
        if x.is_cpu or torch.compiler.is_compiling():
            return super().forward(x, thw)
        with x.device:
            return super().forward(x, thw)


class MViT(Backbone):
    """Clips (B, C, T, H, W) of one size -> maps (B, D, T / 2, H / 32, W / 32), the patch tokens after the last norm.

    dropout: before the classifier, in training.
    """

    classifier_weight = "head.weight"
    fixed_size = True
    head: Any  # None without a classifier

    def __init__(
        self,
        network: Network,
        *,
        spec: InputSpec = MVIT_SPEC,
        layouts: tuple[Layout, ...] = (),
        num_classes: int = 0,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.input_spec, self.layouts = spec, layouts
        self.min_size = (spec.frames, spec.crop, spec.crop)
        adapt_first_layer(network, spec.channels)
        self.conv_proj, self.pos_encoding = network.conv_proj, network.pos_encoding
        self.blocks, self.norm = network.blocks, network.norm
        for module in self.blocks.modules():
            if type(module) is MultiscaleAttention:
                module.__class__ = _Attention
        self.feature_dim = len(network.norm.get_parameter("weight"))
        channels_last(self)
        self.dropout = nn.Dropout(dropout)
        self.reset_classifier(num_classes)

    def forward(self, clips: Tensor) -> Tensor:
        return self._patches(self._tokens(clips), self._final)

    def forward_and_classify(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self._tokens(clips)
        if self.head is None:
            return tokens, self.classify(tokens)
        return self._patches(tokens, self._final), self.head(self.dropout(tokens[:, 0]))

    def classify(self, maps: Tensor) -> Tensor:
        """ValueError: a map holds no class token."""
        if self.head is None:
            return super().classify(maps)
        raise ValueError(f"{self.name} classifies by its class token, which a map has not; call forward_and_classify")

    def _tokens(self, clips: Tensor) -> Tensor:
        if tuple(clips.shape[2:]) != self.min_size:
            size = " x ".join(map(str, clips.shape[2:]))
            raise ValueError(
                f"{self.name or 'this MViT'} was built for clips of {' x '.join(map(str, self.min_size))} (T, H, W) "
                f"and got {size}; build it with frames={clips.shape[2]}, crop={clips.shape[3]}"
            )
        tokens = self.pos_encoding(self.conv_proj(clips).flatten(2).transpose(1, 2))
        size = (self.pos_encoding.temporal_size, *self.pos_encoding.spatial_size)
        for block in self.blocks:
            tokens, size = block(tokens, size)
        return self.norm(tokens)

    @property
    def _final(self) -> tuple[int, int, int]:
        """(T', H', W') of the tokens after the last block."""
        t, h, w = (self.pos_encoding.temporal_size, *self.pos_encoding.spatial_size)
        for block in self.blocks:
            queries: Any = cast(MultiscaleBlock, block).attn.pool_q
            if queries is not None:
                _, down, right = queries.pool.stride
                h, w = -(-h // down), -(-w // right)
        return t, h, w

    @staticmethod
    def _patches(tokens: Tensor, size: tuple[int, int, int]) -> Tensor:
        return tokens[:, 1:].transpose(1, 2).unflatten(2, size)

    def output_size(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        return self._final

    def stages(self) -> list[list[nn.Module]]:
        """Patch embedding, the blocks one by one, the last with the last norm. The class token is in none."""
        blocks: list[list[nn.Module]] = [[block] for block in self.blocks]
        return [[self.conv_proj], *blocks[:-1], [*blocks[-1], self.norm]]

    def stage_map(self, output: Tensor | tuple[Tensor, tuple[int, int, int]], clips: Tensor) -> Tensor:
        if isinstance(output, tuple):
            return self._patches(*output)
        return self._patches(output, self._final) if output.ndim == 3 else super().stage_map(output, clips)

    def reset_classifier(self, num_classes: int) -> None:
        self.set_classes(num_classes)
        self.head = linear(self.feature_dim, num_classes) if num_classes else None


def _build(
    version: Version,
    scale: Scale,
    best: WeightsEnum | None,
    stream: Stream,
    num_classes: int,
    weights: str | Path | None,
    spec: InputSpec,
    stochastic_depth: float,
    pool_last_keys: bool = True,
) -> MViT:
    if spec.crop % 8 or spec.frames % 2:
        raise ValueError(f"frames is {spec.frames} and crop {spec.crop}; they are a multiple of 2 and one of 8")
    convert = partial(_from_slowfast, pool_last_keys=pool_last_keys)
    network = Network(
        spatial_size=(spec.crop, spec.crop),
        temporal_size=spec.frames,
        block_setting=version.blocks(scale, pool_last_keys=pool_last_keys),
        residual_pool=version.residual_pool,
        residual_with_cls_embed=False,
        rel_pos_embed=version.relative,
        proj_after_attn=version.widen_in_attention,
        stochastic_depth_prob=stochastic_depth,
        num_classes=1,
    )
    backbone = MViT(
        network,
        spec=stream_spec(spec, stream),
        layouts=(TORCHVISION, replace(SLOWFAST, convert=convert), replace(PYTORCHVIDEO, convert=convert)),
        num_classes=num_classes,
    )
    if best is None:
        return load_weights(backbone, weights, num_classes=num_classes)
    return load_torchvision(backbone, weights, best, num_classes=num_classes, layout=TORCHVISION)


@register("mvit_v1_b", paper="Fan et al., ICCV 2021", streams=STREAMS, weights_from=FROM_V1)
def mvit_v1_b(
    *,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 16,
    crop: int = 224,
    stochastic_depth: float = 0.2,
    pool_last_keys: bool = True,
) -> MViT:
    """MViT-B 16x4. weights "pretrained": torchvision's, Kinetics-400, for 16 frames of 224 pixels.

    frames: 32 for pytorchvideo's 32x3. pool_last_keys: False for SlowFast's published file, see above.
    """
    spec, best = sized(MVIT_SPEC, frames, crop), tv.MViT_V1_B_Weights.DEFAULT
    return _build(V1, SMALL, best, stream, num_classes, weights, spec, stochastic_depth, pool_last_keys)


@register("mvit_v1_b_32x3", paper="Fan et al., ICCV 2021", streams=STREAMS, weights_from=FROM_SLOWFAST)
def mvit_v1_b_32x3(
    *,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 32,
    crop: int = 224,
    stochastic_depth: float = 0.3,
    pool_last_keys: bool = True,
) -> MViT:
    """MViT-B-24 32x3, of 24 blocks (SlowFast's MVIT_B_32x3_CONV). pool_last_keys: see mvit_v1_b."""
    spec = sized(SPEC_32X3, frames, crop)
    return _build(V1, BASE, None, stream, num_classes, weights, spec, stochastic_depth, pool_last_keys)


@register("mvit_v2_s", paper="Li et al., CVPR 2022", streams=STREAMS, weights_from=PUBLISHED)
def mvit_v2_s(
    *,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 16,
    crop: int = 224,
    stochastic_depth: float = 0.2,
) -> MViT:
    """MViTv2-S 16x4: positions relative to each other. weights "pretrained": as mvit_v1_b."""
    spec, best = sized(MVIT_SPEC, frames, crop), tv.MViT_V2_S_Weights.DEFAULT
    return _build(V2, SMALL, best, stream, num_classes, weights, spec, stochastic_depth)


@register("mvit_v2_b", paper="Li et al., CVPR 2022", streams=STREAMS, weights_from=FROM_SLOWFAST)
def mvit_v2_b(
    *,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 32,
    crop: int = 224,
    stochastic_depth: float = 0.3,
) -> MViT:
    """MViTv2-B 32x3, of 24 blocks."""
    spec = sized(SPEC_32X3, frames, crop)
    return _build(V2, BASE, None, stream, num_classes, weights, spec, stochastic_depth)


@register("mvit_v2_l", paper="Li et al., CVPR 2022", streams=STREAMS, weights_from=FROM_SLOWFAST)
def mvit_v2_l(
    *,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 40,
    crop: int = 312,
    stochastic_depth: float = 0.75,
) -> MViT:
    """MViTv2-L 40x3, of 48 blocks, maps of 1152 channels."""
    spec = sized(SPEC_40X3, frames, crop)
    return _build(V2, LARGE, None, stream, num_classes, weights, spec, stochastic_depth)
