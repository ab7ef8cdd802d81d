"""TSM: the temporal shift in any ResNet of timm (Lin, Gan and Han, ICCV 2019, arXiv:1811.08383).

`tsm:NETWORK`. In every block an eighth of the channels takes the next frame's values, another eighth the previous
frame's, before the first convolution of the residual branch ("blockres") or of the whole block ("block").
Networks whose layer3 has 23 blocks or more shift in every second one. Source: mit-han-lab/temporal-shift-module, whose
checkpoints load, and epic-kitchens/C1-Action-Recognition-TSN-TRN-TSM. Non-local blocks: Wang et al., CVPR 2018, as
there: no scale, phi and g pooled after their convolutions.
Differs: with non-local blocks layers keep all their blocks; the public code cuts layer3 to six.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._clip_length import ClipLength
from ._resnets import LAYERS, ClipResNet, bare, from_tsn_code, is_epic, last_conv, resnets
from .contract import IMAGENET_MEAN, Layout, Stream, register
from .convert import published
from .frame_models import EPIC_TASKS, TSN_SPEC, load_frame_weights

Place = Literal["blockres", "block"]
_DEEP = 23  # blocks of layer3 from which on every second block shifts
NON_LOCAL = {"layer2": (0, 2), "layer3": (0, 2, 4)}


@dataclass(frozen=True, kw_only=True)
class Shift:
    """What the published networks differ in.

    place: "blockres" shifts what the residual branch sees, "block" what the shortcut sees too.
    fold_div: 1 / fold_div of the channels goes each way.
    temporal_pool: halves the frames before layer2, max of 3 with stride 2.
    non_local: non-local blocks after blocks 0 and 2 of layer2 and 0, 2 and 4 of layer3.
    """

    place: Place = "blockres"
    fold_div: int = 8
    temporal_pool: bool = False
    non_local: bool = False

    def __post_init__(self) -> None:
        if self.place not in ("blockres", "block"):
            raise ValueError(f"place is {self.place!r}; it is 'blockres' or 'block'")
        if self.fold_div < 2:
            raise ValueError(f"fold_div is {self.fold_div}; two of its parts are shifted, so it is at least 2")


class _Shifted(torch.autograd.Function):
    """The backward pass is the shift the other way round: nothing is kept, and no map of zeros is added up."""

    @staticmethod
    def forward(ctx: Any, clips: Tensor, fold: int) -> Tensor:
        ctx.fold = fold
        return _move(clips, slice(0, fold), slice(fold, 2 * fold))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        fold = ctx.fold
        return _move(gradients[0], slice(fold, 2 * fold), slice(0, fold)), None


def _move(clips: Tensor, earlier: slice, later: slice) -> Tensor:
    moved = clips.clone()  # of the same memory format
    moved[:, :-1, earlier] = clips[:, 1:, earlier]
    moved[:, -1:, earlier] = 0
    moved[:, 1:, later] = clips[:, :-1, later]
    moved[:, :1, later] = 0
    return moved


def temporal_shift(clips: Tensor, fold_div: int = 8) -> Tensor:
    """(B, T, C, H, W): the first C // fold_div channels from the next frame, as many from the one before, zeros at the
    ends. One copy of the clip, and of the moved channels.
    """
    fold = clips.shape[2] // fold_div
    if torch.compiler.is_compiling():  # which makes one loop of it, forward and backward
        sooner, later, still = clips.split((fold, fold, clips.shape[2] - 2 * fold), 2)
        none = torch.zeros_like(sooner[:, :1])
        return torch.cat([torch.cat([sooner[:, 1:], none], 1), torch.cat([none, later[:, :-1]], 1), still], 2)
    return _Shifted.apply(clips, fold)  # pyright: ignore[reportReturnType]


def temporal_pool(clips: Tensor) -> Tensor:
    """(B, T, C, H, W) -> (B, ceil(T / 2), C, H, W): max over each frame and its two neighbours, every second one."""
    even, odd = clips[:, ::2], clips[:, 1::2]
    pooled = even.clone()
    pooled[:, : odd.shape[1]] = torch.maximum(even[:, : odd.shape[1]], odd)
    return torch.cat([pooled[:, :1], torch.maximum(pooled[:, 1:], odd[:, : even.shape[1] - 1])], 1)


class NonLocal(nn.Module):
    """Maps (B, D, T, H, W) -> the same plus what all places of all frames tell them (embedded Gaussian)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.theta, self.phi, self.g = (nn.Conv3d(width, width // 2, 1) for _ in range(3))
        self.out = nn.Conv3d(width // 2, width, 1)
        self.norm = nn.BatchNorm3d(width)
        nn.init.zeros_(self.norm.weight)

    def forward(self, maps: Tensor) -> Tensor:
        theta, phi, g = (
            x.flatten(2).transpose(1, 2)  # (B, places, D / 2)
            for x in (self.theta(maps), F.max_pool3d(self.phi(maps), (1, 2, 2)), F.max_pool3d(self.g(maps), (1, 2, 2)))
        )
        seen = F.scaled_dot_product_attention(theta, phi, g, scale=1.0)
        return maps + self.norm(self.out(seen.transpose(1, 2).unflatten(2, maps.shape[2:])))


@dataclass(frozen=True)
class _ShiftInput:
    """Forward pre-hook."""

    length: ClipLength
    fold_div: int
    divisor: int

    def __call__(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        return temporal_shift(self.length.split(inputs[0], self.divisor), self.fold_div).flatten(0, 1)


@dataclass(frozen=True)
class _PoolInput:
    """Forward pre-hook."""

    length: ClipLength

    def __call__(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        return temporal_pool(self.length.split(inputs[0])).flatten(0, 1)


@dataclass(frozen=True)
class _AfterBlock:
    """Forward hook: the block's child `nl` sees its output."""

    length: ClipLength
    divisor: int

    def __call__(self, block: nn.Module, _inputs: tuple[Tensor, ...], maps: Tensor) -> Tensor:
        clips = self.length.split(maps, self.divisor).transpose(1, 2)
        return block.nl(clips).transpose(1, 2).flatten(0, 1)  # pyright: ignore[reportCallIssue]


class TSM(ClipResNet):
    """(B, C, T, H, W) -> (B, D, T, h, w), T halved with temporal_pool. Parameters are those of the plain ResNet.

    shift: see Shift; the other arguments are FrameModel's.
    """

    def __init__(
        self,
        network: str,
        *,
        shift: Shift,
        stream: Stream = "rgb",
        num_classes: int = 0,
        frames: int = 8,
        crop: int = 0,
        flow_stack: int = 5,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(
            network,
            stream=stream,
            num_classes=num_classes,
            frames=frames,
            crop=crop,
            flow_stack=flow_stack,
            drop_rate=drop_rate,
        )
        self.shift = shift
        every = 2 if shift.place == "blockres" and len(self.blocks("layer3")) >= _DEEP else 1
        for layer in LAYERS:
            divisor = 2 if shift.temporal_pool and layer != "layer1" else 1
            for number, block in enumerate(self.blocks(layer)):
                if number % every == 0:
                    seen = block.get_submodule("conv1") if shift.place == "blockres" else block
                    seen.register_forward_pre_hook(_ShiftInput(self.clip_length, shift.fold_div, divisor))
                if shift.non_local and number in NON_LOCAL.get(layer, ()):
                    block.add_module("nl", NonLocal(last_conv(block).out_channels))
                    block.register_forward_hook(_AfterBlock(self.clip_length, divisor))
        if shift.temporal_pool:
            self.network.layer2.register_forward_pre_hook(_PoolInput(self.clip_length))
        timm_layout = self.layouts[-1]  # ImageNet's weights, where training starts
        convert = partial(_from_published, shift)
        self.layouts = (
            replace(EPIC, convert=convert),
            replace(MIT, convert=convert),
            timm_layout,
        )

    def output_size(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        steps, h, w = super().output_size(frames, height, width)
        return -(-steps // 2) if self.shift.temporal_pool else steps, h, w


def _is_published(state: Mapping[str, Tensor]) -> bool:
    return any(key.startswith("base_model.layer1.") and ".net." in key for key in bare(state))


def _is_epic(state: Mapping[str, Tensor]) -> bool:
    return _is_published(state) and is_epic(state)


def _from_published(shift: Shift, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The modules that the public code wraps others in are in its keys, so that a file tells where it shifts."""
    state = bare(state)
    told: dict[str, object] = {
        "place": "block" if any(re.match(r"base_model\.layer1\.\d+\.net\.", key) for key in state) else "blockres",
        "temporal_pool": any(key.startswith("base_model.layer2.net.") for key in state),
        "non_local": any(".nl." in key for key in state),
    }
    wrong = {name: value for name, value in told.items() if getattr(shift, name) != value}
    if wrong:
        options = ", ".join(f"{name}={value!r}" for name, value in wrong.items())
        raise ValueError(f"these TSM weights were trained with {options}; build the backbone so")
    plain = {re.sub(r"\.(net|block)(?=\.)", "", key): tensor for key, tensor in state.items()}
    inside = r"base_model\.(layer\d\.\d+)\.nl\."
    return from_tsn_code(
        plain,
        (inside + r"W\.0\.(.+)", r"network.\1.nl.out.\2"),
        (inside + r"W\.1\.(.+)", r"network.\1.nl.norm.\2"),
        (inside + r"(g|phi)\.0\.(.+)", r"network.\1.nl.\2.\3"),
    )


MIT = published(
    Layout(
        name="mit-han-lab/temporal-shift-module (TSM)",
        recognises=_is_published,
        convert=partial(_from_published, Shift()),
        spec=TSN_SPEC,
    )
)
EPIC = Layout(
    name="epic-kitchens/C1-Action-Recognition-TSN-TRN-TSM (TSM)",
    recognises=_is_epic,
    convert=partial(_from_published, Shift()),
    spec={**TSN_SPEC, "std": IMAGENET_MEAN},  # as its TSN: the mean was given for the std
    tasks=EPIC_TASKS,
)


@register(
    "tsm",
    paper="Lin et al., ICCV 2019",
    streams=("rgb", "flow", "audio", "depth", "ir"),
    weights_from="mit-han-lab TSM, EPIC-KITCHENS C1 TSM; timm's image weights to start from",
    networks=resnets,
)
def tsm(
    *,
    network: str,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 8,
    crop: int = 0,
    flow_stack: int = 5,
    drop_rate: float = 0.0,
    place: Place = "blockres",
    fold_div: int = 8,
    temporal_pool: bool = False,
    non_local: bool = False,
) -> TSM:
    """timm's ResNet `network` with a temporal shift; `frames` and the like as in FrameModel, the others as in Shift.

    The published files say in their names, not in their keys, what fold_div was: `shift8` is 8.
    """
    backbone = TSM(
        network,
        shift=Shift(place=place, fold_div=fold_div, temporal_pool=temporal_pool, non_local=non_local),
        stream=stream,
        num_classes=num_classes,
        frames=frames,
        crop=crop,
        flow_stack=flow_stack,
        drop_rate=drop_rate,
    )
    return load_frame_weights(backbone, weights, num_classes=num_classes, crop=crop)
