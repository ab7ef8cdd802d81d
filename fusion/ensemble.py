"""Ensembles of models that were trained apart, such as a frame-level I3D and Interactive Fusion ("I3D, Ours" in tables
1 to 3 of Yan et al., arXiv:2012.05689). The paper does not say how scores are joined; here they are averaged after the
softmax, so that every model has the say of its weight, however large its logits are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

Scores = Literal["softmax", "sigmoid", "logits"]


def score_ensemble(
    logits: Sequence[Mapping[str, Tensor]],
    weights: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
    *,
    scores: Scores = "softmax",
) -> dict[str, Tensor]:
    """Weighted mean of several models' scores: task -> (B, classes).

    logits: of each model, as in Output.logits. Tasks that one model lacks are averaged over the others.
    weights: of the models, not negative, for all tasks or by task; they are divided by their sum. None = equal ones.
    scores: "softmax" for one label a sample, "sigmoid" for many, "logits" to average the logits themselves.

    Raises ValueError for no models, wrong weights, and tasks whose shapes differ between models.
    """
    if scores not in ("softmax", "sigmoid", "logits"):
        raise ValueError(f"scores is {scores!r}; it is 'softmax', 'sigmoid' or 'logits'")
    if not logits:
        raise ValueError("an ensemble needs logits of one model at least")
    tasks = list(dict.fromkeys(task for model in logits for task in model))
    if isinstance(weights, Mapping) and (unknown := sorted(set(weights) - set(tasks))):
        raise ValueError(f"weights are given for {', '.join(unknown)}; the models' tasks are {', '.join(tasks)}")
    mixed = {}
    for task in tasks:
        given = weights.get(task) if isinstance(weights, Mapping) else weights
        shares = [1.0] * len(logits) if given is None else [float(weight) for weight in given]
        if len(shares) != len(logits) or not all(0 <= share < float("inf") for share in shares):
            raise ValueError(f"weights of {task!r} are {shares} for {len(logits)} models; give one each, not negative")
        members = [(model[task], share) for model, share in zip(logits, shares, strict=True) if task in model]
        shapes = {tuple(x.shape) for x, _ in members}
        if len(shapes) > 1:
            raise ValueError(f"the models' logits of {task!r} differ in shape: {', '.join(map(str, sorted(shapes)))}")
        total = sum(share for _, share in members)
        if total == 0:
            raise ValueError(f"no model that knows {task!r} has a weight above 0")
        mixed[task] = torch.stack([_scores(x, scores) * (share / total) for x, share in members]).sum(0)
    return mixed


def _scores(logits: Tensor, scores: Scores) -> Tensor:
    # in float32 at least: bfloat16 keeps 2 to 3 digits of a probability
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if scores == "softmax":
        return exact.softmax(-1)
    return exact.sigmoid() if scores == "sigmoid" else exact
