"""Concatenation, summation, FiLM, gated fusion and gated multimodal units."""

import pytest
import torch
from fusion_heads import WIDTHS, features_of, small_head
from golden_cases import available, load_case
from torch import nn
from torchvision.models import resnet18

from actionfuse.fusion import create_head
from actionfuse.fusion.gating import GatedMultimodalUnit

TRIPLE = ("rgb", "flow", "objects")
CASES = [
    *(("recognition", name) for name in available("recognition", "ogm_sum", "ogm_concat", "ogm_film", "ogm_gated")),
    *(
        ("anticipation", name)
        for name in available("anticipation", "ogm_sumfusion", "ogm_concatfusion", "ogm_film", "ogm_gatedfusion")
    ),
]


def ours(head, published):
    """Weights of the public code's fusion modules (two streams, one task) under the names of our heads."""
    first, second = head.streams
    names = {
        "concat": {"fc_out": "classifiers.action"},
        "sum": {"fc_x": f"classifiers.action.{first}", "fc_y": f"classifiers.action.{second}"},
        "film": {"fc": f"modulation.{second}", "fc_out": "classifiers.action"},
        "gated": {"fc_x": f"project.{first}", "fc_y": f"project.{second}", "fc_out": "classifiers.action"},
    }[head.name]
    return {f"{names[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": x for key, x in published.items()}


@pytest.mark.parametrize("area, name", CASES)
def test_goldens(area, name):
    case = load_case(name, area)
    kind = name.removeprefix("ogm_").removesuffix("fusion")
    inputs = {stream: case.input(stream) for stream in case.meta["inputs"]}
    weights = case.weights()
    classes = weights["fc_out.weight" if "fc_out.weight" in weights else "fc_x.weight"].shape[0]
    widths = {stream: x.shape[1] for stream, x in inputs.items()}
    options = {"width": weights["fc_x.weight"].shape[0]} if kind == "gated" else {}
    head = create_head(kind, streams=widths, classes={"action": classes}, **options).eval()
    head.load_state_dict(ours(head, weights))
    features = {stream: x[:, None] for stream, x in inputs.items()}
    logits = head(features).logits["action"]
    first, second, out = case.arrays
    case.check_output(out, logits, rtol=1e-5)
    # what the reference returns beside the logits: features, or for gated fusion their projections
    for stream, key in zip(inputs, (first, second), strict=True):
        value = head.project[stream](inputs[stream]) if kind == "gated" else inputs[stream]
        case.check_output(key, value, rtol=1e-5)


class Frames(nn.Module):
    """ResNet-18 on every frame of (B, C, T, H, W), averaged over space and time to (B, 512)."""

    def __init__(self, channels):
        super().__init__()
        self.net = resnet18()
        self.net.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        self.net.fc = nn.Identity()

    def forward(self, x):
        return self.net(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(x), -1)).mean(1)


@pytest.mark.parametrize("name", available("recognition", "ogm_av_concat"))
def test_the_whole_audiovisual_network(name):
    case = load_case(name)
    weights, vectors = case.weights(), {}
    for stream, channels in (("audio", 1), ("visual", 3)):
        net = Frames(channels).eval()
        net.net.load_state_dict(
            {k.removeprefix(f"{stream}_net."): x for k, x in weights.items() if k.startswith(f"{stream}_net.")}
        )
        x = case.input(stream)
        with torch.inference_mode():
            vectors[stream] = net(x if x.ndim == 5 else x[:, :, None])
    case.check_output("a", vectors["audio"], rtol=1e-4)
    case.check_output("v", vectors["visual"], rtol=1e-4)
    head = create_head("concat", streams={"audio": 512, "visual": 512}, classes={"action": 6})
    start = "fusion_module."
    head.load_state_dict(ours(head, {k.removeprefix(start): x for k, x in weights.items() if k.startswith(start)}))
    logits = head({stream: x[:, None] for stream, x in vectors.items()}).logits["action"]
    case.check_output("logits", logits, rtol=1e-4)


