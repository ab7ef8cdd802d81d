"""Averages of the scores of models that were trained apart."""

import pytest
import torch

from actionfuse.fusion.ensemble import score_ensemble

FIRST = {"verb": torch.tensor([[2.0, 0.0, -1.0]]), "noun": torch.tensor([[0.0, 1.0]])}
SECOND = {"verb": torch.tensor([[100.0, 300.0, 0.0]])}


def test_scores_are_averaged_after_the_softmax():
    mixed = score_ensemble([FIRST, SECOND])
    torch.testing.assert_close(mixed["verb"], (FIRST["verb"].softmax(1) + torch.tensor([[0.0, 1.0, 0.0]])) / 2)
    torch.testing.assert_close(mixed["noun"], FIRST["noun"].softmax(1))  # the second model knows no nouns
    assert score_ensemble([{"verb": FIRST["verb"].bfloat16()}])["verb"].dtype == torch.float32


def test_weights_by_model_and_by_task():
    want = 0.25 * FIRST["verb"].softmax(1) + 0.75 * SECOND["verb"].softmax(1)
    torch.testing.assert_close(score_ensemble([FIRST, SECOND], [1, 3])["verb"], want)
    torch.testing.assert_close(score_ensemble([FIRST, SECOND], {"verb": [1, 3]})["verb"], want)
    torch.testing.assert_close(score_ensemble([FIRST, SECOND], [1, 0])["verb"], FIRST["verb"].softmax(1))


def test_many_labels_and_logits():
    many = score_ensemble([FIRST, FIRST], scores="sigmoid")
    torch.testing.assert_close(many["verb"], FIRST["verb"].sigmoid())
    plain = score_ensemble([FIRST, SECOND], scores="logits")
    torch.testing.assert_close(plain["verb"], torch.tensor([[51.0, 150.0, -0.5]]))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: score_ensemble([]), "one model at least"),
        (lambda: score_ensemble([FIRST, SECOND], [1]), "'verb' are .1.0. for 2 models"),
        (lambda: score_ensemble([FIRST], [-1]), "not negative"),
        (lambda: score_ensemble([FIRST, SECOND], [0, 1]), "no model that knows 'noun'"),
        (lambda: score_ensemble([FIRST], {"nuon": [1]}), "nuon; the models' tasks are verb, noun"),
        (lambda: score_ensemble([FIRST, {"verb": torch.zeros(1, 4)}]), r"\(1, 3\), \(1, 4\)"),
        (lambda: score_ensemble([FIRST], scores="rank"), "'softmax', 'sigmoid' or 'logits'"),
    ],
)
def test_wrong_calls_say_what_is_wrong(call, says):
    with pytest.raises(ValueError, match=says):
        call()
