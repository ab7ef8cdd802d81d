"""SlowFast networks: a slow pathway that sees few frames, a fast and thin one that sees all, and Slow alone.

Source: Feichtenhofer, Fan, Malik and He, "SlowFast Networks for Video Recognition", ICCV 2019 (arXiv:1812.03982). The
networks are pytorchvideo's. A backbone here takes one clip and makes both pathways of it: the fast one sees every
frame, the slow one every `alpha`-th. Its map is both pathways' maps, the fast one averaged over time to the slow one's
T', joined over channels: 2048 slow and 256 fast. The mean of that map is what the published classifier eats.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._pytorchvideo_layouts import caffe2_layout, pytorchvideo_layout, slowfast_layout
from ._stage_net import STREAMS, StageNet, channels_last, download, linear, pytorchvideo, sized
from .contract import Backbone, InputSpec, Layout, Stream, register, stream_spec
from .convert import load_weights

# 32 frames, every second of 30 a second.
SLOWFAST_SPEC = InputSpec(frames=32, fps=15.0, resize_side=256, crop=256, mean=(0.45,) * 3, std=(0.225,) * 3)
# 8 frames, every eighth.
SLOW_SPEC = InputSpec(frames=8, fps=30 / 8, resize_side=256, crop=224, mean=(0.45,) * 3, std=(0.225,) * 3)

SLOWFAST_LAYOUTS = (
    pytorchvideo_layout("slowfast_*", head=6, paths=2),
    slowfast_layout("slowfast_*", paths=2),
    caffe2_layout("slowfast_*", paths=2),
)
SLOW_LAYOUTS = (pytorchvideo_layout("slow_r50", head=5), slowfast_layout("slow_r50"), caffe2_layout("slow_r50"))

# Temporal kernels of the first convolution of a block, by stage, where only six blocks of res4 look at neighbours.
_SIX_OF_RES4 = (
    ((1, 1, 1), (1, 1, 1), ((3, 1, 1),) * 6 + ((1, 1, 1),) * 17, (3, 1, 1)),
    ((3, 1, 1), (3, 1, 1), ((3, 1, 1),) * 6 + ((1, 1, 1),) * 17, (3, 1, 1)),
)


def slow_frames(frames: int, alpha: int) -> list[int]:
    """Which of `frames` entries the slow pathway sees: as many as fit every `alpha`-th, spread from first to last."""
    count = -(-frames // alpha)
    return [(frames - 1) * k // max(count - 1, 1) for k in range(count)]


class SlowFast(Backbone):
    """Clips (B, C, T, H, W) -> maps (B, 2304, ceil(T / alpha), ceil(H / 32), ceil(W / 32)).

    alpha: frames of the fast pathway for one of the slow one.
    fusion_frames: temporal kernel of the convolutions from the fast to the slow pathway.
    six_of_res4: only the first six blocks of res4 look at neighbouring frames (R101 50_50).
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
        layouts: tuple[Layout, ...] = (),
        num_classes: int = 0,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if alpha < 1:
            raise ValueError(f"alpha is {alpha}; it is 1 or more frames of the fast pathway for one of the slow one")
        self.input_spec, self.layouts, self.alpha = spec, layouts, alpha
        kernels = {"stage_conv_a_kernel_sizes": _SIX_OF_RES4} if six_of_res4 else {}
        network = pytorchvideo("slowfast").create_slowfast(
            input_channels=(spec.channels, spec.channels),
            model_depth=depth,
            model_num_class=1,
            slowfast_fusion_conv_kernel_size=(fusion_frames, 1, 1),
            slowfast_fusion_conv_stride=(alpha, 1, 1),
            head_pool=None,
            head=None,
            **kernels,
        )
        stages = list(network.blocks)[:5]
        for stage in stages:
            stage.inplace = False  # else it overwrites its input, which activations computed twice need
        self.trunk = nn.Sequential(*stages)
        channels_last(self.trunk)
        self.dropout = nn.Dropout(dropout)
        self.reset_classifier(num_classes)

    def forward(self, clips: Tensor) -> Tensor:
        pathways = [clips[:, :, slow_frames(clips.shape[2], self.alpha)], clips]
        return self.join(self.trunk(pathways))

    def join(self, pathways: list[Tensor]) -> Tensor:
        """Maps of the slow and the fast pathway as one, at the slow one's T'."""
        slow, fast = pathways
        return torch.cat((slow, F.adaptive_avg_pool3d(fast, (slow.shape[2], None, None))), 1)

    def output_size(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        return -(-frames // self.alpha), -(-height // 32), -(-width // 32)

    def stages(self) -> list[list[nn.Module]]:
        """Stems, res2 to res5, of both pathways, each with the convolution that joins them after it."""
        return [[stage] for stage in self.trunk]

    def stage_map(self, output: list[Tensor], batch: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Both pathways' maps at the slow one's T."""
        return self.join(output)

    def classify(self, maps: Tensor) -> Tensor:
        """Logits (B, num_classes) of the mean over time and space."""
        if self.head is None:
            return super().classify(maps)
        return self.head(self.dropout(maps.mean((2, 3, 4))))

    def reset_classifier(self, num_classes: int) -> None:
        self.num_classes, self.class_names = num_classes, ()
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
) -> SlowFast:
    """SlowFast 8x8, R50. weights "pretrained": pytorchvideo's, Kinetics-400.

    SlowFast 4x16 is alpha=8, fusion_frames=5.
    """
    spec = stream_spec(sized(SLOWFAST_SPEC, frames, crop), stream)
    backbone = SlowFast(
        50, spec=spec, alpha=alpha, fusion_frames=fusion_frames, layouts=SLOWFAST_LAYOUTS, num_classes=num_classes
    )
    file = download(weights, _url("slowfast_r50"))
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
    backbone = SlowFast(101, spec=spec, alpha=alpha, fusion_frames=5, layouts=SLOWFAST_LAYOUTS, num_classes=num_classes)
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
        layouts=SLOWFAST_LAYOUTS,
        num_classes=num_classes,
    )
    file = download(weights, _url("slowfast_16x8_r101_50_50"))
    return load_weights(backbone, file, num_classes=num_classes)


@register("slow_r50", paper=PAPER, streams=STREAMS, weights_from=FROM_BOTH)
def slow_r50(
    *,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 8,
    crop: int = 224,
    dropout: float = 0.5,
) -> StageNet:
    """The slow pathway alone, R50: T stays. weights "pretrained": pytorchvideo's, Kinetics-400, 8 frames."""
    network = pytorchvideo("resnet").create_resnet(model_depth=50, model_num_class=1, stem_conv_kernel_size=(1, 7, 7))
    backbone = StageNet(
        nn.Sequential(*list(network.blocks)[:5]),
        spec=stream_spec(sized(SLOW_SPEC, frames, crop), stream),
        feature_dim=2048,
        strides=(1, 32, 32),
        layouts=SLOW_LAYOUTS,
        num_classes=num_classes,
        dropout=dropout,
    )
    return load_weights(backbone, download(weights, _url("slow_r50")), num_classes=num_classes)
