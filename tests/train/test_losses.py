"""Losses against the plainest writing of them, one segment at a time."""

import math

import pytest
import torch

from actionfuse.fusion import Output
from actionfuse.pipeline.annotations import Segment
from actionfuse.train.losses import UNKNOWN, class_weights_of, feature_loss, labels_of, task_loss, total_loss
from actionfuse.train.recipe import Loss

CLASSES = {"verb": 4, "noun": 3}


def naive_cross_entropy(logits, target, smoothing=0.0):
    """Mean over known rows of -sum_k q_k log p_k, in Python floats."""
    losses = []
    for row, label in zip(logits.tolist(), target.tolist(), strict=True):
        if label == UNKNOWN:
            continue
        total = math.log(sum(math.exp(x) for x in row))
        q = [smoothing / len(row) + (1 - smoothing) * (k == label) for k in range(len(row))]
        losses.append(-sum(a * (x - total) for a, x in zip(q, row, strict=True)))
    return sum(losses) / max(1, len(losses))


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_cross_entropy_skips_unknown_labels(smoothing):
    logits, target = torch.randn(5, 4, dtype=torch.double), torch.tensor([0, UNKNOWN, 3, 2, UNKNOWN])
    loss = task_loss(logits, target, smoothing=smoothing)
    assert loss.item() == pytest.approx(naive_cross_entropy(logits, target, smoothing), rel=1e-5)


def test_without_a_known_label_the_loss_and_its_gradient_are_zero():
    logits = torch.randn(3, 4, requires_grad=True)
    loss = task_loss(logits, torch.full((3,), UNKNOWN))
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and (logits.grad == 0).all()


def test_steps_share_the_label_of_their_segment():
    logits, target = torch.randn(3, 8, 4), torch.tensor([1, UNKNOWN, 2])
    each = [naive_cross_entropy(logits[:, s], target) for s in range(8)]
    assert task_loss(logits, target).item() == pytest.approx(sum(each) / 8, rel=1e-5)


def test_mixed_labels_give_the_mixed_loss():
    logits, first, second = torch.randn(4, 5), torch.tensor([0, 1, 2, 3]), torch.tensor([3, 2, 1, 0])
    one_hot = torch.nn.functional.one_hot
    mixed = 0.7 * one_hot(first, 5).float() + 0.3 * one_hot(second, 5).float()
    wanted = 0.7 * naive_cross_entropy(logits, first) + 0.3 * naive_cross_entropy(logits, second)
    assert task_loss(logits, mixed).item() == pytest.approx(wanted, rel=1e-5)


def test_binary_cross_entropy_of_several_labels():
    targets = torch.tensor([[1.0, 0, 1, 0], [UNKNOWN] * 4, [0, 0, 0, 1]])
    logits = torch.randn(3, 4)
    rows = []
    for i in (0, 2):
        p = [1 / (1 + math.exp(-x)) for x in logits[i].tolist()]
        y = targets[i].tolist()
        rows.append(-sum(b * math.log(a) + (1 - b) * math.log(1 - a) for a, b in zip(p, y, strict=True)) / 4)
    assert task_loss(logits, targets, kind="bce").item() == pytest.approx(sum(rows) / 2, rel=1e-5)


def test_class_weights_balance():
    labels = torch.tensor([0, 0, 0, 2, UNKNOWN])
    weights = class_weights_of(labels, 4)
    assert weights.tolist() == pytest.approx([0.5, 0, 1.5, 0])
    logits = torch.randn(5, 4)
    each = [naive_cross_entropy(logits[i : i + 1], labels[i : i + 1]) for i in range(4)]
    wanted = sum(weights[label].item() * loss for label, loss in zip([0, 0, 0, 2], each, strict=True)) / 3.0
    assert task_loss(logits, labels, weight=weights).item() == pytest.approx(wanted, rel=1e-5)


