"""The contract of every backbone: what it eats (InputSpec) and what it gives, a feature map (B, D, T, H, W)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from .._registry import Registry

STREAMS = ("rgb", "flow", "audio", "depth", "ir", "rgbd")
Stream = Literal["rgb", "flow", "audio", "depth", "ir", "rgbd"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """What a backbone, with the weights it now holds, eats. Preprocessing travels with the weights.

    The pipeline hands over clips (B, T, H, W, C), channels last: uint8 for rgb, ir and quantised flow (0..255 stands for
    -20..20 pixels per frame step), float32 for spectrograms and depth. `normalise` makes the backbone's input of them:
    `(clip * scale - mean) / std`, channels in `channel_order`, as (B, C, T, H, W).

    frames: T, entries of the clip (frames, flow stacks or spectrograms).
    fps: how many entries a second; None = every frame of the video.
    resize_side, crop: the frame's shorter side is scaled to `resize_side` pixels, then a crop x crop square is taken.
        For audio: (frequency, time) cells of the spectrogram are `crop` x `crop` and resize_side is not used.
    flow_stack: consecutive flow fields u, v, u, v, ... laid into the channels of one entry (TSN: 5).
    """

    stream: Stream = "rgb"
    frames: int = 8
    fps: float | None = 8.0
    resize_side: int = 256
    crop: int = 224
    scale: float = 1 / 255
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    channel_order: Literal["rgb", "bgr"] = "rgb"
    flow_stack: int = 1

    def __post_init__(self) -> None:
        if self.stream not in STREAMS:
            raise ValueError(f"InputSpec.stream is {self.stream!r}; there are {', '.join(STREAMS)}")
        if len(self.mean) != len(self.std):
            raise ValueError(f"InputSpec has {len(self.mean)} means and {len(self.std)} stds; one of each per channel")
        if min(self.frames, self.crop, self.flow_stack) < 1 or self.resize_side < self.crop:
            raise ValueError(f"InputSpec sizes must be positive and resize_side at least crop: {self}")

    @property
    def channels(self) -> int:
        return len(self.mean)

    def normalise(self, clips: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, T, H, W, C) as the pipeline gives it -> (B, C, T, H, W) `dtype` as the backbone eats it."""
        if clips.ndim != 5 or clips.shape[-1] != self.channels:
            raise ValueError(f"clips are {tuple(clips.shape)}; this backbone eats (B, T, H, W, {self.channels})")
        if self.channel_order == "bgr":
            clips = clips.flip(-1)
        # One fused multiply-add per pixel: clip * (scale / std) - mean / std.
        gain = torch.tensor([self.scale / s for s in self.std], device=clips.device)
        shift = torch.tensor([-m / s for m, s in zip(self.mean, self.std, strict=True)], device=clips.device)
        normal = torch.addcmul(shift, clips.to(torch.float32), gain)
        return normal.permute(0, 4, 1, 2, 3).to(dtype)

    def example(self, batch: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """Random clips (B, C, T, H, W) of this shape, already normalised."""
        return torch.randn(batch, self.channels, self.frames, self.crop, self.crop, generator=generator)


class Backbone(nn.Module):
    """Clips (B, C, T, H, W), float, to feature maps (B, D, T', H', W').

    input_spec: what it eats, with the weights it now holds.
    feature_dim: D.
    num_classes: width of the classifier that came with the weights, 0 without one.
    """

    input_spec: InputSpec
    feature_dim: int
    num_classes: int = 0

    def forward(self, clips: Tensor) -> Tensor:
        """Feature map (B, D, T', H', W')."""
        raise TypeError(f"{type(self).__name__} defines no forward")

    def output_size(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """(T', H', W') of the feature map of a clip of this size, by arithmetic alone."""
        raise TypeError(f"{type(self).__name__} defines no output_size")

    def classify(self, maps: Tensor) -> Tensor:
        """Logits (B, num_classes) of feature maps, by the head that came with the weights."""
        raise ValueError(f"{type(self).__name__} has no classifier: build it with num_classes or weights that carry one")


def pool_space(maps: Tensor) -> Tensor:
    """Feature map (B, D, T, H, W) -> sequence (B, T, D), mean over space."""
    return maps.mean((3, 4)).transpose(1, 2)


def pool_clip(maps: Tensor) -> Tensor:
    """Feature map (B, D, T, H, W) -> one vector per clip (B, D), mean over time and space."""
    return maps.mean((2, 3, 4))


BACKBONES: Registry[Backbone] = Registry("backbone")
register = BACKBONES.register


def create_backbone(
    name: str, *, weights: str | Path | None = None, stream: Stream = "rgb", num_classes: int = 0, **options: object
) -> Backbone:
    """Make a backbone in eval mode.

    name: a registered name (`list_backbones()`), or `family:network` where the family takes any network of a library:
        `tsn:resnet50` is timm's resnet50 on every frame.
    weights: None for random ones; a path to a published or own checkpoint (its layout is recognised by its keys, loading is
        strict); "pretrained" where the library behind the name can fetch them; "bundled" where a package carries them.
    stream: what it eats. The first layer of rgb weights is averaged over its channels and repeated for flow and audio.
    num_classes: make a (random) classifier of that width; 0 keeps the one that the checkpoint carries, if any.
    options: keyword options of the family, listed by its docstring; an unknown one is a TypeError that names it.
    """
    family, _, network = name.partition(":")
    make = BACKBONES[family]
    if network:
        options["network"] = network
    backbone = make(stream=stream, num_classes=num_classes, weights=weights, **options)
    return backbone.eval()


def list_backbones(pattern: str = "*") -> Sequence[str]:
    """Registered names that match a shell pattern. Families that take any network are listed as `family:NETWORK`."""
    return BACKBONES.names(pattern)
