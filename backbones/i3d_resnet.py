"""I3D-ResNet-50: a ResNet inflated in its first 1x1 convolutions, in the three shapes that were published.

Sources: Carreira and Zisserman, CVPR 2017 (inflation); Wang, Girshick, Gupta and He, "Non-local Neural Networks", CVPR
2018 (arXiv:1711.07971, table 1 and section 3). All have the same parameters and differ in padding and strides:
`i3d_r50_stin` joaanna/something_else (CVPR 2020) and ruiyan1995/Interactive_Fusion_for_CAR: pool1 without padding, res5
    keeps its resolution. Its weights were trained on frames in BGR order, 0..255, less a mean meant for 0..1.
`i3d_r50`, `i3d_r50_nln` facebookresearch/SlowFast and pytorchvideo.
`i3d_r50_c2...` facebookresearch/video-nonlocal-net (Caffe2): pool1 without padding; in the 32-frame networks of the
    paper conv1 and pool1 stride over time as well.
Differs: logits are of the mean over the whole map, where SlowFast and video-nonlocal-net average the softmax of every
7 x 7 window of a larger map; dot-product attention is computed in the cheaper order, theta (phi' g).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._conv_norm import conv_norm
from .contract import Backbone, InputSpec, Layout, Stream, register, stream_spec
from .convert import load_weights
from .i3d_resnet_layouts import CAFFE2, PYTORCHVIDEO, SLOWFAST, STIN

Attention = Literal["softmax", "dot_product"]
StridePlace = Literal["3x3", "1x1"]
STREAMS: tuple[Stream, ...] = ("rgb", "flow", "audio", "depth", "ir")

# 8 frames, every eighth of 30 a second; grey mean and std (in video-nonlocal-net 114.75 and 57.375 of 255).
KINETICS_SPEC = InputSpec(frames=8, fps=30 / 8, resize_side=256, crop=224, mean=(0.45,) * 3, std=(0.225,) * 3)
LONG_SPEC = replace(KINETICS_SPEC, frames=32, fps=15.0)
# Something-Else: 12 frames a second, every second one.
STIN_SPEC = InputSpec(frames=8, fps=6.0, resize_side=256, crop=224)

# Temporal kernel of the first convolution of every block, res2 to res5.
TEMPORAL_KERNELS = ((3, 3, 3), (3, 1, 3, 1), (3, 1, 3, 1, 3, 1), (1, 3, 1))


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What the published networks differ in.

    pool1_padding: of the spatial max pooling after conv1.
    stem_strides: over time, of conv1 and pool1.
    res5_stride: over space; 1 keeps 14 x 14 maps of 224 x 224 frames.
    stride_place: the convolution of a block that strides over space.
    """

    pool1_padding: int = 1
    stem_strides: tuple[int, int] = (1, 1)
    res5_stride: int = 2
    stride_place: StridePlace = "3x3"

    def __post_init__(self) -> None:
        if self.stride_place not in ("3x3", "1x1"):
            raise ValueError(f"stride_place is {self.stride_place!r}; it is '3x3' or '1x1'")
        if self.res5_stride not in (1, 2):
            raise ValueError(f"res5_stride is {self.res5_stride}; it is 1 or 2")


PUBLISHED_SHAPE = Shape()


class ConvNorm(nn.Module):
    """Convolution and batch norm, then ReLU unless told otherwise."""

    def __init__(
        self, inputs: int, outputs: int, kernel: tuple[int, int, int], stride: tuple[int, int, int], *, relu: bool
    ) -> None:
        super().__init__()
        t, h, w = (size // 2 for size in kernel)
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride, (t, h, w), bias=False)
        self.norm = nn.BatchNorm3d(outputs)
        self.relu = relu

    def forward(self, clips: Tensor) -> Tensor:
        maps = conv_norm(clips, self.conv, self.norm)
        return maps.relu_() if self.relu else maps


class Bottleneck(nn.Module):
    """t x 1 x 1, 1 x 3 x 3, 1 x 1 x 1 and a shortcut, projected where width or resolution change."""

    def __init__(self, inputs: int, inner: int, kernel_frames: int, stride: int, place: StridePlace) -> None:
        super().__init__()
        still, step = (1, 1, 1), (1, stride, stride)
        at_a, at_b = (step, still) if place == "1x1" else (still, step)
        self.a = ConvNorm(inputs, inner, (kernel_frames, 1, 1), at_a, relu=True)
        self.b = ConvNorm(inner, inner, (1, 3, 3), at_b, relu=True)
        self.c = ConvNorm(inner, 4 * inner, still, still, relu=False)
        projected = stride != 1 or inputs != 4 * inner
        self.shortcut = ConvNorm(inputs, 4 * inner, still, step, relu=False) if projected else nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        return self.c(self.b(self.a(maps))).add_(self.shortcut(maps)).relu_()


