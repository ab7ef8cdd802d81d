"""MATT: attention over modalities, which weighs the scores of the streams' own models.

Source: Furnari and Farinella, "What Would You Expect? Anticipating Egocentric Actions with Rolling-Unrolling LSTMs and
Modality Attention", ICCV 2019 (arXiv:1905.09035), and the public code fpv-iplab/rulstm; also the module of that name in
zeyun-zhong/AFFT (WACV 2023). a = softmax(MLP([c_1; c_2; ...])) of the streams' contexts, y = sum of a_m y_m.

There a context is the state of a recurrent network and scores come from it at every step; `MATT` and `fuse_scores` take
them as they are. The head `matt` does the same for features without such a network: a stream's context is its mean over
real steps, and a linear classifier on it gives the stream's scores. Scores are weighed before any softmax.
A stream that is missing has a context of zeros and no weight: those of the others still sum to one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .baselines import clip_vectors
from .contract import FusionHead, Instances, Output, register


class MATT(nn.Sequential):
    """Contexts of the streams (..., C_m) -> weights (..., streams), which sum to one.

    contexts: C_m of each stream; the hidden layers have a quarter and an eighth of their sum. dropout: after both.
    """

    def __init__(self, contexts: Sequence[int], *, dropout: float = 0.8) -> None:
        size = sum(contexts)
        inner, last = max(1, size // 4), max(1, size // 8)
        super().__init__(
            nn.Linear(size, inner),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(inner, last),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(last, len(contexts)),
        )

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, contexts: Sequence[Tensor], there: Tensor | None = None
    ) -> Tensor:
        """there: bool (..., streams), False for streams that get no weight; None = all are there."""
        scores = super().forward(torch.cat(list(contexts), -1))
        if there is None:
            return scores.softmax(-1)
        # a softmax over no stream would be NaN, also backwards: such a row weighs all, and then none
        weights = scores.where(there | ~there.any(-1, keepdim=True), -torch.inf).softmax(-1)
        return weights.where(there, 0.0)


def fuse_scores(weights: Tensor, scores: Sequence[Tensor]) -> Tensor:
    """weights (..., streams) and a stream's scores (..., classes) each: the weighted sum (..., classes)."""
    return torch.einsum("...m,...mc->...c", weights, torch.stack(list(scores), -2))


@register("matt", paper="Furnari and Farinella, ICCV 2019", summary="attention over streams weighs their own scores")
class ModalityAttention(FusionHead):
    """Scores of each stream's own classifier, weighed by MATT: one weight per stream for all tasks.

    dropout: of MATT's hidden layers and before the classifiers, as published.
    extras: modality_weights (B, streams).
    """

    optional_streams = True

    def __init__(self, *, streams: Mapping[str, int], classes: Mapping[str, int], dropout: float = 0.8) -> None:
        super().__init__(streams=streams, classes=classes)
        self.matt = MATT(list(self.streams.values()), dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.classifiers = nn.ModuleDict(
            {
                stream: nn.ModuleDict({task: nn.Linear(width, count) for task, count in self.classes.items()})
                for stream, width in self.streams.items()
            }
        )

    def fuse(
        self,
        features: dict[str, Tensor],
        boxes: Instances | None,
        masks: dict[str, Tensor],
        *,
        losses: bool,
        extras: bool,
    ) -> Output:
        clips, there = clip_vectors(self.streams, features, masks)
        weights = self.matt(list(clips.values()), there)
        logits = {}
        for task in self.classes:
            scores = []
            for stream, clip in clips.items():
                layers = self.classifiers[stream]
                assert isinstance(layers, nn.ModuleDict)
                scores.append(layers[task](self.dropout(clip)))
            logits[task] = fuse_scores(weights, scores)
        output = Output(logits)
        if extras:
            output.extras["modality_weights"] = weights.detach()
        return output


def published_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of `MATT` in a checkpoint of RULSTM's fusion (`MATT.0.weight`, ...) or of AFFT (`....matt.0.weight`).

    Other keys are left out. Raises ValueError where there is none of it.
    """
    wanted = {f"{layer}.{leaf}" for layer in (0, 3, 6) for leaf in ("weight", "bias")}
    found = {}
    for key, tensor in state.items():
        *_, name, layer, leaf = ("", "", *key.split("."))
        if name in ("MATT", "matt") and f"{layer}.{leaf}" in wanted:
            found[f"{layer}.{leaf}"] = tensor
    if set(found) != wanted:
        missing = ", ".join(sorted(wanted - set(found)))
        raise ValueError(f"these weights lack MATT's {missing}, below 'MATT.' (RULSTM) or 'matt.' (AFFT)")
    return found
