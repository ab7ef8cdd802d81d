"""Metrics against the public numbers and against plain loops, one segment at a time."""

import numpy as np
import pytest
from golden_cases import available, load_case
from numpy.testing import assert_allclose

from actionfuse.train import metrics

rng = np.random.default_rng(0)
EXACT = {"rtol": 0, "atol": 1e-12}


def random_case(segments=60, classes=9, times=None, levels=0, seed=0):
    """levels: scores of so few values that most are tied."""
    generator = np.random.default_rng(seed)
    shape = (segments, classes) if times is None else (segments, times, classes)
    scores = generator.integers(0, levels, shape).astype(np.float64) if levels else generator.standard_normal(shape)
    return scores, generator.integers(0, classes - 2, segments)  # two classes never occur


def naive_ranking(row):
    return sorted(range(len(row)), key=lambda c: (-row[c], -c))


def naive_accuracy(scores, labels, k):
    return sum(label in naive_ranking(row)[:k] for row, label in zip(scores, labels, strict=True)) / len(labels)


def naive_recall(scores, labels, k, classes=None):
    values = []
    for c in sorted(set(labels.tolist())):
        if classes is None or c in classes:
            values.append(naive_accuracy(scores[labels == c], labels[labels == c], k))
    return sum(values) / len(values) if values else float("nan")


