"""Mid-level fusion of Temporal Binding Networks: streams meet step by step, before time is averaged.

Source: Kazakos, Nagrani, Zisserman and Damen, "EPIC-Fusion: Audio-Visual Temporal Binding for Egocentric Action
Recognition", ICCV 2019; public code ekazakos/temporal-binding-network. `mid_level` is also a row of Table 2
of the MIMO paper. Context gating: Miech, Laptev and Sivic, "Learnable pooling with Context Gating", 2017
(arXiv:1706.06905), x * sigmoid(W x + b).

For each step: relu(W [f_1; f_2; ...] + b), context gating where asked for, dropout, one linear classifier per task; a
task's logits are the mean over steps. `gating="multimodal"` has a gated multimodal unit of all streams in place of the
first layer; one stream alone goes to the classifiers as it is. Both as in the public code.
A stream that is missing, in a step or in all, is zeros (its gate is shut); the mean is over steps where a stream is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from .contract import FusionHead, Instances, Output, masked_mean, register
from .gating import GatedMultimodalUnit

StepGating = Literal["none", "context", "multimodal"]
PUBLISHED_TASKS = ("verb", "noun")


class ContextGating(nn.Module):
    """x (..., D) * sigmoid(W x + b)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x).sigmoid()


@register(
    "mid_level", paper="Kazakos et al., ICCV 2019", summary="streams joined step by step, logits averaged over time"
)
class MidLevel(FusionHead):
    """Temporal binding's fusion and classification of steps (segments) that all streams share.

    width: of the joint features. gating: "none", "context" or "multimodal" (the public code's `midfusion` concat,
    context_gating and multimodal_gating, the last for two or more streams). dropout: before the classifiers.
    init_std: of the weights of the joint layer and the classifiers; the public code's.
    extras: modality_weights (B, streams) of "multimodal", the gates' mean over channels and steps.
    """

    optional_streams = True
    same_steps = True

    def __init__(
        self,
        *,
        streams: Mapping[str, int],
        classes: Mapping[str, int],
        width: int = 512,
        gating: StepGating = "none",
        dropout: float = 0.5,
        init_std: float = 0.001,
    ) -> None:
        super().__init__(streams=streams, classes=classes)
        if gating not in ("none", "context", "multimodal"):
            raise ValueError(f"gating is {gating!r}; it is 'none', 'context' or 'multimodal'")
        sizes = list(self.streams.values())
        self.joint = self.context_gating = self.unit = None
        if len(sizes) == 1:
            if gating != "none":
                raise ValueError(f"gating={gating!r} fuses two streams or more; this head has one stream")
            width = sizes[0]
        elif gating == "multimodal":
            self.unit = GatedMultimodalUnit(sizes, width, rule="independent")
        else:
            self.joint = nn.Linear(sum(sizes), width)
            self.context_gating = ContextGating(width) if gating == "context" else None
        self.dropout = nn.Dropout(dropout)
        self.classifiers = nn.ModuleDict({task: nn.Linear(width, count) for task, count in self.classes.items()})
        for layer in (self.joint, *self.classifiers.values()):
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=init_std)
                nn.init.zeros_(layer.bias)

    def fuse(
        self,
        features: dict[str, Tensor],
        boxes: Instances | None,
        masks: dict[str, Tensor],
        *,
        losses: bool,
        extras: bool,
    ) -> Output:
        steps, there = self._steps(features, masks)
        gates = None
        if self.unit is not None:
            x, gates = self.unit(steps, there)
        elif self.joint is not None:
            x = self.joint(torch.cat(steps, -1)).relu()
            x = x if self.context_gating is None else self.context_gating(x)
        else:
            (x,) = steps
        x = self.dropout(x)
        any_there = there.any(-1) if masks else None
        output = Output({task: masked_mean(layer(x), any_there) for task, layer in self.classifiers.items()})
        if extras and gates is not None:
            output.extras["modality_weights"] = masked_mean(gates.detach().mean(-1), any_there)
        return output

    def _steps(self, features: dict[str, Tensor], masks: dict[str, Tensor]) -> tuple[list[Tensor], Tensor]:
        """Features (B, T, D) of all streams, zeros where one is not, and where it is: bool (B, T, streams)."""
        some = next(iter(features.values()))
        there = torch.ones(*some.shape[:2], len(self.streams), dtype=torch.bool, device=some.device)
        steps = []
        for i, (stream, width) in enumerate(self.streams.items()):
            if stream not in features:
                there[..., i] = False
                steps.append(some.new_zeros(*some.shape[:2], width))
            elif stream in masks:
                there[..., i] = masks[stream]
                # `where` and not a product: what stands in a masked step may be NaN
                steps.append(features[stream].where(masks[stream][..., None], 0.0))
            else:
                steps.append(features[stream])
        return steps, there


