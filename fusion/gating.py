"""Gated multimodal units: every channel of the joint vector is mixed from the streams by learned gates.

Sources: Arevalo, Solorio, Montes-y-Gomez and Gonzalez, "Gated Multimodal Units for Information Fusion", 2017
(arXiv:1702.01992); and for three streams the two rules of the public code of TBN (Kazakos et al., ICCV
2019, ekazakos/temporal-binding-network). `gating` is also a row of Table 2 of the MIMO paper.

h_i = tanh(W_i x_i), and h is by `rule`
"bimodal"     z h_1 + (1 - z) h_2,  z = sigmoid(W_z [x_1; x_2]): the unit of the paper; two streams
"independent" sum of z_i h_i,  z_i = sigmoid(W_zi [x_1; x_2; ...]): the paper's unit for more streams (TBN's mode 0)
"mixed"       sum of z_i h_i + (1 - z_i) sum of the other h_j,  z_i = sigmoid(W_zi [x_i; sum of the other x_j]):
              TBN's mode 1; the streams must be of one width

A missing stream is zeros in what the gates see, and its terms are left out: with one of two streams, "bimodal" gives
that stream's h.
Differs: the paper's equations have no biases and TBN's layers do: `bias`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from .baselines import ClipHead
from .contract import register

Rule = Literal["bimodal", "independent", "mixed"]


class GatedMultimodalUnit(nn.Module):
    """The streams' vectors (..., D_i) -> one (..., width). rule: None = "bimodal" for two, "independent" for others."""

    def __init__(self, widths: Sequence[int], width: int, *, rule: Rule | None = None, bias: bool = True) -> None:
        super().__init__()
        count = len(widths)
        self.rule = rule if rule is not None else "bimodal" if count == 2 else "independent"
        if self.rule not in get_args(Rule):
            raise ValueError(f"rule is {rule!r}; it is one of {', '.join(map(repr, get_args(Rule)))}")
        if self.rule == "bimodal" and count != 2:
            raise ValueError(f"rule 'bimodal' mixes two streams, not {count}; use 'independent' or 'mixed'")
        if self.rule == "mixed" and len(set(widths)) > 1:
            raise ValueError(
                f"rule 'mixed' adds the streams' features, so they must be of one width, and are {list(widths)}; "
                "use rule='independent'"
            )
        self.values = nn.ModuleList(nn.Linear(size, width, bias=bias) for size in widths)
        if self.rule == "mixed":
            self.gates = nn.ModuleList(nn.Linear(2 * size, width, bias=bias) for size in widths)
        else:
            # all gates see the same, so they are one layer
            outputs = width if self.rule == "bimodal" else count * width
            self.gates = nn.Linear(sum(widths), outputs, bias=bias)

    def forward(self, vectors: Sequence[Tensor], there: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """there: bool (..., streams), None = all. The mixed vector, and the gates z_i (..., streams, width)."""
        values = torch.stack([layer(x).tanh() for layer, x in zip(self.values, vectors, strict=True)], -2)
        if there is not None:
            values = values * there[..., None]
        if isinstance(self.gates, nn.ModuleList):
            total = torch.stack(list(vectors)).sum(0)
            seen = [torch.cat([x, total - x], -1) for x in vectors]
            gates = torch.stack([layer(x).sigmoid() for layer, x in zip(self.gates, seen, strict=True)], -2)
        else:
            gates = self.gates(torch.cat(list(vectors), -1)).sigmoid().unflatten(-1, (-1, values.shape[-1]))
            if self.rule == "bimodal":
                gates = torch.cat([gates, 1 - gates], -2)
        if there is not None:
            if self.rule == "bimodal":
                # all of the one that is there: scaling its own share would fail where the sigmoid gave it exactly 0
                gates = gates.where(there.all(-1)[..., None, None], 1.0)
            gates = gates * there[..., None]
        if self.rule == "mixed":
            closed = 1 - gates if there is None else (1 - gates) * there[..., None]
            others = values.sum(-2, keepdim=True) - values
            return (gates * values + closed * others).sum(-2), gates
        return (gates * values).sum(-2), gates


@register(
    "gating", paper="Arevalo et al., 2017", summary="gated multimodal unit: learned gates mix the streams' channels"
)
class Gating(ClipHead):
    """The unit on the streams' mean vectors, then one linear classifier per task.

    width: of the joint vector. rule: see the module; None = "bimodal" for two streams, "independent" for others.
    bias: of the unit's layers. dropout: of the streams' vectors, in training.
    extras: modality_weights (B, streams), the gates' mean over channels.
    """

    def __init__(
        self,
        *,
        streams: Mapping[str, int],
        classes: Mapping[str, int],
        width: int = 512,
        rule: Rule | None = None,
        bias: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(streams=streams, classes=classes, dropout=dropout, at_least=2)
        self.unit = GatedMultimodalUnit(list(self.streams.values()), width, rule=rule, bias=bias)
        self.classify(width)

    def joint(self, clips: dict[str, Tensor], there: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        mixed, gates = self.unit(list(clips.values()), there)
        return mixed, {"modality_weights": gates.mean(-1)}