@pytest.mark.parametrize("levels", [0, 1, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ranks_and_accuracies(levels, dtype):
    scores, labels = random_case(levels=levels)
    scores = scores.astype(dtype)
    order = [naive_ranking(row) for row in scores]
    assert metrics.ranking(scores).tolist() == order
    assert metrics.ranking(scores, 3).tolist() == [row[:3] for row in order]
    assert metrics.label_ranks(scores, labels).tolist() == [r.index(c) for r, c in zip(order, labels, strict=True)]
    for k in (1, 2, 5, 20):
        assert_allclose(metrics.top_k_accuracy(scores, labels, k), naive_accuracy(scores, labels, k), **EXACT)
        for classes in (None, {1, 3, 8}, {8}):
            got = metrics.class_mean_top_k_recall(scores, labels, k, classes)
            assert_allclose(got, naive_recall(scores, labels, k, classes), **EXACT)
    assert_allclose(metrics.class_mean_accuracy(scores, labels), naive_recall(scores, labels, 1), **EXACT)
    classes, recalls = metrics.per_class_recall(scores, labels, 2)
    for c, recall in zip(classes, recalls, strict=True):
        assert_allclose(recall, naive_accuracy(scores[labels == c], labels[labels == c], 2), **EXACT)


def test_many_predictions_are_each_by_itself(monkeypatch):
    scores, labels = random_case(times=4, levels=4)
    monkeypatch.setattr(metrics, "_CELLS", 50)  # in several blocks
    for t in range(4):
        of_t = scores[:, t]
        assert metrics.top_k_accuracy(scores, labels, 3)[t] == metrics.top_k_accuracy(of_t, labels, 3)
        got = metrics.class_mean_top_k_recall(scores, labels, 2)[t]
        assert_allclose(got, naive_recall(of_t, labels, 2), **EXACT)
        assert np.array_equal(metrics.confusion_matrix(scores, labels)[t], metrics.confusion_matrix(of_t, labels))


@pytest.mark.parametrize("levels", [0, 3])
def test_confusion(levels):
    scores, labels = random_case(levels=levels)
    wanted = np.zeros((9, 9), int)
    for row, label in zip(scores, labels, strict=True):
        wanted[label, naive_ranking(row)[0]] += 1
    assert np.array_equal(metrics.confusion_matrix(scores, labels), wanted)
    assert_allclose(wanted.trace() / len(labels), metrics.top_k_accuracy(scores, labels), **EXACT)


def test_few_shot_competes_among_its_classes_alone():
    scores, labels = random_case(levels=4)
    chosen, hits = [1, 4, 6], []
    for row, label in zip(scores, labels, strict=True):
        if label in chosen:
            hits.append(max(chosen, key=lambda c: (row[c], c)) == label)
    assert_allclose(metrics.few_shot_accuracy(scores, labels, chosen), np.mean(hits), **EXACT)
    with pytest.raises(ValueError, match="few-shot classes"):
        metrics.few_shot_accuracy(scores, labels, [9])


def test_time_to_action():
    scores, labels = random_case(times=6, classes=12)
    seconds = [1.5, 1.25, 1.0, 0.75, 0.5, 0.25]
    waits = []
    for rows, label in zip(scores, labels, strict=True):
        seen = [s for row, s in zip(rows, seconds, strict=True) if label in naive_ranking(row)[:2]]
        waits.append(seen[0] if seen else 0.0)
    assert 0 in waits
    assert_allclose(metrics.mean_time_to_action(scores, labels, seconds, 2), np.mean(waits), **EXACT)
    with pytest.raises(ValueError, match="times were given"):
        metrics.mean_time_to_action(scores, labels, seconds[1:])


def naive_average_precision(scores, positives, ties):
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    total = 0.0
    for i in (i for i in order if positives[i]):
        if ties == "rows":
            ahead = order[: order.index(i) + 1]
        else:
            ahead = [j for j in order if scores[j] >= scores[i]]
        total += sum(positives[j] for j in ahead) / len(ahead)
    return total / sum(positives) if sum(positives) else float("nan")


@pytest.mark.parametrize("ties", ["shared", "rows"])
@pytest.mark.parametrize("levels", [0, 3])
def test_average_precision(ties, levels):
    scores, _ = random_case(levels=levels)
    positives = rng.random(scores.shape) < 0.2
    positives[:, 4] = False  # a class without segments
    wanted = [naive_average_precision(scores[:, c], positives[:, c], ties) for c in range(9)]
    got = metrics.average_precisions(scores, positives, ties=ties)
    assert np.isnan(got[4])
    assert_allclose(got, wanted, **EXACT)
    assert_allclose(metrics.mean_average_precision(scores, positives, ties=ties), np.nanmean(wanted), **EXACT)


def test_segments_without_labels_may_rank_last():
    scores, _ = random_case()
    positives = rng.random(scores.shape) < 0.1
    kept = positives.any(1)
    assert not kept.all()
    alone = metrics.mean_average_precision(scores[kept], positives[kept])
    assert metrics.mean_average_precision(scores, positives, unlabelled_last=True) == pytest.approx(alone, abs=1e-12)
    assert metrics.mean_average_precision(scores, positives) < alone
    assert np.isnan(metrics.mean_average_precision(scores, positives & False))


VERBS = np.array([0, 0, 1, 3, 1, 0, 3])  # no action has verb 2
NOUNS = np.array([0, 1, 1, 2, 0, 2, 1])


@pytest.mark.parametrize("absent", ["zero", "action_0"])
def test_marginalising(absent):
    logits = rng.standard_normal((5, 3, 7))
    got = metrics.marginalise(logits, VERBS, 5, absent)
    for n in range(5):
        for t in range(3):
            power = np.exp(logits[n, t])
            for verb in range(5):
                actions = [a for a in range(7) if VERBS[a] == verb] or ([0] if absent == "action_0" else [])
                wanted = sum(power[a] for a in actions) / power.sum()
                assert_allclose(got[n, t, verb], wanted, **EXACT)
    assert metrics.marginalise(logits, VERBS).shape == (5, 3, 4)
    assert_allclose(metrics.softmax(np.array([1e4, 1e4], np.float32)), [0.5, 0.5])


def test_factorising_and_all_pairs(monkeypatch):
    verb, noun = rng.standard_normal((20, 4)), rng.standard_normal((20, 3))
    verb_labels, noun_labels = rng.integers(0, 4, 20), rng.integers(0, 3, 20)
    got = metrics.factorise(verb, noun, VERBS, NOUNS)
    monkeypatch.setattr(metrics, "_CELLS", 40)
    ranks = metrics.pair_ranks(verb, noun, verb_labels, noun_labels)
    for n in range(20):
        v, o = np.exp(verb[n]) / np.exp(verb[n]).sum(), np.exp(noun[n]) / np.exp(noun[n]).sum()
        for action, (a, b) in enumerate(zip(VERBS, NOUNS, strict=True)):
            assert_allclose(got[n, action], v[a] * o[b], **EXACT)
        pairs = sorted(((v[a] * o[b], a, b) for a in range(4) for b in range(3)), reverse=True)
        assert [pair[1:] for pair in pairs].index((verb_labels[n], noun_labels[n])) == ranks[n]


@pytest.mark.parametrize("name", available("anticipation", "rulstm_metrics"))
def test_rulstm_metrics(name):
    case = load_case(name, "anticipation")
    scores, labels = case.input("metric_scores").numpy(), case.arrays["labels"].numpy()
    wanted = {key: array.numpy() for key, array in case.arrays.items()}
    steps = scores.shape[1]
    single = {"rtol": 2**-24, "atol": 0}  # stored in single precision, ours is double: half a unit in the last place

    def recall(k, classes=None):
        return metrics.class_mean_top_k_recall(scores, labels, k, classes)

    tops = np.stack([metrics.top_k_accuracy(scores, labels, k) for k in (1, 5)])
    assert_allclose(tops, wanted["top1_top5_accuracy_per_t"], **single)
    at_1s = [metrics.top_k_accuracy(scores[:, -4], labels, k) for k in (1, 3, 5)]
    assert_allclose(at_1s, wanted["top1_top3_top5_accuracy_at_1s"], **single)
    seven = metrics.top_k_accuracy(scores[labels == 7, -4], labels[labels == 7], 5)
    assert_allclose(seven, wanted["top5_accuracy_class7_at_1s"][0], **single)
    assert_allclose(recall(5), wanted["mean_top5_recall_per_t"][0], **single)
    assert_allclose(recall(5, wanted["many_shot"]), wanted["mean_top5_recall_manyshot_per_t"][0], **single)
    assert_allclose(recall(1), wanted["mean_top1_recall_per_t"][0], **single)
    assert_allclose(100 * recall(5)[-4], wanted["meter_mean_top5_recall_at_1s_percent"], **single)
    seconds = 0.25 * np.arange(steps, 0, -1)
    assert_allclose(metrics.mean_time_to_action(scores, labels, seconds), wanted["tta5"], **single)
    # what the stored numbers stand for, in double precision
    for t in range(steps):
        assert_allclose(recall(5)[t], naive_recall(scores[:, t], labels, 5), **EXACT)
        assert_allclose(tops[1][t], naive_accuracy(scores[:, t], labels, 5), **EXACT)


def test_many_shot_actions():
    assert metrics.many_shot_actions(VERBS, NOUNS, {3}, {1}).tolist() == [1, 2, 3, 6]
    assert metrics.many_shot_actions(VERBS, NOUNS, set(), set()).tolist() == []


def test_nothing_gives_nan_and_wrong_arrays_are_told():
    scores, labels = random_case()
    assert np.isnan(metrics.top_k_accuracy(scores[:0], labels[:0]))
    assert np.isnan(metrics.class_mean_top_k_recall(scores, labels, 5, {8}))
    assert np.isnan(metrics.average_precisions(np.zeros((0, 3)), np.zeros((0, 3), bool))).all()
    with pytest.raises(ValueError, match="a label is 9"):
        metrics.label_ranks(scores, labels * 0 + 9)
    with pytest.raises(ValueError, match="must be"):
        metrics.label_ranks(scores, labels[1:])
    with pytest.raises(ValueError, match="k is 0"):
        metrics.top_k_accuracy(scores, labels, 0)
    with pytest.raises(ValueError, match="hold NaN"):
        metrics.top_k_accuracy(np.full_like(scores, np.nan), labels)
    with pytest.raises(ValueError, match="parts"):
        metrics.marginalise(scores, VERBS)