class NonLocal(nn.Module):
    """Non-local block over space and time (Wang et al., equations 2 to 6): maps (B, D, T, H, W) -> the same.

    attention: softmax (embedded Gaussian, affinities divided by sqrt(inner)) or dot_product (divided by their number).
    pool: phi and g see the maps max-pooled by these windows of (T, H, W) (section 3.3); None: as they are.
    """

    def __init__(
        self,
        width: int,
        inner: int,
        *,
        attention: Attention = "softmax",
        pool: tuple[int, int, int] | None = (1, 2, 2),
    ) -> None:
        super().__init__()
        if attention not in ("softmax", "dot_product"):
            raise ValueError(f"attention is {attention!r}; it is 'softmax' or 'dot_product'")
        self.attention, self.pool = attention, pool
        self.theta = nn.Conv3d(width, inner, 1)
        self.phi = nn.Conv3d(width, inner, 1)
        self.g = nn.Conv3d(width, inner, 1)
        self.out = nn.Conv3d(inner, width, 1)
        self.norm = nn.BatchNorm3d(width)
        for conv in (self.theta, self.phi, self.g, self.out):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)  # pyright: ignore[reportArgumentType]
        nn.init.zeros_(self.norm.weight)

    def forward(self, maps: Tensor) -> Tensor:
        seen = F.max_pool3d(maps, self.pool) if self.pool else maps
        theta, phi, g = (
            conv(x).flatten(2).transpose(1, 2)  # (B, places, inner)
            for conv, x in ((self.theta, maps), (self.phi, seen), (self.g, seen))
        )
        if self.attention == "softmax":
            y = F.scaled_dot_product_attention(theta[:, None], phi[:, None], g[:, None])[:, 0]
        else:
            # (theta phi') g / places: nothing stands between the two products, so the small one goes first
            y = theta @ (phi.transpose(1, 2) @ g / g.shape[1])
        y = y.transpose(1, 2).unflatten(2, maps.shape[2:])
        return maps + self.norm(self.out(y))


