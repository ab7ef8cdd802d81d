"""How image networks that mix frames learn how many frames a clip has.

Their layers see (B * T, C, H, W). The backbone writes T here before its forward, and the layers that shift, gate or
attend over time read it. One object belongs to one network; a network must not run in two threads at once.
"""

from __future__ import annotations

from torch import Tensor, nn


class ClipLength:
    """T of the clips that go through the network now. divisor: frames that one step of this part of it stands for."""

    def __init__(self) -> None:
        self.frames = 1

    def split(self, maps: Tensor, divisor: int = 1) -> Tensor:
        """(B * T', C, H, W) -> (B, T', C, H, W), a view, T' = ceil(T / divisor)."""
        return maps.unflatten(0, (-1, -(-self.frames // divisor)))


class AfterConv:
    """Forward hook: the convolution's child `gate` changes its output, before the norm that follows."""

    def __init__(self, length: ClipLength) -> None:
        self.length = length

    def __call__(self, conv: nn.Module, _inputs: tuple[Tensor, ...], maps: Tensor) -> Tensor:
        return conv.gate.overwrite(self.length.split(maps)).flatten(0, 1)  # pyright: ignore


def add_gate(conv: nn.Module, gate: nn.Module, length: ClipLength) -> None:
    """Put `gate`, maps (B, T, C, H, W) -> the same by `overwrite`, behind a convolution, which needs what it gave no
    more. Its keys are below the convolution's.
    """
    conv.add_module("gate", gate)
    conv.register_forward_hook(AfterConv(length))
