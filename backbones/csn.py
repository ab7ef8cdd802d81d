"""Channel-separated networks with reduced interaction (ir-CSN): all 3 x 3 x 3 convolutions are depthwise.

Source: Tran, Wang, Torresani and Feiszli, "Video Classification with Channel-Separated Convolutional Networks", ICCV
2019 (arXiv:1904.02811). The networks are pytorchvideo's. Published weights of 152 layers are those of
facebookresearch/VMZ, whose norms add 1e-3 to the variance.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from ._pytorchvideo_layouts import pytorchvideo_layout
from ._stage_net import STREAMS, StageNet, download, pytorchvideo, sized
from .contract import InputSpec, Layout, Stream, register, stream_spec
from .convert import load_weights, published, rename

# 32 frames, every second of 30 a second.
CSN_SPEC = InputSpec(frames=32, fps=15.0, resize_side=256, crop=224, mean=(0.45,) * 3, std=(0.225,) * 3)

PYTORCHVIDEO = pytorchvideo_layout("csn_r101, csn_r152", head=5)


def _from_vmz(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    rules = [
        (r"stem\.0\.(.+)", r"trunk.0.conv.\1"),
        (r"stem\.1\.(.+)", r"trunk.0.norm.\1"),
        (r"fc\.(.+)", r"head.\1"),
    ]
    for layer in (1, 2, 3, 4):
        here, ours = rf"layer{layer}\.(\d+)", rf"trunk.{layer}.res_blocks.\1"
        rules.append((here + r"\.downsample\.0\.(.+)", ours + r".branch1_conv.\2"))
        rules.append((here + r"\.downsample\.1\.(.+)", ours + r".branch1_norm.\2"))
        for part, name in ((1, "a"), (2, "b"), (3, "c")):
            rules.append((here + rf"\.conv{part}\.0\.(.+)", ours + rf".branch2.conv_{name}.\2"))
            rules.append((here + rf"\.conv{part}\.1\.(.+)", ours + rf".branch2.norm_{name}.\2"))
    return rename(state, *rules)


def _is_vmz(state: Mapping[str, Tensor]) -> bool:
    middle = state.get("layer1.0.conv2.0.weight")
    return "stem.0.weight" in state and middle is not None and middle.ndim == 5 and middle.shape[1] == 1


VMZ = published(
    Layout(
        name="facebookresearch/VMZ ir-CSN (csn_r152)",
        recognises=_is_vmz,
        convert=_from_vmz,
        spec={"mean": (0.43216, 0.394666, 0.37645), "std": (0.22803, 0.22145, 0.216989)},
    )
)


def _build(
    depth: int,
    eps: float,
    layouts: tuple[Layout, ...],
    stream: Stream,
    num_classes: int,
    frames: int,
    crop: int,
    dropout: float,
) -> StageNet:
    network = pytorchvideo("csn").create_csn(model_depth=depth, model_num_class=1, stem_pool=nn.MaxPool3d)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eps = eps
    return StageNet(
        nn.Sequential(*list(network.blocks)[:5]),
        spec=stream_spec(sized(CSN_SPEC, frames, crop), stream),
        feature_dim=2048,
        strides=(8, 32, 32),
        layouts=layouts,
        num_classes=num_classes,
        dropout=dropout,
    )


@register("csn_r101", paper="Tran et al., ICCV 2019", streams=STREAMS, weights_from="pytorchvideo ('pretrained')")
def csn_r101(
    *,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 32,
    crop: int = 224,
    dropout: float = 0.0,
) -> StageNet:
    """ir-CSN of 101 layers. weights "pretrained": pytorchvideo's, Kinetics-400."""
    backbone = _build(101, 1e-5, (PYTORCHVIDEO,), stream, num_classes, frames, crop, dropout)
    return load_weights(
        backbone, download(weights, pytorchvideo("hub.csn").checkpoint_paths["csn_r101"]), num_classes=num_classes
    )


@register("csn_r152", paper="Tran et al., ICCV 2019", streams=STREAMS, weights_from="VMZ (irCSN_152)")
def csn_r152(
    *,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 32,
    crop: int = 224,
    dropout: float = 0.0,
) -> StageNet:
    """ir-CSN of 152 layers."""
    backbone = _build(152, 1e-3, (VMZ,), stream, num_classes, frames, crop, dropout)
    return load_weights(backbone, weights, num_classes=num_classes)
