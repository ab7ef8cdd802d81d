"""Concatenation, summation, FiLM and gated fusion of whole clips: what newer methods are compared with.

Source: Peng et al., "Balanced Multimodal Learning via On-the-fly Gradient Modulation", CVPR 2022, and its public code
GeWu-Lab/OGM-GE_CVPR2022, for two streams; `concat` and `sum` are also rows of Table 2 of Hou et al., "Towards Better
Egocentric Action Understanding in a Multi-Input Multi-Output View" (MIMO). FiLM: Perez et al., AAAI 2018
(arXiv:1709.07871); gated: Kiela et al., AAAI 2018 (arXiv:1802.02892).

Every stream is averaged over space and over its real steps to one vector f_i; then, for each task,
`concat` W [f_1; f_2; ...] + b
`sum`    W_1 f_1 + b_1 + W_2 f_2 + b_2 + ...
`film`   W (gamma(f_1) * f_2 + beta(f_1)) + b
`gated`  W (sigmoid(V_1 f_1) * V_2 f_2) + b, V with biases

A stream that is missing is a vector of zeros; `sum` leaves it out and scales what is left by streams / streams there.
Beyond two streams, where the source is silent: `film` modulates each of the others by a gamma and beta of its own and
classifies them side by side; `gated` gates the sum of the others.
Differs: any number of tasks, each with a classifier of its own on the same joint vector; widths may differ.
`concat` and `sum` report what each stream alone says (`auxiliary["unimodal/STREAM"]`, of weight 0: to be looked at, or
handed to `OGM.step`), as the public code takes it: W_i f_i + b / streams, and W_i f_i + b_i.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .contract import FusionHead, Instances, Output, masked_mean, register

PAPER = "Peng et al., CVPR 2022"


class ClipHead(FusionHead):
    """A head on one vector per stream. A subclass defines `joint`, which `classifiers` then classify.

    unimodal: the subclass defines `alone` as well.
    """

    optional_streams = True
    unimodal = False

    def __init__(
        self,
        *,
        streams: Mapping[str, int],
        classes: Mapping[str, int],
        dropout: float = 0.0,
        at_least: int = 1,
    ) -> None:
        super().__init__(streams=streams, classes=classes)
        if len(self.streams) < at_least:
            raise ValueError(
                f"this fusion needs {at_least} streams or more; it got {', '.join(self.streams)}. "
                "For a single stream use 'concat', which then is a linear classifier"
            )
        self.dropout = nn.Dropout(dropout)
        self.classifiers = nn.ModuleDict()
        if self.unimodal:
            self.auxiliary_weights = {f"unimodal/{stream}": 0.0 for stream in self.streams}

    def classify(self, width: int) -> None:
        """One linear classifier for each task."""
        self.classifiers.update({task: nn.Linear(width, count) for task, count in self.classes.items()})

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
        logits, shares = self.logits({stream: self.dropout(clip) for stream, clip in clips.items()}, there)
        output = Output(logits)
        if self.unimodal and (losses or extras):
            with torch.no_grad():
                output.auxiliary = {
                    f"unimodal/{stream}": {task: self.alone(task, stream, clips[stream]) for task in self.classes}
                    for stream in features
                }
        if extras:
            output.extras = {name: x.detach() for name, x in shares.items()}
        return output

    def logits(self, clips: dict[str, Tensor], there: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """clips: stream -> (B, D); there: bool (B, streams). Logits of every task, and extras."""
        joint, extras = self.joint(clips, there)
        return {task: layer(joint) for task, layer in self.classifiers.items()}, extras

    def joint(self, clips: dict[str, Tensor], there: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The vector to classify, and extras."""
        return torch.cat(list(clips.values()), -1), {}

    def alone(self, task: str, stream: str, clip: Tensor) -> Tensor:
        """What the stream says by itself: (B, D) -> (B, classes)."""
        raise TypeError(f"{type(self).__name__} defines no alone")

    def chosen(self, option: str, stream: str | None) -> str:
        """The stream that an option names; the first where it is None."""
        if stream is not None and stream not in self.streams:
            raise ValueError(f"{option}={stream!r} is no stream of this head; it fuses {', '.join(self.streams)}")
        return stream or next(iter(self.streams))


def clip_vectors(
    streams: Mapping[str, int], features: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], Tensor]:
    """Sequences (B, T, D) averaged over their real steps: stream -> (B, D), and which are there, bool (B, streams).

    A stream that is missing is zeros, in the whole batch or in the samples whose mask has no True.
    """
    some = next(iter(features.values()))
    clips, there = {}, []
    for stream, width in streams.items():
        x, mask = features.get(stream), masks.get(stream)
        clips[stream] = some.new_zeros(len(some), width) if x is None else masked_mean(x, mask)
        there.append(mask.any(1) if mask is not None else torch.full((len(some),), x is not None, device=some.device))
    return clips, torch.stack(there, 1)


