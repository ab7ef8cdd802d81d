"""S3D: Inception over clips, every 3-D convolution split into one over space and one over time.

Source: Xie, Sun, Huang, Tu and Murphy, "Rethinking Spatiotemporal Feature Learning", ECCV 2018 (arXiv:1712.04851). The
network is torchvision's, without gating.
Differs: logits are of the mean over the map, where torchvision averages windows of 2 x 7 x 7 first: the same for
7 x 7 maps of two steps, and with more steps the first and last count as much as the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn
from torchvision.models import video as tv

from ._stage_net import STREAMS, StageNet, load_torchvision, sized
from .contract import InputSpec, Layout, Stream, register, stream_spec
from .convert import published, rename

# 64 frames, every second of 30 a second.
S3D_SPEC = InputSpec(
    frames=64,
    fps=15.0,
    resize_side=256,
    crop=224,
    mean=(0.43216, 0.394666, 0.37645),
    std=(0.22803, 0.22145, 0.216989),
)


def _from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    ours = rename(state, (r"features\.(.+)", r"trunk.\1"), (r"classifier\.1\.(.+)", r"head.\1"))
    if "head.weight" in ours:
        ours["head.weight"] = ours["head.weight"].flatten(1)  # a 1 x 1 x 1 kernel
    return ours


def _is_torchvision(state: Mapping[str, Tensor]) -> bool:
    return "features.0.0.0.weight" in state and "features.5.branch1.1.0.0.weight" in state


TORCHVISION = published(Layout(name="torchvision (s3d)", recognises=_is_torchvision, convert=_from_torchvision))


class S3D(StageNet):
    """Maps (B, 1024, T', H', W'), T' about T / 8 and H' about H / 32."""

    min_size = (8, 32, 32)

    def output_size(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        # the last pooling leaves an odd row out
        t, h, w = super().output_size(frames, height, width)
        return t // 2, h // 2, w // 2


@register("s3d", paper="Xie et al., ECCV 2018", streams=STREAMS, weights_from="torchvision ('pretrained')")
def s3d(
    *,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 64,
    crop: int = 224,
    dropout: float = 0.2,
) -> S3D:
    """S3D. weights "pretrained": torchvision's, Kinetics-400."""
    network = tv.s3d(num_classes=1)
    backbone = S3D(
        nn.Sequential(*network.features),
        spec=stream_spec(sized(S3D_SPEC, frames, crop), stream),
        feature_dim=1024,
        strides=(4, 16, 16),
        layouts=(TORCHVISION,),
        num_classes=num_classes,
        dropout=dropout,
    )
    best = tv.S3D_Weights.DEFAULT
    return load_torchvision(backbone, weights, best, num_classes=num_classes, layout=TORCHVISION)
