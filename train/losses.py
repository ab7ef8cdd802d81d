"""What training minimises: per task, per auxiliary classifier, per step, and what heads add of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from ..fusion import Output
from ..pipeline.annotations import Segment
from ..pipeline.samples import IGNORED as UNKNOWN
from .model import LAST
from .recipe import Loss


def task_loss(
    logits: Tensor, target: Tensor, *, kind: str = "cross_entropy", smoothing: float = 0.0, weight: Tensor | None = None
) -> Tensor:
    """Mean over the segments whose label is known; 0, with a gradient of 0, where none is.

    logits: (B, C), or (B, S, C): every step is fitted to the segment's label (RULSTM's 8 steps), mean over B and S.
    target: int64 (B,); float (B, C) of class probabilities (mixed labels) or, for "bce", of 0 and 1. UNKNOWN where
        there is none (in the whole row).
    weight: (C,), of classes; the mean is then by the weights of the labels. smoothing: share of the label that all
        classes get.
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
    # not ignore_index: it gives NaN where every label is unknown
    losses = F.cross_entropy(
        logits.float(), target.clamp(min=0), weight=weight, label_smoothing=smoothing, reduction="none"
    )
    if weight is not None:
        # of mixed labels as of single ones: by the weight of what a segment is, which torch's own mean does not do
        own = weight[target.clamp(min=0)] if target.ndim == 1 else target.clamp(min=0) @ weight.to(target)
        count = own.mul(known).sum().clamp(min=1e-12)
    return torch.where(known, losses, 0.0).sum() / count


