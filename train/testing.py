"""What a model says of a whole split: every segment once, over all its views, in any number of processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, distributed

from actionfuse.heartbeat import beat

from ..fusion import Output
from ..pipeline.order import EpochSampler
from ..pipeline.samples import SegmentDataset, make_loader
from .batches import Batch, to_device
from .model import ActionModel
from .scores import Scores

R = TypeVar("R", bound=Mapping[str, Any])
Average = Literal["probability", "logit", "maximum"]
Look = Callable[[Batch, Output], None]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Tested:
    """scores: of this process's share. broken: {id, index, reason} of what could not be read.

    steps: scores (B, S, C) of each step, where the head tells step by step; else empty.
    damaged: {id, index, reason} of what was read though parts of it could not be.
    """

    scores: Scores
    broken: list[dict] = field(default_factory=list)
    steps: Scores = field(default_factory=Scores)
    damaged: list[dict] = field(default_factory=list)

    def gather(self) -> Tested | None:
        """Those of all processes, on process 0 (None on others). Every process must call it."""
        scores, steps = self.scores.gather(), self.steps.gather()
        if not (distributed.is_available() and distributed.is_initialized()):
            return self
        rows = [_gathered_rows(each) for each in (self.broken, self.damaged)]
        if scores is None or steps is None:
            return None
        return Tested(scores, rows[0], steps, rows[1])


def _gathered_rows(rows: list[dict]) -> list[dict]:
    """Those of all processes, on process 0."""
    parts: list = [None] * distributed.get_world_size() if distributed.get_rank() == 0 else []
    distributed.gather_object(rows, parts or None)
    return each_once(parts)


def each_once(lists: Iterable[Iterable[R]]) -> list[R]:
    """Rows {id, index, ...} of several lists, each segment once, by index."""
    found = {row["id"]: row for rows in lists for row in rows}
    return sorted(found.values(), key=lambda row: row["index"])


def autocast(device: torch.device, precision: str):
    """The context of a precision; fp32 has none."""
    return torch.autocast(device.type, DTYPES[precision]) if precision in DTYPES else nullcontext()


def test_scores(
    model: ActionModel,
    dataset: SegmentDataset,
    device: torch.device,
    *,
    batch_size: int,
    workers: int = 0,
    precision: str = "fp32",
    average: Average = "probability",
    rank: int = 0,
    world_size: int = 1,
    tick: Callable[[int], None] = lambda segments: None,
    look: Look | None = None,
) -> Tested:
    """Scores of this process's share of a split, with its labels. The model is put into eval mode and left in it.

    average: of views, "probability" (mean of softmax, or of sigmoid where several labels hold; the scores are then its
        logarithm, so that softmax gives it back), "logit", or "maximum" (the logarithm of the largest probability; for
        many labels the largest logit: PySlowFast on Charades). A segment with one view keeps its logits.
    tick: called with the number of segments of each batch. look: called with each batch and the model's output with its
        extras, a row for every view.
    """
    model.eval()
    classes = model.classes
    owned = dataset.dataset.parts
    known = {*classes, *owned, *(part for whole in classes for part in owned.get(whole, {}))}
    several = {task for task, count in dataset._tasks.items() if count is not None}
    sampler = EpochSampler(len(dataset), shuffle=False, rank=rank, world_size=world_size)
    loader = make_loader(dataset, batch_size=batch_size, sampler=sampler, num_workers=workers, device=device)
    tested = Tested(Scores())
    for raw in loader:
        tested.broken += raw["broken"]
        tested.damaged += raw["damaged"]
        if raw["id"]:
            labels = {task: label for task, label in raw["labels"].items() if task in known}
            raw = {**raw, "labels": {}}
            batch = to_device(raw, device, "cross_entropy", classes)
            logits, steps = _told(
                model, batch, dataset.num_views, precision=precision, average=average, several=several, look=look
            )
            tested.scores.add(batch.ids, logits, labels)
            if steps:
                tested.steps.add(batch.ids, steps)
        beat()
        tick(len(raw["id"]) + len(raw["broken"]))
    return tested


def predict(
    model: ActionModel,
    batch: Batch,
    views: int = 1,
    *,
    precision: str = "fp32",
    average: Average = "probability",
    several: set[str] | frozenset[str] = frozenset(),
    look: Look | None = None,
) -> dict[str, Tensor]:
    """task -> float32 (B, C) scores of a batch whose inputs are (B, [views,] T, ...). several: tasks of many labels."""
    return _told(model, batch, views, precision=precision, average=average, several=several, look=look)[0]


@torch.inference_mode()
def _told(
    model: ActionModel,
    batch: Batch,
    views: int,
    *,
    precision: str,
    average: Average,
    several: set[str] | frozenset[str],
    look: Look | None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The scores of `predict`, and (B, S, C) of each step, where the head tells step by step."""
    inputs, masks, boxes = batch.inputs, batch.masks, batch.boxes
    if views > 1:
        inputs = {name: x.flatten(0, 1) for name, x in inputs.items()}
        masks = {name: mask.flatten(0, 1) for name, mask in masks.items()}
    device = next(iter(inputs.values())).device
    with autocast(device, precision):
        output = model(inputs, boxes, masks, losses=False, extras=look is not None)
    if look is not None:
        look(batch, output)

    def scores_of(logits: dict[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for task, scores in logits.items():
            scores = scores.float()
            if views > 1:
                scores = scores.unflatten(0, (-1, views))
                scores = _OF_VIEWS[average](scores, task in several)
            found[task] = scores
        return found

    return scores_of(output.logits), scores_of(output.auxiliary.get(model.head.stepwise, {}))


def mean_of_views(logits: Tensor, several: bool) -> Tensor:
    """Logits (B, views, ..., C) -> scores (B, ..., C) whose softmax (or sigmoid, for many labels) is the mean over
    views.
    """
    if several:
        return torch.logit(logits.double().sigmoid().mean(1)).float()
    return torch.logsumexp(logits.log_softmax(-1), 1) - math.log(logits.shape[1])


def max_of_views(logits: Tensor, several: bool) -> Tensor:
    """Logits (B, views, ..., C) -> (B, ..., C): the largest probability of each class over views, as a logarithm (as
    log odds for many labels).
    """
    return (logits if several else logits.log_softmax(-1)).amax(1)


_OF_VIEWS: dict[Average, Callable[[Tensor, bool], Tensor]] = {
    "probability": mean_of_views,
    "logit": lambda logits, several: logits.mean(1),
    "maximum": max_of_views,
}
