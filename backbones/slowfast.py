"""SlowFast networks: a slow pathway that sees few frames, a fast and thin one that sees all, and Slow alone.

Source: Feichtenhofer, Fan, Malik and He, "SlowFast Networks for Video Recognition", ICCV 2019 (arXiv:1812.03982). The
networks are pytorchvideo's. A backbone here takes one clip and makes both pathways of it: the fast one sees every
frame, the slow one every `alpha`-th. Its map is both pathways' maps, the fast one averaged over time to the slow one's
T', joined over channels: 2048 slow and 256 fast. The mean of that map is what the published classifier eats.

Networks tuned for boxes on AVA (`detection=True`) have a res5 that dilates by 2 in place of striding, and their
classifier eats the mean over time and then the maximum over the places of a box; `classify` takes the whole frame for
the box. Source of these, and of the non-local blocks: facebookresearch/SlowFast, configs/AVA.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._pytorchvideo_layouts import caffe2_layout, pytorchvideo_layout, slowfast_layout
from ._stage_net import STREAMS, StageNet, download, linear, pytorchvideo, sized
from .contract import Backbone, InputSpec, Layout, Stream, channels_last, pool_clip, register, stream_spec
from .convert import load_weights
from .i3d_resnet import NonLocal

# 32 frames, every second of 30 a second.
SLOWFAST_SPEC = InputSpec(frames=32, fps=15.0, resize_side=256, crop=256, mean=(0.45,) * 3, std=(0.225,) * 3)
# 8 frames, every eighth.
SLOW_SPEC = InputSpec(frames=8, fps=30 / 8, resize_side=256, crop=224, mean=(0.45,) * 3, std=(0.225,) * 3)
# 4 frames, every sixteenth: as long a clip.
SLOW_4X16_SPEC = replace(SLOW_SPEC, frames=4, fps=30 / 16)


@cache
def _slowfast_layouts(*, detection: bool) -> tuple[Layout, ...]:
    return (
        pytorchvideo_layout("slowfast_*", head=6, paths=2, detection=detection),
        slowfast_layout("slowfast_*", paths=2, detection=detection),
        caffe2_layout("slowfast_*", paths=2, detection=detection),
    )


@cache
def _slow_layouts(*, detection: bool) -> tuple[Layout, ...]:
    return (
        pytorchvideo_layout("slow_r50", head=5, detection=detection),
        slowfast_layout("slow_r50", detection=detection),
        caffe2_layout("slow_r50", detection=detection),
    )


# so that a file given to another backbone is called by its name
_slowfast_layouts(detection=False)
_slow_layouts(detection=False)

# Temporal kernels of the first convolution of a block, by stage, where only six blocks of res4 look at neighbours.
_SIX_OF_RES4 = (
    ((1, 1, 1), (1, 1, 1), ((3, 1, 1),) * 6 + ((1, 1, 1),) * 17, (3, 1, 1)),
    ((3, 1, 1), (3, 1, 1), ((3, 1, 1),) * 6 + ((1, 1, 1),) * 17, (3, 1, 1)),
)


def slow_frames(frames: int, alpha: int) -> list[int]:
    """Which of `frames` entries the slow pathway sees: as many as fit every `alpha`-th, spread from first to last."""
    count = -(-frames // alpha)
    return [(frames - 1) * k // max(count - 1, 1) for k in range(count)]


# Blocks of res4 that a non-local block follows on the slow pathway.
_NONLOCAL_RES4 = (6, 13, 20)


class _AfterBlock:
    """Forward hook: the block's child `nonlocal` sees its output."""

    def __call__(self, block: nn.Module, _inputs: tuple[Tensor, ...], maps: Tensor) -> Tensor:
        return block.get_submodule("nonlocal")(maps)


def _pool_boxes(maps: Tensor) -> Tensor:
    """Maps (B, D, T, H, W) -> (B, D), of one box around the frame."""
    return maps.mean(2).amax((2, 3))


