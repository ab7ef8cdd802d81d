"""MIMO: a token per task asks all streams at once, and its attention is steered in training and in testing.

Source: Hou, Feng, Xu, Tian and Hu, "Towards Better Egocentric Action Understanding in a Multi-Input Multi-Output View"
(sections 2.1 to 2.3; no public code). One learned token per task and all places of all streams' maps are one sequence;
attention; the task's token then goes to the task's classifier.
`mimo` is the whole method, `query` the fusion alone (second row of Table 1). See `reallocation.py` for the search over
weights of the third.

Equation 1, for one task: 1/n sum over i, j, k of max(0, u_j - u_i) max(0, s_j^k - s_i^k), with s_i^k the attention of
    the task's token to all tokens of stream i in head k and u_i the entropy (nats) of stream i's own classifier. Here
    it is the mean over the batch of each sample's sum; pairs with a stream that the sample lacks count 0. u is a
    measurement: no gradient goes through it. The equation takes attention AWAY from the uncertain stream; the text
    around it (the non-dominated stream should get more) asks for the reverse: `allocate_to="uncertain"`.
Equation 2: Output.losses["allocation/TASK"] is already multiplied by lambda, `allocation_weight`.
Equations 3, 4: `set_reallocation`. Weighting exp(m) by w is adding log w to m, which fused kernels take. The weights of
    the task tokens' own keys are 1. Stored with the weights, used in testing only.
Unimodal classifiers are linear, on the stream's mean over space and real steps, cut off from the graph: they are
    fitted through Output.auxiliary["unimodal/STREAM"] and leave the trunk's gradients as they are.

Where the text is silent: streams are projected to one width; a place is told by learned embeddings of its stream, time,
row and column, summed (`max_steps`, `max_side` are the tables' sizes). "A standard multi-head attention layer" is taken
by its word, without residual, norm or MLP; `block="encoder"` has them (pre-norm, MLP of 4 x width). Several layers
(`depth`) attend everything to everything; in the last, which is steered, only the rows of the task tokens are computed,
as nothing else of it is used. Missing streams and padded steps are not in the sequence; real ones keep their places, so
that the last step of an observation is told by the same embedding however early its video began.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from .attention import MultiHeadAttention
from .contract import FusionHead, Instances, Output, as_sequence, masked_mean, one_of, register

PAPER = "Hou et al., 2023"
Block = Literal["attention", "encoder"]
AllocateTo = Literal["certain", "uncertain"]


def allocation_loss(
    shares: Tensor, uncertainty: Tensor, present: Tensor | None = None, *, allocate_to: AllocateTo = "certain"
) -> Tensor:
    """Equation 1 for every task, mean over the batch: (tasks,).

    shares: (B, heads, tasks, streams), s_i^k. uncertainty: (B, tasks, streams), u_i. present: bool (B, streams), None =
    all. allocate_to: "certain" is the equation as printed, "uncertain" has s_i and s_j exchanged.
    """
    u = uncertainty[..., None, :] - uncertainty[..., :, None]  # [i, j] is u_j - u_i
    s = shares[..., None, :] - shares[..., :, None]
    u, s = u.relu(), (s if allocate_to == "certain" else -s).relu()
    if present is not None:
        u = u * (present[:, :, None] & present[:, None, :])[:, None]
    return (u[:, None] * s).sum((3, 4)).mean((0, 1))


def entropy(logits: Tensor) -> Tensor:
    """Of the softmax over the last dimension, in nats."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    return torch.special.entr(logits.softmax(-1, dtype=wide)).sum(-1)


class Unimodal(nn.Module):
    """A linear classifier for each stream and task, on the stream's mean; no gradient leaves it for the features."""

    def __init__(self, streams: Mapping[str, int], classes: Mapping[str, int]) -> None:
        super().__init__()
        self.classes = dict(classes)
        # those of all tasks are one layer, their logits side by side
        count = sum(classes.values())
        self.layers = nn.ModuleDict({stream: nn.Linear(size, count) for stream, size in streams.items()})

    def forward(
        self, features: Mapping[str, Tensor], masks: Mapping[str, Tensor]
    ) -> tuple[dict[str, dict[str, Tensor]], Tensor]:
        """Maps -> stream -> task -> logits (B, classes), and their entropies (B, tasks, streams given)."""
        sizes = list(self.classes.values())
        logits: dict[str, dict[str, Tensor]] = {}
        found: list[Tensor] = []
        for stream, x in features.items():
            mask = masks.get(stream)
            clip = x.detach().flatten(2).mean(2) if mask is None else masked_mean(as_sequence(x.detach()), mask)
            scores = self.layers[stream](clip)
            if mask is not None:
                # a sample without the stream teaches its classifier nothing
                scores = torch.where(mask.any(1)[:, None], scores, scores.detach())
            found.append(scores)
            logits[stream] = dict(zip(self.classes, scores.split(sizes, -1), strict=True))
        per_task = torch.stack(found, 1).detach().split(sizes, -1)
        return logits, torch.stack([entropy(x) for x in per_task], 1)