def means(features, masks=None):
    """stream -> (B, D), of the steps that are there, one sample at a time."""
    return {
        stream: torch.stack(
            [
                x[b][:, (masks or {}).get(stream, torch.ones(x.shape[:1] + x.shape[2:3], dtype=torch.bool))[b]]
                .flatten(1)
                .mean(1)
                for b in range(len(x))
            ]
        )
        for stream, x in features.items()
    }


def test_streams_alone_sum_to_the_logits():
    for name in ("concat", "sum"):
        head = small_head(name, TRIPLE).train()
        output = head(features_of(head))
        assert set(output.auxiliary) == {f"unimodal/{stream}" for stream in TRIPLE}
        assert set(head.auxiliary_weights.values()) == {0.0}
        for task, logits in output.logits.items():
            alone = [output.auxiliary[f"unimodal/{stream}"][task] for stream in TRIPLE]
            assert not any(x.requires_grad for x in alone)
            torch.testing.assert_close(sum(alone), logits, rtol=1e-5, atol=1e-5)


def test_sum_scales_what_is_left():
    head = small_head("sum", TRIPLE)
    features = features_of(head)
    masks = {"flow": torch.tensor([[True] * 4, [False] * 4, [True, False, True, False]])}
    vectors = means(features, masks)
    logits = head(features, masks=masks).logits["verb"]
    for b, there in enumerate((TRIPLE, ("rgb", "objects"), TRIPLE)):
        parts = [head.classifiers["verb"][stream](vectors[stream][b]) for stream in there]
        torch.testing.assert_close(logits[b], sum(parts) * 3 / len(there), rtol=1e-5, atol=1e-6)


def test_a_missing_stream_is_zeros_in_a_concatenation():
    head = small_head("concat", TRIPLE)
    features = features_of(head)
    without = head({s: x for s, x in features.items() if s != "flow"}).logits
    zeros = head({**features, "flow": torch.zeros_like(features["flow"])}).logits
    for task, x in without.items():
        torch.testing.assert_close(x, zeros[task])


