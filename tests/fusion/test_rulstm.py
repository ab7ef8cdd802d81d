"""RULSTM against outputs of the public code, and against a loop over samples and steps in float64."""

import pytest
import torch
from fusion_heads import CLASSES, features_of, small_head
from golden_cases import available, load_case
from torch.nn import functional as F

from actionfuse.fusion import create_head
from actionfuse.fusion.rulstm import from_published

STREAMS = ("rgb", "flow")


def published(name):
    case = load_case(name, "anticipation")
    options = case.meta["constructor_args"]
    branches = options.get("branches", [options])
    names = list(case.meta["inputs"])
    head = create_head(
        "rulstm",
        streams={stream: branch["feat_in"] for stream, branch in zip(names, branches, strict=True)},
        classes={"action": branches[0]["num_class"]},
        width=branches[0]["hidden"],
        anticipation_steps=14,
    ).eval()
    head.load_state_dict(from_published(case.weights(), head.streams))
    return case, head, {stream: case.input(stream) for stream in names}


@pytest.mark.parametrize("name", available("anticipation", "rulstm_anticipation"))
def test_one_branch(name):
    case, head, inputs = published(name)
    x = inputs["rgb"].requires_grad_()
    output = head({"rgb": x})
    case.check_output("y", output.auxiliary["steps"]["action"], rtol=1e-5)
    torch.testing.assert_close(output.logits["action"], case.arrays["y"][:, -4], rtol=1e-5, atol=1e-6)
    hidden, cell = head.branches["rgb"].roll(x, None, 14)
    case.check_output("rolling_hidden", hidden.transpose(0, 1)[:, None], rtol=1e-5)
    case.check_output("rolling_cell", cell.transpose(0, 1)[:, None], rtol=1e-5)
    _, context = head.branches["rgb"](x, None, 14, completion=False)
    case.check_output("context", context, rtol=1e-5)
    loss = F.cross_entropy(
        output.auxiliary["steps"]["action"][:, -8:].flatten(0, 1), case.arrays["labels"].repeat_interleave(8)
    )
    case.check_output("loss_last8", loss, rtol=1e-5)
    loss.backward()
    case.check_output("grad_input", x.grad, rtol=1e-4)


@pytest.mark.parametrize("name", available("anticipation", "rulstm_fusion_matt"))
def test_branches_weighed_by_matt(name):
    case, head, inputs = published(name)
    output = head(inputs, extras=True)
    case.check_output("y", output.auxiliary["steps"]["action"], rtol=1e-5)
    torch.testing.assert_close(output.extras["modality_weights"], case.arrays["attention"][:, -4], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="3 branches; the head has 1"):
        from_published(case.weights(), {"rgb": 8})


def cell_step(lstm, x, hidden, cell):
    gates = lstm.weight_ih @ x + lstm.bias_ih + lstm.weight_hh @ hidden + lstm.bias_hh
    i, f, g, o = gates.chunk(4)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def naive_branch(branch, x, completion, task):
    """Scores and contexts of one sample x (T, D) at every t, unrolled one t after the other."""
    steps = len(x)
    hidden = cell = torch.zeros(branch.rolling.hidden_size, dtype=x.dtype)
    scores, contexts = [], []
    for t in range(steps):
        hidden, cell = cell_step(branch.rolling, x[t], hidden, cell)
        # what the public code hands to the second LSTM at t
        fed = [x[k] for k in range(t, steps)] if completion else [x[t]] * (steps - t + 1)
        ahead, state = hidden, cell
        for each in fed:
            ahead, state = cell_step(branch.unrolling, each, ahead, state)
        layer = branch.classifiers[task]
        scores.append(layer.weight @ ahead + layer.bias)
        contexts.append(torch.cat([ahead, cell]))
    return torch.stack(scores), torch.stack(contexts)


@pytest.mark.parametrize("completion", [False, True])
@pytest.mark.parametrize("streams", [("rgb",), STREAMS])
def test_loops_say_the_same(completion, streams):
    head = small_head("rulstm", streams, sequence_completion=completion, anticipation_steps=5, told_step=2).double()
    features = {stream: x.double() for stream, x in features_of(head, maps=False, steps=7).items()}
    real = {"flow": torch.tensor([[True] * 7, [False, False, False, True, True, True, True], [True] * 7])}
    masks = {stream: mask for stream, mask in real.items() if stream in streams}
    output = head(features, masks=masks)
    assert output.auxiliary["steps"]["verb"].shape == (3, 5, CLASSES["verb"])
    for sample in range(3):
        for task in CLASSES:
            own = []
            for stream, x in features.items():
                kept = x[sample][real[stream][sample]] if stream in masks else x[sample]
                scores, contexts = naive_branch(head.branches[stream], kept, completion, task)
                short = max(0, 5 - len(kept))  # the first one stands for those that are missing
                own.append([torch.cat([part[:1]] * short + [part[-5:]]) for part in (scores, contexts)])
            expected = own[0][0]
            if len(streams) > 1:
                weights = head.matt([context for _, context in own])
                expected = sum(weights[:, i, None] * scores for i, (scores, _) in enumerate(own))
            torch.testing.assert_close(output.auxiliary["steps"][task][sample], expected, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(output.logits[task][sample], expected[-2], rtol=1e-9, atol=1e-9)


def test_completion_sees_what_comes_and_anticipation_does_not():
    for completion in (False, True):
        head = small_head("rulstm", ("rgb",), sequence_completion=completion)
        x = features_of(head, maps=False, steps=14)["rgb"]
        later = x.clone()
        later[:, -3:] += 1  # behind the told step, 1 s before the action
        changed = not torch.equal(head({"rgb": x}).logits["verb"], head({"rgb": later}).logits["verb"])
        assert changed == completion


def test_inputs_of_every_unrolling_are_dropped_anew():
    """In training no two t share a mask: with one they would tell the same of equal inputs."""
    head = small_head("rulstm", ("rgb",), dropout=0.5).train()
    branch = head.branches["rgb"]
    fed = []
    branch.unrolling.register_forward_pre_hook(lambda _, given: fed.append(given[0] == 0))
    head({"rgb": torch.ones(2, 14, head.streams["rgb"])})
    assert [len(each) for each in fed] == [2 * n for n in (8, 8, 7, 6, 5, 4, 3, 2, 1)]
    assert not torch.equal(fed[0], fed[1])
    assert len({tuple(row.tolist()) for row in fed[0]}) > 8