class Layer(nn.Module):
    """Attention of the first rows of a sequence to all of it; as a block of a pre-norm encoder where told so."""

    def __init__(self, width: int, heads: int, *, block: Block, dropout: float) -> None:
        super().__init__()
        encoder = block == "encoder"
        self.norm = nn.LayerNorm(width) if encoder else nn.Identity()
        self.attention = MultiHeadAttention(width, heads, dropout=dropout)
        self.mlp = None
        if encoder:
            wide, narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
            self.mlp = nn.Sequential(nn.LayerNorm(width), wide, nn.GELU(), nn.Dropout(dropout), narrow)

    def forward(
        self,
        tokens: Tensor,
        rows: int,
        *,
        keep: Tensor | None,
        log_weights: Tensor | None = None,
        with_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """tokens: (B, L, width). The new first `rows` of them, and their attention (B, heads, rows, L) if asked for."""
        source = self.norm(tokens)
        mixed, weights = self.attention(
            source[:, :rows], source, keep=keep, log_weights=log_weights, with_weights=with_weights
        )
        return self.finish(tokens[:, :rows], mixed), weights

    def finish(self, before: Tensor, mixed: Tensor) -> Tensor:
        """What comes after attention: nothing, or residuals and MLP."""
        if self.mlp is None:
            return mixed
        x = before + mixed
        return x + self.mlp(x)


@register("mimo", paper=PAPER, summary="a token per task queries all streams; attention is steered between them")
class Mimo(FusionHead):
    """Query-based fusion with attention allocating and reallocating.

    width, heads: of the attention. depth: layers; the paper's is 1. block: "attention" or "encoder". dropout: of
    attention weights and inside MLPs. max_steps, max_side: greatest T, and greatest H or W, of a map.
    allocation_weight: lambda of equation 2; 0 makes neither the loss nor the unimodal classifiers.
    allocate_to: "certain" or "uncertain", see the module.
    losses: allocation/TASK. auxiliary: unimodal/STREAM (with losses or extras), if `allocation_weight` is not 0.
    extras: attention/TASK (B, heads, streams), the streams' shares; what is missing to 1 goes to the task tokens.
        uncertainty/TASK (B, streams), nats, NaN where a sample lacks the stream.
    """

    layout = "map"
    optional_streams = True
    reallocation: Tensor

    def __init__(
        self,
        *,
        streams: Mapping[str, int],
        classes: Mapping[str, int],
        width: int = 768,
        heads: int = 8,
        depth: int = 1,
        block: Block = "attention",
        dropout: float = 0.0,
        max_steps: int = 128,
        max_side: int = 16,
        allocation_weight: float = 0.1,
        allocate_to: AllocateTo = "certain",
    ) -> None:
        super().__init__(streams=streams, classes=classes)
        if depth < 1:
            raise ValueError(f"depth is {depth}; it must be 1 or more layers")
        one_of("block", block, get_args(Block))
        one_of("allocate_to", allocate_to, get_args(AllocateTo))
        if allocation_weight < 0:
            raise ValueError(f"allocation_weight is {allocation_weight}; it must be 0 or more")
        self.allocation_weight = allocation_weight
        self.allocate_to: AllocateTo = allocate_to
        # the embedding of the stream is the bias of its projection
        self.project = nn.ModuleDict({s: nn.Linear(size, width, bias=False) for s, size in self.streams.items()})
        self.task_tokens = nn.Parameter(torch.empty(len(self.classes), width))
        self.stream_embedding = nn.Parameter(torch.empty(len(self.streams), width))
        self.time_embedding = nn.Parameter(torch.empty(max_steps, width))
        self.row_embedding = nn.Parameter(torch.empty(max_side, width))
        self.column_embedding = nn.Parameter(torch.empty(max_side, width))
        for table in (self.task_tokens, self.stream_embedding, *self._tables()):
            nn.init.trunc_normal_(table, std=0.02)
        self.layers = nn.ModuleList(Layer(width, heads, block=block, dropout=dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width) if block == "encoder" else nn.Identity()
        self.classifiers = nn.ModuleDict({task: nn.Linear(width, count) for task, count in self.classes.items()})
        self.unimodal = None
        if allocation_weight > 0:
            self.unimodal = Unimodal(self.streams, self.classes)
        self.register_buffer("reallocation", torch.ones(len(self.classes), len(self.streams)))

    # --- reallocation in testing (equations 3, 4)

    def set_reallocation(self, weights: Mapping[str, Mapping[str, float]]) -> None:
        """w of equation 4 for the tokens of a stream, by task: {"verb": {"flow": 1.5}}; 1 where nothing is said.

        0 leaves the stream out. Used in testing mode only; saved with the head's weights.
        """
        table = torch.ones(len(self.classes), len(self.streams))
        for task, per_stream in weights.items():
            for stream, weight in per_stream.items():
                if task not in self.classes or stream not in self.streams:
                    raise ValueError(
                        f"a weight is for task {task!r} and stream {stream!r}; this head's tasks are "
                        f"{', '.join(self.classes)} and its streams {', '.join(self.streams)}"
                    )
                if not (weight >= 0 and math.isfinite(weight)):
                    raise ValueError(f"the weight of {stream!r} for {task!r} is {weight}; it must be finite, 0 or more")
                table[list(self.classes).index(task), list(self.streams).index(stream)] = weight
        with torch.no_grad():
            self.reallocation.copy_(table)

    def get_reallocation(self) -> dict[str, dict[str, float]]:
        """task -> stream -> w."""
        rows = self.reallocation.tolist()
        return {task: dict(zip(self.streams, row, strict=True)) for task, row in zip(self.classes, rows, strict=True)}

    # --- forward

    def fuse(
        self,
        features: dict[str, Tensor],
        boxes: Instances | None,
        masks: dict[str, Tensor],
        *,
        losses: bool,
        extras: bool,
    ) -> Output:
        tokens, keep, counts = self.last_tokens(features, masks)
        x, weights = self.layers[-1](
            tokens,
            len(self.classes),
            keep=keep,
            log_weights=None if self.training else self._log_weights(counts),
            with_weights=extras or (losses and self.unimodal is not None),
        )
        output = Output(self.classify(x))
        shares = None if weights is None else self._shares(weights, [count for count in counts if count])
        if self.unimodal is not None and (losses or extras):
            alone, u = self.unimodal(features, masks)
            output.auxiliary = {f"unimodal/{stream}": logits for stream, logits in alone.items()}
            present = self._present(features, masks) if masks else None
            if losses and shares is not None:
                loss = self.allocation_weight * allocation_loss(shares, u, present, allocate_to=self.allocate_to)
                output.losses = {f"allocation/{task}": x for task, x in zip(self.classes, loss, strict=True)}
            if extras:
                u = u if present is None else u.masked_fill(~present[:, None], torch.nan)
                output.extras |= self._looked_at("uncertainty", u, features, absent=torch.nan)
        if extras and shares is not None:
            output.extras |= self._looked_at("attention", shares.detach().transpose(1, 2), features, absent=0.0)
        return output

    def last_tokens(
        self, features: dict[str, Tensor], masks: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor | None, list[int]]:
        """What the last layer sees: tokens (B, L, width), tasks first; which are real, bool (B, L); their counts."""
        some = next(iter(features.values()))
        parts = [self.task_tokens.expand(len(some), -1, -1)]
        kept, counts = [], []
        for i, (stream, layer) in enumerate(self.project.items()):
            if stream not in features:
                counts.append(0)
                continue
            x, mask = features[stream], masks.get(stream)
            cells = x.shape[3] * x.shape[4]
            counts.append(x.shape[2] * cells)
            if mask is not None:
                # what stands in a masked step may be NaN
                x = x.where(mask[:, None, :, None, None], 0.0)
            projected = layer(x.flatten(2).transpose(1, 2))
            # under autocast the projection is narrower than the embeddings
            parts.append(projected + (self._places(stream, x) + self.stream_embedding[i]).to(projected.dtype))
            if masks:
                mask = mask if mask is not None else mask_of_ones(x)
                kept.append(mask.repeat_interleave(cells, 1))
        parts[0] = parts[0].to(parts[-1].dtype)
        tokens = torch.cat(parts, 1)
        keep = None
        if kept:
            keep = torch.cat([torch.ones_like(kept[0][:, :1]).expand(-1, len(self.classes)), *kept], 1)
        for layer in self.layers[:-1]:
            tokens, _ = layer(tokens, tokens.shape[1], keep=keep)
        return tokens, keep, counts

    def classify(self, tokens: Tensor) -> dict[str, Tensor]:
        """Task tokens (B, tasks, width), as the last layer leaves them, to logits."""
        tokens = self.norm(tokens)
        return {task: layer(tokens[:, i]) for i, (task, layer) in enumerate(self.classifiers.items())}

    def _tables(self) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter]:
        return self.time_embedding, self.row_embedding, self.column_embedding

    def _places(self, stream: str, x: Tensor) -> Tensor:
        """Embeddings (T * H * W, width) of the places of a map (B, D, T, H, W)."""
        names = ("max_steps", "max_side", "max_side")
        for size, table, option in zip(x.shape[2:], self._tables(), names, strict=True):
            if size > len(table):
                raise ValueError(
                    f"stream {stream!r} is {tuple(x.shape)}, and this head knows only {len(table)} positions along its "
                    f"side of {size}; make the head with {option}={size} or more"
                )
        time, rows, columns = (table[:size] for size, table in zip(x.shape[2:], self._tables(), strict=True))
        return (time[:, None, None] + rows[:, None] + columns).flatten(0, 2)

    def _log_weights(self, counts: list[int]) -> Tensor:
        """log w for each task and token: (tasks, L)."""
        logs = self.reallocation.log()
        tasks = logs.new_zeros(len(logs), len(logs))
        return torch.cat([tasks, *(logs[:, i : i + 1].expand(-1, count) for i, count in enumerate(counts))], 1)

    def _shares(self, weights: Tensor, counts: list[int]) -> Tensor:
        """Attention (B, heads, tasks, L) summed over each given stream's tokens: (B, heads, tasks, streams given)."""
        _, *parts = weights.split([len(self.classes), *counts], -1)
        wide = torch.promote_types(weights.dtype, torch.float32)
        return torch.stack([part.sum(-1, dtype=wide) for part in parts], -1)

    def _present(self, features: dict[str, Tensor], masks: dict[str, Tensor]) -> Tensor:
        """Which of the given streams a sample has: bool (B, streams given)."""
        return torch.stack([(masks[s] if s in masks else mask_of_ones(x)).any(1) for s, x in features.items()], 1)

    def _looked_at(self, name: str, values: Tensor, features: dict[str, Tensor], *, absent: float) -> dict[str, Tensor]:
        """Extras from (B, tasks, ..., streams given): for each task (B, ..., streams), `absent` for those not given."""
        given = dict(zip(features, values.unbind(-1), strict=True))
        missing = torch.full_like(values[..., 0], absent)
        values = torch.stack([given.get(stream, missing) for stream in self.streams], -1)
        return {f"{name}/{task}": values[:, i] for i, task in enumerate(self.classes)}


def mask_of_ones(x: Tensor) -> Tensor:
    """bool (B, T) of a map (B, D, T, H, W)."""
    return torch.ones(x.shape[0], x.shape[2], dtype=torch.bool, device=x.device)


@register("query", paper=PAPER, summary="a token per task queries all streams: MIMO without its allocating loss")
def query(
    *,
    streams: Mapping[str, int],
    classes: Mapping[str, int],
    width: int = 768,
    heads: int = 8,
    depth: int = 1,
    block: Block = "attention",
    dropout: float = 0.0,
    max_steps: int = 128,
    max_side: int = 16,
) -> Mimo:
    """Options as those of `mimo`."""
    return Mimo(
        streams=streams,
        classes=classes,
        width=width,
        heads=heads,
        depth=depth,
        block=block,
        dropout=dropout,
        max_steps=max_steps,
        max_side=max_side,
        allocation_weight=0.0,
    )
