"""Metrics in numpy: pure functions of scores and labels, as fractions (0..1) in float64.

scores (N, C), or (N, T, C) where every segment has T predictions (one per tau_a or observed fraction): the metric is
then an array (T,). labels int64 (N,). Every segment counts.

Ties: of equal scores the larger class number ranks first, which is what `scores.argsort()[:, ::-1]` of the public code
(fpv-iplab/rulstm, epic-kitchens/C1-Action-Recognition) gives with a stable sort. A segment whose scores are all zero is
thus a hit at top k for the k largest class numbers only. Scores must be numbers: NaN is a ValueError.

The public functions are those of RULSTM (Furnari and Farinella, ICCV 2019), EPIC-KITCHENS-100 (Damen et al., IJCV 2022)
and Charades (Sigurdsson et al., ECCV 2016); each docstring says which.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np

Absent = Literal["zero", "action_0"]
Ties = Literal["shared", "rows"]
_CELLS = 1 << 24  # scores that are worked on at a time


def _checked(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim not in (2, 3) or labels.shape != scores.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(
            f"scores are {scores.dtype} {scores.shape}, labels {labels.dtype} {labels.shape}; they must be "
            "(N, classes) or (N, times, classes), and whole numbers (N,)"
        )
    if len(labels) and not (0 <= labels.min() and labels.max() < scores.shape[-1]):
        wrong = labels[(labels < 0) | (labels >= scores.shape[-1])][0]
        raise ValueError(f"a label is {wrong}; the scores have the classes 0 to {scores.shape[-1] - 1}")
    return scores, labels


def _mean(values: np.ndarray) -> np.ndarray:
    """Over the first axis; NaN where there is nothing."""
    return values.mean(0) if len(values) else np.full(values.shape[1:], np.nan)


def label_ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes rank before the label, int64 (N,) or (N, T): top k holds it where the rank is below k.

    No sorting: the classes that score higher, and of those that score the same the larger ones, are counted.
    """
    scores, labels = _checked(scores, labels)
    ranks = np.zeros(scores.shape[:-1], np.int64)
    classes = np.arange(scores.shape[-1])
    rows = max(1, _CELLS // max(1, int(np.prod(scores.shape[1:]))))
    for low in range(0, len(scores), rows):
        block = scores[low : low + rows]
        if np.isnan(block).any():
            raise ValueError(f"scores of segment {low + int(np.argwhere(np.isnan(block))[0][0])} hold NaN")
        label = labels[low : low + rows].reshape(-1, *[1] * (block.ndim - 1))
        own = np.take_along_axis(block, np.broadcast_to(label, (*block.shape[:-1], 1)), -1)
        ranks[low : low + rows] = ((block > own) | ((block == own) & (classes > label))).sum(-1)
    return ranks


def ranking(scores: np.ndarray, top: int | None = None) -> np.ndarray:
    """Classes from best to worst, int64 (..., C) or the first `top` of them; ties as said above."""
    scores = np.asarray(scores)
    if np.isnan(scores).any():
        raise ValueError("scores hold NaN; they cannot be ranked")
    return scores.argsort(axis=-1, kind="stable")[..., ::-1][..., :top]


# Accuracy and recall


def top_k_accuracy(scores: np.ndarray, labels: np.ndarray, k: int = 1) -> np.ndarray:
    """Share of segments whose label is among the k best classes, float64 () or (T,); NaN without segments.

    Source: `topk_accuracy` of RULSTM and of EPIC-KITCHENS-100.
    """
    return top_k_of(label_ranks(scores, labels), k)


def top_k_of(ranks: np.ndarray, k: int) -> np.ndarray:
    """`top_k_accuracy` of `label_ranks`."""
    return _mean((ranks < _positive(k)).astype(np.float64))


def class_mean_top_k_recall(
    scores: np.ndarray, labels: np.ndarray, k: int = 5, classes: Collection[int] | None = None
) -> np.ndarray:
    """Mean over classes of the share of their segments that have them among the k best, float64 () or (T,).

    Classes that no segment has do not count. classes: only these count (many-shot classes). NaN where none is left.
    With k = 1 this is class-mean accuracy.
    Source: `topk_recall` of RULSTM; "mean top-5 recall" of EPIC-KITCHENS-100 anticipation.
    """
    return class_mean_of(label_ranks(scores, labels), np.asarray(labels), k, classes)


def class_mean_of(ranks: np.ndarray, labels: np.ndarray, k: int, classes: Collection[int] | None = None) -> np.ndarray:
    """`class_mean_top_k_recall` of `label_ranks`."""
    return _mean(_recalls(ranks, labels, k, classes)[1])


def _recalls(
    ranks: np.ndarray, labels: np.ndarray, k: int, classes: Collection[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    present, which = np.unique(labels, return_inverse=True)
    hits = np.zeros((len(present), *ranks.shape[1:]))
    np.add.at(hits, which, ranks < _positive(k))
    counts = np.bincount(which, minlength=len(present)).reshape(-1, *[1] * (ranks.ndim - 1))
    recalls = hits / counts
    if classes is not None:
        kept = np.isin(present, np.fromiter(classes, np.int64, len(classes)))
        present, recalls = present[kept], recalls[kept]
    return present, recalls


def per_class_recall(scores: np.ndarray, labels: np.ndarray, k: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Classes that occur, int64 (P,), and the share of their segments that are a hit at top k, (P,) or (P, T)."""
    return _recalls(label_ranks(scores, labels), np.asarray(labels), k)


def class_mean_accuracy(scores: np.ndarray, labels: np.ndarray, classes: Collection[int] | None = None) -> np.ndarray:
    """Mean of the classes' accuracies, float64 () or (T,): classes with few segments count as much as others."""
    return class_mean_top_k_recall(scores, labels, 1, classes)


def few_shot_accuracy(scores: np.ndarray, labels: np.ndarray, classes: Sequence[int], k: int = 1) -> np.ndarray:
    """Accuracy among `classes` alone, float64 () or (T,): only their segments count and only their scores compete.

    Source: the few-shot split of Something-Else (Materzynska et al., CVPR 2020): 5 or 10 clips of each novel class.
    """
    scores, labels = _checked(scores, labels)
    chosen = np.unique(np.asarray(classes, np.int64))
    if not len(chosen) or chosen[0] < 0 or chosen[-1] >= scores.shape[-1]:
        raise ValueError(f"few-shot classes must be some of 0 to {scores.shape[-1] - 1}; given were {list(classes)}")
    kept = np.isin(labels, chosen)
    return top_k_accuracy(scores[kept][..., chosen], np.searchsorted(chosen, labels[kept]), k)


def confusion_matrix(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """int64 (C, C): how many segments of class row have column as their best class; (T, C, C) for (N, T, C)."""
    scores, labels = _checked(scores, labels)
    count = scores.shape[-1]
    if np.isnan(scores).any():
        raise ValueError("scores hold NaN")
    best = count - 1 - scores[..., ::-1].argmax(-1)  # of equal scores the larger class
    cells = (labels.reshape(-1, *[1] * (best.ndim - 1)) * count + best).reshape(len(labels), -1)
    matrices = [np.bincount(column, minlength=count * count).reshape(count, count) for column in cells.T]
    return np.stack(matrices) if scores.ndim == 3 else matrices[0]


def mean_time_to_action(scores: np.ndarray, labels: np.ndarray, seconds: Sequence[float], k: int = 5) -> float:
    """How long before the action the label is first among the k best, mean in seconds; never counts as 0.

    scores (N, T, C). seconds: (T,), time before the action of each prediction; for RULSTM 2.0, 1.75, ..., 0.25.
    Source: `tta` of RULSTM at k = 5.
    """
    ranks = label_ranks(scores, labels)
    if ranks.ndim != 2 or len(seconds) != ranks.shape[1]:
        raise ValueError(f"scores are {np.shape(scores)}, but {len(seconds)} times were given; they must be (N, T, C)")
    return mean_time_to_action_of(ranks, seconds, k)


def mean_time_to_action_of(ranks: np.ndarray, seconds: Sequence[float], k: int) -> float:
    """`mean_time_to_action` of ranks (N, T)."""
    times = np.append(np.asarray(seconds, np.float64), 0.0)
    hits = np.concatenate([ranks < _positive(k), np.ones((len(ranks), 1), bool)], axis=1)
    return float(_mean(times[hits.argmax(1)]))


def _positive(k: int) -> int:
    if k < 1:
        raise ValueError(f"k is {k}; it must be at least 1")
    return k


# Many labels a segment


def average_precisions(scores: np.ndarray, positives: np.ndarray, *, ties: Ties = "shared") -> np.ndarray:
    """Average precision of each class, float64 (C,): the mean, over its segments, of the precision where each is found.
    NaN for a class that no segment has.

    scores (N, C). positives: bool (N, C).
    ties: "shared": segments of equal score are found at the same time, with the precision after all of them, whatever
        their order (scikit-learn's average_precision_score). "rows": in the order of the rows, as the public Charades
        script with a stable sort does.
    """
    scores, positives = np.asarray(scores), np.asarray(positives, bool)
    if scores.ndim != 2 or positives.shape != scores.shape:
        raise ValueError(f"scores are {scores.shape} and positives {positives.shape}; both must be (N, classes)")
    if ties not in ("shared", "rows"):
        raise ValueError(f'ties is {ties!r}; it must be "shared" or "rows"')
    if np.isnan(scores).any():
        raise ValueError("scores hold NaN")
    if not len(scores):
        return np.full(scores.shape[1], np.nan)
    order = np.argsort(-scores, axis=0, kind="stable")
    found = np.take_along_axis(positives, order, 0)
    true = found.cumsum(0)
    places = np.broadcast_to(np.arange(len(scores))[:, None], scores.shape)
    if ties == "shared":
        ordered = np.take_along_axis(scores, order, 0)
        last = np.ones(scores.shape, bool)
        last[:-1] = ordered[1:] != ordered[:-1]
        ends = np.where(last, places, len(scores))
        places = np.minimum.accumulate(ends[::-1], axis=0)[::-1]
        true = np.take_along_axis(true, places, 0)
    precision = true / (places + 1)
    count = found.sum(0)
    return np.divide((precision * found).sum(0), count, out=np.full(len(count), np.nan), where=count > 0)


def mean_average_precision(
    scores: np.ndarray, positives: np.ndarray, *, ties: Ties = "shared", unlabelled_last: bool = False
) -> float:
    """mAP: mean of `average_precisions` over the classes that some segment has. NaN where there is none.

    unlabelled_last: segments without any label rank behind all others, as in Charades' `charades_map`; else they count
        as what they are, wrong wherever they score high.
    Source: Charades (Sigurdsson et al., ECCV 2016). Differs: its script gives NaN where some class has no segment.
    """
    positives = np.asarray(positives, bool)
    if unlabelled_last:
        scores = np.where(positives.any(axis=1, keepdims=True), np.asarray(scores, np.float64), -np.inf)
    values = average_precisions(scores, positives, ties=ties)
    return float(_mean(values[~np.isnan(values)]))


# Verbs, nouns and actions


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, float64."""
    powers = np.exp(np.subtract(logits, np.max(logits, axis=-1, keepdims=True), dtype=np.float64))
    return powers / powers.sum(-1, keepdims=True)


def marginalise(
    action_logits: np.ndarray,
    parts: Sequence[int] | np.ndarray,
    num_classes: int | None = None,
    absent: Absent = "zero",
) -> np.ndarray:
    """Scores of verbs (or nouns) from those of actions: the sum of softmax(logits) over the actions with that verb.

    action_logits (..., A). parts: (A,), the verb of each action. Result: float64 (..., num_classes), by default up to
    the largest verb that occurs.
    absent: what a verb without any action gets: "zero", or "action_0": the score of action 0, as `get_marginal_indexes`
        of RULSTM makes it; it changes ranks where such verbs exist.
    """
    owners = np.asarray(parts, np.int64)
    if owners.shape != np.shape(action_logits)[-1:] or not len(owners):
        raise ValueError(f"there are {np.shape(action_logits)[-1]} actions, but parts of {owners.shape} were given")
    count = int(owners.max()) + 1 if num_classes is None else num_classes
    if owners.min() < 0 or owners.max() >= count:
        raise ValueError(f"parts go from {owners.min()} to {owners.max()}; there are the classes 0 to {count - 1}")
    if absent not in ("zero", "action_0"):
        raise ValueError(f'absent is {absent!r}; it must be "zero" or "action_0"')
    sums = np.zeros((len(owners), count))
    sums[np.arange(len(owners)), owners] = 1
    if absent == "action_0":
        sums[0, np.setdiff1d(np.arange(count), owners)] = 1
    logits = np.asarray(action_logits)
    flat = logits.reshape(-1, logits.shape[-1])
    rows = max(1, _CELLS // flat.shape[1])
    blocks = [softmax(flat[low : low + rows]) @ sums for low in range(0, len(flat), rows)]
    return np.concatenate([np.zeros((0, count)), *blocks]).reshape(*logits.shape[:-1], count)


def factorise(
    verb_logits: np.ndarray, noun_logits: np.ndarray, verbs: Sequence[int], nouns: Sequence[int]
) -> np.ndarray:
    """Scores of actions from those of their verbs and nouns: softmax(verb)[v] * softmax(noun)[n], float64 (..., A).

    verbs, nouns: (A,), what each action consists of. Only listed actions compete; `pair_ranks` lets all pairs compete.
    """
    return softmax(verb_logits)[..., np.asarray(verbs)] * softmax(noun_logits)[..., np.asarray(nouns)]


def pair_ranks(
    verb_logits: np.ndarray, noun_logits: np.ndarray, verb_labels: np.ndarray, noun_labels: np.ndarray
) -> np.ndarray:
    """How many (verb, noun) pairs rank before the labelled one, int64 (N,), by softmax(verb) * softmax(noun).

    All pairs compete, whether the dataset has such an action or not; of equal ones the larger verb, then the larger
    noun is first.
    Source: `compute_action_scores` of EPIC-KITCHENS-100 recognition. Differs: that code keeps the 100 best verbs, nouns
    and pairs, which changes nothing up to rank 100, and its ties go by rank, not by class.
    """
    verb_scores, verb_labels = _checked(verb_logits, verb_labels)
    noun_scores, noun_labels = _checked(noun_logits, noun_labels)
    if verb_scores.ndim != 2 or noun_scores.ndim != 2 or len(verb_scores) != len(noun_scores):
        raise ValueError(f"verb and noun scores are {verb_scores.shape} and {noun_scores.shape}; they must be (N, C)")
    pairs = verb_scores.shape[1] * noun_scores.shape[1]
    rows = max(1, _CELLS // max(1, pairs))
    found = [np.zeros(0, np.int64)]
    for low in range(0, len(verb_scores), rows):
        part = slice(low, low + rows)
        products = softmax(verb_scores[part])[:, :, None] * softmax(noun_scores[part])[:, None, :]
        labels = verb_labels[part].astype(np.int64) * noun_scores.shape[1] + noun_labels[part]
        found.append(label_ranks(products.reshape(-1, pairs), labels))
    return np.concatenate(found)


def many_shot_actions(
    verbs: Sequence[int], nouns: Sequence[int], many_shot_verbs: Collection[int], many_shot_nouns: Collection[int]
) -> np.ndarray:
    """Actions whose verb OR noun is many-shot, int64, ascending: 2265 of EPIC-KITCHENS-55's 2513.

    verbs, nouns: (A,), what each action consists of.
    Source: `get_many_shot` of RULSTM. EPIC's own list of many-shot actions has 819: numbers are not comparable.
    """
    chosen = np.isin(np.asarray(verbs), list(many_shot_verbs)) | np.isin(np.asarray(nouns), list(many_shot_nouns))
    return np.flatnonzero(chosen)
