"""STIN, the spatial-temporal interaction network over boxes; heads `stin` and `stin_nl`.

Source: Materzynska, Xiao, Herzig, Xu, Wang and Darrell, "Something-Else: Compositional Action Recognition with
Spatial-Temporal Interaction Networks", CVPR 2020, as joaanna/something_else has it at 74fa88e; on joint features it is
Ours-STIN of Yan et al. (arXiv:2012.05689, tables 2 to 4), as in ruiyan1995/Interactive_Fusion_for_CAR at 3c5e7bf.

inputs                      public class (+ NL: head `stin_nl`)   named in the papers
"boxes"                     VideoModelCoord
"boxes+categories"          VideoModelCoordLatent(NL)             STIN (+ NL)
"maps"                      VideoGlobalModel                      I3D
"maps+boxes"                VideoModelGlobalCoord
"maps+boxes+categories"     VideoModelGlobalCoordLatent(NL)       I3D + STIN (+ NL)
"joint"                     VideoRegionModel, reasoning STIN      Ours-STIN

An instance's features at a step: an MLP of cx cy w h, beside them an embedding of its category, fused by a layer. It is
told the mean of the other instances' at its step; an MLP of both; an MLP of all its steps beside one another; non-local
blocks over instances (NL); the mean over instances. Narrowed maps, averaged over space and time, go beside that.

`variant="released"` computes what the public code computes, these included, and reads its checkpoints
(fusion/stin_layout.py, fusion/joint_layout.py):
- Empty slots send messages, take part in non-local blocks and batch norms and are counted in the means, which are of
  all slots.
- With maps and boxes the narrowed maps (B, G, T) are viewed as (B, T, G) without a permutation, so that what is called
  a mean over time mixes channels. Such a head takes no padded steps.
- "boxes+categories" with NL and "maps+boxes+categories" without keep all batch norms in evaluation mode, untrained.
- On joint features of either MLP only the first Linear is used, without batch norm and ReLU.
- A category's gradient is divided by how often it occurs in the batch.
`variant="paper"` has none of these: messages, means, norms and attention are of the instances that are there.
Differs: where a slot is alone its message is zeros; the public code divides by zero. Fewer than `steps` steps are
allowed, missing ones are zeros in front of the temporal MLP.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from .contract import FusionHead, Instances, Output, masked_mean, one_of, register
from .instances import (
    CATEGORIES,
    CountedBatchNorm,
    Joint,
    LinearNorm,
    Variant,
    boxes_at_steps,
    centre_size,
    real_first,
)
from .nonlocal_block import NonLocalBlock
from .slots import (
    JointHead,
    Layers,
    Reasoning,
    beside_one_another,
    mean_of_others,
    mean_of_slots,
    only,
    positive,
    refuse_padding,
)

Inputs = Literal["boxes", "boxes+categories", "maps", "maps+boxes", "maps+boxes+categories", "joint"]
HIDDEN = 512  # of the classifiers' last hidden layer, whatever the width
# Released networks, by inputs and whether they have non-local blocks, that keep their batch norms as they began.
FROZEN_NORMS = (("boxes+categories", True), ("maps+boxes+categories", False))


class Tracks(nn.Module):
    """Features of instances from boxes and, if told so, categories: (B, T, N, 4) cx cy w h -> (B, T, N, width)."""

    def __init__(self, width: int, *, categories: bool, variant: Variant) -> None:
        super().__init__()
        self.positions = Layers(4, width // 2, width)
        self.category = self.fusion = None
        if categories:
            released = variant == "released"
            self.category = nn.Embedding(CATEGORIES, width // 2, padding_idx=0, scale_grad_by_freq=released)
            self.fusion = Layers(width + width // 2, width)

    def forward(self, centres: Tensor, categories: Tensor, kept: Tensor | None) -> Tensor:
        x = self.positions(centres.to(next(self.parameters()).dtype), kept)
        if self.category is None or self.fusion is None:
            return x
        return self.fusion(torch.cat([x, self.category(categories).to(x.dtype)], -1), kept)


class Interaction(nn.Module):
    """Features of instances (B, T, N, D) -> (B, width): between instances, over time, and the mean of instances.

    steps: T, or more than it. nonlocal_layers: non-local blocks over instances.
    first_layers_only: of either MLP just the first Linear, as the released Ours-STIN has it.
    """

    def __init__(
        self, inputs: int, width: int, *, steps: int, nonlocal_layers: int, first_layers_only: bool = False
    ) -> None:
        super().__init__()
        self.steps = steps
        if first_layers_only:
            self.spatial = nn.Linear(2 * inputs, width, bias=False)
            self.temporal = nn.Linear(steps * width, width, bias=False)
        else:
            self.spatial = Layers(2 * inputs, width, width)
            self.temporal = Layers(steps * width, width, width)
        self.nonlocals = nn.ModuleList(NonLocalLayer(width) for _ in range(nonlocal_layers))

    def forward(self, x: Tensor, kept: Tensor | None, *, with_weights: bool = False) -> tuple[Tensor, Tensor | None]:
        """The second result is what instances take of one another in the non-local blocks, (B, blocks, N, N), if
        `with_weights` and there are such blocks."""
        x = torch.cat([x, mean_of_others(x, kept)], -1)
        x = self.spatial(x, kept) if isinstance(self.spatial, Layers) else only(self.spatial(x), kept)
        slots = None if kept is None else kept.any(1)
        x = beside_one_another(x, self.steps)
        x = self.temporal(x, slots) if isinstance(self.temporal, Layers) else self.temporal(x)
        taken = []
        for block in self.nonlocals:
            x, weights = block(x, slots, with_weights=with_weights)
            taken.append(weights)
        return mean_of_slots(x, slots), torch.stack(taken, 1) if taken and with_weights else None


class NonLocalLayer(nn.Module):
    """A non-local block over the instances (B, N, D), then Linear, batch norm and ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = NonLocalBlock(width, width // 2, attention="softmax", norm="layer")
        self.layer = LinearNorm(width, width)

    def forward(self, x: Tensor, slots: Tensor | None, *, with_weights: bool) -> tuple[Tensor, Tensor | None]:
        x, weights = self.block(x[:, None], None if slots is None else slots[:, None], with_weights=with_weights)
        return only(self.layer(x[:, 0], slots), slots), weights


class WholeMaps(nn.Module):
    """Sequences of streams (B, T, D) -> (B, streams * width): each narrowed, then averaged over time.

    layer: one more, with batch norm, at each step. scrambled: as the released heads with boxes average.
    """

    def __init__(self, streams: Mapping[str, int], width: int, *, layer: bool, scrambled: bool) -> None:
        super().__init__()
        self.scrambled = scrambled
        self.narrow = nn.ModuleDict({name: nn.Linear(inputs, width) for name, inputs in streams.items()})
        self.layer = nn.ModuleDict({name: Layers(width, width) for name in streams} if layer else {})

    def forward(self, features: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Tensor:
        if self.scrambled:
            refuse_padding(masks, "the released network mixes steps with channels")
        means = []
        for name, x in features.items():
            mask = masks.get(name)
            x = self.narrow[name](only(x, mask))
            if self.scrambled:
                x = x.transpose(1, 2).reshape(x.shape)
            if name in self.layer:
                x = self.layer[name](x, mask)
            means.append(masked_mean(x, mask))
        return torch.cat(means, -1)


class Stin(FusionHead):
    """STIN on boxes, on maps, or on both: all of `inputs` but "joint". Options: see `stin`."""

    same_steps = True

    def __init__(
        self,
        *,
        streams: Mapping[str, int],
        classes: Mapping[str, int],
        inputs: Inputs,
        width: int,
        steps: int,
        map_width: int | None,
        nonlocal_layers: int,
        dropout: float,
        variant: Variant,
    ) -> None:
        self.needs_boxes = "boxes" in inputs
        self.boxes_suffice = self.optional_streams = "maps" not in inputs
        super().__init__(streams=streams, classes=classes)
        self.variant: Variant = variant
        self.steps = steps
        released = variant == "released"
        self.tracks = self.interaction = self.maps = None
        found = 0
        if "maps" in inputs:
            map_width = map_width or (256 if inputs == "maps+boxes" else 512)
            scrambled = released and self.needs_boxes
            self.maps = WholeMaps(self.streams, map_width, layer=inputs == "maps+boxes", scrambled=scrambled)
            found = len(self.streams) * map_width
        if self.needs_boxes:
            self.tracks = Tracks(width, categories="categories" in inputs, variant=variant)
            self.interaction = Interaction(width, width, steps=steps, nonlocal_layers=nonlocal_layers)
            found += width
            self.hidden = nn.Sequential(nn.Linear(found, width), nn.ReLU(), nn.Linear(width, HIDDEN), nn.ReLU())
            found = HIDDEN
        else:
            self.hidden = nn.Dropout(dropout)
        self.classifiers = nn.ModuleDict({task: nn.Linear(found, number) for task, number in self.classes.items()})
        self.frozen_norms = released and (inputs, nonlocal_layers > 0) in FROZEN_NORMS
        self.train()

    def train(self, mode: bool = True) -> Stin:
        super().train(mode)
        if self.frozen_norms:
            for module in self.modules():
                if isinstance(module, CountedBatchNorm):
                    module.eval().requires_grad_(False)
        return self

    def fuse(
        self,
        features: dict[str, Tensor],
        boxes: Instances | None,
        masks: dict[str, Tensor],
        *,
        losses: bool,
        extras: bool,
    ) -> Output:
        found, shown = [], {}
        if self.maps is not None:
            found.append(self.maps(features, masks))
        if self.tracks is not None and self.interaction is not None and boxes is not None:
            corners, categories, real = boxes_at_steps(features, boxes, masks, steps=self.steps, variant=self.variant)
            if masks:
                corners, categories, real = real_first(real, corners, categories, real)
            kept = categories > 0
            if self.variant == "released":
                kept = real[:, :, None].expand_as(categories) if masks else None
            tracks = self.tracks(centre_size(corners), categories, kept)
            x, weights = self.interaction(tracks, kept, with_weights=extras)
            found.append(x)
            if weights is not None:
                shown["nonlocal_weights"] = weights.detach()
        x = self.hidden(torch.cat(found, -1))
        return Output({task: classify(x) for task, classify in self.classifiers.items()}, extras=shown)


class JointInteraction(Reasoning):
    """Interaction of joint features."""

    def __init__(self, inputs: int, width: int, *, steps: int, nonlocal_layers: int, variant: Variant) -> None:
        super().__init__()
        self.width = width
        self.interaction = Interaction(
            inputs, width, steps=steps, nonlocal_layers=nonlocal_layers, first_layers_only=variant == "released"
        )

    def forward(self, joint: Joint, kept: Tensor | None, *, extras: bool) -> tuple[Tensor, dict[str, Tensor]]:
        x, weights = self.interaction(joint.features, kept, with_weights=extras)
        return x, {} if weights is None else {"nonlocal_weights": weights}


@register("stin", paper="Materzynska et al., CVPR 2020", summary="message passing between boxes, then over their steps")
def stin(
    *,
    streams: Mapping[str, int],
    classes: Mapping[str, int],
    inputs: Inputs = "boxes+categories",
    width: int = 512,
    steps: int = 8,
    map_width: int | None = None,
    nonlocal_layers: int = 0,
    global_feature: bool = False,
    dropout: float = 0.3,
    variant: Variant = "paper",
) -> FusionHead:
    """STIN; with nonlocal_layers=3, as `stin_nl`, STIN + NL.

    inputs: what the network sees, see the top of this file. With "boxes" and "boxes+categories" it looks at boxes
        alone: streams tell T and which steps are real, and may be left out ({}), as may their features. With "maps" it
        needs no boxes. "joint": joint features of all streams' maps.
    width: of an instance's features; joint features have as many for appearance and again as many for the rest.
    steps: the most steps that a clip may have; the published networks have 8 for 16 frames, 4 for 8 frames.
    map_width: of narrowed maps; None = 512, with "maps+boxes" 256, with "joint" as InstanceFeatures has it.
    nonlocal_layers: non-local blocks over instances, each with a layer after it.
    global_feature: with "joint", put the mean of the narrowed maps beside the video's features.
    dropout: of what "maps" and "joint" see of the maps, in training.
    variant: "released" is the public code with its mistakes.

    boxes: (B, Tb, N, 4) where Tb is T or a multiple of it, of which the first of each step counts; without features
    Tb is at most `steps` or a multiple of that. extras: nonlocal_weights (B, blocks, N, N), what each instance takes
    of which.
    """
    one_of("inputs", inputs, get_args(Inputs))
    one_of("variant", variant, get_args(Variant))
    positive(steps=steps, map_width=map_width or 1)
    if width < 2 or width % 2:
        raise ValueError(f"width is {width}; it must be even and positive")
    if nonlocal_layers < 0 or (nonlocal_layers and inputs == "maps"):
        raise ValueError(f"nonlocal_layers is {nonlocal_layers}; it is 0 or more, and 0 with inputs='maps'")
    if inputs != "joint":
        if global_feature:
            raise ValueError("global_feature=True is for inputs='joint'; elsewhere 'maps+...' looks at whole maps")
        return Stin(
            streams=streams,
            classes=classes,
            inputs=inputs,
            width=width,
            steps=steps,
            map_width=map_width,
            nonlocal_layers=nonlocal_layers,
            dropout=dropout,
            variant=variant,
        )
    return JointHead(
        streams=streams,
        classes=classes,
        reasoning=lambda joint_width: JointInteraction(
            joint_width, width, steps=steps, nonlocal_layers=nonlocal_layers, variant=variant
        ),
        variant=variant,
        appearance=True,
        non_appearance=True,
        steps=steps,
        width=width,
        map_width=map_width,
        roi_size=3,
        global_feature=global_feature,
        dropout=dropout,
    )


@register("stin_nl", paper="Materzynska et al., CVPR 2020", summary="STIN with three non-local blocks over instances")
def stin_nl(
    *,
    streams: Mapping[str, int],
    classes: Mapping[str, int],
    inputs: Inputs = "boxes+categories",
    width: int = 512,
    steps: int = 8,
    map_width: int | None = None,
    nonlocal_layers: int = 3,
    global_feature: bool = False,
    dropout: float = 0.3,
    variant: Variant = "paper",
) -> FusionHead:
    """STIN + NL. Options: see `stin`."""
    return stin(
        streams=streams,
        classes=classes,
        inputs=inputs,
        width=width,
        steps=steps,
        map_width=map_width,
        nonlocal_layers=nonlocal_layers,
        global_feature=global_feature,
        dropout=dropout,
        variant=variant,
    )
