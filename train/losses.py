"""What training minimises: per task, per auxiliary classifier, per step, and what heads add of their own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from ..fusion import Output
from ..pipeline.samples import IGNORED as UNKNOWN
from .recipe import Loss


def task_loss(
    logits: Tensor, target: Tensor, *, kind: str = "cross_entropy", smoothing: float = 0.0, weight: Tensor | None = None
) -> Tensor:
    """Mean over the segments whose label is known; 0, with a gradient of 0, where none is.

    logits: (B, C), or (B, S, C): every step is fitted to the segment's label (RULSTM's 8 steps), mean over B and S.
    target: int64 (B,); float (B, C) of class probabilities (mixed labels) or, for "bce", of 0 and 1. UNKNOWN where
        there is none (in the whole row).
    weight: (C,), of classes. smoothing: share of the label that is spread over all classes.
    """
    if logits.ndim == 3:
        steps = logits.shape[1]
        logits, target = logits.flatten(0, 1), target.repeat_interleave(steps, 0)
    known = target != UNKNOWN if target.ndim == 1 else (target != UNKNOWN).all(1)
    count = known.sum().clamp(min=1)
    if kind == "bce":
        if smoothing:
            target = target * (1 - smoothing) + smoothing / 2
        losses = F.binary_cross_entropy_with_logits(
            logits.float(), target.clamp(min=0).to(logits.device, torch.float32), pos_weight=weight, reduction="none"
        ).mean(1)
        return torch.where(known, losses, 0.0).sum() / count
    if target.ndim == 1:
        # not ignore_index: it gives NaN where every label is unknown
        losses = F.cross_entropy(
            logits.float(), target.clamp(min=0), weight=weight, label_smoothing=smoothing, reduction="none"
        )
        if weight is not None:
            count = weight[target.clamp(min=0)].mul(known).sum().clamp(min=1e-12)
    else:
        losses = F.cross_entropy(
            logits.float(), target.clamp(min=0), weight=weight, label_smoothing=smoothing, reduction="none"
        )
    return torch.where(known, losses, 0.0).sum() / count


def total_loss(
    output: Output,
    targets: Mapping[str, Tensor],
    recipe: Loss,
    *,
    smoothing: float | Mapping[str, float] = 0.0,
    auxiliary_weights: Mapping[str, float] | None = None,
    class_weights: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum that is minimised, and its parts by name, detached: a task, `auxiliary/<name>/<task>`, `head/<loss>`.

    targets: task -> see `task_loss`. Tasks of the output without a target are left out; one known task is needed.
    """
    parts: dict[str, Tensor] = {}

    def fit(name: str, logits: Mapping[str, Tensor], factor: float) -> None:
        for task, scores in logits.items():
            if task not in targets:
                continue
            amount = smoothing if isinstance(smoothing, int | float) else smoothing.get(task, 0.0)
            weight = (class_weights or {}).get(task)
            loss = task_loss(scores, targets[task], kind=recipe.kind, smoothing=amount, weight=weight)
            parts[f"{name}{task}"] = loss * (factor * recipe.weights.get(task, 1.0))

    fit("", output.logits, 1.0)
    if not parts:
        raise ValueError(
            f"no task has a label: the model predicts {', '.join(output.logits)}, labels are there for "
            f"{', '.join(targets) or 'nothing'}"
        )
    for name, logits in output.auxiliary.items():
        fit(f"auxiliary/{name}/", logits, (auxiliary_weights or {}).get(name, 1.0))
    parts |= {f"head/{name}": loss for name, loss in output.losses.items()}
    total = torch.stack([part.float() for part in parts.values()]).sum()
    return total, {name: part.detach() for name, part in parts.items()}


def past_losses(
    step_logits: Tensor, step_labels: Tensor, predicted: Tensor, actual: Tensor, *, detach_target: bool = True
) -> tuple[Tensor, Tensor]:
    """AVT's two losses on what was observed (Girdhar and Grauman, "Anticipative Video Transformer", ICCV 2021).

    step_logits (B, T, K), step_labels int64 (B, T), UNKNOWN where nothing is annotated: cross-entropy over the known
    steps. predicted, actual (B, T, D): the feature foretold for step t + 1 at step t against the one that came, mean
    squared error over t < T - 1. detach_target False trains the features towards the forecast as well
    (AFFT's code).

    Differs: unknown steps are left out of the mean; AVT's and AFFT's code count them as zero loss.
    """
    classify = task_loss(step_logits.flatten(0, 1), step_labels.flatten())
    target = actual[:, 1:].detach() if detach_target else actual[:, 1:]
    return classify, F.mse_loss(predicted[:, :-1], target)


def class_weights_of(labels: Tensor, classes: int) -> Tensor:
    """float32 (C,): 1 / frequency, with mean 1 over the classes that occur; 0 for those that do not."""
    counts = torch.bincount(labels[labels != UNKNOWN], minlength=classes).float()
    weights = torch.where(counts > 0, 1 / counts.clamp(min=1), 0.0)
    return weights / weights[counts > 0].mean().clamp(min=1e-12)