def test_weights_of_mixed_labels_count_as_those_of_single_ones():
    logits, labels = torch.randn(6, 4), torch.tensor([0, 0, 0, 2, 1, UNKNOWN])
    weights = class_weights_of(labels, 4)
    soft = torch.where(
        (labels == UNKNOWN)[:, None], float(UNKNOWN), torch.nn.functional.one_hot(labels.clamp(min=0), 4)
    )
    assert task_loss(logits, soft, weight=weights).item() == pytest.approx(
        task_loss(logits, labels, weight=weights).item(), rel=1e-5
    )


def test_several_labels_of_a_segment_all_count():
    segments = [Segment("v", 0, 1, str(n), labels) for n, labels in enumerate([{"a": (0, 2)}, {}, {"a": 2}])]
    assert labels_of(segments, "a").tolist() == [0, 2, 2]
    assert class_weights_of(labels_of(segments, "a"), 4).tolist() == pytest.approx([4 / 3, 0, 2 / 3, 0])


def test_the_total_is_the_sum_of_its_named_parts():
    logits = {task: torch.randn(2, size) for task, size in CLASSES.items()}
    output = Output(logits, {"allocation": torch.tensor(0.25)}, {"unimodal/rgb": {"verb": torch.randn(2, 4)}})
    targets = {"verb": torch.tensor([1, 2]), "noun": torch.tensor([0, UNKNOWN])}
    total, parts = total_loss(
        output, targets, Loss(weights={"noun": 2.0}), smoothing={"verb": 0.1}, auxiliary_weights={"unimodal/rgb": 0.5}
    )
    wanted = {
        "verb": naive_cross_entropy(logits["verb"], targets["verb"], 0.1),
        "noun": 2 * naive_cross_entropy(logits["noun"], targets["noun"]),
        "auxiliary/unimodal/rgb/verb": 0.5
        * naive_cross_entropy(output.auxiliary["unimodal/rgb"]["verb"], targets["verb"], 0.1),
        "head/allocation": 0.25,
    }
    assert {k: v.item() for k, v in parts.items()} == pytest.approx(wanted, rel=1e-5)
    assert total.item() == pytest.approx(sum(wanted.values()), rel=1e-5)
    # what has no weight is there to be looked at, even where it is no number
    output.auxiliary["unimodal/rgb"]["verb"].fill_(float("nan"))
    total, parts = total_loss(output, targets, Loss(), auxiliary_weights={"unimodal/rgb": 0.0})
    assert total.isfinite() and "auxiliary/unimodal/rgb/verb" not in parts
    with pytest.raises(ValueError, match="no task has a label"):
        total_loss(output, {}, Loss())


def test_the_feature_loss_looks_one_step_ahead():
    predicted, actual = torch.randn(2, 3, 5), torch.randn(2, 3, 5, requires_grad=True)
    foretell = feature_loss(predicted, actual)
    errors = [
        (predicted[b, t, d].item() - actual[b, t + 1, d].item()) ** 2
        for b in range(2)
        for t in range(2)
        for d in range(5)
    ]
    assert foretell.item() == pytest.approx(sum(errors) / len(errors), rel=1e-5)
    assert not foretell.requires_grad
    assert feature_loss(predicted, actual, detach_target=False).requires_grad


def test_steps_that_hold_the_logits_are_fitted_alone():
    """RULSTM's loss: the mean of cross-entropy over segments and steps, the label repeated."""
    torch.manual_seed(0)
    steps, labels = torch.randn(3, 8, 5), torch.tensor([1, 4, 0])
    output = Output({"action": steps[:, -4]}, auxiliary={"steps": {"action": steps}})
    loss, parts = total_loss(output, {"action": labels}, Loss(), auxiliary_weights={"steps": 1.0}, main_weight=0.0)
    naive = [-(steps[b, s].log_softmax(0)[labels[b]]) for b in range(3) for s in range(8)]
    torch.testing.assert_close(loss, torch.stack(naive).mean())
    assert set(parts) == {"auxiliary/steps/action"}
    with pytest.raises(ValueError, match="no task has a label"):
        total_loss(output, {}, Loss(), main_weight=0.0)
