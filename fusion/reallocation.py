"""The search over attention weights of MIMO (Hou et al., section 2.3) on a validation set.

The paper sets one weight per stream and does not say how it found them. Here each task's weights climb its accuracy,
one stream a step: the change that makes most answers right. Equation 4 needs of a sample only, for each head, the
attention that each stream got at weights of 1 and the values that it brought: a_y is proportional to exp(m_y), so
    sum over streams i of w_i (sum of a_y v_y, y in i)  /  sum over streams i of w_i (sum of a_y, y in i).
Those sums are kept, a few vectors a sample; neither backbones nor attention run again while weights are tried.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ._modes import testing
from .contract import as_map
from .mimo import Layer, Mimo

Batch = tuple[Mapping[str, Tensor], Mapping[str, Tensor] | None, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Reallocation:
    """weights: task -> stream -> w. accuracy_before, accuracy: task -> share of right answers, with weights 1 and w."""

    weights: dict[str, dict[str, float]]
    accuracy_before: dict[str, float]
    accuracy: dict[str, float]


@dataclass(frozen=True)
class _Sums:
    """Of one batch. before: task tokens (B, tasks, width). shares: (B, heads, tasks, groups), values: the same with D /
    heads behind; groups are the task tokens, then the streams."""

    before: Tensor
    shares: Tensor
    values: Tensor
    labels: Mapping[str, Tensor]


def tune_reallocation(
    head: Mimo,
    batches: Iterable[Batch],
    *,
    candidates: Sequence[float] = (0.125, 0.25, 0.5, 0.7, 1.4, 2.0, 4.0, 8.0),
    rounds: int = 10,
) -> Reallocation:
    """Find weights for each task and stream, and set them in `head` (as `head.set_reallocation` does).

    batches: (features, masks or None, labels) of the validation set, as `head` takes them, on its device; labels:
        task -> int64 (B,); a negative label is not counted. Tasks without labels keep weights of 1.
    candidates: weights tried for one stream while those of the others stand, in addition to the present one.
    rounds: at most so many changes for each task; it ends when none makes more answers right.

    A weight is changed only where that makes more answers right, so no task gets worse on this set (but for samples
    whose two best logits are equal to within rounding). Deterministic. Raises ValueError for a set without samples.
    """
    if any(not w >= 0 for w in candidates):
        raise ValueError(f"candidates are {list(candidates)}; weights must be 0 or more")
    with torch.no_grad(), testing(head):
        kept = [_sums_of(head, features, masks or {}, labels) for features, masks, labels in batches]
        if not kept:
            raise ValueError("there is not one batch to tune on")
        found, before, after = {}, {}, {}
        for number, task in enumerate(head.classes):
            weights = dict.fromkeys(head.streams, 1.0)
            counted = sum(int((sums.labels[task] >= 0).sum()) for sums in kept if task in sums.labels)
            if counted:
                best = start = _right(head, kept, task, number, weights)
                for _ in range(rounds):
                    # of equals the first, so the order of streams and candidates decides
                    changes = [{**weights, stream: float(w)} for stream in head.streams for w in candidates]
                    rights = [_right(head, kept, task, number, tried) for tried in changes]
                    if max(rights, default=0) <= best:
                        break
                    best = max(rights)
                    weights = changes[rights.index(best)]
                before[task], after[task] = start / counted, best / counted
            found[task] = weights
        head.set_reallocation(found)
    return Reallocation(found, before, after)


def _sums_of(
    head: Mimo, features: Mapping[str, Tensor], masks: Mapping[str, Tensor], labels: Mapping[str, Tensor]
) -> _Sums:
    chosen = head._checked(features, None)
    maps = {name: as_map(x) for name, x in chosen.items()}
    tokens, keep, counts = head.last_tokens(maps, head._checked_masks(chosen, masks))
    layer, tasks = _last(head), len(head.classes)
    source = layer.norm(tokens)
    _, weights = layer.attention(source[:, :tasks], source, keep=keep, with_weights=True)
    assert weights is not None
    values = layer.attention._split(layer.attention.key_value(source).chunk(2, -1)[1])
    parts = list(zip(weights.split([tasks, *counts], -1), values.split([tasks, *counts], -2), strict=True))
    return _Sums(
        tokens[:, :tasks],
        torch.stack([a.sum(-1) for a, _ in parts], -1),
        torch.stack([a @ v for a, v in parts], -2),
        labels,
    )


def _right(head: Mimo, kept: list[_Sums], task: str, number: int, weights: Mapping[str, float]) -> int:
    """Samples whose label of this task is the best, with these weights."""
    layer, total = _last(head), torch.zeros((), dtype=torch.int64, device=head.task_tokens.device)
    for sums in kept:
        if task not in sums.labels:
            continue
        w = sums.shares.new_tensor([1.0, *weights.values()])
        shares, values = sums.shares[:, :, number], sums.values[:, :, number]
        mixed = (values * w[:, None]).sum(-2) / (shares * w).sum(-1, keepdim=True)  # (B, heads, D / heads)
        tokens = layer.finish(sums.before[:, number], layer.attention.out(mixed.flatten(1)))
        labels = sums.labels[task]
        right = head.classifiers[task](head.norm(tokens)).argmax(-1) == labels
        total += (right & (labels >= 0)).sum()
    return int(total)


def _last(head: Mimo) -> Layer:
    layer = head.layers[-1]
    assert isinstance(layer, Layer)
    return layer