class Stage(nn.Module):
    """Blocks of one resolution; a non-local block follows those whose number is in `nonlocals`."""

    def __init__(self, blocks: list[Bottleneck], nonlocals: dict[str, NonLocal]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.nonlocals = nn.ModuleDict(nonlocals)

    def forward(self, maps: Tensor) -> Tensor:
        for number, block in enumerate(self.blocks):
            maps = block(maps)
            if str(number) in self.nonlocals:
                maps = self.nonlocals[str(number)](maps)
        return maps


class I3DResNet(Backbone):
    """Clips (B, C, T, H, W) -> maps (B, 2048, T', H', W'): T' about T / 2, H' about H / 32 (H / 16, res5_stride 1).

    nonlocal_attention: None for no non-local blocks, else they follow res3 blocks 1, 3 and res4 blocks 1, 3, 5.
    nonlocal_pool: whether their phi and g see pooled maps.
    dropout: before the classifier, in training.
    """

    feature_dim = 2048
    classifier_weight = "head.weight"

    def __init__(
        self,
        *,
        spec: InputSpec = KINETICS_SPEC,
        shape: Shape = PUBLISHED_SHAPE,
        layouts: tuple[Layout, ...] = (),
        num_classes: int = 0,
        nonlocal_attention: Attention | None = None,
        nonlocal_pool: bool = True,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.input_spec, self.shape, self.layouts = spec, shape, layouts
        conv1_stride, pool1_stride = shape.stem_strides
        self.min_size = (2 * conv1_stride * pool1_stride, 32, 32)
        self.stem = ConvNorm(spec.channels, 64, (5, 7, 7), (conv1_stride, 2, 2), relu=True)
        side = shape.pool1_padding
        self.pool1 = nn.MaxPool3d((pool1_stride, 3, 3), (pool1_stride, 2, 2), (0, side, side))
        self.pool2 = nn.MaxPool3d((2, 1, 1))
        width, stages = 64, []
        strides = (1, 2, 2, shape.res5_stride)
        for number, (kernels, stride) in enumerate(zip(TEMPORAL_KERNELS, strides, strict=True)):
            inner, blocks = 64 * 2**number, []
            for block, kernel in enumerate(kernels):
                blocks.append(Bottleneck(width, inner, kernel, stride if block == 0 else 1, shape.stride_place))
                width = 4 * inner
            nonlocals = {}
            if nonlocal_attention is not None and number in (1, 2):
                for place in range(1, len(kernels), 2):
                    window = (1, 2, 2) if nonlocal_pool else None
                    block = NonLocal(width, width // 2, attention=nonlocal_attention, pool=window)
                    nonlocals[str(place)] = block
            stages.append(Stage(blocks, nonlocals))
        self.res2, self.res3, self.res4, self.res5 = stages
        self._initialise()
        # InputSpec.normalise leaves channels last in memory; weights of the same kind need no reordering at every call.
        self.to(memory_format=torch.channels_last_3d)  # pyright: ignore[reportCallIssue]
        self.dropout = nn.Dropout(dropout)
        self.reset_classifier(num_classes)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, ConvNorm):
                nn.init.kaiming_normal_(module.conv.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Bottleneck):
                nn.init.zeros_(module.c.norm.weight)  # every block starts as its shortcut

    def forward(self, clips: Tensor) -> Tensor:
        maps = self.pool2(self.res2(self.pool1(self.stem(clips))))
        return self.res5(self.res4(self.res3(maps)))

    def output_size(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        conv1, pool1 = self.shape.stem_strides
        t = ((frames - 1) // conv1 + 1) // pool1 // 2
        h, w = (self._side(size) for size in (height, width))
        return t, h, w

    def _side(self, size: int) -> int:
        size = (size - 1) // 2 + 1
        size = (size + 2 * self.shape.pool1_padding - 3) // 2 + 1
        for stride in (2, 2, self.shape.res5_stride):
            size = (size - 1) // stride + 1
        return size

    def classify(self, maps: Tensor) -> Tensor:
        """Logits (B, num_classes) of the mean over time and space."""
        if self.head is None:
            return super().classify(maps)
        return self.head(self.dropout(maps.mean((2, 3, 4))))

    def reset_classifier(self, num_classes: int) -> None:
        self.set_classes(num_classes)
        self.head = nn.Linear(self.feature_dim, num_classes) if num_classes else None
        if self.head is not None:
            nn.init.normal_(self.head.weight, std=0.01)
            nn.init.zeros_(self.head.bias)


def _build(
    spec: InputSpec,
    shape: Shape,
    layouts: tuple[Layout, ...],
    stream: Stream,
    num_classes: int,
    weights: str | Path | None,
    frames: int,
    crop: int,
    attention: Attention | None = None,
    pool: bool = True,
) -> I3DResNet:
    spec = replace(spec, frames=frames, crop=crop, resize_side=max(crop, spec.resize_side))
    backbone = I3DResNet(
        spec=stream_spec(spec, stream),
        shape=shape,
        layouts=layouts,
        num_classes=num_classes,
        nonlocal_attention=attention,
        nonlocal_pool=pool,
    )
    return load_weights(backbone, weights, num_classes=num_classes)


def _pretrained() -> Path:
    """Download pytorchvideo's Kinetics-400 checkpoint, once, into torch's cache."""
    from pytorchvideo.models.hub.resnet import checkpoint_paths

    url = checkpoint_paths["i3d_r50"]
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path))
    return path


@register(
    "i3d_r50",
    paper="Carreira and Zisserman, CVPR 2017",
    streams=STREAMS,
    weights_from="pytorchvideo ('pretrained'), SlowFast",
)
def i3d_r50(
    *,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 8,
    crop: int = 224,
    res5_stride: int = 2,
    stride_place: StridePlace = "3x3",
) -> I3DResNet:
    """I3D-R50 of SlowFast and pytorchvideo. weights "pretrained": pytorchvideo's, Kinetics-400.

    res5_stride: 1 for maps of twice the resolution, as detection has them.
    stride_place: "1x1" for networks trained with RESNET.STRIDE_1X1.
    """
    shape = Shape(res5_stride=res5_stride, stride_place=stride_place)
    layouts = (SLOWFAST, PYTORCHVIDEO, CAFFE2)
    file = _pretrained() if weights == "pretrained" else weights
    return _build(KINETICS_SPEC, shape, layouts, stream, num_classes, file, frames, crop)


@register("i3d_r50_nln", paper="Wang et al., CVPR 2018", streams=STREAMS, weights_from="SlowFast (I3D_NLN_8x8_R50)")
def i3d_r50_nln(
    *,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 8,
    crop: int = 224,
    res5_stride: int = 2,
    stride_place: StridePlace = "3x3",
    attention: Attention = "softmax",
    pool: bool = True,
) -> I3DResNet:
    """I3D-R50 of SlowFast with five non-local blocks. attention, pool: see NonLocal; the rest as i3d_r50."""
    shape = Shape(res5_stride=res5_stride, stride_place=stride_place)
    layouts = (SLOWFAST, CAFFE2)
    return _build(KINETICS_SPEC, shape, layouts, stream, num_classes, weights, frames, crop, attention, pool)


@register(
    "i3d_r50_stin",
    paper="Materzynska et al., CVPR 2020; Yan et al. (Interactive Fusion)",
    streams=STREAMS,
    weights_from="something_else, Interactive_Fusion_for_CAR",
)
def i3d_r50_stin(
    *,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 8,
    crop: int = 224,
) -> I3DResNet:
    """I3D-R50 of STIN and CAR: maps of 14 x 14 from 224 x 224.

    weights: the network alone (STIN's Kinetics initialisation too), or the checkpoint of a whole STIN or CAR model.
    """
    shape = Shape(pool1_padding=0, res5_stride=1)
    return _build(STIN_SPEC, shape, (STIN,), stream, num_classes, weights, frames, crop)


@register(
    "i3d_r50_c2", paper="Wang et al., CVPR 2018", streams=STREAMS, weights_from="video-nonlocal-net (i3d baseline, 8x8)"
)
def i3d_r50_c2(
    *,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 8,
    crop: int = 224,
    res5_stride: int = 2,
) -> I3DResNet:
    """I3D-R50 of video-nonlocal-net for 8 frames."""
    shape = Shape(pool1_padding=0, res5_stride=res5_stride)
    return _build(KINETICS_SPEC, shape, (CAFFE2,), stream, num_classes, weights, frames, crop)


@register(
    "i3d_r50_c2_nln",
    paper="Wang et al., CVPR 2018",
    streams=STREAMS,
    weights_from="video-nonlocal-net (i3d nlnet, 8x8)",
)
def i3d_r50_c2_nln(
    *,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 8,
    crop: int = 224,
    res5_stride: int = 2,
    attention: Attention = "softmax",
    pool: bool = True,
) -> I3DResNet:
    """I3D-R50 of video-nonlocal-net for 8 frames, with non-local blocks."""
    shape = Shape(pool1_padding=0, res5_stride=res5_stride)
    return _build(KINETICS_SPEC, shape, (CAFFE2,), stream, num_classes, weights, frames, crop, attention, pool)


@register(
    "i3d_r50_c2_32x2",
    paper="Wang et al., CVPR 2018",
    streams=STREAMS,
    weights_from="video-nonlocal-net (i3d baseline, 32x2)",
)
def i3d_r50_c2_32x2(
    *,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 32,
    crop: int = 224,
    res5_stride: int = 2,
) -> I3DResNet:
    """I3D-R50 of the non-local paper: 32 frames, every second one; conv1 and pool1 each halve their number."""
    shape = Shape(pool1_padding=0, stem_strides=(2, 2), res5_stride=res5_stride)
    return _build(LONG_SPEC, shape, (CAFFE2,), stream, num_classes, weights, frames, crop)


@register(
    "i3d_r50_c2_nln_32x2",
    paper="Wang et al., CVPR 2018",
    streams=STREAMS,
    weights_from="video-nonlocal-net (i3d nlnet, 32x2)",
)
def i3d_r50_c2_nln_32x2(
    *,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 32,
    crop: int = 224,
    res5_stride: int = 2,
    attention: Attention = "softmax",
    pool: bool = True,
) -> I3DResNet:
    """I3D-R50 of the non-local paper with its five blocks."""
    shape = Shape(pool1_padding=0, stem_strides=(2, 2), res5_stride=res5_stride)
    return _build(LONG_SPEC, shape, (CAFFE2,), stream, num_classes, weights, frames, crop, attention, pool)