def total_loss(
    output: Output,
    targets: Mapping[str, Tensor],
    recipe: Loss,
    *,
    smoothing: float | Mapping[str, float] = 0.0,
    auxiliary_weights: Mapping[str, float] | None = None,
    main_weight: float = 1.0,
    class_weights: Mapping[str, Tensor] | None = None,
    past: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum that is minimised, and its parts by name, detached: a task, `auxiliary/<name>/<task>`,
    `past/<name>/<task>`, `head/<loss>`.

    main_weight: of the output's own logits; 0 leaves them to what is auxiliary (FusionHead.main_weight).
    targets: task -> see `task_loss`. Tasks of the output without a target are left out; one known task is needed.
    past: task -> see `past_loss`; what `Output.auxiliary["past/..."]` is fitted to, with the weight `recipe.past`, and
        by its latest known step the tasks of what was seen last, with the weight `recipe.last_action`.

    Raises: ValueError where no task has a label, and where the recipe wants the past and the head does not tell it.
    """
    parts: dict[str, Tensor] = {}

    past = past or {}
    if recipe.last_action:
        targets = {**targets, **{LAST + task: latest_known(target) for task, target in past.items()}}

    def fit(name: str, logits: Mapping[str, Tensor], factor: float) -> None:
        for task, scores in logits.items():
            if task not in targets:
                continue
            amount = smoothing if isinstance(smoothing, int | float) else smoothing.get(task, 0.0)
            weight = (class_weights or {}).get(task)
            loss = task_loss(scores, targets[task], kind=recipe.kind, smoothing=amount, weight=weight)
            share = recipe.last_action if task.startswith(LAST) else 1.0
            parts[f"{name}{task}"] = loss * (factor * share * recipe.weights.get(task.removeprefix(LAST), 1.0))

    if main_weight:
        fit("", output.logits, main_weight)
    if not any(task in targets for task in output.logits):
        raise ValueError(
            f"no task has a label: the model predicts {', '.join(output.logits)}, labels are there for "
            f"{', '.join(targets) or 'nothing'}"
        )
    told = False
    for name, logits in output.auxiliary.items():
        if name.startswith("past/"):
            for task in logits if recipe.past else ():
                if task in past:
                    amount = smoothing if isinstance(smoothing, int | float) else smoothing.get(task, 0.0)
                    weight = (class_weights or {}).get(task)
                    loss = past_loss(logits[task], past[task], kind=recipe.kind, smoothing=amount, weight=weight)
                    parts[f"{name}/{task}"] = loss * (recipe.past * recipe.weights.get(task, 1.0))
                    told = True
            continue
        if weight := (auxiliary_weights or {}).get(name, 1.0):  # 0: to look at, not to fit
            fit(f"auxiliary/{name}/", logits, weight)
    if recipe.past and past and not told:
        raise ValueError(
            f"loss.past is {recipe.past:g}, but the head classifies no past steps of {', '.join(past)}; afft_sa, "
            "afft_t_sa and afft_ca do with head.options.past=true"
        )
    parts |= {f"head/{name}": loss for name, loss in output.losses.items()}
    total = torch.stack([part.float() for part in parts.values()]).sum()
    return total, {name: part.detach() for name, part in parts.items()}


def latest_known(step_targets: Tensor) -> Tensor:
    """Labels of the past, int64 (B, T) or float (B, T, C), -> that of the latest step that has one, (B,) or (B, C);
    UNKNOWN where none has."""
    known = step_targets != UNKNOWN if step_targets.ndim == 2 else (step_targets != UNKNOWN).all(-1)
    latest = (known * torch.arange(1, known.shape[1] + 1, device=known.device)).argmax(1)
    return step_targets[torch.arange(len(latest), device=known.device), latest]


def past_loss(
    step_logits: Tensor,
    step_targets: Tensor,
    *,
    kind: str = "cross_entropy",
    smoothing: float = 0.0,
    weight: Tensor | None = None,
) -> Tensor:
    """The loss on what was done at each observed step (Girdhar and Grauman, "Anticipative Video Transformer", ICCV
    2021, the first of its two losses on the past): mean over the steps whose label is known, of the whole batch.

    step_logits (B, T, C); step_targets int64 (B, T), or float (B, T, C) as `task_loss` takes them.
    Raises ValueError where steps and labels differ in number.
    Differs: unknown steps are left out of the mean; AVT's and AFFT's code count them as zero loss.
    """
    if step_logits.ndim != 3 or step_logits.shape[:2] != step_targets.shape[:2]:
        raise ValueError(
            f"logits of past steps are {tuple(step_logits.shape)} and labels {tuple(step_targets.shape)}; both must "
            "begin with (B, T): loss.past needs features whose steps are the entries that samples hold"
        )
    return task_loss(
        step_logits.flatten(0, 1), step_targets.flatten(0, 1), kind=kind, smoothing=smoothing, weight=weight
    )


def feature_loss(predicted: Tensor, actual: Tensor, *, detach_target: bool = True) -> Tensor:
    """The second of AVT's losses on the past: mean squared error of the feature foretold for the next step.

    predicted, actual (B, T, D): what was foretold for step t + 1 at step t, against the one that came, over t < T - 1.
    detach_target False trains the features towards the forecast as well (AFFT's code). A head that forecasts features
    puts it into `Output.losses`.
    """
    target = actual[:, 1:].detach() if detach_target else actual[:, 1:]
    return F.mse_loss(predicted[:, :-1], target)


def labels_of(segments: Iterable[Segment], task: str) -> Tensor:
    """int64 (N,): every label of the task that the segments have, several of a segment too."""
    found = []
    for segment in segments:
        label = segment.labels.get(task)
        found += () if label is None else label if isinstance(label, tuple) else (label,)
    return torch.tensor(found, dtype=torch.int64)


def class_weights_of(labels: Tensor, classes: int) -> Tensor:
    """float32 (C,): 1 / frequency, with mean 1 over the classes that occur; 0 for those that do not."""
    counts = torch.bincount(labels[labels != UNKNOWN], minlength=classes).float()
    weights = torch.where(counts > 0, 1 / counts.clamp(min=1), 0.0)
    return weights / weights[counts > 0].mean().clamp(min=1e-12)