def published_weights(state: Mapping[str, Tensor], *, tasks: tuple[str, ...] = PUBLISHED_TASKS) -> dict[str, Tensor]:
    """Fusion and classification weights of a TBN checkpoint under the names of a `mid_level` head.

    state: the checkpoint's `state_dict`, whole or the part of its fusion network (`fusion_classification_net.`, with or
        without `module.`); the trunks' keys are left out. The order of the head's streams must be the network's: RGB,
        flow, spectrogram.
    tasks: what the head calls the network's verb and noun, in this order. A network of actions alone (`fc_action`)
        gives the classifier of the first.

    Raises ValueError where a key is not one of that network.
    """
    plain = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    inner = "fusion_classification_net."
    if any(key.startswith(inner) for key in plain):
        plain = {key.removeprefix(inner): tensor for key, tensor in plain.items() if key.startswith(inner)}
    names = {"fc1": "joint", "context_gating.fc": "context_gating.gate"}
    names |= {f"fc_{task}": f"classifiers.{ours}" for task, ours in zip(PUBLISHED_TASKS, tasks, strict=False)}
    names["fc_action"] = f"classifiers.{tasks[0]}"
    unit = "multimodal_gated_unit."
    found = {f"unit.{key}": x for key, x in unit_weights(_below(plain, unit)).items()} if _below(plain, unit) else {}
    for key, tensor in plain.items():
        module, _, leaf = key.rpartition(".")
        if module in names:
            found[f"{names[module]}.{leaf}"] = tensor
        # batch norm of context gating is in the files and in no computation
        elif not key.startswith((unit, "context_gating.batch_norm.")):
            raise ValueError(f"{key!r} is no key of TBN's fusion network; it has fc1, {', '.join(sorted(names))}")
    return found


def unit_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of TBN's Multimodal_Gated_Unit (fc_h1.., fc_z1..) under the names of `GatedMultimodalUnit`."""
    count = sum(key.startswith("fc_h") and key.endswith(".weight") for key in state)
    wanted = {f"fc_{part}{i}.{leaf}" for part in "hz" for i in range(1, count + 1) for leaf in ("weight", "bias")}
    if not count or wanted != set(state):
        raise ValueError(
            f"a gated unit of TBN has weight and bias of fc_h1.. and fc_z1.., and this has {', '.join(sorted(state))}"
        )
    found = {}
    for leaf in ("weight", "bias"):
        values, gates = ([state[f"fc_{part}{i}.{leaf}"] for i in range(1, count + 1)] for part in "hz")
        found |= {f"values.{i}.{leaf}": tensor for i, tensor in enumerate(values)}
        if state["fc_z1.weight"].shape[1] == sum(state[f"fc_h{i}.weight"].shape[1] for i in range(1, count + 1)):
            found[f"gates.{leaf}"] = torch.cat(gates)
        else:
            found |= {f"gates.{i}.{leaf}": tensor for i, tensor in enumerate(gates)}
    return found


def load_published(
    head: MidLevel, state: Mapping[str, Tensor], *, tasks: tuple[str, ...] = PUBLISHED_TASKS
) -> MidLevel:
    """Load TBN's fusion and classification weights into `head`, in place and strictly; see `published_weights`.

    Raises ValueError where keys are missing, left over or of another shape.
    """
    converted, own = published_weights(state, tasks=tasks), head.state_dict()
    shapes = {key: [tuple(x[key].shape) if key in x else None for x in (own, converted)] for key in own | converted}
    if wrong := [f"{key} {theirs}, not {ours}" for key, (ours, theirs) in shapes.items() if ours != theirs]:
        raise ValueError(
            f"these weights are not of a mid_level head of streams {head.streams} and classes {head.classes}; they "
            "have " + ", ".join(wrong)
        )
    head.load_state_dict(converted)
    return head


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
