"""Convolution followed by batch norm, as one convolution where the norm does not learn and this is less work."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ._convolution import Sizes, convolve


def conv_norm(maps: Tensor, conv: nn.Conv2d | nn.Conv3d, norm: nn.Module, padding: Sizes | None = None) -> Tensor:
    """norm(conv(maps)), (B, C, H, W) or (B, C, T, H, W) -> the same with D channels and the convolution's sizes.

    A batch norm in eval mode is an affine map of the convolution's output, so its gain may go into the weights and its
    offset into the bias: that is one pass over the weights in place of one over the map, and is done where eight maps
    are the larger. It goes by the size of a map and not by how many there are, since the two differ in rounding and
    features must not depend on the batch. Gradients flow through all of them. padding: in place of the convolution's
    own.
    """
    assert isinstance(norm, nn.BatchNorm2d | nn.BatchNorm3d) and not isinstance(conv.padding, str)
    sides = conv.padding if padding is None else padding
    sizes = conv.stride, sides, conv.dilation, conv.groups
    weight, bias = conv.weight, conv.bias
    places = math.prod(maps.shape[2:]) // math.prod(conv.stride)  # about
    if norm.training or 8 * places < weight[0].numel():
        return norm(convolve(maps, weight, bias, *sizes))
    assert norm.running_mean is not None and norm.running_var is not None
    gain = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    mean = norm.running_mean if bias is None else norm.running_mean - bias
    folded = weight * gain.view(-1, *[1] * (weight.ndim - 1))
    return convolve(maps, folded, norm.bias - mean * gain, *sizes)