@register("concat", paper=PAPER, summary="streams side by side, one linear classifier per task")
class Concat(ClipHead):
    """W [f_1; f_2; ...] + b for each task (ConcatFusion of the public code).

    dropout: of the streams' vectors, in training.
    """

    unimodal = True

    def __init__(self, *, streams: Mapping[str, int], classes: Mapping[str, int], dropout: float = 0.0) -> None:
        super().__init__(streams=streams, classes=classes, dropout=dropout)
        self.classify(sum(self.streams.values()))

    def alone(self, task: str, stream: str, clip: Tensor) -> Tensor:
        layer = self.classifiers[task]
        assert isinstance(layer, nn.Linear)
        parts = dict(zip(self.streams, layer.weight.split(list(self.streams.values()), 1), strict=True))
        return nn.functional.linear(clip, parts[stream], layer.bias / len(self.streams))


@register("sum", paper=PAPER, summary="one linear classifier per stream and task, logits summed")
class Sum(ClipHead):
    """W_1 f_1 + b_1 + W_2 f_2 + b_2 + ... for each task (SumFusion of the public code).

    dropout: of the streams' vectors, in training.
    Differs: the public code halves the biases of a stream's own logits in testing only; here they are whole, always.
    """

    unimodal = True

    def __init__(self, *, streams: Mapping[str, int], classes: Mapping[str, int], dropout: float = 0.0) -> None:
        super().__init__(streams=streams, classes=classes, dropout=dropout)
        for task, count in self.classes.items():
            self.classifiers[task] = nn.ModuleDict(
                {stream: nn.Linear(width, count) for stream, width in self.streams.items()}
            )

    def logits(self, clips: dict[str, Tensor], there: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        shares = there * (there.shape[1] / there.sum(1, keepdim=True).clamp(min=1))
        found = {}
        for task in self.classes:
            parts = torch.stack([self.alone(task, stream, clip) for stream, clip in clips.items()], 1)
            found[task] = (parts * shares[..., None].to(parts.dtype)).sum(1)
        return found, {}

    def alone(self, task: str, stream: str, clip: Tensor) -> Tensor:
        layers = self.classifiers[task]
        assert isinstance(layers, nn.ModuleDict)
        return layers[stream](clip)


@register("film", paper=PAPER, summary="one stream scales and shifts the features of the others (FiLM)")
class FiLM(ClipHead):
    """gamma(f_c) * f_j + beta(f_c) for every other stream j, side by side, then one linear classifier per task.

    condition: the stream that gives gamma and beta; None = the first (`x_film=True` of the public code).
    dropout: of the streams' vectors, in training.
    """

    def __init__(
        self,
        *,
        streams: Mapping[str, int],
        classes: Mapping[str, int],
        condition: str | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(streams=streams, classes=classes, dropout=dropout, at_least=2)
        self.condition = self.chosen("condition", condition)
        others = {stream: width for stream, width in self.streams.items() if stream != self.condition}
        # gamma first, then beta
        self.modulation = nn.ModuleDict(
            {stream: nn.Linear(self.streams[self.condition], 2 * width) for stream, width in others.items()}
        )
        self.classify(sum(others.values()))

    def joint(self, clips: dict[str, Tensor], there: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        modulated = []
        for stream, layer in self.modulation.items():
            gamma, beta = layer(clips[self.condition]).chunk(2, -1)
            modulated.append(gamma * clips[stream] + beta)
        return torch.cat(modulated, -1), {}


@register("gated", paper=PAPER, summary="one stream opens and closes the channels of the others")
class Gated(ClipHead):
    """sigmoid(V_g f_g) * (sum of V_j f_j over the other streams), then one linear classifier per task.

    width: of V_i f_i. gate: the stream that gates; None = the first (`x_gate=True` of the public code).
    dropout: of the streams' vectors, in training.
    """

    def __init__(
        self,
        *,
        streams: Mapping[str, int],
        classes: Mapping[str, int],
        width: int = 512,
        gate: str | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(streams=streams, classes=classes, dropout=dropout, at_least=2)
        self.gate = self.chosen("gate", gate)
        self.project = nn.ModuleDict({stream: nn.Linear(size, width) for stream, size in self.streams.items()})
        self.classify(width)

    def joint(self, clips: dict[str, Tensor], there: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        projected = {stream: self.project[stream](clip) for stream, clip in clips.items()}
        gate = projected.pop(self.gate).sigmoid()
        return gate * torch.stack(list(projected.values())).sum(0), {"gate": gate}
