"""P3D: bottlenecks whose 3 x 3 x 3 convolution is one over space and one over time, in three arrangements in turn.

Source: Qiu, Yao and Mei, "Learning Spatio-Temporal Representation with Pseudo-3D Residual Networks", ICCV 2017
(arXiv:1711.10305, section 3 and figure 3), as in qijiezhao/pseudo-3d-pytorch, whose checkpoints it holds.
A is space, then time. B is both next to each other, added. C is space, then time, added to space alone.
Differs: res5, which is 2-D, sees every remaining step by itself, where the reference mixes channels and steps of clips
of more than 16 frames; maps may have any size, where the reference's head wants 5 x 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from ._stage_net import STREAMS, linear, sized
from .contract import Backbone, InputSpec, Layout, Stream, channels_last, register, stream_spec
from .convert import load_weights, published

Arrangement = Literal["A", "B", "C"]
ARRANGEMENTS: tuple[Arrangement, ...] = ("A", "B", "C")

# 16 frames, one after another, of 182 x 242 pixels, as in the paper; the public code says 256 rows.
P3D_SPEC = InputSpec(frames=16, fps=None, resize_side=182, crop=160)


class Bottleneck(nn.Module):
    """1 x 1 x 1, space and time, 1 x 1 x 1 and a shortcut; `arrangement` None: 3 x 3, all of it 2-D.

    The names of the layers are those of the reference.
    """

    def __init__(self, inputs: int, inner: int, stride: int, arrangement: Arrangement | None) -> None:
        super().__init__()
        self.arrangement: Arrangement | None = arrangement
        conv, norm = (nn.Conv3d, nn.BatchNorm3d) if arrangement else (nn.Conv2d, nn.BatchNorm2d)
        step = (1, stride, stride) if arrangement else (stride, stride)
        self.conv1 = conv(inputs, inner, 1, step, bias=False)  # pyright: ignore[reportArgumentType]
        self.bn1 = norm(inner)
        if arrangement:
            self.conv2 = nn.Conv3d(inner, inner, (1, 3, 3), padding=(0, 1, 1), bias=False)
            self.bn2 = nn.BatchNorm3d(inner)
            self.conv3 = nn.Conv3d(inner, inner, (3, 1, 1), padding=(1, 0, 0), bias=False)
            self.bn3 = nn.BatchNorm3d(inner)
        else:
            self.conv_normal = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
            self.bn_normal = nn.BatchNorm2d(inner)
        self.conv4 = conv(inner, 4 * inner, 1, bias=False)
        self.bn4 = norm(4 * inner)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != 4 * inner:
            shortcut = conv(inputs, 4 * inner, 1, step, bias=False)  # pyright: ignore[reportArgumentType]
            self.downsample = nn.Sequential(shortcut, norm(4 * inner))

    def forward(self, maps: Tensor) -> Tensor:
        inner = self.bn1(self.conv1(maps)).relu_()
        if self.arrangement is None:
            inner = self.bn_normal(self.conv_normal(inner)).relu_()
        else:
            space = self.bn2(self.conv2(inner)).relu_()
            time = self.bn3(self.conv3(inner if self.arrangement == "B" else space)).relu_()
            inner = time if self.arrangement == "A" else time + space
        shortcut = maps if self.downsample is None else self.downsample(maps)
        return self.bn4(self.conv4(inner)).add_(shortcut).relu_()


class P3D(Backbone):
    """Clips (B, C, T, H, W) -> maps (B, 2048, T / 16, H / 32, W / 32); odd steps are left out, sides rounded up.

    blocks: of res2, res3, res4 (pseudo-3-D) and res5 (2-D).
    dropout: before the classifier, in training.
    """

    feature_dim = 2048
    classifier_weight = "fc.weight"
    min_size = (16, 32, 32)

    def __init__(
        self,
        blocks: tuple[int, int, int, int],
        *,
        spec: InputSpec = P3D_SPEC,
        layouts: tuple[Layout, ...] = (),
        num_classes: int = 0,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.input_spec, self.layouts = spec, layouts
        self.conv1_custom = nn.Conv3d(spec.channels, 64, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        self.maxpool = nn.MaxPool3d((2, 3, 3), 2, (0, 1, 1))
        self.halve = nn.MaxPool3d((2, 1, 1))
        width, before = 64, 0
        for stage, count in enumerate(blocks):
            inner = 64 * 2**stage
            layer = []
            for block in range(count):
                arrangement = ARRANGEMENTS[(before + block) % 3] if stage < 3 else None
                layer.append(Bottleneck(width, inner, 2 if stage and not block else 1, arrangement))
                width = 4 * inner
            before += count
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layer))
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        channels_last(self)
        self.dropout = nn.Dropout(dropout)
        self.reset_classifier(num_classes)

    def forward(self, clips: Tensor) -> Tensor:
        maps = self.maxpool(self.bn1(self.conv1_custom(clips)).relu_())
        for name in ("layer1", "layer2", "layer3"):
            maps = self.halve(self.get_submodule(name)(maps))
        steps = self.get_submodule("layer4")(maps.transpose(1, 2).flatten(0, 1))
        return steps.unflatten(0, (len(clips), -1)).transpose(1, 2)

    def output_size(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        return frames // 16, -(-height // 32), -(-width // 32)

    def stages(self) -> list[list[nn.Module]]:
        """The stem and res2 to res5."""
        layers = [[self.get_submodule(f"layer{k}")] for k in (1, 2, 3, 4)]
        return [[self.conv1_custom, self.bn1], *layers]

    def classify(self, maps: Tensor) -> Tensor:
        """Logits (B, num_classes) of the mean over time and space."""
        if self.fc is None:
            return super().classify(maps)
        return self.fc(self.dropout(maps.mean((2, 3, 4))))

    def reset_classifier(self, num_classes: int) -> None:
        self.set_classes(num_classes)
        self.fc = linear(self.feature_dim, num_classes) if num_classes else None


def _is_p3d(state: Mapping[str, Tensor]) -> bool:
    return "conv1_custom.weight" in state


LAYOUT = published(Layout(name="qijiezhao/pseudo-3d-pytorch (p3d*)", recognises=_is_p3d, convert=dict))


def _p3d(
    blocks: tuple[int, int, int, int],
    *,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 16,
    crop: int = 160,
) -> P3D:
    """P3D on ResNet-50, 101 or 152. The published files are of `p3d199`, rgb and flow (u, v of one field)."""
    spec = stream_spec(sized(P3D_SPEC, frames, crop), stream)
    backbone = P3D(blocks, spec=spec, layouts=(LAYOUT,), num_classes=num_classes)
    return load_weights(backbone, weights, num_classes=num_classes)


for _name, _blocks in {"p3d63": (3, 4, 6, 3), "p3d131": (3, 4, 23, 3), "p3d199": (3, 8, 36, 3)}.items():
    register(_name, paper="Qiu et al., ICCV 2017", streams=STREAMS, weights_from="pseudo-3d-pytorch")(
        partial(_p3d, _blocks)
    )