@pytest.mark.parametrize("condition", [None, "flow"])
def test_film_of_three_streams(condition):
    head = small_head("film", TRIPLE, condition=condition)
    features = features_of(head)
    vectors = means(features)
    by, joint = condition or "rgb", []
    for stream in TRIPLE:
        if stream != by:
            both = head.modulation[stream](vectors[by])
            gamma, beta = both[:, : WIDTHS[stream]], both[:, WIDTHS[stream] :]
            joint.append(gamma * vectors[stream] + beta)
    for task, layer in head.classifiers.items():
        torch.testing.assert_close(head(features).logits[task], layer(torch.cat(joint, 1)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gate", [None, "objects"])
def test_gated_fusion_of_three_streams(gate):
    head = small_head("gated", TRIPLE, gate=gate)
    features = features_of(head)
    vectors = means(features)
    by = gate or "rgb"
    opened = 1 / (1 + (-head.project[by](vectors[by])).exp())
    joint = opened * sum(head.project[s](vectors[s]) for s in TRIPLE if s != by)
    output = head(features, extras=True)
    torch.testing.assert_close(output.extras["gate"], opened.detach())
    for task, layer in head.classifiers.items():
        torch.testing.assert_close(output.logits[task], layer(joint), rtol=1e-5, atol=1e-5)


def naive_unit(unit, vectors):
    """One sample, a list of vectors; gates of stacked layers are taken apart by hand."""
    count, width = len(vectors), unit.values[0].out_features
    h = [layer(x).tanh() for layer, x in zip(unit.values, vectors, strict=True)]
    if unit.rule == "bimodal":
        z = unit.gates(torch.cat(vectors)).sigmoid()
        return z * h[0] + (1 - z) * h[1]
    total = 0
    for i in range(count):
        others = [j for j in range(count) if j != i]
        if unit.rule == "independent":
            weight = unit.gates.weight[i * width : (i + 1) * width]
            z = (weight @ torch.cat(vectors) + unit.gates.bias[i * width : (i + 1) * width]).sigmoid()
            total = total + z * h[i]
        else:
            z = unit.gates[i](torch.cat([vectors[i], sum(vectors[j] for j in others)])).sigmoid()
            total = total + z * h[i] + (1 - z) * sum(h[j] for j in others)
    return total


@pytest.mark.parametrize(
    "widths, rule",
    [((6, 4), None), ((6, 4, 5), None), ((6, 4), "independent"), ((5, 5, 5), "mixed"), ((5, 5), "mixed"), ((4,), None)],
)
def test_units(widths, rule):
    torch.manual_seed(0)
    unit = GatedMultimodalUnit(widths, 7, rule=rule).double()
    vectors = [torch.randn(3, size, dtype=torch.float64, requires_grad=True) for size in widths]
    mixed, gates = unit(vectors)
    assert gates.shape == (3, len(widths), 7) and ((gates > 0) & (gates < 1)).all()
    for b in range(3):
        torch.testing.assert_close(mixed[b], naive_unit(unit, [x[b] for x in vectors]), rtol=1e-6, atol=1e-8)
    assert torch.autograd.gradcheck(lambda *x: unit(x)[0], vectors)


def test_one_of_two_streams_alone_is_its_own_value():
    unit = GatedMultimodalUnit((6, 4), 7)
    vectors = [torch.randn(2, 6), torch.zeros(2, 4)]
    mixed, gates = unit(vectors, torch.tensor([[True, False]] * 2))
    torch.testing.assert_close(mixed, unit.values[0](vectors[0]).tanh())
    assert gates[:, 0].eq(1).all() and gates[:, 1].eq(0).all()
    # a gate that is shut to the last digit, as bfloat16's soon are
    torch.nn.init.constant_(unit.gates.bias, -200.0)
    mixed, _ = unit(vectors, torch.tensor([[True, False]] * 2))
    torch.testing.assert_close(mixed, unit.values[0](vectors[0]).tanh())


def test_a_missing_stream_is_in_no_term_of_a_mixed_unit():
    unit = GatedMultimodalUnit((5, 5, 5), 7, rule="mixed")
    x, y = torch.randn(2, 2, 5)
    three, _ = unit([x, torch.zeros(2, 5), y], torch.tensor([[True, False, True]] * 2))
    pair = GatedMultimodalUnit((5, 5), 7, rule="mixed")
    for part in ("values", "gates"):
        for own, other in zip(getattr(pair, part), (0, 2), strict=True):
            own.load_state_dict(getattr(unit, part)[other].state_dict())
    torch.testing.assert_close(three, pair([x, y])[0])


def test_gating_shows_its_weights():
    head = small_head("gating", ("rgb", "flow"))
    features = features_of(head)
    output = head(features, extras=True)
    torch.testing.assert_close(output.extras["modality_weights"].sum(1), torch.ones(3))
    z = head.unit.gates(torch.cat(list(means(features).values()), 1)).sigmoid().mean(1)
    torch.testing.assert_close(output.extras["modality_weights"][:, 0], z.detach())


@pytest.mark.parametrize(
    "name, options, said",
    [
        ("film", {"condition": "flw"}, "condition='flw'.*rgb, flow, objects"),
        ("gated", {"gate": "flw"}, "gate='flw'"),
        ("gating", {"rule": "x"}, "rule is 'x'"),
        ("gating", {"rule": "bimodal"}, "two streams, not 3"),
        ("gating", {"rule": "mixed"}, r"one width, and are \[24, 16, 20\]"),
    ],
)
def test_wrong_options_are_refused(name, options, said):
    with pytest.raises(ValueError, match=said):
        small_head(name, TRIPLE, **options)
