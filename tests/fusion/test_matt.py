"""MATT against the public codes of RULSTM and AFFT, and the head against loops over samples in float64."""

import math

import pytest
import torch
from fusion_heads import CLASSES, features_of, small_head
from golden_cases import available, load_case

from actionfuse.fusion.matt import MATT, fuse_scores, published_weights

TRIPLE = ("rgb", "flow", "objects")


@pytest.mark.parametrize("name", available("anticipation", "rulstm_fusion_matt"))
def test_rulstm(name):
    """From the branches' contexts and scores on: a branch's context is twice its hidden state wide."""
    case = load_case(name, "anticipation")
    branches = case.meta["constructor_args"]["branches"]
    matt = MATT([2 * branch["hidden"] for branch in branches]).eval()
    matt.load_state_dict(published_weights(case.weights()))
    contexts = case.arrays["context"].chunk(len(branches), -1)
    weights = matt(contexts)
    case.check_output("attention", weights, rtol=1e-5)
    scores = [case.arrays[f"scores_{stream}"] for stream in case.meta["inputs"]]
    case.check_output("y", fuse_scores(weights, scores), rtol=1e-5)


@pytest.mark.parametrize("name", available("anticipation", "afft_matt"))
def test_afft(name):
    case = load_case(name, "anticipation")
    options = case.meta["constructor_args"]
    matt = MATT([options["dim"]] * len(options["modal_dims"])).eval()
    matt.load_state_dict(published_weights({f"future_predictor.fuser.{k}": x for k, x in case.weights().items()}))
    case.check_output("weights", matt([case.input(stream) for stream in case.meta["modality_order"]]), rtol=1e-5)


def naive(head, features, sample, real):
    """Logits and weights of one sample. real: stream -> numbers of its real steps."""
    clips = {}
    for stream, x in features.items():
        steps = [x[sample, t] for t in real.get(stream, range(x.shape[1]))]
        clips[stream] = sum(steps) / len(steps) if steps else torch.zeros_like(x[0, 0])
    hidden = torch.cat(list(clips.values()))
    for number in (0, 3, 6):
        layer = head.matt[number]
        hidden = layer.weight @ hidden + layer.bias
        hidden = hidden.clamp(min=0) if number < 6 else hidden
    there = [real.get(stream, [0]) != [] for stream in features]
    powers = [math.exp(score) if is_there else 0.0 for score, is_there in zip(hidden.tolist(), there, strict=True)]
    weights = [power / sum(powers) for power in powers]
    logits = {}
    for task in CLASSES:
        logits[task] = 0
        for weight, (stream, clip) in zip(weights, clips.items(), strict=True):
            layer = head.classifiers[stream][task]
            logits[task] = logits[task] + weight * (layer.weight @ clip + layer.bias)
    return logits, torch.tensor(weights, dtype=torch.float64)


def test_equations_one_sample_at_a_time():
    head = small_head("matt", TRIPLE).double()
    torch.nn.init.normal_(head.matt[6].weight)
    features = {stream: x.double() for stream, x in features_of(head, maps=False).items()}
    real = {"flow": [], "objects": [0, 2]}
    masks = {stream: torch.ones(3, 4, dtype=torch.bool) for stream in features}
    for stream, steps in real.items():
        masks[stream][1] = False
        masks[stream][1, steps] = True
    output = head(features, masks=masks, extras=True)
    for sample in range(3):
        logits, weights = naive(head, features, sample, real if sample == 1 else {})
        torch.testing.assert_close(output.extras["modality_weights"][sample], weights)
        for task, wanted in logits.items():
            torch.testing.assert_close(output.logits[task][sample], wanted)


def test_gradients_and_a_sample_without_any_stream():
    torch.manual_seed(0)
    matt = MATT([3, 5]).double().eval()
    contexts = [torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)]
    scores = [torch.randn(2, 4, dtype=torch.float64) for _ in contexts]
    there = torch.tensor([[True, True], [False, False]])
    inputs = [x.requires_grad_() for x in (*contexts, *scores)] + list(matt.parameters())

    def run(a, b, y, z, *_):
        return fuse_scores(matt([a, b], there), [y, z])

    assert torch.autograd.gradcheck(run, inputs)
    assert run(*inputs)[1].eq(0).all()


def test_other_weights_are_refused():
    with pytest.raises(ValueError, match="lack MATT's 3.bias"):
        published_weights({f"MATT.{key}": x for key, x in MATT([8, 8]).state_dict().items() if key != "3.bias"})
