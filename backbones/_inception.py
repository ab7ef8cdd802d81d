"""What the two Inception networks of the TSN line share: units with biased convolutions, frames in, maps out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._clip_length import ClipLength
from ._conv_norm import conv_norm
from .contract import Backbone, InputSpec, Layout, Stream, stream_spec

# Caffe's means of ImageNet, B, G, R of 0..255.
CAFFE_SPEC = InputSpec(
    frames=8, fps=8.0, resize_side=256, crop=224, scale=1.0, mean=(104.0, 117.0, 128.0), std=(1.0,) * 3,
    channel_order="bgr",
)  # fmt: skip
CAFFE_FLOW_MEAN = 128.0
INCEPTIONS = ("bninception", "inception_v3")  # as the NETWORK of `gsm:NETWORK` and others


def inceptions(pattern: str) -> list[str]:
    """Those of INCEPTIONS that the pattern names."""
    return [name for name in INCEPTIONS if fnmatchcase(name, pattern)]


def caffe_spec(stream: Stream, *, frames: int, crop: int, flow_stack: int) -> InputSpec:
    """Input of the networks that came from Caffe, 0..255 less a mean. Depth and spectrograms are taken as they are.

    crop: pixels, 0 = 224, and 256 cells for spectrograms. Flow less 128; ir less the mean over B, G, R.
    """
    side = crop or (256 if stream == "audio" else CAFFE_SPEC.crop)
    rgb = replace(CAFFE_SPEC, frames=frames, crop=side, resize_side=max(side, side * 256 // 224))
    if stream == "audio":
        rgb = replace(rgb, resize_side=side)
    spec = stream_spec(rgb, stream, flow_stack=flow_stack if stream == "flow" else 1)
    if stream == "flow":
        spec = replace(spec, scale=1.0, mean=(CAFFE_FLOW_MEAN,) * spec.channels, std=(1.0,) * spec.channels)
    return replace(spec, scale=1.0) if stream == "ir" else spec


class ConvUnit(nn.Module):
    """Convolution with bias, whatever gate was put behind it, batch norm, ReLU.

    fold: whether convolution and norm may be one outside training. Not where a gate stands between them, nor elsewhere
        in a gated network: gates are steep, and the other order of rounding shows in the logits.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int] = 1,
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding)
        self.norm = nn.BatchNorm2d(outputs)
        self.fold = True

    def forward(self, maps: Tensor) -> Tensor:
        if not self.fold:
            return self.norm(self.conv(maps)).relu_()
        return conv_norm(maps, self.conv, self.norm).relu_()


class CeilMaxPool(nn.Module):
    """Caffe's 3 x 3 max pooling with stride 2: a last window may reach over the edge."""

    def forward(self, maps: Tensor) -> Tensor:
        return F.max_pool2d(maps, 3, 2, ceil_mode=True)


class Inception(Backbone):
    """Clips (B, C, T, H, W) -> maps (B, D, T, h, w) by `body`, an ordered dictionary of blocks, on every frame.

    dropout: before the classifier, in training.
    """

    classifier_weight = "head.weight"

    def __init__(
        self,
        body: Mapping[str, nn.Module],
        *,
        spec: InputSpec,
        layouts: tuple[Layout, ...],
        num_classes: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.input_spec, self.layouts = spec, layouts
        self.clip_length = ClipLength()
        self.body = nn.ModuleDict(body)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.dropout = nn.Dropout(dropout)
        self.reset_classifier(num_classes)

    def forward(self, clips: Tensor) -> Tensor:
        spec = self.input_spec
        if clips.ndim != 5 or clips.shape[1] != spec.channels:
            raise ValueError(f"clips are {tuple(clips.shape)}; this backbone eats (B, {spec.channels}, T, H, W)")
        frames = clips.shape[2]
        maps = clips.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        self.clip_length.frames = frames
        for block in self.body.values():
            maps = block(maps)
        return maps.unflatten(0, (-1, frames)).transpose(1, 2)

    def classify(self, maps: Tensor) -> Tensor:
        """Logits (B, num_classes): of the mean over space of every frame, then the mean over frames (TSN)."""
        if self.head is None:
            return super().classify(maps)
        return self.head(self.dropout(maps.mean((3, 4)).transpose(1, 2))).mean(1)

    def reset_classifier(self, num_classes: int) -> None:
        self.set_classes(num_classes)
        self.head = nn.Linear(self.feature_dim, num_classes) if num_classes else None
        if self.head is not None:
            nn.init.normal_(self.head.weight, std=0.001)
            nn.init.zeros_(self.head.bias)

    def stages(self) -> list[list[nn.Module]]:
        """The stem, then one stage for every block."""
        blocks = list(self.body.values())
        stem = next(i for i, block in enumerate(blocks) if not isinstance(block, ConvUnit | CeilMaxPool))
        return [blocks[:stem], *([block] for block in blocks[stem:])]
