"""Mixup of observed sequences: features and soft labels of two samples, the labels of past steps included.

Sources: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018; on features of several streams as in
Zhong et al., WACV 2023 (AFFT, public code zeyun-zhong/AFFT): one share for the whole batch, drawn with alpha 0.1, and
each sample with the one that mirrors it in the batch. Of samples whose past steps are labelled, only those labelled in
full take part.
Differs: features are mixed also where there are no labels of past steps; the public code mixes labels alone there.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F


def soft_labels(labels: Tensor, classes: int, *, smoothing: float = 0.0) -> Tensor:
    """Labels (...) -> float (..., classes): 1 - smoothing for the label, and smoothing / classes for all.

    Unknown labels, below zero, give the row of class 0: leave them out of the loss by `labels < 0`.
    """
    if not 0.0 <= smoothing < 1.0:
        raise ValueError(f"smoothing is {smoothing}; it must be at least 0 and below 1")
    # on a GPU they would have to be waited for
    if labels.is_cpu and labels.numel() and int(labels.max()) >= classes:
        raise ValueError(f"a label is {int(labels.max())}; they must be 0 to {classes - 1}, or below 0 for unknown")
    return F.one_hot(labels.clamp(min=0), classes) * (1.0 - smoothing) + smoothing / classes


def fully_labelled(past: Tensor) -> Tensor:
    """bool (B,): samples whose past labels (B, T) are all known."""
    return (past >= 0).all(1)


def mixup(values: Mapping[str, Tensor], *, share: float, rows: Tensor | None = None) -> dict[str, Tensor]:
    """share * x + (1 - share) * its partner, for each tensor (B, ...): streams' features or tasks' soft labels.

    share: of the sample itself, 0 to 1, drawn from Beta(alpha, alpha) once for a batch; the same for all that belongs
        to it.
    rows: bool (B,), the samples that take part; None = all. The first's partner is the last of them, and so on; others
        stay as they are. New tensors are returned.
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share is {share}; it must be between 0 and 1")
    mixed = {}
    for name, x in values.items():
        chosen = torch.arange(len(x), device=x.device) if rows is None else rows.nonzero()[:, 0]
        mixed[name] = x.index_copy(0, chosen, share * x[chosen] + (1.0 - share) * x[chosen.flip(0)])
    return mixed
