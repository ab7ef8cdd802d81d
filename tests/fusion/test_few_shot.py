"""The few-shot switch, for every registered head."""

import pytest
import torch
from fusion_heads import CLASSES, boxes_of, features_of, small_head
from torch import nn

from actionfuse.fusion import list_heads
from actionfuse.fusion.few_shot import classifier_parameters, freeze_all_but_classifier, reset_classifier

NAMES = list_heads()


@pytest.mark.parametrize("name", NAMES)
def test_only_classifiers_learn(name):
    head = small_head(name, ("rgb", "flow", "objects"))
    backbone = nn.Linear(2, 2)
    trained = freeze_all_but_classifier(head, backbone)
    assert trained and trained == [key for key, p in head.named_parameters() if p.requires_grad]
    assert not any(p.requires_grad for p in backbone.parameters())
    output = head.train()(features_of(head), boxes_of(head))
    logits = [x for part in (output.logits, *output.auxiliary.values()) for x in part.values()]
    loss = sum((x.square().mean() for x in logits), sum(output.losses.values(), torch.zeros(())))
    loss.backward()
    assert {key for key, p in head.named_parameters() if p.grad is not None} == set(trained)


@pytest.mark.parametrize("name", NAMES)
def test_other_classes_keep_all_other_weights(name):
    head = small_head(name, ("rgb", "flow", "objects"))
    new = reset_classifier(head, {"verb": CLASSES["verb"], "noun": 12})
    logits = new(features_of(new), boxes_of(new)).logits
    assert {task: x.shape[1] for task, x in logits.items()} == {"verb": 5, "noun": 12}
    assert (new.name, new.options, new.training) == (head.name, head.options, head.training)
    own, theirs = set(classifier_parameters(head)), new.state_dict()
    for key, tensor in head.state_dict().items():
        if key not in own:
            assert theirs[key].equal(tensor), key


def test_classifiers_of_interactive_fusion_are_its_last_layers():
    head = small_head("interactive")
    own = ["classifiers.verb.weight", "classifiers.verb.bias", "classifiers.noun.weight", "classifiers.noun.bias"]
    assert classifier_parameters(head) == own
    novel = reset_classifier(head.double(), {"action": 86})
    assert novel.classifiers.action.weight.shape == (86, 32) and novel.classifiers.action.weight.dtype == torch.float64
    assert novel.flow.weight_hh_l0.data_ptr() != head.flow.weight_hh_l0.data_ptr()


def test_a_head_of_unknown_options_is_refused():
    head = small_head("interactive")
    head.name = ""
    with pytest.raises(ValueError, match="create_head"):
        freeze_all_but_classifier(head)
