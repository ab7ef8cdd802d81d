"""C2D: an image ResNet-50 on every frame, with one pooling over time.

Source: the baseline of Wang et al., "Non-local Neural Networks", CVPR 2018 (arXiv:1711.07971, table 1). The network is
pytorchvideo's. The file of facebookresearch/SlowFast's zoo, C2D_NOPOOL_8x8_R50.pkl, is of a network without the pooling
over time (`temporal_pool=False`); its keys are the same.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ._pytorchvideo_layouts import POOLED, caffe2_layout, pytorchvideo_layout, slowfast_layout
from ._stage_net import STREAMS, StageNet, download, pytorchvideo, sized
from .contract import InputSpec, Stream, register, stream_spec
from .convert import load_weights

# 8 frames, every eighth of 30 a second.
C2D_SPEC = InputSpec(frames=8, fps=30 / 8, resize_side=256, crop=224, mean=(0.45,) * 3, std=(0.225,) * 3)

LAYOUTS = (
    pytorchvideo_layout("c2d_r50", head=6),
    slowfast_layout("c2d_r50", blocks=POOLED),
    caffe2_layout("c2d_r50", blocks=POOLED),
)


class C2D(StageNet):
    """Maps (B, 2048, floor(T / 2), ceil(H / 32), ceil(W / 32)): an odd last frame is left out after res2. Without the
    pooling T stays.
    """

    temporal_pool: bool = True
    min_size = (2, 32, 32)

    def output_size(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        _, h, w = super().output_size(frames, height, width)
        return frames // 2 if self.temporal_pool else frames, h, w


@register(
    "c2d_r50", paper="Wang et al., CVPR 2018", streams=STREAMS, weights_from="pytorchvideo ('pretrained'), SlowFast"
)
def c2d_r50(
    *,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 8,
    crop: int = 224,
    dropout: float = 0.5,
    temporal_pool: bool = True,
) -> C2D:
    """C2D of 50 layers. weights "pretrained": pytorchvideo's, Kinetics-400. temporal_pool: see above."""
    network = pytorchvideo("resnet").create_resnet(
        model_depth=50,
        model_num_class=1,
        stem_conv_kernel_size=(1, 7, 7),
        stage1_pool=nn.MaxPool3d,
        stage_conv_a_kernel_size=((1, 1, 1),) * 4,
    )
    blocks = list(network.blocks)[:6]
    if not temporal_pool:
        blocks[2] = nn.Identity()
    backbone = C2D(
        nn.Sequential(*blocks),
        spec=stream_spec(sized(C2D_SPEC, frames, crop), stream),
        feature_dim=2048,
        strides=(2, 32, 32),
        layouts=LAYOUTS,
        num_classes=num_classes,
        dropout=dropout,
    )
    backbone.temporal_pool = temporal_pool
    urls = pytorchvideo("hub.resnet").checkpoint_paths
    return load_weights(backbone, download(weights, urls["c2d_r50"]), num_classes=num_classes)
