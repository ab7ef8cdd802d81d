"""R3D, MC3 and R(2+1)D: 3-D convolutions in all layers, in the first layers, and split into space and time.

Source: Tran et al., "A Closer Look at Spatiotemporal Convolutions for Action Recognition", CVPR 2018
(arXiv:1711.11248). The 18-layer networks are torchvision's, the one of 50 layers is pytorchvideo's.
Differs: the published head of `r2plus1d_r50` ends in a softmax; here `classify` gives its logits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor, nn
from torchvision.models import WeightsEnum
from torchvision.models import video as tv

from ._pytorchvideo_layouts import pytorchvideo_layout
from ._stage_net import STREAMS, StageNet, download, load_torchvision, pytorchvideo, sized
from .contract import InputSpec, Layout, Stream, register, stream_spec
from .convert import load_weights, published, rename

# 16 frames, every second of 30 a second. torchvision squeezes frames to 128 x 171; here the shorter side is 128.
TORCHVISION_SPEC = InputSpec(
    frames=16,
    fps=15.0,
    resize_side=128,
    crop=112,
    mean=(0.43216, 0.394666, 0.37645),
    std=(0.22803, 0.22145, 0.216989),
)
# 16 frames, every fourth.
PYTORCHVIDEO_SPEC = InputSpec(frames=16, fps=7.5, resize_side=256, crop=224, mean=(0.45,) * 3, std=(0.225,) * 3)

_PARTS = ("stem", "layer1", "layer2", "layer3", "layer4")


def _from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return rename(state, (r"((?:stem|layer\d)\..+)", r"trunk.\1"), (r"fc\.(.+)", r"head.\1"))


def _is_torchvision(state: Mapping[str, Tensor]) -> bool:
    return "stem.0.weight" in state and "layer4.0.conv1.1.weight" in state and "layer4.0.conv3.1.weight" not in state


TORCHVISION = published(
    Layout(
        name="torchvision (r3d_18, mc3_18, r2plus1d_18)",
        recognises=_is_torchvision,
        convert=_from_torchvision,
    )
)
PYTORCHVIDEO = pytorchvideo_layout("r2plus1d_r50", head=5)


def _torchvision(
    make: Callable[..., nn.Module],
    best: WeightsEnum,
    frame_stride: int,
    stream: Stream,
    num_classes: int,
    weights: str | Path | None,
    frames: int,
    crop: int,
    dropout: float,
) -> StageNet:
    network = make(num_classes=1)
    backbone = StageNet(
        nn.Sequential(OrderedDict((part, network.get_submodule(part)) for part in _PARTS)),
        spec=stream_spec(sized(TORCHVISION_SPEC, frames, crop), stream),
        feature_dim=512,
        strides=(frame_stride, 16, 16),
        layouts=(TORCHVISION,),
        num_classes=num_classes,
        dropout=dropout,
    )
    return load_torchvision(backbone, weights, best, num_classes=num_classes, layout=TORCHVISION)


@register("r3d_18", paper="Tran et al., CVPR 2018", streams=STREAMS, weights_from="torchvision ('pretrained')")
def r3d_18(
    *,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 16,
    crop: int = 112,
    dropout: float = 0.0,
) -> StageNet:
    """ResNet-18 of 3 x 3 x 3 convolutions. weights "pretrained": torchvision's, Kinetics-400."""
    best = tv.R3D_18_Weights.DEFAULT
    return _torchvision(tv.r3d_18, best, 8, stream, num_classes, weights, frames, crop, dropout)


@register("mc3_18", paper="Tran et al., CVPR 2018", streams=STREAMS, weights_from="torchvision ('pretrained')")
def mc3_18(
    *,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 16,
    crop: int = 112,
    dropout: float = 0.0,
) -> StageNet:
    """ResNet-18, 3-D up to its first stage and 2-D after it: T stays. weights "pretrained": as r3d_18."""
    best = tv.MC3_18_Weights.DEFAULT
    return _torchvision(tv.mc3_18, best, 1, stream, num_classes, weights, frames, crop, dropout)


@register("r2plus1d_18", paper="Tran et al., CVPR 2018", streams=STREAMS, weights_from="torchvision ('pretrained')")
def r2plus1d_18(
    *,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 16,
    crop: int = 112,
    dropout: float = 0.0,
) -> StageNet:
    """ResNet-18 of 1 x 3 x 3 and 3 x 1 x 1 convolutions. weights "pretrained": as r3d_18."""
    best = tv.R2Plus1D_18_Weights.DEFAULT
    return _torchvision(tv.r2plus1d_18, best, 8, stream, num_classes, weights, frames, crop, dropout)


@register("r2plus1d_r50", paper="Tran et al., CVPR 2018", streams=STREAMS, weights_from="pytorchvideo ('pretrained')")
def r2plus1d_r50(
    *,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 16,
    crop: int = 224,
    dropout: float = 0.5,
) -> StageNet:
    """R(2+1)D of 50 layers. weights "pretrained": pytorchvideo's, Kinetics-400, 16 frames, every fourth."""
    backbone = StageNet(
        nn.Sequential(*list(pytorchvideo("r2plus1d").create_r2plus1d(model_num_class=1).blocks)[:-1]),
        spec=stream_spec(sized(PYTORCHVIDEO_SPEC, frames, crop), stream),
        feature_dim=2048,
        strides=(4, 32, 32),
        layouts=(PYTORCHVIDEO,),
        num_classes=num_classes,
        dropout=dropout,
    )
    urls = pytorchvideo("hub.r2plus1d").checkpoint_paths
    return load_weights(backbone, download(weights, urls["r2plus1d_r50"]), num_classes=num_classes)
