"""Four ways to look at the frames of a clip with one image network: single frame, late, early and slow fusion.

Source: Karpathy et al., "Large-scale Video Classification with Convolutional Neural Networks", CVPR 2014, section 3.1.
`karpathy:NETWORK` takes any image network of timm in place of the paper's, which was AlexNet's like.
single_frame: every frame by itself, logits averaged.
late_fusion: every frame by itself, one linear classifier over the features of all of them.
early_fusion: the first layer sees all frames at once.
slow_fusion: the first layer sees four frames, every second such window; further on two neighbouring steps are joined,
    twice. Of the paper's 10 frames four steps are left, then two, then one.
Differs: the paper widens its second and third convolution over time; with shortcuts around convolutions that is not
possible, so that here a convolution over two steps follows the network's first two stages. All layers over time start
as means, so that a network with an image network's weights answers a still clip as that network does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast, get_args

import timm
import torch
from torch import Tensor, nn

from ._stage_net import linear
from .contract import Stream, register
from .first_layer import average_channels, first_layer, stack_frames
from .frame_models import FrameModel, load_frame_weights

Fusion = Literal["single_frame", "late_fusion", "early_fusion", "slow_fusion"]
FUSIONS: tuple[Fusion, ...] = get_args(Fusion)


class Joint(nn.Module):
    """Maps of two neighbouring steps -> one, by a convolution of 2 x 1 x 1. An odd last step is left out.

    axis: of the channels in (clips * steps, ...): 1, or -1 for the last. clips: how many are in the batch now.
    """

    def __init__(self, width: int, axis: int) -> None:
        super().__init__()
        self.width, self.axis, self.clips = width, axis, 1
        self.mix = nn.Linear(2 * width, width, bias=False)
        with torch.no_grad():
            self.mix.weight.copy_(torch.eye(width).repeat(1, 2) / 2)

    def forward(self, maps: Tensor) -> Tensor:
        """(clips * steps, ...) -> (clips * (steps // 2), ...), channels at `axis`."""
        steps = maps.movedim(self.axis, -1).unflatten(0, (self.clips, -1))
        pairs = steps[:, : steps.shape[1] // 2 * 2].unflatten(1, (-1, 2))
        joined = self.mix(torch.cat((pairs[:, :, 0], pairs[:, :, 1]), -1)).flatten(0, 1)
        return joined.movedim(-1, self.axis)


class After:
    """Forward hook of a stage: its output goes through a joint."""

    def __init__(self, joint: Joint) -> None:
        self.joint = joint

    def __call__(self, _stage: nn.Module, _inputs: tuple[Tensor, ...], maps: Tensor) -> Tensor:
        return self.joint(maps)


class KarpathyFusion(FrameModel):
    """Clips (B, C, T, H, W) -> maps (B, D, T', h, w). T' is T for single_frame and late_fusion, T // frames for
    early_fusion, which sees one piece of `frames` after another, and what slow_fusion leaves of T.

    late_fusion's classifier takes clips of `frames`; slow_fusion takes 10 frames or more.
    """

    head: Any  # late_fusion's classifier

    def __init__(
        self,
        network: str,
        *,
        fusion: Fusion,
        stream: Stream = "rgb",
        num_classes: int = 0,
        frames: int = 10,
        crop: int = 0,
        flow_stack: int = 5,
        drop_rate: float = 0.0,
    ) -> None:
        if fusion not in FUSIONS:
            raise ValueError(f"fusion is {fusion!r}; it is one of {', '.join(FUSIONS)}")
        if fusion == "slow_fusion" and frames < 10:
            raise ValueError(f"slow_fusion takes 10 frames or more, not {frames}")
        super().__init__(
            network,
            stream=stream,
            num_classes=num_classes,
            frames=frames,
            crop=crop,
            flow_stack=flow_stack,
            drop_rate=drop_rate,
        )
        self.fusion: Fusion = fusion
        # frames that the first layer sees, and every how many
        self.window, self.step = {"early_fusion": (frames, frames), "slow_fusion": (4, 2)}.get(fusion, (1, 1))
        least = {"single_frame": 1, "slow_fusion": 10}.get(fusion, frames)
        self.min_size = (least, 32, 32)
        if self.window > 1:
            _, layer = first_layer(self.network)
            layer.weight = nn.Parameter(stack_frames(layer.weight.detach(), self.window))
            layer.in_channels *= self.window
        self.joints = nn.ModuleList()
        self.joined = self._first_stages() if fusion == "slow_fusion" else ()
        for stage, width in self.joined:
            joint = Joint(width, 1 if self._form == "NCHW" else -1)
            self.joints.append(joint)
            self.network.get_submodule(stage).register_forward_hook(After(joint))
        if fusion == "late_fusion":
            self._image_classifier = self.classifier_weight
            self.classifier_weight = "head.weight"
            self.reset_classifier(num_classes)

    def _first_stages(self) -> tuple[tuple[str, int], ...]:
        """Module and width of timm's first two stages after the stem."""
        stages = [(s["module"], s["num_chs"]) for s in getattr(self.network, "feature_info", ()) if s["reduction"] >= 4]
        if len(stages) < 2:
            raise ValueError(f"timm names no stages of {self.network_name}, which slow_fusion joins steps after")
        return tuple(stages[:2])

    def _features(self, clips: Tensor) -> Tensor:
        if self.window == 1:
            return super()._features(clips)
        self._check(clips)
        if clips.shape[2] < self.min_size[0]:
            raise ValueError(f"{self.fusion} takes {self.min_size[0]} frames or more and got {clips.shape[2]}")
        for joint in self.joints:
            cast(Joint, joint).clips = len(clips)
        windows = clips.unfold(2, self.window, self.step).permute(0, 2, 5, 1, 3, 4)  # (B, T', frames, C, H, W)
        frames = windows.flatten(2, 3).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        return self.network.forward_features(frames)

    def output_size(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        steps, rows, columns = super().output_size(frames, height, width)
        steps = (steps - self.window) // self.step + 1
        return steps // 2 ** len(self.joints), rows, columns

    def stages(self) -> list[list[nn.Module]]:
        """As in FrameModel; what joins the steps after a stage belongs to it."""
        groups = super().stages()
        for (name, _), joint in zip(self.joined, self.joints, strict=True):
            stage = self.network.get_submodule(name)
            next(group for group in groups if stage in [m for part in group for m in part.modules()]).insert(0, joint)
        return groups

    def _logits(self, features: Tensor, batch: int) -> Tensor:
        if self.fusion != "late_fusion" or not self.num_classes:
            return super()._logits(features, batch)
        frames = self.network.forward_head(features, pre_logits=True).unflatten(0, (batch, -1))
        if frames.shape[1] != self.input_spec.frames:
            raise ValueError(
                f"this late_fusion classifies clips of {self.input_spec.frames} frames and got {frames.shape[1]}; "
                f"build it with frames={frames.shape[1]}"
            )
        return self.head(frames.flatten(1))

    def reset_classifier(self, num_classes: int) -> None:
        if self.fusion != "late_fusion":
            return super().reset_classifier(num_classes)
        self.network.reset_classifier(0)
        self.set_classes(num_classes)
        width = int(getattr(self.network, "head_hidden_size", None) or self.feature_dim)
        self.head = linear(self.input_spec.frames * width, num_classes) if num_classes else None

    def adapt(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """An image network's weights: layers over time become means, as they are at the start."""
        own, state = self.state_dict(), dict(state)
        first = f"network.{first_layer(self.network)[0]}.weight"
        channels = self.input_spec.channels
        kernel = state.get(first)
        if kernel is not None and kernel.ndim == 4 and kernel.shape[1] in (3, channels) and self.window > 1:
            kernel = kernel if kernel.shape[1] == channels else average_channels(kernel, channels)
            state[first] = stack_frames(kernel, self.window)
        if not any(key.startswith("joints.") for key in state):
            state |= {key: tensor for key, tensor in own.items() if key.startswith("joints.")}
        if self.fusion == "late_fusion" and self._image_classifier in state:
            weight = state.pop(self._image_classifier)
            frames = self.input_spec.frames
            state["head.weight"] = weight.flatten(1).repeat(1, frames) / frames
            bias = state.pop(self._image_classifier.removesuffix("weight") + "bias", None)
            state["head.bias"] = torch.zeros(len(weight)) if bias is None else bias
        return super().adapt(state)


@register(
    "karpathy",
    paper="Karpathy et al., CVPR 2014",
    streams=("rgb", "flow", "audio", "depth", "ir"),
    weights_from="timm and torchvision (image networks)",
    networks=timm.list_models,
)
def karpathy(
    *,
    network: str,
    fusion: Fusion = "slow_fusion",
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 10,
    crop: int = 0,
    flow_stack: int = 5,
    drop_rate: float = 0.0,
) -> KarpathyFusion:
    """timm's `network` over clips; options as in KarpathyFusion and FrameModel.

    weights: an image network's, or "pretrained" for timm's; layers over time then start as means.
    """
    backbone = KarpathyFusion(
        network,
        fusion=fusion,
        stream=stream,
        num_classes=num_classes,
        frames=frames,
        crop=crop,
        flow_stack=flow_stack,
        drop_rate=drop_rate,
    )
    return load_frame_weights(backbone, weights, num_classes=num_classes, crop=crop)
