"""Convolutions that take oneDNN's kernels on a CPU where torch would not.

torch computes float32 convolutions whose kernel is one pixel high and wide (t x 1 x 1: most of a bottleneck) on one
thread for fewer than 16 maps, and small ones on any number of threads, by im2col and BLAS: with channels-first copies
of maps and kernels, and in 1.5 to 6 times oneDNN's time on x86 processors. Extraction runs single-threaded passes side
by side; 3-D networks spent most of their time so. Results differ in rounding alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

Sizes = tuple[int, ...]
# Whether this is an x86 processor that oneDNN has kernels for.
_ONEDNN = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def convolve(
    maps: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes | None = None,
    padding: Sizes | None = None,
    dilation: Sizes | None = None,
    groups: int = 1,
) -> Tensor:
    """F.conv2d of (B, C, H, W) or F.conv3d of (B, C, T, H, W), one number a dimension; None is 1, for padding 0."""
    dims = weight.ndim - 2
    stride, padding, dilation = stride or (1,) * dims, padding or (0,) * dims, dilation or (1,) * dims
    if maps.is_cpu and dims == 3 and weight.is_contiguous() and not torch.jit.is_tracing():
        if not weight.is_contiguous(memory_format=torch.channels_last_3d):
            maps = maps.contiguous()  # else torch turns the kernel around at each call
    floats = maps.dtype == weight.dtype == torch.float32
    if _ONEDNN and floats and maps.is_cpu and maps.ndim == weight.ndim:
        spread = dilation
        if weight.shape[-2:] == (1, 1) and max(stride) == 1:
            # Spreading out a kernel of size 1 changes nothing, but it keeps torch's own choice, which the backward pass
            # makes, from im2col for all but single small clips. With a stride it makes that choice anyway.
            spread = tuple(2 if size == 1 else step for size, step in zip(weight.shape[2:], dilation, strict=True))
        if not _watched(maps):
            return torch.mkldnn_convolution(maps, weight, bias, padding, stride, spread, groups)
        if torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting():
            dilation = spread
    convolution = F.conv3d if dims == 3 else F.conv2d
    return convolution(maps, weight, bias, stride, padding, dilation, groups)


def _watched(maps: Tensor) -> bool:
    """Whether somebody looks at the operators: a compiler, tracer, counter or autocast, who know torch's own."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch.is_autocast_enabled("cpu")
        or type(maps) is not Tensor
        or _get_current_dispatch_mode() is not None
    )


class Conv2d(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _forward(self, input, weight, bias)


class Conv3d(nn.Conv3d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _forward(self, input, weight, bias)


def _forward(layer: nn.Conv2d | nn.Conv3d, maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        plain = nn.Conv3d if isinstance(layer, nn.Conv3d) else nn.Conv2d
        return plain._conv_forward(layer, maps, weight, bias)  # pyright: ignore[reportArgumentType]
    return convolve(maps, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def use_onednn(module: nn.Module) -> None:
    """Let every convolution in `module` that computes as torch's go through `convolve`, in place. Keys and parameters
    stay."""
    for layer in module.modules():
        kind = type(layer)  # torchvision's r3d_18 has kinds of its own, which compute nothing else
        if isinstance(layer, nn.Conv3d) and _computes_as(kind, nn.Conv3d):
            layer.__class__ = Conv3d
        elif isinstance(layer, nn.Conv2d) and _computes_as(kind, nn.Conv2d):
            layer.__class__ = Conv2d


def _computes_as(kind: type, plain: type) -> bool:
    return all(getattr(kind, name) is getattr(plain, name) for name in ("__call__", "forward", "_conv_forward"))
