"""GSM and GSF: gates that learn which features go to the next and the previous frame.

Sources: Sudhakaran, Escalera and Lanz, "Gate-Shift Networks for Video Action Recognition", CVPR 2020
(arXiv:1912.00381), code swathikirans/GSM; the same, "Gate-Shift-Fuse for Video Action Recognition", TPAMI 2023
(arXiv:2203.08897), code swathikirans/GSF. `gsm:NETWORK` and `gsf:NETWORK`, where NETWORK is bninception, inception_v3
(tsn-pytorch's, see inception_v3.py) or any ResNet of timm. A gate stands behind one convolution of each Inception block
and behind the last one of each residual branch, before the norm.
Differs: gates with a channel number that 4 does not divide take the next greater one that it does; the public GSF fails
there. GSM in ResNets is not published; it stands where GSF does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from . import bninception, inception_v3
from ._clip_length import add_gate
from ._convolution import convolve
from ._inception import INCEPTIONS, ConvUnit, Inception, caffe_spec, inceptions
from ._resnets import LAYERS, ClipResNet, from_tsn_code, last_conv, resnets
from .contract import Backbone, Layout, Stream, register
from .convert import load_weights, published, tensors_of
from .frame_models import TSN_SPEC, load_frame_weights

Kind = Literal["gsm", "gsf"]
STREAMS: tuple[Stream, ...] = ("rgb", "flow", "audio", "depth", "ir")
# The unit of a block that is gated, where it is not the first ("1x1", "conv").
_GATED: dict[str, str] = {"inception_3c": "3x3_reduce", "inception_4e": "3x3_reduce", "mixed_8": "tower_conv"}
_GSM_GATED: dict[str, str] = _GATED | {"mixed_3": "tower_conv", "mixed_6": ""}  # mixed_6 has no gate there

# Channels from which a gate's convolution takes less time as one of 1 x 1, on a CPU.
WIDE = 256


def _shift(halves: Tensor, back: int = 0) -> Tensor:
    """(B, T, H, W, 2, C / 2): half `back` from the next frame, the other from the one before, zeros at the ends."""
    moved = torch.empty_like(halves)
    for half, later in ((back, True), (1 - back, False)):
        source, place = halves[..., half, :], moved[..., half, :]
        if later:
            place[:, :-1], place[:, -1] = source[:, 1:], 0
        else:
            place[:, 1:], place[:, 0] = source[:, :-1], 0
    return moved


def _gate_shift(halves: Tensor, gates: Tensor) -> Tensor:
    """What stays and what comes, added up: halves (B, T, H, W, 2, C / 2), gates (B, T, H, W, 2, 1) -> as halves."""
    joined = halves * (1 - gates)
    joined[:, :-1, ..., 0, :].addcmul_(halves[:, 1:, ..., 0, :], gates[:, 1:, ..., 0, :])
    joined[:, 1:, ..., 1, :].addcmul_(halves[:, :-1, ..., 1, :], gates[:, :-1, ..., 1, :])
    return joined


class _GateShift(torch.autograd.Function):
    """_gate_shift, with three maps in its backward pass where autograd makes nine."""

    @staticmethod
    def forward(ctx: Any, halves: Tensor, gates: Tensor) -> Tensor:
        ctx.save_for_backward(halves, gates)
        return _gate_shift(halves, gates)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        halves, gates = ctx.saved_tensors
        stays = grads[0].contiguous()
        change = _shift(stays, back=1).sub_(stays)  # of the loss, by what a gate moves
        return torch.addcmul(stays, gates, change), change.mul_(halves).sum(-1, keepdim=True)


class GSM(nn.Module):
    """Gate-shift: maps (B, T, C, H, W) -> the same. C is a multiple of 4.

    A gate per half of the channels, tanh of a 3 x 3 x 3 convolution of the normed maps, splits it into a gated part,
    which is shifted in time (the first half backward, the second forward), and the rest, which stays.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels % 4:
            raise ValueError(f"a gate mixes quarters of the channels, and 4 does not divide {channels}")
        self.channels = channels
        self.bn = nn.BatchNorm3d(channels)
        self.conv3D = nn.Conv3d(channels, 2, 3, padding=1, groups=2)
        nn.init.zeros_(self.conv3D.weight)
        if self.conv3D.bias is not None:
            nn.init.zeros_(self.conv3D.bias)

    def gates(self, maps: Tensor) -> Tensor:
        """(B, T, 2, H, W), -1 to 1."""
        normed = self.bn(maps.transpose(1, 2)).relu_().transpose(1, 2)
        steps = self._steps(normed.flatten(0, 1)).unflatten(0, (-1, maps.shape[1])).unflatten(2, (2, 3))
        before, now, after = steps.unbind(3)
        gates = now + cast(Tensor, self.conv3D.bias)[:, None, None]
        gates[:, 1:] += before[:, :-1]
        gates[:, :-1] += after[:, 1:]
        return gates.tanh().to(maps.dtype)

    def _steps(self, normed: Tensor) -> Tensor:
        """(B * T, C, H, W) -> (B * T, 6, H, W): of both groups what each of the kernel's three steps gives."""
        weight = self.conv3D.weight
        exact = normed.dtype == weight.dtype and normed.dtype in (torch.float32, torch.float64)
        if (
            self.channels >= WIDE
            and normed.is_cpu
            and exact
            and not (torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"))
        ):
            # Its 27 numbers as channels of a 1 x 1 convolution, the nine of a step then added up in place: kernels for
            # many channels are half as fast again or twice as fast as for three.
            kernel = weight.flip(3, 4).permute(0, 2, 3, 4, 1).flatten(0, 3)[:, :, None, None].contiguous()
            parts = convolve(normed, kernel, groups=2)
            return F.fold(parts.flatten(2), normed.shape[2:], 3, padding=1)
        # The steps as channels of one 2-D convolution: half to a third of the time of the 3-D one.
        return F.conv2d(normed, weight.transpose(1, 2).flatten(0, 1), padding=1, groups=2)

    def forward(self, maps: Tensor) -> Tensor:
        # Channels last, as the networks lay out their maps: views here, and what comes out is laid out alike.
        halves = maps.permute(0, 1, 3, 4, 2).unflatten(-1, (2, -1))
        gates = self.gates(maps).permute(0, 1, 3, 4, 2)[..., None]
        joined = self._join(halves, gates).unflatten(-1, (2, -1))
        # in each half, the channels of its two quarters alternate
        return joined.transpose(-1, -2).flatten(-3).permute(0, 1, 4, 2, 3)

    def overwrite(self, maps: Tensor) -> Tensor:
        """As forward, but maps that nobody needs any more may be used for the result."""
        return self(maps)

    def _join(self, halves: Tensor, gates: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return _gate_shift(halves, gates)
        return cast(Tensor, _GateShift.apply(halves, gates))


def _taken(channels: int, percent: int) -> int:
    """Channels that take part."""
    return -(-int(channels * percent / 100) // 4) * 4


class GSF(GSM):
    """Gate-shift-fuse: maps (B, T, C, H, W) -> the same; only the first `percent` of the channels take part.

    Shifted and staying part are weighted, per channel and frame, by a convolution over (channel, frame) of their means
    over space, and the weights of the two add up to one.
    """

    def __init__(self, channels: int, percent: int = 100) -> None:
        if not 0 < percent <= 100:
            raise ValueError(f"percent of the channels is {percent}; it is 1 to 100")
        super().__init__(_taken(channels, percent))
        self.conv3D.reset_parameters()
        self.channel_conv1 = nn.Conv2d(2, 1, 3, padding=1)
        self.channel_conv2 = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(maps) if maps.shape[2] == self.channels else self.overwrite(maps.clone())

    def overwrite(self, maps: Tensor) -> Tensor:
        if maps.shape[2] == self.channels:
            return super().forward(maps)
        # of the channels that take part a copy, channels last; the others stay where they are
        taken = maps[:, :, : self.channels].permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
        maps[:, :, : self.channels] = super().forward(taken)
        return maps

    def _join(self, halves: Tensor, gates: Tensor) -> Tensor:
        gated = gates * halves
        stays, moves = halves - gated, _shift(gated)
        means = torch.stack([moves.mean((2, 3)), stays.mean((2, 3))], 1)  # (B, 2, T, 2, C / 2)
        weights = [
            fuse(means[..., half, :].transpose(2, 3)).sigmoid().squeeze(1).transpose(1, 2)
            for half, fuse in enumerate((self.channel_conv1, self.channel_conv2))
        ]
        weight = torch.stack(weights, 2)[:, :, None, None]
        return torch.lerp(stays, moves, weight.to(stays.dtype))


def _gate(kind: Kind, channels: int, percent: int) -> nn.Module:
    return GSM(channels) if kind == "gsm" else GSF(channels, percent)


def _gated_convs(backbone: Inception | GatedResNet, kind: Kind) -> list[nn.Conv2d]:
    """The convolutions behind which gates stand."""
    if isinstance(backbone, GatedResNet):
        return [last_conv(block) for layer in LAYERS for block in backbone.blocks(layer)]
    places = _GSM_GATED if kind == "gsm" else _GATED
    convs = []
    for name, block in backbone.body.items():
        if not hasattr(block, "units"):
            continue
        units = block.get_submodule("units")
        unit = places.get(name, next(iter(dict(units.named_children()))))
        if unit:
            convs.append(units.get_submodule(f"{unit}.conv"))
    return cast(list[nn.Conv2d], convs)


def _add_gates(backbone: Inception | GatedResNet, kind: Kind, percent: int, state: Mapping[str, Tensor]) -> None:
    """percent 0: of the channels as many as in the file, or as usual."""
    convs = _gated_convs(backbone, kind)
    if kind == "gsf" and not percent:
        usual = 25 if isinstance(backbone, GatedResNet) else 100
        percent = _percent_of(state, convs) or usual
        backbone.settled = {"percent": percent} if percent != usual else {}
    for module in backbone.modules():
        if isinstance(module, ConvUnit):
            module.fold = False
    for conv in convs:
        add_gate(conv, _gate(kind, conv.out_channels, percent), backbone.clip_length)


def _percent_of(state: Mapping[str, Tensor], convs: Sequence[nn.Conv2d]) -> int:
    """Of the channels that a file's gates take; 0 where it has none of these networks' gates."""
    held = sorted(len(x) for key, x in state.items() if key.endswith("bn.weight") and ("gsf" in key or ".gate." in key))
    tried = (100, 75, 50, 25, *range(1, 100))  # few channels: neighbours take as many, and round numbers are likelier
    return next((p for p in tried if sorted(_taken(conv.out_channels, p) for conv in convs) == held), 0)


class GatedResNet(ClipResNet):
    """One of timm's ResNets, gated behind the last convolution of every residual branch."""


def _networks(pattern: str) -> list[str]:
    return inceptions(pattern) + resnets(pattern)


def _names(state: Mapping[str, Tensor], prefix: str) -> bool:
    return any(f".{prefix}" in f".{key}" for key in state)


def _is_bninception(state: Mapping[str, Tensor]) -> bool:
    return _names(state, "gsm_inception_3a") or _names(state, "gsf_inception_3a")


def _is_inception_v3(state: Mapping[str, Tensor]) -> bool:
    return _names(state, "gsm_mixed_") or _names(state, "gsf_mixed_")


def _is_resnet(state: Mapping[str, Tensor]) -> bool:
    return _names(state, "gsf.conv3D.")


def _is_plain_v3(state: Mapping[str, Tensor]) -> bool:
    return any(key.removeprefix("base_model.") == "mixed_conv_Conv2D.weight" for key in state)


def _from_resnet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of the whole network (`base_model.`, `new_fc.`) or of the trunk alone with its own `fc.`"""
    if not any(key.startswith("base_model.") for key in state):
        state = {f"base_model.{key}": tensor for key, tensor in state.items()}
    last = "conv3" if any(".conv3." in key for key in state) else "conv2"
    return from_tsn_code(state, (r"base_model\.(layer\d\.\d+)\.gsf\.(.+)", rf"network.\1.{last}.gate.\2"))


BNINCEPTION = published(
    Layout(name="swathikirans/GSM, GSF (bninception)", recognises=_is_bninception, convert=bninception.from_published)
)
INCEPTION_V3 = published(
    Layout(
        name="swathikirans/GSM, GSF (inception_v3)", recognises=_is_inception_v3, convert=inception_v3.from_published
    )
)
RESNET = published(
    Layout(name="swathikirans/GSF (ResNets)", recognises=_is_resnet, convert=_from_resnet, spec=TSN_SPEC)
)


PLAIN_V3 = published(
    Layout(
        name="Inception-v3 of tsn-pytorch",
        recognises=_is_plain_v3,
        convert=inception_v3.from_published,
    )
)


def _has_gates(state: Mapping[str, Tensor]) -> bool:
    """Whether gates are in the file; image weights, from which training starts, have none."""
    return any(".gate." in key or "gsm_" in key or "gsf" in key for key in state)


def _inception(
    kind: Kind,
    network: str,
    percent: int,
    *,
    stream: Stream,
    num_classes: int,
    weights: str | Path | None,
    frames: int,
    crop: int,
    flow_stack: int,
    dropout: float,
) -> Inception:
    if network == "bninception":
        make, layouts = bninception.BNInception, (BNINCEPTION, bninception.TSN, bninception.PLAIN)
    else:
        make, layouts = inception_v3.InceptionV3, (INCEPTION_V3, PLAIN_V3)
        crop = crop or inception_v3.CROP
    spec = caffe_spec(stream, frames=frames, crop=crop, flow_stack=flow_stack)
    backbone = make(spec=spec, layouts=layouts, num_classes=num_classes, dropout=dropout)
    state = tensors_of(weights)
    gated = _has_gates(state)
    if not gated:
        load_weights(backbone, weights, num_classes=num_classes)
    _add_gates(backbone, kind, percent, state)
    return load_weights(backbone, weights, num_classes=num_classes) if gated else backbone


def _resnet(
    kind: Kind,
    network: str,
    percent: int,
    *,
    stream: Stream,
    num_classes: int,
    weights: str | Path | None,
    frames: int,
    crop: int,
    flow_stack: int,
    dropout: float,
) -> GatedResNet:
    backbone = GatedResNet(
        network,
        stream=stream,
        num_classes=num_classes,
        frames=frames,
        crop=crop,
        flow_stack=flow_stack,
        drop_rate=dropout,
    )
    backbone.layouts = (RESNET, backbone.layouts[-1])
    state = tensors_of(weights)
    gated = _has_gates(state)
    if not gated:
        load_frame_weights(backbone, weights, num_classes=num_classes, crop=crop)
    _add_gates(backbone, kind, percent, state)
    return load_frame_weights(backbone, weights, num_classes=num_classes, crop=crop) if gated else backbone


@register(
    "gsm",
    paper="Sudhakaran et al., CVPR 2020",
    streams=STREAMS,
    weights_from="swathikirans/GSM (bninception, inception_v3)",
    networks=_networks,
)
def gsm(
    *,
    network: str,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 8,
    crop: int = 0,
    flow_stack: int = 5,
    dropout: float = 0.5,
) -> Backbone:
    """Gate-shift in `network`; the gates start as a shuffle of channels. Image weights (without gates) load too.

    frames, crop, flow_stack: of the input spec, crop 0 is the network's own. dropout: before the classifier.
    """
    build = _inception if network in INCEPTIONS else _resnet
    return build(
        "gsm",
        network,
        100,
        stream=stream,
        num_classes=num_classes,
        weights=weights,
        frames=frames,
        crop=crop,
        flow_stack=flow_stack,
        dropout=dropout,
    )


@register(
    "gsf",
    paper="Sudhakaran et al., TPAMI 2023",
    streams=STREAMS,
    weights_from="swathikirans/GSF (bninception, inception_v3, ResNets)",
    networks=_networks,
)
def gsf(
    *,
    network: str,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 8,
    crop: int = 0,
    flow_stack: int = 5,
    dropout: float = 0.5,
    percent: int = 0,
) -> Backbone:
    """Gate-shift-fuse in `network`; options as of gsm.

    percent: of the channels that take part; 0 = as many as in the weights, without gates in them the published 100 in
        Inceptions and 25 in ResNets.
    """
    build = _inception if network in INCEPTIONS else _resnet
    return build(
        "gsf",
        network,
        percent,
        stream=stream,
        num_classes=num_classes,
        weights=weights,
        frames=frames,
        crop=crop,
        flow_stack=flow_stack,
        dropout=dropout,
    )
