"""What every registered head promises, whatever paper it is from."""

import copy
import inspect
import io
import math

import numpy as np
import pytest
import torch
from fusion_heads import CLASSES, WIDTHS, boxes_of, features_of, small_head
from torch.nn import functional as F

from actionfuse.fusion import create_head, head_options, list_heads
from actionfuse.fusion.contract import CARDS, HEADS

NAMES = list_heads()
PAIR, TRIPLE = ("rgb", "flow"), ("rgb", "flow", "objects")


def logits_of(head, features, boxes=None, masks=None):
    with torch.inference_mode():
        return head(features, boxes, masks).logits


def same(first, second, tolerance=1e-5):
    assert first.keys() == second.keys()
    for task in first:
        torch.testing.assert_close(first[task], second[task], rtol=tolerance, atol=tolerance)


def total_loss(head, output):
    """What training does with an output: the head's own losses, and cross-entropy for all the logits."""
    loss = sum(output.losses.values(), torch.zeros(()))
    for logits in (output.logits, *output.auxiliary.values()):
        for task, scores in logits.items():
            labels = torch.arange(scores.shape[0]) % CLASSES[task]
            flat = scores.flatten(0, -2)
            loss = loss + F.cross_entropy(flat, labels.repeat_interleave(len(flat) // len(labels)))
    return loss


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("streams", [("rgb",), PAIR, TRIPLE])
@pytest.mark.parametrize("maps", [True, False])
def test_logits_of_every_task_from_any_streams(name, streams, maps):
    try:
        head = small_head(name, streams)
    except ValueError as refused:
        # A method for two streams or more may refuse one; it says how many it needs.
        assert len(streams) == 1 and "stream" in str(refused)
        return
    features = features_of(head, maps=maps)
    logits = logits_of(head, features, boxes_of(head))
    assert {task: tuple(x.shape) for task, x in logits.items()} == {"verb": (3, 5), "noun": (3, 7)}
    assert all(x.isfinite().all() for x in logits.values())
    same(logits, logits_of(head, features, boxes_of(head)), 0)


@pytest.mark.parametrize("name", NAMES)
def test_one_task_and_bfloat16(name):
    torch.manual_seed(0)
    head = small_head(name)
    only = create_head(name, streams=head.streams, classes={"action": 11}, **head.options).eval()
    assert logits_of(only, features_of(only), boxes_of(only))["action"].shape == (3, 11)
    with torch.autocast("cpu", torch.bfloat16):
        half = logits_of(head, features_of(head), boxes_of(head))
    for task, exact in logits_of(head, features_of(head), boxes_of(head)).items():
        torch.testing.assert_close(half[task].float(), exact, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_learns(name):
    head = small_head(name, TRIPLE).train()
    output = head({k: x.requires_grad_() for k, x in features_of(head).items()}, boxes_of(head))
    total_loss(head, output).backward()
    without = [key for key, p in head.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert all(p.grad.isfinite().all() for p in head.parameters() if p.grad is not None)
    assert all(loss.ndim == 0 and loss.isfinite() for loss in output.losses.values())


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_extras_come_when_they_are_wanted(name):
    head = small_head(name)
    features, boxes = features_of(head), boxes_of(head)
    plain = head(features, boxes)
    assert plain.losses == {} and plain.extras == {}
    full = head(features, boxes, losses=True, extras=True)
    same(plain.logits, full.logits)
    assert not any(x.requires_grad for x in full.extras.values())
    assert set(head.auxiliary_weights) <= set(full.auxiliary)


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing(name):
    """Two samples of 4 and 2 steps, padded with NaN, give what each gives alone."""
    head = small_head(name, TRIPLE)
    features = features_of(head, batch=2)
    boxes = boxes_of(head, batch=2)
    masks = {stream: torch.tensor([[True] * 4, [True, True, False, False]]) for stream in head.streams}
    padded = {stream: x.clone() for stream, x in features.items()}
    for x in padded.values():
        x[1, :, 2:] = torch.nan
    together = logits_of(head, padded, boxes, masks)
    for i, steps in enumerate((4, 2)):
        alone = {stream: x[i : i + 1, :, :steps] for stream, x in features.items()}
        own = boxes and type(boxes)(boxes.boxes[i : i + 1, :steps], boxes.categories[i : i + 1, :steps])
        same({task: x[i : i + 1] for task, x in together.items()}, logits_of(head, alone, own))


@pytest.mark.parametrize("name", NAMES)
def test_a_stream_that_a_sample_lacks_is_not_looked_at(name):
    head = small_head(name, TRIPLE)
    features, boxes = features_of(head, batch=2), boxes_of(head, batch=2)
    masks = {"flow": torch.tensor([[True] * 4, [False] * 4])}
    lacking = {stream: x.clone() for stream, x in features.items()}
    lacking["flow"][1] = torch.nan
    logits = logits_of(head, lacking, boxes, masks)
    assert all(x.isfinite().all() for x in logits.values())
    complete = logits_of(head, features, boxes)
    same({task: x[:1] for task, x in logits.items()}, {task: x[:1] for task, x in complete.items()})
    own = boxes and type(boxes)(boxes.boxes[1:], boxes.categories[1:])
    without = {stream: x[1:] for stream, x in features.items() if stream != "flow"}
    if head.optional_streams:
        same({task: x[1:] for task, x in logits.items()}, logits_of(head, without, own))
    else:
        with pytest.raises(ValueError, match="'flow'"):
            logits_of(head, without, own)


@pytest.mark.parametrize("name", NAMES)
def test_samples_of_a_batch_do_not_meet(name):
    head = small_head(name)
    features, boxes = features_of(head), boxes_of(head)
    alone = boxes and type(boxes)(boxes.boxes[1:2], boxes.categories[1:2])
    together = logits_of(head, features, boxes)
    same(
        {task: x[1:2] for task, x in together.items()},
        logits_of(head, {stream: x[1:2] for stream, x in features.items()}, alone),
    )


@pytest.mark.parametrize("name", NAMES)
def test_wrong_calls_say_what_is_wrong(name):
    head = small_head(name)
    features, boxes = features_of(head), boxes_of(head)
    with pytest.raises(ValueError, match=r"'flw'.*did you mean 'flow'"):
        head({"rgb": features["rgb"], "flw": features["flow"]}, boxes)
    with pytest.raises(ValueError, match=r"'flow'.*\(3, 17, 4, 3, 3\).*16"):
        head({**features, "flow": torch.zeros(3, 17, 4, 3, 3)}, boxes)
    with pytest.raises(ValueError, match="different batches: rgb 2, flow 3"):
        head({**features, "rgb": features["rgb"][:2]}, boxes)
    with pytest.raises(ValueError, match="mask of 'rgb'"):
        head(features, boxes, {"rgb": torch.ones(3, 9, dtype=torch.bool)})
    with torch.device("meta"):  # parts of full size, made before the head looks at its classes, would take seconds
        with pytest.raises(ValueError, match="classes.*got none"):
            create_head(name, streams=WIDTHS, classes={})
        with pytest.raises(ValueError, match=r"classes\['verb'\] is 0"):
            create_head(name, streams=WIDTHS, classes={"verb": 0})
        for wrong in ("", "verb.hard", "type", 1):
            with pytest.raises(ValueError, match=f"classes have the name {wrong!r}"):
                create_head(name, streams=WIDTHS, classes={wrong: 2})
            with pytest.raises(ValueError, match=f"streams have the name {wrong!r}"):
                create_head(name, streams={**WIDTHS, wrong: 4}, classes=CLASSES)
    with pytest.raises(ValueError, match="no option 'no_such'"):
        create_head(name, streams=WIDTHS, classes=CLASSES, no_such=1)
    if head.needs_boxes:
        with pytest.raises(ValueError, match="needs boxes"):
            head(features)
    if head.same_steps:
        with pytest.raises(ValueError, match="rgb 4, flow 3"):
            head({**features, "flow": features["flow"][:, :, :3]}, boxes)


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_saved_and_heads_are_copied(name):
    head = small_head(name)
    memory = io.BytesIO()
    torch.save(head.state_dict(), memory)
    memory.seek(0)
    other = small_head(name)
    for p in other.parameters():
        torch.nn.init.ones_(p)
    other.load_state_dict(torch.load(memory))
    features, boxes = features_of(head), boxes_of(head)
    same(logits_of(head, features, boxes), logits_of(other, features, boxes), 0)
    same(logits_of(head, features, boxes), logits_of(copy.deepcopy(head), features, boxes), 0)


@pytest.mark.parametrize("name", NAMES)
def test_options_are_explicit_and_papers_named(name):
    for option in inspect.signature(HEADS[name]).parameters.values():
        assert option.kind is inspect.Parameter.KEYWORD_ONLY, f"{name}: {option}"
    assert CARDS[name].summary
    assert any(c.isdigit() for c in CARDS[name].paper) or not CARDS[name].paper


@pytest.mark.parametrize("name", NAMES)
def test_values_that_no_option_can_have_are_refused(name):
    """Of another kind, none where some are needed, not finite, not a probability."""
    for option, default in head_options(name):
        wrong = [object(), -1, math.nan, "", []]
        wrong += [True, 0.5] if isinstance(default, int) and not isinstance(default, bool) else []
        wrong += [0] if type(default) is int and option != "nonlocal_layers" else []
        wrong += [math.inf, "0.1"] if isinstance(default, float) else []
        wrong += [1.5] if "drop" in option else []
        for value in wrong:
            with pytest.raises(ValueError, match=rf"\b{option}\b.* (is|are) "):
                small_head(name, TRIPLE, **{option: value})


def test_numbers_of_numpy_are_numbers():
    assert create_head("gating", streams=WIDTHS, classes=CLASSES, width=np.int64(8), dropout=np.float32(0.5)).unit


def test_an_unknown_head_is_answered_with_near_names():
    with pytest.raises(ValueError, match="did you mean"):
        create_head("mif_paralel", streams=WIDTHS, classes=CLASSES)
