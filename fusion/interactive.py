"""Interactive Fusion: semantic features of instances from pairs of known kind, a temporal flow, and its prediction.

Source: Yan, Xie, Shu and Tang, "Interactive Fusion of Multi-level Features for Compositional Activity Recognition"
(arXiv:2012.05689), equations 1 to 5; sizes of section 3.3. `variant="released"` is
ruiyan1995/Interactive_Fusion_for_CAR at 3c5e7bf and loads its checkpoints (fusion/interactive_layout.py).

                            paper                                  released
kinds of pairs (eq. 2)      subject-subject, subject-object,       and a fourth: an instance with itself, or with
                            object-object, j != i                  an empty slot
psi_S (eq. 2)               Linear of f + messages                 Linear of (Linear of f) + messages, no biases
temporal flow (eq. 3)       LSTM                                   LSTM + its input
psi_T (eq. 3)               two layers of `width`                  no biases, batch norm, the first twice as wide
instances -> video          mean of those that are there           sum of all slots
prediction of step t        from steps 0 to t - 1 (eq. 4): the     by a second run of the LSTM, over steps
(eq. 4)                     temporal flow's own output             t - T_obs to t - 1
its loss (eq. 5)            sum over steps and instances that      sum over steps, mean over slots, empty ones too
                            are there, mean over the batch
without interaction         mean of the instances that are there,  mean of all slots, steps beside one another, a
                            steps beside one another, psi_T        layer without bias
Joint features differ as fusion/instances.py says.

Where the text is silent: phi are Linear and ReLU (without ReLU the sum over pairs would be one Linear of sums), with
biases, and so is psi_T after each of its layers. T_obs = T / 4 frames are half of the map's T / 2 steps, here of the
real ones. A prediction counts where the instance was there before and its box at that step is there; an offset where
the box of the step before is there, too. A slot that is empty at a step enters the LSTM as zeros and leaves as zeros.
Differs: the text lets an instance's class fix its pairs for the video; here, as in the code, it may change by step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .contract import FusionHead, Instances, Output, register
from .instances import InstanceFeatures, Joint, LinearNorm, Variant

PAIR_KINDS = ("empty_or_self", "subject_subject", "subject_object", "object_object")
Base = Literal["steps", "mean"]


class CompositionalReasoning(nn.Module):
    """Equation 2: joint features (B, T, N, D) -> semantic features (B, T, N, D).

    phi_k([f_i, f_j]) is A_k f_i + B_k f_j + b_k, then ReLU. So each instance goes through A and B of all kinds once,
    by one product, and of a pair only the sum for its own kind is made: N times less work than a Linear for every
    pair and kind.
    """

    def __init__(self, width: int, *, variant: Variant) -> None:
        super().__init__()
        self.released = variant == "released"
        self.kinds = PAIR_KINDS if self.released else PAIR_KINDS[1:]
        self.pairs = nn.Linear(width, 2 * len(self.kinds) * width, bias=False)  # A of all kinds, then B
        self.bias = None if self.released else nn.Parameter(torch.empty(len(self.kinds), width))
        bound = (2 * width) ** -0.5  # of a Linear over [f_i, f_j]
        nn.init.uniform_(self.pairs.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)
        self.embed = nn.Linear(width, width, bias=False) if self.released else nn.Identity()
        self.fuse = nn.Linear(width, width, bias=not self.released)

    def kinds_of(self, categories: Tensor) -> Tensor:
        """categories (B, T, N) -> int64 (B, T, N, N), index into PAIR_KINDS."""
        product = categories[..., :, None] * categories[..., None, :]  # 1, 2, 4; 0 where one is empty
        product = product.masked_fill(torch.eye(categories.shape[-1], dtype=torch.bool, device=product.device), 0)
        return torch.where(product == 4, 3, product)

    def messages(self, joint: Tensor, kinds: Tensor) -> Tensor:
        """phi of every pair (B, T, N, N, D), [..., i, j, :] from j to i; zeros for pairs of no kind."""
        width = joint.shape[-1]
        from_i, from_j = self.pairs(joint).unflatten(-1, (2, len(self.kinds), width)).unbind(-3)
        if self.bias is not None:
            from_i = from_i + self.bias
        first = len(PAIR_KINDS) - len(self.kinds)
        chosen = F.one_hot(kinds, len(PAIR_KINDS))[..., first:].to(from_i.dtype)  # (B, T, N, N, kinds)
        of_i = chosen @ from_i
        of_j = (chosen.transpose(-3, -2) @ from_j).transpose(-3, -2)
        return F.relu(of_i + of_j)

    def forward(self, joint: Tensor, messages: Tensor) -> Tensor:
        return self.fuse(self.embed(joint) + messages.sum(-2))


class TimeEmbedding(nn.Module):
    """psi_T: features of at most `steps` steps (..., T, D), beside one another, -> (..., outputs). Missing steps are
    zeros."""

    def __init__(self, steps: int, inputs: int, outputs: int, *, variant: Variant) -> None:
        super().__init__()
        self.steps = steps
        if variant == "released":
            self.layers = nn.Sequential(LinearNorm(steps * inputs, inputs), LinearNorm(inputs, outputs))
        else:
            self.layers = nn.Sequential(
                nn.Linear(steps * inputs, outputs), nn.ReLU(), nn.Linear(outputs, outputs), nn.ReLU()
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(beside_one_another(x, self.steps))


def beside_one_another(x: Tensor, steps: int) -> Tensor:
    """(..., T, D) -> (..., steps * D), zeros after the last step."""
    return F.pad(x, (0, 0, 0, steps - x.shape[-2])).flatten(-2)


class Predictor(nn.Module):
    """Equations 4 and 5: where instances will be, by the temporal flow's LSTM."""

    def __init__(self, width: int, *, variant: Variant) -> None:
        super().__init__()
        self.released = variant == "released"
        self.position = nn.Linear(width, 4)
        self.offset = nn.Linear(width, 2)

    def forward(self, semantic: Tensor, flow: Tensor, lstm: nn.LSTM, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """semantic, flow (B, T, N, D) -> for every step cx cy w h (B, T, N, 4), the offset of cx cy since the step
        before (B, T, N, 2), and bool (B, T): the steps that are predicted. The others' numbers mean nothing."""
        steps = semantic.shape[1]
        length = real.sum(1)
        observed = (length // 2).clamp(min=1)[:, None]
        step = torch.arange(steps, device=semantic.device)
        predicted = (step >= observed) & (step < length[:, None])
        if self.released:
            state = self._from_windows(semantic, observed, lstm)
        else:
            state = torch.cat([torch.zeros_like(flow[:, :1]), flow[:, :-1]], 1)
        return self.position(state), self.offset(state), predicted

    def _from_windows(self, semantic: Tensor, observed: Tensor, lstm: nn.LSTM) -> Tensor:
        """Last outputs of the LSTM over the `observed` (B, 1) steps before each step."""
        batch, steps, instances, width = semantic.shape
        longest = max(steps // 2, 1)
        step = torch.arange(steps, device=semantic.device)
        # window k of a sample begins at its step k and foretells step k + observed
        windows = steps - longest
        if not windows:
            return torch.zeros_like(semantic)
        begin = step[:windows, None] + step[:longest]
        inputs = semantic[:, begin].permute(2, 0, 1, 3, 4).reshape(longest, -1, width)
        outputs = lstm(inputs)[0].view(longest, batch, windows, instances, width)
        sample = torch.arange(batch, device=semantic.device)[:, None]
        return outputs[observed - 1, sample, (step - observed).clamp(0, windows - 1)]

    def loss(self, positions: Tensor, offsets: Tensor, predicted: Tensor, joint: Joint) -> Tensor:
        """Equation 5 of what `forward` returned, without lambda. In float32 at least."""
        exact = torch.promote_types(positions.dtype, torch.float32)
        truth = joint.centres.to(exact)
        moved = torch.zeros_like(truth[..., :2])
        moved[:, 1:] = truth[:, 1:, :, :2] - truth[:, :-1, :, :2]
        far = (positions.to(exact) - truth).square().sum(-1)
        off = (offsets.to(exact) - moved).square().sum(-1)
        nothing = far.new_zeros(())
        batch, _, instances = far.shape
        if self.released:
            return torch.where(predicted[..., None], far + off, nothing).sum() / (batch * instances)
        before = joint.present.roll(1, 1)
        before[:, 0] = False
        known = predicted[..., None] & joint.present & (before.cumsum(1) > 0)
        return (torch.where(known, far, nothing) + torch.where(known & before, off, nothing)).sum() / batch


@register(
    "interactive",
    paper="Yan et al., Interactive Fusion (arXiv:2012.05689), 2020",
    summary="instances' joint features, interaction of pairs of known kind, temporal flow, prediction of boxes",
)
class InteractiveFusion(FusionHead):
    """Interactive Fusion and the ablations of its Table 1.

    Takes maps (B, D, T, H, W), sequences (maps of one cell), or RoI features (B, T, N, D, s, s) of the same boxes,
    s = `roi_size`; several streams' RoI features stand beside one another before they are embedded. Boxes are given at
    the T steps of the maps or at a multiple, of which the first of each step counts.

    variant: "paper" or "released" (the public code's network); see the head of this file.
    appearance, non_appearance: which of the joint features to have. Without appearance no streams are needed, and
        features only tell T and their masks which steps are real.
    interaction: semantic feature interaction (SFI, equations 2 and 3); False = Ours-base.
    prediction: of boxes, with its loss "prediction" (equations 4 and 5); None = where there is interaction.
    prediction_weight: lambda of equation 1.
    steps: T of the maps, or of the boxes where they suffice; shorter clips are zeros at the end.
    width: d_app and d_non_app; everything after them is 2 * width where both are there.
    map_width: d_fea, of maps before RoIAlign; None = 512 (paper) or 256 (released) for a width of 512, in proportion.
    global_feature: the classifier also sees the maps averaged over space and time (the code's `GLOBAL`, for boxes of
        a detector).
    base: without interaction, "steps": instances averaged, steps beside one another ("pool_T"); "mean": all averaged
        ("pool").
    dropout: after the RoI features' embedding.

    extras, of steps in the order they were used in, real ones first:
    interactions (B, T, N, N): length of the message from instance j (last) to i. pair_kinds int64 (B, T, N, N): index
        into PAIR_KINDS. pair_counts int64 (B, T, kinds): pairs of each of PAIR_KINDS.
    predicted_boxes (B, T, N, 4) x1 y1 x2 y2 and predicted_offsets (B, T, N, 2) of the centre; predicted bool (B, T)
        says at which steps, the others are zeros.
    """

    layout = "map"
    needs_boxes = True
    same_steps = True

    def __init__(
        self,
        *,
        streams: Mapping[str, int],
        classes: Mapping[str, int],
        variant: Variant = "paper",
        appearance: bool = True,
        non_appearance: bool = True,
        interaction: bool = True,
        prediction: bool | None = None,
        prediction_weight: float = 5.0,
        steps: int = 4,
        width: int = 512,
        map_width: int | None = None,
        roi_size: int = 3,
        global_feature: bool = False,
        base: Base = "steps",
        dropout: float = 0.3,
    ) -> None:
        self.boxes_suffice = self.optional_streams = not appearance
        super().__init__(streams=streams, classes=classes)
        if prediction and not interaction:
            raise ValueError("prediction=True needs interaction=True: the temporal flow is what predicts")
        if global_feature and not appearance:
            raise ValueError("global_feature=True needs appearance=True: it is the mean of the maps")
        if base not in ("steps", "mean"):
            raise ValueError(f"base is {base!r}; it is 'steps' or 'mean'")
        if steps < 1:
            raise ValueError(f"steps is {steps}; it must be positive")
        self.variant: Variant = variant
        self.steps, self.base, self.global_feature = steps, base, global_feature
        self.prediction_weight = prediction_weight
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
        joint = self.instances.joint_width
        self.reasoning = self.flow = self.predictor = self.time = None
        if interaction:
            self.reasoning = CompositionalReasoning(joint, variant=variant)
            self.flow = nn.LSTM(joint, joint, num_layers=2)
            self.predictor = None if prediction is False else Predictor(joint, variant=variant)
        pooled = joint
        if interaction or (base == "steps" and variant == "paper"):
            self.time = TimeEmbedding(steps, joint, width, variant=variant)
            pooled = width
        elif base == "steps":
            self.time = BaseEmbedding(steps, joint)
        pooled += self.instances.whole_width if global_feature else 0
        self.classifiers = nn.ModuleDict({task: nn.Linear(pooled, number) for task, number in self.classes.items()})

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
        output = Output(logits={})
        video = self._base(joint) if self.reasoning is None else self._interaction(joint, output, losses, extras)
        if self.global_feature:
            if joint.whole is None:
                raise ValueError("global_feature=True needs maps (B, D, T, H, W); RoI features do not show the whole")
            video = torch.cat([video, joint.whole], -1)
        output.logits = {task: classifier(video) for task, classifier in self.classifiers.items()}
        return output

    def _base(self, joint: Joint) -> Tensor:
        """Ours-base: joint features -> (B, width of a video)."""
        seen = joint.present if self.variant == "paper" else joint.real[..., None].expand_as(joint.present)
        number = seen.sum(2, keepdim=True).to(joint.features.dtype)
        total = joint.features.sum(2)  # what is not seen is zeros
        if self.time is None:
            return total.sum(1) / number.sum(1).clamp(min=1)
        return self.time(total / number.clamp(min=1))

    def _interaction(self, joint: Joint, output: Output, losses: bool, extras: bool) -> Tensor:
        """SFI and what it predicts: joint features -> (B, width of a video); losses and extras go into output."""
        reasoning, lstm, time = self.reasoning, self.flow, self.time
        assert reasoning is not None and lstm is not None and time is not None
        released = self.variant == "released"
        x = joint.features
        kinds = reasoning.kinds_of(joint.categories)
        messages = reasoning.messages(x, kinds)
        # (B, T, N, 1): where a slot's features are let through
        through = (joint.real[..., None].expand_as(joint.present) if released else joint.present)[..., None]
        nothing = x.new_zeros(())
        semantic = torch.where(through, reasoning(x, messages), nothing)
        flow = lstm(semantic.transpose(0, 1).flatten(1, 2))[0].unflatten(1, (x.shape[0], -1)).transpose(0, 1)
        flowed = torch.where(through, semantic + flow if released else flow, nothing)
        by_instance = time(flowed.transpose(1, 2))
        if released:
            video = by_instance.sum(1)
        else:
            there = joint.present.any(1)[..., None]
            kept = torch.where(there, by_instance, nothing)
            video = kept.sum(1) / there.sum(1).clamp(min=1).to(kept.dtype)
        if extras:
            strength = torch.where(through[..., None], messages, nothing).norm(dim=-1)
            counts = F.one_hot(kinds, len(PAIR_KINDS)).sum((2, 3))
            output.extras |= {"interactions": strength.detach(), "pair_kinds": kinds, "pair_counts": counts}
        if self.predictor is not None and (losses or extras):
            positions, offsets, predicted = self.predictor(semantic, flow, lstm, joint.real)
            if losses:
                loss = self.predictor.loss(positions, offsets, predicted, joint)
                output.losses["prediction"] = self.prediction_weight * loss
            if extras:
                centre, size = positions.detach().split(2, -1)
                corners = torch.cat([centre - size / 2, centre + size / 2], -1)
                at = predicted[..., None, None]
                output.extras |= {
                    "predicted_boxes": torch.where(at, corners, nothing),
                    "predicted_offsets": torch.where(at, offsets.detach(), nothing),
                    "predicted": predicted,
                }
        return video


class BaseEmbedding(nn.Module):
    """The released Ours-base over time: (B, T, D) -> (B, D)."""

    def __init__(self, steps: int, width: int) -> None:
        super().__init__()
        self.steps = steps
        self.linear = nn.Linear(steps * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.linear(beside_one_another(x, self.steps)))
