"""Early, late and hybrid fusion: what table II of MIF compares with, on the same stages 1 and 3 (mif.py).

Source: "Multimodal Interactive Fusion for Action Anticipation" (anonymous submission, paper 6), table II. "Other
structures of our model remained unchanged": every group of streams has one DPES and one stage 3, and only where streams
meet differs.
  early   all streams are one group: concatenated, a linear layer to `width`, DPES, stage 3
  late    every stream is a group; the groups' logits are averaged
  hybrid  the two of `pair` are one group ("hybrid (r-o)"), every other stream one of its own; logits are averaged
Chosen where the text is silent: a linear layer over concatenated streams is written as the sum of one per stream, with
the streams' projections that all heads of the paper begin with. A stream that a sample lacks adds nothing to that sum,
and a group without any stream no logits to the mean. `average="probabilities"` averages softmaxed logits instead, and
gives their logarithm. `training="separate"` is late fusion in the words of the paper, "a model is trained on different
modalities and then the outputs are fused": every group's own logits are trained, on the samples that have one of its
streams, and the average is only looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from .contract import Instances, Output, one_of, register
from .mif import PAPER
from .mif_stages import (
    DPES,
    Activation,
    Classifier,
    Design,
    Pool,
    PositionKind,
    SecondPosition,
    Sharing,
    StreamsHead,
    pool_steps,
)

Average = Literal["logits", "probabilities"]
Training = Literal["joint", "separate"]


class GroupsHead(StreamsHead):
    """Streams of a group are fused before DPES, groups after stage 3. Features: sequences (B, T, D).

    groups: streams of each group; every stream is in one. Streams of one group must have the same T.
    average, training: see the module.
    auxiliary: group/STREAM+STREAM, with "separate". extras: logits/STREAM+STREAM/TASK (B, classes).
    """

    def __init__(
        self,
        *,
        streams: Mapping[str, int],
        classes: Mapping[str, int],
        groups: Sequence[Sequence[str]],
        average: Average = "logits",
        training: Training = "joint",
        design: Design,
    ) -> None:
        super().__init__(streams=streams, classes=classes, design=design)
        one_of("average", average, get_args(Average))
        one_of("training", training, get_args(Training))
        if sorted(name for group in groups for name in group) != sorted(self.streams):
            raise ValueError(f"groups are {groups}; each of {tuple(self.streams)} must be in one of them")
        self.groups = {"+".join(group): tuple(group) for group in groups}
        self.average, self.separate = average, training == "separate"
        self.same_steps = len(self.groups) == 1
        self.stage1 = DPES(len(self.groups), design)
        self.stage3 = nn.ModuleDict({name: Classifier(self.classes, design) for name in self.groups})

    def fuse(
        self,
        features: dict[str, Tensor],
        boxes: Instances | None,
        masks: dict[str, Tensor],
        *,
        losses: bool,
        extras: bool,
    ) -> Output:
        for group in self.groups.values():
            lengths = {name: features[name].shape[1] for name in group if name in features}
            if len(set(lengths.values())) > 1:
                told = ", ".join(f"{name} {length}" for name, length in lengths.items())
                raise ValueError(f"streams that are fused early need the same number of steps; there are {told}")
        stacked, keep, same_clock = self.stack(features, masks)
        places = {name: place for place, name in enumerate(self.streams)}
        groups = [[places[name] for name in group] for group in self.groups.values()]
        if keep is not None:
            stacked = stacked.masked_fill(~keep[..., None], 0.0)
            kept = keep.unbind()
            keep = torch.stack([torch.stack([kept[i] for i in group]).any(0) for group in groups])
        of_stream = stacked.unbind()
        x = torch.stack([torch.stack([of_stream[i] for i in group]).sum(0) for group in groups])
        vectors = pool_steps(self.stage1(x, keep, same_clock=same_clock), keep, self.design.pool)
        scores = {name: stage3(vector) for (name, stage3), vector in zip(self.stage3.items(), vectors, strict=True)}
        there = None if keep is None else keep.any(-1)
        output = Output({task: self._mean([of[task] for of in scores.values()], there) for task in self.classes})
        if self.separate:
            taught = scores.values()
            if there is not None:
                # a sample without any of a group's streams teaches it nothing
                taught = [
                    {task: x.where(is_there[:, None], x.detach()) for task, x in of.items()}
                    for of, is_there in zip(taught, there, strict=True)
                ]
            output.auxiliary = {f"group/{name}": of for name, of in zip(scores, taught, strict=True)}
        if extras:
            output.extras = {f"logits/{name}/{t}": x.detach() for name, of in scores.items() for t, x in of.items()}
        return output

    def _mean(self, logits: list[Tensor], there: Tensor | None) -> Tensor:
        """Logits (B, classes) of the groups -> their average over the groups that are there (G, B)."""
        x = torch.stack(logits)
        if self.separate:
            x = x.detach()
        if self.average == "probabilities":
            x = x.log_softmax(-1)
        if there is None:
            return x.mean(0) if self.average == "logits" else x.logsumexp(0) - math.log(len(x))
        count = there.sum(0).clamp(min=1)[:, None].to(x.dtype)
        if self.average == "logits":
            return x.masked_fill(~there[..., None], 0.0).sum(0) / count
        there = there | ~there.any(0)  # a sample without any stream: whatever is finite
        return x.masked_fill(~there[..., None], -torch.inf).logsumexp(0) - count.log()


@register("early_fusion", paper=PAPER, summary="streams are concatenated before attention")
def early_fusion(
    *,
    streams: Mapping[str, int],
    classes: Mapping[str, int],
    width: int = 1024,
    heads: int = 8,
    dropout: float = 0.1,
    mlp_ratio: float = 4.0,
    activation: Activation = "relu",
    positions: PositionKind = "sinusoid",
    second_position: SecondPosition = "output",
    max_steps: int = 512,
    pool: Pool = "mean",
    stage3: Sharing = "per_task",
) -> GroupsHead:
    """Early fusion of table II; options: see mif.py."""
    design = Design(
        width=width, heads=heads, dropout=dropout, mlp_ratio=mlp_ratio, activation=activation, positions=positions,
        second_position=second_position, max_steps=max_steps, pool=pool, stage3=stage3,
    )  # fmt: skip
    return GroupsHead(streams=streams, classes=classes, groups=[tuple(streams)], design=design)


@register("late_fusion", paper=PAPER, summary="every stream is classified by itself; the logits are averaged")
def late_fusion(
    *,
    streams: Mapping[str, int],
    classes: Mapping[str, int],
    average: Average = "logits",
    training: Training = "joint",
    width: int = 1024,
    heads: int = 8,
    dropout: float = 0.1,
    mlp_ratio: float = 4.0,
    activation: Activation = "relu",
    positions: PositionKind = "sinusoid",
    second_position: SecondPosition = "output",
    max_steps: int = 512,
    pool: Pool = "mean",
    stage3: Sharing = "per_task",
) -> GroupsHead:
    """Late fusion of table II. average, training: see the module; the rest: see mif.py."""
    design = Design(
        width=width, heads=heads, dropout=dropout, mlp_ratio=mlp_ratio, activation=activation, positions=positions,
        second_position=second_position, max_steps=max_steps, pool=pool, stage3=stage3,
    )  # fmt: skip
    groups = [(name,) for name in streams]
    return GroupsHead(
        streams=streams, classes=classes, groups=groups, average=average, training=training, design=design
    )


@register("hybrid_fusion", paper=PAPER, summary="a pair of streams is fused early, the others late")
def hybrid_fusion(
    *,
    streams: Mapping[str, int],
    classes: Mapping[str, int],
    pair: Sequence[str] | None = None,
    average: Average = "logits",
    training: Training = "joint",
    width: int = 1024,
    heads: int = 8,
    dropout: float = 0.1,
    mlp_ratio: float = 4.0,
    activation: Activation = "relu",
    positions: PositionKind = "sinusoid",
    second_position: SecondPosition = "output",
    max_steps: int = 512,
    pool: Pool = "mean",
    stage3: Sharing = "per_task",
) -> GroupsHead:
    """Hybrid fusion of table II. pair: the two that are fused early; None is the first two. The rest: late_fusion."""
    if len(streams) < 2:
        raise ValueError(f"hybrid fusion needs two streams or more; it got {', '.join(map(repr, streams)) or 'none'}")
    chosen = tuple(streams)[:2] if pair is None else tuple(pair)
    if len(set(chosen)) != 2 or len(chosen) != 2 or not set(chosen) <= set(streams):
        raise ValueError(f"pair is {chosen}; it must name two of {tuple(streams)}")
    design = Design(
        width=width, heads=heads, dropout=dropout, mlp_ratio=mlp_ratio, activation=activation, positions=positions,
        second_position=second_position, max_steps=max_steps, pool=pool, stage3=stage3,
    )  # fmt: skip
    groups = [chosen, *((name,) for name in streams if name not in chosen)]
    return GroupsHead(
        streams=streams, classes=classes, groups=groups, average=average, training=training, design=design
    )
