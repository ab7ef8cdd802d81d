"""X3D: a small 2-D network expanded over time, space, width and depth, one axis after another.

Source: Feichtenhofer, "X3D: Expanding Architectures for Efficient Video Recognition", CVPR 2020 (arXiv:2004.04730). The
networks are pytorchvideo's; the map is that of conv5, before the pooling of the head. Those of
facebookresearch/SlowFast also norm the first shortcut, which strides and keeps its width.
Differs: the published head ends in a softmax; here `classify` gives its logits.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ._pytorchvideo_layouts import pytorchvideo_layout, slowfast_layout
from ._stage_net import STREAMS, StageNet, download, linear, pytorchvideo, sized
from .contract import Backbone, InputSpec, Stream, register, stream_spec
from .convert import load_weights, tensors_of

# Sides are those of the published tests; training cropped XS and S to 160, M to 224, L to 312 pixels.
XS_SPEC = InputSpec(frames=4, fps=30 / 12, resize_side=182, crop=182, mean=(0.45,) * 3, std=(0.225,) * 3)
S_SPEC = InputSpec(frames=13, fps=5.0, resize_side=182, crop=182, mean=(0.45,) * 3, std=(0.225,) * 3)
M_SPEC = InputSpec(frames=16, fps=6.0, resize_side=256, crop=256, mean=(0.45,) * 3, std=(0.225,) * 3)
L_SPEC = InputSpec(frames=16, fps=6.0, resize_side=356, crop=356, mean=(0.45,) * 3, std=(0.225,) * 3)

LAYOUTS = (pytorchvideo_layout("x3d_*", head=5), slowfast_layout("x3d_*"))


class X3D(StageNet):
    """Maps (B, 432, T, ceil(H / 32), ceil(W / 32)); the classifier has a layer of 2048 before its last one."""

    classifier_weight = "head.proj.weight"

    def classify(self, maps: Tensor) -> Tensor:
        if self.head is None:
            return Backbone.classify(self, maps)
        pooled = self.head.post_conv(maps.mean((2, 3, 4), keepdim=True)).flatten(1).relu()
        return self.head.proj(self.dropout(pooled))

    def reset_classifier(self, num_classes: int) -> None:
        """The layer before the last one stays where there is one."""
        self.set_classes(num_classes)
        if not num_classes:
            self.head = None
        elif getattr(self, "head", None) is None:
            before = nn.Conv3d(self.feature_dim, 2048, 1, bias=False)
            self.head = nn.ModuleDict({"post_conv": before, "proj": linear(2048, num_classes)})
        else:
            self.head["proj"] = linear(2048, num_classes)


def _norms_first_shortcut(weights: str | Path | None) -> bool:
    names = tensors_of(weights)
    return "s2.pathway0_res0.branch1_bn.weight" in names or "trunk.1.res_blocks.0.branch1_norm.weight" in names


def _norm_first_shortcut(trunk: nn.Sequential) -> None:
    block: Any = trunk.get_submodule("1.res_blocks.0")
    block.branch1_norm = nn.BatchNorm3d(block.branch1_conv.out_channels)


def _x3d(
    name: str,
    spec: InputSpec,
    depth_factor: float,
    *,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int,
    crop: int,
    shortcut_norm: bool | None = None,
) -> X3D:
    """X3D-XS, S and M, which differ in their clips, and L, which is deeper. weights "pretrained": pytorchvideo's,
    Kinetics-400.

    shortcut_norm: norm the first shortcut, as SlowFast does and pytorchvideo does not; None: as the weights have it.
    """
    # The sizes of the clip only set the head's pooling, which is a mean here.
    blocks = list(
        pytorchvideo("x3d").create_x3d(model_num_class=1, depth_factor=depth_factor, inner_act=nn.SiLU).blocks
    )
    last = blocks[5].pool
    conv5 = nn.Sequential(OrderedDict(conv=last.pre_conv, norm=last.pre_norm, act=last.pre_act))
    normed = _norms_first_shortcut(weights) if shortcut_norm is None else shortcut_norm
    backbone = X3D(
        nn.Sequential(*blocks[:5], conv5),
        spec=stream_spec(sized(spec, frames, crop), stream),
        feature_dim=last.pre_conv.out_channels,
        strides=(1, 32, 32),
        layouts=LAYOUTS,
        num_classes=num_classes,
    )
    if normed:
        _norm_first_shortcut(backbone.trunk)
    backbone.settled = {"shortcut_norm": normed} if normed else {}
    urls = pytorchvideo("hub.x3d").checkpoint_paths
    return load_weights(backbone, download(weights, urls[name]), num_classes=num_classes)


_SIZES = {"x3d_xs": (XS_SPEC, 2.2), "x3d_s": (S_SPEC, 2.2), "x3d_m": (M_SPEC, 2.2), "x3d_l": (L_SPEC, 5.0)}
for _name, (_spec, _depth) in _SIZES.items():
    register(
        _name, paper="Feichtenhofer, CVPR 2020", streams=STREAMS, weights_from="pytorchvideo ('pretrained'), SlowFast"
    )(partial(_x3d, _name, _spec, _depth, frames=_spec.frames, crop=_spec.crop))
