"""Weights of an rgb network's first layer for streams with other channels, and of a 2-D network for clips.

Sources: cross-modality initialisation, the mean of the rgb kernels repeated over the new channels (Wang et al.,
"Temporal Segment Networks", ECCV 2016, section 3.2; as in the public TSN and TSM code, without rescaling by
3 / channels); inflation, 2-D kernels repeated over time and divided by its length (Carreira and Zisserman, "Quo Vadis",
CVPR 2017, section 2.4.1).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

_RGB = 3


def average_channels(weight: Tensor, channels: int) -> Tensor:
    """First-layer weight (out, rgb, ...) -> (out, channels, ...): the mean over rgb, repeated."""
    if weight.ndim < 3 or channels < 1:
        raise ValueError(
            f"average_channels takes a kernel (out, in, ...) and a number > 0, not {tuple(weight.shape)}, {channels}"
        )
    return weight.mean(1, keepdim=True).expand(-1, channels, *weight.shape[2:]).contiguous()


def inflate(weight: Tensor, frames: int) -> Tensor:
    """2-D kernel (out, in, h, w) -> 3-D (out, in, frames, h, w) that answers a still clip as the 2-D one does."""
    if weight.ndim != 4 or frames < 1:
        raise ValueError(
            f"inflate takes a kernel (out, in, h, w) and a positive length, not {tuple(weight.shape)}, {frames}"
        )
    return (weight / frames).unsqueeze(2).expand(-1, -1, frames, -1, -1).contiguous()


def stack_frames(weight: Tensor, frames: int) -> Tensor:
    """2-D kernel (out, in, h, w) -> (out, frames * in, h, w) over frames stacked in the channels, one after another.

    As `inflate`: a still clip is answered as by the 2-D kernel.
    """
    return inflate(weight, frames).transpose(1, 2).flatten(1, 2)


def first_layer(module: nn.Module) -> tuple[str, nn.Conv1d | nn.Conv2d | nn.Conv3d]:
    """Name and module of the first convolution in the order of registration: the stem or the patch embedding."""
    for name, part in module.named_modules():
        if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            return name, part
    raise ValueError(f"{type(module).__name__} has no convolution as its first layer, so it eats rgb only")


@torch.no_grad()
def adapt_first_layer(module: nn.Module, channels: int) -> None:
    """Make `module`, which eats rgb, eat `channels` channels, its first layer's weights averaged. In place."""
    name, layer = first_layer(module)
    if layer.in_channels == channels:
        return
    if layer.in_channels != _RGB or layer.groups != 1:
        raise ValueError(
            f"the first layer {name!r} eats {layer.in_channels} channels in {layer.groups} groups; only that of an rgb "
            f"network ({_RGB} channels, one group) can be averaged for a stream of {channels} channels"
        )
    layer.weight = nn.Parameter(average_channels(layer.weight, channels), requires_grad=layer.weight.requires_grad)
    layer.in_channels = channels


def adapt_state(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with every kernel averaged that eats rgb there and another number of channels in `module`.

    That is the first layer and nothing else: kernels that differ in more than this, or eat no rgb, stay as they are,
    for the strict load to report.
    """
    own = module.state_dict()
    adapted = dict(state)
    for key, weight in state.items():
        if key not in own or not weight.ndim == own[key].ndim >= 3:
            continue
        have, want = list(weight.shape), list(own[key].shape)
        if have[1] == _RGB != want[1] and have[:1] + have[2:] == want[:1] + want[2:]:
            adapted[key] = average_channels(weight, want[1])
    return adapted