class SlowFast(Backbone):
    """Clips (B, C, T, H, W) -> maps (B, 2304, ceil(T / alpha), ceil(H / 32), ceil(W / 32)); with `detection` H / 16.

    alpha: frames of the fast pathway for one of the slow one.
    fusion_frames: temporal kernel of the convolutions from the fast to the slow pathway.
    six_of_res4: only the first six blocks of res4 look at neighbouring frames (R101 50_50).
    nonlocal_res4: non-local blocks (dot product) follow blocks 6, 13 and 20 of the slow pathway's res4.
    detection: see above.
    """

    feature_dim = 2048 + 256
    classifier_weight = "head.weight"

    def __init__(
        self,
        depth: int,
        *,
        spec: InputSpec = SLOWFAST_SPEC,
        alpha: int = 4,
        fusion_frames: int = 7,
        six_of_res4: bool = False,
        nonlocal_res4: bool = False,
        detection: bool = False,
        num_classes: int = 0,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if alpha < 1:
            raise ValueError(f"alpha is {alpha}; it is 1 or more frames of the fast pathway for one of the slow one")
        self.input_spec, self.alpha, self.detection = spec, alpha, detection
        self.layouts = _slowfast_layouts(detection=detection)
        kernels = {"stage_conv_a_kernel_sizes": _SIX_OF_RES4} if six_of_res4 else {}
        last = (1, 2, 2) if detection else (1, 1, 1)
        network = pytorchvideo("slowfast").create_slowfast(
            input_channels=(spec.channels, spec.channels),
            model_depth=depth,
            model_num_class=1,
            slowfast_fusion_conv_kernel_size=(fusion_frames, 1, 1),
            slowfast_fusion_conv_stride=(alpha, 1, 1),
            stage_conv_b_dilations=(((1, 1, 1), (1, 1, 1), (1, 1, 1), last),) * 2,
            stage_spatial_strides=((1, 2, 2, 1 if detection else 2),) * 2,
            head_pool=None,
            head=None,
            **kernels,
        )
        stages = list(network.blocks)[:5]
        for stage in stages:
            stage.inplace = False  # else it overwrites its input, which activations computed twice need
        self.trunk = nn.Sequential(*stages)
        for number in _NONLOCAL_RES4 if nonlocal_res4 else ():
            block = self.trunk.get_submodule(f"3.multipathway_blocks.0.res_blocks.{number}")
            block.add_module("nonlocal", NonLocal(1024, 512, attention="dot_product", pool=(2, 2, 2)))
            block.register_forward_hook(_AfterBlock())
        if nonlocal_res4:
            self.min_size = (2 * alpha, 32, 32)  # two steps of the slow pathway are pooled
        channels_last(self.trunk)
        self.dropout = nn.Dropout(dropout)
        self.reset_classifier(num_classes)

    def forward(self, clips: Tensor) -> Tensor:
        # not by a list of indices, which would be sent to the GPU, and does not come out channels last
        slow = torch.cat([clips[:, :, t : t + 1] for t in slow_frames(clips.shape[2], self.alpha)], 2)
        return self.join(self.trunk([slow, clips]))

    def join(self, pathways: list[Tensor]) -> Tensor:
        """Maps of the slow and the fast pathway as one, at the slow one's T'."""
        slow, fast = pathways
        return torch.cat((slow, F.adaptive_avg_pool3d(fast, (slow.shape[2], None, None))), 1)

    def output_size(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        stride = 16 if self.detection else 32
        return -(-frames // self.alpha), -(-height // stride), -(-width // stride)

    def stages(self) -> list[list[nn.Module]]:
        """Stems, res2 to res5, of both pathways, each with the convolution that joins them after it."""
        return [[stage] for stage in self.trunk]

    def stage_map(self, output: list[Tensor], clips: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Both pathways' maps at the slow one's T."""
        return self.join(output)

    def classify(self, maps: Tensor) -> Tensor:
        """Logits (B, num_classes) of the mean over time and space, or of a box around the frame."""
        if self.head is None:
            return super().classify(maps)
        return self.head(self.dropout(_pool_boxes(maps) if self.detection else pool_clip(maps)))

    def reset_classifier(self, num_classes: int) -> None:
        self.set_classes(num_classes)
        self.head = linear(self.feature_dim, num_classes) if num_classes else None


def _url(name: str) -> str:
    return {**pytorchvideo("hub.resnet").checkpoint_paths, **pytorchvideo("hub.slowfast").checkpoint_paths}[name]


PAPER = "Feichtenhofer et al., ICCV 2019"
FROM_BOTH = "pytorchvideo ('pretrained'), SlowFast, Caffe2"


@register("slowfast_r50", paper=PAPER, streams=STREAMS, weights_from=FROM_BOTH)
def slowfast_r50(
    *,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 32,
    crop: int = 256,
    alpha: int = 4,
    fusion_frames: int = 7,
    detection: bool = False,
) -> SlowFast:
    """SlowFast 8x8, R50. weights "pretrained": pytorchvideo's, Kinetics-400 (AVA with `detection`).

    SlowFast 4x16 is alpha=8, fusion_frames=5. detection: see SlowFast.
    """
    spec = stream_spec(sized(SLOWFAST_SPEC, frames, crop), stream)
    backbone = SlowFast(
        50, spec=spec, alpha=alpha, fusion_frames=fusion_frames, detection=detection, num_classes=num_classes
    )
    file = download(weights, _url("slowfast_r50_detection" if detection else "slowfast_r50"))
    return load_weights(backbone, file, num_classes=num_classes)


@register("slowfast_r101", paper=PAPER, streams=STREAMS, weights_from=FROM_BOTH)
def slowfast_r101(
    *,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 32,
    crop: int = 256,
    alpha: int = 4,
) -> SlowFast:
    """SlowFast 8x8, R101. weights "pretrained": pytorchvideo's, Kinetics-400."""
    spec = stream_spec(sized(SLOWFAST_SPEC, frames, crop), stream)
    backbone = SlowFast(101, spec=spec, alpha=alpha, fusion_frames=5, num_classes=num_classes)
    file = download(weights, _url("slowfast_r101"))
    return load_weights(backbone, file, num_classes=num_classes)


@register("slowfast_16x8_r101_50_50", paper=PAPER, streams=STREAMS, weights_from=FROM_BOTH)
def slowfast_16x8_r101_50_50(
    *,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 64,
    crop: int = 256,
    alpha: int = 4,
) -> SlowFast:
    """SlowFast 16x8, R101 with temporal kernels in six blocks of res4. weights: as slowfast_r101."""
    spec = stream_spec(sized(SLOWFAST_SPEC, frames, crop), stream)
    backbone = SlowFast(
        101,
        spec=spec,
        alpha=alpha,
        fusion_frames=5,
        six_of_res4=True,
        num_classes=num_classes,
    )
    file = download(weights, _url("slowfast_16x8_r101_50_50"))
    return load_weights(backbone, file, num_classes=num_classes)


@register(
    "slowfast_r101_50_50_nln", paper=PAPER, streams=STREAMS, weights_from="SlowFast, Caffe2: AVA and its Kinetics-600"
)
def slowfast_r101_50_50_nln(
    *,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 32,
    crop: int = 256,
    alpha: int = 4,
    detection: bool = False,
) -> SlowFast:
    """SlowFast 8x8 (16x8: frames=64), R101 50_50 with non-local blocks: detection=True for AVA, else Kinetics-600."""
    spec = stream_spec(sized(SLOWFAST_SPEC, frames, crop), stream)
    backbone = SlowFast(
        101,
        spec=spec,
        alpha=alpha,
        fusion_frames=5,
        six_of_res4=True,
        nonlocal_res4=True,
        detection=detection,
        num_classes=num_classes,
    )
    return load_weights(backbone, weights, num_classes=num_classes)


class Slow(StageNet):
    """Maps (B, 2048, T, ceil(H / 32), ceil(W / 32)); with `detection`, which changes the classifier too, H / 16."""

    detection: bool = False

    def classify(self, maps: Tensor) -> Tensor:
        if self.head is None or not self.detection:
            return super().classify(maps)
        return self.head(self.dropout(_pool_boxes(maps)))


@register("slow_r50", paper=PAPER, streams=STREAMS, weights_from=FROM_BOTH)
def slow_r50(
    *,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 8,
    crop: int = 224,
    dropout: float = 0.5,
    detection: bool = False,
) -> Slow:
    """The slow pathway alone, R50: T stays. weights "pretrained": pytorchvideo's, Kinetics-400, 8 frames; with
    `detection` (see SlowFast) AVA's.

    frames: 8, every 8th of 30 a second, or 4, every 16th, were published (4x16; `detection` with frames=4).
    """
    stride = 1 if detection else 2
    network = pytorchvideo("resnet").create_resnet(
        model_depth=50,
        model_num_class=1,
        stem_conv_kernel_size=(1, 7, 7),
        stage_conv_b_dilation=((1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 2, 2) if detection else (1, 1, 1)),
        stage_spatial_h_stride=(1, 2, 2, stride),
        stage_spatial_w_stride=(1, 2, 2, stride),
    )
    backbone = Slow(
        nn.Sequential(*list(network.blocks)[:5]),
        spec=stream_spec(sized(SLOW_4X16_SPEC if frames == 4 else SLOW_SPEC, frames, crop), stream),
        feature_dim=2048,
        strides=(1, 16 * stride, 16 * stride),
        layouts=_slow_layouts(detection=detection),
        num_classes=num_classes,
        dropout=dropout,
    )
    backbone.detection = detection
    file = download(weights, _url("slow_r50_detection" if detection else "slow_r50"))
    return load_weights(backbone, file, num_classes=num_classes)
