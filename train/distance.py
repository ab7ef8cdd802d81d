"""Distance-weighted sampling of pairs and the margin loss on them.

Wu, Manmatha, Smola and Kraehenbuehl, "Sampling Matters in Deep Embedding Learning", ICCV 2017 (arXiv:1706.07567).
  embedding    x = the streams' features, each the mean over space and real steps, side by side, of length 1
  batch        `per_class` segments of a class in a row, for a batch with a few of each class
  density      q(d) ~ d^(n-2) (1 - d^2/4)^((n-3)/2), of distances d between points of the unit sphere in n dimensions
               (section 4)
  negative     of an anchor a, drawn with P(i | a) ~ min(lambda, 1 / q(d_ai)) among segments of other classes: distances
               below `cutoff` count as `cutoff`, which is what lambda is for. Those beyond boundary + margin, where the
               loss is 0, are not drawn.
  margin loss  for each anchor and each other segment of its class (y = 1), and for as many negatives (y = -1):
               max(0, margin + y (d - boundary)), the mean over those that are not 0 (section 4)
It is added to the tasks' losses with its weight, as in MultiGrain (Berman et al., arXiv:1902.05509).

Differs: the boundary beta is fixed (the paper also learns it, by class and by segment). An anchor all of whose
negatives lie beyond what is drawn has none, where the public code then draws from all segments. Embeddings are as wide
as the features, which makes the nearest negatives beyond `cutoff` by far the likeliest; the paper's are 128 wide.

Draws come from torch's generator, which is seeded from (seed, epoch, step, rank) before each step. Pairs are those of
the segments that a process computes at a time (run.micro_batch).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..pipeline.annotations import Segment
from ..pipeline.order import epoch_order
from ..pipeline.sampling import draw
from .recipe import Distance, Recipe

_GROUPS = 12  # a part of the draw, beside those of batches.py and of samples


def grouped_order(labels: np.ndarray, per_class: int, seed: int, epoch: int) -> np.ndarray:
    """The segments of an epoch, int64: `per_class` of a class in a row, the groups in random order.

    Every segment comes at least once; the last group of a class is filled with some of its segments again. labels:
    (N,), the class of each segment; those of the class -1 (no label) are a group of their own kind. A function of its
    arguments alone, as long in every epoch.
    """
    shuffled = epoch_order(len(labels), seed, epoch)
    groups = []
    for label in np.unique(labels):
        own = shuffled[labels[shuffled] == label]
        missing = -len(own) % per_class
        groups.append(np.concatenate([own, np.resize(own, missing)]).reshape(-1, per_class))
    rows = np.concatenate(groups)
    return rows[draw(seed, epoch, 0, _GROUPS).permutation(len(rows))].reshape(-1)


def group_labels(segments: Sequence[Segment], task: str) -> np.ndarray:
    """The class of each segment, -1 without one. Raises ValueError where segments have several."""
    labels = [segment.labels.get(task) for segment in segments]
    if any(isinstance(label, tuple) for label in labels):
        raise ValueError(f"loss.distance: segments have several labels of {task}; pairs are of one class each")
    return np.array([-1 if label is None else label for label in labels], np.int64)


def check_distance(recipe: Recipe, classes: Sequence[str], world: int, micro_batch: int) -> None:
    """Raises ValueError where the recipe's pairs cannot be made."""
    distance = recipe.loss.distance
    if not distance.weight:
        return
    if task_of(distance, classes) not in classes:
        raise ValueError(f"loss.distance.task is {distance.task!r}; there are {', '.join(classes)}")
    if recipe.inputs != "pixels" or all(each.freeze for each in recipe.streams.values()):
        raise ValueError("loss.distance moves what backbones give; it needs inputs: pixels and one that is not frozen")
    if recipe.augment.mixup or recipe.loss.kind == "bce":
        raise ValueError("loss.distance needs one class a segment: leave augment.mixup and loss.kind: bce out")
    if recipe.loss.balance == "class":
        raise ValueError("loss.balance: class and loss.distance both say which segments are drawn; take one of them")
    each = distance.per_class // world
    if each < 2 or distance.per_class % world or micro_batch % each or micro_batch <= each:
        raise ValueError(
            f"loss.distance.per_class is {distance.per_class}, and {world} processes compute {micro_batch} segments at "
            "a time: each needs two of a class or more, in whole groups of more than one class (run.micro_batch)"
        )


def task_of(distance: Distance, classes: Sequence[str]) -> str:
    """Whose classes make pairs: the one that is named, else the first."""
    return distance.task or next(iter(classes))


def embedding(pooled: dict[str, Tensor]) -> Tensor:
    """float32 (B, D) of length 1. pooled: stream -> (B, D of the stream)."""
    return F.normalize(torch.cat([x.float() for x in pooled.values()], 1), dim=1)


def negative_weights(distances: Tensor, negatives: Tensor, dimensions: int, distance: Distance) -> Tensor:
    """How likely each segment is drawn as a negative of each anchor, (B, B), rows of sum 1; of zeros where none can be.

    distances (B, B). negatives bool (B, B). dimensions: of the embedding.
    """
    d = distances.clamp(min=distance.cutoff)
    n = dimensions
    log_weights = (2 - n) * d.log() - (n - 3) / 2 * torch.log1p(-0.25 * d.square().clamp(max=4 - 1e-6))
    allowed = negatives & (distances < distance.boundary + distance.margin)
    weights = log_weights.masked_fill(~allowed, -math.inf).softmax(1)
    return torch.where(allowed.any(1, keepdim=True), weights, 0.0)


def distance_loss(embedded: Tensor, labels: Tensor, distance: Distance) -> Tensor:
    """The margin loss of a batch, a scalar. embedded (B, D), of length 1; labels int64 (B,), below 0 where unknown."""
    count, dimensions = embedded.shape
    same = labels[:, None] == labels[None]
    known = (labels >= 0)[:, None] & (labels >= 0)[None]
    pairs = same & known & ~torch.eye(count, dtype=torch.bool, device=embedded.device)
    square = (2 - 2 * embedded @ embedded.T).clamp(min=1e-8)  # a root has no slope at 0
    distances = square.sqrt()
    with torch.no_grad():
        weights = negative_weights(distances, ~same & known, dimensions, distance)
        there = weights.sum(1, keepdim=True) > 0
        # a negative for each place of a row; those of places without a pair are not used
        drawn = torch.where(there, weights, 1.0).multinomial(count, replacement=True)
    pull = F.relu(distance.margin + distances - distance.boundary)
    push = F.relu(distance.margin - distances.gather(1, drawn) + distance.boundary)
    terms = torch.cat([torch.where(pairs, pull, 0.0), torch.where(pairs & there, push, 0.0)])
    return terms.sum() / (terms > 0).sum().clamp(min=1)
