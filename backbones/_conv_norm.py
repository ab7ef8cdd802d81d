"""Convolution followed by batch norm, as one convolution wherever the norm does not learn its statistics."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_norm(clips: Tensor, conv: nn.Conv3d, norm: nn.BatchNorm3d, padding: tuple[int, ...] | None = None) -> Tensor:
    """norm(conv(clips)), (B, C, T, H, W) -> (B, D, T', H', W').

    A batch norm in eval mode is an affine map of the convolution's output, so its gain goes into the weights and its
    offset into the bias: one pass over the feature map instead of two, and one map less in memory. Gradients flow
    through all four. padding: in place of the convolution's own.
    """
    assert norm.running_mean is not None and norm.running_var is not None and not isinstance(conv.padding, str)
    sides = conv.padding if padding is None else padding
    if norm.training:
        return norm(F.conv3d(clips, conv.weight, None, conv.stride, sides))
    gain = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    offset = norm.bias - norm.running_mean * gain
    return F.conv3d(clips, conv.weight * gain[:, None, None, None, None], offset, conv.stride, sides)


def conv_norm_2d(maps: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """norm(conv(maps)), (B, C, H, W) -> (B, D, H', W'), as conv_norm; the convolution may have a bias."""
    assert norm.running_mean is not None and norm.running_var is not None and not isinstance(conv.padding, str)
    if norm.training:
        return norm(conv(maps))
    gain = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    mean = norm.running_mean if conv.bias is None else norm.running_mean - conv.bias
    weight = conv.weight * gain[:, None, None, None]
    return F.conv2d(maps, weight, norm.bias - mean * gain, conv.stride, conv.padding, conv.dilation, conv.groups)
