"""What heads over instances share: slots (B, T, N, D) of which some are empty, and layers that do not see those.

`kept` is everywhere bool (B, T, N) or (B, N), the slots that count, or None where all of them do. What comes out of an
uncounted slot is zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .contract import FusionHead, Instances, Output
from .instances import InstanceFeatures, Joint, LinearNorm, Variant


class Layers(nn.ModuleList):
    """Linear without bias, batch norm of the slots that count, ReLU: from each of `widths` to the next."""

    def __init__(self, *widths: int) -> None:
        super().__init__(LinearNorm(inputs, outputs) for inputs, outputs in pairwise(widths))

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        for layer in self:
            x = layer(x, kept)
        return only(x, kept)


def only(x: Tensor, kept: Tensor | None) -> Tensor:
    """x (..., D) with zeros where `kept` (...) is False."""
    return x if kept is None else torch.where(kept[..., None], x, x.new_zeros(()))


class Reasoning(nn.Module):
    """Joint features of instances -> features of a video, (B, `width`)."""

    width: int

    def forward(self, joint: Joint, kept: Tensor | None, *, extras: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """kept: slots that count. The second result is what people look at, empty unless asked for."""
        raise TypeError(f"{type(self).__name__} defines no forward")


class JointHead(FusionHead):
    """A head on joint features of instances: InstanceFeatures, a Reasoning, a classifier for each task.

    reasoning: joint width -> the Reasoning. steps: the most steps that a clip may have. appearance, non_appearance,
    width, map_width, roi_size, dropout: see InstanceFeatures. global_feature: put the mean of the narrowed maps beside
    the video's features (in the released code for detected boxes, GLOBAL).

    Without appearance only boxes are looked at; streams then tell T and which steps are real, and may be left out.
    Streams may be given as RoI features (B, T, N, D, s, s) as well.
    """

    layout = "map"
    needs_boxes = True
    same_steps = True

    def __init__(
        self,
        *,
        streams: Mapping[str, int],
        classes: Mapping[str, int],
        reasoning: Callable[[int], Reasoning],
        variant: Variant,
        appearance: bool,
        non_appearance: bool,
        steps: int,
        width: int,
        map_width: int | None,
        roi_size: int,
        global_feature: bool,
        dropout: float,
    ) -> None:
        self.boxes_suffice = self.optional_streams = not appearance
        super().__init__(streams=streams, classes=classes)
        positive(steps=steps)
        if global_feature and not appearance:
            raise ValueError("global_feature=True needs appearance=True: it is the mean of the maps")
        self.variant: Variant = variant
        self.steps, self.global_feature = steps, global_feature
        self.instances = InstanceFeatures(
            self.streams,
            width=width,
            map_width=map_width,
            variant=variant,
            appearance=appearance,
            non_appearance=non_appearance,
            roi_size=roi_size,
            dropout=dropout,
        )
        self.reasoning = reasoning(self.instances.joint_width)
        found = self.reasoning.width + (self.instances.whole_width if global_feature else 0)
        self.classifiers = nn.ModuleDict({task: nn.Linear(found, number) for task, number in self.classes.items()})

    def _width_axis(self, name: str, x: Tensor) -> int:
        return 3 if x.ndim == 6 else super()._width_axis(name, x)

    def fuse(
        self,
        features: dict[str, Tensor],
        boxes: Instances | None,
        masks: dict[str, Tensor],
        *,
        losses: bool,
        extras: bool,
    ) -> Output:
        assert boxes is not None  # forward has checked it
        joint = self.instances(features, boxes, masks, steps=self.steps)
        kept = joint.present
        if self.variant == "released":
            # it tells no empty slot from another, but padded steps are not its own
            kept = joint.real[:, :, None].expand_as(joint.present) if masks else None
        x, shown = self.reasoning(joint, kept, extras=extras)
        if self.global_feature:
            if joint.whole is None:
                raise ValueError("global_feature=True needs maps (B, D, T, H, W); RoI features do not show the whole")
            x = torch.cat([x, joint.whole], -1)
        logits = {task: classify(x) for task, classify in self.classifiers.items()}
        return Output(logits, extras={name: value.detach() for name, value in shown.items()})


def beside_one_another(x: Tensor, steps: int) -> Tensor:
    """(B, T, N, D) -> (B, N, steps * D): a slot's steps beside one another, zeros after the last one."""
    return F.pad(x.transpose(1, 2), (0, 0, 0, steps - x.shape[1])).flatten(2)


def mean_of_slots(x: Tensor, kept: Tensor | None) -> Tensor:
    """(..., N, D) -> (..., D), the mean of the slots that count; zeros where none does."""
    if kept is None:
        return x.mean(-2)
    return only(x, kept).sum(-2) / kept.sum(-1, keepdim=True).clamp(min=1).to(x.dtype)


def mean_of_others(x: Tensor, kept: Tensor | None) -> Tensor:
    """(..., N, D) -> the same: for every slot that counts the mean of the others that do; zeros where there is none."""
    if kept is None:
        return (x.sum(-2, keepdim=True) - x) / max(x.shape[-2] - 1, 1)
    x = only(x, kept)
    others = (kept.sum(-1)[..., None, None] - 1).clamp(min=1).to(x.dtype)
    return (x.sum(-2, keepdim=True) - x) / others


def positive(**sizes: int) -> None:
    """ValueError where an option that counts something is less than 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is {size}; it must be positive")


def refuse_padding(masks: Mapping[str, Tensor], why: str) -> None:
    """ValueError where a mask has a step that is not real."""
    padded = [name for name, mask in masks.items() if not bool(mask.all())]
    if padded:
        raise ValueError(f"the masks of {', '.join(padded)} have padded steps, but {why}; variant='paper' takes them")
