"""Batches on their way to the model: order, device, mixed labels, erased boxes. Every draw is a pure function."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..backbones import InputSpec
from ..fusion import Instances
from ..pipeline.annotations import Segment
from ..pipeline.order import EpochSampler, epoch_order
from ..pipeline.raft import flow_codes, shared_raft
from ..pipeline.sampling import draw
from .distance import grouped_order
from .losses import UNKNOWN
from .mixup import fully_labelled, mixup, soft_labels

_BALANCED, _MIX, _ERASE, _STEP = 8, 9, 10, 11  # parts of draws, beside those of samples and their order


class TrainSampler(EpochSampler):
    """EpochSampler with repeated augmentation, class-balanced drawing and groups of a class.

    repeats: how often a segment comes in a row of its place in the order, each time drawn anew (Hoffer et al., "Augment
        your batch", CVPR 2020): it counts as `repeats` samples.
    probabilities: of each segment; an epoch then draws as many segments as there are, with replacement.
    groups: the class of each segment, and how many of a class come in a row (distance.py).
    """

    def __init__(
        self,
        num_samples: int,
        *,
        repeats: int = 1,
        probabilities: np.ndarray | None = None,
        groups: tuple[np.ndarray, int] | None = None,
        **options: Any,
    ) -> None:
        self.repeats, self.probabilities, self.groups = repeats, probabilities, groups
        if groups is not None:
            num_samples = len(grouped_order(*groups, seed=0, epoch=0))
        super().__init__(num_samples * repeats, **options)

    def order(self) -> np.ndarray:
        single = self.num_samples // self.repeats
        if self.groups is not None:
            order = grouped_order(*self.groups, self.seed, self.epoch)
        elif self.probabilities is None:
            order = epoch_order(single, self.seed, self.epoch, self.shuffle)
        else:
            order = draw(self.seed, self.epoch, 0, _BALANCED).choice(single, single, p=self.probabilities)
        return np.repeat(order, self.repeats)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        # A repeated segment is drawn for an epoch of its own: (seed, epoch, index) is all that its draws depend on.
        # The same goes for one that is drawn twice.
        first = self.start_index + self.rank
        for place, index in enumerate(self.indices().tolist()):
            if self.probabilities is None and self.groups is None:
                yield self.epoch * self.repeats + (first + place * self.world_size) % self.repeats, index
            else:
                yield self.epoch * self.num_samples + first + place * self.world_size, index


def balanced_probabilities(segments: tuple[Segment, ...], task: str) -> np.ndarray:
    """Of each segment, so that every class of the task is drawn equally often; without a label never."""
    labels = [segment.labels.get(task) for segment in segments]
    if any(isinstance(label, tuple) for label in labels):
        raise ValueError(f"loss.balance: segments have several labels of {task}; classes cannot be drawn equally")
    known = np.array([-1 if label is None else label for label in labels], np.int64)
    if (known < 0).all():
        raise ValueError(f"loss.balance_task is {task!r}, of which no segment has a label")
    counts = np.bincount(known[known >= 0])
    weights = np.where(known >= 0, 1.0 / counts[np.maximum(known, 0)].clip(min=1), 0.0)
    return weights / weights.sum()


@dataclass
class Batch:
    """One batch on the device. inputs, masks, boxes: as ActionModel takes them; of several views inputs and masks are
    (B, views, T, ...). targets: as losses take them.

    past: task -> targets (B, T) or (B, T, C) of the observed steps; empty where nobody asks.
    draws: (epoch, index) that each was drawn as.
    """

    ids: list[str]
    inputs: dict[str, Tensor]
    masks: dict[str, Tensor]
    boxes: Instances | None
    targets: dict[str, Tensor]
    labels: dict[str, Tensor]
    past: dict[str, Tensor] = field(default_factory=dict)
    draws: list[tuple[int, int]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)


def to_device(batch: Mapping[str, Any], device: torch.device, kind: str, classes: Mapping[str, int]) -> Batch:
    """What `samples.collate` gave, on the device; masks that are True everywhere are left out. Flow that was left to
    the device is computed here.
    """

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    inputs = {name: move(x) for name, x in batch["streams"].items()}
    for name, pairs in batch.get("pairs", {}).items():
        inputs[name] = flow_codes(inputs[name], move(pairs), shared_raft(*batch["flow_network"], device))
    masks = {name: mask for name, mask in batch["masks"].items() if not mask.all()}
    boxes = None
    if batch["boxes"]:
        given = batch["boxes"]
        categories = given["categories"][..., None, :] * given["present"]
        # several views of a segment are clips of their own
        boxes = Instances(move(given["boxes"].flatten(0, -4)), move(categories.flatten(0, -3)))
    # Labels are looked at before they are moved: on a GPU that would wait for all that it is still computing.
    targets = {task: move(target_of(label, classes[task], kind, task)) for task, label in batch["labels"].items()}
    past = {}
    for task, label in batch.get("past_labels", {}).items():
        flat = target_of(label.flatten(), classes[task], kind, task)
        past[task] = move(flat.reshape(*label.shape, *flat.shape[1:]))
    return Batch(
        batch["id"],
        inputs,
        {name: move(mask) for name, mask in masks.items()},
        boxes,
        targets,
        {task: move(label) for task, label in batch["labels"].items()},
        past,
        list(zip(batch["epoch"].tolist(), batch["index"].tolist(), strict=True)),
    )


def target_of(label: Tensor, classes: int, kind: str, task: str) -> Tensor:
    """Labels int64 (B,) or bool (B, C) as `losses.task_loss` takes them for this kind of loss."""
    if kind == "bce":
        if label.ndim == 2:
            return label.float()
        target = F.one_hot(label.clamp(min=0), classes).float()
        return torch.where((label == UNKNOWN)[:, None], float(UNKNOWN), target)
    if label.ndim == 2:
        raise ValueError(f"segments have several labels of {task}; write loss.kind: bce in the recipe")
    if (label >= classes).any():
        raise ValueError(f"a segment is of {task} {int(label.max())}; the model has classes 0 to {classes - 1}")
    return label


def mix(batch: Batch, alpha: float, classes: Mapping[str, int], seed: int, epoch: int, step: int) -> Batch:
    """mixup (Zhang et al., ICLR 2018): every stream, and the labels of all tasks, with one share for the batch.

    Segments are mixed with the batch in reverse order. Boxes stay those of the first. Unknown labels stay unknown.
    With labels of the past only segments whose past steps are all labelled are mixed, with one another (mixup.py).
    """
    share = float(draw(seed, epoch, step, _MIX).beta(alpha, alpha))
    rows = None
    if batch.past:
        rows = torch.stack([fully_labelled(target.flatten(1)) for target in batch.past.values()]).all(0)
    everyone = torch.arange(len(batch), device=next(iter(batch.inputs.values())).device)
    chosen = everyone if rows is None else rows.nonzero()[:, 0]
    partner = everyone.index_copy(0, chosen, chosen.flip(0))
    inputs = mixup({name: x.float() for name, x in batch.inputs.items()}, share=share, rows=rows)
    masks = {name: mask | mask[partner] for name, mask in batch.masks.items()}
    targets, past = {}, {}
    for task, target in batch.past.items():
        soft = target
        if target.ndim == 2:
            soft = torch.where((target == UNKNOWN)[..., None], float(UNKNOWN), soft_labels(target, classes[task]))
        past[task] = mixup({task: soft}, share=share, rows=rows)[task]
    for task, target in batch.targets.items():
        if target.ndim == 1:
            soft = soft_labels(target, classes[task])
            soft = torch.where((target == UNKNOWN)[:, None], float(UNKNOWN), soft)
        else:
            soft = target
        other = soft[partner]
        unknown = (soft == UNKNOWN).any(1) | (other == UNKNOWN).any(1)
        mixed = mixup({task: soft}, share=share, rows=rows)[task]
        targets[task] = torch.where(unknown[:, None], float(UNKNOWN), mixed)
    return replace(batch, inputs=inputs, masks=masks, targets=targets, past=past)


def erase(batch: Batch, probability: float, specs: Mapping[str, InputSpec], seed: int) -> Batch:
    """Random erasing (Zhong et al., AAAI 2020): a box of a clip, the same in all its frames and streams of pictures,
    becomes the mean colour. Area 2 % to 33 % of the frame, aspect 0.3 to 3.3. Drawn by (seed, epoch, index), so that
    it is the same box whichever segments share a batch, on however many processes.
    """
    inputs = {name: x for name, x in batch.inputs.items()}
    pictures = [name for name in inputs if name in specs and specs[name].stream != "audio"]
    for row, (epoch, index) in enumerate(batch.draws):
        rng = draw(seed, epoch, index, _ERASE)
        chosen, area, aspect, left, top = rng.random(5)
        if chosen >= probability:
            continue
        area, aspect = 0.02 + area * 0.31, float(np.exp(np.log(0.3) + aspect * (np.log(3.3) - np.log(0.3))))
        high, wide = min(1.0, (area * aspect) ** 0.5), min(1.0, (area / aspect) ** 0.5)
        for name in pictures:
            if inputs[name] is batch.inputs[name]:
                inputs[name] = inputs[name].clone()
            x = inputs[name]
            height, width = x.shape[-3:-1]
            h, w = max(1, round(high * height)), max(1, round(wide * width))
            y, z = round(top * (height - h)), round(left * (width - w))
            spec = specs[name]
            mean = torch.tensor(spec.mean, device=x.device) / spec.scale
            if spec.channel_order == "bgr":
                mean = mean[[2, 1, 0, *range(3, len(mean))]]
            x[row, ..., y : y + h, z : z + w, :] = mean.round().to(x.dtype) if x.dtype == torch.uint8 else mean.to(x)
    return replace(batch, inputs=inputs)


def step_seed(seed: int, epoch: int, step: int, rank: int) -> int:
    """What torch is seeded with before a step: dropout is then the same whenever and wherever the step is taken."""
    return int(draw(seed, epoch, step, _STEP + rank).integers(1 << 62))
